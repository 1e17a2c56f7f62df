//! Moves a CA from its file to PostgreSQL, or back.

use std::fs;

use anyhow::{Context, Result, bail};
use assay_store::{Database, Progress, copy};

use crate::directory::Directory;

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The PostgreSQL that assay.toml names.
    Postgres,
    /// The file in the CA's directory.
    File,
}

/// What was moved.
#[derive(Clone, Debug)]
pub struct Moved {
    /// Where it was, as people may see it.
    pub from: String,
    /// Where it is.
    pub to: String,
    /// How many rows it has.
    pub rows: u64,
}

/// Moves everything, or nothing. What is left behind refuses to be opened from then on, and a file
/// gets another name.
///
/// # Errors
/// There is nothing to move, or something at its target; or one of the stores fails.
pub fn move_to(
    directory: &Directory,
    target: Target,
    progress: impl FnMut(Progress),
) -> Result<Moved> {
    let Some(postgres) = directory.postgres()? else {
        bail!(
            "assay.toml names no PostgreSQL; put one into [store] (docs/operations.md, \"PostgreSQL\")"
        )
    };
    let file = directory.file();
    let (from, to) = match target {
        Target::Postgres => (Database::Sqlite(file.clone()), postgres),
        Target::File => (postgres, Database::Sqlite(file.clone())),
    };
    if let Database::Sqlite(file) = &from
        && !file.exists()
    {
        bail!("{} is missing, so there is nothing to copy", file.display());
    }
    let rows = copy(&from, &to, progress)
        .with_context(|| format!("cannot copy {} to {}", from.shown(), to.shown()))?;
    if let Target::Postgres = target {
        // The file does not know what the CA revokes from now on; nobody should serve by it.
        let aside = file.with_extension("db.copied");
        fs::rename(&file, &aside).with_context(|| format!("rename {} by hand", file.display()))?;
    }
    Ok(Moved { from: from.shown(), to: to.shown(), rows })
}
