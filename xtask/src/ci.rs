//! `cargo xtask test` and `cargo xtask ci`.

use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use crate::fuzz::Fuzz;
use crate::pair::Pair;
use crate::{bin_dir, cargo, compose, packages, show};

/// Tests run the binaries of other packages, which `cargo test` does not build. One command builds
/// binaries and tests, because the tests' dependencies change the features of shared crates. Two
/// commands would build these crates twice.
const BINARIES_AND_TESTS: [&str; 2] = ["--bins", "--tests"];

/// All tests, on binaries built from the same sources.
pub(crate) fn test(arguments: &[String]) -> Result<()> {
    show(cargo(&["build", "--workspace"]).args(BINARIES_AND_TESTS))?;
    show(cargo(&["test", "--workspace"]).args(arguments).env("ASSAY_BIN_DIR", bin_dir()?))
}

/// `cargo xtask test year`: the one test that `test` leaves out, because it takes minutes.
pub(crate) fn year() -> Result<()> {
    show(cargo(&["build", "--workspace"]).args(BINARIES_AND_TESTS))?;
    let arguments = ["test", "--workspace", "--test", "e2e", "--", "--ignored"];
    show(cargo(&arguments).arg("year::").env("ASSAY_BIN_DIR", bin_dir()?))
}

/// Everything that a change must pass; the cheapest check first.
pub(crate) fn run() -> Result<()> {
    step("format", || show(&mut cargo(&["fmt", "--all", "--check"])))?;
    step("lints", || {
        show(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))
    })?;
    step("the device's core without std", without_std)?;
    step("tests", || test(&[]))?;
    step("a year of a fleet", year)?;
    step("device and CA in many sequences", || Pair::of_commit().run())?;
    step("fuzz targets", || Fuzz::default().run())?;
    step("the TPM through libtss2", through_libtss2)?;
    step("packages", packages::trial::run_trial)?;
    step("containers", || compose::run(&compose::Arguments::default()))?;
    step("documentation", || {
        show(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"))
    })
}

/// `cargo xtask dependencies`, which needs cargo-deny.
pub(crate) fn check_dependencies() -> Result<()> {
    step("dependencies", dependencies)
}

/// `cargo xtask tss2-test`. The agent with the feature `tss2`: lints, all tests of its TPM layer,
/// and the matrix of the end-to-end tests, with libtss2 between agent and TPM. Besides the crate
/// that binds libtss2, cargo builds only the agent and its tests again.
pub(crate) fn through_libtss2() -> Result<()> {
    // The whole workspace, so that shared crates keep their features and are not built again.
    let with_feature = ["--workspace", "--features", "assay-device/tss2"];
    let run = |command: &str, arguments: &[&str]| {
        let arguments = [&[command], &with_feature[..], arguments].concat();
        let mut command = cargo(&arguments);
        // The tests provoke errors, and libtss2 would log each of them to stderr.
        command
            .env("ASSAY_BIN_DIR", bin_dir()?)
            .env("ASSAY_TEST_TSS2", "1")
            .env("TSS2_LOG", "all+NONE");
        show(&mut command)
    };
    run("clippy", &["--all-targets", "--", "--deny", "warnings"])?;
    run("build", &BINARIES_AND_TESTS)?;
    run("test", &["--lib", "tcti::"])?;
    // One test at a time, because every child process inherits libtss2's sockets. A software TPM
    // that one test starts would keep open the connection of another test to its own TPM.
    run("test", &["--test", "tpm", "--", "--test-threads=1"])?;
    run("test", &["--test", "e2e", "matrix::"])?;
    run("test", &["--test", "e2e", "access_broker::"])
}

/// Builds the device's core for a processor without an operating system. The core's tests check on
/// this machine that it links no `std`.
fn without_std() -> Result<()> {
    const TARGET: &str = "thumbv7em-none-eabi";
    let installed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    let is_installed = installed
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|it| it == TARGET));
    if !is_installed {
        println!(
            "NOT CHECKED: the device's core for {TARGET}; install that target with rustup target \
             add {TARGET}"
        );
        return Ok(());
    }
    show(&mut cargo(&["build", "--package", "assay-device-core", "--target", TARGET]))
}

/// Checks licences, sources and bans, and known vulnerabilities if their database can be reached.
fn dependencies() -> Result<()> {
    show(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))?;
    let fetched: &mut Command = &mut cargo(&["deny", "fetch", "db"]);
    if show(fetched).is_err() {
        println!(
            "NOT CHECKED: known vulnerabilities; the RustSec advisory database cannot be fetched \
             from here"
        );
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
