//! `cargo xtask bench`: measurements, with the targets beside them.

mod device;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// What provisioning costs a device: time beyond its TPM's, bytes, size and memory of the agent
    Device(device::Args),
}

pub(crate) fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::Device(args) => device::run(args),
    }
}
