//! One client of the broker that is checked: what it was granted, and what it heard.

use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    LastWill, Packet, PublishProperties, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop};
use assay_mqtt::{BrokerUrl, Client, Login};
use assay_server::random_bytes;
use assay_wire::{ClientId, Head, Reply, Request, RequestBody, RequestId, printable};
use bytes::Bytes;
use rustls::ClientConfig;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Who a client says that it is, and at which listener.
#[derive(Clone)]
pub(super) struct Persona {
    pub(super) broker: BrokerUrl,
    /// Has the client's certificate, if there is one.
    pub(super) tls: Arc<ClientConfig>,
    pub(super) id: String,
    pub(super) user_name: Option<String>,
}

/// Why a client is not connected.
pub(super) enum NotIn {
    /// The broker refused the client.
    Refused(String),
    /// The broker was not reached, so nobody knows what it would say.
    Unreachable(String),
}

impl NotIn {
    pub(super) fn reason(self) -> String {
        match self {
            Self::Refused(reason) | Self::Unreachable(reason) => reason,
        }
    }
}

impl Persona {
    /// A client without a certificate, under an id that nobody can guess.
    pub(super) fn stranger(broker: &BrokerUrl, tls: &Arc<ClientConfig>) -> Self {
        let id = ClientId::bootstrap(random_bytes()).to_string();
        Self { broker: broker.clone(), tls: tls.clone(), id, user_name: None }
    }

    /// The same client for another connection: a stranger comes back under another id.
    pub(super) fn again(&self) -> Self {
        let is_stranger = self.id.parse::<ClientId>().is_ok_and(|id| id.is_bootstrap());
        let id = if is_stranger {
            ClientId::bootstrap(random_bytes()).to_string()
        } else {
            self.id.clone()
        };
        Self { id, ..self.clone() }
    }

    pub(super) async fn enter(&self) -> Result<Party, NotIn> {
        self.enter_with(None).await
    }

    /// Connects with a Will. The broker may refuse the Will, and the client because of it.
    pub(super) async fn enter_with(&self, will: Option<LastWill>) -> Result<Party, NotIn> {
        let options =
            Client { id: self.id.clone(), window: 64, receive_maximum: 256, manual_acks: false };
        let (client, mut events) = match &self.user_name {
            None => assay_mqtt::connect(&self.broker, &self.tls, options),
            Some(name) => {
                // A password that no broker knows.
                let password = hex::encode(random_bytes::<16>());
                assay_mqtt::connect_with_login(
                    &self.broker,
                    &self.tls,
                    options,
                    Login { user_name: name.clone(), password },
                )
            }
        };
        if let Some(will) = will {
            events.options.set_last_will(will);
        }
        let connected = async {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => return Ok(()),
                    Ok(_) => {}
                    Err(error) => return Err(not_in(&error)),
                }
            }
        };
        match timeout(CONNECT, connected).await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(NotIn::Unreachable(format!(
                    "no answer within {} s",
                    CONNECT.as_secs()
                )));
            }
        }
        let (state, seen) = watch::channel(State::default());
        Ok(Party { client, seen, pump: tokio::spawn(pump(events, state)) })
    }
}

fn not_in(error: &ConnectionError) -> NotIn {
    use std::io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, NotFound, TimedOut,
    };
    let reason = printable(&error.to_string(), 200);
    match error {
        ConnectionError::Timeout(_) => NotIn::Unreachable(reason),
        ConnectionError::Io(error)
            if matches!(
                error.kind(),
                ConnectionRefused | HostUnreachable | NetworkUnreachable | NotFound | TimedOut
            ) =>
        {
            NotIn::Unreachable(reason)
        }
        _ => NotIn::Refused(reason),
    }
}

/// A connected client. If it is dropped, it ends without a DISCONNECT, so that its Will is
/// published.
pub(super) struct Party {
    client: AsyncClient,
    seen: watch::Receiver<State>,
    pump: JoinHandle<()>,
}

/// What a client was told so far.
#[derive(Default)]
struct State {
    /// For each subscription, in order.
    granted: Vec<bool>,
    /// How many messages the broker acknowledged, even if it dropped them.
    acknowledged: usize,
    heard: Vec<Heard>,
    has_ended: bool,
}

/// A message of ours, or a revocation list.
struct Heard {
    payload: Bytes,
    /// Whether it had waited at the broker.
    retained: bool,
}

/// Whether a message is to be retained.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    No,
    /// For a minute only, in case nobody can remove it.
    Minute,
    Yes,
}

impl Party {
    /// Whether the broker grants a subscription; `None` if it says nothing, or ends the connection.
    pub(super) async fn subscribe(&self, filter: &str) -> Option<bool> {
        let before = self.seen.borrow().granted.len();
        self.client.try_subscribe(filter, QoS::AtLeastOnce).ok()?;
        self.until(ANSWER, |state| state.granted.len() > before || state.has_ended).await;
        self.seen.borrow().granted.get(before).copied()
    }

