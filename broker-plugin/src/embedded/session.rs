//! What one connected client may do, and how it is answered: MQTT's state machine after the
//! CONNACK, without I/O.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_wire::Topic;
use assay_wire::filter::has_sound_wildcards;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use rmqtt_codec::types::Publish;
use rmqtt_codec::v5::{PublishProperties, SubscriptionOptions};

use super::lane::{Message, properties_size};
use super::limits::PUBLISHES;
use super::packet::{Codec, End, Packet, QoS, Reason};
use super::router::{Router, SUBSCRIPTIONS, Seat, is_alive};
use crate::access::Access;
use crate::meter::Meter;

/// The longest packet of a bootstrapping client, in bytes: a message of the protocol, and room for
/// its topic and some MQTT 5 properties.
pub(super) const REQUEST_PACKET: usize = assay_wire::MAX_MESSAGE + 1024;

/// The longest message of a device that the broker retains or keeps as its Will, in bytes of
/// payload and properties.
pub(super) const RETAINED_MESSAGE: usize = 1024;

/// Requests of each device, over all its connections.
pub(super) type Requests = Meter<String>;

/// A client that is connected.
pub(super) struct Session {
    codec: Codec,
    access: Access,
    seat: Seat,
    router: Arc<Router>,
    requests: Arc<Requests>,
    /// How many messages may be on their way to the client at QoS 1.
    window: usize,
    /// Those that are, by their packet identifiers.
    unacknowledged: VecDeque<NonZeroU16>,
    last_id: u16,
    published: u32,
    publishes_will: bool,
}

impl Session {
    pub(super) fn new(
        codec: Codec,
        access: Access,
        seat: Seat,
        window: u16,
        router: Arc<Router>,
        requests: Arc<Requests>,
    ) -> Self {
        Self {
            codec,
            access,
            seat,
            router,
            requests,
            window: window.into(),
            unacknowledged: VecDeque::new(),
            last_id: 0,
            published: 0,
            publishes_will: true,
        }
    }

    /// Takes the next packet out of `input`. Returns it with its length in bytes.
    pub(super) fn read(&mut self, input: &mut BytesMut) -> Result<Option<(Packet, usize)>, End> {
        self.codec.read(input)
    }

    /// Does what a packet asks for, and writes the answer to `out`.
    ///
    /// # Errors
    /// The connection must end: the client broke a rule, or it disconnected.
    pub(super) fn receive(
        &mut self,
        packet: Packet,
        out: &mut BytesMut,
        now: Instant,
    ) -> Result<(), End> {
        match packet {
            // §3.1.0-2
            Packet::Connect(_) => {
                return Err(End::new(Reason::ProtocolError, "it sent a second CONNECT"));
            }
            Packet::Publish(publish) => return self.publish(*publish, out, now),
            // Most come in order. An unexpected one is harmless.
            Packet::PubAck(id) if self.unacknowledged.front() == Some(&id) => {
                _ = self.unacknowledged.pop_front()
            }
            Packet::PubAck(id) => self.unacknowledged.retain(|waiting| *waiting != id),
            Packet::Subscribe(id, filters) => {
                check_count(filters.len())?;
                let reasons: Vec<_> = filters
                    .iter()
                    .map(|(filter, options)| self.subscribe(filter, *options))
                    .collect::<Result<_, _>>()?;
                self.codec.suback(out, id, &reasons);
            }
            Packet::Unsubscribe(id, filters) => {
                check_count(filters.len())?;
                let reasons: Vec<_> = filters
                    .iter()
                    .map(|filter| self.router.unsubscribe(&self.seat, filter))
                    .collect();
                self.codec.unsuback(out, id, &reasons);
            }
            Packet::Ping => self.codec.pong(out),
            Packet::Disconnect { publishes_will } => {
                self.publishes_will = publishes_will;
                return Err(End::new(Reason::Success, "the client disconnected"));
            }
        }
        Ok(())
    }

    /// Writes messages that wait for the client, while its window has room and `out` is shorter
    /// than `enough`.
    pub(super) fn deliver(&mut self, out: &mut BytesMut, enough: usize, now: Instant) {
        while out.len() < enough {
            let is_full = self.unacknowledged.len() >= self.window;
            let next = self.seat.lane.take(|delivery| delivery.qos == QoS::AtMostOnce || !is_full);
            let Some(delivery) = next else { break };
            if !is_alive(&delivery.message, now) {
                continue;
            }
            let packet_id = (delivery.qos != QoS::AtMostOnce).then(|| self.fresh_id());
            let message = &delivery.message;
            let publish = Publish {
                dup: false,
                retain: delivery.retain,
                qos: delivery.qos,
                topic: message.topic.clone(),
                packet_id,
                payload: message.payload.clone(),
                properties: properties(message, now),
            };
            if self.codec.publish(out, publish) {
                self.unacknowledged.extend(packet_id);
            } else if self.access.is_bootstrapping() {
                // It waits for nothing else.
                let text = "a reply is longer than it accepts";
                self.seat.lane.end(Reason::PacketTooLarge, text);
            }
        }
    }

