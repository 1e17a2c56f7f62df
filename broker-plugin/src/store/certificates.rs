//! Devices, their certificates, and the record of every decision.

use assay_ca_core::{IssuedCertificate, ProvenDevice, Records};
use assay_wire::{ClientId, DeviceId, EkId, ProblemCode};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Store, StoreError, device_id, ek_id, records};

/// What can be written together, atomically.
pub struct Transaction<'t>(&'t Connection);

impl<'t> Transaction<'t> {
    pub(super) fn new(connection: &'t Connection) -> Self {
        Self(connection)
    }

    /// What is known of a proven device; nothing can change it before this transaction commits.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn records(&self, device: &ProvenDevice, now: OffsetDateTime) -> Result<Records, StoreError> {
        records(self.0, &device.ek_id(), now, |_, _| Some(device.device_id().clone()))
    }

    /// The certificate that a device has now, in DER, if it is for the IK it proved and still valid.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificate_in_force(
        &self,
        device: &ProvenDevice,
        now: OffsetDateTime,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut statement = self.0.prepare_cached(
            "SELECT c.der FROM certificates c JOIN devices d USING (device_id)
             WHERE d.ek_id = ?1 AND c.ik_id = ?2 AND c.status = 'active' AND c.not_after > ?3",
        )?;
        Ok(statement
            .query_row(params![device.ek_id().as_bytes(), device.ik_id(), now.unix_timestamp()], |row| row.get(0))
            .optional()?)
    }

    /// Records a certificate as its device's only active one, and the device if it is new.
    ///
    /// # Errors
    /// The file cannot be written, or the device id and the EK do not belong together.
    pub fn add_certificate(&self, certificate: &IssuedCertificate, now: OffsetDateTime) -> Result<(), StoreError> {
        let device = certificate.device_id.as_str();
        self.0
            .prepare_cached(
                "INSERT INTO devices (device_id, ek_id, assurance, registered_at) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (device_id) DO UPDATE SET assurance = excluded.assurance WHERE ek_id = excluded.ek_id",
            )?
            .execute(params![
                device,
                certificate.ek_id.as_bytes(),
                certificate.assurance.to_string(),
                now.unix_timestamp()
            ])?;
        self.0
            .prepare_cached("UPDATE certificates SET status = 'superseded' WHERE device_id = ?1 AND status = 'active'")?
            .execute(params![device])?;
        self.0
            .prepare_cached(
                "INSERT INTO certificates (serial, device_id, ik_id, status, not_before, not_after, issued_at, der)
                 SELECT ?1, device_id, ?3, 'active', ?4, ?5, ?6, ?7 FROM devices WHERE device_id = ?2 AND ek_id = ?8",
            )?
            .execute(params![
                certificate.serial,
                device,
                ik_id(&certificate.ik_spki),
                certificate.not_before.unix_timestamp(),
                certificate.not_after.unix_timestamp(),
                now.unix_timestamp(),
                certificate.der.as_ref(),
                certificate.ek_id.as_bytes()
            ])
            .and_then(|rows| if rows == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(rows)) })?;
        Ok(())
    }

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

/// One decision of the CA.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// When, in seconds since 1970.
    pub time: i64,
    /// The MQTT client that asked.
    pub client: ClientId,
    /// `challenge`, `certify` or, if the request could not be read, `unreadable`.
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

/// A device that was certified.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    /// Its name.
    pub device_id: DeviceId,
    /// Its EK.
    pub ek_id: EkId,
    /// What made the CA trust the EK.
    pub assurance: String,
    /// Whether an operator disabled it.
    pub disabled: bool,
    /// When it was first certified, in seconds since 1970.
    pub registered_at: i64,
    /// The serial number of its active certificate.
    pub serial: Option<Vec<u8>>,
    /// When that expires, in seconds since 1970.
    pub not_after: Option<i64>,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    /// Its serial number, unique for the CA.
    pub serial: Vec<u8>,
    /// Whose it is.
    pub device_id: DeviceId,
    /// `active` or `superseded`.
    pub status: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Seconds since 1970.
    pub issued_at: i64,
    /// The certificate itself.
    pub der: Vec<u8>,
}

/// What a certificate that somebody presents is worth now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateStatus {
    /// Its device may connect.
    Active,
    /// An operator disabled the device.
    Disabled,
    /// The device has a newer one.
    Superseded,
    /// This CA has no record of it.
    Unknown,
}

impl Store {
    /// What a device certificate with this serial number is worth now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificate_status(&self, serial: &[u8]) -> Result<CertificateStatus, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT c.status = 'active', d.disabled OR coalesce(e.disabled, 0)
             FROM certificates c JOIN devices d USING (device_id) LEFT JOIN enrolments e USING (ek_id) WHERE c.serial = ?1",
        )?;
        let found = statement.query_row(params![serial], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        Ok(match found {
            None => CertificateStatus::Unknown,
            Some((_, true)) => CertificateStatus::Disabled,
            Some((false, false)) => CertificateStatus::Superseded,
            Some((true, false)) => CertificateStatus::Active,
        })
    }

    /// How often something happened that may have made a certificate in use worthless. Cheap enough to ask every second.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revocations(&self) -> Result<i64, StoreError> {
        Ok(self.connection.prepare_cached("SELECT count FROM revocations")?.query_row([], |row| row.get(0))?)
    }

    /// Every device, in the order of registration.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn devices(&self) -> Result<Vec<DeviceRow>, StoreError> {
        self.list(
            "SELECT d.device_id, d.ek_id, d.assurance, d.disabled OR coalesce(e.disabled, 0), d.registered_at, c.serial, c.not_after
             FROM devices d LEFT JOIN enrolments e USING (ek_id)
                  LEFT JOIN certificates c ON c.device_id = d.device_id AND c.status = 'active'
             ORDER BY d.registered_at, d.device_id",
            &[],
            |row| {
                Ok(DeviceRow {
                    device_id: device_id(row, 0)?,
                    ek_id: ek_id(row, 1)?,
                    assurance: row.get(2)?,
                    disabled: row.get(3)?,
                    registered_at: row.get(4)?,
                    serial: row.get(5)?,
                    not_after: row.get(6)?,
                })
            },
        )
    }

    /// Every certificate, in the order of issuance.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        self.list(
            "SELECT serial, device_id, status, not_before, not_after, issued_at, der FROM certificates ORDER BY rowid",
            &[],
            |row| {
                Ok(CertificateRow {
                    serial: row.get(0)?,
                    device_id: device_id(row, 1)?,
                    status: row.get(2)?,
                    not_before: row.get(3)?,
                    not_after: row.get(4)?,
                    issued_at: row.get(5)?,
                    der: row.get(6)?,
                })
            },
        )
    }

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

    fn list<T>(
        &self,
        query: &str,
        parameters: &[&dyn ToSql],
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare(query)?;
        let rows = statement.query_map(parameters, read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn ik_id(spki: &[u8]) -> [u8; 32] {
    Sha256::digest(spki).into()
}

/// Keeps the file bounded however many requests strangers send: at about 300 bytes each, 30 MB.
const AUDIT_LIMIT: i64 = 100_000;
