//! How a certificate names the TPM behind it: RFC 4108's HardwareModuleName and RFC 4043's PermanentIdentifier.

use data_encoding::HEXUPPER;
use sha2::{Digest, Sha256};

use crate::key::PublicKey;

/// The two names of a TPM that TCG derives from its EK (TPM 2.0 Keys for Device Identity and Attestation 1.0, 8).
///
/// Made only of what was checked: from the certificate if that is what the EK is trusted for, else from the key.
#[derive(Clone, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(map)]
pub(crate) struct HardwareIdentity {
    /// `hwSerialNum` of a HardwareModuleName.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(crate) serial: Vec<u8>,
    /// `identifierValue` of a PermanentIdentifier.
    #[n(1)]
    pub(crate) permanent_id: String,
}

impl HardwareIdentity {
    /// Vendor, authority key identifier and serial number of the EK certificate, in upper-case hexadecimal; and
    /// the certificate's SHA-256.
    pub(crate) fn of_certificate(manufacturer: &str, authority_key: &[u8], serial: &[u8], der: &[u8]) -> Self {
        let vendor = manufacturer.strip_prefix("id:").unwrap_or(manufacturer);
        let mut hardware_serial =
            format!("{vendor}:{}:{}", HEXUPPER.encode(authority_key), HEXUPPER.encode(serial)).into_bytes();
        hardware_serial.truncate(MAX_SERIAL);
        Self { serial: hardware_serial, permanent_id: HEXUPPER.encode(&Sha256::digest(der)) }
    }

    /// The SHA-256 of the key, and of the key after the text `EkPubkey`.
    pub(crate) fn of_key(key: &PublicKey) -> Self {
        let spki = key.spki();
        let permanent_id = Sha256::new_with_prefix("EkPubkey").chain_update(&spki).finalize();
        Self { serial: Sha256::digest(&spki).to_vec(), permanent_id: HEXUPPER.encode(&permanent_id) }
    }
}

/// Keeps a claim within its limit: a 20-byte key identifier and serial number (RFC 5280 §4.1.2.2) take 90 bytes.
const MAX_SERIAL: usize = 128;
