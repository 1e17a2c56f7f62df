//! Having a file for oneself alone.

use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use crate::error::StoreError;

/// Takes the file for this connection alone, until that is closed, and everything out of its
/// write-ahead log. Waits as long as the connection does for a lock.
///
/// # Errors
/// Another process has it open, even if it does nothing.
pub(super) fn take_alone(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let take = || {
        // Whoever has the log open keeps this from happening.
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
