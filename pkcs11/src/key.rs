//! A key in one token, or the same key in several, as whoever signs certificates takes it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, PublicKeyData,
    SignatureAlgorithm, SigningKey,
};
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::failure::{Cause, Failure};
use crate::message::{Answer, KeyKind, Mechanism, PublicKey, Request};
use crate::token::{Token, TokenName, unexpected};
use crate::uri::{KeySelector, Uri};

/// The tokens that are in use. Keys in the same token share its process.
#[derive(Default)]
pub struct Tokens(HashMap<TokenName, Arc<Token>>);

impl Tokens {
    fn token(&mut self, uri: &Uri) -> Arc<Token> {
        match self.0.entry(TokenName::of(uri)) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(vacant) => Arc::clone(vacant.insert(Arc::new(Token::new(uri)))),
        }
    }

    /// Makes a key in the token of this URI. Returns the URI with its name, and its public half.
    ///
    /// # Errors
    /// The token failed, or has no room.
    pub fn generate(
        &mut self,
        uri: Uri,
        kind: KeyKind,
        name: KeySelector,
    ) -> Result<(Uri, PublicKey), Failure> {
        let request = Request::Generate(kind, name.clone());
        match self.token(&uri).ask(&request, PATIENCE, GENERATING)? {
            Answer::Key(public) => Ok((uri.with_key(name), public.checked()?)),
            _ => Err(unexpected()),
        }
    }

    /// Makes a secret key for HMAC-SHA-256 in the token of this URI. Returns the URI with its name.
    ///
    /// # Errors
    /// The token failed, has no room, or makes no such keys.
    pub fn generate_secret(&mut self, uri: Uri, name: KeySelector) -> Result<Uri, Failure> {
        let request = Request::GenerateSecret(name.clone());
        match self.token(&uri).ask(&request, PATIENCE, GENERATING)? {
            Answer::Made => Ok(uri.with_key(name)),
            _ => Err(unexpected()),
        }
    }

    /// The secret key that these URIs name, the same in each token. Asks no token.
    pub fn secret(&mut self, uris: &[Uri]) -> TokenSecret {
        TokenSecret { places: self.places(uris) }
    }

    /// The public half of the key that this URI names.
    ///
    /// # Errors
    /// There is none, more than one, or of another kind, or the token failed.
    pub fn find(&mut self, uri: &Uri) -> Result<PublicKey, Failure> {
        let key = uri.key().cloned().ok_or_else(|| Failure::new(Cause::NoKey, ""))?;
        match self.token(uri).ask(&Request::Find(key), PATIENCE, SIGNING)? {
            Answer::Key(public) => public.checked(),
            _ => Err(unexpected()),
        }
    }

    /// The key with this public half in the tokens of these URIs. Asks no token: what they sign is
    /// verified.
    pub fn key(&mut self, uris: &[Uri], public: PublicKey) -> TokenKey {
        TokenKey { places: self.places(uris), public, is_failing: AtomicBool::new(false) }
    }

    fn places(&mut self, uris: &[Uri]) -> Vec<Place> {
        let place = |uri: &Uri| Place {
            token: self.token(uri),
            key: uri.key().cloned().unwrap_or_default(),
        };
        uris.iter().map(place).collect()
    }
}

/// A secret key that never leaves its token, or the same in several.
pub struct TokenSecret {
    places: Vec<Place>,
}

impl TokenSecret {
    /// HMAC-SHA-256 of this message by the token of this position. Nobody can tell whether the token
    /// has the right key but by what comes out.
    ///
    /// # Errors
    /// It failed, does not answer, or has no such key.
    pub fn mac_in(&self, position: usize, message: &[u8]) -> Result<Zeroizing<[u8; 32]>, Failure> {
        let place = &self.places[position];
        let request = Request::Mac(place.key.clone(), message.to_vec());
        let Answer::Signature(mac) = place.token.ask(&request, PATIENCE, SIGNING)? else {
            return Err(unexpected());
        };
        let mac = Zeroizing::new(mac);
        mac.as_slice().try_into().map(Zeroizing::new).map_err(|_| unexpected())
    }

    /// In how many tokens it is.
    pub fn count(&self) -> usize {
        self.places.len()
    }
}

/// A private key that never leaves its token, or the same in several, which are tried in turn.
pub struct TokenKey {
    places: Vec<Place>,
    public: PublicKey,
    is_failing: AtomicBool,
}

struct Place {
    token: Arc<Token>,
    key: KeySelector,
}

