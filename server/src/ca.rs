//! The CA's own keys and rules, and what it signs for everybody.

use assay_ca_core::{Fault, Issuer, MasterSecret, Profile, TicketKey};
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
    /// Signs certificates.
    pub issuer: Issuer,
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
        let all = once_in_force.iter().chain(&never_in_force).cloned();
        let list = self.issuer.revocation_list(all, number, now)?;
        if list.len() <= longest {
            return Ok(list);
        }
        Ok(self.issuer.revocation_list(once_in_force, number, now)?)
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
