//! The record of every decision.

use assay_wire::{ClientId, DeviceId, EkId, ProblemCode};
use rusqlite::params;

use super::{Store, StoreError, Transaction};

/// One decision of the CA.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// When, in seconds since 1970.
    pub time: i64,
    /// The MQTT client that asked.
    pub client: ClientId,
    /// The kind of request, e.g. `challenge`; `unreadable` if that could not be read.
    pub action: &'static str,
    /// The EK that it claimed to have.
    pub ek_id: Option<EkId>,
    /// The device id, once it is settled.
    pub device_id: Option<DeviceId>,
    /// Why it was refused, if it was.
    pub refusal: Option<(ProblemCode, String)>,
    /// From the request's receipt to the decision.
    pub duration_us: u32,
}

/// An [`AuditEntry`] as it is read back.
#[derive(Clone, Debug)]
pub struct AuditRow {
    /// When, in seconds since 1970.
    pub time: i64,
    /// The MQTT client that asked.
    pub client: String,
    /// What it asked for.
    pub action: String,
    /// The EK that it claimed to have.
    pub ek_id: Option<EkId>,
    /// The device id, once it was settled.
    pub device_id: Option<String>,
    /// The problem's code, if it was refused.
    pub code: Option<u16>,
    /// The problem's detail, if it was refused.
    pub detail: Option<String>,
    /// From the request's receipt to the decision.
    pub duration_us: u32,
}

impl Transaction<'_> {
    /// Appends to the audit, and forgets what is older than the newest 100,000 entries.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn audit(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "INSERT INTO audit (time, client, action, ek_id, device_id, code, detail, duration_us)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                entry.time,
                entry.client.as_str(),
                entry.action,
                entry.ek_id.as_ref().map(EkId::as_bytes),
                entry.device_id.as_ref().map(DeviceId::as_str),
                entry.refusal.as_ref().map(|(code, _)| code.number()),
                entry.refusal.as_ref().map(|(_, detail)| detail),
                entry.duration_us
            ])?;
        self.0
            .prepare_cached("DELETE FROM audit WHERE id <= ?1")?
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
        self.list(
            "SELECT time, client, action, ek_id, device_id, code, detail, duration_us
             FROM (SELECT * FROM audit ORDER BY id DESC LIMIT ?1) ORDER BY id",
            &[&count],
            |row| {
                Ok(AuditRow {
                    time: row.get(0)?,
                    client: row.get(1)?,
                    action: row.get(2)?,
                    ek_id: row.get::<_, Option<[u8; EkId::LEN]>>(3)?.map(EkId::from),
                    device_id: row.get(4)?,
                    code: row.get(5)?,
                    detail: row.get(6)?,
                    duration_us: row.get(7)?,
                })
            },
        )
    }
}

/// Keeps the file bounded however many requests strangers send: at about 300 bytes each, 30 MB.
const AUDIT_LIMIT: i64 = 100_000;
