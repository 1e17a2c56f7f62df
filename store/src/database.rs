//! Where a CA is on record.

use std::path::PathBuf;

use crate::contract::Store;
use crate::error::{SCHEMA_VERSION, StoreError};
use crate::postgres::{Postgres, Settings};
use crate::sqlite::{self, Sqlite};

/// Where a CA is on record. It opens connections, one for each thread.
#[derive(Clone, Debug)]
pub enum Database {
    /// In a PostgreSQL.
    Postgres(Settings),
    /// In a file.
    Sqlite(PathBuf),
}

impl Database {
    /// Opens a connection. A file that an earlier version of Assay wrote is upgraded, after a copy
    /// beside it; a PostgreSQL is not, for others may be at work in it: see
    /// [`upgrade`](Self::upgrade).
    ///
    /// # Errors
    /// There is no CA, another version of Assay wrote it, or it cannot be reached.
    pub fn open(&self) -> Result<Box<dyn Store>, StoreError> {
        Ok(match self {
            Self::Postgres(settings) => Box::new(Postgres::open(settings)?),
            Self::Sqlite(path) => Box::new(Sqlite::open(path)?),
        })
    }

    /// Makes today's schema of an earlier one. In a file a copy is made first; of a PostgreSQL the
    /// operator makes one, and stops every worker.
    ///
    /// # Errors
    /// There is no CA, a later version of Assay wrote it, or it cannot be changed, and then it is
    /// as it was.
    pub fn upgrade(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(settings) => match Postgres::version(settings)? {
                (0, _) => Err(StoreError::Empty),
                _ => Postgres::upgrade(settings),
            },
            Self::Sqlite(path) => Sqlite::open(path).map(drop),
        }
    }

    /// What stands there, without changing it.
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

    /// How people may call it.
    pub fn shown(&self) -> String {
        match self {
            Self::Postgres(settings) => settings.shown(),
            Self::Sqlite(path) => path.display().to_string(),
        }
    }
}

/// What stands in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Where it is.
    pub place: String,
    /// The version of its schema; 0 if there is no CA.
    pub schema: i64,
    /// The version of Assay that made the schema so; `unknown` if it is not on record.
    pub writer: String,
    /// The version of the schema that this version of Assay reads and writes.
    pub wanted: i64,
}
