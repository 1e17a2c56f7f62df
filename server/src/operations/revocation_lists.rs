//! The signed lists of certificates that are revoked.

use anyhow::{Context, Result};
use assay_wire::KeyId;
use time::OffsetDateTime;

use super::restore::refuse_if_held;
use crate::ca::SignedList;
use crate::directory::Directory;

/// The list of devices by the issuing CA with this key, or by the one in use; signed now, in DER.
///
/// # Errors
/// There is no such issuing CA, or it has ended; a key cannot be read, or the store fails.
pub fn of_devices(
    directory: &Directory,
    issuer: Option<&KeyId>,
    now: OffsetDateTime,
) -> Result<Vec<u8>> {
    let is_it = |list: &SignedList| match issuer {
        Some(key_id) => list.key_id == *key_id,
        None => list.in_use,
    };
    let list = lists(directory, now)?.into_iter().find(is_it);
    let list = list.context(
        "there is no such issuing CA, or its certificate has ended; `assay issuing list` names them",
    )?;
    Ok(list.der)
}

/// The lists of devices by every issuing CA, and then that of identities; signed now, in DER.
///
/// # Errors
/// A key cannot be read, or the store fails.
pub fn of_all(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Vec<u8>>> {
    refuse_if_held(&mut *directory.store()?)?;
    // First, because this key may be elsewhere, and each list uses a number up.
    let of_services = directory.service_revocation_lists(now)?;
    let of_devices = lists(directory, now)?.into_iter().map(|list| list.der);
    Ok(of_devices.chain(of_services).collect())
}

fn lists(directory: &Directory, now: OffsetDateTime) -> Result<Vec<SignedList>> {
    let mut store = directory.store()?;
    // A list of a CA that does not know what was revoked would make it good again.
    refuse_if_held(&mut *store)?;
    Ok(directory.ca()?.revocation_lists(&mut *store, usize::MAX, now)?)
}
