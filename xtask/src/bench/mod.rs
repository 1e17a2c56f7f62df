//! `cargo xtask bench`: measurements, each beside its target.

mod broker;
mod core;
mod device;
mod fleet;
mod pkcs11;
mod renewals;
mod scale;

use anyhow::Result;
use clap::Subcommand;

/// What can be measured.
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Compare the built-in broker with Mosquitto, and see what hostile clients cost honest devices
    Broker(broker::Arguments),
    /// Time the CA's decisions for one device, beside the bare cryptography in them
    Core(core::Arguments),
    /// Provision simulated devices against `assay serve`, or have them renew: throughput, latency,
    /// memory, and behaviour under overload
    Fleet(fleet::Arguments),
    /// Compare what a device costs a CA that knows a thousand others with what it costs one that
    /// knows a million
    Scale(scale::Arguments),
    /// Compare an issuing key in a PKCS #11 token (SoftHSM, also one that takes 20 ms a signature)
    /// with one in a file: provisionings a second
    Pkcs11(pkcs11::Arguments),
    /// Measure what provisioning costs a device: time beyond its TPM's, bytes, size and memory of
    /// the agent
    Device(device::Args),
}

impl Bench {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Broker(arguments) => broker::run(&arguments),
            Self::Core(arguments) => core::run(&arguments),
            Self::Fleet(arguments) => match arguments.flow {
                fleet::Course::Ticket => fleet::run(&arguments),
                fleet::Course::Renew => renewals::run(&arguments),
            },
            Self::Scale(arguments) => scale::run(&arguments),
            Self::Pkcs11(arguments) => pkcs11::run(&arguments),
            Self::Device(arguments) => device::run(arguments),
        }
    }
}
