//! `TPMT_PUBLIC` of RSA and ECC objects: a strict parser, its exact inverse, and the object's Name.

use std::fmt;

use super::algorithms::{AlgorithmId, CurveId};
use super::kdf::Hash;
use crate::key::{Curve, PublicKey};

/// A TPM public area, `TPMT_PUBLIC` (Part 2, 12.2.4), of an RSA or ECC object.
///
/// Reading an area says nothing about the key. The CA believes an area only once a
/// [template](super::template) has recognised it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicArea {
    /// The hash that makes the object's Name.
    pub name_alg: AlgorithmId,
    /// What the TPM permits the key to do.
    pub attributes: ObjectAttributes,
    /// Digest of the policy that authorises the key; empty if there is none.
    pub auth_policy: Vec<u8>,
    /// How the key protects its children; `None` for `TPM_ALG_NULL`.
    pub symmetric: Option<Symmetric>,
    /// The signing or encryption scheme that the key is bound to; `None` for `TPM_ALG_NULL`.
    pub scheme: Option<Scheme>,
    /// Parameters and value of the key itself.
    pub key: AreaKey,
}

/// The type-specific end of a public area: `TPMS_RSA_PARMS` or `TPMS_ECC_PARMS` and `unique`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AreaKey {
    /// An RSA key (Part 2, 12.2.3.5).
    Rsa {
        /// Length of the modulus in bits, as the area states it.
        key_bits: u16,
        /// Public exponent; 0 means 65537.
        exponent: u32,
        /// Modulus, big-endian, as the TPM wrote it.
        modulus: Vec<u8>,
    },
    /// A key on an elliptic curve (Part 2, 12.2.3.6).
    Ecc {
        /// `TPM_ECC_CURVE` of the key.
        curve: CurveId,
        /// Key derivation scheme; `None` for `TPM_ALG_NULL`.
        kdf: Option<Scheme>,
        /// Affine x coordinate, big-endian, as the TPM wrote it.
        x: Vec<u8>,
        /// Affine y coordinate, big-endian, as the TPM wrote it.
        y: Vec<u8>,
    },
}

/// A block cipher, its key length in bits and its mode: `TPMT_SYM_DEF_OBJECT` (Part 2, 11.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symmetric {
    /// The cipher.
    pub algorithm: AlgorithmId,
    /// Length of its key in bits.
    pub key_bits: u16,
    /// Its mode of operation.
    pub mode: AlgorithmId,
}

impl fmt::Display for Symmetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{} in mode {}", self.algorithm, self.key_bits, self.mode)
    }
}

/// A scheme and its hash: `TPMT_RSA_SCHEME`, `TPMT_ECC_SCHEME`, `TPMT_KDF_SCHEME` (Part 2, 11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    /// The scheme.
    pub algorithm: AlgorithmId,
    /// Its hash; only `TPM_ALG_RSAES` has none.
    pub hash: Option<AlgorithmId>,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hash {
            Some(hash) => write!(f, "{} with {hash}", self.algorithm),
            None => self.algorithm.fmt(f),
        }
    }
}

impl PublicArea {
    /// Reads a `TPMT_PUBLIC`, without the size that a `TPM2B_PUBLIC` puts before it.
    ///
    /// Accepts exactly what [`encode`](Self::encode) can write, and no byte more.
    pub fn parse(bytes: &[u8]) -> Result<Self, AreaError> {
        let mut reader = Reader { rest: bytes };
        let kind = AlgorithmId(reader.u16()?);
        let name_alg = AlgorithmId(reader.u16()?);
        let attributes = ObjectAttributes(reader.u32()?);
        let auth_policy = reader.sized(MAX_DIGEST_BYTES, "authPolicy")?;
        let (symmetric, scheme, key) = match kind {
            AlgorithmId::RSA => (
                reader.symmetric()?,
                reader.scheme("scheme", RSA_SCHEMES)?,
                AreaKey::Rsa {
                    key_bits: reader.u16()?,
                    exponent: reader.u32()?,
                    modulus: reader.sized(MAX_RSA_BYTES, "unique")?,
                },
            ),
            AlgorithmId::ECC => (
                reader.symmetric()?,
                reader.scheme("scheme", ECC_SCHEMES)?,
                AreaKey::Ecc {
                    curve: CurveId(reader.u16()?),
                    kdf: reader.scheme("kdf", KDF_SCHEMES)?,
                    x: reader.sized(MAX_COORDINATE_BYTES, "unique.x")?,
                    y: reader.sized(MAX_COORDINATE_BYTES, "unique.y")?,
                },
            ),
            found => return Err(AreaError::Unsupported { field: "type", found }),
        };
        match reader.rest.len() {
            0 => Ok(Self { name_alg, attributes, auth_policy, symmetric, scheme, key }),
            excess => Err(AreaError::TrailingBytes(excess)),
        }
    }

