//! What the CA has on record of a client: whether its certificate or its token is good now.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::doorkeeper::{Good, LoggedIn, NotGood, Register};
use assay_ca_core::{CLOCK_SKEW, Login, LoginRefused, Token};
use assay_store::{
    Act, Basis, CertificateStatus, Database, Entry, Question, Recorded, Snapshot, Store, StoreError,
};
use assay_wire::Identity;
use time::OffsetDateTime;

use crate::ca::Ca;

/// The register that answers from the store.
///
/// It opens the store three times. So a look at a certificate never waits for a login, and neither
/// waits for the recording of a key's first use, which may have to wait for another process.
pub struct StoreRegister {
    ca: Box<dyn Fn() -> Arc<Ca> + Send + Sync>,
    certificates: Mutex<Box<dyn Store>>,
    logins: Mutex<Box<dyn Store>>,
    writer: Mutex<Box<dyn Store>>,
}

impl Register for StoreRegister {
    /// A certificate is good if that very one is on record, active, and made for whom it names.
    /// What a stolen issuing key signs is on no record, whatever name and number it has.
    ///
    /// A device's certificate that waits for its confirmation is not good: only the ticket of its
    /// box shows that its device could open the box.
    fn certificate(&self, certificate: &ClientCertificate) -> Result<Good, NotGood> {
        let ClientCertificate { identity, serial, sha256, .. } = certificate;
        let mut store = lock(&self.certificates);
        let status = match identity {
            Identity::Device { device_id, .. } => {
                store.certificate_status(device_id, serial, sha256)
            }
            Identity::Operator | Identity::Worker => store.credential_status(identity, sha256),
        };
        match status.map_err(unknown)? {
            CertificateStatus::Active => Ok(Good),
            status => Err(NotGood::Refused(format!("its certificate is {status}"))),
        }
    }

    /// A password is good if it is a token that a device's shared key signed, and the first use of
    /// that key is on record.
    fn login(&self, user_name: &str, password: &[u8]) -> Result<LoggedIn, NotGood> {
        let (ca, now) = ((self.ca)(), OffsetDateTime::now_utc());
        let token = Token::parse(user_name, password).map_err(refused)?;
        for _ in 0..ATTEMPTS {
            let (login, basis) = self.find(&ca, &token, now)?;
            let recorded = match login.first_use(&basis.snapshot.records) {
                None => Recorded::Done,
                Some(first_use) => {
                    let entry =
                        Entry { act: Act::Accept(first_use), basis: Some(basis), audit: None };
                    lock(&self.writer).record(&ca.scope, &[entry]).map_err(unknown)?[0]
                }
            };
            if recorded == Recorded::Done {
                return Ok(logged_in(&ca, &login, now));
            }
        }
        Err(unknown("the record of its key changed each time before its first use was recorded"))
    }
}

impl StoreRegister {
    /// Opens the store. `ca` returns the keys and rules that are good now.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(
        database: &Database,
        ca: impl Fn() -> Arc<Ca> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let open = || database.open().map(Mutex::new);
        Ok(Self { ca: Box::new(ca), certificates: open()?, logins: open()?, writer: open()? })
    }

    /// Finds the EK whose key signed the token. If a device id went from one EK to another, both
    /// have been offered a key under it.
    fn find(&self, ca: &Ca, token: &Token, now: OffsetDateTime) -> Result<(Login, Basis), NotGood> {
        let offered = ca.profile.offer().map_err(refused)?;
        let mut store = lock(&self.logins);
        let mut refusal = LoginRefused::NoKey { device_id: token.device_id().clone() };
        for holder in store.shared_key_holders(token.device_id()).map_err(unknown)? {
            let question = Question::about(holder.ek_id, token.device_id(), now);
            let snapshot = store.snapshot(&question).map_err(unknown)?;
            let Snapshot { records, .. } = &snapshot;
            let (scope, master) = (&ca.scope, &ca.master);
            match Login::decide(offered, token, &holder, scope, master, records, now) {
                Ok(login) => return Ok((login, Basis { question, snapshot })),
                Err(refused) => refusal = refused,
            }
        }
        Err(refused(refusal))
    }
}

