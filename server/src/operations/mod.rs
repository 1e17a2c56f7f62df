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
use assay_store::{Act, AuditEntry, Change, Entry, Store, Whom};
use assay_wire::{ClientId, DeviceId, EkId, Scope};
use time::OffsetDateTime;

use crate::directory::Directory;
use crate::expiry::Ending;

/// Puts an operator's act into the audit, after it was done.
///
/// # Errors
/// The record cannot be written: then the act was done, and is not in the audit.
pub fn note_act(
    store: &mut dyn Store,
    scope: &Scope,
    action: &'static str,
    ek_id: Option<EkId>,
    device_id: Option<DeviceId>,
    operator: &ClientId,
    time: OffsetDateTime,
) -> Result<()> {
    let audit = AuditEntry {
        time,
        client: operator.clone(),
        action,
        ek_id,
        device: device_id.map(Whom::Due),
        // So that refusals of strangers do not push it out.
        change: Change::Made,
        refusal: None,
        duration_us: 0,
    };
    store.record(scope, &[Entry { act: Act::None, basis: None, audit: Some(audit) }])?;
    Ok(())
}

/// Whose certificates end soon: identities' and the CA's own.
///
/// # Errors
/// The store or a file cannot be read.
pub fn ending(directory: &Directory, now: OffsetDateTime) -> Result<Vec<Ending>> {
    Ok([identities::ending(directory, now)?, issuing::ending(directory, now)?].concat())
}
