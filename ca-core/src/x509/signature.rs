//! The accepted signatures: ECDSA on NIST's curves and RSA, with SHA-256 or longer.

use aws_lc_rs::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::der::{Reader, strip_leading_zeros, tag};
use crate::key::{NO_UNUSED_BITS, SEC1_UNCOMPRESSED};
use crate::oid;

/// The algorithm with which a certificate is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SignatureAlgorithm {
    /// RSASSA-PKCS1-v1_5 (RFC 8017 §8.2).
    RsaPkcs1(Hash),
    /// RSASSA-PSS with one hash for both purposes and a salt as long as the hash (RFC 8017 §8.1,
    /// RFC 4055 §3.1).
    RsaPss(Hash),
    /// ECDSA (FIPS 186-5 §6).
    Ecdsa(Hash),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// A key that signs certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VerifyingKey {
    Rsa {
        /// An RSAPublicKey in DER (RFC 8017, appendix A.1.1).
        key: Vec<u8>,
        bits: usize,
        /// Set if the key has the type `id-RSASSA-PSS` and so signs only with PSS (RFC 4055 §1.2).
        /// The inner value is the only hash that it allows, if it names one.
        only_pss: Option<Option<Hash>>,
    },
    Ecc {
        curve: Curve,
        /// Uncompressed.
        point: Vec<u8>,
    },
}

/// The curves that vendors' CAs use. EKs are on the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Curve {
    P256,
    P384,
    P521,
}

/// A signature or a key of a kind that is not accepted. The text is a sentence without its subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    #[error(
        "is signed with {0}, and such a signature can be forged; its vendor must issue another, \
         signed with SHA-256 or longer"
    )]
    BrokenHash(&'static str),
    #[error(
        "is signed by the algorithm {0}; accepted are RSA (PKCS #1 and PSS) and ECDSA with \
         SHA-256, SHA-384 or SHA-512"
    )]
    Algorithm(String),
    #[error(
        "is signed by RSA-PSS with parameters that are not accepted; both hashes must be the same \
         one of SHA-256, SHA-384 and SHA-512, and the salt must be as long as that hash"
    )]
    PssParameters,
    #[error("has an RSA key of {bits} bits; accepted are {MIN_RSA_BITS} to {MAX_RSA_BITS}")]
    RsaLength { bits: usize },
    #[error("has an RSA key whose public exponent is not an odd number from 3 to 65537")]
    RsaExponent,
    #[error(
        "spells out the parameters of its key's curve instead of naming the curve, and nobody can \
         rely on such parameters; accepted are the names P-256, P-384 and P-521"
    )]
    ExplicitCurve,
    #[error("has a key of the type {0}; accepted are RSA, and ECC on P-256, P-384 or P-521")]
    Key(String),
    #[error("has a key that cannot be read")]
    UnreadableKey,
}

impl SignatureAlgorithm {
    pub(crate) fn read(algorithm: &AlgorithmIdentifier<'_>) -> Result<Self, Unsupported> {
        match algorithm.algorithm.as_bytes() {
            oid::SHA256_WITH_RSA => Ok(Self::RsaPkcs1(Hash::Sha256)),
            oid::SHA384_WITH_RSA => Ok(Self::RsaPkcs1(Hash::Sha384)),
            oid::SHA512_WITH_RSA => Ok(Self::RsaPkcs1(Hash::Sha512)),
            oid::ECDSA_WITH_SHA256 => Ok(Self::Ecdsa(Hash::Sha256)),
            oid::ECDSA_WITH_SHA384 => Ok(Self::Ecdsa(Hash::Sha384)),
            oid::ECDSA_WITH_SHA512 => Ok(Self::Ecdsa(Hash::Sha512)),
            oid::RSASSA_PSS => {
                pss_hash(algorithm).map(Self::RsaPss).ok_or(Unsupported::PssParameters)
            }
            oid::SHA1_WITH_RSA | oid::ECDSA_WITH_SHA1 => Err(Unsupported::BrokenHash("SHA-1")),
            oid::MD5_WITH_RSA => Err(Unsupported::BrokenHash("MD5")),
            other => Err(Unsupported::Algorithm(oid::dotted(other))),
        }
    }
}

