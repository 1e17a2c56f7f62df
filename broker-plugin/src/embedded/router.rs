//! Who is connected, who subscribes to what, and what is retained.
//!
//! Nothing here waits. The router puts a message into the lanes of its subscribers. If a lane has
//! no room, the connection of its client ends.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytestring::ByteString;
use rmqtt_codec::v5::{RetainHandling, SubscriptionOptions};

use super::filters::{Filters, matches};
use super::lane::{Delivery, Lane, Message};
use super::packet::{QoS, Reason};

/// Topic filters that one client may hold at once.
pub(super) const SUBSCRIPTIONS: usize = 64;

/// Retained messages in one device's tree.
const RETAINED_PER_TREE: usize = 4;

/// Retained messages of the CA: its certificates, what is new, and a revocation list for each of
/// its issuing CAs, of which there are a few. Only workers retain them, and only their mistakes
/// come near the limit.
const RETAINED_OF_THE_CA: usize = 256;

/// Retained messages in all, including those of devices that are long gone.
const RETAINED: usize = 65_536;

/// The subscriptions and retained messages of all connections.
#[derive(Debug, Default)]
pub(super) struct Router {
    state: Mutex<State>,
}

/// A connected client's place in the router.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub(super) client: ByteString,
    pub(super) lane: Arc<Lane>,
    /// A different one for each connection.
    number: u64,
}

#[derive(Debug, Default)]
struct State {
    seated: HashMap<ByteString, Seated>,
    filters: Filters<Subscription>,
    groups: Vec<Group>,
    retained: BTreeMap<ByteString, Arc<Message>>,
    last: u64,
}

#[derive(Debug)]
struct Seated {
    seat: Seat,
    filters: Vec<ByteString>,
    will: Option<Box<Message>>,
}

#[derive(Debug)]
struct Subscription {
    lane: Arc<Lane>,
    qos: QoS,
    /// MQTT 5 §3.8.3.1
    retain_as_published: bool,
    no_local: bool,
}

/// The members of a shared subscription (§4.8.2). They take turns.
#[derive(Debug)]
struct Group {
    filter: ByteString,
    members: Vec<(u64, Subscription)>,
    next: usize,
}

impl Router {
    /// Seats a client. An older connection under the same client id is told to leave. From now on
    /// it receives nothing, and nobody receives anything from it except its Will. Returns its lane,
    /// so that the caller can wait for its end.
    pub(super) fn enter(&self, client: ByteString, lane: Arc<Lane>) -> (Seat, Option<Arc<Lane>>) {
        let mut state = self.state();
        let previous = state.seated.remove(&client);
        let lane_of_previous = previous.as_ref().map(|previous| previous.seat.lane.clone());
        if let Some(previous) = previous {
            previous.seat.lane.end(Reason::SessionTakenOver, "the client connected again");
            state.remove(previous, true);
        }
        state.last += 1;
        let seat = Seat { client: client.clone(), lane, number: state.last };
        state.seated.insert(client, Seated { seat: seat.clone(), filters: Vec::new(), will: None });
        (seat, lane_of_previous)
    }

    /// Keeps a client's Will, to publish it when the client is gone.
    pub(super) fn keep_will(&self, seat: &Seat, will: Message) {
        let mut state = self.state();
        if state.is_seated(seat)
            && let Some(seated) = state.seated.get_mut(&seat.client)
        {
            seated.will = Some(will.into());
        }
    }

    /// Frees a seat, and publishes the client's Will if `publishes_will`. Does nothing if a newer
    /// connection has taken the seat over.
    pub(super) fn leave(&self, seat: &Seat, publishes_will: bool) {
        let mut state = self.state();
        if state.is_seated(seat)
            && let Some(seated) = state.seated.remove(&seat.client)
        {
            state.remove(seated, publishes_will);
        }
    }

    /// Subscribes. When this returns, the retained messages are in the lane, before any newer one.
    pub(super) fn subscribe(
        &self,
        seat: &Seat,
        filter: &ByteString,
        options: SubscriptionOptions,
    ) -> Reason {
        let mut state = self.state();
        if !state.is_seated(seat) {
            return Reason::NotAuthorized;
        }
        let Some(seated) = state.seated.get_mut(&seat.client) else { return Reason::NotAuthorized };
        let is_new = !seated.filters.contains(filter);
        if is_new {
            if seated.filters.len() >= SUBSCRIPTIONS {
                return Reason::QuotaExceeded;
            }
            // A copy: the client's packet is longer.
            seated.filters.push(ByteString::from(&**filter));
        }
        let subscription = Subscription {
            lane: seat.lane.clone(),
            qos: options.qos.less_value(QoS::AtLeastOnce),
            retain_as_published: options.retain_as_published,
            no_local: options.no_local,
        };
        let granted =
            if subscription.qos == QoS::AtMostOnce { Reason::Success } else { Reason::GrantedQos1 };
        if filter.starts_with(SHARED) {
            state.join(filter, seat.number, subscription);
            return granted;
        }
        let wants_retained = match options.retain_handling {
            RetainHandling::AtSubscribe => true,
            RetainHandling::AtSubscribeNew => is_new,
            RetainHandling::NoAtSubscribe => false,
        };
        if wants_retained {
            state.deliver_retained(filter, &subscription);
        }
        // In place of the client's old one (§3.8.4-3).
        state.filters.insert(filter, seat.number, subscription);
        granted
    }

