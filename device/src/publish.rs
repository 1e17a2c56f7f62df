//! Publishes as a provisioned device.

use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::BrokerUrl;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason};
use assay_mqtt::rumqttc::v5::{ConnectionError, Event, EventLoop};
use assay_wire::{DeviceClientId, DeviceId, Topic};
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::dial::dial;
use crate::error::Error;
use crate::probe;
use crate::runtime::runtime;
use crate::trouble::{Purpose, Trouble, listener_for};

/// Publishes one message as a provisioned device and waits for the broker's acknowledgement.
///
/// The device signs in with `password`, or by the certificate in `tls`.
pub(crate) fn publish(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    topic: &Topic,
    device_id: &DeviceId,
    password: Option<String>,
    message: Vec<u8>,
) -> Result<(), Error> {
    // Under the device id alone, it would end the connection of a resident agent.
    let connection = Some(NAME.parse().map_err(|_| Error::Internal(NAME.into()))?);
    let id = DeviceClientId { device: device_id.clone(), connection };
    let (client, mut events) = dial(broker, tls, &id, password);
    let publish = async {
        client
            .try_publish(topic.to_string(), QoS::AtLeastOnce, false, message)
            .map_err(not_queued)?;
        let acknowledged = |packet| match packet {
            Packet::PubAck(ack) => Some(ack.reason),
            _ => None,
        };
        let reason = next(&mut events, acknowledged).await;
        match reason.map_err(|error| Trouble::of(&error, broker, Purpose::Operation))? {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {}
            PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid => {
                let found = format!("{broker} does not let this device publish on {topic}");
                return Err(Trouble::misconfigured(found, listener_for(Purpose::Operation)));
            }
            reason => {
                return Err(Trouble::Passing(format!(
                    "{broker} does not accept the message: {reason:?}"
                )));
            }
        }
        client.try_disconnect().map_err(not_queued)?;
        while events.poll().await.is_ok() {}
        Ok(())
    };
    let outcome = runtime()?.block_on(async { timeout(LIMIT, publish).await });
    let reason = match outcome
        .unwrap_or_else(|_| Err(Trouble::Passing(format!("{broker} did not answer"))))
    {
        Ok(()) => return Ok(()),
        Err(trouble) => trouble.examined(|| probe::other_protocol(broker, tls))?,
    };
    Err(Error::NotReached { deadline: LIMIT, reason })
}

async fn next<T>(
    events: &mut EventLoop,
    pick: impl Fn(Packet) -> Option<T>,
) -> Result<T, ConnectionError> {
    loop {
        if let Event::Incoming(packet) = events.poll().await?
            && let Some(found) = pick(packet)
        {
            return Ok(found);
        }
    }
}

/// There is always room for one message.
fn not_queued(error: impl std::fmt::Display) -> Trouble {
    Trouble::Passing(format!("nothing more can be sent: {error}"))
}

/// The name of the connection.
const NAME: &str = "publish";
/// Longer than the time that assay-mqtt allows for TCP, TLS and CONNECT together.
const LIMIT: Duration = Duration::from_secs(25);
