//! An empty database of either kind.

use std::path::PathBuf;
use std::sync::Arc;

use assay_store::contract::Store;
use assay_store::postgres::Postgres;
use assay_store::sqlite::Sqlite;
use assay_store::{Database, PostgresSettings};
use assay_tests::Postgres as Server;

/// A connection to either.
pub(crate) type Any = Box<dyn Store>;

/// An empty database; gone when dropped.
pub(crate) struct Fixture {
    pub(crate) database: Database,
    /// Where the file is, for a process that opens it.
    pub(crate) directory: tempfile::TempDir,
    server: Option<Arc<Server>>,
}

impl Fixture {
    pub(crate) fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("assay.db");
        Sqlite::create(&path).unwrap();
        Self { database: Database::Sqlite(path), directory, server: None }
    }

    pub(crate) fn postgres() -> Self {
        Self::on(Server::shared().unwrap())
    }

    pub(crate) fn on(server: Arc<Server>) -> Self {
        let settings = PostgresSettings::new(&server.address().unwrap(), None, None).unwrap();
        Postgres::upgrade(&settings).unwrap();
        let directory = tempfile::tempdir().unwrap();
        Self { database: Database::Postgres(settings), directory, server: Some(server) }
    }

    pub(crate) fn store(&self) -> Any {
        self.database.open().unwrap()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("assay.db")
    }

    /// The server, if there is one.
    pub(crate) fn server(&self) -> Option<&Server> {
        self.server.as_deref()
    }
}

/// Tests that both stores have to pass. One that is not listed is dead code.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[test] fn $name() { super::$name(&crate::fixture::Fixture::sqlite()) })*
        }

        mod on_postgres {
            $(#[test] fn $name() { super::$name(&crate::fixture::Fixture::postgres()) })*
        }
    };
}
pub(crate) use on_both;
