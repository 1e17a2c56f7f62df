//! Every object identifier that this crate reads or writes, each with the document that assigns it.
//!
//! Those that `rcgen` takes are lists of arcs. Those that this crate compares or writes itself are
//! the content bytes of a DER OBJECT IDENTIFIER.

/// `rsaEncryption`, 1.2.840.113549.1.1.1 (RFC 8017, appendix C).
pub(crate) const RSA_ENCRYPTION: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01];
/// `id-RSAES-OAEP`, 1.2.840.113549.1.1.7 (RFC 8017, appendix C): the key type that some TPM vendors
/// give in EK certificates (TCG EK Credential Profile, 3.2.7).
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
/// `ecdsa-with-SHA512`, 1.2.840.10045.4.3.4 (RFC 5758 §3.2).
pub(crate) const ECDSA_WITH_SHA512: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x04];
/// `ecdsa-with-SHA1`, 1.2.840.10045.4.1 (RFC 3279 §2.2.3).
pub(crate) const ECDSA_WITH_SHA1: &[u8] = &[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01];
/// `secp521r1`, 1.3.132.0.35 (RFC 5480 §2.1.1.1).
pub(crate) const SECP521R1: &[u8] = &[0x2B, 0x81, 0x04, 0x00, 0x23];
/// `md5WithRSAEncryption`, 1.2.840.113549.1.1.4 (RFC 8017, appendix C).
pub(crate) const MD5_WITH_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x04];
/// `sha1WithRSAEncryption`, 1.2.840.113549.1.1.5 (RFC 8017, appendix C).
pub(crate) const SHA1_WITH_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x05];
/// `id-mgf1`, 1.2.840.113549.1.1.8 (RFC 8017, appendix C).
pub(crate) const MGF1: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x08];
/// `id-RSASSA-PSS`, 1.2.840.113549.1.1.10 (RFC 8017, appendix C).
pub(crate) const RSASSA_PSS: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0A];
/// `sha384WithRSAEncryption`, 1.2.840.113549.1.1.12 (RFC 8017, appendix C).
pub(crate) const SHA384_WITH_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0C];
/// `sha512WithRSAEncryption`, 1.2.840.113549.1.1.13 (RFC 8017, appendix C).
pub(crate) const SHA512_WITH_RSA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0D];
/// `id-sha256`, 2.16.840.1.101.3.4.2.1 (RFC 8017, appendix C).
pub(crate) const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
/// `id-sha384`, 2.16.840.1.101.3.4.2.2 (RFC 8017, appendix C).
pub(crate) const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
/// `id-sha512`, 2.16.840.1.101.3.4.2.3 (RFC 8017, appendix C).
pub(crate) const SHA512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];
/// `emailAddress`, 1.2.840.113549.1.9.1 (RFC 5280, appendix A.1).
pub(crate) const EMAIL_ADDRESS: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x09, 0x01];
/// `id-ad-caIssuers`, 1.3.6.1.5.5.7.48.2 (RFC 5280 §4.2.2.1).
pub(crate) const CA_ISSUERS: &[u8] = &[0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x02];
/// `id-pe-authorityInfoAccess`, 1.3.6.1.5.5.7.1.1 (RFC 5280 §4.2.2.1).
pub(crate) const AUTHORITY_INFORMATION_ACCESS: &[u8] =
    &[0x2B, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x01];
/// `anyExtendedKeyUsage`, 2.5.29.37.0 (RFC 5280 §4.2.1.12).
pub(crate) const ANY_EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1D, 0x25, 0x00];
/// `id-at-commonName`, 2.5.4.3 (RFC 5280, appendix A.1).
pub(crate) const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// `id-signedData`, 1.2.840.113549.1.7.2 (RFC 5652 §5.1).
pub(crate) const SIGNED_DATA: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x07, 0x02];
/// `anyPolicy`, 2.5.29.32.0 (RFC 5280 §4.2.1.4).
pub(crate) const ANY_POLICY: &[u8] = &[0x55, 0x1D, 0x20, 0x00];

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
/// `tcg-tpm20`, 2.23.133.1.2: the hardware type of a TPM 2.0 (TCG TPM 2.0 Keys for Device Identity
/// and Attestation 1.0, 8).
pub(crate) const TPM_20: &[u8] = &[0x67, 0x81, 0x05, 0x01, 0x02];
/// `tcg-on-ekPermIdSha256`, 2.23.133.12.1: the assigner of permanent identifiers that are the
/// SHA-256 of an EK certificate or EK (TCG TPM 2.0 Keys for Device Identity and Attestation 1.0,
/// 8).
pub(crate) const EK_PERM_ID_SHA256: &[u8] = &[0x67, 0x81, 0x05, 0x0C, 0x01];

