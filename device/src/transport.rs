//! Questions to the CA and its answers, over one MQTT connection.

use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::rumqttc::Outgoing;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    Packet, PubAck, PubAckReason, PublishProperties, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client, Login, connect, connect_with_login};
use assay_wire::{ClientId, Reply, ReplyBody, Request, RequestBody, RequestId, Scope, Topic};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::ClientConfig;
use tokio::time::timeout;

use crate::error::Error;
use crate::probe;
use crate::trouble::{Purpose, Trouble, other_listener};

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
    broker: BrokerUrl,
    scope: Scope,
    client: AsyncClient,
    events: EventLoop,
    request_topic: String,
    reply_topic: String,
    traffic: Traffic,
}

impl Bootstrap {
    /// Connects under a fresh client id that nobody can guess, and waits until the broker granted
    /// the subscription.
    pub(crate) async fn connect(
        broker: &BrokerUrl,
        tls: &Arc<ClientConfig>,
        scope: &Scope,
    ) -> Result<Self, Trouble> {
        let id = ClientId::bootstrap(random());
        let request_topic = Topic::Request(scope.clone(), id.clone()).to_string();
        let reply_topic = Topic::Reply(scope.clone(), id.clone()).to_string();
        let settings = Client {
            id: id.to_string(),
            window: WINDOW,
            receive_maximum: WINDOW,
            manual_acks: false,
        };
        let (client, events) = connect(broker, tls, settings);
        let (broker, scope, traffic) = (broker.clone(), scope.clone(), Traffic::default());
        let mut this = Self { broker, scope, client, events, request_topic, reply_topic, traffic };
        this.client
            .try_subscribe(this.reply_topic.clone(), QoS::AtLeastOnce)
            .map_err(not_queued)?;
        let granted = this.wait("the broker", CONNECT_LIMIT, |packet| match packet {
            Packet::SubAck(ack) => ack.return_codes.into_iter().next(),
            _ => None,
        });
        match granted.await? {
            SubscribeReasonCode::Success(_) => Ok(this),
            SubscribeReasonCode::NotAuthorized | SubscribeReasonCode::TopicFilterInvalid => {
                Err(this.other_scope())
            }
            code => Err(Trouble::Passing(format!(
                "the broker refuses the subscription to {}: {code:?}",
                this.reply_topic
            ))),
        }
    }

    fn other_scope(&self) -> Trouble {
        let Self { broker, scope, .. } = self;
        Trouble::misconfigured(
            format!("{broker} does not let devices be provisioned in scope {scope}"),
            "correct --scope, which the CA's assay.toml says, or --broker; on another broker than \
             the built-in one, check its access list.",
        )
    }

    /// Publishes a request and waits for the reply to it.
    ///
    /// A reply to another request is passed over, as is what cannot be read: the broker may deliver
    /// twice.
    pub(crate) async fn ask(&mut self, body: RequestBody) -> Result<ReplyBody, Trouble> {
        let id = RequestId::from(random());
        let message = Request { id, body }.encode();
        let properties = PublishProperties {
            message_expiry_interval: Some(REPLY_LIMIT.as_secs() as u32),
            ..PublishProperties::default()
        };
        let topic = self.request_topic.clone();
        self.traffic.requests += 1;
        self.traffic.bytes_sent += message.len();
        self.client
            .try_publish_with_properties(topic, QoS::AtLeastOnce, false, message, properties)
            .map_err(not_queued)?;
        let reply_topic = self.reply_topic.clone();
        let answer = self.wait("the CA", REPLY_LIMIT, |packet| match packet {
            Packet::PubAck(PubAck { reason: PubAckReason::Success, .. }) => None,
            Packet::PubAck(ack) => Some(Err(ack.reason)),
            Packet::Publish(publish) if publish.topic == reply_topic.as_bytes() => {
                let reply = Reply::decode(&publish.payload).ok()?;
                // The nil id answers a request whose own id the CA could not read; nobody else asks
                // on this topic.
                let is_ours = reply.id == id || reply.id == RequestId::NIL;
                is_ours.then_some(Ok((reply.body, publish.payload.len())))
            }
            _ => None,
        });
        match answer.await.map_err(Trouble::in_conversation)? {
            Ok((body, length)) => {
                self.traffic.bytes_received += length;
                Ok(body)
            }
            Err(PubAckReason::NotAuthorized | PubAckReason::TopicNameInvalid) => {
                Err(self.other_scope())
            }
            // A worker that starts subscribes within moments.
            Err(PubAckReason::NoMatchingSubscribers) => Err(Trouble::Passing(format!(
                "no CA serves scope {} at {}",
                self.scope, self.broker
            ))),
            Err(reason) => Err(Trouble::Passing(format!(
                "{} does not take the request: {reason:?}",
                self.broker
            ))),
        }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Says goodbye, so that the broker forgets the client at once. Nothing comes back that is
    /// worth waiting for.
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

    async fn wait<T>(
        &mut self,
        whom: &str,
        limit: Duration,
        pick: impl Fn(Packet) -> Option<T>,
    ) -> Result<T, Trouble> {
        match timeout(limit, next(&mut self.events, pick)).await {
            Ok(found) => {
                found.map_err(|error| Trouble::of(&error, &self.broker, Purpose::Bootstrap))
            }
            Err(_) => {
                Err(Trouble::Passing(format!("{whom} did not answer within {} s", limit.as_secs())))
            }
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
    let settings = Client {
        id: client.to_string(),
        window: WINDOW,
        receive_maximum: WINDOW,
        manual_acks: false,
    };
    let (client, mut events) = match password {
        Some(password) => connect_with_login(
            broker,
            tls,
            settings,
            Login { user_name: client.to_string(), password },
        ),
        None => connect(broker, tls, settings),
    };
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
                return Err(Trouble::misconfigured(found, other_listener(Purpose::Operation)));
            }
            reason => {
                return Err(Trouble::Passing(format!(
                    "{broker} does not take what is published: {reason:?}"
                )));
            }
        }
        client.try_disconnect().map_err(not_queued)?;
        while events.poll().await.is_ok() {}
        Ok(())
    };
    let outcome = timeout(CONNECT_LIMIT, publish).await;
    let reason = match outcome
        .unwrap_or_else(|_| Err(Trouble::Passing(format!("{broker} did not answer"))))
    {
        Ok(()) => return Ok(()),
        Err(trouble) => trouble.examined(|| probe::other_protocol(broker, tls))?,
    };
    Err(Error::NotReached { deadline: CONNECT_LIMIT, reason })
}

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Unwrap safety: getrandom(2) does not fail on the kernels that Rust's standard library
    // supports.
    SystemRandom::new().fill(&mut bytes).unwrap();
    bytes
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

/// There is always room for what one conversation says at a time.
fn not_queued(error: impl std::fmt::Display) -> Trouble {
    Trouble::Passing(format!("nothing more can be sent: {error}"))
}

/// One request is under way at a time; some room for what rumqttc sends itself.
const WINDOW: u16 = 10;
/// Longer than assay-mqtt gives TCP, TLS and CONNECT together.
const CONNECT_LIMIT: Duration = Duration::from_secs(25);
/// A CA answers in milliseconds, or says how long it will be busy. What is not answered by then was
/// lost with a dead worker.
const REPLY_LIMIT: Duration = Duration::from_secs(20);
/// Enough for one packet to leave.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);
