//! Certificates that are no longer good, and lists of them.

use assay_ca_core::{RevocationReason, Revoked};

/// What a revocation list of devices names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedCertificates {
    /// Certificates that relying parties may have seen.
    pub once_in_force: Vec<Revoked>,
    /// Certificates that were sealed and never came into force: nobody but the TPM can have read
    /// them.
    pub never_in_force: Vec<Revoked>,
}

/// Counts revocations, so that brokers and workers notice them without reading the tables. Both
/// counters only grow, and may skip numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// How often something happened that may have made a certificate or token in use worthless.
    pub connections: i64,
    /// How often something happened that changes the revocation list of devices.
    pub list: i64,
}

/// How often a list is read while others may write. If it changes each time, it is read once more
/// while nobody else may write.
pub(crate) const UNLOCKED_READS: usize = 3;

/// Sorts certificates into the order of issuance. Of each it gets the number, whether it was ever
/// in force, and what a list says of it.
pub(crate) fn in_order(mut found: Vec<(i64, bool, Revoked)>) -> RevokedCertificates {
    // The query does not sort them, because SQLite would then read the whole table in that order.
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
