//! What is on its way to one client: bounded, so that a client that does not read costs nobody
//! anything.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use bytestring::ByteString;
use rmqtt_codec::v5::PublishProperties;
use tokio::sync::{Notify, SetOnce};

use super::packet::{End, QoS, Reason};

/// A message, once for all who get it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) topic: ByteString,
    pub(super) payload: Bytes,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    /// Without alias, subscription identifiers and expiry.
    pub(super) properties: Option<Box<PublishProperties>>,
    /// Not to be delivered from then on (MQTT 5 §3.3.2.3.3).
    pub(super) expires: Option<Instant>,
}

impl Message {
    /// What it takes in memory, roughly.
    fn size(&self) -> usize {
        let properties = self.properties.as_deref().map_or(0, properties_size);
        self.topic.len() + self.payload.len() + properties + OVERHEAD
    }
}

/// What user properties and the like take.
pub(super) fn properties_size(properties: &PublishProperties) -> usize {
    let user =
        properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD);
    let texts = [&properties.content_type, &properties.response_topic];
    let texts = texts.into_iter().flatten().map(|text| text.len());
    user.chain(texts).sum::<usize>() + properties.correlation_data.as_ref().map_or(0, Bytes::len)
}

/// A message and what is particular to one subscription to it.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) message: Arc<Message>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

/// What one client may have waiting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// Bytes that it may have whatever waits for others.
    pub(super) share: usize,
}

/// Bytes that wait for all clients of a listener together. What waits for many is there once, and
/// counts little for each.
#[derive(Debug, Default)]
pub(super) struct Backlog(AtomicUsize);

/// Why a message finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The client has more waiting than it may.
    Own,
    /// It has more than its share, and all together have too much.
    Shared,
}

impl Full {
    /// What the client's connection ends with. Only the first is its own doing.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Own => Reason::QuotaExceeded,
            Self::Shared => Reason::ServerBusy,
        }
    }
}

/// Messages on their way to one client. Whoever puts one in never waits.
#[derive(Debug)]
pub(super) struct Lane {
    room: Room,
    backlog: Arc<Backlog>,
    queue: Mutex<Queue>,
    changed: Notify,
    left: SetOnce<()>,
}

#[derive(Debug, Default)]
struct Queue {
    /// Each with what it counts in the backlog.
    waiting: VecDeque<(Delivery, usize)>,
    bytes: usize,
    end: Option<End>,
}

impl Lane {
    pub(super) fn new(room: Room, backlog: Arc<Backlog>) -> Arc<Self> {
        Arc::new(Self {
            room,
            backlog,
            queue: Mutex::default(),
            changed: Notify::new(),
            left: SetOnce::new(),
        })
    }

    /// Nothing is put in if the connection is to end.
    ///
    /// # Errors
    /// There is no room; nobody waits for any.
    pub(super) fn put(&self, delivery: Delivery) -> Result<(), Full> {
        let mut queue = self.queue();
        let size = delivery.message.size();
        let bytes = queue.bytes + size;
        if queue.end.is_some()
            || queue.waiting.len() >= self.room.messages
            || bytes > self.room.bytes
        {
            return Err(Full::Own);
        }
        // One message is always taken, however long.
        let is_beyond_share = bytes > self.room.share && !queue.waiting.is_empty();
        if is_beyond_share && self.backlog.0.load(Ordering::Relaxed) > BACKLOG {
            return Err(Full::Shared);
        }
        let counted = size / Arc::strong_count(&delivery.message).max(1);
        self.backlog.0.fetch_add(counted, Ordering::Relaxed);
        queue.bytes = bytes;
        queue.waiting.push_back((delivery, counted));
        // Whoever is awake looks again before it sleeps.
        if queue.waiting.len() == 1 {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// The next message, if `may_take` it.
    pub(super) fn take(&self, may_take: impl FnOnce(&Delivery) -> bool) -> Option<Delivery> {
        let mut queue = self.queue();
        let (delivery, counted) = queue.waiting.pop_front_if(|(delivery, _)| may_take(delivery))?;
        queue.bytes -= delivery.message.size();
        self.backlog.0.fetch_sub(counted, Ordering::Relaxed);
        if queue.waiting.is_empty() {
            queue.waiting.shrink_to(SPARE);
        }
        Some(delivery)
    }

    /// Has the connection end, and lets nothing more in.
    pub(super) fn end(&self, reason: Reason, text: &'static str) {
        self.queue().end.get_or_insert_with(|| End::new(reason, text));
        self.changed.notify_one();
    }

    /// Why the connection is to end, if it is.
    pub(super) fn ended(&self) -> Option<End> {
        self.queue().end.clone()
    }

    /// Returns when something may have been put in, or the connection is to end.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns when the connection has ended.
    pub(super) async fn left(&self) {
        self.left.wait().await;
    }

    /// The connection has ended.
    pub(super) fn leave(&self) {
        // Only its own connection says so, and another time does no harm.
        _ = self.left.set(());
    }

    /// Counts and queue agree after each statement above, so a panic elsewhere does not spoil them.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let counted = self.queue().waiting.iter().map(|(_, counted)| counted).sum();
        self.backlog.0.fetch_sub(counted, Ordering::Relaxed);
    }
}

/// When more bytes wait for all clients together, none may have more than its share.
const BACKLOG: usize = 64 * 1024 * 1024;

/// Of an allocation and its bookkeeping, in bytes.
const OVERHEAD: usize = 64;

/// Places that a lane keeps when it is empty.
const SPARE: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(payload: &'static [u8]) -> Delivery {
        let message = Message {
            topic: "topic".into(),
            payload: Bytes::from_static(payload),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: None,
            expires: None,
        };
        Delivery { message: message.into(), qos: QoS::AtLeastOnce, retain: false }
    }