    pub(super) fn unsubscribe(&self, seat: &Seat, filter: &ByteString) -> Reason {
        let mut state = self.state();
        let Some(seated) = state.seated.get_mut(&seat.client) else {
            return Reason::NoSubscriptionExisted;
        };
        if seated.seat.number != seat.number || !seated.filters.contains(filter) {
            return Reason::NoSubscriptionExisted;
        }
        seated.filters.retain(|other| other != filter);
        state.forget(filter, seat.number);
        Reason::Success
    }

    /// Gives a message to every subscriber, and to one member of each group. If all members of a
    /// group are busy, it is refused. `None` if the client's seat was taken over: it can send
    /// nothing.
    pub(super) fn publish(&self, seat: &Seat, message: Message) -> Option<Reason> {
        let mut state = self.state();
        state.is_seated(seat).then(|| state.publish(seat.number, message))
    }

    /// No code below panics between changes that belong together, so the tables agree even after a
    /// panic elsewhere.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_seated(&self, seat: &Seat) -> bool {
        self.seated.get(&seat.client).is_some_and(|seated| seated.seat.number == seat.number)
    }

    /// Removes what is left of a client that has lost its seat.
    fn remove(&mut self, seated: Seated, publishes_will: bool) {
        for filter in &seated.filters {
            self.forget(filter, seated.seat.number);
        }
        if let Some(will) = seated.will.filter(|_| publishes_will) {
            self.publish(seated.seat.number, *will);
        }
    }

    fn forget(&mut self, filter: &ByteString, seat: u64) {
        if !filter.starts_with(SHARED) {
            self.filters.remove(filter, seat);
            return;
        }
        for group in self.groups.iter_mut().filter(|group| group.filter == *filter) {
            group.members.retain(|(member, _)| *member != seat);
        }
        self.groups.retain(|group| !group.members.is_empty());
    }

    fn join(&mut self, filter: &ByteString, seat: u64, member: Subscription) {
        self.forget(filter, seat);
        match self.groups.iter_mut().find(|group| group.filter == *filter) {
            Some(group) => group.members.push((seat, member)),
            None => {
                let filter = ByteString::from(&**filter);
                self.groups.push(Group { filter, members: vec![(seat, member)], next: 0 });
            }
        }
    }

    fn publish(&mut self, from: u64, message: Message) -> Reason {
        let message = Arc::new(message);
        if message.retain && !self.retain(&message) {
            return Reason::QuotaExceeded;
        }
        let mut listeners = Vec::new();
        self.filters.find(&message.topic, &mut |seat, subscription: &Subscription| {
            if !(subscription.no_local && seat == from) {
                listeners.push((seat, subscription));
            }
        });
        // A client with overlapping subscriptions gets it once, with the highest QoS (§3.3.4).
        listeners.sort_unstable_by_key(|(seat, subscription)| (*seat, Reverse(subscription.qos)));
        listeners.dedup_by_key(|(seat, _)| *seat);
        let mut reason =
            if listeners.is_empty() { Reason::NoMatchingSubscribers } else { Reason::Success };
        for (_, listener) in listeners {
            if let Err(full) = listener.lane.put(listener.delivery(&message)) {
                listener.lane.end(full.reason(), "it does not read what is sent to it");
            }
        }
        for group in &mut self.groups {
            if group.is_about(&message.topic) {
                let given = group.give(&message);
                reason = if given { Reason::Success } else { Reason::QuotaExceeded };
            }
        }
        reason
    }

    /// Retains a message; an empty one removes what is retained (§3.3.1-6, -7). Returns `false` if
    /// there is no room.
    fn retain(&mut self, message: &Arc<Message>) -> bool {
        if message.payload.is_empty() {
            self.retained.remove(&message.topic);
            return true;
        }
        let is_the_cas = message.topic.starts_with(OF_THE_CA);
        let tree = if is_the_cas { OF_THE_CA } else { tree_of(&message.topic) };
        let now = Instant::now();
        let expired = self
            .retained_below(tree)
            .filter(|other| !is_alive(other, now))
            .map(|other| other.topic.clone());
        for topic in expired.collect::<Vec<_>>() {
            self.retained.remove(&topic);
        }
        let others = self.retained_below(tree).filter(|other| other.topic != message.topic).count();
        let is_new = !self.retained.contains_key(&message.topic);
        let has_room = if is_the_cas {
            // Even if devices left many messages behind.
            others < RETAINED_OF_THE_CA
        } else {
            others < RETAINED_PER_TREE && !(is_new && self.retained.len() >= RETAINED)
        };
        if !has_room {
            return false;
        }
        self.retained.insert(message.topic.clone(), message.clone());
        true
    }

    /// The retained messages whose topics begin with `prefix`.
    fn retained_below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<Message>> {
        let from = self.retained.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
        from.take_while(move |(topic, _)| topic.starts_with(prefix)).map(|(_, message)| message)
    }

    fn deliver_retained(&self, filter: &str, subscription: &Subscription) {
        let literal = filter.find(['+', '#']).map(|wildcard| &filter[..wildcard]);
        // Without a wildcard there is one topic at most. `a/#` also matches `a`.
        let exact = if literal.is_none() { Some(filter) } else { filter.strip_suffix("/#") };
        let exact = exact
            .filter(|exact| !exact.contains(['+', '#']))
            .and_then(|exact| self.retained.get(exact));
        let below = literal.into_iter().flat_map(|literal| self.retained_below(literal));
        let below = below.filter(|message| matches(filter, &message.topic));
        for message in exact.into_iter().chain(below) {
            let delivery = Delivery { retain: true, ..subscription.delivery(message) };
            if let Err(full) = subscription.lane.put(delivery) {
                subscription
                    .lane
                    .end(full.reason(), "more messages are retained than there is room for");
                return;
            }
        }
    }
}

