//! What the end-to-end tests and the demo use: TPM vendors, software TPMs, brokers, and the real
//! binaries.
//!
//! Everything runs on this machine's loopback interface, in temporary directories. It ends when its
//! owner is dropped or its process dies. A missing tool is an error that names the Debian package,
//! never a skipped test.

mod abrmd;
mod agent;
mod binary;
mod cache;
mod device;
mod mosquitto;
mod ports;
mod postgres;
mod server;
mod softhsm;
mod swtpm;
mod tap;
mod tool;
mod vendor;
mod worker;

pub use abrmd::AccessBroker;
pub use agent::Agent;
pub use binary::{assay_bin, build, use_binaries_in};
pub use device::{Device, json};
pub use mosquitto::Mosquitto;
pub use postgres::Postgres;
pub use server::{AssayDir, AssayServer, EVERY_FLOW};
pub use softhsm::{SoftHsm, TakenOut};
pub use swtpm::{Swtpm, agent_has_libtss2, agent_tcti};
pub use tap::Tap;
pub use tool::{daemon, run, signal, spawn, tool};
pub use vendor::{EkCertificate, EkKind, VendorCa, trusted_vendor, untrusted_vendor};
pub use worker::Worker;
