//! Identifiers: each has a type of its own, and every value of that type is valid.

use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use minicbor::bytes::ByteArray;
use minicbor::{Decode, Decoder, Encode, Encoder};

/// A text is not an identifier of the wanted kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdError {
    /// The wanted kind, e.g. `scope`.
    pub kind: &'static str,
    /// What such an identifier looks like.
    pub shape: &'static str,
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a {}: expected {}", self.kind, self.shape)
    }
}

impl core::error::Error for IdError {}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $shape:literal, $max:literal, $allowed:expr, $reserved:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The length of the longest one, in bytes.
            pub const MAX: usize = $max;

            /// The identifier as it stands in topics and messages.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let allowed: fn(u8) -> bool = $allowed;
                let reserved: fn(&str) -> bool = $reserved;
                if (1..=Self::MAX).contains(&text.len()) && text.bytes().all(allowed) && !reserved(text) {
                    Ok(Self(text.to_string()))
                } else {
                    Err(IdError { kind: $kind, shape: $shape })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                d.str()?
                    .parse()
                    .map_err(|error: IdError| minicbor::decode::Error::message(error.to_string()).at(at))
            }
        }
    };
}

fn is_bootstrap(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._:".contains(&byte)
}

text_id!(
    /// One provisioning domain of a CA: a tenant, a product line, a laboratory.
    Scope,
    "scope",
    "1 to 32 of a-z, 0-9, -",
    32,
    |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-',
    |_| false
);

text_id!(
    /// The name of a device: the common name of its certificate, and its MQTT client id once it is
    /// provisioned.
    ///
    /// The characters are those of an Azure DPS registration id, so existing inventories fit. The
    /// form of a [bootstrapping client id](ClientId::is_bootstrap) is reserved. Otherwise a
    /// stranger who connects with that client id would end the device's connection.
    DeviceId,
    "device id",
    "1 to 64 of A-Z, a-z, 0-9, - . _ :, but not 32 lower-case hexadecimal digits",
    64,
    is_name_byte,
    is_bootstrap
);

text_id!(
    /// What operators call one of their own: a broker, a worker, an operator or a backend. It is a
    /// part of the name of files, and of a backend's common name, `backend@{name}`, which has 64
    /// characters at most (RFC 5280 Appendix A, ub-common-name).
    IdentityName,
    "name of an identity",
    "1 to 56 of A-Z, a-z, 0-9, - . _ :, but no dot at the beginning",
    56,
    is_name_byte,
    |name| name.starts_with('.')
);

text_id!(
    /// The identifier of an issuing CA's key in hexadecimal, as its certificates name it (RFC 5280
    /// §4.2.1.1).
    KeyId,
    "key identifier",
    "2 to 64 lower-case hexadecimal digits, two for each byte",
    64,
    |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
    |id| id.len() % 2 == 1
);

text_id!(
    /// The MQTT client id that a topic names.
    ClientId,
    "client id",
    "1 to 64 of A-Z, a-z, 0-9, - . _ :",
    64,
    is_name_byte,
    |_| false
);

text_id!(
    /// The name of one of a device's connections, unique in the device.
    ConnectionName,
    "connection name",
    "1 to 23 of A-Z, a-z, 0-9, - . _",
    23,
    |byte| is_name_byte(byte) && byte != b':',
    |_| false
);

impl ClientId {
    /// The client id of one bootstrapping connection, from 128 fresh random bits.
    ///
    /// Nobody may be able to guess it, because a second CONNECT under the same client id ends the
    /// first (MQTT 5 §3.1.4-3).
    pub fn bootstrap(random: [u8; 16]) -> Self {
        let mut text = String::with_capacity(32);
        push_hex(&mut text, &random);
        Self(text)
    }

    /// Whether this has the form of a bootstrapping connection's client id: 32 lower-case
    /// hexadecimal digits.
    pub fn is_bootstrap(&self) -> bool {
        is_bootstrap(&self.0)
    }
}

impl From<&DeviceId> for ClientId {
    fn from(device: &DeviceId) -> Self {
        Self(device.0.clone())
    }
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal, $shape:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; Self::LEN]);

        impl $name {
            /// Its length in bytes.
            pub const LEN: usize = $len;

            /// The bytes themselves.
            pub fn as_bytes(&self) -> &[u8; Self::LEN] {
                &self.0
            }
        }

        impl From<[u8; $len]> for $name {
            fn from(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let error = IdError { kind: $kind, shape: $shape };
                if text.len() != 2 * Self::LEN || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(error);
                }
                let mut bytes = [0; Self::LEN];
                for (i, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| error.clone())?;
                }
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = String::with_capacity(2 * Self::LEN);
                push_hex(&mut text, &self.0);
                f.pad(&text)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let bytes: ByteArray<{ $len }> = d.decode()?;
                Ok(Self(bytes.into()))
            }
        }
    };
}

byte_id!(
    /// Ties a reply to its request: 16 random bytes, chosen by the device.
    RequestId,
    16,
    "request id",
    "32 hexadecimal digits"
);

impl RequestId {
    /// The id of a problem that answers a request whose own id could not be read.
    pub const NIL: Self = Self([0; Self::LEN]);
}

byte_id!(
    /// Names an endorsement key: SHA-256 of its SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) in DER.
    EkId,
    32,
    "EK id",
    "64 hexadecimal digits (SHA-256 of the EK's SubjectPublicKeyInfo)"
);

fn push_hex(text: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_accept_their_alphabet_and_length_only() {
        for good in ["a", "pump-17", "0123456789abcdef0123456789abcdef"] {
            assert_eq!(good.parse::<Scope>().unwrap().as_str(), good);
        }
        for bad in ["", "A", "a/b", "a+", "#", "é", "a_b", "0123456789abcdef0123456789abcdef0"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
        for bad in ["", "a/b", "+", "#", "$x", "a b", "é", "\0"] {
            assert!(bad.parse::<DeviceId>().is_err(), "{bad}");
            assert!(bad.parse::<ClientId>().is_err(), "{bad}");
        }
        let longest = "x".repeat(DeviceId::MAX);
        assert!(longest.parse::<DeviceId>().is_ok());
        assert!((longest + "x").parse::<DeviceId>().is_err());
    }

    #[test]
    fn bootstrap_client_id_is_32_lower_case_hex_digits() {
        let client = ClientId::bootstrap([0xab; 16]);
        assert_eq!(client.as_str(), "abababababababababababababababab");
        assert!(client.is_bootstrap());
        for other in
            ["ABABABABABABABABABABABABABABABAB", "ababababababababababababababababa", "pump-17"]
        {
            assert!(!other.parse::<ClientId>().unwrap().is_bootstrap(), "{other}");
        }
    }

    #[test]
    fn a_device_id_never_looks_like_a_bootstrapping_client() {
        assert!("abababababababababababababababab".parse::<DeviceId>().is_err());
        assert!("abababababababababababababababa".parse::<DeviceId>().is_ok());
    }

    #[test]
    fn byte_ids_print_and_parse_as_hex() {
        let id = EkId::from([0x0f; 32]);
        assert_eq!(id.to_string().parse::<EkId>().unwrap(), id);
        assert!("0f".parse::<EkId>().is_err());
        assert!("zz".repeat(32).parse::<EkId>().is_err());
    }
}