/// 2.25.17810284399213771715162782413901505794.1: this EK's certificate leads to a trusted TPM
/// vendor.
///
/// The arc is the UUID 0d6622d1-2cad-47b9-a1d6-e2a7c173a502 (ITU-T X.667), which stands for Assay's
/// assurance policies.
pub(crate) const ASSURANCE_VENDOR_CERTIFICATE: &[u8] = &[
    0x69, 0x9A, 0xE6, 0x91, 0xB4, 0xA5, 0xCA, 0xEA, 0x9E, 0xF3, 0xA1, 0xEB, 0xB8, 0xD4, 0xFC, 0x8B,
    0xCE, 0xCA, 0x02, 0x01,
];
/// 2.25.17810284399213771715162782413901505794.2: this EK is on the operator's enrolment list.
pub(crate) const ASSURANCE_ENROLMENT_LIST: &[u8] = &[
    0x69, 0x9A, 0xE6, 0x91, 0xB4, 0xA5, 0xCA, 0xEA, 0x9E, 0xF3, 0xA1, 0xEB, 0xB8, 0xD4, 0xFC, 0x8B,
    0xCE, 0xCA, 0x02, 0x02,
];

/// 2.25.17810284399213771715162782413901505794.3: an older root certifies this CA as a new root.
pub(crate) const NEW_ROOT: &[u8] = &[
    0x69, 0x9A, 0xE6, 0x91, 0xB4, 0xA5, 0xCA, 0xEA, 0x9E, 0xF3, 0xA1, 0xEB, 0xB8, 0xD4, 0xFC, 0x8B,
    0xCE, 0xCA, 0x02, 0x03,
];

/// The extensions of RFC 5280 §4.2.1, below `id-ce`, 2.5.29, each with the section that defines it.
pub(crate) mod extension {
    /// 2.5.29.14, §4.2.1.2.
    pub(crate) const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1D, 14];
    /// 2.5.29.15, §4.2.1.3.
    pub(crate) const KEY_USAGE: &[u8] = &[0x55, 0x1D, 15];
    /// 2.5.29.17, §4.2.1.6.
    pub(crate) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1D, 17];
    /// 2.5.29.19, §4.2.1.9.
    pub(crate) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1D, 19];
    /// 2.5.29.30, §4.2.1.10.
    pub(crate) const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1D, 30];
    /// 2.5.29.31, §4.2.1.13.
    pub(crate) const CRL_DISTRIBUTION_POINTS: &[u8] = &[0x55, 0x1D, 31];
    /// 2.5.29.32, §4.2.1.4.
    pub(crate) const CERTIFICATE_POLICIES: &[u8] = &[0x55, 0x1D, 32];
    /// 2.5.29.33, §4.2.1.5.
    pub(crate) const POLICY_MAPPINGS: &[u8] = &[0x55, 0x1D, 33];
    /// 2.5.29.35, §4.2.1.1.
    pub(crate) const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1D, 35];
    /// 2.5.29.36, §4.2.1.11.
    pub(crate) const POLICY_CONSTRAINTS: &[u8] = &[0x55, 0x1D, 36];
    /// 2.5.29.37, §4.2.1.12.
    pub(crate) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1D, 37];
    /// 2.5.29.54, §4.2.1.14.
    pub(crate) const INHIBIT_ANY_POLICY: &[u8] = &[0x55, 0x1D, 54];
}

/// The content of a DER OBJECT IDENTIFIER in dotted decimal form.
pub(crate) fn dotted(content: &[u8]) -> String {
    let mut arcs = Vec::new();
    let mut arc: u128 = 0;
    for byte in content {
        // An arc below 2.25 may take 128 bits (ITU-T X.667).
        let Some(shifted) = arc.checked_mul(128) else {
            return format!("(object identifier {})", crate::hex(content));
        };
        arc = shifted | u128::from(byte & 0x7F);
        if byte & 0x80 == 0 {
            arcs.push(std::mem::take(&mut arc));
        }
    }
    let Some((first, rest)) = arcs.split_first() else { return "(no object identifier)".into() };
    // X.690 §8.19.4: the first two arcs are encoded as one number.
    let root = (first / 40).min(2);
    let arcs = [root, first - 40 * root].into_iter().chain(rest.iter().copied());
    arcs.map(|arc| arc.to_string()).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_identifiers_are_written_arc_by_arc() {
        assert_eq!(dotted(EK_CERTIFICATE), "2.23.133.8.1");
        assert_eq!(dotted(ECDSA_WITH_SHA512), "1.2.840.10045.4.3.4");
        assert_eq!(
            dotted(ASSURANCE_VENDOR_CERTIFICATE),
            "2.25.17810284399213771715162782413901505794.1"
        );
        assert_eq!(dotted(&[0x88, 0x37]), "2.999");
        assert_eq!(dotted(&[0xFF; 40]), format!("(object identifier {})", "ff".repeat(40)));
        assert_eq!(dotted(&[]), "(no object identifier)");
    }
}