impl VerifyingKey {
    pub(crate) fn read(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, Unsupported> {
        let key = &*spki.subject_public_key.data;
        if spki.subject_public_key.unused_bits != NO_UNUSED_BITS {
            return Err(Unsupported::UnreadableKey);
        }
        match spki.algorithm.algorithm.as_bytes() {
            oid::EC_PUBLIC_KEY => read_ecc(&spki.algorithm, key),
            oid::RSA_ENCRYPTION => read_rsa(key, None),
            oid::RSASSA_PSS => {
                let hash = match &spki.algorithm.parameters {
                    None => None,
                    Some(_) => Some(pss_hash(&spki.algorithm).ok_or(Unsupported::PssParameters)?),
                };
                read_rsa(key, Some(hash))
            }
            other => Err(Unsupported::Key(oid::dotted(other))),
        }
    }

    /// Whether this key can make signatures of this kind.
    pub(crate) fn fits(&self, algorithm: SignatureAlgorithm) -> bool {
        match (self, algorithm) {
            (
                Self::Rsa { only_pss: None, .. },
                SignatureAlgorithm::RsaPkcs1(_) | SignatureAlgorithm::RsaPss(_),
            )
            | (Self::Rsa { only_pss: Some(None), .. }, SignatureAlgorithm::RsaPss(_))
            | (Self::Ecc { .. }, SignatureAlgorithm::Ecdsa(_)) => true,
            (Self::Rsa { only_pss: Some(Some(only)), .. }, SignatureAlgorithm::RsaPss(hash)) => {
                *only == hash
            }
            _ => false,
        }
    }

    /// Whether this key signed `message`. AWS-LC accepts an ECDSA signature only in DER, and an RSA
    /// signature only if it is as long as the modulus.
    pub(crate) fn verifies(
        &self,
        algorithm: SignatureAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> bool {
        let (verifier, key): (&'static dyn VerificationAlgorithm, _) = match (self, algorithm) {
            (Self::Rsa { key, .. }, SignatureAlgorithm::RsaPkcs1(hash)) if self.fits(algorithm) => {
                (rsa_pkcs1(hash), key)
            }
            (Self::Rsa { key, .. }, SignatureAlgorithm::RsaPss(hash)) if self.fits(algorithm) => {
                (rsa_pss(hash), key)
            }
            (Self::Ecc { curve, point }, SignatureAlgorithm::Ecdsa(hash)) => {
                (ecdsa(*curve, hash), point)
            }
            _ => return false,
        };
        UnparsedPublicKey::new(verifier, key).verify(message, signature).is_ok()
    }
}

impl std::fmt::Display for VerifyingKey {
    /// The kind of key, e.g. `RSA-2048`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rsa { bits, .. } => write!(f, "RSA-{bits}"),
            Self::Ecc { curve: Curve::P256, .. } => f.write_str("ECC P-256"),
            Self::Ecc { curve: Curve::P384, .. } => f.write_str("ECC P-384"),
            Self::Ecc { curve: Curve::P521, .. } => f.write_str("ECC P-521"),
        }
    }
}

fn read_ecc(algorithm: &AlgorithmIdentifier<'_>, key: &[u8]) -> Result<VerifyingKey, Unsupported> {
    let parameters = algorithm.parameters.as_ref().ok_or(Unsupported::UnreadableKey)?;
    if parameters.header.raw_tag() != Some(&[tag::OID]) {
        return Err(Unsupported::ExplicitCurve);
    }
    let (curve, field_bytes) = match parameters.data {
        oid::SECP256R1 => (Curve::P256, 32),
        oid::SECP384R1 => (Curve::P384, 48),
        oid::SECP521R1 => (Curve::P521, 66),
        other => return Err(Unsupported::Key(format!("ECC on the curve {}", oid::dotted(other)))),
    };
    if key.first() != Some(&SEC1_UNCOMPRESSED) || key.len() != 1 + 2 * field_bytes {
        return Err(Unsupported::UnreadableKey);
    }
    Ok(VerifyingKey::Ecc { curve, point: key.to_vec() })
}

