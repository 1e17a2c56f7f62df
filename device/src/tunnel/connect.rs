//! The first packets of a connection: a local client's CONNECT, and the CONNACK that answers it.

use tokio::io::{AsyncRead, AsyncReadExt};

/// The version of MQTT that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 3.1.1
    V3,
    V5,
}

/// A CONNECT, taken apart as far as the tunnel changes it. What a broker judges stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connect {
    pub(super) version: Version,
    pub(super) client: String,
    flags: u8,
    /// Keep Alive and properties.
    head: Vec<u8>,
    /// The Will: properties, topic and payload.
    will: Vec<u8>,
}

/// Why there is no CONNECT that can be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoConnect {
    /// It is none, or it is too long. Nobody is told, because it may not be MQTT.
    Foreign,
    /// A version of MQTT that the tunnel does not know.
    OtherVersion,
}

/// Why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Version,
    ClientId,
    /// The broker is away, or the TPM.
    Unavailable,
    /// There are too many clients.
    Busy,
    NotAuthorized,
}

impl Refusal {
    /// The CONNACK (MQTT 3.1.1 §3.2, MQTT 5 §3.2).
    pub(super) fn connack(self, version: Version) -> Vec<u8> {
        let (v3, v5) = match self {
            Self::Version => (1, 0x84),
            Self::ClientId => (2, 0x85),
            Self::Unavailable => (3, 0x88),
            Self::Busy => (3, 0x89),
            Self::NotAuthorized => (5, 0x87),
        };
        match version {
            Version::V3 => vec![CONNACK, 2, 0, v3],
            Version::V5 => vec![CONNACK, 3, 0, v5, 0],
        }
    }
}

impl Connect {
    /// Reads a CONNECT and nothing after it.
    pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Self, NoConnect> {
        let foreign = |_| NoConnect::Foreign;
        if stream.read_u8().await.map_err(foreign)? != CONNECT {
            return Err(NoConnect::Foreign);
        }
        let mut length = 0;
        for shift in [0, 7, 14, 21] {
            let byte = stream.read_u8().await.map_err(foreign)?;
            length |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        if length > CONNECT_LIMIT {
            return Err(NoConnect::Foreign);
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.map_err(foreign)?;
        Self::parse(&body)
    }

    /// Parses what follows the fixed header (MQTT 3.1.1 §3.1.2, MQTT 5 §3.1.2).
    fn parse(body: &[u8]) -> Result<Self, NoConnect> {
        let mut rest = Reader(body);
        let name = rest.field().ok_or(NoConnect::Foreign)?;
        let level = rest.take(1).ok_or(NoConnect::Foreign)?[0];
        let version = match (name, level) {
            (b"MQTT", 4) => Version::V3,
            (b"MQTT", 5) => Version::V5,
            (b"MQTT" | b"MQIsdp", _) => return Err(NoConnect::OtherVersion),
            _ => return Err(NoConnect::Foreign),
        };
        Self::parse_rest(version, rest).ok_or(NoConnect::Foreign)
    }

    fn parse_rest(version: Version, mut rest: Reader<'_>) -> Option<Self> {
        let flags = rest.take(1)?[0];
        // MQTT 3.1.1 §3.1.2-3, MQTT 5 §3.1.2-3: a client that sets it means something else.
        if flags & RESERVED != 0 {
            return None;
        }
        let properties = |rest: &mut Reader<'_>| match version {
            Version::V3 => Some(()),
            Version::V5 => rest.properties(),
        };
        let head = rest.spanning(|rest| {
            rest.take(2)?;
            properties(rest)
        })?;
        let client = String::from_utf8(rest.field()?.to_vec()).ok()?;
        let will = rest.spanning(|rest| {
            if flags & WILL != 0 {
                properties(rest)?;
                rest.field()?;
                rest.field()?;
            }
            Some(())
        })?;
        for flag in [USER_NAME, PASSWORD] {
            if flags & flag != 0 {
                rest.field()?;
            }
        }
        rest.0.is_empty().then_some(Self { version, client, flags, head, will })
    }

    /// Whether the client wants no state of an earlier connection.
    pub(super) fn is_clean(&self) -> bool {
        self.flags & CLEAN != 0
    }

    /// The packet under another client id, with this user name and password instead of the
    /// client's own, or with none.
    pub(super) fn packet(&self, client: &str, login: Option<(&str, &str)>) -> Vec<u8> {
        let own = self.flags & !(USER_NAME | PASSWORD);
        let (level, flags) = match self.version {
            Version::V3 => (4, own),
            Version::V5 => (5, own),
        };
        let flags = if login.is_some() { flags | USER_NAME | PASSWORD } else { flags };
        let mut body = field(b"MQTT");
        body.extend([level, flags]);
        body.extend_from_slice(&self.head);
        body.extend(field(client.as_bytes()));
        body.extend_from_slice(&self.will);
        if let Some((user_name, password)) = login {
            body.extend(field(user_name.as_bytes()));
            body.extend(field(password.as_bytes()));
        }
        packet(CONNECT, &body)
    }
}

/// A CONNACK of MQTT 5 that also tells the client which client id it was assigned (MQTT 5
/// §3.1.3-7). What follows the CONNACK stays. `None` if these bytes are no successful CONNACK.
pub(super) fn with_assigned_client(answer: &[u8], client: &str) -> Option<Vec<u8>> {
    let mut rest = Reader(answer);
    let is_connack = rest.take(1)? == [CONNACK];
    let length = rest.number()?;
    let body = rest.take(length)?;
    let mut fields = Reader(body);
    let flags = fields.take(2)?;
    if !is_connack || flags[1] != 0 {
        return None;
    }
    let length = fields.number()?;
    let before = fields.take(length)?;
    let mut properties = before.to_vec();
    properties.push(ASSIGNED_CLIENT_IDENTIFIER);
    properties.extend(field(client.as_bytes()));
    let mut body = flags.to_vec();
    push_number(&mut body, properties.len());
    body.extend(properties);
    fields.0.is_empty().then(|| [&packet(CONNACK, &body), rest.0].concat())
}

/// The code of a CONNACK that lets nobody in.
pub(super) fn refusal_code(answer: &[u8]) -> Option<u8> {
    let mut rest = Reader(answer);
    let is_connack = rest.take(1)? == [CONNACK];
    rest.number()?;
    let code = rest.take(2)?[1];
    (is_connack && code != 0).then_some(code)
}

/// How many bytes the first packet has that begins here; `None` if that is not known yet.
pub(super) fn length_of_packet(bytes: &[u8]) -> Option<usize> {
    let mut rest = Reader(bytes.get(1..)?);
    let length = rest.number()?;
    Some(bytes.len() - rest.0.len() + length)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    push_number(&mut packet, body.len());
    packet.extend_from_slice(body);
    packet
}

/// Length and bytes. All fields that are written here fit: they were read as fields, or are shorter
/// than a token.
fn field(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes(), bytes].concat()
}

