//! The SQLite file: trust anchors, enrolments, devices, certificates, generations of shared keys,
//! audit.
//!
//! What it promises: a committed transaction survives a crash of the process and of the machine
//! (write-ahead log, `synchronous=FULL`); an EK has at most one device id and a device id at most
//! one EK; an EK has at most one active certificate. The last three are constraints of the schema,
//! so that no race between processes can break them.

mod act;
mod audit;
mod certificates;
mod credentials;
mod enrolments;
mod random;
mod record;
mod revocation;
mod shared_keys;
mod throw_away;
mod trust;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use assay_wire::{DeviceId, EkId, Scope};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, ToSql, TransactionBehavior, params};
use time::OffsetDateTime;

pub use act::{Act, Basis, Entry, IdInQuestion, Question, Recorded, Snapshot};
pub use audit::{AuditEntry, AuditRow, Change, Whom};
pub use certificates::{CertificateRow, CertificateStatus, DeviceRow};
pub use credentials::{Credential, CredentialRow};
pub use enrolments::{
    EnrolError, EnrolResults, Enrolled, EnrolmentRow, NewEnrolment, Removed, Tags,
};
pub use revocation::RevokedCertificates;
pub use trust::{AnchorRow, AnchorsVersion, Trusted};

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

    /// Makes a store in memory, which nobody else sees and which ends with this value. For tests
    /// that need thousands.
    ///
    /// # Errors
    /// SQLite failed.
    pub fn in_memory() -> Result<Self, StoreError> {
        let store = Self::connect(Path::new(":memory:"))?;
        store.connection.execute_batch(include_str!("schema.sql"))?;
        Ok(store)
    }

    /// Opens the file.
    ///
    /// # Errors
    /// There is no such file, or it has another schema version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self::connect(path)?;
        let version =
            store.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            return Err(StoreError::Version(version));
        }
        Ok(store)
    }

    fn connect(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
        Ok(Self { connection })
    }

    /// Puts the scope on record that a CA is going to serve. It may be another than before as long
    /// as there are no devices.
    ///
    /// # Errors
    /// There are, and they know the CA by the scope that is on record; or the file cannot be
    /// written.
    pub fn record_scope(&mut self, scope: &Scope) -> Result<(), StoreError> {
        // Most often; and it keeps nobody from writing.
        if scope_on_record(&self.connection)?.as_ref() == Some(scope) {
            return Ok(());
        }
        self.transaction(|Transaction(connection)| {
            may_serve(connection, scope)?;
            connection.execute("DELETE FROM scope", [])?;
            connection.execute("INSERT INTO scope VALUES (?1)", [scope.as_str()])?;
            Ok(())
        })
    }

    /// Whether [`record_scope`](Self::record_scope) would take this scope.
    ///
    /// # Errors
    /// It would not, or the file cannot be read.
    pub fn may_serve(&self, scope: &Scope) -> Result<(), StoreError> {
        may_serve(&self.connection, scope)
    }

    /// Runs `work` in one write transaction; all of it is durable when this returns `Ok`, or none
    /// of it happened.
    ///
    /// # Errors
    /// What `work` returned, or the commit failed.
    pub fn transaction<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = work(&Transaction(&transaction))?;
        transaction.commit()?;
        Ok(result)
    }

    /// Makes a durable write that changes nothing, and finds room on the disk for what comes next.
    ///
    /// The write alone would not notice a full disk: SQLite writes its log anew from the start once
    /// it is emptied.
    ///
    /// # Errors
    /// The file cannot be written, or there is no room beside it.
    pub fn check_writable(&mut self) -> Result<(), StoreError> {
        self.transaction(|Transaction(connection)| {
            let version: i64 =
                connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            // SQLite does not look whether it is the same: it writes the page, and the commit waits
            // for the disk.
            Ok(connection.pragma_update(None, "user_version", version)?)
        })?;
        let file = Path::new(self.connection.path().unwrap_or_default());
        // Has no name where the file system allows it; so nothing is left behind, even by a crash.
        let mut room = tempfile::tempfile_in(file.parent().unwrap_or(file))?;
        Ok(room.write_all(&vec![0; ROOM])?)
    }

    /// Moves what is committed from the write-ahead log to where it belongs, as far as nobody who
    /// reads needs it there, and delays neither readers nor writers. Nothing is lost without it:
    /// the log grows until a commit has to do it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        Ok(self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?)
    }

    fn list<T>(
        &self,
        query: &str,
        parameters: &[&dyn ToSql],
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection.prepare_cached(query)?;
        let rows = statement.query_map(parameters, read)?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

/// What can be read and written together, atomically.
pub struct Transaction<'t>(&'t Connection);

