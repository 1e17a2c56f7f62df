//! Every object identifier this crate reads or writes, each with the document that assigns it.
//!
//! Those that `rcgen` takes are lists of arcs; those that we compare or write ourselves are the
//! content bytes of a DER OBJECT IDENTIFIER.

/// `rsaEncryption`, 1.2.840.113549.1.1.1 (RFC 8017, appendix C).
pub(crate) const RSA_ENCRYPTION: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
/// `id-RSAES-OAEP`, 1.2.840.113549.1.1.7 (RFC 8017, appendix C): the key type some TPM vendors give
/// in EK certificates (TCG EK Credential Profile, 3.2.7).
pub(crate) const RSAES_OAEP: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x07];
/// `sha256WithRSAEncryption`, 1.2.840.113549.1.1.11 (RFC 8017, appendix C).
pub(crate) const SHA256_WITH_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0B];
/// `id-ecPublicKey`, 1.2.840.10045.2.1 (RFC 5480 §2.1.1).
pub(crate) const EC_PUBLIC_KEY: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x02, 0x01];
/// `secp256r1`, 1.2.840.10045.3.1.7 (RFC 5480 §2.1.1.1).
pub(crate) const SECP256R1: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x03, 0x01, 0x07];
/// `secp384r1`, 1.3.132.0.34 (RFC 5480 §2.1.1.1).
pub(crate) const SECP384R1: &[u8] = &[0x2B, 0x81, 0x04, 0x00, 0x22];
/// `ecdsa-with-SHA256`, 1.2.840.10045.4.3.2 (RFC 5758 §3.2).
pub(crate) const ECDSA_WITH_SHA256: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x02];
/// `ecdsa-with-SHA384`, 1.2.840.10045.4.3.3 (RFC 5758 §3.2).
pub(crate) const ECDSA_WITH_SHA384: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x03];

/// `tcg-kp-EKCertificate`, 2.23.133.8.1 (TCG EK Credential Profile 2.5, 3.2.16).
pub(crate) const EK_CERTIFICATE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// `tcg-at-tpmManufacturer`, 2.23.133.2.1 (TCG EK Credential Profile 2.5, 3.1.2).
pub(crate) const TPM_MANUFACTURER: &[u8] = &[0x67, 0x81, 0x05, 0x02, 0x01];
/// `tcg-at-tpmModel`, 2.23.133.2.2 (TCG EK Credential Profile 2.5, 3.1.2).
pub(crate) const TPM_MODEL: &[u8] = &[0x67, 0x81, 0x05, 0x02, 0x02];
/// `tcg-at-tpmVersion`, 2.23.133.2.3 (TCG EK Credential Profile 2.5, 3.1.2).
pub(crate) const TPM_VERSION: &[u8] = &[0x67, 0x81, 0x05, 0x02, 0x03];

/// `id-ce-subjectAltName`, 2.5.29.17 (RFC 5280 §4.2.1.6).
pub(crate) const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
/// `id-ce-certificatePolicies`, 2.5.29.32 (RFC 5280 §4.2.1.4).
pub(crate) const CERTIFICATE_POLICIES: &[u64] = &[2, 5, 29, 32];

/// `id-on-hardwareModuleName`, 1.3.6.1.5.5.7.8.4 (RFC 4108 §5).
pub(crate) const HARDWARE_MODULE_NAME: &[u8] = &[0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x08, 0x04];
/// `id-on-permanentIdentifier`, 1.3.6.1.5.5.7.8.3 (RFC 4043 §2).
pub(crate) const PERMANENT_IDENTIFIER: &[u8] = &[0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x08, 0x03];
/// `tcg-tpm20`, 2.23.133.1.2: the hardware type of a TPM 2.0 (TCG TPM 2.0 Keys for Device Identity and
/// Attestation 1.0, 8).
pub(crate) const TPM_20: &[u8] = &[0x67, 0x81, 0x05, 0x01, 0x02];
/// `tcg-on-ekPermIdSha256`, 2.23.133.12.1: assigns permanent identifiers that are a SHA-256 of the EK
/// certificate or EK (TCG TPM 2.0 Keys for Device Identity and Attestation 1.0, 8).
pub(crate) const EK_PERM_ID_SHA256: &[u8] = &[0x67, 0x81, 0x05, 0x0C, 0x01];

/// 2.25.17810284399213771715162782413901505794.1: this EK's certificate leads to a trusted TPM vendor.
///
/// The arc is the UUID 0d6622d1-2cad-47b9-a1d6-e2a7c173a502 (ITU-T X.667), which stands for Assay's assurance policies.
pub(crate) const ASSURANCE_VENDOR_CERTIFICATE: &[u8] = &[
    0x69, 0x9A, 0xE6, 0x91, 0xB4, 0xA5, 0xCA, 0xEA, 0x9E, 0xF3, 0xA1, 0xEB, 0xB8, 0xD4, 0xFC, 0x8B, 0xCE, 0xCA, 0x02,
    0x01,
];
/// 2.25.17810284399213771715162782413901505794.2: this EK is on the operator's enrolment list.
pub(crate) const ASSURANCE_ENROLMENT_LIST: &[u8] = &[
    0x69, 0x9A, 0xE6, 0x91, 0xB4, 0xA5, 0xCA, 0xEA, 0x9E, 0xF3, 0xA1, 0xEB, 0xB8, 0xD4, 0xFC, 0x8B, 0xCE, 0xCA, 0x02,
    0x02,
];
