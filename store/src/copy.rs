//! Moves a CA from one store to another.

use crate::database::Database;
use crate::error::StoreError;
use crate::tables::{Sink, Source, TABLES};
use crate::{postgres, sqlite};

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The table that is being copied.
    pub table: &'static str,
    /// Rows of it that are copied.
    pub copied: u64,
    /// Rows that it has.
    pub rows: u64,
}

/// Copies everything that is on record, with the order of rows and every counter: what was in force
/// remains so, and no number is given twice. All of it arrives, or nothing. Nobody can write to
/// `from` meanwhile. Returns the number of rows.
///
/// Afterwards both databases hold the CA, but only one may be used, because neither knows what is
/// revoked or retired in the other. So it fails with [`StoreError::Moved`] to open `from` or to
/// write to it. If the process crashes between the commits of the two databases, both look like the
/// CA's; the copy is complete then.
///
/// # Errors
/// Another process has the copied file open, `to` holds a CA already, `from` holds none or one of
/// another version of Assay, or one of them cannot be reached.
pub fn copy(
    from: &Database,
    to: &Database,
    mut progress: impl FnMut(Progress),
) -> Result<u64, StoreError> {
    let mut source = source(from)?;
    let mut sink = sink(to)?;
    let rows = copy_rows(&mut *source, &mut *sink, &mut progress)?;
    source.leave(&to.shown())?;
    sink.finish()?;
    source.finish()?;
    Ok(rows)
}

/// Copies every table. Returns the number of rows.
pub(crate) fn copy_rows(
    source: &mut dyn Source,
    sink: &mut dyn Sink,
    progress: &mut dyn FnMut(Progress),
) -> Result<u64, StoreError> {
    let mut all = 0;
    for table in TABLES {
        let mut done = Progress { table: table.name, copied: 0, rows: source.count(table)? };
        progress(done);
        // A new CA has a row in some tables.
        sink.clear(table)?;
        let mut batch = Vec::new();
        source.rows(table, &mut |row| {
            batch.push(row);
            if batch.len() < BATCH {
                return Ok(());
            }
            sink.add(table, &batch)?;
            done.copied += batch.len() as u64;
            batch.clear();
            progress(done);
            Ok(())
        })?;
        sink.add(table, &batch)?;
        if table.counts() {
            sink.set_last_id(table, source.last_id(table)?)?;
        }
        all += done.rows;
    }
    Ok(all)
}

fn source(database: &Database) -> Result<Box<dyn Source>, StoreError> {
    Ok(match database {
        Database::Postgres(settings) => Box::new(postgres::dump::Tables::read(settings)?),
        Database::Sqlite(path) => Box::new(sqlite::dump::Tables::read(path)?),
    })
}

fn sink(database: &Database) -> Result<Box<dyn Sink>, StoreError> {
    Ok(match database {
        Database::Postgres(settings) => Box::new(postgres::dump::NewTables::make(settings)?),
        Database::Sqlite(path) => Box::new(sqlite::dump::NewTables::make(path)?),
    })
}

/// Rows that are held in memory at once: a megabyte if they are certificates.
const BATCH: usize = 1_000;
