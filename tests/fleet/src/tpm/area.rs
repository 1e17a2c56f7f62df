//! Public areas (`TPMT_PUBLIC`, TPM 2.0 Part 2, 12.2.4) of the protocol's templates, around given
//! keys.

use clap::ValueEnum;

use super::hash::Hash;

/// Endorsement keys, and the TCG template that each is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum EkKind {
    /// TCG template L-2
    #[value(name = "p-256")]
    P256,
    /// TCG template H-3
    #[value(name = "p-384")]
    P384,
    /// TCG template L-1
    #[value(name = "rsa-2048")]
    Rsa2048,
    /// TCG template H-6
    #[value(name = "rsa-3072")]
    Rsa3072,
}

/// Identity keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum IkKind {
    #[value(name = "p-256")]
    P256,
    #[value(name = "p-384")]
    P384,
    #[value(name = "rsa-2048")]
    Rsa2048,
}

/// Import parents: the storage keys that shared keys are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ParentKind {
    P256,
    Rsa2048,
}

impl EkKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
        }
    }

    /// The NV index that TCG reserves for the certificate of such an EK.
    pub(crate) fn certificate_index(self) -> u32 {
        match self {
            Self::P256 => 0x01C0_000A,
            Self::P384 => 0x01C0_0016,
            Self::Rsa2048 => 0x01C0_0002,
            Self::Rsa3072 => 0x01C0_001C,
        }
    }

    /// nameAlg.
    pub(crate) fn hash(self) -> Hash {
        match self {
            Self::P256 | Self::Rsa2048 => Hash::Sha256,
            Self::P384 | Self::Rsa3072 => Hash::Sha384,
        }
    }

    /// Length of the AES key that protects what is sent to this EK.
    pub(crate) fn aes_key_size(self) -> usize {
        match self {
            Self::P256 | Self::Rsa2048 => 16,
            Self::P384 | Self::Rsa3072 => 32,
        }
    }

    pub(crate) fn is_rsa(self) -> bool {
        matches!(self, Self::Rsa2048 | Self::Rsa3072)
    }

    /// The area of a key. `unique` is the result of [`unique_point`] or [`unique_modulus`].
    pub(crate) fn area(self, unique: &[u8]) -> Vec<u8> {
        let low = (EK_LOW_RANGE, &POLICY_A_SHA256[..]);
        let high = (EK_HIGH_RANGE, &POLICY_B_SHA384[..]);
        let (name_alg, (attributes, policy), symmetric) = match self {
            Self::P256 | Self::Rsa2048 => (SHA256, low, AES_128_CFB),
            Self::P384 | Self::Rsa3072 => (SHA384, high, AES_256_CFB),
        };
        let parameters = match self {
            Self::P256 => [&symmetric[..], &NULL, &P256, &NULL].concat(),
            Self::P384 => [&symmetric[..], &NULL, &P384, &NULL].concat(),
            Self::Rsa2048 => [&symmetric[..], &NULL, &BITS_2048, &DEFAULT_EXPONENT].concat(),
            Self::Rsa3072 => [&symmetric[..], &NULL, &BITS_3072, &DEFAULT_EXPONENT].concat(),
        };
        let algorithm = if self.is_rsa() { RSA } else { ECC };
        [&algorithm[..], &name_alg, &attributes, &sized(policy), &parameters, unique].concat()
    }
}

impl IkKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa2048 => "rsa-2048",
        }
    }

    pub(crate) fn area(self, unique: &[u8]) -> Vec<u8> {
        self.area_with_attributes(IK, unique)
    }

    /// An area that a CA must refuse: the key may leave its TPM.
    pub(crate) fn area_without_fixed_tpm(self, unique: &[u8]) -> Vec<u8> {
        self.area_with_attributes(without_fixed_tpm(IK), unique)
    }

    fn area_with_attributes(self, attributes: [u8; 4], unique: &[u8]) -> Vec<u8> {
        let (algorithm, parameters) = match self {
            Self::P256 => (ECC, [&NULL[..], &ECDSA, &SHA256, &P256, &NULL].concat()),
            Self::P384 => (ECC, [&NULL[..], &ECDSA, &SHA384, &P384, &NULL].concat()),
            Self::Rsa2048 => (RSA, [&NULL[..], &NULL, &BITS_2048, &DEFAULT_EXPONENT].concat()),
        };
        [&algorithm[..], &SHA256, &attributes, &sized(&[]), &parameters, unique].concat()
    }
}

