//! The names of a TPM in a certificate: RFC 4108's HardwareModuleName and RFC 4043's
//! PermanentIdentifier.

use data_encoding::HEXUPPER;
use sha2::{Digest, Sha256};

use crate::key::PublicKey;

/// The two names of a TPM that TCG derives from its EK (TPM 2.0 Keys for Device Identity and
/// Attestation 1.0, 8).
///
/// Made only from what was checked: from the certificate if the CA trusts the EK because of it, or
/// else from the key.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(flat)]
pub(crate) enum HardwareIdentity {
    /// From an EK certificate.
    #[n(0)]
    Certificate {
        #[n(0)]
        vendor: String,
        #[cbor(n(1), with = "minicbor::bytes")]
        authority_key: Vec<u8>,
        #[cbor(n(2), with = "minicbor::bytes")]
        serial: Vec<u8>,
        /// SHA-256 of the certificate.
        #[cbor(n(3), with = "minicbor::bytes")]
        sha256: [u8; 32],
    },
    /// From an EK.
    #[n(1)]
    Key {
        /// SHA-256 of the SubjectPublicKeyInfo.
        #[cbor(n(0), with = "minicbor::bytes")]
        sha256: [u8; 32],
        /// SHA-256 of `EkPubkey` and the SubjectPublicKeyInfo.
        #[cbor(n(1), with = "minicbor::bytes")]
        prefixed_sha256: [u8; 32],
    },
}

impl HardwareIdentity {
    pub(crate) fn of_certificate(
        manufacturer: &str,
        authority_key: &[u8],
        serial: &[u8],
        der: &[u8],
    ) -> Self {
        let vendor = manufacturer.strip_prefix("id:").unwrap_or(manufacturer);
        let beginning = |bytes: &[u8]| bytes[..bytes.len().min(MAX_SERIAL)].to_vec();
        Self::Certificate {
            // A character has at most 4 bytes.
            vendor: vendor.chars().take(MAX_SERIAL / 4).collect(),
            authority_key: beginning(authority_key),
            serial: beginning(serial),
            sha256: Sha256::digest(der).into(),
        }
    }

    pub(crate) fn of_key(key: &PublicKey) -> Self {
        let spki = key.spki();
        let prefixed_sha256 =
            Sha256::new_with_prefix("EkPubkey").chain_update(&spki).finalize().into();
        Self::Key { sha256: Sha256::digest(&spki).into(), prefixed_sha256 }
    }

    /// `hwSerialNum` of a HardwareModuleName: vendor, authority key identifier and serial number of
    /// the EK certificate, in upper-case hexadecimal; or the SHA-256 of the key.
    pub(crate) fn serial(&self) -> Vec<u8> {
        match self {
            Self::Certificate { vendor, authority_key, serial, .. } => {
                let (authority_key, serial) =
                    (HEXUPPER.encode(authority_key), HEXUPPER.encode(serial));
                let mut text = format!("{vendor}:{authority_key}:{serial}").into_bytes();
                text.truncate(MAX_SERIAL);
                text
            }
            Self::Key { sha256, .. } => sha256.to_vec(),
        }
    }

    /// `identifierValue` of a PermanentIdentifier: the SHA-256 of the certificate, or of the text
    /// `EkPubkey` and the key.
    pub(crate) fn permanent_id(&self) -> String {
        match self {
            Self::Certificate { sha256, .. } => HEXUPPER.encode(sha256),
            Self::Key { prefixed_sha256, .. } => HEXUPPER.encode(prefixed_sha256),
        }
    }
}

/// Keeps a claim and a certificate within their limits. A key identifier and a serial number of 20
/// bytes each (RFC 5280 §4.1.2.2) take 90 bytes.
const MAX_SERIAL: usize = 128;

#[cfg(test)]
mod tests {
    use assay_wire::MAX_CLAIM;

    use super::*;

    #[test]
    fn names_of_any_length_fit_beside_an_rsa_key_in_a_claim() {
        let long = [0xAB; 4096];
        for manufacturer in ["id:41434D45".to_owned(), format!("id:{}", "\u{1F512}".repeat(1000))] {
            for (authority_key, serial) in
                [(&long[..], &long[..]), (&long[..20], &long[..20]), (&[], &long)]
            {
                let identity = HardwareIdentity::of_certificate(
                    &manufacturer,
                    authority_key,
                    serial,
                    b"certificate",
                );
                assert!(
                    minicbor::to_vec(&identity).unwrap().len() <= MAX_CLAIM - 512,
                    "a key of 256 and as much again"
                );
                let vendor = &manufacturer[3..];
                let whole = format!(
                    "{vendor}:{}:{}",
                    HEXUPPER.encode(authority_key),
                    HEXUPPER.encode(serial)
                );
                assert_eq!(identity.serial(), whole.as_bytes()[..whole.len().min(MAX_SERIAL)]);
            }
        }
    }
}
