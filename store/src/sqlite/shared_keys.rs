//! Which generation of its shared key an EK has. The keys themselves are not stored.

use assay_ca_core::{Assurance, QUOTA_PERIOD, SharedKeyHolder};
use assay_wire::{DeviceId, EkId};
use rusqlite::params;
use time::OffsetDateTime;

use super::columns::{ek_id, parsed};
use super::connection::{Sqlite, Transaction};
use crate::error::StoreError;
use crate::secrets::MadeBefore;
use crate::writes::{NewOffer, NewUse};

impl Transaction<'_> {
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
                // Once a vendor's certificate was seen, this assurance stays, because anybody may
                // leave the certificate out of a later request.
                Assurance::VendorCertificate.to_string(),
                new.plain_srk_generation,
                new.offered_at.unix_timestamp()
            ])?;
        Ok(())
    }

    pub(super) fn take_into_use(&self, new: &NewUse<'_>) -> Result<(), StoreError> {
        let rows = self
            .0
            .prepare_cached(
                "UPDATE shared_keys SET generation = ?2, is_used = 1,
                        day = iif(day > ?4, day, ?3), today = iif(day > ?4, today, 0) + 1 WHERE \
                 ek_id = ?1",
            )?
            .execute(params![
                new.ek_id.as_bytes(),
                new.generation,
                new.used_at.unix_timestamp(),
                (new.used_at - QUOTA_PERIOD).unix_timestamp()
            ])?;
        if rows == 1 {
            return Ok(());
        }
        Err(StoreError::Inconsistent("no shared key was offered to the EK"))
    }

    /// Retires the shared key of an EK, and every generation that was offered but not used yet.
    /// Returns `false` if no shared key was ever offered to the EK.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn retire_shared_key(&self, ek: &EkId) -> Result<bool, StoreError> {
        // An offered generation is at most one above the generation on record, or one above the
        // last that was offered to a plain SRK. So the new number is above all of them.
        let mut statement = self.0.prepare_cached(
            "UPDATE shared_keys SET generation = max(generation, plain_srk_generation) + 2, \
             is_used = 0 WHERE ek_id = ?1",
        )?;
        Ok(statement.execute(params![ek.as_bytes()])? == 1)
    }
}

impl Sqlite {
    /// What was made before this time, and is still needed `now`.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn made_before(
        &self,
        time: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<MadeBefore, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT count(*), max(confirm_by),
                    (SELECT count(*) FROM shared_keys WHERE is_used AND offered_at < ?1),
                    (SELECT count(*) FROM certificates WHERE status = 'active'
                     AND issued_at < ?1 AND not_after > ?2)
             FROM certificates WHERE status = 'unconfirmed' AND issued_at < ?1 AND confirm_by > ?2",
        )?;
        let times = params![time.unix_timestamp(), now.unix_timestamp()];
        Ok(statement.query_row(times, |row| {
            Ok(MadeBefore {
                waiting: row.get(0)?,
                last_until: row.get(1)?,
                shared_keys: row.get(2)?,
                in_force: row.get(3)?,
            })
        })?)
    }

    /// The EKs to which a shared key was offered under this device id. There is more than one only
    /// if the id passed from one EK to another; admission knows which EK has it now.
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
    let mut statement = connection.prepare_cached(
        "SELECT ek_id, assurance FROM shared_keys WHERE device_id = ?1 ORDER BY ek_id",
    )?;
    let rows = statement.query_map(params![device.as_str()], |row| {
        Ok(SharedKeyHolder { ek_id: ek_id(row, 0)?, assurance: parsed(row, 1)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