    /// Writes the area as a TPM writes its `TPMT_PUBLIC`.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * MAX_COORDINATE_BYTES);
        let kind = match self.key {
            AreaKey::Rsa { .. } => AlgorithmId::RSA,
            AreaKey::Ecc { .. } => AlgorithmId::ECC,
        };
        put_u16(&mut out, kind.0);
        put_u16(&mut out, self.name_alg.0);
        out.extend_from_slice(&self.attributes.0.to_be_bytes());
        put_sized(&mut out, &self.auth_policy);
        match self.symmetric {
            None => put_u16(&mut out, AlgorithmId::NULL.0),
            Some(symmetric) => {
                put_u16(&mut out, symmetric.algorithm.0);
                put_u16(&mut out, symmetric.key_bits);
                put_u16(&mut out, symmetric.mode.0);
            }
        }
        put_scheme(&mut out, self.scheme);
        match &self.key {
            AreaKey::Rsa { key_bits, exponent, modulus } => {
                put_u16(&mut out, *key_bits);
                out.extend_from_slice(&exponent.to_be_bytes());
                put_sized(&mut out, modulus);
            }
            AreaKey::Ecc { curve, kdf, x, y } => {
                put_u16(&mut out, curve.0);
                put_scheme(&mut out, *kdf);
                put_sized(&mut out, x);
                put_sized(&mut out, y);
            }
        }
        out
    }

    /// Writes the area with the two-byte size before it: a `TPM2B_PUBLIC`.
    pub fn encode_sized(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_sized(&mut out, &self.encode());
        out
    }

    /// The key in the form that other protocols use, or why the area cannot hold one.
    pub fn public_key(&self) -> Result<PublicKey, AreaError> {
        match &self.key {
            AreaKey::Rsa { exponent, modulus, .. } => Ok(PublicKey::Rsa {
                modulus: modulus.clone(),
                exponent: match *exponent {
                    0 => DEFAULT_EXPONENT,
                    given => given,
                },
            }),
            AreaKey::Ecc { curve, x, y, .. } => {
                let curve = Curve::from_tpm(*curve).ok_or(AreaError::UnsupportedCurve(*curve))?;
                Ok(PublicKey::Ecc { curve, x: x.clone(), y: y.clone() })
            }
        }
    }
}

/// An object's Name: `nameAlg || H_nameAlg(TPMT_PUBLIC)` (Part 1, 16).
#[derive(Clone, PartialEq, Eq)]
pub struct Name(Vec<u8>);

impl Name {
    /// Computes the Name of an encoded public area whose `nameAlg` is `hash`.
    pub fn of(hash: Hash, area: &[u8]) -> Self {
        let mut name = hash.tpm_id().0.to_be_bytes().to_vec();
        name.extend_from_slice(&hash.digest(&[area]));
        Self(name)
    }
}

impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({})", crate::hex(&self.0))
    }
}

/// `TPMA_OBJECT`, what a key may do and what it is bound to (Part 2, 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectAttributes(
    /// The bits on the wire.
    pub u32,
);

#[allow(missing_docs)] // the names are the specification's own
impl ObjectAttributes {
    pub const FIXED_TPM: Self = Self(1 << 1);
    pub const FIXED_PARENT: Self = Self(1 << 4);
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    pub const ADMIN_WITH_POLICY: Self = Self(1 << 7);
    pub const NO_DA: Self = Self(1 << 10);
    pub const RESTRICTED: Self = Self(1 << 16);
    pub const DECRYPT: Self = Self(1 << 17);
    pub const SIGN: Self = Self(1 << 18);
}

impl ObjectAttributes {
    /// The attributes set in `self`, in `other`, or in both.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Names of the attributes in which the two differ, e.g. `fixedTPM|restricted`.
    pub(crate) fn difference_names(self, other: Self) -> String {
        let differing = self.0 ^ other.0;
        let names =
            (0..u32::BITS).filter(|bit| differing & (1 << bit) != 0).map(
                |bit| match ATTRIBUTE_NAMES.iter().find(|(named, _)| *named == bit) {
                    Some((_, name)) => (*name).to_owned(),
                    None => format!("reserved bit {bit}"),
                },
            );
        names.collect::<Vec<_>>().join("|")
    }
}

