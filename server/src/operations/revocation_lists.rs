//! The signed lists of certificates that are revoked.

use anyhow::{Result, bail, ensure};
use assay_wire::KeyId;
use time::OffsetDateTime;

use super::restore::refuse_if_held;
use crate::ca::{Lists, SignedList};
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
    let Lists { signed, away } = lists(directory, now)?;
    match (signed.into_iter().find(is_it), issuer) {
        (Some(list), _) => Ok(list.der),
        (None, Some(key_id)) if !away.contains(key_id) => bail!(
            "there is no such issuing CA, or its certificate has ended; `assay issuing list` names \
             them"
        ),
        (None, _) => bail!(AWAY),
    }
}

/// The lists of devices by every issuing CA, and then that of identities; signed now, in DER.
///
/// # Errors
/// A key cannot be read, or the store fails.
pub fn of_all(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Vec<u8>>> {
    refuse_if_held(&mut *directory.store()?)?;
    // First, because this key may be elsewhere, and each list uses a number up.
    let of_services = directory.service_revocation_lists(now)?;
    let Lists { signed, away } = lists(directory, now)?;
    ensure!(away.is_empty(), AWAY);
    Ok(signed.into_iter().map(|list| list.der).chain(of_services).collect())
}

fn lists(directory: &Directory, now: OffsetDateTime) -> Result<Lists> {
    let mut store = directory.store()?;
    // A list of a CA that does not know what was revoked would make it good again.
    refuse_if_held(&mut *store)?;
    Ok(directory.ca()?.revocation_lists(&mut *store, usize::MAX, now)?)
}

const AWAY: &str =
    "the issuing CA's key is elsewhere, and does not sign now; `assay keys test` says why";
