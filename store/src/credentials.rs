//! Certificates of operators and workers: which there are, and which are no longer good.

use assay_wire::Identity;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A certificate of an operator or a worker, as it is put on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub(crate) role: Identity,
    pub(crate) sha256: [u8; 32],
    pub(crate) serial: Vec<u8>,
    pub(crate) not_after: i64,
}

impl Credential {
    /// Reads a certificate in DER; `role` is the role that it names. `None` if that is a device's,
    /// or if the certificate cannot be read.
    pub fn read(role: Identity, der: &[u8]) -> Option<Self> {
        if matches!(role, Identity::Device { .. }) {
            return None;
        }
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            role,
            sha256: Sha256::digest(der).into(),
            serial: certificate.raw_serial().to_vec(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

/// The certificate of an operator or a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    /// What the operators of the CA call it.
    pub name: String,
    /// `operator` or `worker`.
    pub role: String,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// When it was issued, in seconds since 1970.
    pub issued_at: i64,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
    /// When it was revoked, in seconds since 1970; `None` if it was not.
    pub revoked_at: Option<i64>,
}

/// The name of a role in the table. No row has a device's, because a device has no credential.
pub(crate) fn role(identity: &Identity) -> &'static str {
    match identity {
        Identity::Operator => "operator",
        Identity::Worker => "worker",
        Identity::Device { .. } => "device",
    }
}
