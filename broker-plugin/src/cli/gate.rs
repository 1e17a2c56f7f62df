//! Who is let in on the operational listener, and who is shown out.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assay_broker_plugin::access::Identity;
use assay_broker_plugin::broker::{Admit, Denial, LoggedIn, Login};
use assay_broker_plugin::ca::{LoginRefused, Refusal, confirm_by_use};
use assay_broker_plugin::store::{CertificateStatus, Store, StoreError};
use assay_broker_plugin::worker::Outfit;
use assay_ca_core::CLOCK_SKEW;
use assay_wire::Flow;
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::warn;

/// Asks the store what a device's certificate is worth now, and confirms one that waits for it. Workers and operators are on no list: their
/// certificates come from the directory itself.
pub(super) fn admit(records: Records) -> Arc<Admit> {
    Arc::new(move |identity: &Identity, serial: &[u8]| {
        let Identity::Device { .. } = identity else { return Ok(()) };
        let mut status = records.status(serial)?;
        if status == CertificateStatus::Unconfirmed {
            // TLS has shown that the device could read what only its TPM can.
            confirm_by_use(&mut records.write(), serial, OffsetDateTime::now_utc()).map_err(
                |refusal| match refusal {
                    Refusal::Rejection(_) => Denial::Refused(format!("its certificate cannot be confirmed: {refusal}")),
                    Refusal::Fault(_) | Refusal::Store(_) => unknown(refusal),
                },
            )?;
            // It may have been revoked while this waited for the database.
            status = records.status(serial)?;
        }
        match status {
            CertificateStatus::Active => Ok(()),
            status => Err(Denial::Refused(format!("its certificate is {status:?}"))),
        }
    })
}

/// Asks the CA whether a token is good now, and has it record the first use of a key.
pub(super) fn login(outfit: watch::Receiver<Outfit>, records: Records) -> Arc<Login> {
    Arc::new(move |user_name: &str, password: &[u8]| {
        let (ca, now) = (Arc::clone(&outfit.borrow().ca), OffsetDateTime::now_utc());
        ca.profile.check_flow(Flow::SharedKey).map_err(|rejection| Denial::Refused(rejection.to_string()))?;
        let (device, first_use) = ca.login(&records.read(), user_name, password, now).map_err(denial)?;
        if let Some(first_use) = first_use {
            ca.record_first_use(&mut records.write(), &first_use, now).map_err(denial)?;
        }
        let identity = Identity::Device { scope: ca.scope.clone(), device_id: device.device_id().clone() };
        Ok(LoggedIn {
            identity,
            expires_in: (device.expires_at() + CLOCK_SKEW - now).max(time::Duration::ZERO).unsigned_abs(),
        })
    })
}

/// Two ways to the store: who only reads never waits for one who writes, who may have to wait for another process.
pub(super) struct Records {
    reader: Mutex<Store>,
    writer: Mutex<Store>,
}

impl Records {
    pub(super) fn open(database: &Path) -> Result<Self, StoreError> {
        Ok(Self { reader: Store::open(database)?.into(), writer: Store::open(database)?.into() })
    }

    fn status(&self, serial: &[u8]) -> Result<CertificateStatus, Denial> {
        self.read().certificate_status(serial).map_err(unknown)
    }

    fn read(&self) -> MutexGuard<'_, Store> {
        // A panic elsewhere leaves the connection as good as it was: a transaction that was open is rolled back.
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> MutexGuard<'_, Store> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn denial(refused: LoginRefused) -> Denial {
    match refused {
        LoginRefused::Store(error) => unknown(error),
        LoginRefused::Token(_) | LoginRefused::Rejection(_) | LoginRefused::NoKey { .. } => {
            Denial::Refused(refused.to_string())
        }
    }
}

fn unknown(error: impl ToString) -> Denial {
    Denial::Unknown(error.to_string())
}

/// Has the broker look at its connections again, by `recheck`, soon after each revocation by whatever process; never returns.
pub(super) async fn cut_revoked(store: Store, recheck: impl Fn()) {
    let mut seen = None;
    loop {
        match store.revocations() {
            Ok(revocations) if seen == Some(revocations) => {}
            Ok(revocations) => {
                seen = Some(revocations);
                recheck();
            }
            Err(error) => {
                warn!(%error, "cannot look for revocations; trying again");
                // What cannot be looked up for long is not to stay connected, so let each connection find that out.
                recheck();
            }
        }
        tokio::time::sleep(REVOCATION_POLL).await;
    }
}

