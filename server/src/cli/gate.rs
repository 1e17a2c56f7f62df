//! Who is let in on the operational listener, and who is shown out.

use std::sync::Arc;
use std::time::Duration;

use assay_broker_plugin::access::Identity;
use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::embedded::{Admit, Login};
use assay_server::register::Register;
use assay_store::Store;
use tracing::warn;

pub(super) fn admit(register: Arc<Register>) -> Arc<Admit> {
    Arc::new(move |identity: &Identity, certificate: &ClientCertificate| {
        register.admit(identity, certificate)
    })
}

pub(super) fn login(register: Arc<Register>) -> Arc<Login> {
    Arc::new(move |user_name: &str, password: &[u8]| register.login(user_name, password))
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
    use super::*;

    #[tokio::test]
    async fn connections_are_looked_at_again_while_the_database_cannot_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("assay.db");
        drop(Store::create(&file).unwrap());
        let store = Store::open(&file).unwrap();
        // What SQLite finds at its next look is no database.
        for file in ["assay.db", "assay.db-wal"] {
            std::fs::write(directory.path().join(file), [0xFF; 8192]).unwrap();
        }
        let looked = std::cell::Cell::new(0);
        let cutting = cut_revoked(store, || looked.set(looked.get() + 1));
        assert!(
            tokio::time::timeout(2 * REVOCATION_POLL, cutting).await.is_err(),
            "it never returns"
        );
        assert!(looked.get() > 1, "{}", looked.get());
    }
}