impl Subscription {
    fn delivery(&self, message: &Arc<Message>) -> Delivery {
        Delivery {
            message: message.clone(),
            qos: message.qos.less_value(self.qos),
            retain: message.retain && self.retain_as_published,
        }
    }
}

impl Group {
    fn is_about(&self, topic: &str) -> bool {
        let filter = self.filter.strip_prefix(SHARED).and_then(|shared| shared.split_once('/'));
        filter.is_some_and(|(_, filter)| matches(filter, topic))
    }

    /// Gives a message to the member whose turn it is, or to the next one that has room. Returns
    /// whether one had room.
    fn give(&mut self, message: &Arc<Message>) -> bool {
        for _ in 0..self.members.len() {
            self.next = (self.next + 1) % self.members.len();
            let (_, member) = &self.members[self.next];
            if member.lane.put(member.delivery(message)).is_ok() {
                return true;
            }
        }
        false
    }
}

/// The first four levels of a topic and the slash after them: for a device, its own tree. All of a
/// shorter topic.
fn tree_of(topic: &str) -> &str {
    topic.match_indices('/').nth(3).map_or(topic, |(at, _)| &topic[..=at])
}

/// How the topics begin on which workers tell everybody of the CA.
const OF_THE_CA: &str = "ca/";

/// How a shared subscription's filter begins (§4.8.2).
const SHARED: &str = "$share/";

/// Whether a message has not expired.
pub(super) fn is_alive(message: &Message, now: Instant) -> bool {
    message.expires.is_none_or(|expires| now < expires)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::embedded::lane::Room;

    /// A client that retains on any topic.
    fn keeper() -> impl Fn(String, &'static [u8]) -> Reason {
        let router = Router::default();
        let lane = Lane::new(Room { messages: 8, bytes: 10_000, share: 0 }, Arc::default());
        let (seat, _) = router.enter("worker@1".into(), lane);
        move |topic, payload| {
            let (payload, topic, expires) = (Bytes::from_static(payload), topic.into(), None);
            let message = Message {
                topic,
                payload,
                qos: QoS::AtLeastOnce,
                retain: true,
                expires,
                properties: None,
            };
            router.publish(&seat, message).unwrap()
        }
    }

    #[test]
    fn workers_retain_a_limited_number_of_messages_and_replace_and_remove_them_at_the_limit() {
        let keep = keeper();
        let list = |n: usize| format!("ca/v1/default/crl/{n:04x}");
        for n in 0..RETAINED_OF_THE_CA {
            assert_eq!(keep(list(n), b"x"), Reason::NoMatchingSubscribers);
        }
        assert_eq!(keep(list(RETAINED_OF_THE_CA), b"x"), Reason::QuotaExceeded);
        assert_eq!(keep("ca/v1/other/chain".into(), b"x"), Reason::QuotaExceeded);
        assert_eq!(keep(list(0), b"y"), Reason::NoMatchingSubscribers);
        assert_eq!(keep(list(1), b""), Reason::NoMatchingSubscribers);
        assert_eq!(keep(list(RETAINED_OF_THE_CA), b"x"), Reason::NoMatchingSubscribers);
    }

    #[test]
    fn what_devices_left_behind_takes_no_room_from_what_the_ca_says_to_everybody() {
        let keep = keeper();
        let keep = |topic: String| keep(topic, b"x");
        for device in 0..RETAINED / RETAINED_PER_TREE {
            for n in 0..RETAINED_PER_TREE {
                assert_eq!(
                    keep(format!("device/v1/default/{device}/{n}")),
                    Reason::NoMatchingSubscribers
                );
            }
        }
        assert_eq!(keep("device/v1/default/late/0".into()), Reason::QuotaExceeded);
        assert_eq!(keep("ca/v1/default/crl".into()), Reason::NoMatchingSubscribers);
        for n in 0..=RETAINED_PER_TREE {
            assert_eq!(keep(format!("ca/v1/default/crl/0{n}")), Reason::NoMatchingSubscribers);
        }
        assert_eq!(
            keep("device/v1/default/0/0".into()),
            Reason::NoMatchingSubscribers,
            "it replaces its own"
        );
    }
}
