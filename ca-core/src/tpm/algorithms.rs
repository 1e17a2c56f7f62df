//! Numbers of algorithms and curves (TPM 2.0 Part 2, 6.3 and 6.4).

use std::fmt;

/// A `TPM_ALG_ID` (Part 2, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlgorithmId(
    /// The number on the wire.
    pub u16,
);

#[allow(missing_docs)] // the names are the specification's own
impl AlgorithmId {
    pub const RSA: Self = Self(0x0001);
    pub const SHA1: Self = Self(0x0004);
    pub const HMAC: Self = Self(0x0005);
    pub const AES: Self = Self(0x0006);
    pub const MGF1: Self = Self(0x0007);
    pub const KEYEDHASH: Self = Self(0x0008);
    pub const SHA256: Self = Self(0x000B);
    pub const SHA384: Self = Self(0x000C);
    pub const SHA512: Self = Self(0x000D);
    pub const NULL: Self = Self(0x0010);
    pub const RSASSA: Self = Self(0x0014);
    pub const RSAES: Self = Self(0x0015);
    pub const RSAPSS: Self = Self(0x0016);
    pub const OAEP: Self = Self(0x0017);
    pub const ECDSA: Self = Self(0x0018);
    pub const ECDH: Self = Self(0x0019);
    pub const KDF1_SP800_56A: Self = Self(0x0020);
    pub const KDF2: Self = Self(0x0021);
    pub const KDF1_SP800_108: Self = Self(0x0022);
    pub const ECC: Self = Self(0x0023);
    pub const CFB: Self = Self(0x0043);
}

impl fmt::Display for AlgorithmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::RSA => "RSA",
            Self::SHA1 => "SHA-1",
            Self::HMAC => "HMAC",
            Self::AES => "AES",
            Self::MGF1 => "MGF1",
            Self::KEYEDHASH => "KEYEDHASH",
            Self::SHA256 => "SHA-256",
            Self::SHA384 => "SHA-384",
            Self::SHA512 => "SHA-512",
            Self::NULL => "NULL",
            Self::RSASSA => "RSASSA",
            Self::RSAES => "RSAES",
            Self::RSAPSS => "RSAPSS",
            Self::OAEP => "OAEP",
            Self::ECDSA => "ECDSA",
            Self::ECDH => "ECDH",
            Self::KDF1_SP800_56A => "KDF1-SP800-56A",
            Self::KDF2 => "KDF2",
            Self::KDF1_SP800_108 => "KDF1-SP800-108",
            Self::ECC => "ECC",
            Self::CFB => "CFB",
            Self(other) => return write!(f, "algorithm {other:#06x}"),
        };
        f.write_str(name)
    }
}

/// A `TPM_ECC_CURVE` (Part 2, 6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurveId(
    /// The number on the wire.
    pub u16,
);

#[allow(missing_docs)] // the names are the specification's own
impl CurveId {
    pub const NIST_P256: Self = Self(0x0003);
    pub const NIST_P384: Self = Self(0x0004);
}

impl fmt::Display for CurveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NIST_P256 => f.write_str("P-256"),
            Self::NIST_P384 => f.write_str("P-384"),
            Self(other) => write!(f, "curve {other:#06x}"),
        }
    }
}
