//! The executables under test, as cargo builds them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow};

use crate::cache::profile_dir;
use crate::tool::run;

/// The path of the binary `assay` or `assay-device`, built from the sources as they are now.
///
/// Cargo builds no binaries of other packages for a test, so the first call of a process does. `cargo xtask` has built them
/// already and says where in `ASSAY_BIN_DIR`.
pub fn assay_bin(name: &str) -> Result<PathBuf> {
    static DIR: LazyLock<Result<PathBuf>> = LazyLock::new(|| match env::var_os("ASSAY_BIN_DIR") {
        Some(dir) => Ok(dir.into()),
        None => build(),
    });
    let dir = DIR.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    Ok(dir.join(name))
}

fn build() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo)
        .args(["build", "--quiet", "--bins", "--package", "assay-broker-plugin", "--package", "assay-device"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR"))))
    .context("cannot build `assay` and `assay-device`")?;
    profile_dir()
}
