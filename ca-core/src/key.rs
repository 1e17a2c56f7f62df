//! Public keys from TPMs, certificates and CSRs, in one form and checked for soundness.

use std::fmt;
use std::ops::Deref;

use assay_wire::EkId;
use aws_lc_rs::agreement::{self, ECDH_P256, ECDH_P384, ParsedPublicKey, UnparsedPublicKey};
use sha2::{Digest, Sha256};
use x509_parser::asn1_rs::Any;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::der::{element, strip_leading_zeros, tag, unsigned};
use crate::oid;
use crate::tpm::algorithms::CurveId;

/// An RSA key, or a point that claims to be on a NIST curve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// An RSA key.
    Rsa {
        /// Modulus, big-endian.
        modulus: Vec<u8>,
        /// Public exponent.
        exponent: u32,
    },
    /// A point in affine coordinates.
    Ecc {
        /// The curve it should be on.
        curve: Curve,
        /// Its x coordinate, big-endian. In a [sound](SoundKey) key it is as long as the field.
        x: Vec<u8>,
        /// Its y coordinate, likewise.
        y: Vec<u8>,
    },
}

impl PublicKey {
    /// Reads a SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) in DER. An ECC point must be uncompressed.
    ///
    /// `id-RSAES-OAEP` keys count as RSA keys, because TPM vendors use that for EKs.
    pub fn from_spki(spki: &[u8]) -> Result<Self, UnreadableKey> {
        match SubjectPublicKeyInfo::from_der(spki) {
            Ok((&[], spki)) => Self::from_parsed(&spki),
            _ => Err(UnreadableKey::Other),
        }
    }

    /// Reads the key in a certificate, and nothing else of the certificate (RFC 5280 §4.1).
    pub(crate) fn from_certificate(der: &[u8]) -> Result<Self, UnreadableKey> {
        let content = |der| Any::from_der(der).map(|(_, element)| element.data);
        let mut rest = content(der).and_then(content).map_err(|_| UnreadableKey::Other)?;
        if rest.first() == Some(&tag::CONTEXT_0) {
            rest = skip(rest)?;
        }
        // Serial number, signature algorithm, issuer, validity, subject.
        for _ in 0..5 {
            rest = skip(rest)?;
        }
        let (_, spki) = SubjectPublicKeyInfo::from_der(rest).map_err(|_| UnreadableKey::Other)?;
        Self::from_parsed(&spki)
    }