impl Transaction<'_> {
    /// Refuses to record anything about a device in another scope than the one on record, which
    /// another process may have changed since this one began to serve.
    ///
    /// # Errors
    /// It is another, or the file cannot be read.
    pub fn check_scope(&self, scope: &Scope) -> Result<(), StoreError> {
        match scope_on_record(self.0)? {
            Some(was) if was != *scope => Err(StoreError::Scope { was, is: scope.clone() }),
            _ => Ok(()),
        }
    }
}

/// Refuses another scope than the one on record, once something was granted in that; what was made
/// to try brokers does not count.
fn may_serve(connection: &Connection, scope: &Scope) -> Result<(), StoreError> {
    let has_granted = "SELECT EXISTS (SELECT 1 FROM devices) OR EXISTS (SELECT 1 FROM shared_keys)
                           OR EXISTS (SELECT 1 FROM certificates WHERE assurance <> 'none')";
    match scope_on_record(connection)? {
        Some(was)
            if was != *scope && connection.query_row(has_granted, [], |row| row.get(0))? =>
        {
            Err(StoreError::Scope { was, is: scope.clone() })
        }
        _ => Ok(()),
    }
}

/// The scope by which devices know the CA.
fn scope_on_record(connection: &Connection) -> Result<Option<Scope>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT name FROM scope")?;
    Ok(statement.query_row([], |row| parsed(row, 0)).optional()?)
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
    /// Devices know the CA by another scope.
    #[error(
        "the scope is to be {is}, but this CA serves the scope {was}, which the certificates and \
         topics of its devices name: put scope = \"{was}\" back into assay.toml, or make another \
         CA for {is} (assay init)"
    )]
    Scope {
        /// On record.
        was: Scope,
        /// As it is wanted.
        is: Scope,
    },
}

/// A value that is stored as its text.
fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    row.get::<_, String>(column)?.parse().map_err(|error| unreadable(column, error))
}

fn optional_device_id(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<DeviceId>> {
    row.get::<_, Option<String>>(column)?
        .map(|id| id.parse().map_err(|error| unreadable(column, error)))
        .transpose()
}

fn ek_id(row: &Row<'_>, column: usize) -> rusqlite::Result<EkId> {
    row.get::<_, [u8; EkId::LEN]>(column).map(EkId::from)
}

fn time(column: usize, seconds: i64) -> rusqlite::Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| unreadable(column, error))
}

fn unreadable(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

const SCHEMA_VERSION: i64 = 6;
/// Per connection, and taken only as it is used: what leads to the leaves of all indexes of a
/// million devices (some 1,300 pages), and as much for leaves.
const CACHE_KIB: i64 = 8 * 1024;
/// The length of the write-ahead log, in pages of 4 KiB, at which a commit does a checkpoint
/// itself. Long, because such a commit waits for the disk for a second if it has to write that many
/// pages all over a large file; a worker does it in the background.
const WAL_PAGES: i64 = 16 * 1024;
/// More than the statements there are, so that each is parsed once per connection.
const PREPARED_STATEMENTS: usize = 64;
/// What the log grows by in some seconds of a busy CA: some 250 pages.
const ROOM: usize = 1024 * 1024;
/// How long one process waits for another's transaction. Ours take milliseconds; an operator's
/// command never holds one open.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