/// A revoked device stays connected for this long at most, and a moment for the check itself.
const REVOCATION_POLL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::str::FromStr;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    use assay_broker_plugin::store::Transaction;
    use assay_ca_core::{Assurance, IssuedCertificate};
    use assay_wire::{DeviceId, EkId};

    use super::*;

    #[test]
    fn confirmation_that_waits_for_the_database_delays_no_other_admission() {
        let desk = Desk::open();
        let blocked = desk.block(|_| Ok(()));
        let confirming = desk.admit_aside();
        thread::sleep(Duration::from_millis(200));
        let started = Instant::now();
        assert!(matches!((desk.admit)(&desk.device, &[0x42; 16]), Err(Denial::Refused(_))));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert!(!confirming.is_finished(), "it needs the database that is locked");
        blocked.release();
        assert_eq!(confirming.join().unwrap(), Ok(()));
    }

    #[test]
    fn certificate_that_was_revoked_while_it_waited_to_be_confirmed_lets_nobody_in() {
        let desk = Desk::open();
        let too_late = OffsetDateTime::now_utc() + 2 * time::Duration::HOUR;
        let blocked = desk.block(move |transaction| transaction.revoke_unconfirmed(too_late).map(drop));
        let confirming = desk.admit_aside();
        thread::sleep(Duration::from_millis(200));
        assert!(!confirming.is_finished(), "it has seen the certificate as it was before");
        blocked.release();
        assert!(matches!(confirming.join().unwrap(), Err(Denial::Refused(_))));
    }

    #[test]
    fn a_database_that_cannot_be_read_is_no_refusal() {
        let desk = Desk::open();
        desk.destroy();
        assert!(matches!((desk.admit)(&desk.device, &SERIAL), Err(Denial::Unknown(_))));
    }

    #[tokio::test]
    async fn connections_are_looked_at_again_while_the_database_cannot_be_read() {
        let desk = Desk::open();
        let store = Store::open(&desk.database).unwrap();
        desk.destroy();
        let looked = std::cell::Cell::new(0);
        let cutting = cut_revoked(store, || looked.set(looked.get() + 1));
        assert!(tokio::time::timeout(2 * REVOCATION_POLL, cutting).await.is_err(), "it never returns");
        assert!(looked.get() > 1, "{}", looked.get());
    }

    /// A database with a sealed certificate that nobody has confirmed.
    struct Desk {
        directory: tempfile::TempDir,
        database: std::path::PathBuf,
        admit: Arc<Admit>,
        device: Identity,
    }

    /// Somebody who holds the database's write lock.
    struct Blocker {
        release: mpsc::Sender<()>,
        thread: thread::JoinHandle<()>,
    }

    impl Desk {
        fn open() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let database = directory.path().join("assay.db");
            let now = OffsetDateTime::now_utc();
            let sealed = IssuedCertificate {
                der: vec![0x30, 0x00].into(),
                serial: SERIAL,
                not_before: now,
                not_after: now + time::Duration::DAY,
                device_id: DeviceId::from_str("pump-17").unwrap(),
                ek_id: EkId::from([17; 32]),
                ik_spki: vec![17],
                assurance: Assurance::VendorCertificate,
                confirm_by: Some(now + time::Duration::HOUR),
            };
            let mut store = Store::create(&database).unwrap();
            store.transaction(|transaction| transaction.add_certificate(&sealed, now)).unwrap();
            let admit = admit(Records::open(&database).unwrap());
            let device = Identity::Device { scope: "default".parse().unwrap(), device_id: sealed.device_id };
            Self { directory, database, admit, device }
        }

        /// Does `work` in a transaction that ends when the blocker is released.
        fn block(&self, work: impl FnOnce(&Transaction<'_>) -> Result<(), StoreError> + Send + 'static) -> Blocker {
            let mut store = Store::open(&self.database).unwrap();
            let ((locked, is_locked), (release, released)) = (mpsc::channel(), mpsc::channel());
            let thread = thread::spawn(move || {
                let done = store.transaction(|transaction| {
                    work(transaction)?;
                    locked.send(()).unwrap();
                    released.recv().unwrap();
                    Ok(())
                });
                done.unwrap();
            });
            is_locked.recv().unwrap();
            Blocker { release, thread }
        }

        fn admit_aside(&self) -> thread::JoinHandle<Result<(), Denial>> {
            let (admit, device) = (self.admit.clone(), self.device.clone());
            thread::spawn(move || admit(&device, &SERIAL))
        }

        /// What SQLite finds at its next look is no database.
        fn destroy(&self) {
            for file in ["assay.db", "assay.db-wal"] {
                std::fs::write(self.directory.path().join(file), [0xFF; 8192]).unwrap();
            }
        }
    }

    impl Blocker {
        fn release(self) {
            self.release.send(()).unwrap();
            self.thread.join().unwrap();
        }
    }

    const SERIAL: [u8; 16] = [0x41; 16];
}
