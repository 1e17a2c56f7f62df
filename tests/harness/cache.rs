//! Directories that are expensive to make, made once for all runs and all test processes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Makes `path` with `make` unless it exists.
///
/// `make` fills a fresh directory beside `path`. That directory is then renamed, so nobody sees
/// half a directory. If two processes make the same directory at once, the later one discards its
/// own.
pub(crate) fn ensure(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let parent = path.parent().context("a cached directory has a parent")?;
    fs::create_dir_all(parent)?;
    let fresh = tempfile::Builder::new().prefix(".making-").tempdir_in(parent)?;
    make(fresh.path())?;
    match fs::rename(fresh.path(), path) {
        Err(_) if path.exists() => Ok(()),
        renamed => renamed.with_context(|| format!("cannot create {}", path.display())),
    }
}

/// The directory for what this library caches. You may remove it at any time.
pub(crate) fn root() -> Result<PathBuf> {
    Ok(profile_dir()?.parent().context("a profile directory has a parent")?.join("swtpm-cache"))
}

/// Where cargo put the running executable: `target/debug`, whether it is a test, an example or a
/// binary.
pub(crate) fn profile_dir() -> Result<PathBuf> {
    let executable = env::current_exe()?;
    let dir = executable.parent().context("an executable has a directory")?;
    Ok(if dir.ends_with("deps") || dir.ends_with("examples") {
        dir.parent().unwrap_or(dir)
    } else {
        dir
    }
    .to_path_buf())
}
