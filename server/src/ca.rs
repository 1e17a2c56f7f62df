//! The CA's own keys and rules, and what it signs for everybody.

use assay_ca_core::{Fault, Issuers, MasterSecret, Profile, TicketKey};
use assay_store::{RevokedCertificates, Store, StoreError};
use assay_wire::Scope;
use time::OffsetDateTime;

/// The CA's own keys and rules.
pub struct Ca {
    /// The provisioning domain it serves.
    pub scope: Scope,
    /// Seals tickets.
    pub ticket_key: TicketKey,
    /// Makes shared keys.
    pub master: MasterSecret,
    /// Sign certificates.
    pub issuers: Issuers,
    /// Says what a certificate looks like, and which flows lead to one.
    pub profile: Profile,
}

impl Ca {
    /// Signs a list of what is no longer good, with a number of its own.
    ///
    /// If it has more than `longest` bytes, certificates that never came into force are left out:
    /// strangers can fill a list with them, and nobody but their TPMs can show them.
    ///
    /// # Errors
    /// The store failed, or the signer did.
    pub fn revocation_list(
        &self,
        store: &mut dyn Store,
        longest: usize,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, ListError> {
        let (RevokedCertificates { once_in_force, never_in_force }, number) =
            store.revocation_list(now)?;
        let issuer = self.issuers.current(now);
        let all = once_in_force.iter().chain(&never_in_force).cloned();
        let list = issuer.revocation_list(all, number, now)?;
        if list.len() <= longest {
            return Ok(list);
        }
        Ok(issuer.revocation_list(once_in_force, number, now)?)
    }
}

/// Why there is no revocation list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// It could not be signed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// What is revoked could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use assay_ca_core::{Assurance, CertificateFacts, unchecked};
    use assay_store::{Act, Entry};
    use time::Duration;
    use x509_parser::prelude::{CertificateRevocationList, FromDer};

    use super::*;
    use crate::directory::Directory;
    use crate::random::random;

    #[test]
    fn a_list_that_is_too_long_leaves_out_what_never_came_into_force() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let directory = Directory::open(&parent.path().join("ca")).unwrap();
        let (ca, mut store) = (directory.ca().unwrap(), directory.store().unwrap());
        let now = OffsetDateTime::now_utc();
        let facts = |serial, ek: u8, confirm_by| CertificateFacts {
            serial: [serial; 16],
            not_before: now,
            not_after: now + Duration::DAY,
            device_id: format!("pump-{ek}").parse().unwrap(),
            ek_id: [ek; 32].into(),
            ik_id: [ek; 32],
            assurance: Assurance::VendorCertificate,
            issued_at: now,
            confirm_by,
        };
        let mut record = |act| {
            let entries = [Entry { act, basis: None, audit: None }];
            _ = store.record(&ca.scope, &entries).unwrap();
        };
        // The second takes the place of the first.
        for serial in 1..=2 {
            record(Act::Certify(unchecked::issued(facts(serial, 1, None), vec![serial])));
        }
        for serial in 3..=40 {
            let facts = facts(serial, 2, Some(now + Duration::MINUTE));
            let sealed = unchecked::sealed(facts, vec![serial], &ca.ticket_key, &mut random());
            record(Act::Seal(sealed.unwrap()));
        }

        let mut serials = |longest| {
            let later = now + Duration::HOUR;
            let list = ca.revocation_list(&mut *store, longest, later).unwrap();
            let (_, list) = CertificateRevocationList::from_der(&list).unwrap();
            list.iter_revoked_certificates().map(|it| it.raw_serial()[0]).collect::<Vec<_>>()
        };
        assert_eq!(serials(usize::MAX).len(), 39);
        assert_eq!(serials(1024), [1]);
    }
}