    pub(crate) fn from_parsed(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, UnreadableKey> {
        let algorithm = spki.algorithm.algorithm.as_bytes();
        let key = &*spki.subject_public_key.data;
        if algorithm == oid::EC_PUBLIC_KEY {
            let parameters = spki.algorithm.parameters.as_ref().ok_or(UnreadableKey::Other)?;
            if parameters.header.raw_tag() != Some(&[tag::OID]) {
                return Err(UnreadableKey::ExplicitCurve);
            }
            let curve = Curve::ALL.into_iter().find(|curve| curve.oid() == parameters.data);
            let curve = curve.ok_or(UnreadableKey::Other)?;
            let (&SEC1_UNCOMPRESSED, coordinates) =
                key.split_first().ok_or(UnreadableKey::Other)?
            else {
                return Err(UnreadableKey::Other);
            };
            if coordinates.len() != 2 * curve.field_bytes() {
                return Err(UnreadableKey::Other);
            }
            let (x, y) = coordinates.split_at(curve.field_bytes());
            Ok(Self::Ecc { curve, x: x.to_vec(), y: y.to_vec() })
        } else if algorithm == oid::RSA_ENCRYPTION || algorithm == oid::RSAES_OAEP {
            Self::from_pkcs1(key)
        } else {
            Err(UnreadableKey::Other)
        }
    }

    /// Reads an RSAPublicKey (RFC 8017, appendix A.1.1) in DER.
    pub(crate) fn from_pkcs1(key: &[u8]) -> Result<Self, UnreadableKey> {
        let Ok((&[], rsa)) = RSAPublicKey::from_der(key) else {
            return Err(UnreadableKey::Other);
        };
        let exponent = rsa.try_exponent().map_err(|_| UnreadableKey::Other)?;
        Ok(Self::Rsa {
            modulus: strip_leading_zeros(rsa.modulus).to_vec(),
            exponent: exponent.try_into().map_err(|_| UnreadableKey::Other)?,
        })
    }

    /// The key as a SubjectPublicKeyInfo in DER: what `openssl pkey -pubin -outform der` prints.
    pub fn spki(&self) -> Vec<u8> {
        let (algorithm, parameters) = match self {
            Self::Rsa { .. } => (oid::RSA_ENCRYPTION, element(tag::NULL, &[])),
            Self::Ecc { curve, .. } => (oid::EC_PUBLIC_KEY, element(tag::OID, &[curve.oid()])),
        };
        let algorithm = element(tag::SEQUENCE, &[&element(tag::OID, &[algorithm]), &parameters]);
        let key = element(tag::BIT_STRING, &[&[NO_UNUSED_BITS], &self.subject_public_key()]);
        element(tag::SEQUENCE, &[&algorithm, &key])
    }

    /// The content of the `subjectPublicKey` in it: an RSAPublicKey (RFC 8017, appendix A.1.1), or
    /// an uncompressed point.
    pub(crate) fn subject_public_key(&self) -> Vec<u8> {
        match self {
            Self::Rsa { modulus, exponent } => {
                element(tag::SEQUENCE, &[&unsigned(modulus), &unsigned(&exponent.to_be_bytes())])
            }
            Self::Ecc { x, y, .. } => [&[SEC1_UNCOMPRESSED], &x[..], &y[..]].concat(),
        }
    }

    /// The modulus, or both coordinates. They determine a [sound](SoundKey) key of an accepted
    /// template.
    pub(crate) fn brief(&self) -> Vec<u8> {
        match self {
            Self::Rsa { modulus, .. } => modulus.clone(),
            Self::Ecc { x, y, .. } => [&x[..], y].concat(),
        }
    }

    /// The key that [`brief`](Self::brief) stands for. The length tells the kind of key, because
    /// moduli are longer than coordinates.
    pub(crate) fn from_brief(brief: &[u8]) -> Self {
        match Curve::ALL.into_iter().find(|curve| 2 * curve.field_bytes() == brief.len()) {
            Some(curve) => {
                let (x, y) = brief.split_at(curve.field_bytes());
                Self::Ecc { curve, x: x.to_vec(), y: y.to_vec() }
            }
            None => Self::Rsa { modulus: brief.to_vec(), exponent: EXPONENT },
        }
    }

    /// Whether another key is of the same kind and size.
    pub(crate) fn has_the_shape_of(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }

    /// The EK id of this key: SHA-256 of its [SubjectPublicKeyInfo](Self::spki).
    pub fn ek_id(&self) -> EkId {
        let digest: [u8; 32] = Sha256::digest(self.spki()).into();
        EkId::from(digest)
    }
}

/// A key whose private part nobody can compute, as far as the public key shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoundKey(PublicKey);

impl SoundKey {
    /// Refuses keys whose private part somebody may compute, and points that are not keys at all.
    pub fn new(key: PublicKey) -> Result<Self, WeakKey> {
        match &key {
            PublicKey::Rsa { modulus, exponent } => {
                let bits = bit_length(modulus);
                if bits < MIN_RSA_BITS {
                    return Err(WeakKey::ShortModulus { bits });
                }
                if *exponent != EXPONENT {
                    return Err(WeakKey::Exponent { found: *exponent });
                }
                if modulus.last().is_some_and(|last| last % 2 == 0) {
                    return Err(WeakKey::EvenModulus);
                }
                if is_roca(modulus) {
                    return Err(WeakKey::Roca);
                }
            }
            PublicKey::Ecc { curve, x, y } => {
                let point = [&[SEC1_UNCOMPRESSED], &x[..], &y[..]].concat();
                match ParsedPublicKey::try_from(UnparsedPublicKey::new(curve.ecdh(), point)) {
                    Ok(parsed) if parsed.alg() == curve.ecdh() => {}
                    _ => return Err(WeakKey::NotOnCurve { curve: *curve }),
                }
            }
        }
        Ok(Self(key))
    }
}

impl Deref for SoundKey {
    type Target = PublicKey;

