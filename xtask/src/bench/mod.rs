//! `cargo xtask bench`: measurements, each by one command.

mod core;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Time the CA's decisions for one device, beside the bare cryptography in them
    Core(core::Arguments),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Core(arguments) => core::run(&arguments),
        }
    }
}
