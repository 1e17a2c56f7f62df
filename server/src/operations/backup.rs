//! Makes a backup of a CA that serves.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use assay_store::Progress;
use time::OffsetDateTime;

use crate::age::Recipient;
use crate::backup_file;
use crate::directory::Directory;

/// A backup that was made.
#[derive(Clone, Debug)]
pub struct Made {
    /// The moment of which the record is.
    pub backed_up_at: OffsetDateTime,
    /// Its length in bytes.
    pub length: u64,
    /// The names of the files in it.
    pub files: Vec<String>,
}

/// Writes keys, certificates, settings and record to one new file, encrypted if there are
/// recipients. The CA may serve meanwhile. The file is whole, on disk and readable for its owner
/// alone when it gets its name.
///
/// # Errors
/// The file exists or cannot be written, or the CA cannot be read.
pub fn make(
    directory: &Directory,
    out: &Path,
    recipients: &[Recipient],
    progress: impl FnMut(Progress),
) -> Result<Made> {
    let cannot_write = || format!("cannot write {}", out.display());
    ensure!(!out.exists(), "{} exists, and a backup overwrites nothing", out.display());
    let place = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let place = place.unwrap_or_else(|| Path::new("."));
    // On the same disk, which has the room, and for this user alone.
    let temporary = tempfile::Builder::new()
        .prefix(".assay-backup-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(place)
        .with_context(cannot_write)?;
    let record = temporary.path().join(Directory::RECORD);
    // Before the copy begins: what is revoked meanwhile counts as revoked since.
    let backed_up_at = OffsetDateTime::now_utc();
    let database = directory.database()?;
    assay_store::backup(&database, &record, progress)
        .with_context(|| format!("cannot copy {}", database.shown()))?;
    let mut files = directory.files()?;
    files.push((Directory::RECORD.to_owned(), record));

    let new = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(temporary.path())
        .with_context(cannot_write)?;
    let written = backup_file::write(new.reopen()?, recipients, &files, backed_up_at)
        .with_context(cannot_write)?;
    written.sync_all()?;
    let length = written.metadata()?.len();
    new.persist_noclobber(out).with_context(cannot_write)?;
    File::open(place)?.sync_all()?;
    Ok(Made { backed_up_at, length, files: files.into_iter().map(|(name, _)| name).collect() })
}