    fn deref(&self) -> &PublicKey {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    /// The kind of key, e.g. `RSA-2048`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rsa { modulus, .. } => write!(f, "RSA-{}", bit_length(modulus)),
            Self::Ecc { curve, .. } => write!(f, "ECC {curve}"),
        }
    }
}

/// The curves of the accepted templates (FIPS 186-4, D.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
}

impl Curve {
    const ALL: [Self; 2] = [Self::P256, Self::P384];

    /// Width of a coordinate in bytes.
    pub const fn field_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }

    /// The curve's `TPM_ECC_CURVE`.
    pub const fn tpm_id(self) -> CurveId {
        match self {
            Self::P256 => CurveId::NIST_P256,
            Self::P384 => CurveId::NIST_P384,
        }
    }

    pub(crate) fn from_tpm(id: CurveId) -> Option<Self> {
        Self::ALL.into_iter().find(|curve| curve.tpm_id() == id)
    }

    pub(crate) fn ecdh(self) -> &'static agreement::Algorithm {
        match self {
            Self::P256 => &ECDH_P256,
            Self::P384 => &ECDH_P384,
        }
    }

    fn oid(self) -> &'static [u8] {
        match self {
            Self::P256 => oid::SECP256R1,
            Self::P384 => oid::SECP384R1,
        }
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tpm_id().fmt(f)
    }
}

/// The bytes are neither an RSA key nor an uncompressed point of P-256 or P-384.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableKey {
    /// It spells out the parameters of its curve, which then need not be a curve at all (RFC 5480
    /// §2.1.1 forbids this).
    #[error(
        "it spells out the parameters of its curve instead of naming the curve, and nobody can \
         rely on such parameters"
    )]
    ExplicitCurve,
    /// It is anything else.
    #[error("it is neither an RSA key nor an uncompressed point of P-256 or P-384")]
    Other,
}

/// Why a key is not sound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum WeakKey {
    #[error("its modulus has {bits} bits, fewer than {MIN_RSA_BITS}")]
    ShortModulus { bits: usize },
    #[error("its exponent is {found} instead of {EXPONENT}")]
    Exponent { found: u32 },
    #[error("its modulus is even")]
    EvenModulus,
    #[error("its modulus has the ROCA form (CVE-2017-15361): its factors can be computed")]
    Roca,
    #[error("its coordinates are not a point of {curve}")]
    NotOnCurve { curve: Curve },
}

fn skip(der: &[u8]) -> Result<&[u8], UnreadableKey> {
    Any::from_der(der).map(|(rest, _)| rest).map_err(|_| UnreadableKey::Other)
}

fn bit_length(modulus: &[u8]) -> usize {
    let significant = strip_leading_zeros(modulus);
    significant.first().map_or(0, |first| 8 * significant.len() - first.leading_zeros() as usize)
}

/// Whether a modulus has the fingerprint of Infineon's RSALib: modulo each small prime it is a
/// power of 65537.
///
/// Nemec et al., "The Return of Coppersmith's Attack", CCS 2017, §2.3. A random modulus has this
/// fingerprint with a probability of about 2^-27.
fn is_roca(modulus: &[u8]) -> bool {
    ROCA_PRIMES
        .iter()
        .zip(&ROCA_POWERS)
        .all(|(prime, powers)| powers.contain(residue(modulus, *prime)))
}

/// A big-endian number modulo a prime.
fn residue(number: &[u8], prime: u32) -> u64 {
    // Four bytes at a time, because the divisions take most of the time and each waits for the one
    // before.
    number.chunks(4).fold(0, |residue, chunk| {
        let shifted = chunk.iter().fold(residue, |number, byte| number << 8 | u64::from(*byte));
        shifted % u64::from(prime)
    })
}

