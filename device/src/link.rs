//! One connection to the bootstrap listener: a thread that speaks MQTT, and what it hears.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use assay_device_core::{Connection, REPLY_LIMIT};
use assay_mqtt::rumqttc::Outgoing;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    Packet, PubAck, PubAckReason, PublishProperties, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client, connect};
use assay_wire::Scope;
use rustls::ClientConfig;
use tokio::sync::oneshot;

use crate::error::{Error, Setting};
use crate::runtime::runtime;
use crate::trouble::{Purpose, Trouble};

/// The bootstrap listener of a broker, and how to reach it.
#[derive(Clone)]
pub(crate) struct Broker {
    pub(crate) url: BrokerUrl,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) scope: Scope,
}

/// What a connection reports.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The broker granted the subscription to the reply topic.
    Connected,
    /// Somebody published this on the reply topic.
    Reply(Vec<u8>),
    /// The connection is over.
    Lost(Trouble),
}

/// A connection, or one that is on its way. It ends at once when it is dropped.
pub(crate) struct Link {
    client: AsyncClient,
    request_topic: String,
    heard: Receiver<Heard>,
    /// Ends the thread when it is dropped.
    end: oneshot::Sender<()>,
}

impl Link {
    /// Begins to connect. Returns at once.
    pub(crate) fn open(broker: &Broker, connection: Connection) -> Result<Self, Error> {
        let Connection { client: id, request_topic, reply_topic } = connection;
        let settings = Client {
            id: id.to_string(),
            window: WINDOW,
            receive_maximum: WINDOW,
            manual_acks: false,
        };
        let (client, events) = connect(&broker.url, &broker.tls, settings);
        client
            .try_subscribe(reply_topic.clone(), QoS::AtLeastOnce)
            .map_err(|error| Error::Internal(format!("MQTT: {error}")))?;
        let (runtime, broker) = (runtime()?, broker.clone());
        let (sender, heard) = mpsc::channel();
        let (end, mut ended) = oneshot::channel();
        thread::spawn(move || {
            let listener = Listener { broker, reply_topic, heard: sender };
            runtime.block_on(async {
                let mut listening = pin!(listener.listen(events));
                poll_fn(|context| match Pin::new(&mut ended).poll(context) {
                    Poll::Ready(_) => Poll::Ready(()),
                    Poll::Pending => listening.as_mut().poll(context),
                })
                .await
            });
        });
        Ok(Self { client, request_topic, heard, end })
    }

    /// Publishes a request. The broker drops it if no CA takes it in time.
    pub(crate) fn publish(&self, message: Vec<u8>) -> Result<(), Trouble> {
        publish(&self.client, &self.request_topic, message)
    }

    /// The next report of the connection; `None` if none comes within `limit`.
    pub(crate) fn hear(&self, limit: Duration) -> Option<Heard> {
        hear(&self.heard, limit)
    }

    /// Begins to disconnect, so that the broker forgets the client at once. The broker sends
    /// nothing back.
    pub(crate) fn close(self) -> Closing {
        let limit = if self.client.try_disconnect().is_ok() { CLOSE_LIMIT } else { Duration::ZERO };
        Closing { heard: self.heard, _end: self.end, until: Instant::now() + limit }
    }
}

/// Publishes a request to the CA on a connection. The broker drops it if no CA takes it in time.
pub(crate) fn publish(
    client: &AsyncClient,
    request_topic: &str,
    message: Vec<u8>,
) -> Result<(), Trouble> {
    let properties = PublishProperties {
        message_expiry_interval: Some(REPLY_LIMIT.as_secs() as u32),
        ..PublishProperties::default()
    };
    client
        .try_publish_with_properties(request_topic, QoS::AtLeastOnce, false, message, properties)
        // There is always room for one request at a time.
        .map_err(|error| Trouble::Passing(format!("nothing more can be sent: {error}")))
}

/// The next report of a connection; `None` if none comes within `limit`.
pub(crate) fn hear(heard: &Receiver<Heard>, limit: Duration) -> Option<Heard> {
    match heard.recv_timeout(limit) {
        Ok(heard) => Some(heard),
        Err(RecvTimeoutError::Timeout) => None,
        Err(RecvTimeoutError::Disconnected) => {
            Some(Heard::Lost(Trouble::Passing("the connection ended".into())))
        }
    }
}

/// A connection that is being closed. When it is dropped, it waits a moment until DISCONNECT is
/// sent.
pub(crate) struct Closing {
    heard: Receiver<Heard>,
    _end: oneshot::Sender<()>,
    until: Instant,
}

impl Drop for Closing {
    fn drop(&mut self) {
        // The thread drops its sender when it ends.
        while let Some(left) = self.until.checked_duration_since(Instant::now())
            && self.heard.recv_timeout(left).is_ok()
        {}
    }
}

/// The thread's side.
struct Listener {
    broker: Broker,
    reply_topic: String,
    heard: Sender<Heard>,
}

impl Listener {
    async fn listen(self, mut events: EventLoop) {
        let mut is_connected = false;
        loop {
            let heard = match events.poll().await {
                Ok(Event::Incoming(packet)) => self.of(packet),
                Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
                Ok(Event::Outgoing(_)) => None,
                Err(error) => {
                    let trouble = Trouble::of(&error, &self.broker.url, Purpose::Bootstrap);
                    let trouble = if is_connected { trouble.in_conversation() } else { trouble };
                    Some(Heard::Lost(trouble))
                }
            };
            let Some(heard) = heard else { continue };
            is_connected |= matches!(heard, Heard::Connected);
            let is_over = matches!(heard, Heard::Lost(_));
            if self.heard.send(heard).is_err() || is_over {
                return;
            }
        }
    }

    fn of(&self, packet: Packet) -> Option<Heard> {
        let url = &self.broker.url;
        let trouble = match packet {
            Packet::Publish(publish) if publish.topic == self.reply_topic.as_bytes() => {
                return Some(Heard::Reply(publish.payload.into()));
            }
            Packet::SubAck(ack) => match ack.return_codes.into_iter().next()? {
                SubscribeReasonCode::Success(_) => return Some(Heard::Connected),
                SubscribeReasonCode::NotAuthorized | SubscribeReasonCode::TopicFilterInvalid => {
                    self.other_scope()
                }
                code => Trouble::Passing(format!(
                    "the broker refuses the subscription to {}: {code:?}",
                    self.reply_topic
                )),
            },
            Packet::PubAck(PubAck { reason, .. }) => match reason {
                PubAckReason::Success => return None,
                PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid => self.other_scope(),
                // A worker that starts subscribes within moments.
                PubAckReason::NoMatchingSubscribers => {
                    Trouble::Passing(format!("no CA serves scope {} at {url}", self.broker.scope))
                }
                reason => {
                    Trouble::Passing(format!("{url} does not accept the request: {reason:?}"))
                }
            },
            _ => return None,
        };
        Some(Heard::Lost(trouble))
    }

    fn other_scope(&self) -> Trouble {
        let Broker { url, scope, .. } = &self.broker;
        Trouble::misconfigured(
            format!("{url} does not let devices be provisioned in scope {scope}"),
            Setting::Scope,
        )
    }
}

/// One request is under way at a time. The rest is room for what rumqttc sends itself.
const WINDOW: u16 = 10;
/// Enough for one packet to leave.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
