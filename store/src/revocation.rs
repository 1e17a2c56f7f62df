//! What is no longer good, and lists of it.

use assay_ca_core::{RevocationReason, Revoked};

/// What a revocation list of devices names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedCertificates {
    /// Certificates that relying parties may have seen.
    pub once_in_force: Vec<Revoked>,
    /// Certificates that were sealed and never confirmed: nobody but the TPM can have read them.
    pub never_in_force: Vec<Revoked>,
}

/// Counts what revokes, so that brokers and workers notice without reading the tables. Both only
/// grow, though one may pass over numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// How often something happened that may have made a certificate or token in use worthless.
    pub connections: i64,
    /// How often something happened that changes the revocation list of devices.
    pub list: i64,
}

/// How often a list that changes while it is read is read anew, before it is read with everybody
/// else kept from writing.
pub(crate) const OPTIMISM: usize = 3;

/// In the order of issuance: by number, whether it was once in force, and what a list says of it.
pub(crate) fn in_order(mut found: Vec<(i64, bool, Revoked)>) -> RevokedCertificates {
    // Not by the query: SQLite would rather read the whole table in that order.
    found.sort_unstable_by_key(|(position, ..)| *position);
    let mut revoked = RevokedCertificates::default();
    for (_, was_in_force, certificate) in found {
        let part =
            if was_in_force { &mut revoked.once_in_force } else { &mut revoked.never_in_force };
        part.push(certificate);
    }
    revoked
}

/// The reason that a list gives for a certificate with this status.
pub(crate) fn reason(status: &str) -> RevocationReason {
    match status {
        "superseded" => RevocationReason::Superseded,
        "revoked" => RevocationReason::CessationOfOperation,
        _ => RevocationReason::CertificateHold,
    }
}
