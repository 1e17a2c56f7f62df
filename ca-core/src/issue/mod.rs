//! Device certificates: what is in them, who signs them, and which are no longer good.

mod issuer;
mod issuers;
mod prepare;
mod revocation;
mod serial;
mod sign;
mod term;

pub use issuer::{Issuer, IssuerError, IssuingKey, MAX_KEY_ID};
pub use issuers::{HANDOVER, Issuers, IssuersError, Scheduled};
pub use prepare::{CertificateFacts, Prepared, Proven, Renewed, Unproven};
pub use revocation::{REVOCATION_LIST_LIFETIME, RevocationListRead, RevocationReason, Revoked};
pub(crate) use serial::serial_number;
pub use sign::Issued;
pub(crate) use term::Term;
