//! `--version` names the commit in every form and place that the sources can have.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use assay_tests::{assay_bin, run, tool};
use tempfile::TempDir;

#[test]
fn both_binaries_name_the_commit_they_were_built_from() -> Result<()> {
    let commit =
        if sources().join(".git").exists() { head(&sources())? } else { "unknown commit".into() };
    for binary in ["assay", "assay-device"] {
        let said = run(Command::new(assay_bin(binary)?).arg("--version"))?.stdout;
        ensure!(
            String::from_utf8(said)?
                == format!("{binary} {} ({commit})\n", env!("CARGO_PKG_VERSION"))
        );
    }
    Ok(())
}

#[test]
fn the_commit_is_found_in_branches_packed_branches_linked_trees_and_detached_heads() -> Result<()> {
    let tree = Tree::new()?;
    tree.git(&["init", "--quiet"])?;
    tree.git(&[
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@example.com",
        "commit",
        "--quiet",
        "--allow-empty",
        "-mA",
    ])?;
    let commit = head(&tree.path())?;
    let expected = format!("ASSAY_VERSION=1.2.3 ({commit})");
    tree.says(&tree.path(), &expected)?;
    tree.git(&["pack-refs", "--all"])?;
    tree.says(&tree.path(), &expected)?;
    let linked = tree.directory.path().join("linked");
    tree.git(&["worktree", "add", "--quiet", linked.to_str().context("a path")?])?;
    tree.says(&linked, &expected)?;
    tree.git(&["checkout", "--quiet", "--detach"])?;
    tree.says(&tree.path(), &expected)
}

#[test]
fn sources_without_git_build_and_take_the_commit_from_the_environment() -> Result<()> {
    let tree = Tree::new()?;
    tree.says(&tree.path(), "ASSAY_VERSION=1.2.3 (unknown commit)")?;
    let named = |commit: &str| {
        tree.script(&tree.path()).map(|mut script| script.env("ASSAY_COMMIT", commit).output())
    };
    let output = named("0123456789ABCDEF0123456789abcdef01234567")??;
    ensure!(String::from_utf8(output.stdout)?.contains("ASSAY_VERSION=1.2.3 (0123456789ab)\n"));
    let output = named("main")??;
    ensure!(!output.status.success() && String::from_utf8(output.stderr)?.contains("hexadecimal"));
    Ok(())
}

/// Sources of a package somewhere, and the build script.
struct Tree {
    directory: TempDir,
}

impl Tree {
    fn new() -> Result<Self> {
        let tree = Self { directory: tempfile::tempdir()? };
        let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let script = sources().join("build/version.rs");
        run(Command::new(compiler)
            .args(["--edition=2024", "-o"])
            .arg(tree.compiled())
            .arg(script))?;
        fs::create_dir(tree.path())?;
        Ok(tree)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    fn compiled(&self) -> PathBuf {
        self.directory.path().join("script")
    }

    fn git(&self, arguments: &[&str]) -> Result<()> {
        run(tool("git")?.arg("-C").arg(self.path()).args(arguments)).map(drop)
    }

    /// The script, as cargo runs it for a package of these sources.
    fn script(&self, sources: &Path) -> Result<Command> {
        let package = sources.join("package");
        fs::create_dir_all(&package)?;
        let mut script = Command::new(self.compiled());
        script.current_dir(package).env("CARGO_PKG_VERSION", "1.2.3").env_remove("ASSAY_COMMIT");
        Ok(script)
    }

    /// Checks that the script gives the compiler this variable, and has cargo watch only what
    /// exists. Otherwise cargo would build again each time.
    fn says(&self, sources: &Path, expected: &str) -> Result<()> {
        let output = String::from_utf8(run(&mut self.script(sources)?)?.stdout)?;
        ensure!(
            output.lines().any(|line| line == format!("cargo::rustc-env={expected}")),
            "{expected}: {output}"
        );
        let watched =
            output.lines().filter_map(|line| line.strip_prefix("cargo::rerun-if-changed="));
        for path in watched.filter(|path| !path.ends_with("version.rs")) {
            ensure!(sources.join("package").join(path).exists(), "{path} is watched");
        }
        Ok(())
    }
}

fn head(tree: &Path) -> Result<String> {
    let commit = run(tool("git")?.arg("-C").arg(tree).args(["rev-parse", "HEAD"]))?.stdout;
    Ok(String::from_utf8(commit)?[..12].to_owned())
}

/// The workspace that this test was built in.
fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
