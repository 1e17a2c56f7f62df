//! Which generation of its shared key an EK has. The keys themselves are not stored.

use assay_ca_core::SharedKeyHolder;
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use super::columns::{ek_id, parsed};
use super::connection::Postgres;
use super::enrolments::device_of;
use super::session::Session;
use crate::deeds;
use crate::error::StoreError;
use crate::secrets::MadeBefore;

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

    pub(super) fn needed_before(
        &mut self,
        time: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<MadeBefore, StoreError> {
        let (time, now) = (time.unix_timestamp(), now.unix_timestamp());
        let count = |count: i64| u32::try_from(count).unwrap_or(u32::MAX);
        self.read(|session| {
            let row = session.query_one(MADE_BEFORE, &[&time, &now])?;
            Ok(MadeBefore {
                waiting: count(row.get(0)),
                last_until: row.get(1),
                shared_keys: count(row.get(2)),
                in_force: count(row.get(3)),
            })
        })
    }

    pub(super) fn retire(&mut self, ek: &EkId) -> Result<bool, StoreError> {
        self.act(|session, done| {
            let is_retired = retire(session, ek)?;
            if is_retired {
                done.push(deeds::key_retired(ek, device_of(session, ek)?));
            }
            Ok(is_retired)
        })
    }
}

/// Retires the shared key of an EK, and every generation that was offered but not used yet.
pub(super) fn retire(session: &mut Session, ek: &EkId) -> Result<bool, StoreError> {
    Ok(session.execute(RETIRE, &[&&ek.as_bytes()[..]])? == 1)
}

const MADE_BEFORE: &str = "SELECT count(*), max(confirm_by),
           (SELECT count(*) FROM shared_keys WHERE is_used AND offered_at < $1),
           (SELECT count(*) FROM certificates WHERE status = 'active'
            AND issued_at < $1 AND not_after > $2)
    FROM certificates WHERE status = 'unconfirmed' AND issued_at < $1 AND confirm_by > $2";
const HOLDERS: &str =
    "SELECT ek_id, assurance FROM shared_keys WHERE device_id = $1 ORDER BY offered_at, ek_id";
/// An offered generation is at most one above the generation on record, or one above the last that
/// was offered to a plain SRK. So the new number is above all of them.
const RETIRE: &str = "UPDATE shared_keys
    SET generation = greatest(generation, plain_srk_generation) + 2, is_used = false
    WHERE ek_id = $1";
