//! The templates of the keys that we create, and how to recognise such keys.

use assay_device_core::{EkKind, IkKind, ParentKind};
use tpm2_protocol::basic::{TpmBuffer, TpmUint16};
use tpm2_protocol::data::{
    Tpm2bDigest, TpmAlgId, TpmEccCurve, TpmaObject, TpmsEccParms, TpmsEccPoint, TpmsKeyedhashParms,
    TpmsRsaParms, TpmsSchemeHash, TpmtEccScheme, TpmtKeyedhashScheme, TpmtPublic, TpmtSymDef,
    TpmuAsymScheme, TpmuKeyedhashScheme, TpmuPublicId, TpmuPublicParms, TpmuSymKeyBits,
    TpmuSymMode,
};

/// The EK templates L-1, L-2, H-3 and H-6 (TCG EK Credential Profile 2.5, annexes B.3 and B.4), and
/// Azure's variant of L-1.
pub(super) fn ek(kind: EkKind) -> TpmtPublic {
    let low = |key| TpmtPublic {
        name_alg: TpmAlgId::Sha256,
        object_attributes: EK_LOW_RANGE,
        auth_policy: filled(&POLICY_A_SHA256),
        ..key
    };
    let high = |key| TpmtPublic {
        name_alg: TpmAlgId::Sha384,
        object_attributes: EK_LOW_RANGE | TpmaObject::USER_WITH_AUTH,
        auth_policy: filled(&POLICY_B_SHA384),
        ..key
    };
    match kind {
        EkKind::P256 => {
            low(ecc(TpmEccCurve::NistP256, TpmtEccScheme::default(), aes_cfb(128), &[0; 32]))
        }
        EkKind::P384 => {
            high(ecc(TpmEccCurve::NistP384, TpmtEccScheme::default(), aes_cfb(256), &[]))
        }
        EkKind::Rsa2048 => low(rsa(2048, aes_cfb(128), &[0; 256])),
        EkKind::Rsa3072 => high(rsa(3072, aes_cfb(256), &[])),
        EkKind::LegacyDps => without_key(&ek(EkKind::Rsa2048)),
    }
}

/// The template with a manufacturer's nonce in the field of the key, padded with zeros. For a
/// point, that is its x (TCG EK Credential Profile 2.5, B.2).
pub(super) fn with_nonce(template: TpmtPublic, nonce: &[u8]) -> TpmtPublic {
    let padded = |size: usize| -> Vec<u8> {
        nonce.iter().copied().chain(std::iter::repeat(0)).take(size).collect()
    };
    let unique = match &template.parameters {
        TpmuPublicParms::Rsa(_) => TpmuPublicId::Rsa(filled(&padded(256))),
        _ => TpmuPublicId::Ecc(TpmsEccPoint { x: filled(&padded(32)), y: filled(&[0; 32]) }),
    };
    TpmtPublic { unique, ..template }
}

/// An identity key. The TPM makes it, and it cannot leave the TPM. It signs, and is not restricted,
/// because a TLS signature covers a digest made outside the TPM. It has no password, so it needs no
/// protection against dictionary attacks.
pub(super) fn ik(kind: IkKind) -> TpmtPublic {
    let none = TpmtSymDef::default();
    let key = match kind {
        IkKind::P256 => ecc(TpmEccCurve::NistP256, ecdsa(TpmAlgId::Sha256), none, &[]),
        IkKind::P384 => ecc(TpmEccCurve::NistP384, ecdsa(TpmAlgId::Sha384), none, &[]),
        // Without a scheme, because the CSR uses RSASSA and TLS 1.3 uses RSAPSS.
        IkKind::Rsa2048 => rsa(2048, none, &[]),
    };
    let object_attributes =
        MADE_HERE | TpmaObject::USER_WITH_AUTH | TpmaObject::NO_DA | TpmaObject::SIGN_ENCRYPT;
    TpmtPublic { name_alg: TpmAlgId::Sha256, object_attributes, ..key }
}

/// A storage root key (TCG TPM v2.0 Provisioning Guidance, 7.5.1), or an import parent. An import
/// parent takes a policy and no password.
pub(super) fn parent(kind: ParentKind) -> TpmtPublic {
    let key = match kind {
        ParentKind::P256 | ParentKind::SrkP256 => {
            ecc(TpmEccCurve::NistP256, TpmtEccScheme::default(), aes_cfb(128), &[0; 32])
        }
        ParentKind::Rsa2048 | ParentKind::SrkRsa2048 => rsa(2048, aes_cfb(128), &[0; 256]),
    };
    let (authorisation, auth_policy) = match kind.is_plain_srk() {
        true => (TpmaObject::USER_WITH_AUTH, Tpm2bDigest::default()),
        false => (TpmaObject::empty(), filled(&POLICY_IMPORT_OR_LOAD)),
    };
    let object_attributes =
        MADE_HERE | authorisation | TpmaObject::NO_DA | DECRYPTS_ONLY_FOR_THE_TPM;
    TpmtPublic { name_alg: TpmAlgId::Sha256, object_attributes, auth_policy, ..key }
}

