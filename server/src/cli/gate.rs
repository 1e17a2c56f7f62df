//! Who is let in on the operational listener, and who is shown out.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use assay_broker_plugin::access::Identity;
use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::embedded::{Admit, Denial, LoggedIn, Login};
use assay_ca_core::CLOCK_SKEW;
use assay_server::ca::LoginRefused;
use assay_server::worker::Outfit;
use assay_store::{CertificateStatus, Store, StoreError};
use assay_wire::Flow;
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::warn;

/// Asks the store what a certificate is worth now: that very one, and only for whom it was made.
/// What a stolen issuing key signs is on no record, whatever name and number it has.
///
/// A device's certificate that waits for its confirmation is worth nothing: only the ticket of its
/// box shows that its device could open that.
pub(super) fn admit(records: Records) -> Arc<Admit> {
    Arc::new(move |identity: &Identity, certificate: &ClientCertificate| {
        let store = records.read();
        let status = match identity {
            Identity::Device { device_id, .. } => {
                store.certificate_status(device_id, &certificate.serial, &certificate.sha256)
            }
            Identity::Operator | Identity::Worker => {
                store.credential_status(identity, &certificate.sha256)
            }
        };
        match status.map_err(unknown)? {
            CertificateStatus::Active => Ok(()),
            status => Err(Denial::Refused(format!("its certificate is {status}"))),
        }
    })
}

/// Asks the CA whether a token is good now, and has it record the first use of a key.
pub(super) fn login(outfit: watch::Receiver<Outfit>, records: Records) -> Arc<Login> {
    Arc::new(move |user_name: &str, password: &[u8]| {
        let (ca, now) = (Arc::clone(&outfit.borrow().ca), OffsetDateTime::now_utc());
        ca.profile
            .check_flow(Flow::SharedKey)
            .map_err(|rejection| Denial::Refused(rejection.to_string()))?;
        let (device, first_use) =
            ca.login(&records.read(), user_name, password, now).map_err(denial)?;
        if let Some(first_use) = first_use {
            ca.record_first_use(&mut records.write(), &first_use, now).map_err(denial)?;
        }
        let identity =
            Identity::Device { scope: ca.scope.clone(), device_id: device.device_id().clone() };
        Ok(LoggedIn {
            identity,
            expires_in: (device.expires_at() + CLOCK_SKEW - now)
                .max(time::Duration::ZERO)
                .unsigned_abs(),
        })
    })
}

/// Two ways to the store: who only reads never waits for one who writes, who may have to wait for
/// another process.
pub(super) struct Records {
    reader: Mutex<Store>,
    writer: Mutex<Store>,
}

impl Records {
    pub(super) fn open(database: &Path) -> Result<Self, StoreError> {
        Ok(Self { reader: Store::open(database)?.into(), writer: Store::open(database)?.into() })
    }

    fn read(&self) -> MutexGuard<'_, Store> {
        // A panic elsewhere leaves the connection as good as it was: a transaction that was open is
        // rolled back.
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

/// Has the broker look at its connections again, by `recheck`, soon after each revocation by
/// whatever process; never returns.
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
                // What cannot be looked up for long is not to stay connected, so let each
                // connection find that out.
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

    use assay_ca_core::{Assurance, IssuedCertificate, TicketKey};
    use assay_wire::{DeviceId, EkId};
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn certificate_that_waits_for_its_confirmation_lets_nobody_in() {
        let desk = Desk::open();
        let Err(Denial::Refused(reason)) = (desk.admit)(&desk.device, &shown(SERIAL, DER)) else {
            panic!("it is let in")
        };
        assert!(reason.contains("not confirmed"), "{reason}");
        assert_eq!(
            Store::open(&desk.database).unwrap().certificates().unwrap()[0].status,
            "unconfirmed"
        );
    }

    #[test]
    fn a_database_that_cannot_be_read_is_no_refusal() {
        let desk = Desk::open();
        desk.destroy();
        assert!(matches!((desk.admit)(&desk.device, &shown(SERIAL, DER)), Err(Denial::Unknown(_))));
    }

    #[tokio::test]
    async fn connections_are_looked_at_again_while_the_database_cannot_be_read() {
        let desk = Desk::open();
        let store = Store::open(&desk.database).unwrap();
        desk.destroy();
        let looked = std::cell::Cell::new(0);
        let cutting = cut_revoked(store, || looked.set(looked.get() + 1));
        assert!(
            tokio::time::timeout(2 * REVOCATION_POLL, cutting).await.is_err(),
            "it never returns"
        );
        assert!(looked.get() > 1, "{}", looked.get());
    }

    /// A database with a sealed certificate that nobody has confirmed.
    struct Desk {
        directory: tempfile::TempDir,
        database: std::path::PathBuf,
        admit: Arc<Admit>,
        device: Identity,
    }

    impl Desk {
        fn open() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let database = directory.path().join("assay.db");
            let now = OffsetDateTime::now_utc();
            let sealed = IssuedCertificate {
                der: DER.into(),
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
            store
                .transaction(|transaction| {
                    transaction.add_certificate(&sealed, &TicketKey::new([7; TicketKey::LEN]), now)
                })
                .unwrap();
            let admit = admit(Records::open(&database).unwrap());
            let device =
                Identity::Device { scope: "default".parse().unwrap(), device_id: sealed.device_id };
            Self { directory, database, admit, device }
        }

        /// What SQLite finds at its next look is no database.
        fn destroy(&self) {
            for file in ["assay.db", "assay.db-wal"] {
                std::fs::write(self.directory.path().join(file), [0xFF; 8192]).unwrap();
            }
        }
    }

    fn shown(serial: [u8; 16], der: &[u8]) -> ClientCertificate {
        ClientCertificate { serial: serial.into(), sha256: Sha256::digest(der).into() }
    }

    const SERIAL: [u8; 16] = [0x41; 16];
    const DER: &[u8] = &[0x30, 0x00];
}
