//! TPM vendors' certificates: which roots an EK certificate may lead to.

use assay_ca_core::Role;

/// A vendor's certificate.
#[derive(Clone, Debug)]
pub struct AnchorRow {
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// Its subject, for people.
    pub subject: String,
    /// What it is good for.
    pub role: Role,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
    /// When an operator added it, in seconds since 1970.
    pub added_at: i64,
}

impl AnchorRow {
    /// What the columns `kind` and `allowances` hold.
    pub(crate) fn kind(&self) -> (&'static str, String) {
        match self.role {
            Role::Root => ("root", String::new()),
            Role::Issuer => ("issuer", String::new()),
            Role::Anchor(allowances) => ("anchor", allowances.to_string()),
        }
    }
}

/// Identifies the set of vendors' certificates at one moment, without reading them. If it did not
/// change with the set, a worker would still trust a vendor that an operator removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnchorsVersion {
    pub(crate) newest: i64,
    pub(crate) count: i64,
}

/// What became of a certificate that was to be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trusted {
    /// It is trusted from now on.
    Added,
    /// It was there, and is now an anchor with the given allowances.
    Changed,
    /// It was there already.
    Already,
}
