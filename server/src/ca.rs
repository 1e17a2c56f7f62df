//! The CA's own keys and rules, and what it signs for everybody.

use std::sync::Arc;

use assay_ca_core::{
    ConfigurationSigner, Fault, Flaws, Issuer, Issuers, MasterSecret, Overlapping, Profile,
    Revoked, TicketKey,
};
use assay_store::{RevokedCertificates, Store, StoreError};
use assay_wire::{CertificateDer, KeyId, Scope};
use time::OffsetDateTime;

use crate::hook::Hook;

/// The CA's own keys and rules.
pub struct Ca {
    /// The provisioning domain it serves.
    pub scope: Scope,
    /// Seal tickets.
    pub ticket_keys: Overlapping<TicketKey>,
    /// Make shared keys.
    pub masters: Overlapping<MasterSecret>,
    /// Sign certificates.
    pub issuers: Issuers,
    /// The certificate by which the root vouches for a new one, while there are two.
    pub new_root: Option<CertificateDer>,
    /// The certificates that relying parties may trust, in PEM.
    pub certificates: String,
    /// Says what a certificate looks like, and which flows lead to one.
    pub profile: Profile,
    /// Signs documents for devices. `None` if the worker's key or certificate cannot be used for
    /// that.
    pub documents: Option<ConfigurationSigner>,
    /// Firmware with known flaws.
    pub flaws: Flaws,
    /// The operator's own service, which is asked about each device, if there is one.
    pub hook: Option<Hook>,
}

/// A revocation list, and who signed it.
#[derive(Clone, Debug)]
pub struct SignedList {
    /// The identifier of the issuing CA's key.
    pub key_id: KeyId,
    /// Whether this issuing CA signs certificates now.
    pub in_use: bool,
    /// The list in DER.
    pub der: Vec<u8>,
}

/// The lists of all issuing CAs that have not ended.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// Those that could be signed.
    pub signed: Vec<SignedList>,
    /// The keys of issuing CAs that are elsewhere and do not sign now.
    pub away: Vec<KeyId>,
}

impl Ca {
    /// Signs the list of each issuing CA that has not ended: of what it may have signed, and is no
    /// longer good. They have a number in common, which none had before.
    ///
    /// If a list has more than `longest` bytes, certificates that never came into force are left
    /// out of it: strangers can fill a list with them, and nobody but their TPMs can show them.
    ///
    /// # Errors
    /// The store failed, or a signer did.
    pub fn revocation_lists(
        &self,
        store: &mut dyn Store,
        longest: usize,
        now: OffsetDateTime,
    ) -> Result<Lists, ListError> {
        let (RevokedCertificates { once_in_force, never_in_force }, number) =
            store.revocation_list(now)?;
        let in_use = self.issuers.current(now);
        let good = self.issuers.all().iter().filter(|it| it.issuer.not_after() > now);
        let lists = good.clone().map(|scheduled| {
            let issuer = &scheduled.issuer;
            let its = |it: &&Revoked| scheduled.may_have_signed(&it.serial);
            let all = once_in_force.iter().chain(&never_in_force).filter(its).cloned();
            let mut der = issuer.revocation_list(all, number, now)?;
            if der.len() > longest {
                let some = once_in_force.iter().filter(its).cloned();
                der = issuer.revocation_list(some, number, now)?;
            }
            Ok(SignedList { key_id: key_id(issuer), in_use: Arc::ptr_eq(issuer, in_use), der })
        });
        let mut made = Lists::default();
        for (list, scheduled) in lists.zip(good) {
            match list {
                Ok(list) => made.signed.push(list),
                Err(ListError::Fault(Fault::KeyAway)) => made.away.push(key_id(&scheduled.issuer)),
                Err(error) => return Err(error),
            }
        }
        Ok(made)
    }
}

/// The identifier of an issuer's key, as topics and people have it.
pub fn key_id(issuer: &Issuer) -> KeyId {
    hex::encode(issuer.key_id()).parse().expect("an issuer's key identifier has a good length")
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
    use crate::operations::issuing;
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
            let sealed =
                unchecked::sealed(facts, vec![serial], ca.ticket_keys.in_use(now), &mut random());
            record(Act::Seal(sealed.unwrap()));
        }

        let mut serials = |longest| {
            let later = now + Duration::HOUR;
            let list =
                ca.revocation_lists(&mut *store, longest, later).unwrap().signed.remove(0).der;
            let (_, list) = CertificateRevocationList::from_der(&list).unwrap();
            list.iter_revoked_certificates().map(|it| it.raw_serial()[0]).collect::<Vec<_>>()
        };
        assert_eq!(serials(usize::MAX).len(), 39);
        assert_eq!(serials(1024), [1]);
    }

    #[test]
    fn each_issuing_ca_lists_what_it_may_have_signed() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let directory = Directory::open(&parent.path().join("ca")).unwrap();
        let now = OffsetDateTime::now_utc();
        let from = now + Duration::days(7);
        let next = issuing::make(&directory, from, None, None, now).unwrap();
        let (ca, mut store) = (directory.ca().unwrap(), directory.store().unwrap());
        let serial = |at: OffsetDateTime| {
            let mut serial = [7; 16];
            serial[0] = 0x40;
            serial[1..6].copy_from_slice(&at.unix_timestamp().to_be_bytes()[3..]);
            serial
        };
        // Of each device, the second certificate takes the place of the first.
        for (ek, at) in [(1, now), (2, from)] {
            for (n, at) in [at, at + Duration::SECOND].into_iter().enumerate() {
                let facts = CertificateFacts {
                    serial: serial(at),
                    not_before: at,
                    not_after: at + Duration::days(90),
                    device_id: format!("pump-{ek}").parse().unwrap(),
                    ek_id: [ek; 32].into(),
                    ik_id: [u8::try_from(n).unwrap(); 32],
                    assurance: Assurance::VendorCertificate,
                    issued_at: at,
                    confirm_by: None,
                };
                let act =
                    Act::Certify(unchecked::issued(facts, vec![ek, u8::try_from(n).unwrap()]));
                _ = store.record(&ca.scope, &[Entry { act, basis: None, audit: None }]).unwrap();
            }
        }
        let mut lists = |at| {
            let lists =
                ca.revocation_lists(&mut *store, usize::MAX, at).unwrap().signed.into_iter();
            let named = |list: SignedList| {
                let (_, parsed) = CertificateRevocationList::from_der(&list.der).unwrap();
                let serials = parsed.iter_revoked_certificates();
                let serials: Vec<_> = serials.map(|it| it.raw_serial().to_vec()).collect();
                (list.key_id, list.in_use, serials)
            };
            lists.map(named).collect::<Vec<_>>()
        };
        let [first, second] = &lists(now)[..] else { panic!("two lists") };
        assert!(first.1 && !second.1 && second.0 == next.key_id);
        assert_eq!(first.2, [serial(now).to_vec(), serial(from).to_vec()]);
        assert_eq!(second.2, [serial(from).to_vec()]);
        let [first, second] = &lists(from)[..] else { panic!("two lists") };
        assert!(!first.1 && second.1);
        assert!(lists(next.ends).is_empty(), "one that has ended signs none");
    }
}
