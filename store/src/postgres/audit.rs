//! The audit: the record of every decision.

use assay_wire::{DeviceId, EkId};
use postgres::Row;

use super::columns::{optional_ek_id, optional_small, small};
use super::connection::Postgres;
use super::session::Session;
use crate::audit::{AuditEntry, AuditRow, Change};
use crate::error::StoreError;

/// Appends to the audit, which pruning keeps in bounds.
pub(super) fn add_to_audit(
    session: &mut Session,
    entries: &[&AuditEntry],
) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    let is_change: Vec<_> = entries.iter().map(|entry| entry.change == Change::Made).collect();
    let times: Vec<_> = entries.iter().map(|entry| entry.microseconds()).collect();
    let clients: Vec<_> = entries.iter().map(|entry| entry.client.as_str()).collect();
    let actions: Vec<_> = entries.iter().map(|entry| entry.action).collect();
    let eks: Vec<_> = entries
        .iter()
        .map(|entry| entry.ek_id.as_ref().map(|ek: &EkId| &ek.as_bytes()[..]))
        .collect();
    let devices: Vec<_> = entries
        .iter()
        .map(|entry| entry.proven().or_else(|| entry.due()).map(DeviceId::as_str))
        .collect();
    let proven: Vec<_> = entries.iter().map(|entry| entry.proven().is_some()).collect();
    let refusals = || entries.iter().map(|entry| entry.refusal.as_ref());
    let codes: Vec<_> =
        refusals().map(|refusal| refusal.map(|(code, _)| i64::from(code.number()))).collect();
    let details: Vec<_> =
        refusals().map(|refusal| refusal.map(|(_, detail)| detail.as_str())).collect();
    let durations: Vec<_> = entries.iter().map(|entry| i64::from(entry.duration_us)).collect();
    session.execute(
        ADD,
        &[
            &is_change, &times, &clients, &actions, &eks, &devices, &proven, &codes, &details,
            &durations,
        ],
    )?;
    Ok(())
}

impl Postgres {
    pub(super) fn newest_decisions(&mut self, count: u32) -> Result<Vec<AuditRow>, StoreError> {
        let count = i64::from(count);
        self.read_together(|session| {
            let mut rows = session
                .query(NEWEST, &[&count])?
                .iter()
                .map(audit_row)
                .collect::<Result<Vec<_>, _>>()?;
            rows.reverse();
            Ok(rows)
        })
    }
}

fn audit_row(row: &Row) -> Result<AuditRow, StoreError> {
    let (device_id, is_proven): (Option<String>, bool) = (row.get(4), row.get(5));
    let (proven, due) = if is_proven { (device_id, None) } else { (None, device_id) };
    Ok(AuditRow {
        time_us: row.get(0),
        client: row.get(1),
        action: row.get(2),
        ek_id: optional_ek_id(row, 3)?,
        proven,
        due,
        code: optional_small(row, 6)?,
        detail: row.get(7),
        duration_us: small(row, 8)?,
    })
}

const ADD: &str = "WITH new AS (
        SELECT * FROM unnest($1::bool[], $2::int8[], $3::text[], $4::text[], $5::bytea[],
                             $6::text[], $7::bool[], $8::int8[], $9::text[], $10::int8[])
        n(is_change, time_us, client, action, ek_id, device_id, is_proven, code, detail,
          duration_us)),
    changes AS (INSERT INTO audit_changes
        (time_us, client, action, ek_id, device_id, is_proven, code, detail, duration_us)
        SELECT time_us, client, action, ek_id, device_id, is_proven, code, detail, duration_us
        FROM new WHERE is_change)
    INSERT INTO audit_others
    (time_us, client, action, ek_id, device_id, is_proven, code, detail, duration_us)
    SELECT time_us, client, action, ek_id, device_id, is_proven, code, detail, duration_us
    FROM new WHERE NOT is_change";
const NEWEST: &str = "SELECT time_us, client, action, ek_id, device_id, is_proven, code, detail,
                             duration_us
    FROM ((SELECT *, 1 AS part FROM audit_changes ORDER BY id DESC LIMIT $1::int8)
          UNION ALL
          (SELECT *, 2 AS part FROM audit_others ORDER BY id DESC LIMIT $1::int8)) both_parts
    ORDER BY time_us DESC, part, id DESC LIMIT $1::int8";