/// A Variable Byte Integer (MQTT 5 §1.5.5).
fn push_number(to: &mut Vec<u8>, mut number: usize) {
    loop {
        let more = if number > 0x7F { 0x80 } else { 0 };
        to.push((number & 0x7F) as u8 | more);
        number >>= 7;
        if number == 0 {
            break;
        }
    }
}

/// What is left of a packet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<&'a [u8]> {
        let length = self.take(2)?;
        self.take(u16::from_be_bytes([length[0], length[1]]).into())
    }

    fn number(&mut self) -> Option<usize> {
        let mut number = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.take(1)?[0];
            number |= usize::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn properties(&mut self) -> Option<()> {
        let length = self.number()?;
        self.take(length).map(drop)
    }

    /// The bytes that `read` passes over.
    fn spanning(&mut self, read: impl FnOnce(&mut Self) -> Option<()>) -> Option<Vec<u8>> {
        let before = self.0;
        read(self)?;
        Some(before[..before.len() - self.0.len()].to_vec())
    }
}

/// The longest CONNECT without its fixed header, in bytes. The built-in broker takes a Will of 1024
/// bytes; the rest is room for properties.
pub(super) const CONNECT_LIMIT: usize = 8 * 1024;

const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
/// MQTT 5 §3.2.2.3.7
const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;

