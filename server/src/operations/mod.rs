//! What operators do to a CA: functions that print nothing, for every face of them.

pub mod backup;
pub mod ceremony;
pub mod configurations;
pub mod documents;
pub mod enrol;
pub mod groups;
pub mod identities;
pub mod import;
pub mod issuing;
pub mod keys;
pub mod pending;
pub mod replace;
pub mod restore;
pub mod revocation_lists;
pub mod roots;
pub mod services;
pub mod signers;
pub mod store;
pub mod trust;

use anyhow::Result;
use time::OffsetDateTime;

use crate::directory::Directory;
use crate::expiry::Ending;

/// Whose certificates end soon: identities' and the CA's own.
///
/// # Errors
/// The store or a file cannot be read.
pub fn ending(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Ending>> {
    Ok([identities::ending(directory, now)?, issuing::ending(directory, now)?].concat())
}
