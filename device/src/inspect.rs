//! What a device has, asked of its TPM and verified: more than its state directory says.

use std::time::Duration;

use assay_device_core::Grant;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use crate::device::Device;
use crate::error::Error;
use crate::status::Status;
use crate::token::DEFAULT_LIFETIME;

/// What a device has, and whether it can use it.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What the state directory says.
    pub status: Status,
    /// The certificate's issuer; `None` if the device has no certificate.
    pub issuer: Option<String>,
    /// Why the CA trusted the EK, as the certificate says; `None` if it does not say it.
    pub attested_by: Option<AttestedBy>,
    /// Whether the device can sign in by what it has: the certificate leads to the pinned root and
    /// is for the key in the TPM, and that key signs. How long the TPM took.
    pub usable: Result<Duration, Error>,
}

/// Why the CA trusted the EK of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttestedBy {
    /// The EK certificate leads to a TPM vendor that the CA trusts.
    Vendor,
    /// An operator enrolled the EK.
    Operator,
}

impl Device {
    /// Looks at what this device has, and has the TPM sign or compute a token.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if no request was ever made, [`Error::BrokenState`] if the state
    /// cannot be read. Whatever else is wrong is [`Inspection::usable`].
    pub fn inspect(&self) -> Result<Inspection, Error> {
        let no_state = || Error::NotProvisioned("there is no state".into());
        let status = Status::read(self.state_path())?.ok_or_else(no_state)?;
        let leaf = match self.memory()?.credentials().next() {
            Some(Grant::Certificate(grant)) => grant.chain.into_iter().next(),
            Some(Grant::SharedKey(_)) | None => None,
        };
        let parsed = leaf.as_deref().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let certificate = parsed.as_ref().map(|(_, certificate)| certificate);
        let usable = match leaf {
            Some(_) => self.test_signature(),
            None => {
                let before = self.tpm().spent();
                self.token(DEFAULT_LIFETIME).map(|_| self.tpm().spent() - before)
            }
        };
        Ok(Inspection {
            status,
            issuer: certificate.map(|certificate| certificate.issuer().to_string()),
            attested_by: certificate.and_then(attested_by),
            usable,
        })
    }
}

/// The certificate policy says it (`docs/protocol.md`, *The certificate*).
fn attested_by(certificate: &X509Certificate<'_>) -> Option<AttestedBy> {
    certificate.extensions().iter().find_map(|extension| {
        let ParsedExtension::CertificatePolicies(policies) = extension.parsed_extension() else {
            return None;
        };
        policies.iter().find_map(|policy| {
            match policy.policy_id.as_bytes().strip_prefix(&POLICIES)? {
                [1] => Some(AttestedBy::Vendor),
                [2] => Some(AttestedBy::Operator),
                _ => None,
            }
        })
    })
}

/// The arc of the certificate policies, 2.25.17810284399213771715162782413901505794, in DER without
/// its header. The number is too long for most ways of printing an object identifier.
const POLICIES: [u8; 19] = [
    0x69, 0x9a, 0xe6, 0x91, 0xb4, 0xa5, 0xca, 0xea, 0x9e, 0xf3, 0xa1, 0xeb, 0xb8, 0xd4, 0xfc, 0x8b,
    0xce, 0xca, 0x02,
];
