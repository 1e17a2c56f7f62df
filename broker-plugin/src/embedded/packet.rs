//! MQTT packets of both versions, read and written as one set of types.
//!
//! The crate `rmqtt-codec` reads and writes the bytes. This file checks what that crate leaves to
//! its user, so the other files see only packets that MQTT allows. Clauses are those of MQTT 5;
//! where 3.1.1 differs, both are cited.

use std::borrow::Cow;
use std::num::NonZeroU16;

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use rmqtt_codec::error::DecodeError;
use rmqtt_codec::types::Publish;
pub(super) use rmqtt_codec::types::QoS;
use rmqtt_codec::v5::{PublishProperties, RetainHandling, SubscriptionOptions};
use rmqtt_codec::{MqttCodec, MqttPacket, v3, v5};
use tokio_util::codec::{Decoder, Encoder};

/// The versions of MQTT that the broker knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 3.1.1
    V3,
    V5,
}

/// Reason codes that we send (§2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reason {
    Success = 0x00,
    GrantedQos1 = 0x01,
    NoMatchingSubscribers = 0x10,
    NoSubscriptionExisted = 0x11,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    UnsupportedProtocolVersion = 0x84,
    ClientIdentifierNotValid = 0x85,
    BadUserNameOrPassword = 0x86,
    NotAuthorized = 0x87,
    ServerUnavailable = 0x88,
    ServerBusy = 0x89,
    ServerShuttingDown = 0x8b,
    BadAuthenticationMethod = 0x8c,
    KeepAliveTimeout = 0x8d,
    SessionTakenOver = 0x8e,
    TopicFilterInvalid = 0x8f,
    TopicNameInvalid = 0x90,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    RetainNotSupported = 0x9a,
    QosNotSupported = 0x9b,
    ConnectionRateExceeded = 0x9f,
    MaximumConnectTime = 0xa0,
    SubscriptionIdentifiersNotSupported = 0xa1,
}

impl Reason {
    /// The same in a packet's own set of codes, or `otherwise` if it has no such code.
    fn of<T: TryFrom<u8>>(self, otherwise: T) -> T {
        T::try_from(self as u8).unwrap_or(otherwise)
    }
}

/// Why a connection ends. The client gets the reason, if its version has a way to say it. The text
/// is for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct End {
    pub(super) reason: Reason,
    pub(super) text: Cow<'static, str>,
}

impl End {
    pub(super) fn new(reason: Reason, text: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, text: text.into() }
    }

    /// An end that the client is not told.
    pub(super) fn silent(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Reason::Success, text)
    }

    /// Whether the client broke a rule.
    pub(super) fn is_offence(&self) -> bool {
        !matches!(
            self.reason,
            Reason::Success
                | Reason::AdministrativeAction
                | Reason::KeepAliveTimeout
                | Reason::MaximumConnectTime
                | Reason::ServerBusy
                | Reason::ServerShuttingDown
                | Reason::ServerUnavailable
                | Reason::SessionTakenOver
        )
    }

    pub(super) fn turned_out() -> Self {
        Self::new(Reason::ServerBusy, "closed to make room for others")
    }

    pub(super) fn shutting_down() -> Self {
        Self::new(Reason::ServerShuttingDown, "the broker is shutting down")
    }
}

impl From<DecodeError> for End {
    fn from(error: DecodeError) -> Self {
        let reason = match error {
            DecodeError::MaxSizeExceeded { .. } => Reason::PacketTooLarge,
            DecodeError::InvalidClientId => Reason::ClientIdentifierNotValid,
            DecodeError::InvalidProtocol | DecodeError::UnsupportedProtocolLevel => {
                Reason::UnsupportedProtocolVersion
            }
            _ => Reason::MalformedPacket,
        };
        Self::new(reason, error.to_string())
    }
}

/// What a client sends.
#[derive(Debug)]
pub(super) enum Packet {
    Connect(Box<Connect>),
    /// Its topic is a name (§4.7.1), its QoS is 0 or 1, and it has no alias.
    Publish(Box<Publish>),
    PubAck(NonZeroU16),
    /// At least one filter. The filters may be malformed.
    Subscribe(NonZeroU16, Vec<(ByteString, SubscriptionOptions)>),
    Unsubscribe(NonZeroU16, Vec<ByteString>),
    Ping,
    Disconnect {
        publishes_will: bool,
    },
}

