//! Who is let in on the operational listener, and who is shown out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assay_broker_plugin::access::Identity;
use assay_broker_plugin::broker::{Admit, EmbeddedBroker, LoggedIn, Login};
use assay_broker_plugin::ca::{Ca, confirm_by_use};
use assay_broker_plugin::store::{CertificateStatus, Store};
use assay_ca_core::CLOCK_SKEW;
use time::OffsetDateTime;
use tracing::warn;

/// Asks the store what a device's certificate is worth now, and confirms one that waits for it. Workers and operators are on no list: their certificates
/// come from the directory itself.
pub(super) fn admit(store: Store) -> Arc<Admit> {
    let store = Mutex::new(store);
    Arc::new(move |identity: &Identity, serial: &[u8]| {
        let Identity::Device { .. } = identity else { return Ok(()) };
        // A panic elsewhere leaves the connection as good as it was: a transaction that was open is rolled back.
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        match store.certificate_status(serial).map_err(|error| error.to_string())? {
            CertificateStatus::Active => Ok(()),
            // TLS has shown that the device could read what only its TPM can.
            CertificateStatus::Unconfirmed => {
                let confirmed = confirm_by_use(&mut store, serial, OffsetDateTime::now_utc());
                confirmed.map_err(|refusal| format!("its certificate cannot be confirmed: {refusal}"))
            }
            status => Err(format!("its certificate is {status:?}")),
        }
    })
}

/// Asks the CA whether a token is good now.
pub(super) fn login(ca: Arc<Ca>, store: Store) -> Arc<Login> {
    let store = Mutex::new(store);
    Arc::new(move |user_name: &str, password: &[u8]| {
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        let now = OffsetDateTime::now_utc();
        let device = ca.login(&mut store, user_name, password, now).map_err(|refused| refused.to_string())?;
        let identity = Identity::Device { scope: ca.scope.clone(), device_id: device.device_id().clone() };
        Ok(LoggedIn {
            identity,
            expires_in: (device.expires_at() + CLOCK_SKEW - now).max(time::Duration::ZERO).unsigned_abs(),
        })
    })
}

/// Has the broker look at its connections again soon after each revocation, by whatever process; never returns.
pub(super) async fn cut_revoked(store: Store, broker: &EmbeddedBroker) {
    let mut seen = None;
    loop {
        match store.revocations() {
            Ok(revocations) if seen == Some(revocations) => {}
            Ok(revocations) => {
                seen = Some(revocations);
                broker.recheck();
            }
            Err(error) => warn!(%error, "cannot look for revocations; trying again"),
        }
        tokio::time::sleep(REVOCATION_POLL).await;
    }
}

/// A revoked device stays connected for this long at most, and a moment for the check itself.
const REVOCATION_POLL: Duration = Duration::from_secs(1);
