//! An empty database of either kind.

use std::path::PathBuf;
use std::sync::Arc;

use assay_store::contract::Store;
use assay_store::postgres::Postgres;
use assay_store::sqlite::Sqlite;
use assay_store::{Database, PostgresSettings};
use assay_tests::Postgres as Server;

/// A connection to a store of either kind.
pub(crate) type Any = Box<dyn Store>;

/// An empty database. It is deleted when this is dropped.
pub(crate) struct Fixture {
    pub(crate) database: Database,
    /// The address by which another process opens it.
    pub(crate) address: String,
    /// Where the file is.
    pub(crate) directory: tempfile::TempDir,
    _server: Option<Arc<Server>>,
}

impl Fixture {
    pub(crate) fn sqlite() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("assay.db");
        Sqlite::create(&path).unwrap();
        let address = path.to_str().unwrap().to_owned();
        Self { database: open(&address), address, directory, _server: None }
    }

    /// A database on the server that tests share.
    pub(crate) fn postgres() -> Self {
        Self::on(Server::shared().unwrap())
    }

    pub(crate) fn on(server: Arc<Server>) -> Self {
        let address = server.address().unwrap();
        let settings = PostgresSettings::new(&address, None, None).unwrap();
        Postgres::upgrade(&settings).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let database = Database::Postgres(settings);
        Self { database, address, directory, _server: Some(server) }
    }

    pub(crate) fn store(&self) -> Any {
        self.database.open().unwrap()
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("assay.db")
    }
}

/// The database at a [`Fixture::address`], which is a connection string or the path of a file.
pub(crate) fn open(address: &str) -> Database {
    if address.starts_with('/') {
        return Database::Sqlite(address.into());
    }
    Database::Postgres(PostgresSettings::new(address, None, None).unwrap())
}

/// Tests that both stores have to pass. A test that is not listed is dead code.
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
