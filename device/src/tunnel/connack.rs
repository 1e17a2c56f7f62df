//! The CONNACK that answers a local client: the tunnel's own, or the broker's.

use super::packet::{Reader, Version, field, packet, push_number};

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

const CONNACK: u8 = 0x20;
/// MQTT 5 §3.2.2.3.7
const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;

#[cfg(test)]
mod tests {
    use super::*;

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
