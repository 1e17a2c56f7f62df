//! The signed lists of certificates that are revoked.

use anyhow::Result;
use time::OffsetDateTime;

use crate::directory::Directory;

/// The list of devices, signed now, in DER.
///
/// # Errors
/// A key cannot be read, or the store fails.
pub fn of_devices(directory: &Directory, now: OffsetDateTime) -> Result<Vec<u8>> {
    Ok(directory.ca()?.revocation_list(&mut *directory.store()?, usize::MAX, now)?)
}

/// The lists of devices and of identities, signed now, in DER.
///
/// # Errors
/// A key cannot be read, or the store fails.
pub fn of_all(directory: &Directory, now: OffsetDateTime) -> Result<[Vec<u8>; 2]> {
    // First, because this key may be elsewhere, and each list uses a number up.
    let of_services = directory.service_revocation_list(now)?;
    Ok([of_devices(directory, now)?, of_services])
}
