//! One connection to the file, and transactions on it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use assay_wire::Scope;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, ToSql, TransactionBehavior};

use super::columns::parsed;
use super::migrations;
use crate::error::StoreError;

/// One connection to the file. Each thread has its own; SQLite lets many read while one writes.
pub struct Sqlite {
    pub(super) connection: Connection,
}

impl Sqlite {
    /// Makes the file, which must not exist.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut store = Self::connect(path)?;
        migrations::create(&mut store.connection)?;
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

    /// Opens the file. If an earlier version of Assay wrote it, it is upgraded after a copy beside
    /// it, `assay.db.before-7`.
    ///
    /// # Errors
    /// There is no such file, a later version of Assay wrote it, or it cannot be upgraded, as when
    /// a process of the earlier version still has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let store = Self::connect(path)?;
        if migrations::is_todays(&store.connection)? {
            return Ok(store);
        }
        // Whoever has it open keeps others from upgrading it.
        drop(store);
        migrations::upgrade(path, || Ok(Self::connect(path)?.connection))?;
        Self::connect(path)
    }

    fn connect(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Otherwise SQLite parses a statement anew whenever a value changes that it compared with
        // an index's expression, which costs more than the query itself.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
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

    pub(super) fn list<T>(
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
pub struct Transaction<'t>(pub(super) &'t Connection);

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
pub(super) fn scope_on_record(connection: &Connection) -> Result<Option<Scope>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT name FROM scope")?;
    Ok(statement.query_row([], |row| parsed(row, 0)).optional()?)
}

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
