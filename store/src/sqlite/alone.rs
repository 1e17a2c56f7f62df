//! Takes a file for one connection alone.

use std::fs::File;
use std::io;
use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use crate::error::StoreError;

/// Held while a file is opened: nobody upgrades it meanwhile.
pub(super) fn keep_from_upgrade(path: &Path) -> io::Result<File> {
    let directory = directory_of(path)?;
    directory.lock_shared()?;
    Ok(directory)
}

/// Held while a file is upgraded: nobody of this version opens it meanwhile. Otherwise those who
/// only look whether it is up to date would keep the upgrade from having it alone.
pub(super) fn keep_from_opening(path: &Path) -> io::Result<File> {
    let directory = directory_of(path)?;
    directory.lock()?;
    Ok(directory)
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