#[derive(Debug)]
pub(super) struct Connect {
    pub(super) version: Version,
    pub(super) client: ByteString,
    /// In seconds. 0 stands for no keep-alive.
    pub(super) keep_alive: u16,
    pub(super) will: Option<Publish>,
    pub(super) user_name: Option<ByteString>,
    pub(super) password: Option<Bytes>,
    /// QoS 1 messages that may be on their way to the client (§3.1.2.11.3).
    pub(super) receive_maximum: u16,
    /// §3.1.2.11.9
    pub(super) has_authentication_method: bool,
}

/// What the CONNACK tells a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// The longest packet that the broker reads, in bytes.
    pub(super) packet: usize,
    /// In seconds.
    pub(super) keep_alive: u16,
    /// Whether clients may retain messages, and use wildcards and shared subscriptions.
    pub(super) is_for_identified: bool,
}

/// Reads and writes the packets of one connection.
#[derive(Debug)]
pub(super) struct Codec {
    version: Version,
    inner: MqttCodec,
    longest: usize,
}

impl Codec {
    /// A codec for the version that the first bytes of a connection announce. `None` until they
    /// have arrived. A packet may have `longest` bytes.
    pub(super) fn detect(start: &[u8], longest: usize) -> Result<Option<Self>, End> {
        Ok(version(start)?.map(|version| {
            let inner = match version {
                // 0: no limit. `read` has the limit.
                Version::V3 => MqttCodec::V3(v3::Codec::new(0)),
                Version::V5 => MqttCodec::V5(v5::Codec::new(0, 0)),
            };
            Self { version, inner, longest }
        }))
    }

    /// From now on, a packet may have `longest` bytes.
    pub(super) fn take_up_to(&mut self, longest: usize) {
        self.longest = longest;
    }

    /// Takes the next packet out of `buffer`. Returns it with its length in bytes, or `None` until
    /// all of it has arrived.
    pub(super) fn read(&mut self, buffer: &mut BytesMut) -> Result<Option<(Packet, usize)>, End> {
        let Some((header, length)) = frame(buffer)? else { return Ok(None) };
        let total = header + length;
        if total > self.longest {
            return Err(End::new(
                Reason::PacketTooLarge,
                format!("it sent a packet of {total} bytes"),
            ));
        }
        if buffer.len() < total {
            return Ok(None);
        }
        check_body(self.version, buffer[0], &buffer[header..total])?;
        // The codec reserves memory behind what it takes out. So it gets this packet alone.
        let mut packet = buffer.split_to(total);
        let Some((packet, _)) = self.inner.decode(&mut packet)? else {
            return Err(End::new(Reason::MalformedPacket, "it sent a packet with a wrong length"));
        };
        let packet = match packet {
            MqttPacket::V3(packet) => accept_v3(packet)?,
            MqttPacket::V5(packet) => self.accept_v5(packet)?,
            MqttPacket::Version(_) => return Err(unexpected()),
        };
        Ok(Some((packet, total)))
    }

    /// Answers a CONNECT. MQTT 3.1.1 has no answer to one that cannot be read (3.1.1 §3.1.4-1).
    pub(super) fn connack(&mut self, out: &mut BytesMut, reason: Reason, terms: &Terms) {
        match self.version {
            Version::V3 => {
                let return_code = match reason {
                    Reason::Success => v3::ConnectAckReason::ConnectionAccepted,
                    Reason::UnsupportedProtocolVersion => {
                        v3::ConnectAckReason::UnacceptableProtocolVersion
                    }
                    Reason::ClientIdentifierNotValid => v3::ConnectAckReason::IdentifierRejected,
                    Reason::ServerUnavailable
                    | Reason::ServerBusy
                    | Reason::ConnectionRateExceeded => v3::ConnectAckReason::ServiceUnavailable,
                    Reason::BadUserNameOrPassword => v3::ConnectAckReason::BadUserNameOrPassword,
                    Reason::MalformedPacket | Reason::ProtocolError | Reason::PacketTooLarge => {
                        return;
                    }
                    _ => v3::ConnectAckReason::NotAuthorized,
                };
                self.write_v3(
                    out,
                    v3::Packet::ConnectAck(v3::ConnectAck { return_code, session_present: false }),
                );
            }
            Version::V5 => {
                let reason_code = reason.of(v5::ConnectAckReason::UnspecifiedError);
                let mut packet = v5::ConnectAck { reason_code, ..v5::ConnectAck::default() };
                if reason == Reason::Success {
                    packet = v5::ConnectAck {
                        // §3.2.2.3.2: this counts, not what the client asked for.
                        session_expiry_interval_secs: Some(0),
                        max_qos: QoS::AtLeastOnce,
                        max_packet_size: terms.packet.try_into().ok(),
                        retain_available: terms.is_for_identified,
                        wildcard_subscription_available: terms.is_for_identified,
                        shared_subscription_available: terms.is_for_identified,
                        subscription_identifiers_available: false,
                        server_keepalive_sec: Some(terms.keep_alive),
                        ..packet
                    };
                }
                self.write_v5(out, v5::Packet::ConnectAck(Box::new(packet)));
            }
        }
    }