    /// Publishes, and waits for the broker's acknowledgement. Only a client that hears the message
    /// shows that the broker took it.
    pub(super) async fn publish(&self, topic: &str, payload: &[u8], stay: Stay) {
        let before = self.seen.borrow().acknowledged;
        let expiry = (stay == Stay::Minute).then_some(60);
        let properties =
            PublishProperties { message_expiry_interval: expiry, ..PublishProperties::default() };
        let (retain, payload) = (stay != Stay::No, payload.to_vec());
        let sent = self.client.try_publish_with_properties(
            topic,
            QoS::AtLeastOnce,
            retain,
            payload,
            properties,
        );
        if sent.is_ok() {
            self.until(ANSWER, |state| state.acknowledged > before || state.has_ended).await;
        }
    }

    /// Whether it has heard the message, or hears it within `patience`.
    pub(super) async fn hears(&self, payload: &[u8], patience: Duration) -> bool {
        self.until(patience, |state| state.heard.iter().any(|heard| heard.payload == payload)).await
    }

    /// Whether it has heard something that had waited, or does within `patience`.
    pub(super) async fn hears_what_waited(&self, patience: Duration) -> Option<Bytes> {
        let waited = |state: &State| {
            state.heard.iter().find(|heard| heard.retained).map(|heard| heard.payload.clone())
        };
        self.until(patience, |state| waited(state).is_some()).await;
        waited(&self.seen.borrow())
    }

    /// Whether it hears an answer to a [`ping`], even that a worker is busy.
    pub(super) async fn hears_answer_to(&self, ping: &[u8], patience: Duration) -> bool {
        let id = Head::read(ping).map_or(RequestId::NIL, |head| head.id());
        let answers =
            |heard: &Heard| Reply::decode(&heard.payload).is_ok_and(|reply| reply.id == id);
        self.until(patience, |state| state.heard.iter().any(answers)).await
    }

    /// Whether it hears the message as one that had waited.
    pub(super) async fn hears_retained(&self, payload: &[u8], patience: Duration) -> bool {
        self.until(patience, |state| {
            state.heard.iter().any(|heard| heard.retained && heard.payload == payload)
        })
        .await
    }

    /// How often it has heard the message.
    pub(super) fn times_heard(&self, payload: &[u8]) -> usize {
        self.seen.borrow().heard.iter().filter(|heard| heard.payload == payload).count()
    }

    /// Whether the broker ends the connection within `patience`.
    pub(super) async fn is_cut(&self, patience: Duration) -> bool {
        self.until(patience, |state| state.has_ended).await
    }

    async fn until(&self, patience: Duration, is_so: impl FnMut(&State) -> bool) -> bool {
        let mut seen = self.seen.clone();
        matches!(timeout(patience, seen.wait_for(is_so)).await, Ok(Ok(_)))
    }
}

impl Drop for Party {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

async fn pump(mut events: EventLoop, state: watch::Sender<State>) {
    while let Ok(event) = events.poll().await {
        let Event::Incoming(packet) = event else { continue };
        state.send_modify(|state| match packet {
            Packet::SubAck(granted) => {
                let is_granted =
                    |code: &SubscribeReasonCode| matches!(code, SubscribeReasonCode::Success(_));
                state.granted.push(granted.return_codes.first().is_some_and(is_granted));
            }
            Packet::PubAck(_) => state.acknowledged += 1,
            // Requests of real devices are not our business, and may be many.
            Packet::Publish(message)
                if state.heard.len() < MAX_HEARD
                    && (is_ours(&message.payload) || message.topic.ends_with(b"/crl")) =>
            {
                state.heard.push(Heard { payload: message.payload, retained: message.retain });
            }
            _ => {}
        });
    }
    state.send_modify(|state| state.has_ended = true);
}

/// A request that costs nobody anything: a worker answers it and records nothing. No two are alike.
pub(super) fn ping() -> Vec<u8> {
    let [mut id, random] = [[0; 16], random_bytes::<16>()];
    id[..8].copy_from_slice(&OURS);
    id[8..].copy_from_slice(&random[8..]);
    Request { id: RequestId::from(id), body: RequestBody::Ping }.encode()
}

/// A message for clients that are not workers.
pub(super) fn words() -> Vec<u8> {
    let number = random_bytes::<8>();
    [&OURS[..], format!(" broker check {}", hex::encode(number)).as_bytes()].concat()
}

fn is_ours(payload: &[u8]) -> bool {
    payload.len() < 256 && payload.windows(OURS.len()).any(|part| part == OURS)
}

/// All our messages contain this.
const OURS: [u8; 8] = *b"assay-cl";
/// The limit for being let in, and that for each answer after it.
const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(2);
/// Far more than the check publishes.
const MAX_HEARD: usize = 4096;
