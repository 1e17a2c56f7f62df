//! The signed lists of certificates that are revoked.

use anyhow::Result;
use time::OffsetDateTime;

use super::restore::refuse_if_held;
use crate::directory::Directory;

/// The list of devices, signed now, in DER.
///
/// # Errors
/// A key cannot be read, or the store fails.
pub fn of_devices(directory: &Directory, now: OffsetDateTime) -> Result<Vec<u8>> {
    let mut store = directory.store()?;
    // A list of a CA that does not know what was revoked would make it good again.
    refuse_if_held(&mut *store)?;
    Ok(directory.ca()?.revocation_list(&mut *store, usize::MAX, now)?)
}

/// The lists of devices and of identities, signed now, in DER.
///
/// # Errors
/// A key cannot be read, or the store fails.
pub fn of_all(directory: &Directory, now: OffsetDateTime) -> Result<[Vec<u8>; 2]> {
    refuse_if_held(&mut *directory.store()?)?;
    // First, because this key may be elsewhere, and each list uses a number up.
    let of_services = directory.service_revocation_list(now)?;
    Ok([of_devices(directory, now)?, of_services])
}