    /// Writes a message for the client. Returns `false` if it is longer than the client accepts;
    /// then it counts as delivered (§3.1.2.11.4).
    pub(super) fn publish(&mut self, out: &mut BytesMut, mut publish: Publish) -> bool {
        match self.version {
            Version::V3 => {
                publish.properties = None;
                self.write_v3(out, v3::Packet::Publish(Box::new(publish)))
            }
            Version::V5 => self.write_v5(out, v5::Packet::Publish(Box::new(publish))),
        }
    }

    /// Whether a PUBACK can have a reason code. It cannot in MQTT 3.1.1 (3.1.1 §3.4).
    pub(super) fn acknowledges_with_a_reason(&self) -> bool {
        self.version == Version::V5
    }

    pub(super) fn puback(&mut self, out: &mut BytesMut, packet_id: NonZeroU16, reason: Reason) {
        match self.version {
            Version::V3 => self.write_v3(out, v3::Packet::PublishAck { packet_id }),
            Version::V5 => {
                let reason_code = reason.of(v5::PublishAckReason::UnspecifiedError);
                let packet = v5::PublishAck { packet_id, reason_code, ..v5::PublishAck::default() };
                self.write_v5(out, v5::Packet::PublishAck(packet))
            }
        };
    }

    pub(super) fn suback(&mut self, out: &mut BytesMut, packet_id: NonZeroU16, reasons: &[Reason]) {
        match self.version {
            Version::V3 => {
                let status = reasons.iter().map(|reason| match reason {
                    Reason::Success => v3::SubscribeReturnCode::Success(QoS::AtMostOnce),
                    Reason::GrantedQos1 => v3::SubscribeReturnCode::Success(QoS::AtLeastOnce),
                    _ => v3::SubscribeReturnCode::Failure,
                });
                self.write_v3(out, v3::Packet::SubscribeAck { packet_id, status: status.collect() })
            }
            Version::V5 => {
                let status = reasons
                    .iter()
                    .map(|reason| reason.of(v5::SubscribeAckReason::UnspecifiedError))
                    .collect();
                let packet = v5::SubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status,
                };
                self.write_v5(out, v5::Packet::SubscribeAck(packet))
            }
        };
    }

    pub(super) fn unsuback(
        &mut self,
        out: &mut BytesMut,
        packet_id: NonZeroU16,
        reasons: &[Reason],
    ) {
        match self.version {
            Version::V3 => self.write_v3(out, v3::Packet::UnsubscribeAck { packet_id }),
            Version::V5 => {
                let status = reasons
                    .iter()
                    .map(|reason| reason.of(v5::UnsubscribeAckReason::UnspecifiedError))
                    .collect();
                let packet = v5::UnsubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status,
                };
                self.write_v5(out, v5::Packet::UnsubscribeAck(packet))
            }
        };
    }

    pub(super) fn pong(&mut self, out: &mut BytesMut) {
        match self.version {
            Version::V3 => self.write_v3(out, v3::Packet::PingResponse),
            Version::V5 => self.write_v5(out, v5::Packet::PingResponse),
        };
    }

    /// Writes nothing in MQTT 3.1.1, where servers have no such packet (3.1.1 §3.14).
    pub(super) fn disconnect(&mut self, out: &mut BytesMut, reason: Reason) {
        if self.version == Version::V5 {
            let reason = reason.of(v5::DisconnectReasonCode::UnspecifiedError);
            self.write_v5(out, v5::Packet::Disconnect(v5::Disconnect::new(reason)));
        }
    }

    fn write_v3(&mut self, out: &mut BytesMut, packet: v3::Packet) -> bool {
        self.inner.encode(MqttPacket::V3(packet), out).is_ok()
    }

    fn write_v5(&mut self, out: &mut BytesMut, packet: v5::Packet) -> bool {
        self.inner.encode(MqttPacket::V5(packet), out).is_ok()
    }

    fn accept_v5(&mut self, packet: v5::Packet) -> Result<Packet, End> {
        Ok(match packet {
            v5::Packet::Connect(connect) => {
                // §3.1.2.11.10
                if connect.auth_data.is_some() && connect.auth_method.is_none() {
                    return Err(End::new(
                        Reason::ProtocolError,
                        "it sent authentication data without a method",
                    ));
                }
                if let (Some(longest), MqttCodec::V5(codec)) =
                    (connect.max_packet_size, &mut self.inner)
                {
                    // The broker could not answer a client that accepts less.
                    if longest.get() < SHORTEST {
                        return Err(End::new(
                            Reason::PacketTooLarge,
                            "it accepts only packets that are shorter than our answers",
                        ));
                    }
                    codec.set_max_outbound_size(longest.get());
                }
                Packet::Connect(Box::new(Connect {
                    version: Version::V5,
                    client: text(connect.client_id)?,
                    keep_alive: connect.keep_alive,
                    will: connect.last_will.map(will_of_v5).transpose()?,
                    user_name: connect.username.map(text).transpose()?,
                    password: connect.password,
                    receive_maximum: connect.receive_max.map_or(u16::MAX, NonZeroU16::get),
                    has_authentication_method: connect.auth_method.is_some(),
                }))
            }
            v5::Packet::Publish(publish) => Packet::Publish(Box::new(checked(*publish)?)),
            v5::Packet::PublishAck(ack) => Packet::PubAck(ack.packet_id),
            v5::Packet::Subscribe(subscribe) => {
                if subscribe.id.is_some() {
                    let reason = Reason::SubscriptionIdentifiersNotSupported;
                    return Err(End::new(
                        reason,
                        "it sent a subscription identifier, which the CONNACK excluded",
                    ));
                }
                Packet::Subscribe(
                    subscribe.packet_id,
                    filters(subscribe.topic_filters, |(filter, _)| filter)?,
                )
            }
            v5::Packet::Unsubscribe(unsubscribe) => Packet::Unsubscribe(
                unsubscribe.packet_id,
                filters(unsubscribe.topic_filters, |filter| filter)?,
            ),
            v5::Packet::PingRequest => Packet::Ping,
            v5::Packet::Disconnect(disconnect) => {
                // §3.14.2.2.2: it was 0 at CONNECT, because the CONNACK said so.
                if disconnect.session_expiry_interval_secs.is_some_and(|seconds| seconds != 0) {
                    return Err(End::new(
                        Reason::ProtocolError,
                        "it asked for a session that outlives its connection",
                    ));
                }
                let publishes_will =
                    disconnect.reason_code != v5::DisconnectReasonCode::NormalDisconnection;
                Packet::Disconnect { publishes_will }
            }
            _ => return Err(unexpected()),
        })
    }
}

