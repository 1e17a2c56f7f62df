//! The SQLite file: trust anchors, enrolments, devices, certificates, audit.
//!
//! What it promises: a committed transaction survives a crash of the process and of the machine (write-ahead log, `synchronous=FULL`);
//! an EK has at most one device id and a device id at most one EK; a device has at most one active certificate. The last three
//! are constraints of the schema, so that no race between processes can break them.

mod certificates;
mod enrolments;
mod trust;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use assay_ca_core::{CertificateOnRecord, Enrolment, Evidence, QUOTA_PERIOD, Records, Registration};
use assay_wire::{DeviceId, EkId};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, TransactionBehavior, params};
use time::OffsetDateTime;

pub use certificates::{AuditEntry, AuditRow, CertificateRow, CertificateStatus, DeviceRow, Transaction};
pub use enrolments::{EnrolError, EnrolmentRow, NewEnrolment};
pub use trust::{AnchorRow, AnchorsVersion};

/// One connection to the file. Each thread has its own; SQLite lets many read while one writes.
pub struct Store {
    connection: Connection,
}

impl Store {
    /// Makes the file, which must not exist.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let store = Self::connect(path)?;
        store.connection.execute_batch(include_str!("schema.sql"))?;
        store.connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        Ok(store)
    }

    /// Opens the file.
    ///
    /// # Errors
    /// There is no such file, or it has another schema version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self::connect(path)?;
        let version = store.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            return Err(StoreError::Version(version));
        }
        Ok(store)
    }

    fn connect(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(Self { connection })
    }

    /// What is known of a device that shows evidence: the input of `ca-core`'s admission rules.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn records(&self, evidence: &Evidence, now: OffsetDateTime) -> Result<Records, StoreError> {
        records(&self.connection, &evidence.ek_id(), now, |enrolment, registration| {
            Some(evidence.device_id_in_question(enrolment, registration))
        })
    }

    /// Runs `work` in one write transaction; all of it is durable when this returns `Ok`, or none of it happened.
    ///
    /// # Errors
    /// What `work` returned, or the commit failed.
    pub fn transaction<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&Transaction::new(&transaction))?;
        transaction.commit()?;
        Ok(result)
    }
}

/// Reads all three parts of the records; `id_in_question` says whose holder matters, given the first two.
fn records(
    connection: &Connection,
    ek: &EkId,
    now: OffsetDateTime,
    id_in_question: impl FnOnce(Option<&Enrolment>, Option<&Registration>) -> Option<DeviceId>,
) -> Result<Records, StoreError> {
    let enrolment = connection
        .prepare_cached("SELECT device_id, disabled FROM enrolments WHERE ek_id = ?1")?
        .query_row(params![ek.as_bytes()], |row| {
            Ok(Enrolment { device_id: optional_device_id(row, 0)?, disabled: row.get(1)? })
        })
        .optional()?;
    let quota_from = now - QUOTA_PERIOD;
    let registration = connection
        .prepare_cached(
            "SELECT d.device_id, d.disabled, c.ik_id, c.issued_at,
                    (SELECT count(*) FROM certificates r WHERE r.device_id = d.device_id AND r.issued_at > ?2)
             FROM devices d LEFT JOIN certificates c ON c.device_id = d.device_id AND c.status = 'active' WHERE d.ek_id = ?1",
        )?
        .query_row(params![ek.as_bytes(), quota_from.unix_timestamp()], |row| {
            let certificate = match (row.get(2)?, row.get(3)?) {
                (Some(ik_id), Some(issued_at)) => Some(CertificateOnRecord { ik_id, issued_at: time(3, issued_at)? }),
                _ => None,
            };
            Ok(Registration {
                device_id: device_id(row, 0)?,
                disabled: row.get(1)?,
                certificate,
                recent_certificates: row.get(4)?,
            })
        })
        .optional()?;
    let id_holder = match id_in_question(enrolment.as_ref(), registration.as_ref()) {
        Some(device) => holder(connection, &device)?,
        None => None,
    };
    Ok(Records { enrolment, registration, id_holder })
}

/// The EK that is registered or enrolled under a device id.
fn holder(connection: &Connection, device: &DeviceId) -> Result<Option<EkId>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT ek_id FROM devices WHERE device_id = ?1
         UNION ALL SELECT ek_id FROM enrolments WHERE device_id = ?1 LIMIT 1",
    )?;
    Ok(statement.query_row(params![device.as_str()], |row| ek_id(row, 0)).optional()?)
}

/// The file could not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `create` cannot make the file.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// SQLite's own words.
    #[error("database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// The file was made by another version of Assay.
    #[error("the database has schema version {0}; this version of assay reads {SCHEMA_VERSION}")]
    Version(i64),
    /// A vendor's certificate in the file is not one.
    #[error(transparent)]
    Anchors(#[from] assay_ca_core::AnchorError),
}

fn device_id(row: &Row<'_>, column: usize) -> rusqlite::Result<DeviceId> {
    row.get::<_, String>(column)?.parse().map_err(|error| unreadable(column, error))
}

fn optional_device_id(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<DeviceId>> {
    row.get::<_, Option<String>>(column)?.map(|id| id.parse().map_err(|error| unreadable(column, error))).transpose()
}

fn ek_id(row: &Row<'_>, column: usize) -> rusqlite::Result<EkId> {
    row.get::<_, [u8; EkId::LEN]>(column).map(EkId::from)
}

fn time(column: usize, seconds: i64) -> rusqlite::Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| unreadable(column, error))
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

const SCHEMA_VERSION: i64 = 1;
/// How long one process waits for another's transaction. Ours take milliseconds; an operator's command never holds one open.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
