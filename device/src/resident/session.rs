//! The one connection to the operational listener, and the device's presence on it.

use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::BrokerUrl;
use assay_mqtt::rumqttc::Outgoing;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{
    Filter, LastWill, Packet, PubAckReason, Publish, RetainForwardRule, SubAck, SubscribeReasonCode,
};
use assay_mqtt::rumqttc::v5::{AsyncClient, ConnectionError, Event, EventLoop, StateError};
use assay_wire::{COMMAND, ClientId, ConfigurationNews, DeviceId, Topic};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::heard::Heard;
use super::plan::News;
use super::programs::Occasion;
use crate::credentials::SignIn;
use crate::dial::dial;
use crate::link::Heard as Line;
use crate::operational_line::{Exchange, OperationalLine};
use crate::trouble::{Purpose, Trouble};

/// A connection, or one that is on its way. When it is dropped, it breaks off, and the broker
/// publishes the device's Will.
pub(super) struct Session {
    pub(super) number: u64,
    client: AsyncClient,
    request_topic: String,
    exchange: Exchange,
    leave: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Session {
    /// Begins to connect. Returns at once.
    pub(super) fn open(
        number: u64,
        broker: &BrokerUrl,
        sign_in: SignIn,
        takes_commands: bool,
        reports: mpsc::Sender<Heard>,
    ) -> Self {
        let SignIn { scope, device_id, tls, password, .. } = sign_in;
        // Whoever signs in by a token has no certificate that a configuration could come with.
        let news = password.is_none().then(|| Topic::Configuration(scope.clone()).to_string());
        let (client, mut events) =
            dial(broker, &Arc::new(tls), &device_id.clone().into(), password);
        let own = |below: &str| Topic::Device(scope.clone(), device_id.clone(), below.into());
        let presence = own(PRESENCE).to_string();
        let request_topic = Topic::Request(scope.clone(), ClientId::from(&device_id)).to_string();
        let replies = Topic::Reply(scope.clone(), ClientId::from(&device_id)).to_string();
        let exchange = Exchange::default();
        let commands = takes_commands.then(|| own(COMMAND).to_string());
        let will = LastWill::new(presence.clone(), OFFLINE, QoS::AtLeastOnce, true, None);
        events.options.set_last_will(will).set_keep_alive(KEEP_ALIVE);
        let (leave, told_to_leave) = oneshot::channel();
        let broker = broker.clone();
        let holder = Holder {
            number,
            broker,
            client: client.clone(),
            presence,
            commands,
            news,
            replies,
            exchange: exchange.clone(),
            device_id,
            reports,
        };
        let task = tokio::spawn(async move {
            let mut is_up = false;
            tokio::select! {
                () = holder.hold(&mut events, &mut is_up) => {}
                _ = told_to_leave => {}
            }
            if is_up {
                holder.leave(events).await;
            }
        });
        Self { number, client, request_topic, exchange, leave: Some(leave), task }
    }

    /// A way to the CA over this connection, which must be there.
    pub(super) fn line(&self) -> OperationalLine {
        OperationalLine::open(self.client.clone(), self.request_topic.clone(), &self.exchange)
    }

    /// Says that the device is offline, and disconnects. Takes a few seconds at most.
    pub(super) async fn close(mut self) {
        if let Some(leave) = self.leave.take() {
            _ = leave.send(());
        }
        _ = timeout(LEAVE_LIMIT, &mut self.task).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
        self.exchange.end();
    }
}

/// The task's side.
struct Holder {
    number: u64,
    broker: BrokerUrl,
    client: AsyncClient,
    presence: String,
    /// The topic of commands, if the device takes any.
    commands: Option<String>,
    /// The topic that says which configurations are new, if the device can have one.
    news: Option<String>,
    /// The topic of the CA's replies.
    replies: String,
    exchange: Exchange,
    device_id: DeviceId,
    reports: mpsc::Sender<Heard>,
}

impl Holder {
    /// Holds the connection until it is over. `is_up` says whether it is there.
    async fn hold(&self, events: &mut EventLoop, is_up: &mut bool) {
        loop {
            let heard = match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    *is_up = true;
                    self.publish(ONLINE);
                    self.subscribe();
                    Heard::Up(self.number)
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => match self.not_granted(ack) {
                    Some(heard) => heard,
                    None => continue,
                },
                Ok(Event::Incoming(Packet::Publish(publish))) => match self.heard(publish) {
                    Some(heard) => heard,
                    None => continue,
                },
                Ok(Event::Incoming(Packet::PubAck(ack))) => match ack.reason {
                    PubAckReason::Success => continue,
                    // A request: the presence was published when there was none.
                    reason if self.exchange.is_open() => {
                        let text = format!("{} does not pass it on: {reason:?}", self.broker);
                        _ = self.exchange.tell(Line::Lost(Trouble::Passing(text)));
                        continue;
                    }
                    PubAckReason::NoMatchingSubscribers => continue,
                    reason => Heard::NoPresence(self.number, reason),
                },
                Ok(_) => continue,
                Err(error) => {
                    self.exchange.end();
                    let trouble = self.trouble(&error);
                    let was_up = std::mem::take(is_up);
                    let trouble = if was_up { trouble.in_conversation() } else { trouble };
                    _ = self.reports.send(Heard::Over(self.number, trouble)).await;
                    return;
                }
            };
            _ = self.reports.send(heard).await;
        }
    }