fn accept_v3(packet: v3::Packet) -> Result<Packet, End> {
    Ok(match packet {
        v3::Packet::Connect(connect) => Packet::Connect(Box::new(Connect {
            version: Version::V3,
            client: text(connect.client_id)?,
            keep_alive: connect.keep_alive,
            will: connect.last_will.map(|will| will_of_v3(will, None)).transpose()?,
            user_name: connect.username.map(text).transpose()?,
            password: connect.password,
            receive_maximum: u16::MAX,
            has_authentication_method: false,
        })),
        v3::Packet::Publish(publish) => Packet::Publish(Box::new(checked(*publish)?)),
        v3::Packet::PublishAck { packet_id } => Packet::PubAck(packet_id),
        v3::Packet::Subscribe { packet_id, topic_filters } => {
            let with_options = topic_filters.into_iter().map(|(filter, qos)| {
                let options = SubscriptionOptions {
                    qos,
                    retain_handling: RetainHandling::AtSubscribe,
                    ..Default::default()
                };
                (filter, options)
            });
            Packet::Subscribe(packet_id, filters(with_options.collect(), |(filter, _)| filter)?)
        }
        v3::Packet::Unsubscribe { packet_id, topic_filters } => {
            Packet::Unsubscribe(packet_id, filters(topic_filters, |filter| filter)?)
        }
        v3::Packet::PingRequest => Packet::Ping,
        v3::Packet::Disconnect => Packet::Disconnect { publishes_will: false },
        _ => return Err(unexpected()),
    })
}