impl fmt::Display for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// Why bytes are not a public area that this crate reads.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum AreaError {
    #[error("it ends in the middle of a field")]
    Truncated,
    #[error("{0} bytes follow its end")]
    TrailingBytes(usize),
    #[error("its {field} has {found} bytes, more than the {max} any TPM writes")]
    Oversize { field: &'static str, found: usize, max: usize },
    #[error("its {field} is {found}, which no accepted template uses")]
    Unsupported { field: &'static str, found: AlgorithmId },
    #[error("its curve is {0}, which no accepted template uses")]
    UnsupportedCurve(CurveId),
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn u16(&mut self) -> Result<u16, AreaError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(AreaError::Truncated)?;
        self.rest = rest;
        Ok(u16::from_be_bytes(*head))
    }

    fn u32(&mut self) -> Result<u32, AreaError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(AreaError::Truncated)?;
        self.rest = rest;
        Ok(u32::from_be_bytes(*head))
    }

    fn sized(&mut self, max: usize, field: &'static str) -> Result<Vec<u8>, AreaError> {
        let found = usize::from(self.u16()?);
        if found > max {
            return Err(AreaError::Oversize { field, found, max });
        }
        let (head, rest) = self.rest.split_at_checked(found).ok_or(AreaError::Truncated)?;
        self.rest = rest;
        Ok(head.to_vec())
    }

    fn symmetric(&mut self) -> Result<Option<Symmetric>, AreaError> {
        match AlgorithmId(self.u16()?) {
            AlgorithmId::NULL => Ok(None),
            algorithm @ AlgorithmId::AES => Ok(Some(Symmetric {
                algorithm,
                key_bits: self.u16()?,
                mode: AlgorithmId(self.u16()?),
            })),
            found => Err(AreaError::Unsupported { field: "symmetric", found }),
        }
    }

    fn scheme(
        &mut self,
        field: &'static str,
        with_hash: &[AlgorithmId],
    ) -> Result<Option<Scheme>, AreaError> {
        match AlgorithmId(self.u16()?) {
            AlgorithmId::NULL => Ok(None),
            algorithm @ AlgorithmId::RSAES => Ok(Some(Scheme { algorithm, hash: None })),
            algorithm if with_hash.contains(&algorithm) => {
                Ok(Some(Scheme { algorithm, hash: Some(AlgorithmId(self.u16()?)) }))
            }
            found => Err(AreaError::Unsupported { field, found }),
        }
    }
}

pub(crate) fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends a `TPM2B`: a two-byte length and the bytes.
pub(crate) fn put_sized(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("TPM structures are far below 64 KiB");
    put_u16(out, length);
    out.extend_from_slice(bytes);
}

fn put_scheme(out: &mut Vec<u8>, scheme: Option<Scheme>) {
    let Some(scheme) = scheme else {
        return put_u16(out, AlgorithmId::NULL.0);
    };
    put_u16(out, scheme.algorithm.0);
    if let Some(hash) = scheme.hash {
        put_u16(out, hash.0);
    }
}

/// The meaning of an `exponent` of 0 (Part 2, 12.2.3.5).
const DEFAULT_EXPONENT: u32 = 65537;

/// The longest digest of the library specification: SHA-512.
const MAX_DIGEST_BYTES: usize = 64;
/// RSA-4096, the longest RSA key that a TPM profile names.
const MAX_RSA_BYTES: usize = 512;
/// P-521, the longest curve that the library specification names.
const MAX_COORDINATE_BYTES: usize = 66;

const RSA_SCHEMES: &[AlgorithmId] = &[AlgorithmId::RSASSA, AlgorithmId::RSAPSS, AlgorithmId::OAEP];
const ECC_SCHEMES: &[AlgorithmId] = &[AlgorithmId::ECDSA, AlgorithmId::ECDH];
const KDF_SCHEMES: &[AlgorithmId] = &[
    AlgorithmId::MGF1,
    AlgorithmId::KDF1_SP800_56A,
    AlgorithmId::KDF2,
    AlgorithmId::KDF1_SP800_108,
];

/// Bit numbers and names of `TPMA_OBJECT` (Part 2, table 31).
const ATTRIBUTE_NAMES: &[(u32, &str)] = &[
    (1, "fixedTPM"),
    (2, "stClear"),
    (4, "fixedParent"),
    (5, "sensitiveDataOrigin"),
    (6, "userWithAuth"),
    (7, "adminWithPolicy"),
    (10, "noDA"),
    (11, "encryptedDuplication"),
    (16, "restricted"),
    (17, "decrypt"),
    (18, "sign"),
    (19, "x509sign"),
];
