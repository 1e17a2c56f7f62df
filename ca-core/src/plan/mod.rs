//! Plans: the whole decision of a flow's step, made on a snapshot of what is on record.
//!
//! A plan says what would be issued. It is signed outside of any lock, and it counts once it is
//! recorded. The store records it only if the snapshot still holds; otherwise the CA plans again.

mod adopt;
mod certify;
mod confirm;
mod enroll;
mod rekey;
mod renew;

pub use adopt::Adopting;
pub use certify::Certification;
pub use confirm::Confirming;
pub use enroll::Sealing;
pub use renew::Renewing;
