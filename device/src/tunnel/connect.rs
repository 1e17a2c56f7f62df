//! A local client's CONNECT, and the one that the broker gets instead.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::packet::{Reader, Version, field, packet};

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

/// The longest CONNECT without its fixed header, in bytes. The built-in broker takes a Will of 1024
/// bytes; the rest is room for properties.
pub(super) const CONNECT_LIMIT: usize = 8 * 1024;

const CONNECT: u8 = 0x10;

/// Connect Flags (MQTT 5 §3.1.2.3).
const RESERVED: u8 = 0x01;
const CLEAN: u8 = 0x02;
const WILL: u8 = 0x04;
const PASSWORD: u8 = 0x40;
const USER_NAME: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tunnel::packet::length_of_packet;

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
}