    /// Whether the client is one of the CA's own workers.
    pub(super) fn is_worker(&self) -> bool {
        self.access.is_worker()
    }

    /// Frees the client's seat, and tells an MQTT 5 client why its connection ends.
    pub(super) fn end(&mut self, end: &End, out: &mut BytesMut) {
        self.router.leave(&self.seat, self.publishes_will);
        if end.reason != Reason::Success {
            self.codec.disconnect(out, end.reason);
        }
    }

    fn publish(&mut self, publish: Publish, out: &mut BytesMut, now: Instant) -> Result<(), End> {
        let is_request = is_request(&publish.topic);
        self.count(is_request, now)?;
        let packet_id = publish.packet_id;
        let reason = if self.access.may_publish(&publish.topic) {
            self.check(&publish, is_request)?;
            let published = self.router.publish(&self.seat, message(publish, is_request, now));
            let reason = published
                .ok_or_else(|| End::new(Reason::SessionTakenOver, "the client connected again"))?;
            if is_request && reason != Reason::Success && !self.codec.acknowledges_with_a_reason() {
                // If it were acknowledged, its sender would not know that it is lost.
                return Err(End::new(Reason::ServerBusy, "no worker can take its request"));
            }
            reason
        } else {
            Reason::NotAuthorized
        };
        if let Some(id) = packet_id {
            self.codec.puback(out, id, reason);
        }
        Ok(())
    }

    /// Counts messages that make work for the CA, or may do so.
    fn count(&mut self, is_request: bool, now: Instant) -> Result<(), End> {
        if self.access.is_bootstrapping() {
            self.published += 1;
            if self.published > PUBLISHES {
                return Err(End::new(
                    Reason::QuotaExceeded,
                    "it sent too many messages on one connection",
                ));
            }
        } else if is_request
            && let Some(account) = self.access.account()
            && !self.requests.allows(account.to_owned(), 1, now)
        {
            return Err(End::new(Reason::QuotaExceeded, "it sent too many requests"));
        }
        Ok(())
    }

    /// Checks what a message of this client may be. Otherwise its connection ends.
    fn check(&self, publish: &Publish, is_request: bool) -> Result<(), End> {
        let size = publish.payload.len() + publish.properties.as_ref().map_or(0, properties_size);
        if publish.retain {
            // §3.2.2.3.5: a bootstrapping client was told so in the CONNACK.
            if !self.access.may_retain(&publish.topic) {
                return Err(End::new(
                    Reason::RetainNotSupported,
                    "it may not retain a message on this topic",
                ));
            }
            if self.access.account().is_some() && size > RETAINED_MESSAGE {
                let text = "its message is too long to be retained";
                return Err(End::new(Reason::QuotaExceeded, text));
            }
        }
        if is_request && publish.qos == QoS::AtMostOnce {
            // When all workers are busy, it would be lost, and its sender would not know.
            return Err(End::new(Reason::ProtocolError, "it sent a request at QoS 0"));
        }
        if is_request && size > REQUEST_PACKET {
            return Err(End::new(Reason::PacketTooLarge, "its request is too long"));
        }
        Ok(())
    }

    fn subscribe(&self, filter: &ByteString, options: SubscriptionOptions) -> Result<Reason, End> {
        // §3.8.3-4
        if options.no_local && filter.starts_with("$share/") {
            return Err(End::new(
                Reason::ProtocolError,
                "it set No Local on a shared subscription",
            ));
        }
        if !has_sound_wildcards(filter) {
            return Ok(Reason::TopicFilterInvalid);
        }
        Ok(match self.access.may_subscribe(filter) {
            true => self.router.subscribe(&self.seat, filter, options),
            false => Reason::NotAuthorized,
        })
    }

    /// A packet identifier that is not in use (§2.2.1-3).
    fn fresh_id(&mut self) -> NonZeroU16 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if let Some(id) = NonZeroU16::new(self.last_id)
                && !self.unacknowledged.contains(&id)
            {
                return id;
            }
        }
    }
}

