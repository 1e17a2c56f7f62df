//! `cargo xtask`: the commands that the README names.

mod bench;
mod ci;
mod demo;
mod install;
mod real_tpms;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Show it all: software TPMs become devices with certificates, and impostors are refused
    Demo,
    /// Run all tests
    Test {
        /// For `cargo test`, e.g. a part of a test's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Check what a change must pass: format, lints, tests, documentation, dependencies
    Ci,
    /// Measure what it can do
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Show what the CA makes of real vendors' certificates; fails if any of it is wrong
    RealTpms(real_tpms::Arguments),
    /// Install the Debian packages that building and testing need
    Install,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Demo => install::install().and_then(|()| demo::run()),
        Task::Test { arguments } => install::install().and_then(|()| ci::test(&arguments)),
        Task::Ci => install::install().and_then(|()| ci::run()),
        Task::Bench(bench) => install::install().and_then(|()| bench.run()),
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
    command.args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    command
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
