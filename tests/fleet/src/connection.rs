//! One bootstrap connection to the broker, on which any number of requests may be under way.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use assay_mqtt::rumqttc::Outgoing;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    Packet, PubAckReason, PublishProperties, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client};
use assay_wire::{ClientId, Reply, ReplyBody, RequestId, Scope, Topic};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::paths::Paths;
use crate::random;
use crate::tally::Tally;

/// The broker through which devices reach the CA.
pub(crate) struct Broker {
    pub(crate) url: BrokerUrl,
    pub(crate) tls: Arc<ClientConfig>,
    /// The roots that `tls` trusts.
    pub(crate) roots: RootCertStore,
    /// Verifies what the CA issues, by the same roots.
    pub(crate) paths: Paths,
    pub(crate) scope: Scope,
}

/// The connection broke, or nobody answered. Another attempt may succeed.
#[derive(Debug)]
pub(crate) struct Lost(pub(crate) String);

/// A message to publish, and the id of its reply.
pub(crate) struct Question {
    /// The id that the reply will carry.
    pub(crate) id: RequestId,
    pub(crate) message: Vec<u8>,
    pub(crate) response_topic: Option<String>,
}

/// A subscribed connection. When dropped, it sends a DISCONNECT, unless it was
/// [broken off](Self::break_off).
pub(crate) struct Connection {
    client: AsyncClient,
    request_topic: String,
    waiting: Arc<Mutex<Waiting>>,
    publishes: AtomicUsize,
    events: AbortHandle,
}

/// The requests that wait for a reply.
#[derive(Default)]
struct Waiting {
    replies: Vec<(RequestId, oneshot::Sender<ReplyBody>)>,
    /// Why there will be no more replies.
    lost: Option<String>,
}

impl Connection {
    /// Connects under a fresh client id and returns when the subscription to the reply topic is
    /// granted.
    pub(crate) async fn open(broker: &Broker, tally: &Tally) -> Result<Self, Lost> {
        let began = Instant::now();
        let id = ClientId::bootstrap(random());
        let reply_topic = Topic::Reply(broker.scope.clone(), id.clone()).to_string();
        let request_topic = Topic::Request(broker.scope.clone(), id.clone()).to_string();
        let settings = Client {
            id: id.to_string(),
            window: PUBLISHES as u16,
            receive_maximum: PUBLISHES as u16,
            manual_acks: false,
        };
        let (client, mut events) = assay_mqtt::connect(&broker.url, &broker.tls, settings);
        client.try_subscribe(reply_topic.clone(), QoS::AtLeastOnce).map_err(lost)?;
        match timeout(CONNECT_LIMIT, subscribed(&mut events)).await {
            Ok(granted) => granted?,
            Err(_) => return Err(Lost("the broker did not answer in time".into())),
        }
        tally.connected(began.elapsed());

        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let events = tokio::spawn(listen(events, reply_topic, Arc::clone(&waiting))).abort_handle();
        Ok(Self { client, request_topic, waiting, publishes: AtomicUsize::new(0), events })
    }

    /// Takes one of the publishes that the broker allows, unless all are taken or the connection is
    /// lost.
    pub(crate) fn take_publish(&self) -> bool {
        lock(&self.waiting).lost.is_none()
            && self.publishes.fetch_add(1, Ordering::Relaxed) < PUBLISHES
    }

    /// Publishes that nobody has taken.
    pub(crate) fn publishes_left(&self) -> usize {
        PUBLISHES.saturating_sub(self.publishes.load(Ordering::Relaxed))
    }

    /// Publishes, and waits for the reply. The caller must have [taken](Self::take_publish) a
    /// publish before.
    pub(crate) async fn ask(&self, question: Question) -> Result<ReplyBody, Lost> {
        let (sender, reply) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if let Some(reason) = &waiting.lost {
                return Err(Lost(reason.clone()));
            }
            waiting.replies.push((question.id, sender));
        }
        let properties = PublishProperties {
            message_expiry_interval: Some(REPLY_LIMIT.as_secs() as u32),
            response_topic: question.response_topic,
            ..PublishProperties::default()
        };
        let topic = self.request_topic.clone();
        let sent = self
            .client
            .publish_with_properties(topic, QoS::AtLeastOnce, false, question.message, properties)
            .await;
        sent.map_err(lost)?;
        match timeout(REPLY_LIMIT, reply).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(Lost(lock(&self.waiting).lost.clone().unwrap_or_default())),
            Err(_) => {
                lock(&self.waiting).replies.retain(|(id, _)| *id != question.id);
                Err(Lost("the CA did not answer in time".into()))
            }
        }
    }

    /// Closes the socket without a DISCONNECT, as a device does that loses power.
    pub(crate) fn break_off(self) {
        self.events.abort();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The task that listens ends when the DISCONNECT is sent. If there is no room to queue it,
        // the task is aborted.
        if self.client.try_disconnect().is_err() {
            self.events.abort();
        }
    }
}

async fn subscribed(events: &mut EventLoop) -> Result<(), Lost> {
    loop {
        if let Event::Incoming(Packet::SubAck(ack)) = events.poll().await.map_err(lost)? {
            return match ack.return_codes.first() {
                Some(SubscribeReasonCode::Success(_)) => Ok(()),
                code => Err(Lost(format!("the broker refuses the subscription: {code:?}"))),
            };
        }
    }
}

/// Passes each reply to the request that waits for it, until the connection ends.
async fn listen(mut events: EventLoop, reply_topic: String, waiting: Arc<Mutex<Waiting>>) {
    let reason = loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish)))
                if publish.topic == reply_topic.as_bytes() =>
            {
                // A reply that cannot be read leaves its request unanswered, and the run reports
                // that.
                if let Ok(Reply { id, body }) = Reply::decode(&publish.payload) {
                    let mut waiting = lock(&waiting);
                    if let Some(place) = waiting.replies.iter().position(|(asked, _)| *asked == id)
                    {
                        let (_, sender) = waiting.replies.swap_remove(place);
                        _ = sender.send(body);
                    }
                }
            }
            Ok(Event::Incoming(Packet::PubAck(ack)))
                if !matches!(
                    ack.reason,
                    PubAckReason::Success | PubAckReason::NoMatchingSubscribers
                ) =>
            {
                break format!("the broker refuses a publish: {:?}", ack.reason);
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => break "closed".into(),
            Ok(_) => {}
            Err(error) => break lost(error).0,
        }
    };
    let mut waiting = lock(&waiting);
    waiting.lost = Some(reason);
    waiting.replies.clear();
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The whole chain of causes: rumqttc's own text often says no more than "TLS".
fn lost(error: impl Into<anyhow::Error>) -> Lost {
    Lost(format!("{:#}", anyhow!(error)))
}

/// The publishes that `assay serve` takes on one bootstrap connection (docs/protocol.md, "Bootstrap
/// connection").
pub(crate) const PUBLISHES: usize = 32;
/// As in assay-device: longer than assay-mqtt gives TCP, TLS and CONNECT together.
const CONNECT_LIMIT: Duration = Duration::from_secs(25);
/// As in assay-device. A request that is not answered by then is lost.
const REPLY_LIMIT: Duration = Duration::from_secs(20);