    fn trouble(&self, error: &ConnectionError) -> Trouble {
        let broker = &self.broker;
        let reason = match error {
            // MQTT 5.0, 3.14.2.1.
            ConnectionError::MqttState(StateError::ServerDisconnect { reason_code, .. }) => {
                format!("{broker} ended the connection: {reason_code:?}")
            }
            ConnectionError::MqttState(StateError::AwaitPingResp) => {
                format!("{broker} does not answer any more")
            }
            error => return Trouble::of(error, broker, Purpose::Operation),
        };
        Trouble::Passing(reason)
    }

    /// There is always room for one request.
    fn subscribe(&self) {
        let filters = self.filters();
        if !filters.is_empty() {
            _ = self.client.try_subscribe_many(filters);
        }
    }

    fn filters(&self) -> Vec<Filter> {
        // With all levels below. What a broker retains is not a command of now: it would be run at
        // every connection.
        let commands = self.commands.iter().map(|topic| Filter {
            retain_forward_rule: RetainForwardRule::Never,
            ..Filter::new(format!("{topic}/#"), QoS::AtLeastOnce)
        });
        let news = self.news.iter().map(|topic| Filter::new(topic.clone(), QoS::AtLeastOnce));
        let replies = news.clone().map(|_| Filter::new(self.replies.clone(), QoS::AtLeastOnce));
        commands.chain(news).chain(replies).collect()
    }

    /// The first filter that the broker does not grant. Its codes are in the order of the filters
    /// (MQTT 5.0, 3.9.3).
    fn not_granted(&self, ack: SubAck) -> Option<Heard> {
        let mut answers = self.filters().into_iter().zip(ack.return_codes);
        let (filter, code) =
            answers.find(|(_, code)| !matches!(code, SubscribeReasonCode::Success(_)))?;
        Some(Heard::NotSubscribed(self.number, filter.path, code))
    }

    fn heard(&self, publish: Publish) -> Option<Heard> {
        if self.news.as_ref().is_some_and(|topic| publish.topic == topic.as_bytes()) {
            let news = ConfigurationNews::decode(&publish.payload).ok()?;
            let news = News {
                concerns: news.newest_for(&self.device_id),
                newest: news.newest(),
                spread: Duration::from_secs(news.spread.into()),
            };
            return Some(Heard::News(self.number, news));
        }
        if publish.topic == self.replies.as_bytes() {
            // A reply that comes too late answers nobody.
            _ = self.exchange.tell(Line::Reply(publish.payload.into()));
            return None;
        }
        self.command(publish)
    }

    fn command(&self, publish: Publish) -> Option<Heard> {
        let topic = str::from_utf8(&publish.topic).ok()?;
        let below = topic.strip_prefix(self.commands.as_ref()?)?;
        let name = if below.is_empty() { below } else { below.strip_prefix('/')? };
        let occasion = Occasion::Command { name: name.into(), payload: publish.payload.into() };
        (!publish.retain).then(|| Heard::Command(self.device_id.clone(), occasion))
    }

    /// Queues a message for the presence topic. There is always room for one.
    fn publish(&self, presence: &'static str) {
        _ = self.client.try_publish(self.presence.clone(), QoS::AtLeastOnce, true, presence);
    }

    /// Says that the device is offline, and disconnects. Waits for the broker's PUBACK in between,
    /// because a broker may drop what comes just before DISCONNECT.
    async fn leave(&self, mut events: EventLoop) {
        self.publish(OFFLINE);
        let mut last = None;
        loop {
            match events.poll().await {
                Ok(Event::Outgoing(Outgoing::Publish(number))) => last = Some(number),
                Ok(Event::Incoming(Packet::PubAck(ack))) if last == Some(ack.pkid) => {
                    if self.client.try_disconnect().is_err() {
                        return;
                    }
                }
                Ok(Event::Outgoing(Outgoing::Disconnect)) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }
}

/// The topic below the device's own tree. The access rules let the device leave its Will there.
const PRESENCE: &str = "presence";
const ONLINE: &str = "online";
const OFFLINE: &str = "offline";
/// What the agent asks for. A broker that wants to hear of it more often says so in its CONNACK
/// (MQTT 5.0, 3.2.2.3.14); the built-in broker says 60 s. It is below the five minutes after which
/// many NATs forget a connection (RFC 5382 asks for two hours, and few keep that).
const KEEP_ALIVE: Duration = Duration::from_secs(240);
/// For a message, its PUBACK and DISCONNECT.
const LEAVE_LIMIT: Duration = Duration::from_secs(3);
