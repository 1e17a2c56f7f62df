//! The executables under test, as cargo builds them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};

use crate::cache::profile_dir;
use crate::tool::run;

/// The path of `assay`, `assay-device`, `assay-fleet`, `examples/impostor` or `examples/populate`,
/// built from the present sources.
///
/// Cargo builds no binaries of other packages for a test, so the first call in a process builds
/// them. It builds nothing if [`use_binaries_in`] or the environment's `ASSAY_BIN_DIR` names a
/// directory with binaries.
pub fn assay_bin(name: &str) -> Result<PathBuf> {
    let dir = BIN_DIR.get_or_init(|| match env::var_os("ASSAY_BIN_DIR") {
        Some(dir) => Ok(dir.into()),
        None => run(build().args(["--quiet", "--package", "assay-fleet", "--example", "populate"]))
            .and_then(|_| profile_dir()),
    });
    let dir = dir
        .as_ref()
        .map_err(|error| anyhow!("{error:#}"))
        .context("cannot build the binaries under test")?;
    Ok(dir.join(name))
}

/// Makes [`assay_bin`] build nothing; call it first.
pub fn use_binaries_in(dir: PathBuf) {
    BIN_DIR.set(Ok(dir)).expect("set before the first use");
}

/// The command that builds what [`assay_bin`] finds.
pub fn build() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--package", "assay-server", "--package", "assay-device", "--bins"]);
    command.args(["--package", "assay-tests", "--example", "impostor"]);
    // The profile of this library, because `assay_bin` looks there.
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    // Cargo set these for the test's own package. Build scripts would see them as a change.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            command.env_remove(name);
        }
    }
    command
}

static BIN_DIR: OnceLock<Result<PathBuf>> = OnceLock::new();
