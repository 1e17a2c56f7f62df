//! The devices that do not exist: made and put on record for a check, and revoked at its end.

use assay_server::directory::{Directory, ThrowAwayDevice};
use assay_store::{Store, StoreError};
use time::{Duration, OffsetDateTime};

/// The certificates are good while this value lives, and for ten minutes at most.
pub(super) struct Devices {
    store: Box<dyn Store>,
    pub(super) device: ThrowAwayDevice,
    pub(super) other: ThrowAwayDevice,
    /// Its certificate ended before the check began.
    pub(super) expired: ThrowAwayDevice,
    /// Its certificate is revoked in the course of the check.
    pub(super) revoked: ThrowAwayDevice,
}

impl Devices {
    pub(super) fn make(directory: &Directory) -> anyhow::Result<Self> {
        let now = OffsetDateTime::now_utc();
        let store = directory.store()?;
        let [device, other, expired, revoked] =
            directory.throw_away_devices([now, now, now - Duration::DAY, now])?;
        let mut devices = Self { store, device, other, expired, revoked };
        for device in [&devices.device, &devices.other, &devices.expired, &devices.revoked] {
            // If this fails half way, those that are on record are revoked.
            devices.store.add_throw_away(&device.id, &device.credentials.chain[0], now)?;
        }
        Ok(devices)
    }

    /// Revokes the certificate that is there to be revoked.
    pub(super) fn revoke_one(&mut self) -> Result<(), StoreError> {
        self.store
            .revoke_throw_away(&[&self.revoked.credentials.chain[0][..]], OffsetDateTime::now_utc())
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let all = [&self.device, &self.other, &self.expired, &self.revoked];
        let all = all.map(|device| &device.credentials.chain[0][..]);
        if let Err(error) = self.store.revoke_throw_away(&all, OffsetDateTime::now_utc()) {
            eprintln!(
                "the certificates of this check could not be revoked ({error}); they end by \
                 themselves in ten minutes"
            );
        }
    }
}
