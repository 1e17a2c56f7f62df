//! Copies a CA that serves.

use std::path::Path;

use crate::copy::{Progress, copy_rows};
use crate::database::Database;
use crate::error::StoreError;
use crate::tables::Sink;
use crate::{postgres, sqlite};

/// Copies everything that is on record at one moment to a new file, which must not exist. Nobody is
/// kept from writing meanwhile.
///
/// Whoever uses the copy must know that it is out of date: see
/// [`Sqlite::raise_epoch`](sqlite::Sqlite::raise_epoch).
///
/// # Errors
/// The CA cannot be read, the file exists, or it cannot be written.
pub fn backup(
    from: &Database,
    to: &Path,
    mut progress: impl FnMut(Progress),
) -> Result<(), StoreError> {
    match from {
        Database::Sqlite(path) => sqlite::dump::copy_as_it_is(path, to, |copied, rows| {
            progress(Progress { table: "pages", copied, rows });
        }),
        Database::Postgres(settings) => {
            let mut source = postgres::dump::Tables::snapshot(settings)?;
            let mut sink = Box::new(sqlite::dump::NewTables::make(to)?);
            copy_rows(&mut source, &mut *sink, &mut progress)?;
            sink.finish()
        }
    }
}