/// The branches of an import parent's policy, for TPM2_PolicyOR: TPM2_PolicyCommandCode of
/// TPM_CC_Import, and of TPM_CC_Load.
pub(super) const IMPORT_PARENT_BRANCHES: [[u8; 32]; 2] = [
    [
        0xE1, 0xFD, 0xC3, 0x8A, 0x23, 0x80, 0x6D, 0xCF, 0x62, 0x09, 0x7B, 0xCB, 0x06, 0x74, 0x0E,
        0x33, 0xCA, 0x36, 0x90, 0xDC, 0x21, 0xA7, 0x00, 0x0C, 0x41, 0xE0, 0xE8, 0x1C, 0x4B, 0x9B,
        0x36, 0x5A,
    ],
    [
        0x43, 0x0E, 0xD9, 0x47, 0x58, 0x15, 0xDE, 0xB6, 0x1C, 0x7E, 0x4A, 0x88, 0xEB, 0x44, 0xFE,
        0x5A, 0x83, 0xFA, 0x17, 0xB9, 0x7C, 0xF6, 0xCE, 0xE4, 0xA8, 0x42, 0x0B, 0x3E, 0xF5, 0x0B,
        0x13, 0x4F,
    ],
];

/// An HMAC key from a CA: made outside the TPM, without a password, and for HMAC-SHA-256 alone.
pub(super) fn hmac_key() -> TpmtPublic {
    let details = TpmuKeyedhashScheme::Hmac(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 });
    let scheme = TpmtKeyedhashScheme { scheme: TpmAlgId::Hmac, details };
    TpmtPublic {
        object_type: TpmAlgId::KeyedHash,
        name_alg: TpmAlgId::Sha256,
        object_attributes: TpmaObject::USER_WITH_AUTH
            | TpmaObject::NO_DA
            | TpmaObject::SIGN_ENCRYPT,
        auth_policy: Tpm2bDigest::default(),
        parameters: TpmuPublicParms::KeyedHash(TpmsKeyedhashParms { scheme }),
        unique: TpmuPublicId::KeyedHash(Tpm2bDigest::default()),
    }
}

/// AES in cipher feedback mode.
pub(super) fn aes_cfb(key_bits: u16) -> TpmtSymDef {
    TpmtSymDef {
        algorithm: TpmAlgId::Aes,
        key_bits: TpmuSymKeyBits::Aes(TpmUint16::new(key_bits)),
        mode: TpmuSymMode::Aes(TpmAlgId::Cfb),
    }
}

/// Whether a key equals a template, except for the key itself.
pub(super) fn fits(public: &TpmtPublic, template: &TpmtPublic) -> bool {
    without_key(public) == without_key(template)
}

/// Whether a key has one of the shapes that this module gives.
pub(super) fn is_ours(public: &TpmtPublic) -> bool {
    let templates = ParentKind::ALL
        .map(parent)
        .into_iter()
        .chain(EkKind::ALL.map(ek))
        .chain(IkKind::ALL.map(ik));
    templates.chain([hmac_key()]).any(|template| fits(public, &template))
}

/// Whether a key can be the parent of an IK: it cannot leave the TPM (TPM 2.0 Part 1, 25.2), and
/// takes an empty password that nobody can lock out.
pub(super) fn is_storage_key(public: &TpmtPublic) -> bool {
    let required = TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::USER_WITH_AUTH
        | TpmaObject::NO_DA
        | DECRYPTS_ONLY_FOR_THE_TPM;
    public.object_attributes & (required | TpmaObject::SIGN_ENCRYPT) == required
}

/// Whether a password authorises the use of a key.
pub(super) fn has_password(public: &TpmtPublic) -> bool {
    public.object_attributes.contains(TpmaObject::USER_WITH_AUTH)
}