/// Connect Flags (MQTT 5 §3.1.2.3).
const RESERVED: u8 = 0x01;
const CLEAN: u8 = 0x02;
const WILL: u8 = 0x04;
const PASSWORD: u8 = 0x40;
const USER_NAME: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    /// Will on `t` with payload `w`, user name `u`, password `pw`, keep-alive 60, client id `c`.
    const V3: &[u8] = b"\x00\x04MQTT\x04\xF6\x00\x3C\x00\x01c\x00\x01t\x00\x01w\x00\x01u\x00\x02pw";
    /// The same with a Session Expiry Interval, and a Will Delay Interval.
    const V5: &[u8] = b"\x00\x04MQTT\x05\xF6\x00\x3C\x05\x11\x00\x00\x00\x09\x00\x01c\
        \x05\x18\x00\x00\x00\x07\x00\x01t\x00\x01w\x00\x01u\x00\x02pw";

    fn parsed(body: &[u8]) -> Connect {
        Connect::parse(body).unwrap()
    }

    #[test]
    fn client_id_is_replaced_and_login_removed_and_all_else_stays() {
        let connect = parsed(V3);
        assert_eq!((connect.version, connect.client.as_str()), (Version::V3, "c"));
        assert!(connect.is_clean());
        assert_eq!(
            connect.packet("pump-17/c", None),
            b"\x10\x1B\x00\x04MQTT\x04\x36\x00\x3C\x00\x09pump-17/c\x00\x01t\x00\x01w"
        );
        assert_eq!(
            parsed(V5).packet("pump-17/c", None),
            b"\x10\x27\x00\x04MQTT\x05\x36\x00\x3C\x05\x11\x00\x00\x00\x09\x00\x09pump-17/c\
              \x05\x18\x00\x00\x00\x07\x00\x01t\x00\x01w"
        );
    }

    #[test]
    fn login_takes_the_place_of_the_clients_own() {
        let packet = parsed(V3).packet("d/c", Some(("d", "token")));
        assert_eq!(
            packet,
            b"\x10\x1F\x00\x04MQTT\x04\xF6\x00\x3C\x00\x03d/c\x00\x01t\x00\x01w\x00\x01d\x00\x05token"
        );
        let without: &[u8] = b"\x00\x04MQTT\x04\x02\x00\x3C\x00\x01c";
        assert_eq!(
            parsed(without).packet("d/c", Some(("d", "token"))),
            b"\x10\x19\x00\x04MQTT\x04\xC2\x00\x3C\x00\x03d/c\x00\x01d\x00\x05token"
        );
    }

    #[test]
    fn packet_of_more_than_127_bytes_has_a_longer_length() {
        let packet = parsed(V3).packet(&"x".repeat(200), None);
        assert_eq!(packet[..3], [0x10, 0xDA, 0x01]);
        assert_eq!(length_of_packet(&packet), Some(packet.len()));
        assert_eq!(length_of_packet(&packet[..2]), None);
    }

    #[test]
    fn connect_that_is_cut_off_or_too_long_is_no_connect() {
        for whole in [V3, V5] {
            for length in 0..whole.len() {
                assert_eq!(Connect::parse(&whole[..length]), Err(NoConnect::Foreign), "{length}");
            }
            let longer = [whole, b"x"].concat();
            assert_eq!(Connect::parse(&longer), Err(NoConnect::Foreign));
        }
    }

    #[test]
    fn altered_bytes_never_do_more_than_alter_the_connect() {
        for whole in [V3, V5] {
            for at in 0..whole.len() {
                for byte in 0..=u8::MAX {
                    let mut altered = whole.to_vec();
                    altered[at] = byte;
                    let Ok(connect) = Connect::parse(&altered) else { continue };
                    let packet = connect.packet("d/c", None);
                    let body = &packet[2..];
                    let again = parsed(body);
                    assert_eq!(again.client, "d/c");
                    assert_eq!((&again.head, &again.will), (&connect.head, &connect.will));
                }
            }
        }
    }

    #[test]
    fn reserved_flag_and_other_protocols_are_refused() {
        let mut reserved = V3.to_vec();
        reserved[7] |= RESERVED;
        assert_eq!(Connect::parse(&reserved), Err(NoConnect::Foreign));
        for (body, expected) in [
            (&b"\x00\x06MQIsdp\x03\x02\x00\x3C\x00\x01c"[..], NoConnect::OtherVersion),
            (b"\x00\x04MQTT\x06\x02\x00\x3C\x00\x00\x01c", NoConnect::OtherVersion),
            (b"\x00\x04HTTP\x04\x02\x00\x3C\x00\x01c", NoConnect::Foreign),
            (b"\x00\x04MQTT\x04\x02\x00\x3C\x00\x01\xFF", NoConnect::Foreign),
        ] {
            assert_eq!(Connect::parse(body), Err(expected), "{body:?}");
        }
    }

    #[test]
    fn assigned_client_id_is_added_to_the_other_properties() {
        // Server Keep Alive 60, then the assigned client id.
        assert_eq!(
            with_assigned_client(b"\x20\x06\x00\x00\x03\x13\x00\x3C", "abc").unwrap(),
            b"\x20\x0C\x00\x00\x09\x13\x00\x3C\x12\x00\x03abc"
        );
        assert_eq!(
            with_assigned_client(b"\x20\x03\x00\x00\x00\xD0\x00", "abc").unwrap(),
            b"\x20\x09\x00\x00\x06\x12\x00\x03abc\xD0\x00"
        );
        for other in [
            &b"\x20\x03\x00\x87\x00"[..],
            b"\x20\x06\x00\x00\x03\x13\x00",
            b"\x20\x06\x00\x00\x02\x13\x00\x3C",
            b"\x30\x03\x00\x00\x00",
            b"\x20\x04\x00\x00\x00\xC0",
            b"",
        ] {
            assert_eq!(with_assigned_client(other, "abc"), None, "{other:?}");
        }
    }

    #[test]
    fn refusal_is_told_from_success_in_both_versions() {
        assert_eq!(refusal_code(b"\x20\x02\x00\x05"), Some(5));
        assert_eq!(refusal_code(b"\x20\x03\x00\x87\x00"), Some(0x87));
        for other in [&b"\x20\x02\x01\x00"[..], b"\x20\x03\x00\x00\x00", b"\x30\x02\x00\x05", b""] {
            assert_eq!(refusal_code(other), None, "{other:?}");
        }
    }

    #[test]
    fn refusals_are_connacks_of_the_clients_version() {
        assert_eq!(Refusal::Unavailable.connack(Version::V3), [0x20, 2, 0, 3]);
        assert_eq!(Refusal::NotAuthorized.connack(Version::V3), [0x20, 2, 0, 5]);
        assert_eq!(Refusal::Busy.connack(Version::V5), [0x20, 3, 0, 0x89, 0]);
    }
}
