//! The database that holds a CA's record.

use std::path::PathBuf;

use crate::contract::Store;
use crate::error::{SCHEMA_VERSION, StoreError};
use crate::postgres::{Postgres, Settings};
use crate::sqlite::{self, Sqlite};

/// The database that holds a CA's record. It opens connections, one for each thread.
#[derive(Clone, Debug)]
pub enum Database {
    /// PostgreSQL.
    Postgres(Settings),
    /// A SQLite file.
    Sqlite(PathBuf),
}

impl Database {
    /// Opens a connection. If an earlier version of Assay wrote the file, this copies the file and
    /// then upgrades it. It does not upgrade PostgreSQL, because others may be at work in the
    /// database: see [`upgrade`](Self::upgrade).
    ///
    /// # Errors
    /// There is no CA, another version of Assay wrote it, or it cannot be reached.
    pub fn open(&self) -> Result<Box<dyn Store>, StoreError> {
        Ok(match self {
            Self::Postgres(settings) => Box::new(Postgres::open(settings)?),
            Self::Sqlite(path) => Box::new(Sqlite::open(path)?),
        })
    }

    /// Upgrades an earlier schema to today's. A file is copied first. With PostgreSQL, the operator
    /// first makes a backup and stops every worker.
    ///
    /// # Errors
    /// There is no CA, a later version of Assay wrote it, or it cannot be changed; then it is as it
    /// was.
    pub fn upgrade(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(settings) => match Postgres::version(settings)? {
                (0, _) => Err(StoreError::Empty),
                _ => Postgres::upgrade(settings),
            },
            Self::Sqlite(path) => Sqlite::open(path).map(drop),
        }
    }

    /// What the database holds. This changes nothing.
    ///
    /// # Errors
    /// It cannot be reached or read.
    pub fn status(&self) -> Result<Status, StoreError> {
        let (schema, writer) = match self {
            Self::Postgres(settings) => Postgres::version(settings)?,
            Self::Sqlite(path) => sqlite::version(path)?,
        };
        Ok(Status { place: self.shown(), schema, writer, wanted: SCHEMA_VERSION })
    }

    /// Its name, to show to people.
    pub fn shown(&self) -> String {
        match self {
            Self::Postgres(settings) => settings.shown(),
            Self::Sqlite(path) => path.display().to_string(),
        }
    }
}

/// What a database holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it is.
    pub place: String,
    /// The version of its schema; 0 if there is no CA.
    pub schema: i64,
    /// The version of Assay that made this schema; `unknown` if it is not on record.
    pub writer: String,
    /// The version of the schema that this version of Assay reads and writes.
    pub wanted: i64,
}
