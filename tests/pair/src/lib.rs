//! The device's core and the CA's core against each other: one process, simulated time, a link with
//! every fault.
//!
//! A sequence of [operations](Op) is played on two devices, each with a TPM in software, and a CA
//! with its record in memory. After every step, rules are checked: [`play`] says which one was
//! broken. At the end all faults end, the operator allows everything, and every device has to get
//! what it asks for.
//!
//! | file | is |
//! |---|---|
//! | `op.rs` | what can happen, and which bytes stand for it |
//! | `world.rs` | lets it happen |
//! | `device.rs`, `tpm.rs` | a shell around `assay-device-core`, and its TPM |
//! | `ca.rs` | the server's decisions, on a record in memory |
//! | `link.rs` | what carries the messages |
//! | `rules.rs` | what must hold |
//!
//! What it does not have: renewal, a second CA on the same record, and crashes in the middle of a
//! transaction, which are the store's own business.

mod ca;
mod chance;
mod device;
mod factory;
mod link;
mod op;
mod rules;
mod tpm;
mod world;

pub use op::{Fate, Name, Op, Step, Want};
pub use rules::Broken;

/// Plays a sequence, and lets every device come to its credential at the end.
///
/// # Errors
/// A rule was broken.
pub fn play(sequence: &[Op]) -> Result<(), Broken> {
    world::World::new(false).play(sequence)
}

/// Plays a sequence and tells what happens on stderr.
///
/// # Errors
/// A rule was broken.
pub fn tell(sequence: &[Op]) -> Result<(), Broken> {
    world::World::new(true).play(sequence)
}
