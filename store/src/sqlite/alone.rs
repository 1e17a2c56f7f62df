//! Takes a file for one connection alone.

use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use crate::error::StoreError;

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