fn logged_in(ca: &Ca, login: &Login, now: OffsetDateTime) -> LoggedIn {
    let identity =
        Identity::Device { scope: ca.scope.clone(), device_id: login.device_id().clone() };
    let left = login.expires_at() + CLOCK_SKEW - now;
    LoggedIn { identity, expires_in: left.max(time::Duration::ZERO).unsigned_abs() }
}

fn lock(store: &Mutex<Box<dyn Store>>) -> MutexGuard<'_, Box<dyn Store>> {
    // After a panic elsewhere the store is as good as before: an open transaction was rolled back.
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(reason: impl ToString) -> NotGood {
    NotGood::Refused(reason.to_string())
}

fn unknown(error: impl ToString) -> NotGood {
    NotGood::Unknown(error.to_string())
}

/// How often a login is decided, if the record that it was decided by changes each time.
const ATTEMPTS: u32 = 5;

#[cfg(test)]
mod tests {
    use assay_ca_core::{Assurance, CertificateFacts, unchecked};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::directory::Directory;
    use crate::random::random;

    #[test]
    fn certificate_that_waits_for_its_confirmation_lets_nobody_in() {
        let desk = Desk::open();
        let Err(NotGood::Refused(reason)) = desk.register.certificate(&desk.shown) else {
            panic!("it is good")
        };
        assert!(reason.contains("not confirmed"), "{reason}");
        let mut store = desk.database.open().unwrap();
        assert_eq!(store.certificates().unwrap()[0].status, "unconfirmed");
    }

    #[test]
    fn a_database_that_cannot_be_read_is_no_refusal() {
        let desk = Desk::open();
        // What SQLite finds at its next look is no database.
        for file in ["assay.db", "assay.db-wal"] {
            std::fs::write(desk.parent.path().join("ca").join(file), [0xFF; 8192]).unwrap();
        }
        let answer = desk.register.certificate(&desk.shown);
        assert!(matches!(answer, Err(NotGood::Unknown(_))), "{answer:?}");
    }

    /// A CA with a sealed certificate that nobody has confirmed.
    struct Desk {
        parent: tempfile::TempDir,
        database: Database,
        register: StoreRegister,
        shown: ClientCertificate,
    }

    impl Desk {
        fn open() -> Self {
            let parent = tempfile::tempdir().unwrap();
            Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
            let directory = Directory::open(&parent.path().join("ca")).unwrap();
            let (database, ca) = (directory.database().unwrap(), Arc::new(directory.ca().unwrap()));
            let now = OffsetDateTime::now_utc();
            let facts = CertificateFacts {
                serial: [0x41; 16],
                not_before: now,
                not_after: now + time::Duration::DAY,
                device_id: "pump-17".parse().unwrap(),
                ek_id: [17; 32].into(),
                ik_id: [18; 32],
                assurance: Assurance::VendorCertificate,
                issued_at: now,
                confirm_by: Some(now + time::Duration::HOUR),
            };
            let (der, device_id) = (vec![0x30, 0x00], facts.device_id.clone());
            let shown = ClientCertificate {
                identity: Identity::Device { scope: ca.scope.clone(), device_id },
                not_after: facts.not_after.into(),
                serial: facts.serial.to_vec(),
                sha256: Sha256::digest(&der).into(),
            };
            let sealed = unchecked::sealed(facts, der, &ca.ticket_key, &mut random()).unwrap();
            let entry = Entry { act: Act::Seal(sealed), basis: None, audit: None };
            let mut store = directory.store().unwrap();
            assert_eq!(store.record(&ca.scope, &[entry]).unwrap(), [Recorded::Done]);
            let register = StoreRegister::open(&database, move || Arc::clone(&ca)).unwrap();
            Self { parent, database, register, shown }
        }
    }
}
