//! Makes the schema, and upgrades that of an earlier version of Assay to today's.

use refinery::{Migration, Runner};

use super::connection::Postgres;
use super::session::Session;
use super::settings::Settings;
use crate::error::{SCHEMA_VERSION, StoreError};

/// The version of the schema, and the version of Assay that made it; 0 if there is none.
pub(super) fn version(session: &mut Session) -> Result<(i64, String), StoreError> {
    // The names are without a schema: a database may hold several CAs in several schemas, and the
    // connection's search path selects one.
    let exists = "SELECT to_regclass('refinery_schema_history') IS NOT NULL,
                         to_regclass('writer') IS NOT NULL, current_setting('server_encoding')";
    let row = session.query_one(exists, &[])?;
    let encoding: &str = row.get(2);
    if encoding != "UTF8" {
        return Err(StoreError::Settings(format!(
            "the encoding of the database is {encoding}, which cannot hold every tag or name: \
             make another database (createdb --encoding=UTF8 --template=template0)"
        )));
    }
    if !row.get::<_, bool>(0) || !row.get::<_, bool>(1) {
        return Ok((0, "unknown".into()));
    }
    let version = "SELECT coalesce(max(version), 0)::int8 FROM refinery_schema_history";
    let version = session.query_one(version, &[])?.get(0);
    let writer = session.query_opt("SELECT version FROM writer", &[])?;
    Ok((version, writer.map_or_else(|| "unknown".into(), |row| row.get(0))))
}

/// Refuses another schema than today's.
pub(super) fn check(store: &mut Postgres) -> Result<(), StoreError> {
    match store.read(version)? {
        (0, _) => Err(StoreError::Empty),
        (SCHEMA_VERSION, _) => store.read(refuse_if_moved),
        (found, writer) if found > SCHEMA_VERSION => Err(StoreError::Newer { found, writer }),
        (found, _) => Err(StoreError::Older(found)),
    }
}

/// Refuses a CA that was copied elsewhere.
pub(super) fn refuse_if_moved(session: &mut Session) -> Result<(), StoreError> {
    match session.query_opt("SELECT place FROM moved_to", &[])? {
        Some(row) => Err(StoreError::Moved(row.get(0))),
        None => Ok(()),
    }
}

/// Makes today's schema in an empty database, or from an earlier schema. Changes nothing if the
/// schema is today's. Several processes may try at once.
pub(super) fn upgrade(settings: &Settings) -> Result<(), StoreError> {
    let mut session = Session::open(settings)?;
    session.client.batch_execute(ALONE)?;
    let (found, writer) = version(&mut session)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer { found, writer });
    }
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    let migrations = MIGRATIONS.map(|(name, sql)| Migration::unapplied(name, sql));
    let migrations = migrations.into_iter().collect::<Result<Vec<_>, _>>()?;
    Runner::new(&migrations).set_grouped(true).run(&mut session.client)?;
    session.client.execute("DELETE FROM writer", &[])?;
    session.client.execute("INSERT INTO writer VALUES ($1)", &[&env!("CARGO_PKG_VERSION")])?;
    Ok(())
}

/// The advisory lock is held until the connection ends. Its number is a random one.
const ALONE: &str = "SET default_transaction_read_only = off;
    SET lock_timeout = 0;
    SET statement_timeout = 0;
    SELECT pg_advisory_lock(6840190272430316413)";
/// The steps from each version of the schema to the next. The first step makes the schema in an
/// empty database.
const MIGRATIONS: [(&str, &str); 5] = [
    ("V7__schema", include_str!("V7__schema.sql")),
    ("V8__restores_and_identities", include_str!("V8__restores_and_identities.sql")),
    ("V9__configurations", include_str!("V9__configurations.sql")),
    ("V10__groups", include_str!("V10__groups.sql")),
    ("V11__chains", include_str!("V11__chains.sql")),
];
