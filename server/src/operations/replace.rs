//! Another TPM for a device whose hardware was replaced.

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::EkIdentity;
use assay_store::{NewEnrolment, Removed, Replaced, Replacement, Store};
use assay_wire::{DeviceId, EkId};

use crate::ek_list;

/// Enrols the EK of another TPM under a device's id, and removes and disables the one that holds
/// it. Returns that one, and what it had.
///
/// # Errors
/// Nobody holds the id; it follows from the EK that holds it; or the other EK is on record already
/// as another device, or holds it.
pub fn replace(
    store: &mut dyn Store,
    device_id: &DeviceId,
    ek: &EkIdentity,
    new: NewEnrolment,
) -> Result<(EkId, Removed)> {
    let nobody = || format!("no device is called {device_id}; see `assay devices`");
    let old = store.ek_of_device(device_id)?.with_context(nobody)?;
    ensure!(ek.ek_id != old, "EK {old} is that of {device_id} already");
    // It refuses an id that names another EK.
    let enrolment = NewEnrolment { device_id: Some(device_id.clone()), ..new };
    let new = ek_list::checked(ek, enrolment).with_context(|| {
        format!(
            "{device_id} follows from the EK of its TPM, and the next TPM cannot have it: enrol \
             that by itself (`assay enroll add`), and remove this one (`assay enroll remove`)"
        )
    })?;
    let replacement = Replacement { device_id: device_id.clone(), old, new };
    match store.replace(&replacement)?? {
        Replaced::Done(removed) => Ok((old, removed)),
        Replaced::NotHeld => bail!("{device_id} was changed at the same time; try again"),
    }
}
