//! What a device has, asked of its TPM and verified: more than its state directory says.

use std::time::Duration;

use assay_device_core::Grant;
use x509_parser::prelude::{FromDer, ParsedExtension, X509Certificate};

use crate::device::Device;
use crate::error::Error;
use crate::status::Status;
use crate::token::DEFAULT_LIFETIME;
use crate::verify;

/// What a device has, and whether it can use it.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// What the state directory says.
    pub status: Status,
    /// The certificate's issuer; `None` if the device has no certificate.
    pub issuer: Option<String>,
    /// Why the CA trusted the EK, as the certificate says; `None` if it does not say it.
    pub attested_by: Option<AttestedBy>,
    /// The names of the new roots that are pinned besides those that the device was given.
    pub pinned_roots: Vec<String>,
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
            pinned_roots: self.pinned_roots()?,
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
            match policy.policy_id.as_bytes().strip_prefix(&verify::POLICIES)? {
                [1] => Some(AttestedBy::Vendor),
                [2] => Some(AttestedBy::Operator),
                _ => None,
            }
        })
    })
}