/// Packets that a server never gets, and those of QoS 2 and of enhanced authentication, which the
/// CONNACK excluded.
fn unexpected() -> End {
    End::new(Reason::ProtocolError, "it sent a packet that no client may send")
}

/// Checks what can be checked of a message without knowing its sender.
fn checked(publish: Publish) -> Result<Publish, End> {
    let properties = publish.properties.as_ref();
    // §3.3.2.3.4: the CONNACK excluded them.
    if properties.is_some_and(|properties| properties.topic_alias.is_some()) {
        return Err(End::new(Reason::TopicAliasInvalid, "it used a topic alias"));
    }
    // §3.3.4-6
    if properties.is_some_and(|properties| !properties.subscription_ids.is_empty()) {
        return Err(End::new(
            Reason::ProtocolError,
            "it sent a PUBLISH with a subscription identifier",
        ));
    }
    // §3.2.2.3.4. An MQTT 3.1.1 client cannot be told, but its connection ends too.
    if publish.qos == QoS::ExactlyOnce {
        return Err(End::new(Reason::QosNotSupported, "it sent a message at QoS 2"));
    }
    // §3.3.1-2
    if publish.dup && publish.qos == QoS::AtMostOnce {
        return Err(End::new(Reason::MalformedPacket, "it repeated a message at QoS 0"));
    }
    if let Some(properties) = properties {
        let user = properties.user_properties.iter().flat_map(|(name, value)| [name, value]);
        user.chain(&properties.content_type)
            .try_for_each(|property| text(property.clone()).map(drop))?;
    }
    let response_topic = properties.and_then(|properties| properties.response_topic.as_ref());
    for topic in [Some(&publish.topic), response_topic].into_iter().flatten() {
        // §3.3.2-2, §3.3.2-14, §4.7.3-1, §4.7.3-2
        if topic.is_empty() || topic.contains(['+', '#', '\0']) {
            return Err(End::new(
                Reason::TopicNameInvalid,
                "it sent a topic name that is empty, or has wildcards or U+0000",
            ));
        }
    }
    Ok(publish)
}

fn will_of_v5(will: v5::LastWill) -> Result<Publish, End> {
    let properties = PublishProperties {
        correlation_data: will.correlation_data,
        message_expiry_interval: will.message_expiry_interval,
        content_type: will.content_type,
        user_properties: will.user_properties,
        is_utf8_payload: will.is_utf8_payload.unwrap_or_default(),
        response_topic: will.response_topic,
        ..PublishProperties::default()
    };
    let v5::LastWill { qos, retain, topic, message, .. } = will;
    will_of_v3(v3::LastWill { qos, retain, topic, message }, Some(properties))
}

/// The message that a Will becomes, with the properties that it has in MQTT 5.
fn will_of_v3(will: v3::LastWill, properties: Option<PublishProperties>) -> Result<Publish, End> {
    let v3::LastWill { qos, retain, topic, message: payload } = will;
    checked(Publish { dup: false, retain, qos, topic, packet_id: None, payload, properties })
}

/// Checks a text (§1.5.4-2).
fn text(text: ByteString) -> Result<ByteString, End> {
    if text.contains('\0') {
        Err(End::new(Reason::MalformedPacket, "it sent a text with U+0000"))
    } else {
        Ok(text)
    }
}

fn filters<T>(filters: Vec<T>, filter: impl Fn(&T) -> &ByteString) -> Result<Vec<T>, End> {
    filters.iter().try_for_each(|item| text(filter(item).clone()).map(drop))?;
    Ok(filters)
}

/// The version that the first bytes of a connection announce (§3.1.2.1, §3.1.2.2). `None` until
/// they have arrived.
fn version(start: &[u8]) -> Result<Option<Version>, End> {
    let Some((header, _)) = frame(start)? else { return Ok(None) };
    if start[0] != CONNECT {
        return Err(End::new(Reason::ProtocolError, "its first packet is not a CONNECT"));
    }
    let Some(protocol) = start.get(header..header + 7) else { return Ok(None) };
    match (&protocol[..6], protocol[6]) {
        (b"\0\x04MQTT", 4) => Ok(Some(Version::V3)),
        (b"\0\x04MQTT", 5) => Ok(Some(Version::V5)),
        _ => Err(End::new(
            Reason::UnsupportedProtocolVersion,
            "it uses neither MQTT 3.1.1 nor MQTT 5",
        )),
    }
}

