//! `cargo xtask test` and `cargo xtask ci`.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::{bin_dir, cargo, compose, packages, show};

/// All tests, on binaries built from the same sources.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    // Builds `assay` and `assay-device` too, for their packages have integration tests.
    show(&mut cargo(&["test", "--workspace", "--no-run"]))?;
    show(cargo(&["test", "--workspace"]).args(arguments).env("ASSAY_BIN_DIR", bin_dir()?))
}

/// Everything that a change must pass; the cheapest check first.
pub(crate) fn run() -> Result<()> {
    step("format", || show(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("lints", || show(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"])))?;
    step("tests", || test(&[]))?;
    step("packages", packages::trial::run_trial)?;
    step("containers", || compose::run(&compose::Arguments::default()))?;
    step("documentation", || show(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings")))?;
    step("dependencies", dependencies)
}

/// Licences, sources, bans; and known vulnerabilities, if their database can be reached.
fn dependencies() -> Result<()> {
    show(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))?;
    let fetched: &mut Command = &mut cargo(&["deny", "fetch", "db"]);
    if show(fetched).is_err() {
        println!("NOT CHECKED: known vulnerabilities; the RustSec advisory database cannot be fetched from here");
        return Ok(());
    }
    show(&mut cargo(&["deny", "check", "--disable-fetch", "advisories"]))
}

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n=== {name}");
    let begin = Instant::now();
    check()?;
    println!("=== {name}: passed in {} s", begin.elapsed().as_secs());
    Ok(())
}
