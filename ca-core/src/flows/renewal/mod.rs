//! Renewal: a device with a certificate in force gets the next one for the same IK.
//!
//! The certificate in force was issued to a device that proved that its EK and its IK are in one
//! TPM. So a signature by the IK is enough now, and the EK is not used. The renewed certificate may
//! leave the CA in clear: nobody can use it without the IK. It waits, and ends nothing, until its
//! device adopts it or connects with it.

mod adoption;
mod evidence;
mod in_force;
mod proof;
mod statement;

pub use adoption::{AdoptionEvidence, AdoptionProof};
pub use evidence::RenewalEvidence;
pub use in_force::InForce;
pub use proof::RenewalProof;
pub use statement::STATEMENT_LIFETIME;
