//! Questions to the CA and its answers, over one MQTT connection.

use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::rumqttc::Outgoing;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    ConnectReturnCode, Packet, PubAckReason, PublishProperties, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client, Login, connect, connect_with_login};
use assay_wire::{ClientId, Reply, ReplyBody, Request, RequestBody, RequestId, Scope, Topic};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::error::Error;

/// Broker or CA could not be reached, or fell silent; worth another attempt.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) String);

/// What was said, counted as MQTT payloads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) requests: u32,
    pub(crate) bytes_sent: usize,
    pub(crate) bytes_received: usize,
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            bytes_sent: self.bytes_sent + other.bytes_sent,
            bytes_received: self.bytes_received + other.bytes_received,
        }
    }
}

/// A connection of a device that has no name yet, subscribed to its own reply topic.
pub(crate) struct Bootstrap {
    client: AsyncClient,
    events: EventLoop,
    request_topic: String,
    reply_topic: String,
    traffic: Traffic,
}

impl Bootstrap {
    /// Connects under a fresh client id that nobody can guess, and waits until the broker granted the subscription.
    pub(crate) async fn connect(broker: &BrokerUrl, tls: &Arc<ClientConfig>, scope: &Scope) -> Result<Self, Lost> {
        let id = ClientId::bootstrap(random());
        let request_topic = Topic::Request(scope.clone(), id.clone()).to_string();
        let reply_topic = Topic::Reply(scope.clone(), id.clone()).to_string();
        let settings = Client { id: id.to_string(), window: WINDOW, receive_maximum: WINDOW, manual_acks: false };
        let (client, events) = connect(broker, tls, settings);
        let mut this = Self { client, events, request_topic, reply_topic, traffic: Traffic::default() };
        this.client.try_subscribe(this.reply_topic.clone(), QoS::AtLeastOnce).map_err(lost)?;
        let granted = this.wait("the broker", CONNECT_LIMIT, |packet| match packet {
            Packet::SubAck(ack) => ack.return_codes.into_iter().next(),
            _ => None,
        });
        match granted.await? {
            SubscribeReasonCode::Success(_) => Ok(this),
            code => Err(Lost(format!("the broker refuses the subscription to {}: {code:?}", this.reply_topic))),
        }
    }

