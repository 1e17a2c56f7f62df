//! Upgrades the schema of an earlier version of Assay to today's.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use refinery::{Migration, Runner, Target};
use rusqlite::backup::{Backup, Progress, StepResult};
use rusqlite::functions::FunctionFlags;
use rusqlite::{Connection, OptionalExtension};
use sha2::{Digest, Sha256};

use super::alone::{directory_of, keep_from_opening, take_alone};
use crate::error::{SCHEMA_VERSION, StoreError};

/// Makes today's schema in a file that is empty.
pub(super) fn create(connection: &mut Connection) -> Result<(), StoreError> {
    connection.execute_batch(include_str!("../schema.sql"))?;
    connection.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    sign(connection)?;
    runner()?.set_target(Target::Fake).run(connection)?;
    Ok(())
}

/// If an earlier version of Assay wrote the file, copies it and then upgrades it in one
/// transaction. Nobody else may have the file open, because an earlier version does not know what
/// today's needs.
///
/// # Errors
/// Another process has it open, a later version of Assay wrote it, no version of Assay wrote it, or
/// it cannot be written.
pub(super) fn upgrade(
    path: &Path,
    connect: impl FnOnce() -> Result<Connection, StoreError>,
) -> Result<(), StoreError> {
    // If several processes start at once, one upgrades the file, and the others find it done.
    let _held = keep_from_opening(path)?;
    let mut connection = connect()?;
    if is_todays(&connection)? {
        return Ok(());
    }
    take_alone(&connection, path)?;
    copy_beside(&connection, path)?;
    migrate(&mut connection)
}

/// Whether the file has today's schema, and not an earlier one.
pub(super) fn is_todays(connection: &Connection) -> Result<bool, StoreError> {
    if connection.table_exists(None, "moved_to")? {
        let query = "SELECT place FROM moved_to";
        return Err(StoreError::Moved(connection.query_row(query, [], |row| row.get(0))?));
    }
    let found = version(connection)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::Newer { found, writer: writer(connection)? });
    }
    if found < 1 {
        return Err(StoreError::Empty);
    }
    if found < SCHEMA_VERSION {
        return Ok(false);
    }
    if connection.query_row("SELECT NOT EXISTS (SELECT 1 FROM writer)", [], |row| row.get(0))? {
        // The process that upgraded the file ended before it wrote its version.
        sign(connection)?;
    }
    Ok(true)
}

/// The version of the file's schema; 0 if it has none of ours.
pub(super) fn version(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection.pragma_query_value(None, "user_version", |row| row.get(0))?)
}

/// The version of Assay that gave the file its schema, or `unknown`.
pub(super) fn writer(connection: &Connection) -> Result<String, StoreError> {
    if !connection.table_exists(None, "writer")? {
        return Ok("unknown".into());
    }
    let writer = connection.query_row("SELECT version FROM writer", [], |row| row.get(0));
    Ok(writer.optional()?.unwrap_or_else(|| "unknown".into()))
}

fn sign(connection: &Connection) -> Result<(), StoreError> {
    connection.execute("DELETE FROM writer", [])?;
    connection.execute("INSERT INTO writer VALUES (?1)", [env!("CARGO_PKG_VERSION")])?;
    Ok(())
}

/// Copies the file to `assay.db.before-11`. If that exists, it may be the only good copy, so this
/// copies to `assay.db.before-11.2`, and so on.
fn copy_beside(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let part = beside(path, &format!(".before-{SCHEMA_VERSION}.part"));
    owners_alone().truncate(true).open(&part)?;
    copy_pages(connection, &part, |_, _| {})?;
    let first = format!(".before-{SCHEMA_VERSION}");
    let others = (2..=COPIES).map(|number| format!("{first}.{number}"));
    for suffix in std::iter::once(first.clone()).chain(others) {
        // Unlike `rename`, it overwrites nothing.
        match fs::hard_link(&part, beside(path, &suffix)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            linked => {
                fs::remove_file(&part)?;
                linked?;
                return Ok(sync_directory_of(path)?);
            }
        }
    }
    fs::remove_file(&part)?;
    let full = format!("{first} and {} more copies exist: remove some", COPIES - 1);
    Err(io::Error::new(io::ErrorKind::AlreadyExists, full).into())
}

/// Copies a database to an empty file, durably. Tells how many pages are copied, of how many.
pub(super) fn copy_pages(
    from: &Connection,
    to: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), StoreError> {
    let mut copy = Connection::open(to)?;
    let backup = Backup::new(from, &mut copy)?;
    loop {
        match backup.step(PAGES)? {
            StepResult::Done => break,
            StepResult::More => {}
            // Somebody holds a lock for a moment.
            _ => thread::sleep(PAUSE),
        }
        let Progress { remaining, pagecount } = backup.progress();
        progress((pagecount - remaining).unsigned_abs().into(), pagecount.unsigned_abs().into());
    }
    drop(backup);
    copy.close().map_err(|(_, error)| error)?;
    Ok(File::open(to)?.sync_all()?)
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let from = version(connection)?;
    // Only migrations need this function.
    connection.create_scalar_function(
        "assay_sha256",
        1,
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC,
        |context| Ok(Sha256::digest(context.get_raw(0).as_blob()?).to_vec()),
    )?;
    connection.pragma_update(None, "foreign_keys", false)?;
    // Versions before 7 kept no list of what was applied to them, and an upgrade that was cut short
    // may have left an empty one.
    if last_applied(connection)? != from {
        connection.execute_batch("DROP TABLE IF EXISTS refinery_schema_history")?;
        let from = i32::try_from(from).map_err(StoreError::unreadable)?;
        runner()?.set_target(Target::FakeVersion(from)).run(connection)?;
    }
    runner()?.run(connection)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    sign(connection)
}

fn last_applied(connection: &Connection) -> Result<i64, StoreError> {
    if !connection.table_exists(None, "refinery_schema_history")? {
        return Ok(0);
    }
    let query = "SELECT coalesce(max(version), 0) FROM refinery_schema_history";
    Ok(connection.query_row(query, [], |row| row.get(0))?)
}

/// Runs all migrations in one transaction.
fn runner() -> Result<Runner, StoreError> {
    let migrations = MIGRATIONS.map(|(name, sql)| Migration::unapplied(name, sql));
    let migrations = migrations.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(Runner::new(&migrations).set_grouped(true))
}

fn owners_alone() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes sure that a new name is there after a crash of the machine.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    directory_of(path)?.sync_all()
}

/// Pages of 4 KiB that are copied at once.
const PAGES: i32 = 4096;
const PAUSE: Duration = Duration::from_millis(10);
/// Copies beside the file, at most: an upgrade that fails at each start should not fill the disk.
const COPIES: u32 = 9;
/// The steps from each version of the schema to the next. None leads to version 1.
const MIGRATIONS: [(&str, &str); 10] = [
    ("V2__flows", include_str!("V2__flows.sql")),
    ("V3__one_index_for_eks", include_str!("V3__one_index_for_eks.sql")),
    ("V4__anchors_and_tags", include_str!("V4__anchors_and_tags.sql")),
    ("V5__credentials", include_str!("V5__credentials.sql")),
    ("V6__scope_digests_and_audit", include_str!("V6__scope_digests_and_audit.sql")),
    ("V7__writer_and_offers", include_str!("V7__writer_and_offers.sql")),
    ("V8__restores_and_identities", include_str!("V8__restores_and_identities.sql")),
    ("V9__configurations", include_str!("V9__configurations.sql")),
    ("V10__groups", include_str!("V10__groups.sql")),
    ("V11__chains", include_str!("V11__chains.sql")),
];