/// A key in a few words, e.g. `an elliptic curve key with attributes 0x00030072`.
pub(super) fn describe(public: &TpmtPublic) -> String {
    if let Some(kind) = IkKind::ALL.into_iter().find(|&kind| fits(public, &ik(kind))) {
        return format!("an identity key of kind {kind}");
    }
    if fits(public, &hmac_key()) {
        return "an HMAC key that is not this device's".into();
    }
    let algorithm = match public.object_type {
        TpmAlgId::Rsa => "an RSA key",
        TpmAlgId::Ecc => "an elliptic curve key",
        TpmAlgId::KeyedHash => "another kind of HMAC key, or sealed data,",
        _ => "a symmetric key",
    };
    format!("{algorithm} with attributes {:#010x}", public.object_attributes.bits())
}

fn ecc(
    curve: TpmEccCurve,
    scheme: TpmtEccScheme,
    symmetric: TpmtSymDef,
    coordinate: &[u8],
) -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::Ecc,
        parameters: TpmuPublicParms::Ecc(TpmsEccParms {
            symmetric,
            scheme,
            curve_id: curve,
            kdf: Default::default(),
        }),
        unique: TpmuPublicId::Ecc(TpmsEccPoint { x: filled(coordinate), y: filled(coordinate) }),
        ..TpmtPublic::default()
    }
}

/// The public exponent is 65537. A 0 stands for it (TPM 2.0 Part 2, 12.2.3.5).
fn rsa(key_bits: u16, symmetric: TpmtSymDef, modulus: &[u8]) -> TpmtPublic {
    TpmtPublic {
        object_type: TpmAlgId::Rsa,
        parameters: TpmuPublicParms::Rsa(TpmsRsaParms {
            symmetric,
            scheme: Default::default(),
            key_bits: TpmUint16::new(key_bits),
            exponent: 0.into(),
        }),
        unique: TpmuPublicId::Rsa(filled(modulus)),
        ..TpmtPublic::default()
    }
}

fn ecdsa(hash_alg: TpmAlgId) -> TpmtEccScheme {
    TpmtEccScheme {
        scheme: TpmAlgId::Ecdsa,
        details: TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg }),
    }
}

fn without_key(public: &TpmtPublic) -> TpmtPublic {
    let unique = match public.unique {
        TpmuPublicId::Rsa(_) => TpmuPublicId::Rsa(Default::default()),
        TpmuPublicId::Ecc(_) => TpmuPublicId::Ecc(TpmsEccPoint::default()),
        TpmuPublicId::KeyedHash(_) => TpmuPublicId::KeyedHash(Default::default()),
        TpmuPublicId::SymCipher(_) => TpmuPublicId::SymCipher(Default::default()),
        _ => TpmuPublicId::Null,
    };
    TpmtPublic { unique, ..public.clone() }
}

fn filled<const CAPACITY: usize>(bytes: &[u8]) -> TpmBuffer<CAPACITY> {
    // Unwrap safety: the templates' policies and keys are no longer than the longest digest and
    // key.
    TpmBuffer::try_from(bytes).unwrap()
}

const MADE_HERE: TpmaObject = TpmaObject::from_bits_truncate(
    TpmaObject::FIXED_TPM.bits()
        | TpmaObject::FIXED_PARENT.bits()
        | TpmaObject::SENSITIVE_DATA_ORIGIN.bits(),
);
const DECRYPTS_ONLY_FOR_THE_TPM: TpmaObject =
    TpmaObject::from_bits_truncate(TpmaObject::RESTRICTED.bits() | TpmaObject::DECRYPT.bits());
/// TCG EK Credential Profile 2.5, B.3.2.
const EK_LOW_RANGE: TpmaObject = TpmaObject::from_bits_truncate(
    MADE_HERE.bits() | TpmaObject::ADMIN_WITH_POLICY.bits() | DECRYPTS_ONLY_FOR_THE_TPM.bits(),
);
/// TPM2_PolicyOR of [`IMPORT_PARENT_BRANCHES`].
const POLICY_IMPORT_OR_LOAD: [u8; 32] = [
    0x1E, 0x76, 0x26, 0xA5, 0xD4, 0xB6, 0x85, 0xCB, 0xB0, 0x49, 0x36, 0xA0, 0xFD, 0xCC, 0x77, 0xB8,
    0xA3, 0xCA, 0x3C, 0x37, 0xF4, 0x2A, 0xD4, 0x04, 0x82, 0xBC, 0xF2, 0x75, 0x34, 0xDD, 0x88, 0x7F,
];
/// TCG EK Credential Profile 2.5, B.6.2: PolicySecret(TPM_RH_ENDORSEMENT).
const POLICY_A_SHA256: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24,
    0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA,
];
/// TCG EK Credential Profile 2.5, B.6.4: PolicyA, or a policy in NV memory.
const POLICY_B_SHA384: [u8; 48] = [
    0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A,
    0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA,
    0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12,
];
