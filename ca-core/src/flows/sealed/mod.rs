//! The sealed flow: a certificate that only the right TPM can read, and the confirmation that it
//! could.
//!
//! The certificate exists before the device has proved anything. Until it is confirmed, it counts
//! for nothing: it leaves the CA only encrypted, under a key that travels inside a credential, and
//! it supersedes nothing. If it is not confirmed in time, it is revoked.

mod candidate;
mod claim;
mod confirmation;
mod confirmed;
mod encryption;
mod seal;
mod waiting;

pub use candidate::Candidate;
pub use confirmation::{Confirmation, Shown};
pub use confirmed::Confirmed;
pub(crate) use confirmed::may_be_confirmed;
pub use encryption::EncryptedCertificate;
pub(crate) use encryption::Waits;
pub(crate) use seal::SealedBox;
pub use waiting::{SealedOnRecord, Unconfirmed};
