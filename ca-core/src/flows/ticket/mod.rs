//! The ticket flow: a challenge that only the right TPM can answer, and the proof that it answered.
//!
//! The CA keeps nothing between the two. The claim says what the CA verified; it goes to the device
//! and comes back. The claim's ticket is a MAC of the claim, and travels only inside a credential.
//! A sender with the ticket has activated the credential. So the EK and the IK of the claim are in
//! one TPM, and the sender has that TPM.

mod challenge;
mod claim;
mod proof;
mod readmitted;

pub use challenge::Challenge;
pub use claim::CLAIM_LIFETIME;
pub use proof::{Instead, ProvenDevice};
pub use readmitted::Readmitted;
