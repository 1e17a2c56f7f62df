//! Moves a CA from one store to another.

use crate::database::Database;
use crate::error::StoreError;
use crate::tables::{TABLES, Table, Value};
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
/// `from` meanwhile; returns how many rows there are.
///
/// Afterwards both hold the CA, and only one may go on: what the other one revoked or retired, the
/// first would not know.
///
/// # Errors
/// There is a CA in `to`, there is none in `from` or one of another version of Assay, or one of them
/// cannot be reached.
pub fn copy(
    from: &Database,
    to: &Database,
    mut progress: impl FnMut(Progress),
) -> Result<u64, StoreError> {
    let mut source = Source::open(from)?;
    let mut sink = Sink::create(to)?;
    let mut all = 0;
    for table in TABLES {
        let mut done = Progress { table: table.name, copied: 0, rows: source.count(table)? };
        progress(done);
        // Of some tables a new CA has a row.
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
    sink.finish()?;
    Ok(all)
}

enum Source {
    Postgres(postgres::dump::Source),
    Sqlite(sqlite::dump::Source),
}

impl Source {
    fn open(database: &Database) -> Result<Self, StoreError> {
        Ok(match database {
            Database::Postgres(settings) => Self::Postgres(postgres::dump::Source::open(settings)?),
            Database::Sqlite(path) => Self::Sqlite(sqlite::dump::Source::open(path)?),
        })
    }

    fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        match self {
            Self::Postgres(source) => source.count(table),
            Self::Sqlite(source) => source.count(table),
        }
    }

    fn last_id(&mut self, table: &Table) -> Result<i64, StoreError> {
        match self {
            Self::Postgres(source) => source.last_id(table),
            Self::Sqlite(source) => source.last_id(table),
        }
    }

    fn rows(
        &mut self,
        table: &Table,
        each: &mut dyn FnMut(Vec<Value>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        match self {
            Self::Postgres(source) => source.rows(table, each),
            Self::Sqlite(source) => source.rows(table, each),
        }
    }
}

enum Sink {
    Postgres(postgres::dump::Sink),
    Sqlite(sqlite::dump::Sink),
}

impl Sink {
    fn create(database: &Database) -> Result<Self, StoreError> {
        Ok(match database {
            Database::Postgres(settings) => Self::Postgres(postgres::dump::Sink::create(settings)?),
            Database::Sqlite(path) => Self::Sqlite(sqlite::dump::Sink::create(path)?),
        })
    }

    fn clear(&mut self, table: &Table) -> Result<(), StoreError> {
        match self {
            Self::Postgres(sink) => sink.clear(table),
            Self::Sqlite(sink) => sink.clear(table),
        }
    }

    fn add(&mut self, table: &Table, rows: &[Vec<Value>]) -> Result<(), StoreError> {
        match self {
            Self::Postgres(sink) => sink.add(table, rows),
            Self::Sqlite(sink) => sink.add(table, rows),
        }
    }

    fn set_last_id(&mut self, table: &Table, id: i64) -> Result<(), StoreError> {
        match self {
            Self::Postgres(sink) => sink.set_last_id(table, id),
            Self::Sqlite(sink) => sink.set_last_id(table, id),
        }
    }

    fn finish(self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(sink) => sink.finish(),
            Self::Sqlite(sink) => sink.finish(),
        }
    }
}

/// Rows that are held in memory: of certificates a megabyte.
const BATCH: usize = 1_000;
