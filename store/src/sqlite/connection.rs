//! One connection to the file, and transactions on it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use assay_wire::Scope;
use rusqlite::config::DbConfig;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, ToSql, TransactionBehavior,
};

use super::alone::{BUSY_TIMEOUT, keep_from_upgrade};
use super::columns::parsed;
use super::migrations;
use crate::audit::Actor;
use crate::error::StoreError;

/// One connection to the file. Each thread has its own; SQLite lets many read while one writes.
pub struct Sqlite {
    pub(super) connection: Connection,
    /// Who acts with it, if an operator does.
    pub(super) actor: Option<Actor>,
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

    /// Makes a store in memory, which nobody else sees and which ends with this value. It is for
    /// tests that need thousands of stores.
    ///
    /// # Errors
    /// SQLite failed.
    pub fn in_memory() -> Result<Self, StoreError> {
        let store = Self::connect(Path::new(":memory:"))?;
        store.connection.execute_batch(include_str!("schema.sql"))?;
        Ok(store)
    }

    /// Opens the file. If an earlier version of Assay wrote it, this first copies the file to
    /// `assay.db.before-8` and then upgrades it.
    ///
    /// # Errors
    /// There is no such file, a later version of Assay wrote it, or it cannot be upgraded, for
    /// example because a process of the earlier version still has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let opening = keep_from_upgrade(path)?;
        let store = Self::connect(path)?;
        if migrations::is_todays(&store.connection)? {
            return Ok(store);
        }
        // A process that has the file open keeps others from upgrading it.
        drop((store, opening));
        migrations::upgrade(path, || Ok(Self::connect(path)?.connection))?;
        let _opening = keep_from_upgrade(path)?;
        let store = Self::connect(path)?;
        // Somebody may have moved the CA meanwhile, or put an older file in its place.
        match migrations::is_todays(&store.connection)? {
            true => Ok(store),
            false => Err(StoreError::InUse(path.display().to_string())),
        }
    }

    fn connect(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Otherwise SQLite parses a statement again whenever a value changes that it compared with
        // the expression of an index. That costs more than the query itself.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        connection.set_prepared_statement_cache_capacity(PREPARED_STATEMENTS);
        use_write_ahead_log(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES)?;
        Ok(Self { connection, actor: None })
    }

    /// Puts on record the scope that a CA is going to serve. It may differ from the scope on record
    /// as long as nothing was granted in that one.
    ///
    /// # Errors
    /// Something was granted in the scope that is on record, or the file cannot be written.
    pub fn record_scope(&mut self, scope: &Scope) -> Result<(), StoreError> {
        // Most often it is this scope, and this look keeps nobody from writing.
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
    /// [`record_scope`](Self::record_scope) would refuse this scope, or the file cannot be read.
    pub fn may_serve(&self, scope: &Scope) -> Result<(), StoreError> {
        may_serve(&self.connection, scope)
    }

    /// Runs `work` in one transaction that writes. If this returns `Ok`, all of the transaction is
    /// durable; if not, none of it happened.
    ///
    /// # Errors
    /// `work` failed, or the commit did.
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

    /// Makes a durable write that changes nothing, and finds out whether the disk has room for what
    /// comes next.
    ///
    /// The write alone would not notice a full disk, because SQLite uses the room of its log again
    /// once the log is emptied.
    ///
    /// # Errors
    /// The file cannot be written, or there is no room beside it.
    pub fn check_writable(&mut self) -> Result<(), StoreError> {
        self.transaction(|Transaction(connection)| {
            let version: i64 =
                connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            // SQLite does not look whether the value is the same: it writes the page, and the
            // commit waits for the disk.
            Ok(connection.pragma_update(None, "user_version", version)?)
        })?;
        let file = Path::new(self.connection.path().unwrap_or_default());
        // Where the file system allows it, this file has no name, so even a crash leaves nothing
        // behind.
        let mut room = tempfile::tempfile_in(file.parent().unwrap_or(file))?;
        Ok(room.write_all(&vec![0; ROOM])?)
    }

    /// Moves what is committed from the write-ahead log into the database, except what a reader
    /// still needs in the log. It delays neither readers nor writers. Without it nothing is lost,
    /// but the log grows until a commit has to make the checkpoint.
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

/// A transaction that writes: what it reads and writes happens together or not at all.
pub struct Transaction<'t>(pub(super) &'t Connection);

impl Transaction<'_> {
    /// Refuses another scope than the one on record. Another process may have changed the scope on
    /// record since this one began to serve.
    ///
    /// # Errors
    /// The scope is another one, or the file cannot be read.
    pub fn check_scope(&self, scope: &Scope) -> Result<(), StoreError> {
        match scope_on_record(self.0)? {
            Some(was) if was != *scope => Err(StoreError::Scope { was, is: scope.clone() }),
            _ => Ok(()),
        }
    }
}

/// Refuses another scope than the one on record, once something was granted in the one on record.
/// Certificates that were made to try brokers do not count.
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

/// An upgrade that was cut short leaves a file without such a log. While another process writes or
/// switches, SQLite refuses to switch it over at once, whatever the timeout is.
fn use_write_ahead_log(connection: &Connection) -> Result<(), StoreError> {
    let since = Instant::now();
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && since.elapsed() < BUSY_TIMEOUT =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return Ok(done?),
        }
    }
}

/// The cache of each connection; it takes memory only as it is used. There is room for the inner
/// pages of all indexes of a million devices (some 1,300 pages), and for some leaves.
const CACHE_KIB: i64 = 8 * 1024;
/// The length of the write-ahead log, in pages of 4 KiB, at which a commit makes a checkpoint
/// itself. The log is long because such a commit waits for the disk for a second, if it has to
/// write that many pages all over a large file. A worker makes checkpoints in the background.
const WAL_PAGES: i64 = 16 * 1024;
/// More than there are statements, so that each is parsed once per connection.
const PREPARED_STATEMENTS: usize = 64;
/// By how much the log grows in some seconds of a busy CA: some 250 pages.
const ROOM: usize = 1024 * 1024;
