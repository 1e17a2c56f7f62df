//! The record of every decision.

use assay_wire::{ClientId, DeviceId, EkId, ProblemCode};
use rusqlite::{Row, params};
use time::OffsetDateTime;

use super::{Store, StoreError, Transaction};

/// One decision of the CA.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// When it was made.
    pub time: OffsetDateTime,
    /// The MQTT client that asked.
    pub client: ClientId,
    /// The kind of request, e.g. `challenge`; `unreadable` if that could not be read.
    pub action: &'static str,
    /// The EK that it claimed to have.
    pub ek_id: Option<EkId>,
    /// Whom it is about, once that is settled.
    pub device: Option<Whom>,
    /// Whether it changed what the device has.
    pub change: Change,
    /// Why it was refused, if it was.
    pub refusal: Option<(ProblemCode, String)>,
    /// From the request's receipt to the decision.
    pub duration_us: u32,
}

/// Whether a decision changed what a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has what it had: it asked again.
    None,
    /// A certificate came into force.
    Made,
}

/// A device, as far as a decision knew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// It had proved itself, by a ticket or a confirmation.
    Proven(DeviceId),
    /// The id is due to the EK that was shown, by whomever: an EK certificate is no secret.
    Due(DeviceId),
}

impl AuditEntry {
    /// The device, if it had proved itself.
    pub fn proven(&self) -> Option<&DeviceId> {
        match &self.device {
            Some(Whom::Proven(device)) => Some(device),
            Some(Whom::Due(_)) | None => None,
        }
    }

    /// The device id due to the EK that was shown, if nothing was proven.
    pub fn due(&self) -> Option<&DeviceId> {
        match &self.device {
            Some(Whom::Due(device)) => Some(device),
            Some(Whom::Proven(_)) | None => None,
        }
    }
}

/// An [`AuditEntry`] as it is read back.
#[derive(Clone, Debug)]
pub struct AuditRow {
    /// When, in microseconds since 1970.
    pub time_us: i64,
    /// The MQTT client that asked.
    pub client: String,
    /// What it asked for.
    pub action: String,
    /// The EK that it claimed to have.
    pub ek_id: Option<EkId>,
    /// The device, if it had proved itself.
    pub proven: Option<String>,
    /// The device id due to the EK that was shown, if nothing was proven.
    pub due: Option<String>,
    /// The problem's code, if it was refused.
    pub code: Option<u16>,
    /// The problem's detail, if it was refused.
    pub detail: Option<String>,
    /// From the request's receipt to the decision.
    pub duration_us: u32,
}

impl Transaction<'_> {
    /// Appends to the audit. Of decisions that changed what a device has the newest 100,000 are
    /// kept, and of all others as many.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        let table = if entry.change == Change::Made { CHANGES } else { OTHERS };
        let device_id = entry.proven().or_else(|| entry.due());
        self.0
            .prepare_cached(&format!(
                "INSERT INTO {table} (time_us, client, action, ek_id, device_id, is_proven, code, \
                 detail, duration_us)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)"
            ))?
            .execute(params![
                microseconds(entry.time),
                entry.client.as_str(),
                entry.action,
                entry.ek_id.as_ref().map(EkId::as_bytes),
                device_id.map(DeviceId::as_str),
                entry.proven().is_some(),
                entry.refusal.as_ref().map(|(code, _)| code.number()),
                entry.refusal.as_ref().map(|(_, detail)| detail),
                entry.duration_us
            ])?;
        self.0
            .prepare_cached(&format!("DELETE FROM {table} WHERE id <= ?1"))?
            .execute(params![self.0.last_insert_rowid() - AUDIT_LIMIT])?;
        Ok(())
    }
}

impl Store {
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

fn microseconds(time: OffsetDateTime) -> i64 {
    // Until the year 294,000.
    (time.unix_timestamp_nanos() / 1000) as i64
}

const CHANGES: &str = "audit_changes";
const OTHERS: &str = "audit_others";
/// Of each part. Keeps the file bounded however many requests strangers send: of entries as long as
/// they can be (a detail has 512 bytes at most), 100,000 take 75 MB; of usual ones, with a detail
/// of 100 bytes, 25 MB.
const AUDIT_LIMIT: i64 = 100_000;