/// The answer to a client of another version: 3.1.1 §3.1.2.2 requires it. A client of a later
/// version can read this much of it.
pub(super) const UNSUPPORTED_VERSION: &[u8] = b"\x20\x02\0\x01";

const CONNECT: u8 = 0x10;

/// The longest of our own answers, which is a SUBACK of 64 filters or a CONNACK, and some room. In
/// bytes.
const SHORTEST: u32 = 128;

/// The lengths of the first packet's fixed header and of the rest (§2.1). `None` until the header
/// has arrived.
fn frame(bytes: &[u8]) -> Result<Option<(usize, usize)>, End> {
    let Some((length, size)) = bytes.get(1..).and_then(variable_length) else {
        // A Variable Byte Integer has four bytes at most (§1.5.5).
        let is_endless = bytes.len() > 4;
        return if is_endless {
            Err(End::new(Reason::MalformedPacket, "it sent a length of five bytes"))
        } else {
            Ok(None)
        };
    };
    Ok(Some((1 + size, length)))
}

/// A Variable Byte Integer (§1.5.5) and its size.
fn variable_length(bytes: &[u8]) -> Option<(usize, usize)> {
    let size = 1 + bytes.iter().take(4).position(|byte| byte & 0x80 == 0)?;
    let value =
        bytes[..size].iter().rev().fold(0, |value, byte| value << 7 | usize::from(byte & 0x7f));
    Some((value, size))
}

/// Refuses bytes after the last field, and reserved bits.
fn check_body(version: Version, first: u8, body: &[u8]) -> Result<(), End> {
    let is_sound = match (first, version) {
        // §3.1.2-11, -13: without a Will, its flags are 0.
        (CONNECT, _) if body.get(7).is_some_and(|flags| flags & 0x04 == 0 && flags & 0x38 != 0) => {
            false
        }
        // 3.1.1 §3.1.2-22: no password without a user name.
        (CONNECT, Version::V3) if body.get(7).is_some_and(|flags| flags & 0xc0 == 0x40) => false,
        (CONNECT, _) => end_of_connect(version, body) == Some(body.len()),
        // PINGREQ; DISCONNECT
        (0xc0, _) | (0xe0, Version::V3) => body.is_empty(),
        // SUBSCRIBE: 3.1.1 §3.8.3-4, 5 §3.8.3-5
        (0x82, _) => has_sound_options(version, body),
        _ => true,
    };
    if is_sound {
        Ok(())
    } else {
        Err(End::new(Reason::MalformedPacket, "it sent bytes or bits that have no meaning"))
    }
}

/// Where the last field of a CONNECT ends (§3.1). `None` if a field is incomplete.
fn end_of_connect(version: Version, body: &[u8]) -> Option<usize> {
    let mut at = 10;
    let flags = *body.get(7)?;
    let properties = |at: usize| match version {
        Version::V3 => Some(at),
        Version::V5 => variable_length(body.get(at..)?).map(|(length, size)| at + size + length),
    };
    let field = |at: usize| {
        Some(at + 2 + usize::from(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?)))
    };
    at = field(properties(at)?)?;
    if flags & 0x04 != 0 {
        at = field(field(properties(at)?)?)?;
    }
    for _ in 0..(flags >> 6).count_ones() {
        at = field(at)?;
    }
    Some(at)
}

/// Whether the reserved bits are 0 in the options of all filters.
fn has_sound_options(version: Version, body: &[u8]) -> bool {
    let (mut at, reserved) = match (version, body.get(2..).and_then(variable_length)) {
        (Version::V3, _) => (2, 0xfc),
        (Version::V5, Some((length, size))) => (2 + size + length, 0xc0),
        // The codec refuses it.
        (Version::V5, None) => return true,
    };
    while let Some(length) = body.get(at..at + 2) {
        at += 2 + usize::from(length[0]) * 256 + usize::from(length[1]);
        if body.get(at).is_some_and(|options| options & reserved != 0) {
            return false;
        }
        at += 1;
    }
    true
}
