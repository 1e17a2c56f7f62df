//! Whole tables, to copy them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, ToSql, params_from_iter};

use super::alone::{keep_from_opening, take_alone};
use super::connection::Sqlite;
use super::migrations::{beside, copy_pages, sync_directory_of};
use crate::error::StoreError;
use crate::tables::{Kind, Order, Sink, Source, Table, Value};

/// Tables of a file that nobody else has open.
pub(crate) struct Tables(Connection);

impl Tables {
    pub(crate) fn read(path: &Path) -> Result<Self, StoreError> {
        let connection = Sqlite::open(path)?.connection;
        connection.busy_timeout(PATIENCE)?;
        let _held = keep_from_opening(path)?;
        take_alone(&connection, path)?;
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(Self(connection))
    }
}

impl Source for Tables {
    fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        let query = format!("SELECT count(*) FROM {}", table.name);
        Ok(self.0.query_row(&query, [], |row| row.get::<_, i64>(0))? as u64)
    }

    fn last_id(&mut self, table: &Table) -> Result<i64, StoreError> {
        let query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?1";
        Ok(self.0.query_row(query, [table.name], |row| row.get(0))?)
    }

    fn rows(
        &mut self,
        table: &Table,
        each: &mut dyn FnMut(Vec<Value>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let order = match table.order {
            Order::Id => "id",
            Order::Key => table.columns[0].name,
            Order::Made => "rowid",
        };
        let query = format!("SELECT {} FROM {} ORDER BY {order}", table.list(), table.name);
        let mut statement = self.0.prepare(&query)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            each(values(table, row)?)?;
        }
        Ok(())
    }

    fn leave(&mut self, place: &str) -> Result<(), StoreError> {
        self.0.execute_batch("CREATE TABLE moved_to (place TEXT NOT NULL) STRICT")?;
        self.0.execute("INSERT INTO moved_to VALUES (?1)", [place])?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        Ok(self.0.execute_batch("COMMIT")?)
    }
}

/// Copies the file as it is at this moment to a new file. Others may write meanwhile: what they
/// write waits in the write-ahead log. Tells how many pages are copied, of how many.
pub(crate) fn copy_as_it_is(
    from: &Path,
    to: &Path,
    progress: impl FnMut(u64, u64),
) -> Result<(), StoreError> {
    let source = Sqlite::open(from)?.connection;
    // While this transaction reads, the copy sees no later state, and never has to begin again.
    source.execute_batch("BEGIN; SELECT count(*) FROM sqlite_schema")?;
    copy_pages(&source, to, progress)
}

/// A new file, which gets its name once it is finished.
pub(crate) struct NewTables {
    connection: Connection,
    path: PathBuf,
    part: PathBuf,
}

impl NewTables {
    pub(crate) fn make(path: &Path) -> Result<Self, StoreError> {
        // SQLite would take the log that another file left behind for the log of this one.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let there = beside(path, suffix);
            if there.exists() {
                return Err(StoreError::NotEmpty(there.display().to_string()));
            }
        }
        let part = path.with_extension("db.copy");
        // An earlier attempt may have left these.
        for suffix in ["", "-wal", "-shm"] {
            match fs::remove_file(beside(&part, suffix)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        let connection = Sqlite::create(&part)?.connection;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        Ok(Self { connection, path: path.to_owned(), part })
    }
}

impl Sink for NewTables {
    fn clear(&mut self, table: &Table) -> Result<(), StoreError> {
        self.connection.execute(&format!("DELETE FROM {}", table.name), [])?;
        Ok(())
    }

    fn add(&mut self, table: &Table, rows: &[Vec<Value>]) -> Result<(), StoreError> {
        let places = vec!["?"; table.columns.len()].join(", ");
        let query = format!("INSERT INTO {} ({}) VALUES ({places})", table.name, table.list());
        let mut statement = self.connection.prepare_cached(&query)?;
        for row in rows {
            statement.execute(params_from_iter(row))?;
        }
        Ok(())
    }

    fn set_last_id(&mut self, table: &Table, id: i64) -> Result<(), StoreError> {
        self.connection.execute("DELETE FROM sqlite_sequence WHERE name = ?1", [table.name])?;
        let insert = "INSERT INTO sqlite_sequence (name, seq) VALUES (?1, ?2)";
        self.connection.execute(insert, (table.name, id))?;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), StoreError> {
        self.connection.execute_batch("COMMIT")?;
        // Moves everything from the log into the one file that gets the name.
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        self.connection.close().map_err(|(_, error)| error)?;
        fs::File::open(&self.part)?.sync_all()?;
        // Unlike `rename`, it overwrites nothing that appeared meanwhile.
        fs::hard_link(&self.part, &self.path)?;
        fs::remove_file(&self.part)?;
        Ok(sync_directory_of(&self.path)?)
    }
}

fn values(table: &Table, row: &Row<'_>) -> rusqlite::Result<Vec<Value>> {
    let value = |(place, kind): (usize, Kind)| {
        Ok(match kind {
            Kind::Bytes => Value::Bytes(row.get(place)?),
            Kind::Number => Value::Number(row.get(place)?),
            Kind::Text => Value::Text(row.get(place)?),
            Kind::Truth => Value::Truth(row.get(place)?),
        })
    };
    table.columns.iter().map(|column| column.kind).enumerate().map(value).collect()
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let value = match self {
            Self::Bytes(bytes) => bytes.as_deref().map(ValueRef::Blob),
            Self::Number(number) => number.map(ValueRef::Integer),
            Self::Text(text) => text.as_deref().map(|text| ValueRef::Text(text.as_bytes())),
            Self::Truth(truth) => truth.map(|truth| ValueRef::Integer(truth.into())),
        };
        Ok(ToSqlOutput::Borrowed(value.unwrap_or(ValueRef::Null)))
    }
}
/// How long to wait for another process: a command may be about to end.
const PATIENCE: Duration = Duration::from_secs(1);
