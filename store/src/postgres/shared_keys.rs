//! Which generation of its shared key an EK has. The keys themselves are not stored.

use assay_ca_core::SharedKeyHolder;
use assay_wire::{DeviceId, EkId};

use super::columns::{ek_id, parsed};
use super::connection::Postgres;
use super::session::Session;
use crate::error::StoreError;

impl Postgres {
    pub(super) fn holders(
        &mut self,
        device: &DeviceId,
    ) -> Result<Vec<SharedKeyHolder>, StoreError> {
        self.read(|session| {
            let rows = session.query(HOLDERS, &[&device.as_str()])?;
            let holder =
                |row| Ok(SharedKeyHolder { ek_id: ek_id(row, 0)?, assurance: parsed(row, 1)? });
            rows.iter().map(holder).collect()
        })
    }

    pub(super) fn retire(&mut self, ek: &EkId) -> Result<bool, StoreError> {
        self.write(|session| retire(session, ek))
    }
}

/// Retires the shared key of an EK, and every generation that was offered but not used yet.
pub(super) fn retire(session: &mut Session, ek: &EkId) -> Result<bool, StoreError> {
    Ok(session.execute(RETIRE, &[&&ek.as_bytes()[..]])? == 1)
}

const HOLDERS: &str =
    "SELECT ek_id, assurance FROM shared_keys WHERE device_id = $1 ORDER BY offered_at, ek_id";
/// An offered generation is at most one above the generation on record, or one above the last that
/// was offered to a plain SRK. So the new number is above all of them.
const RETIRE: &str = "UPDATE shared_keys
    SET generation = greatest(generation, plain_srk_generation) + 2, is_used = false
    WHERE ek_id = $1";