impl ParentKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::Rsa2048 => "rsa-2048",
        }
    }

    pub(crate) fn area(self, unique: &[u8]) -> Vec<u8> {
        self.area_with(IMPORT_PARENT, &IMPORT_OR_LOAD, unique)
    }

    /// An area that a CA must refuse: the key may leave its TPM.
    pub(crate) fn area_without_fixed_tpm(self, unique: &[u8]) -> Vec<u8> {
        self.area_with(without_fixed_tpm(IMPORT_PARENT), &IMPORT_OR_LOAD, unique)
    }

    /// A plain storage root key, which a CA must refuse unless an operator allows it.
    pub(crate) fn area_of_plain_srk(self, unique: &[u8]) -> Vec<u8> {
        self.area_with(SRK, &[], unique)
    }

    fn area_with(self, attributes: [u8; 4], policy: &[u8], unique: &[u8]) -> Vec<u8> {
        let (algorithm, parameters) = match self {
            Self::P256 => (ECC, [&AES_128_CFB[..], &NULL, &P256, &NULL].concat()),
            Self::Rsa2048 => {
                (RSA, [&AES_128_CFB[..], &NULL, &BITS_2048, &DEFAULT_EXPONENT].concat())
            }
        };
        [&algorithm[..], &SHA256, &attributes, &sized(policy), &parameters, unique].concat()
    }
}

/// The HMAC key's area around its `unique` (docs/protocol.md, "The shared key").
pub(crate) fn hmac_key_area(unique: &[u8]) -> Vec<u8> {
    [&KEYEDHASH[..], &SHA256, &HMAC_KEY, &sized(&[]), &HMAC, &SHA256, &sized(unique)].concat()
}

/// `unique` of an elliptic curve key, given as an uncompressed point.
pub(crate) fn unique_point(sec1: &[u8]) -> Vec<u8> {
    let (x, y) = sec1[1..].split_at(sec1.len() / 2);
    [sized(x), sized(y)].concat()
}

/// `unique` of an RSA key.
pub(crate) fn unique_modulus(modulus: &[u8]) -> Vec<u8> {
    sized(modulus)
}

/// `bytes` as a TPM2B.
fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// Clears fixedTPM, bit 1 of TPMA_OBJECT (TPM 2.0 Part 2, 8.3).
fn without_fixed_tpm(mut attributes: [u8; 4]) -> [u8; 4] {
    attributes[3] &= !0x02;
    attributes
}

const RSA: [u8; 2] = [0x00, 0x01];
const KEYEDHASH: [u8; 2] = [0x00, 0x08];
const ECC: [u8; 2] = [0x00, 0x23];
const SHA256: [u8; 2] = [0x00, 0x0b];
const SHA384: [u8; 2] = [0x00, 0x0c];
const NULL: [u8; 2] = [0x00, 0x10];
const HMAC: [u8; 2] = [0x00, 0x05];
const ECDSA: [u8; 2] = [0x00, 0x18];
const P256: [u8; 2] = [0x00, 0x03];
const P384: [u8; 2] = [0x00, 0x04];
const AES_128_CFB: [u8; 6] = [0x00, 0x06, 0x00, 0x80, 0x00, 0x43];
const AES_256_CFB: [u8; 6] = [0x00, 0x06, 0x01, 0x00, 0x00, 0x43];
const BITS_2048: [u8; 2] = 2048u16.to_be_bytes();
const BITS_3072: [u8; 2] = 3072u16.to_be_bytes();
/// 0 stands for 65537.
const DEFAULT_EXPONENT: [u8; 4] = [0; 4];

const EK_LOW_RANGE: [u8; 4] = [0x00, 0x03, 0x00, 0xb2];
const EK_HIGH_RANGE: [u8; 4] = [0x00, 0x03, 0x00, 0xf2];
const IK: [u8; 4] = [0x00, 0x04, 0x04, 0x72];
const IMPORT_PARENT: [u8; 4] = [0x00, 0x03, 0x04, 0x32];
const SRK: [u8; 4] = [0x00, 0x03, 0x04, 0x72];
const HMAC_KEY: [u8; 4] = [0x00, 0x04, 0x04, 0x40];

/// TPM2_PolicyOR of TPM2_PolicyCommandCode(TPM_CC_Import) and TPM2_PolicyCommandCode(TPM_CC_Load).
const IMPORT_OR_LOAD: [u8; 32] = [
    0x1e, 0x76, 0x26, 0xa5, 0xd4, 0xb6, 0x85, 0xcb, 0xb0, 0x49, 0x36, 0xa0, 0xfd, 0xcc, 0x77, 0xb8,
    0xa3, 0xca, 0x3c, 0x37, 0xf4, 0x2a, 0xd4, 0x04, 0x82, 0xbc, 0xf2, 0x75, 0x34, 0xdd, 0x88, 0x7f,
];
/// PolicyA and PolicyB of the TCG EK Credential Profile 2.5, annex B.6.
const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
const POLICY_B_SHA384: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a,
    0x07, 0x41, 0x48, 0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca,
    0xcb, 0x47, 0xba, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];
