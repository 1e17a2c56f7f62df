//! Which generation of its shared key an EK has. The keys themselves are nowhere.

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{Assurance, QUOTA_PERIOD};
use assay_wire::{DeviceId, EkId};
use rusqlite::params;
use time::OffsetDateTime;

use super::columns::{ek_id, parsed};
use super::connection::{Sqlite, Transaction};
use crate::act::NewOffer;
use crate::error::StoreError;
use crate::shared_keys::SharedKeyHolder;

impl Transaction<'_> {
    /// Records that a shared key was offered to an EK under a device id. The generation on record
    /// is only set the first time: that of a later offer counts once a token of it is
    /// [accepted](Self::accept_shared_key). That a plain storage root key was offered it is never
    /// forgotten.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn offer_shared_key(
        &self,
        ek: &EkId,
        device: &DeviceId,
        assurance: Assurance,
        generation: u32,
        parent: ParentKind,
    ) -> Result<(), StoreError> {
        let plain_srk_generation = match parent {
            ParentKind::Import => 0,
            ParentKind::PlainSrk => generation,
        };
        self.offer(&NewOffer {
            ek_id: ek,
            device_id: device,
            assurance,
            generation,
            plain_srk_generation,
            offered_at: OffsetDateTime::now_utc(),
        })
    }

    pub(super) fn offer(&self, new: &NewOffer<'_>) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "INSERT INTO shared_keys (ek_id, device_id, assurance, generation, is_used, \
                 plain_srk_generation, offered_at)
                 VALUES (?1, ?2, ?3, ?4, 0, ?6, ?7)
                 ON CONFLICT (ek_id) DO UPDATE SET device_id = excluded.device_id,
                   assurance = iif(assurance = ?5, assurance, excluded.assurance),
                   plain_srk_generation = max(plain_srk_generation, excluded.plain_srk_generation),
                   offered_at = excluded.offered_at",
            )?
            .execute(params![
                new.ek_id.as_bytes(),
                new.device_id.as_str(),
                new.assurance.to_string(),
                new.generation,
                // Once seen, a vendor's word stays: anybody may leave the certificate out of a
                // request.
                Assurance::VendorCertificate.to_string(),
                new.plain_srk_generation,
                new.offered_at.unix_timestamp()
            ])?;
        Ok(())
    }

    /// Records that a device connected with a token of this generation: earlier ones are retired,
    /// and the device is registered.
    ///
    /// # Errors
    /// The file cannot be written, or the device id and the EK do not belong together.
    pub fn accept_shared_key(
        &self,
        holder: &SharedKeyHolder,
        device: &DeviceId,
        generation: u32,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.register(device, &holder.ek_id, holder.assurance, now)?;
        self.take_into_use(&holder.ek_id, generation, now)
    }

    pub(super) fn take_into_use(
        &self,
        ek: &EkId,
        generation: u32,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "UPDATE shared_keys SET generation = ?2, is_used = 1,
                        day = iif(day > ?4, day, ?3), today = iif(day > ?4, today, 0) + 1 WHERE \
                 ek_id = ?1",
            )?
            .execute(params![
                ek.as_bytes(),
                generation,
                now.unix_timestamp(),
                (now - QUOTA_PERIOD).unix_timestamp()
            ])?;
        Ok(())
    }

    /// The EKs to which a shared key was offered under this device id. More than one only if the id
    /// changed hands; admission knows whose it is now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn shared_key_holders(
        &self,
        device: &DeviceId,
    ) -> Result<Vec<SharedKeyHolder>, StoreError> {
        holders(self.0, device)
    }

    /// Retires the shared key of an EK, and those that were offered but not used yet; `false` if it
    /// never had one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn retire_shared_key(&self, ek: &EkId) -> Result<bool, StoreError> {
        // None that was offered is later than the next of the one on record, or of the last that a
        // plain SRK was offered.
        let mut statement = self.0.prepare_cached(
            "UPDATE shared_keys SET generation = max(generation, plain_srk_generation) + 2, \
             is_used = 0 WHERE ek_id = ?1",
        )?;
        Ok(statement.execute(params![ek.as_bytes()])? == 1)
    }
}

impl Sqlite {
    /// The same outside of a transaction, for reading.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn shared_key_holders(
        &self,
        device: &DeviceId,
    ) -> Result<Vec<SharedKeyHolder>, StoreError> {
        holders(&self.connection, device)
    }
}

fn holders(
    connection: &rusqlite::Connection,
    device: &DeviceId,
) -> Result<Vec<SharedKeyHolder>, StoreError> {
    let mut statement = connection
        .prepare_cached("SELECT ek_id, assurance FROM shared_keys WHERE device_id = ?1")?;
    let rows = statement.query_map(params![device.as_str()], |row| {
        Ok(SharedKeyHolder { ek_id: ek_id(row, 0)?, assurance: parsed(row, 1)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
