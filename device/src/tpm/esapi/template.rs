//! The shapes of the keys we create, and what tells them from others.

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, DefaultKey, ek};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    Digest, EccParameter, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, KeyedHashScheme, Public,
    PublicBuilder, PublicEccParameters, PublicKeyRsa, PublicKeyedHashParameters, PublicRsaParameters, RsaExponent,
    RsaScheme, SymmetricDefinitionObject,
};

use crate::tpm::{EkKind, IkKind, SrkKind};

/// TCG EK Credential Profile 2.5, annexes B.3 and B.4: L-1, L-2, H-3 and H-6, and what Azure's C SDK made of L-1.
pub(super) fn ek(kind: EkKind) -> tss_esapi::Result<Public> {
    let algorithm = match kind {
        EkKind::P256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
        EkKind::P384 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384),
        EkKind::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
        EkKind::Rsa3072 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa3072),
        EkKind::LegacyDps => return Ok(without_key(&ek(EkKind::Rsa2048)?)),
    };
    ek::create_ek_public_from_default_template_2(algorithm, DefaultKey)
}

/// An identity key: made by the TPM and stuck there, signs, is not restricted (a TLS signature covers a digest made outside the TPM), and
/// without dictionary attack protection, for it has no password.
pub(super) fn ik(kind: IkKind) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_sign_encrypt(true)
        .build()?;
    let builder =
        PublicBuilder::new().with_name_hashing_algorithm(HashingAlgorithm::Sha256).with_object_attributes(attributes);
    let ecdsa = |curve, hash| ecc(curve, EccScheme::EcDsa(HashScheme::new(hash)), SymmetricDefinitionObject::Null);
    match kind {
        IkKind::P256 => with_ecc(builder, ecdsa(EccCurve::NistP256, HashingAlgorithm::Sha256), EccPoint::default()),
        IkKind::P384 => with_ecc(builder, ecdsa(EccCurve::NistP384, HashingAlgorithm::Sha384), EccPoint::default()),
        // Without a scheme, since the CSR takes RSASSA and TLS 1.3 takes RSAPSS.
        IkKind::Rsa2048 => with_rsa(builder, rsa(SymmetricDefinitionObject::Null), PublicKeyRsa::default()),
    }
    .build()
}

/// TCG TPM v2.0 Provisioning Guidance, 7.5.1.
pub(super) fn srk(kind: SrkKind) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let builder =
        PublicBuilder::new().with_name_hashing_algorithm(HashingAlgorithm::Sha256).with_object_attributes(attributes);
    match kind {
        SrkKind::P256 => {
            let parameters = ecc(EccCurve::NistP256, EccScheme::Null, SymmetricDefinitionObject::AES_128_CFB);
            let zero = || EccParameter::try_from(vec![0; 32]);
            with_ecc(builder, parameters, EccPoint::new(zero()?, zero()?))
        }
        SrkKind::Rsa2048 => {
            let unique = PublicKeyRsa::new_empty_with_size(RsaKeyBits::Rsa2048);
            with_rsa(builder, rsa(SymmetricDefinitionObject::AES_128_CFB), unique)
        }
    }
    .build()
}

/// An HMAC key from a CA: made outside the TPM, without a password, and for HMAC-SHA-256 alone.
pub(super) fn hmac_key() -> tss_esapi::Result<Public> {
    let attributes =
        ObjectAttributesBuilder::new().with_user_with_auth(true).with_no_da(true).with_sign_encrypt(true).build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::HMAC_SHA_256))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

/// Whether a key equals a template in everything but the key itself.
pub(super) fn fits(public: &Public, template: &Public) -> bool {
    without_key(public) == without_key(template)
}

/// Whether a key has one of the shapes that this module gives.
pub(super) fn is_ours(public: &Public) -> tss_esapi::Result<bool> {
    let mut templates = vec![hmac_key()?];
    for kind in SrkKind::ALL {
        templates.push(srk(kind)?);
    }
    for kind in EkKind::ALL {
        templates.push(ek(kind)?);
    }
    for kind in IkKind::ALL {
        templates.push(ik(kind)?);
    }
    Ok(templates.iter().any(|template| fits(public, template)))
}

/// Whether a key can be the parent of an IK: itself stuck in the TPM (TPM 2.0 Part 1, 25.2), and usable with an empty password
/// that nobody can lock out.
pub(super) fn is_storage_key(public: &Public) -> bool {
    let attributes = public.object_attributes();
    attributes.fixed_tpm()
        && attributes.fixed_parent()
        && attributes.restricted()
        && attributes.decrypt()
        && !attributes.sign_encrypt()
        && attributes.user_with_auth()
        && attributes.no_da()
}

/// A key in a few words, e.g. `an Ecc key with attributes 0x00030072`.
pub(super) fn describe(public: &Public) -> String {
    if let Some(kind) = IkKind::ALL.into_iter().find(|&kind| ik(kind).is_ok_and(|template| fits(public, &template))) {
        return format!("an identity key of kind {kind}");
    }
    if hmac_key().is_ok_and(|template| fits(public, &template)) {
        return "an HMAC key that is not this device's".into();
    }
    let algorithm = match public {
        Public::Rsa { .. } => "an RSA key",
        Public::Ecc { .. } => "an elliptic curve key",
        Public::KeyedHash { .. } => "another kind of HMAC key, or sealed data,",
        Public::SymCipher { .. } => "a symmetric key",
    };
    format!("{algorithm} with attributes {:#010x}", u32::from(public.object_attributes()))
}

fn ecc(curve: EccCurve, scheme: EccScheme, symmetric: SymmetricDefinitionObject) -> PublicEccParameters {
    PublicEccParameters::new(symmetric, scheme, curve, KeyDerivationFunctionScheme::Null)
}

fn rsa(symmetric: SymmetricDefinitionObject) -> PublicRsaParameters {
    PublicRsaParameters::new(symmetric, RsaScheme::Null, RsaKeyBits::Rsa2048, RsaExponent::default())
}

fn with_ecc(builder: PublicBuilder, parameters: PublicEccParameters, unique: EccPoint) -> PublicBuilder {
    builder
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(unique)
}

fn with_rsa(builder: PublicBuilder, parameters: PublicRsaParameters, unique: PublicKeyRsa) -> PublicBuilder {
    builder
        .with_public_algorithm(PublicAlgorithm::Rsa)
        .with_rsa_parameters(parameters)
        .with_rsa_unique_identifier(unique)
}

fn without_key(public: &Public) -> Public {
    let mut public = public.clone();
    match &mut public {
        Public::Rsa { unique, .. } => *unique = PublicKeyRsa::default(),
        Public::Ecc { unique, .. } => *unique = EccPoint::default(),
        Public::KeyedHash { unique, .. } | Public::SymCipher { unique, .. } => *unique = Digest::default(),
    }
    public
}
