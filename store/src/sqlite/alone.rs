//! Takes a file for one connection alone.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use crate::error::StoreError;

/// Held while a file is opened: nobody upgrades it meanwhile.
///
/// # Errors
/// An upgrade, or somebody else who has locked the directory, takes too long.
pub(super) fn keep_from_upgrade(path: &Path) -> Result<File, StoreError> {
    locked(path, File::try_lock_shared)
}

/// Held while a file is upgraded or copied: nobody of this version opens it meanwhile. Otherwise
/// those who only look whether it is up to date would keep this process from having it alone.
///
/// # Errors
/// Others take too long to open the file, or somebody else has locked the directory.
pub(super) fn keep_from_opening(path: &Path) -> Result<File, StoreError> {
    locked(path, File::try_lock)
}

fn locked(
    path: &Path,
    try_lock: impl Fn(&File) -> Result<(), TryLockError>,
) -> Result<File, StoreError> {
    let (directory, since) = (directory_of(path)?, Instant::now());
    loop {
        match try_lock(&directory) {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if since.elapsed() < BUSY_TIMEOUT => sleep(POLL),
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::InUse(path.display().to_string()));
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
}

/// Locks are taken on the directory. A lock on the file itself would be in the way of SQLite's, and
/// one on a file beside it would leave that file behind.
pub(super) fn directory_of(path: &Path) -> io::Result<File> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or_else(|| Path::new(".")))
}

/// Takes the file for this connection alone until the connection is closed, and moves everything
/// from the write-ahead log into the file. Waits as long as the connection waits for a lock.
///
/// # Errors
/// Another process has it open, even if it does nothing.
pub(super) fn take_alone(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let take = || {
        // This fails while another process has the log open.
        connection.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
        connection.query_row("PRAGMA locking_mode = EXCLUSIVE", [], |_| Ok(()))?;
        connection.execute_batch("BEGIN EXCLUSIVE; COMMIT")?;
        connection.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0))
    };
    match take() {
        Ok(mode) if mode == "delete" => Ok(()),
        Err(error) if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) => {
            Err(error.into())
        }
        _ => Err(StoreError::InUse(path.display().to_string())),
    }
}

/// How long one process waits for another's transaction. Ours take milliseconds; an operator's
/// command never holds one open.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How soon a process notices that another one is done.
const POLL: Duration = Duration::from_millis(10);
