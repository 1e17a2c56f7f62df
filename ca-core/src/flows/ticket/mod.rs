//! The ticket flow: a challenge that only the right TPM can answer, and the proof that it did.
//!
//! Nothing is kept between the two. The claim says what was verified; it goes to the device and
//! comes back. Its ticket, a MAC of the claim, travels only inside a credential. Who shows the
//! ticket has activated the credential. So the EK and the IK of the claim are in one TPM, and the
//! sender has that TPM.

mod challenge;
mod claim;
mod proof;
mod readmitted;

pub use challenge::Challenge;
pub use claim::CLAIM_LIFETIME;
pub use proof::ProvenDevice;
pub use readmitted::Readmitted;
