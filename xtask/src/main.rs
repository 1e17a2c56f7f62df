//! `cargo xtask`: the commands that CONTRIBUTING.md lists.

mod bench;
mod ci;
mod compose;
mod demo;
mod docker;
mod fuzz;
mod images;
mod install;
mod packages;
mod pair;
mod real_tpms;
mod screen;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Show all of it: software TPMs become devices with certificates, and impostors are refused
    Demo,
    /// Run all tests but one; `cargo xtask test year` runs that one: a year of a fleet, in five
    /// minutes
    Test {
        /// `year`; or what is for `cargo test`, e.g. a part of a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the tests of the agent through libtss2: feature `tss2`
    Tss2Test,
    /// Check what a change must pass: format, lints, tests, packages, containers, documentation
    Ci,
    /// Check licences, sources and known vulnerabilities of what we depend on, by cargo-deny
    Dependencies,
    /// Build the container images; base images that cannot be pulled are made on this machine
    Images(images::Images),
    /// Bring up docker-compose.yml, and see what it survives: kills, cuts, a full disk, wrong
    /// clocks
    ComposeTest(compose::Arguments),
    /// Play sequences of operations and faults on device and CA, in memory and simulated time
    Pair(pair::Pair),
    /// Run every fuzz target for some seconds
    Fuzz(fuzz::Fuzz),
    /// Measure speed, memory and costs
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Build the Debian packages assay and assay-device, in target/debian
    Packages,
    /// Build the packages, and try them on a fresh Debian machine in a folder; as root
    PackagesTest,
    /// Show the CA's verdict on real vendors' certificates; fails if a verdict is wrong
    RealTpms(real_tpms::Arguments),
    /// Install the Debian packages that building and testing need
    Install,
}

fn main() -> ExitCode {
    if let Some(compiled) = fuzz::as_rustc() {
        return if compiled.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let done = match Task::parse() {
        Task::Demo => install::install_for_demo().and_then(|()| demo::run()),
        Task::Test { arguments } if arguments == ["year"] => {
            install::install().and_then(|()| ci::year())
        }
        Task::Test { arguments } => install::install().and_then(|()| ci::test(&arguments)),
        Task::Tss2Test => install::install().and_then(|()| ci::through_libtss2()),
        Task::Ci => install::install().and_then(|()| ci::run()),
        Task::Dependencies => ci::check_dependencies(),
        Task::Images(images) => images.run().map(drop),
        Task::ComposeTest(arguments) => install::install().and_then(|()| compose::run(&arguments)),
        Task::Pair(pair) => install::install().and_then(|()| pair.run()),
        Task::Fuzz(fuzz) => install::install().and_then(|()| fuzz.run()),
        Task::Bench(bench) => install::install().and_then(|()| bench.run()),
        Task::Packages => {
            install::install_for_packages().and_then(|()| packages::build()).map(drop)
        }
        Task::PackagesTest => install::install().and_then(|()| packages::trial::run_trial()),
        Task::RealTpms(arguments) => install::install().and_then(|()| real_tpms::run(&arguments)),
        Task::Install => install::install(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A cargo command in the workspace's directory.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(workspace());
    command
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs `command` for the user to see; an exit status other than 0 is an error.
fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Where cargo puts the binaries of the workspace: beside this one.
fn bin_dir() -> Result<PathBuf> {
    Ok(env::current_exe()?.parent().context("an executable has a directory")?.to_path_buf())
}
