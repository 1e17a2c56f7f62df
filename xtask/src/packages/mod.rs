//! `cargo xtask packages`: the Debian packages `assay` and `assay-device`.

mod machine;
pub(crate) mod trial;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use assay_tests::{run, tool};

use crate::{bin_dir, cargo, show};

/// One of the two Debian packages.
pub(crate) struct Package {
    /// The name of the package, and of its binary.
    name: &'static str,
    /// The crate whose `Cargo.toml` says what is in it.
    from_crate: &'static str,
    profile: &'static str,
    /// The example that writes its manual pages and completions.
    manual: &'static str,
}

/// Builds both packages, prints their sizes, and returns their files.
pub(crate) fn build() -> Result<Vec<PathBuf>> {
    install_cargo_deb()?;
    // The whole workspace, with the features that the tests are built with, so that nothing is
    // compiled twice.
    let mut manuals = cargo(&["build", "--workspace"]);
    show(manuals.args(PACKAGES.iter().flat_map(|package| ["--example", package.manual])))?;
    let target = bin_dir()?
        .parent()
        .context("a profile's directory is in the target directory")?
        .to_path_buf();
    // Removes packages of older versions.
    _ = fs::remove_dir_all(target.join("debian"));
    PACKAGES.iter().map(|package| package.build(&target)).collect()
}

impl Package {
    fn build(&self, target: &Path) -> Result<PathBuf> {
        self.write_manual(&target.join(self.profile).join("package"))?;
        // cargo-deb would build the whole workspace.
        show(&mut cargo(&[
            "build",
            "--package",
            self.from_crate,
            "--bin",
            self.name,
            "--profile",
            self.profile,
        ]))?;
        let out = target.join("debian");
        show(cargo(&["deb", "--package", self.from_crate, "--no-build", "--output"]).arg(&out))?;

        let file = self.file_in(&out)?;
        let binary = fs::metadata(target.join(self.profile).join(self.name))?.len();
        let packed = fs::metadata(&file)?.len();
        println!("{}  {packed} bytes, in it a binary of {binary} bytes", file.display());
        Ok(file)
    }

    /// Writes the manual where `Cargo.toml` expects it. Debian's policy wants compressed pages.
    fn write_manual(&self, directory: &Path) -> Result<()> {
        _ = fs::remove_dir_all(directory);
        fs::create_dir_all(directory)?;
        run(Command::new(bin_dir()?.join("examples").join(self.manual)).arg(directory))?;
        for entry in fs::read_dir(directory)? {
            let page = entry?.path();
            if page.extension().is_some_and(|extension| extension == "1") {
                fs::write(&page, readable(&fs::read_to_string(&page)?))?;
                run(tool("gzip")?.args(["-9", "--no-name"]).arg(page))?;
            }
        }
        Ok(())
    }

    /// The package's file, whose name contains version and architecture.
    fn file_in(&self, directory: &Path) -> Result<PathBuf> {
        let prefix = format!("{}_", self.name);
        let entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
        let mine =
            entries.iter().find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        Ok(mine
            .with_context(|| format!("cargo-deb left no {prefix}….deb in {}", directory.display()))?
            .path())
    }
}

/// clap_mangen fills the lines of what follows the options. Examples and lists must keep their
/// lines.
fn readable(page: &str) -> String {
    let page = page.replace(".SH EXTRA\n", ".SH NOTES\n");
    page.replace("\nExample", "\n.nf\nExample").replace("\nExit codes:", "\n.nf\nExit codes:")
}

fn install_cargo_deb() -> Result<()> {
    let version =
        cargo(&["deb", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    if version.success() {
        return Ok(());
    }
    println!("Installing cargo-deb, which makes Debian packages; half a minute, once a machine");
    show(&mut cargo(&["install", "--locked", "--debug", "cargo-deb"]))
}

pub(crate) const PACKAGES: [Package; 2] = [
    Package {
        name: "assay",
        from_crate: "assay-server",
        profile: "release",
        manual: "assay-manual",
    },
    Package {
        name: "assay-device",
        from_crate: "assay-device",
        profile: "device",
        manual: "assay-device-manual",
    },
];