    /// Publishes a request and waits for the reply to it.
    ///
    /// A reply to another request is passed over, as is what cannot be read: the broker may deliver twice.
    pub(crate) async fn ask(&mut self, body: RequestBody) -> Result<ReplyBody, Lost> {
        let id = RequestId::from(random());
        let message = Request { id, body }.encode();
        let properties = PublishProperties {
            message_expiry_interval: Some(REPLY_LIMIT.as_secs() as u32),
            ..PublishProperties::default()
        };
        let topic = self.request_topic.clone();
        self.traffic.requests += 1;
        self.traffic.bytes_sent += message.len();
        self.client.try_publish_with_properties(topic, QoS::AtLeastOnce, false, message, properties).map_err(lost)?;
        let reply_topic = self.reply_topic.clone();
        let answer = self.wait("the CA", REPLY_LIMIT, |packet| match packet {
            Packet::Publish(publish) if publish.topic == reply_topic.as_bytes() => {
                let reply = Reply::decode(&publish.payload).ok()?;
                // The nil id answers a request whose own id the CA could not read; nobody else asks on this topic.
                (reply.id == id || reply.id == RequestId::NIL).then_some((reply.body, publish.payload.len()))
            }
            _ => None,
        });
        let (body, length) = answer.await?;
        self.traffic.bytes_received += length;
        Ok(body)
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Says goodbye, so that the broker forgets the client at once. Nothing comes back that is worth waiting for.
    pub(crate) async fn close(mut self) {
        if self.client.try_disconnect().is_ok() {
            let is_sent = async {
                while let Ok(event) = self.events.poll().await
                    && event != Event::Outgoing(Outgoing::Disconnect)
                {}
            };
            _ = timeout(CLOSE_LIMIT, is_sent).await;
        }
    }

    async fn wait<T>(&mut self, whom: &str, limit: Duration, pick: impl Fn(Packet) -> Option<T>) -> Result<T, Lost> {
        match timeout(limit, next(&mut self.events, pick)).await {
            Ok(found) => found.map_err(lost),
            Err(_) => Err(Lost(format!("{whom} did not answer within {} s", limit.as_secs()))),
        }
    }
}

/// Publishes one message as a provisioned device and waits for the broker's acknowledgement.
///
/// The device signs in with `password`, or by the certificate in `tls`.
pub(crate) async fn publish(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    topic: &Topic,
    client: &ClientId,
    password: Option<String>,
    message: Vec<u8>,
) -> Result<(), Error> {
    let settings = Client { id: client.to_string(), window: WINDOW, receive_maximum: WINDOW, manual_acks: false };
    let (client, mut events) = match password {
        Some(password) => connect_with_login(broker, tls, settings, Login { user_name: client.to_string(), password }),
        None => connect(broker, tls, settings),
    };
    let publish = async {
        client
            .try_publish(topic.to_string(), QoS::AtLeastOnce, false, message)
            .map_err(|error| not_reached(lost(error)))?;
        let acknowledged = |packet| match packet {
            Packet::PubAck(ack) => Some(ack.reason),
            _ => None,
        };
        match next(&mut events, acknowledged).await.map_err(not_published)? {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => {}
            reason => return Err(not_reached(Lost(format!("the broker refuses to publish on {topic}: {reason:?}")))),
        }
        client.try_disconnect().map_err(|error| not_reached(lost(error)))?;
        while events.poll().await.is_ok() {}
        Ok(())
    };
    let outcome = timeout(CONNECT_LIMIT, publish).await;
    outcome.unwrap_or_else(|_| Err(not_reached(Lost("the broker did not answer".into()))))
}

fn not_reached(Lost(reason): Lost) -> Error {
    Error::NotReached { deadline: CONNECT_LIMIT, reason }
}

/// A broker that knows the device and does not want it gives these reasons (MQTT 5.0, 3.2.2.2).
fn not_published(error: ConnectionError) -> Error {
    use ConnectReturnCode::{
        BadAuthenticationMethod, BadUserNamePassword, Banned, ClientIdentifierNotValid, NotAuthorized,
    };
    match error {
        ConnectionError::ConnectionRefused(
            reason
            @ (BadAuthenticationMethod | BadUserNamePassword | Banned | ClientIdentifierNotValid | NotAuthorized),
        ) => Error::LoginRefused { reason: format!("{reason:?}") },
        error => not_reached(lost(error)),
    }
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Unwrap safety: getrandom(2) does not fail on the kernels that Rust's standard library supports.
    SystemRandom::new().fill(&mut bytes).unwrap();
    bytes
}

async fn next<T>(events: &mut EventLoop, pick: impl Fn(Packet) -> Option<T>) -> Result<T, ConnectionError> {
    loop {
        if let Event::Incoming(packet) = events.poll().await?
            && let Some(found) = pick(packet)
        {
            return Ok(found);
        }
    }
}

/// The whole chain of causes: rumqttc's own text often says no more than "TLS".
fn lost(error: impl std::error::Error) -> Lost {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    Lost(text)
}

/// One request is under way at a time; some room for what rumqttc sends itself.
const WINDOW: u16 = 10;
/// Longer than assay-mqtt gives TCP, TLS and CONNECT together.
const CONNECT_LIMIT: Duration = Duration::from_secs(25);
/// A CA answers in milliseconds, or says how long it will be busy. What is not answered by then was lost with a dead worker.
const REPLY_LIMIT: Duration = Duration::from_secs(20);
/// Enough for one packet to leave.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