    #[test]
    fn lane_holds_as_many_messages_and_bytes_as_it_has_room_for() {
        let lane = Lane::new(Room { messages: 2, bytes: 1000, share: 0 }, Arc::default());
        let put = |payload| lane.put(delivery(payload));
        assert_eq!((put(b"a"), put(b"b"), put(b"c")), (Ok(()), Ok(()), Err(Full::Own)));
        assert_eq!(lane.take(|_| true).unwrap().message.payload, &b"a"[..]);
        assert_eq!((put(&[0; 1000]), put(b"c")), (Err(Full::Own), Ok(())), "the first is too long");
        assert!(lane.take(|_| false).is_none());
        assert_eq!(lane.take(|_| true).unwrap().message.payload, &b"b"[..]);
        assert_eq!(lane.take(|_| true).unwrap().message.payload, &b"c"[..]);
        assert!(lane.take(|_| true).is_none());
        assert_eq!(lane.queue().bytes, 0);
    }

    #[test]
    fn lane_holds_its_share_alone_while_much_waits_for_others() {
        let backlog = Arc::new(Backlog::default());
        let lane = |bytes| Lane::new(Room { messages: 1000, bytes, share: 1000 }, backlog.clone());
        let (others, own) = (lane(usize::MAX), lane(10_000));
        static LONG: [u8; 10 * 1024 * 1024] = [0; 10 * 1024 * 1024];
        while others.put(delivery(&LONG)).is_ok() {}
        assert!(backlog.0.load(Ordering::Relaxed) > BACKLOG);
        assert_eq!(own.put(delivery(&[0; 2000])), Ok(()), "one message is always taken");
        assert_eq!(own.put(delivery(b"a")), Err(Full::Shared));
        drop(others);
        assert_eq!(own.put(delivery(b"a")), Ok(()));
        drop(own);
        assert_eq!(backlog.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_waits_for_many_counts_little() {
        static LONG: [u8; 64 * 1024] = [0; 64 * 1024];
        let (backlog, all) = (Arc::new(Backlog::default()), delivery(&LONG));
        let lanes: Vec<_> = (0..5000)
            .map(|_| Lane::new(Room { messages: 9, bytes: 1 << 20, share: 0 }, backlog.clone()))
            .collect();
        assert!(lanes.iter().all(|lane| lane.put(all.clone()).is_ok()));
        assert!(backlog.0.load(Ordering::Relaxed) < 1 << 20, "5,000 times 64 KiB would be 312 MiB");
        lanes.iter().for_each(|lane| _ = lane.take(|_| true));
        assert_eq!(backlog.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn lane_that_is_to_end_takes_nothing_and_keeps_its_first_reason() {
        let lane = Lane::new(Room { messages: 2, bytes: 1000, share: 0 }, Arc::default());
        lane.end(Reason::SessionTakenOver, "first");
        lane.end(Reason::QuotaExceeded, "second");
        assert_eq!(lane.put(delivery(b"a")), Err(Full::Own));
        assert_eq!(lane.ended().unwrap().reason, Reason::SessionTakenOver);
    }
}
