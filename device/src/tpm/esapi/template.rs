//! The shapes of the keys we create, and what tells them from others.

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, DefaultKey, ek};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::{
    EccParameter, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Public, PublicBuilder,
    PublicEccParameters, PublicKeyRsa, PublicRsaParameters, RsaExponent, RsaScheme, SymmetricDefinitionObject,
};

use crate::tpm::{EkKind, IkKind};

/// TCG EK Credential Profile 2.5, annexes B.3 and B.4: L-1, L-2, H-3 and H-6.
pub(super) fn ek(kind: EkKind) -> tss_esapi::Result<Public> {
    let algorithm = match kind {
        EkKind::P256 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
        EkKind::P384 => AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP384),
        EkKind::Rsa2048 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa2048),
        EkKind::Rsa3072 => AsymmetricAlgorithmSelection::Rsa(RsaKeyBits::Rsa3072),
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

/// TCG TPM v2.0 Provisioning Guidance, 7.5.1, with P-256.
pub(super) fn srk_p256() -> tss_esapi::Result<Public> {
    let parameters = ecc(EccCurve::NistP256, EccScheme::Null, SymmetricDefinitionObject::AES_128_CFB);
    let zero = || EccParameter::try_from(vec![0; 32]);
    with_ecc(srk()?, parameters, EccPoint::new(zero()?, zero()?)).build()
}

/// TCG TPM v2.0 Provisioning Guidance, 7.5.1, with RSA-2048.
pub(super) fn srk_rsa2048() -> tss_esapi::Result<Public> {
    let unique = PublicKeyRsa::new_empty_with_size(RsaKeyBits::Rsa2048);
    with_rsa(srk()?, rsa(SymmetricDefinitionObject::AES_128_CFB), unique).build()
}

/// Whether a key equals a template in everything but the key itself.
pub(super) fn fits(public: &Public, template: &Public) -> bool {
    without_key(public) == without_key(template)
}

/// Whether a key has one of the shapes that this module gives.
pub(super) fn is_ours(public: &Public) -> tss_esapi::Result<bool> {
    let mut templates = vec![srk_p256()?, srk_rsa2048()?];
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
    let algorithm = match public {
        Public::Rsa { .. } => "an RSA key",
        Public::Ecc { .. } => "an elliptic curve key",
        Public::KeyedHash { .. } => "an HMAC key or sealed data",
        Public::SymCipher { .. } => "a symmetric key",
    };
    format!("{algorithm} with attributes {:#010x}", u32::from(public.object_attributes()))
}

fn srk() -> tss_esapi::Result<PublicBuilder> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    Ok(PublicBuilder::new().with_name_hashing_algorithm(HashingAlgorithm::Sha256).with_object_attributes(attributes))
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
        Public::KeyedHash { .. } | Public::SymCipher { .. } => {}
    }
    public
}
