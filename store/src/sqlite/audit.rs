//! The audit: the record of every decision.

use assay_wire::{DeviceId, EkId};
use rusqlite::{Row, params};

use super::connection::{Sqlite, Transaction};
use crate::audit::{AuditEntry, AuditRow, Change};
use crate::error::StoreError;
use crate::retention::AUDIT_BATCH;

impl Transaction<'_> {
    /// Appends to the audit, which [`prune`](crate::contract::Store::prune) keeps in bounds.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        let query = if entry.change == Change::Made { ADD_CHANGE } else { ADD_OTHER };
        let device_id = entry.proven().or_else(|| entry.due());
        self.0.prepare_cached(query)?.execute(params![
            entry.microseconds(),
            entry.client.as_str(),
            entry.action,
            entry.ek_id.as_ref().map(EkId::as_bytes),
            device_id.map(DeviceId::as_str),
            entry.proven().is_some(),
            entry.refusal.as_ref().map(|(code, _)| code.number()),
            entry.refusal.as_ref().map(|(_, detail)| detail),
            entry.duration_us
        ])?;
        Ok(())
    }

    /// Keeps the newest `kept` entries of each part, and forgets a batch of the others, oldest
    /// first. Returns how many entries of each part it forgot.
    pub(super) fn prune_audit(&self, kept: u32) -> Result<[usize; 2], StoreError> {
        let mut forgotten = [0; 2];
        for (query, forgotten) in [PRUNE_CHANGES, PRUNE_OTHERS].into_iter().zip(&mut forgotten) {
            *forgotten = self.0.prepare_cached(query)?.execute(params![kept, AUDIT_BATCH])?;
        }
        Ok(forgotten)
    }
}

impl Sqlite {
    /// The newest `count` decisions, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn audit(&self, count: u32) -> Result<Vec<AuditRow>, StoreError> {
        let newest = |table| {
            format!(
                "SELECT *, '{table}' AS part FROM (SELECT * FROM {table} ORDER BY id DESC LIMIT \
                 ?1)"
            )
        };
        let query = format!(
            "SELECT time_us, client, action, ek_id, device_id, is_proven, code, detail, \
             duration_us
             FROM ({} UNION ALL {}) ORDER BY time_us DESC, part, id DESC LIMIT ?1",
            newest(CHANGES),
            newest(OTHERS)
        );
        let mut rows = self.list(&query, &[&count], audit_row)?;
        rows.reverse();
        Ok(rows)
    }
}

fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    let (device_id, is_proven): (Option<String>, bool) = (row.get(4)?, row.get(5)?);
    let (proven, due) = if is_proven { (device_id, None) } else { (None, device_id) };
    Ok(AuditRow {
        time_us: row.get(0)?,
        client: row.get(1)?,
        action: row.get(2)?,
        ek_id: row.get::<_, Option<[u8; EkId::LEN]>>(3)?.map(EkId::from),
        proven,
        due,
        code: row.get(6)?,
        detail: row.get(7)?,
        duration_us: row.get(8)?,
    })
}

const CHANGES: &str = "audit_changes";
const OTHERS: &str = "audit_others";
const ADD_CHANGE: &str = "INSERT INTO audit_changes (time_us, client, action, ek_id, device_id, is_proven, code, detail, \
     duration_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const ADD_OTHER: &str = "INSERT INTO audit_others (time_us, client, action, ek_id, device_id, is_proven, code, detail, \
     duration_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
const PRUNE_CHANGES: &str = "DELETE FROM audit_changes WHERE id IN (SELECT id FROM audit_changes
     WHERE id <= (SELECT max(id) FROM audit_changes) - ?1 ORDER BY id LIMIT ?2)";
const PRUNE_OTHERS: &str = "DELETE FROM audit_others WHERE id IN (SELECT id FROM audit_others
     WHERE id <= (SELECT max(id) FROM audit_others) - ?1 ORDER BY id LIMIT ?2)";
