//! `cargo xtask bench`: measurements, each with the targets beside what was reached.

mod core;
mod fleet;

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Time the CA's decisions for one device, beside the bare cryptography in them
    Core(core::Arguments),
    /// Provision simulated devices against `assay serve`: throughput, latency, memory, and behaviour under overload
    Fleet(fleet::Arguments),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Core(arguments) => core::run(&arguments),
            Self::Fleet(arguments) => fleet::run(&arguments),
        }
    }
}