impl TokenKey {
    /// What it is for.
    pub fn kind(&self) -> KeyKind {
        self.public.kind
    }

    /// Signs with the token of this position.
    ///
    /// # Errors
    /// It failed, does not answer, or has another key.
    pub fn sign_in(&self, position: usize, message: &[u8]) -> Result<Vec<u8>, Failure> {
        let (mechanism, data) = self.public.kind.digest(message);
        self.sign_digest(position, mechanism, data, message)
    }

    fn sign_digest(
        &self,
        position: usize,
        mechanism: Mechanism,
        data: Vec<u8>,
        message: &[u8],
    ) -> Result<Vec<u8>, Failure> {
        let place = &self.places[position];
        let is_last = position + 1 == self.places.len();
        let patience = if is_last { PATIENCE } else { PATIENCE_IF_THERE_IS_ANOTHER };
        let request = Request::Sign(place.key.clone(), mechanism, data);
        let answer = place.token.ask(&request, patience, SIGNING)?;
        let Answer::Signature(raw) = answer else { return Err(unexpected()) };
        let signature = self.public.kind.encode(raw)?;
        // A token may have been replaced by another one with a key of the same name, and one that
        // fails may give the key away by a wrong signature.
        if !self.public.verifies(message, &signature) {
            let text = "it signs with another key than that of the certificate, or wrongly";
            return Err(Failure::new(Cause::OtherKey, text));
        }
        Ok(signature)
    }

    /// The processes with the tokens' libraries.
    pub fn processes(&self) -> Vec<u32> {
        self.places.iter().filter_map(|place| place.token.process_id()).collect()
    }
}

impl PublicKeyData for TokenKey {
    fn der_bytes(&self) -> &[u8] {
        self.public.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.public.algorithm()
    }
}

impl SigningKey for TokenKey {
    /// Signs with the first token that does. Says so once when none does, and once when one does
    /// again.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut failures = Vec::new();
        for position in 0..self.places.len() {
            match self.sign_in(position, message) {
                Ok(signature) => {
                    if self.is_failing.swap(false, Ordering::Relaxed) {
                        info!("the key in the token signs again");
                    }
                    return Ok(signature);
                }
                Err(failure) => failures.push(failure.to_string()),
            }
        }
        if !self.is_failing.swap(true, Ordering::Relaxed) {
            error!(error = %failures.join("; "), "no token signs; devices are told to come again");
        }
        Err(rcgen::Error::RemoteKeyError)
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self.kind {
            KeyKind::P256 => &PKCS_ECDSA_P256_SHA256,
            KeyKind::P384 => &PKCS_ECDSA_P384_SHA384,
            KeyKind::Rsa(_) => &PKCS_RSA_SHA256,
        }
    }
}

impl PublicKey {
    /// From modulus and exponent, big-endian; `None` if the modulus is not of 2048 to 4096 bits.
    pub fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let modulus = without_zeros(modulus);
        let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
        let kind = KeyKind::Rsa(u16::try_from(bits).ok().filter(|it| (2048..=4096).contains(it))?);
        let exponent = without_zeros(exponent);
        if exponent.is_empty() || exponent.len() > 8 {
            return None;
        }
        Some(Self { kind, bytes: sequence(&[integer(modulus), integer(exponent)].concat()) })
    }

    /// From the identifier of its curve and its point; `None` if the curve is not used here.
    pub fn ec(curve: &str, point: &[u8]) -> Option<Self> {
        let kind = match curve {
            "1.2.840.10045.3.1.7" => KeyKind::P256,
            "1.3.132.0.34" => KeyKind::P384,
            _ => return None,
        };
        Some(Self { kind, bytes: point.to_vec() })
    }

    /// What came from a process with a vendor's library.
    fn checked(self) -> Result<Self, Failure> {
        let is_good = match self.kind {
            KeyKind::P256 => self.bytes.len() == 65,
            KeyKind::P384 => self.bytes.len() == 97,
            KeyKind::Rsa(bits) => (2048..=4096).contains(&bits),
        };
        if is_good { Ok(self) } else { Err(unexpected()) }
    }

    /// Whether this is a signature by its private half.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match self.kind {
            KeyKind::P256 => &ECDSA_P256_SHA256_ASN1,
            KeyKind::P384 => &ECDSA_P384_SHA384_ASN1,
            KeyKind::Rsa(_) => &RSA_PKCS1_2048_8192_SHA256,
        };
        UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, signature).is_ok()
    }
}

