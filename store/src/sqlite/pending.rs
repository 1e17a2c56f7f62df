//! EKs about which an operator is asked.

use assay_wire::{DeviceId, EkId};
use rusqlite::{Connection, OptionalExtension, params};
use time::OffsetDateTime;

use super::columns::{ek_facts, ek_id, optional_device_id, parsed, time};
use super::connection::{Sqlite, Transaction};
use crate::deeds;
use crate::error::StoreError;
use crate::facts;
use crate::pending::{MAX_PENDING, PendingRow, Waiting};

impl Sqlite {
    /// See [`Store::pending`](crate::contract::Store::pending).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn pending(&self) -> Result<Vec<PendingRow>, StoreError> {
        self.list(PENDING, &[], |row| {
            Ok(PendingRow {
                waiting: Waiting {
                    ek_id: ek_id(row, 0)?,
                    facts: ek_facts(row, 1)?.unwrap_or_default(),
                    flow: parsed(row, 2)?,
                    device_id: optional_device_id(row, 3)?,
                    asked_at: time(5, row.get(5)?)?,
                },
                first_seen: row.get(4)?,
            })
        })
    }

    /// See [`Store::turn_away`](crate::contract::Store::turn_away).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn turn_away(&mut self, eks: &[EkId], now: OffsetDateTime) -> Result<(), StoreError> {
        self.act(|transaction, done| {
            for ek in eks {
                super::enrolments::set_disabled(transaction.0, ek, true, now)?;
                forget(transaction.0, ek)?;
            }
            done.extend(deeds::turned_away(eks));
            Ok(())
        })
    }
}

impl Transaction<'_> {
    /// An EK that is new takes the place of the one that was not heard of for longest, if there are
    /// as many as may be. Returns whether it is new.
    pub(super) fn ask(&self, waiting: &Waiting) -> Result<bool, StoreError> {
        let at = waiting.asked_at.unix_timestamp();
        let flow = waiting.flow.to_string();
        let rows = self.0.prepare_cached(ASK_AGAIN)?.execute(params![
            waiting.ek_id.as_bytes(),
            facts::json(&waiting.facts),
            flow,
            at
        ])?;
        if rows == 1 {
            return Ok(false);
        }
        self.0.prepare_cached(ASK)?.execute(params![
            waiting.ek_id.as_bytes(),
            facts::json(&waiting.facts),
            flow,
            waiting.device_id.as_ref().map(DeviceId::as_str),
            at
        ])?;
        self.0.prepare_cached(MAKE_WAY)?.execute([MAX_PENDING])?;
        Ok(true)
    }
}

/// Since when an operator is asked about an EK.
pub(super) fn waits_since(
    connection: &Connection,
    ek: &EkId,
) -> Result<Option<OffsetDateTime>, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT first_seen FROM pending WHERE ek_id = ?1")?;
    Ok(statement.query_row(params![ek.as_bytes()], |row| time(0, row.get(0)?)).optional()?)
}

/// Nobody is asked about the EK any more.
pub(super) fn forget(connection: &Connection, ek: &EkId) -> rusqlite::Result<()> {
    let forget = "DELETE FROM pending WHERE ek_id = ?1";
    connection.prepare_cached(forget)?.execute(params![ek.as_bytes()]).map(drop)
}

const PENDING: &str = "SELECT ek_id, facts, flow, device_id, first_seen, last_seen FROM pending p
    WHERE NOT EXISTS (SELECT 1 FROM enrolments x WHERE x.ek_id = p.ek_id)
      AND NOT EXISTS (SELECT 1 FROM devices x WHERE x.ek_id = p.ek_id)
      AND NOT EXISTS (SELECT 1 FROM disabled_eks x WHERE x.ek_id = p.ek_id)
    ORDER BY first_seen, ek_id";
const ASK: &str = "INSERT INTO pending (ek_id, facts, flow, device_id, first_seen, last_seen)
    VALUES (?1, ?2, ?3, ?4, ?5, ?5)";
const ASK_AGAIN: &str = "UPDATE pending SET facts = ?2, flow = ?3, last_seen = ?4 WHERE ek_id = ?1";
const MAKE_WAY: &str = "DELETE FROM pending WHERE ek_id IN (
    SELECT ek_id FROM pending ORDER BY last_seen, first_seen
    LIMIT max(0, (SELECT count(*) FROM pending) - ?1))";