fn read_rsa(key: &[u8], only_pss: Option<Option<Hash>>) -> Result<VerifyingKey, Unsupported> {
    let Ok((&[], rsa)) = RSAPublicKey::from_der(key) else {
        return Err(Unsupported::UnreadableKey);
    };
    let modulus = strip_leading_zeros(rsa.modulus);
    let bits =
        modulus.first().map_or(0, |first| 8 * modulus.len() - first.leading_zeros() as usize);
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(Unsupported::RsaLength { bits });
    }
    match rsa.try_exponent() {
        Ok(exponent) if exponent % 2 == 1 && (3..=MAX_RSA_EXPONENT).contains(&exponent) => {}
        _ => return Err(Unsupported::RsaExponent),
    }
    Ok(VerifyingKey::Rsa { key: key.to_vec(), bits, only_pss })
}

/// The hash in RSASSA-PSS-params (RFC 4055 §3.1); `None` if the parameters are not accepted. Absent
/// fields would mean SHA-1.
fn pss_hash(algorithm: &AlgorithmIdentifier<'_>) -> Option<Hash> {
    let parameters = algorithm.parameters.as_ref()?;
    if parameters.header.raw_tag() != Some(&[tag::SEQUENCE]) {
        return None;
    }
    let mut fields = Reader::new(parameters.data);
    let hash = hash_of(fields.take(tag::CONTEXT_0)?)?;
    let mut mask = Reader::new(Reader::only(tag::SEQUENCE, fields.take(tag::CONTEXT_1)?)?);
    let (mask_type, mask_hash) = (mask.take(tag::OID)?, mask.next()?);
    if mask_type != oid::MGF1 || hash_of(mask_hash.whole)? != hash || !mask.is_empty() {
        return None;
    }
    let salt = Reader::only(tag::INTEGER, fields.take(CONTEXT_2)?)?;
    let trailer = if fields.is_at(CONTEXT_3) {
        Reader::only(tag::INTEGER, fields.take(CONTEXT_3)?)?
    } else {
        &[1]
    };
    (salt == [hash.bytes()] && trailer == [1] && fields.is_empty()).then_some(hash)
}

/// The hash that an AlgorithmIdentifier names, with NULL or no parameters (RFC 4055 §2.1).
fn hash_of(algorithm: &[u8]) -> Option<Hash> {
    let mut fields = Reader::new(Reader::only(tag::SEQUENCE, algorithm)?);
    let hash = match fields.take(tag::OID)? {
        oid::SHA256 => Hash::Sha256,
        oid::SHA384 => Hash::Sha384,
        oid::SHA512 => Hash::Sha512,
        _ => return None,
    };
    (fields.is_empty() || fields.take(tag::NULL)?.is_empty() && fields.is_empty()).then_some(hash)
}

impl Hash {
    const fn bytes(self) -> u8 {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

fn rsa_pkcs1(hash: Hash) -> &'static dyn VerificationAlgorithm {
    match hash {
        Hash::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        Hash::Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        Hash::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
    }
}

fn rsa_pss(hash: Hash) -> &'static dyn VerificationAlgorithm {
    match hash {
        Hash::Sha256 => &signature::RSA_PSS_2048_8192_SHA256,
        Hash::Sha384 => &signature::RSA_PSS_2048_8192_SHA384,
        Hash::Sha512 => &signature::RSA_PSS_2048_8192_SHA512,
    }
}

fn ecdsa(curve: Curve, hash: Hash) -> &'static dyn VerificationAlgorithm {
    match (curve, hash) {
        (Curve::P256, Hash::Sha256) => &signature::ECDSA_P256_SHA256_ASN1,
        (Curve::P256, Hash::Sha384) => &signature::ECDSA_P256_SHA384_ASN1,
        (Curve::P256, Hash::Sha512) => &signature::ECDSA_P256_SHA512_ASN1,
        (Curve::P384, Hash::Sha256) => &signature::ECDSA_P384_SHA256_ASN1,
        (Curve::P384, Hash::Sha384) => &signature::ECDSA_P384_SHA384_ASN1,
        (Curve::P384, Hash::Sha512) => &signature::ECDSA_P384_SHA512_ASN1,
        (Curve::P521, Hash::Sha256) => &signature::ECDSA_P521_SHA256_ASN1,
        (Curve::P521, Hash::Sha384) => &signature::ECDSA_P521_SHA384_ASN1,
        (Curve::P521, Hash::Sha512) => &signature::ECDSA_P521_SHA512_ASN1,
    }
}

