//! `cargo xtask bench broker`: the built-in broker beside Mosquitto, and under attack.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use super::fleet::binaries;
use crate::{install, show};

/// How to measure.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask bench broker                       everything, in about ten minutes
  cargo xtask bench broker -- roundtrip memory   beside Mosquitto only
  cargo xtask bench broker -- hostile --quick    whether it works

A table goes to stderr, a JSON object to stdout.")]
pub(crate) struct Arguments {
    /// Arguments for `assay-brokers`; see its `--help`
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    install::install()?;
    let bin = binaries()?;
    show(
        Command::new(bin.join("assay-brokers"))
            .args(&arguments.arguments)
            .env("ASSAY_BIN_DIR", &bin),
    )
}