impl KeyKind {
    /// What the token signs for this message.
    fn digest(self, message: &[u8]) -> (Mechanism, Vec<u8>) {
        match self {
            Self::P256 => (Mechanism::Ecdsa, digest(&SHA256, message).as_ref().to_vec()),
            Self::P384 => (Mechanism::Ecdsa, digest(&SHA384, message).as_ref().to_vec()),
            Self::Rsa(_) => {
                let info = [SHA256_INFO, digest(&SHA256, message).as_ref()].concat();
                (Mechanism::RsaPkcs, info)
            }
        }
    }

    /// The signature as certificates have it. A token gives two numbers one after the other for
    /// ECDSA (PKCS #11 v2.40 §2.3.1), and certificates have a sequence of them (RFC 5480, appendix
    /// A).
    fn encode(self, raw: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let length = match self {
            Self::P256 => 64,
            Self::P384 => 96,
            Self::Rsa(bits) => usize::from(bits).div_ceil(8),
        };
        if raw.len() != length {
            let text = format!("its signature has {} bytes, not {length}", raw.len());
            return Err(Failure::new(Cause::Token, text));
        }
        if matches!(self, Self::Rsa(_)) {
            return Ok(raw);
        }
        let (r, s) = raw.split_at(length / 2);
        Ok(sequence(&[integer(without_zeros(r)), integer(without_zeros(s))].concat()))
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("kind", &self.public.kind).finish_non_exhaustive()
    }
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    &number[start..]
}

/// INTEGER of a positive number (X.690 §8.3).
fn integer(number: &[u8]) -> Vec<u8> {
    let sign: &[u8] = if number.first().is_none_or(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
    element(0x02, &[sign, number].concat())
}

fn sequence(content: &[u8]) -> Vec<u8> {
    element(0x30, content)
}

fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = without_zeros(&length);
    let head = match content.len() {
        short @ 0..=127 => vec![tag, short as u8],
        _ => [&[tag, 0x80 | length.len() as u8], length].concat(),
    };
    [&head, content].concat()
}

/// What comes before a SHA-256 digest in a DigestInfo (RFC 8017 §9.2, note 1).
const SHA256_INFO: &[u8] = &[
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];
/// How long a signature may take. A device waits 20 s for its answer.
const SIGNING: Duration = Duration::from_secs(8);
/// How long to wait for a token that is being opened.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same, if the next one can be asked instead.
const PATIENCE_IF_THERE_IS_ANOTHER: Duration = Duration::from_secs(1);
/// A smart card may look for primes for minutes.
const GENERATING: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pkcs11_signature_of_two_numbers_becomes_a_sequence_of_them() {
        let mut raw = vec![0; 64];
        (raw[31], raw[32], raw[63]) = (7, 0x80, 9);
        let encoded = KeyKind::P256.encode(raw).unwrap();
        let s = [&[0x02, 0x21, 0x00, 0x80][..], &[0; 30], &[9]].concat();
        assert_eq!(encoded, [&[0x30, 3 + s.len() as u8, 0x02, 0x01, 7], &s[..]].concat());
        assert!(KeyKind::P256.encode(vec![1; 63]).is_err());
        assert!(KeyKind::Rsa(2048).encode(vec![1; 255]).is_err());
        assert_eq!(KeyKind::Rsa(2048).encode(vec![1; 256]).unwrap(), vec![1; 256]);
    }

    #[test]
    fn pkcs11_rsa_key_has_2048_to_4096_bits() {
        let modulus = |bytes: usize, first| [&[0, first][..], &vec![1; bytes - 1]].concat();
        let kind = |modulus: Vec<u8>| PublicKey::rsa(&modulus, &[1, 0, 1]).map(|it| it.kind);
        assert_eq!(kind(modulus(256, 0x80)), Some(KeyKind::Rsa(2048)));
        assert_eq!(kind(modulus(512, 0xff)), Some(KeyKind::Rsa(4096)));
        assert_eq!(kind(modulus(256, 0x7f)), None);
        assert_eq!(kind(modulus(513, 1)), None);
        assert_eq!(PublicKey::rsa(&modulus(256, 0x80), &[]), None);
        // As every other program writes it: SEQUENCE of two INTEGERs, the first with a sign.
        let written = PublicKey::rsa(&modulus(256, 0x80), &[0, 1, 0, 1]).unwrap().bytes;
        assert_eq!(written[..9], [0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01, 0x00]);
        assert_eq!(written[written.len() - 5..], [0x02, 3, 1, 0, 1]);
    }
}