/// The shortest that NIST SP 800-131A permits.
const MIN_RSA_BITS: usize = 2048;
/// The longest that vendors use. Longer keys only cost time, and strangers choose the keys that
/// they send.
const MAX_RSA_BITS: usize = 4096;
/// F4. Larger exponents only cost time.
const MAX_RSA_EXPONENT: u64 = 65537;
/// `[2]` and `[3] EXPLICIT`.
const CONTEXT_2: u8 = 0xA2;
const CONTEXT_3: u8 = 0xA3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl dgst -sha384 -sign` and similar commands: curve, hash, point, signature of
    /// `message`.
    const BY_OPENSSL: [(Curve, Hash, &str, &str); 4] = [
        (
            Curve::P256,
            Hash::Sha384,
            "04b0cfccfb1d9bcf2dfa3b01661ecf1b3b8437f47bdcda82d844652f7976c552d4604fb6f8a921fa751e\
             f9cde1735b5bf6a6682e881a0c4ab598b0f2310ae9c6b4",
            "3046022100b8274cce4c433bbc7a3abb8459e2cc5f8cab0257d307a16a1d779265bea6ee9c022100d12f\
             006fea8603b91b0170cbcc3a82aafcb19ebf04309958590d1a09ceb34e2b",
        ),
        (
            Curve::P256,
            Hash::Sha512,
            "04cc1c73e233234bcc22a10a7dbf40bd0d1a89f462cdb9a996b3a1b708a20477ed2ba7d49633c6d48148\
             9fe9ff50f87a224c505c48b0043c5f9936768ecacfcd48",
            "3045022100e09c9ae04dff699ffdc06d4b4d48330d4e838bd9f775c54bd2774693c16bc1af0220131eff\
             a010894dae0b46a7c0ac0afd40a9f9540231fd04fda8f8ac001895a05b",
        ),
        (
            Curve::P384,
            Hash::Sha256,
            "0490660148282416c21ba2a41bcf199febeb0831f5243b35eea6a3b3e553f4902594fea80cc6a7f611f2\
             ac467edf01c2358da63d0c3027c4a9d9001423ad4d6102e993f8bbaa3d478fbcde0dec77da33cb25f5ed\
             eaf8411c5adabef4d58438f15a",
            "3065023021184fcf4dfce0acc473f63de52f843518ddd2a6b3ee0e9f0bc4bab1499f4d087434dda4aa41\
             733257910f7bdcaf73e0023100f2fceaa4587bce8c1c4e0086b64f4a7cecf378eb54cca09c580840f9db\
             48395ac0882fc5a5769799b2622deb5c5efe1e",
        ),
        (
            Curve::P384,
            Hash::Sha512,
            "04a22a994b7ef3d0eb551f555a99aa9389069316a180e98eec8abee1468097e2040423e45a5925192e4e\
             a1790ffe2921f224dcc7e3f8b1e32b595df58895e92222ed41f873313d982e1b4819512e1bb9245fdbd6\
             1dd68a7b8e193db9ebf5cedb78",
            "30660231009250e9a71facbcde0da4da4f4b6e5c7217c1dead0dc4ecefb85d06e89058acca2b7a510bb6\
             f69ac5db9487bf31fc11180231009161c2e45a1f105e6737db27b71fc79dcfcc7a681636f4727f38737d\
             e1b27a9e5223a05f2f06d9d7cc0348bb83cc1018",
        ),
    ];

    #[test]
    fn curves_and_hashes_need_not_be_of_one_size() {
        for (curve, hash, point, signature) in BY_OPENSSL {
            let bytes = |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
            let key = VerifyingKey::Ecc { curve, point: bytes(point) };
            let verifies = |hash, message| {
                key.verifies(SignatureAlgorithm::Ecdsa(hash), message, &bytes(signature))
            };
            assert!(verifies(hash, b"message"), "{curve:?} {hash:?}");
            assert!(!verifies(hash, b"massage"));
            for other in [Hash::Sha256, Hash::Sha384, Hash::Sha512] {
                assert_eq!(
                    verifies(other, b"message"),
                    other == hash,
                    "{curve:?} {hash:?} {other:?}"
                );
            }
        }
    }
}
