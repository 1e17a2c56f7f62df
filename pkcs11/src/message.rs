//! What is said to the process with a vendor's library, and what it answers: frames of a length and
//! as many bytes of CBOR. Neither side believes the other's lengths.

use std::fmt;
use std::io::{self, Read, Write};

use minicbor::{Decode, Encode};
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::uri::{KeySelector, TokenSelector};

#[derive(Encode, Decode)]
pub(crate) enum Request {
    /// Loads the library and finds the token. The first request.
    #[n(0)]
    Open(#[n(0)] String, #[n(1)] TokenSelector),
    #[n(1)]
    Login(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    #[n(2)]
    Find(#[n(0)] KeySelector),
    /// Makes a key pair with this label and id.
    #[n(3)]
    Generate(#[n(0)] KeyKind, #[n(1)] KeySelector),
    #[n(4)]
    Sign(#[n(0)] KeySelector, #[n(1)] Mechanism, #[cbor(n(2), with = "minicbor::bytes")] Vec<u8>),
    /// Makes a secret key with this label and id.
    #[n(5)]
    GenerateSecret(#[n(0)] KeySelector),
    /// HMAC-SHA-256 by a secret key.
    #[n(6)]
    Mac(#[n(0)] KeySelector, #[cbor(n(1), with = "minicbor::bytes")] Vec<u8>),
}

#[derive(Encode, Decode)]
pub(crate) enum Answer {
    #[n(0)]
    Opened(#[n(0)] Opened),
    #[n(1)]
    LoggedIn,
    #[n(2)]
    Key(#[n(0)] PublicKey),
    #[n(3)]
    Signature(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    #[n(4)]
    Failed(#[n(0)] Failure),
    /// A secret key.
    #[n(5)]
    Made,
}

/// A token that was found.
#[derive(Encode, Decode)]
pub(crate) struct Opened {
    #[n(0)]
    pub(crate) needs_login: bool,
    /// One more wrong PIN locks it, or it is locked already.
    #[n(1)]
    pub(crate) is_last_try: bool,
}

/// How a digest is signed.
#[derive(Clone, Copy, Encode, Decode)]
#[cbor(index_only)]
pub(crate) enum Mechanism {
    /// `CKM_ECDSA`: the digest.
    #[n(0)]
    Ecdsa,
    /// `CKM_RSA_PKCS`: the DigestInfo (RFC 8017 §9.2).
    #[n(1)]
    RsaPkcs,
}

/// The kinds of keys that sign certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum KeyKind {
    /// ECDSA on P-256 with SHA-256.
    #[n(0)]
    P256,
    /// ECDSA on P-384 with SHA-384.
    #[n(1)]
    P384,
    /// RSASSA-PKCS1-v1_5 with SHA-256, and a modulus of so many bits.
    #[n(2)]
    Rsa(#[n(0)] u16),
}

/// The public half of a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PublicKey {
    #[n(0)]
    pub(crate) kind: KeyKind,
    /// The content of a SubjectPublicKeyInfo's bit string: a point (RFC 5480 §2.2), or an
    /// RSAPublicKey (RFC 8017 §A.1.1).
    #[cbor(n(1), with = "minicbor::bytes")]
    pub(crate) bytes: Vec<u8>,
}

impl PublicKey {
    /// What it is for.
    pub fn kind(&self) -> KeyKind {
        self.kind
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
        }
    }
}

impl std::str::FromStr for KeyKind {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "p256" => Self::P256,
            "p384" => Self::P384,
            "rsa2048" => Self::Rsa(2048),
            "rsa3072" => Self::Rsa(3072),
            "rsa4096" => Self::Rsa(4096),
            _ => return Err("known are p256, p384, rsa2048, rsa3072 and rsa4096"),
        })
    }
}

/// Writes a message with the number of its request.
pub(crate) fn send(to: &mut impl Write, number: u32, message: &impl Encode<()>) -> io::Result<()> {
    // It may hold a PIN.
    let mut frame = Zeroizing::new(Vec::with_capacity(MAX_FRAME));
    frame.extend([0; 8]);
    minicbor::encode(message, &mut *frame).map_err(io::Error::other)?;
    let length = frame.len() - 8;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
    }
    frame[..4].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    frame[4..8].copy_from_slice(&number.to_be_bytes());
    to.write_all(&frame)
}

/// Reads the next message and the number of its request.
///
/// # Errors
/// There is none any more, it is longer than any, or it is something else.
pub(crate) fn receive<T: for<'b> Decode<'b, ()>>(from: &mut impl Read) -> io::Result<(u32, T)> {
    let mut head = [0; 8];
    from.read_exact(&mut head)?;
    let [a, b, c, d, number @ ..] = head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message is too long"));
    }
    let mut content = Zeroizing::new(vec![0; length]);
    from.read_exact(&mut content)?;
    let mut decoder = minicbor::Decoder::new(&content);
    let message =
        decoder.decode().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    if decoder.position() != length {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a message has more than its end"));
    }
    Ok((u32::from_be_bytes(number), message))
}

/// The longest message, in bytes: a path and four labels. Digests and signatures have hundreds.
const MAX_FRAME: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pkcs11_message_is_bounded_and_read_to_its_end() {
        let mut sent = Vec::new();
        send(&mut sent, 7, &Answer::Signature(vec![1, 2, 3])).unwrap();
        let (number, answer) = receive::<Answer>(&mut &sent[..]).unwrap();
        assert!(matches!((number, answer), (7, Answer::Signature(it)) if it == [1, 2, 3]));

        let mut trailing = sent.clone();
        trailing.push(0);
        trailing[3] += 1;
        assert!(receive::<Answer>(&mut &trailing[..]).is_err(), "more than its end");
        let mut long = sent.clone();
        long[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(receive::<Answer>(&mut &long[..]).is_err(), "longer than any");
        assert!(receive::<Answer>(&mut &sent[..sent.len() - 1]).is_err(), "cut off");
        assert!(send(&mut Vec::new(), 0, &Answer::Signature(vec![0; MAX_FRAME])).is_err());
    }
}