/// One packet may have as many filters as a client may hold.
fn check_count(filters: usize) -> Result<(), End> {
    if filters > SUBSCRIPTIONS {
        return Err(End::new(Reason::QuotaExceeded, "it sent too many filters in one packet"));
    }
    Ok(())
}

fn is_request(topic: &str) -> bool {
    matches!(Topic::parse(topic), Some(Topic::Request(..)))
}

/// The message of a PUBLISH. A request keeps only its Response Topic: the worker looks at no other
/// property.
pub(super) fn message(publish: Publish, is_request: bool, now: Instant) -> Message {
    let mut properties = publish.properties.unwrap_or_default();
    if is_request {
        let response_topic = properties.response_topic.take();
        properties = PublishProperties { response_topic, ..PublishProperties::default() };
    }
    let lifetime = properties.message_expiry_interval.take();
    // Copies, because the client's buffer is longer. Otherwise it would stay in memory until the
    // slowest subscriber has read this message.
    Message {
        topic: ByteString::from(&*publish.topic),
        payload: Bytes::copy_from_slice(&publish.payload),
        qos: publish.qos,
        retain: publish.retain,
        expires: lifetime
            .and_then(|seconds| now.checked_add(Duration::from_secs(seconds.get().into()))),
        properties: (properties != PublishProperties::default())
            .then(|| detached(properties).into()),
    }
}

/// Copies of all texts and bytes, in memory of their own.
fn detached(properties: PublishProperties) -> PublishProperties {
    let text = |text: ByteString| ByteString::from(&*text);
    PublishProperties {
        correlation_data: properties.correlation_data.map(|data| Bytes::copy_from_slice(&data)),
        content_type: properties.content_type.map(text),
        response_topic: properties.response_topic.map(text),
        user_properties: properties
            .user_properties
            .into_iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect(),
        ..properties
    }
}

/// The properties that a message is delivered with. They include the rest of its lifetime
/// (§3.3.2-6).
fn properties(message: &Message, now: Instant) -> Option<PublishProperties> {
    let left =
        message.expires.map(|expires| expires.saturating_duration_since(now).as_secs().max(1));
    let mut properties = message.properties.as_deref().cloned();
    if let Some(left) = left {
        let left = u32::try_from(left).ok().and_then(std::num::NonZeroU32::new);
        properties.get_or_insert_default().message_expiry_interval = left;
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::lane::{Lane, Room};
    use crate::meter::Rate;

    /// The sender would believe that the broker keeps the message, but the broker has forgotten it.
    #[test]
    fn message_of_a_client_that_was_taken_over_is_neither_routed_nor_acknowledged() {
        const CLIENT: &str = "0123456789abcdef0123456789abcdef";
        let router = Arc::new(Router::default());
        let lane = || Lane::new(Room { messages: 8, bytes: 10_000, share: 0 }, Arc::default());
        let listener = lane();
        let (listening, _) = router.enter("worker@1".into(), listener.clone());
        let options =
            SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
        router.subscribe(&listening, &"provision/#".into(), options);

        let access = Access::bootstrapping(&"default".parse().unwrap(), CLIENT).unwrap();
        let (seat, _) = router.enter(CLIENT.into(), lane());
        let mut input = BytesMut::from(
            &b"\x10\x2d\0\x04MQTT\x05\x02\0\x1e\0\0\x200123456789abcdef0123456789abcdef"[..],
        );
        let mut codec = Codec::detect(&input, 1000).unwrap().unwrap();
        codec.read(&mut input).unwrap().expect("a CONNECT");
        let requests = Meter::new(Rate::per_second(1, 1)).into();
        let mut session = Session::new(codec, access, seat, 2, router.clone(), requests);
        let mut publish = || {
            let topic = format!("provision/v1/default/{CLIENT}/request");
            let packet = [&[0x32, 67, 0, 61], topic.as_bytes(), &[0, 1, 0, b'x']].concat();
            let mut input = BytesMut::from(&packet[..]);
            let (packet, _) = session.read(&mut input).unwrap().expect("a PUBLISH");
            let mut out = BytesMut::new();
            (session.receive(packet, &mut out, Instant::now()).map_err(|end| end.reason), out.len())
        };
        assert_eq!(publish(), (Ok(()), 6), "acknowledged");
        assert!(listener.take(|_| true).is_some());
        router.enter(CLIENT.into(), lane());
        assert_eq!(publish(), (Err(Reason::SessionTakenOver), 0));
        assert!(listener.take(|_| true).is_none());
    }
}
