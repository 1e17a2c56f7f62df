//! What is on its way to one client. It is bounded, so that a client that does not read harms
//! nobody else.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use bytestring::ByteString;
use rmqtt_codec::v5::PublishProperties;
use tokio::sync::{Notify, SetOnce};

use super::packet::{End, QoS, Reason};

/// A message. It is in memory once for all clients that get it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) topic: ByteString,
    pub(super) payload: Bytes,
    pub(super) qos: QoS,
    pub(super) retain: bool,
    /// Without alias, subscription identifiers and expiry.
    pub(super) properties: Option<Box<PublishProperties>>,
    /// From then on, it must not be delivered (MQTT 5 §3.3.2.3.3).
    pub(super) expires: Option<Instant>,
}

impl Message {
    /// Roughly how much memory it takes, in bytes.
    fn size(&self) -> usize {
        let properties = self.properties.as_deref().map_or(0, properties_size);
        self.topic.len() + self.payload.len() + properties + OVERHEAD
    }
}

/// Roughly how much memory the texts and bytes of properties take, in bytes.
pub(super) fn properties_size(properties: &PublishProperties) -> usize {
    let user =
        properties.user_properties.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD);
    let texts = [&properties.content_type, &properties.response_topic];
    let texts = texts.into_iter().flatten().map(|text| text.len());
    user.chain(texts).sum::<usize>() + properties.correlation_data.as_ref().map_or(0, Bytes::len)
}

/// A message, as one subscription to it gets it.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) message: Arc<Message>,
    pub(super) qos: QoS,
    pub(super) retain: bool,
}

/// How much may wait for one client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) messages: usize,
    pub(super) bytes: usize,
    /// Bytes that may wait for this client, however much waits for others.
    pub(super) share: usize,
}

/// Bytes that wait for all clients of a listener together. A message that waits for many clients is
/// in memory once, so each counts only a part of it.
#[derive(Debug, Default)]
pub(super) struct Backlog(AtomicUsize);

/// Why a message finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// More waits for the client than is allowed.
    Own,
    /// More than its share waits for the client, and too much waits for all together.
    Shared,
}

impl Full {
    /// Why the client's connection ends. Only the first is the client's own fault.
    pub(super) fn reason(self) -> Reason {
        match self {
            Self::Own => Reason::QuotaExceeded,
            Self::Shared => Reason::ServerBusy,
        }
    }
}

/// Messages on their way to one client. Putting one in never waits.
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

    /// Puts a message in.
    ///
    /// # Errors
    /// There is no room, or the connection is about to end.
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
        // A task that is awake looks again before it sleeps.
        if queue.waiting.len() == 1 {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Takes the next message out, if `may_take` says so.
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

    /// Makes the connection end, and takes no more messages.
    pub(super) fn end(&self, reason: Reason, text: &'static str) {
        self.queue().end.get_or_insert_with(|| End::new(reason, text));
        self.changed.notify_one();
    }

    /// Why the connection must end, if it must.
    pub(super) fn ended(&self) -> Option<End> {
        self.queue().end.clone()
    }

    /// Returns when something may have been put in, or when the connection must end.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns when the connection has ended.
    pub(super) async fn left(&self) {
        self.left.wait().await;
    }

    /// Says that the connection has ended.
    pub(super) fn leave(&self) {
        // Only its own connection says so. To say it twice does no harm.
        _ = self.left.set(());
    }

    /// No code above panics between changes of the queue and of its counts, so they agree even
    /// after a panic elsewhere.
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

/// While more bytes than these wait for all clients together, each may have only its share.
const BACKLOG: usize = 64 * 1024 * 1024;

/// What an allocation and its bookkeeping take, in bytes.
const OVERHEAD: usize = 64;

/// Messages for which a lane keeps memory when it is empty.
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
