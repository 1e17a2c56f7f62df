//! The device's core and the CA's core against each other: one process, simulated time, a link with
//! every fault.
//!
//! A sequence of [operations](Op) is played on two devices, each with a TPM in software, and a CA
//! with its record in memory. Rules are checked after every step, and [`play`] says which rule was
//! broken. At the end all faults stop, the operator allows everything, and every device must get
//! what it asks for.
//!
//! | file | is |
//! |---|---|
//! | `op.rs` | what can happen, and which bytes stand for it |
//! | `world.rs` | plays the operations |
//! | `device.rs`, `tpm.rs` | a shell around `assay-device-core`, and its TPM |
//! | `ca.rs` | the server's decisions, on a record in memory |
//! | `link.rs` | what carries the messages |
//! | `rules.rs` | what must hold |
//!
//! Not played are a second CA on the same record, and crashes in the middle of a transaction, which
//! only concern the store.

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