/// Which residues of a prime below 192 are powers of 65537, as a bit set.
struct Powers([u64; 3]);

impl Powers {
    const fn modulo(prime: u32) -> Self {
        let (mut bits, mut power) = ([0; 3], 1);
        loop {
            bits[power as usize / 64] |= 1 << (power % 64);
            power = power * (EXPONENT % prime) % prime;
            if power == 1 {
                return Self(bits);
            }
        }
    }

    fn contain(&self, residue: u64) -> bool {
        self.0[residue as usize / 64] >> (residue % 64) & 1 == 1
    }
}

/// The shortest RSA key of the TCG EK Credential Profile (2.5, B.3.3), and the shortest that NIST
/// SP 800-131A still permits.
const MIN_RSA_BITS: usize = 2048;
/// The exponent of every RSA key of the TCG EK Credential Profile (2.5, B.3.3).
const EXPONENT: u32 = 65537;
/// The primes of the ROCA fingerprint. Those with the smallest share of residues that are powers of
/// 65537 come first, so most moduli fail at the first prime.
const ROCA_PRIMES: [u32; 38] = [
    97, 37, 79, 11, 61, 73, 127, 151, 13, 17, 19, 53, 71, 103, 107, 109, 157, 3, 5, 7, 23, 29, 31,
    41, 43, 47, 59, 67, 83, 89, 101, 113, 131, 137, 139, 149, 163, 167,
];
/// For each of these primes, the residues that have the fingerprint.
static ROCA_POWERS: [Powers; ROCA_PRIMES.len()] = {
    let mut all = [const { Powers([0; 3]) }; ROCA_PRIMES.len()];
    let mut at = 0;
    while at < all.len() {
        all[at] = Powers::modulo(ROCA_PRIMES[at]);
        at += 1;
    }
    all
};
/// First byte of an uncompressed point (SEC 1, 2.3.3).
pub(crate) const SEC1_UNCOMPRESSED: u8 = 4;
/// First byte of a BIT STRING of whole bytes (X.690 §8.6.2.2).
pub(crate) const NO_UNUSED_BITS: u8 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_from_what_stands_for_them() {
        let coordinate = |curve: Curve, byte| vec![byte; curve.field_bytes()];
        let mut keys: Vec<_> = Curve::ALL
            .map(|curve| PublicKey::Ecc { curve, x: coordinate(curve, 1), y: coordinate(curve, 2) })
            .into();
        keys.extend(
            [2048, 3072]
                .map(|bits| PublicKey::Rsa { modulus: vec![0x81; bits / 8], exponent: EXPONENT }),
        );
        for key in keys {
            assert_eq!(PublicKey::from_brief(&key.brief()), key);
        }
    }

    #[test]
    fn residues_are_those_of_long_division() {
        let number: Vec<u8> = (0..=255u8).map(|at| at.wrapping_mul(167).wrapping_add(5)).collect();
        for (length, prime) in
            (1..=number.len()).flat_map(|length| ROCA_PRIMES.map(|prime| (length, prime)))
        {
            let long_division = number[..length]
                .iter()
                .fold(0, |rest, byte| (rest * 256 + u64::from(*byte)) % u64::from(prime));
            assert_eq!(residue(&number[..length], prime), long_division, "{length} {prime}");
        }
    }

    #[test]
    fn roca_residues_are_the_powers_of_65537() {
        for (prime, powers) in ROCA_PRIMES.iter().zip(&ROCA_POWERS) {
            let mut power = 1;
            let expected: Vec<_> = std::iter::repeat_with(|| {
                power = power * u64::from(EXPONENT) % u64::from(*prime);
                power
            })
            .take(*prime as usize)
            .collect();
            for residue in 0..u64::from(*prime) {
                assert_eq!(
                    powers.contain(residue),
                    expected.contains(&residue),
                    "{residue} modulo {prime}"
                );
            }
        }
    }
}
