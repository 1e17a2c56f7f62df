//! Which EKs may come, and what happens to one.

use anyhow::Context;
use assay_ca_core::{EkIdentity, Reprovision};
use assay_store::{Enrolled, EnrolmentRow, NewEnrolment, Removed, Store, StoreError};
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use crate::ek_list;

/// Puts an EK on the list; returns whether it was there, and what the CA knows of it now.
///
/// # Errors
/// It may not have this device id or policy, or is on the list with others.
pub fn add(
    store: &mut dyn Store,
    ek: &EkIdentity,
    enrolment: NewEnrolment,
) -> anyhow::Result<(Enrolled, EnrolmentRow)> {
    let new = ek_list::checked(ek, enrolment)?;
    let enrolled = store.enroll(&[new])?.pop().context("the store says nothing of the EK")??;
    Ok((enrolled, show(store, &ek.ek_id)?))
}

/// Finds an EK by its id, by the beginning of that, or by its device id.
///
/// # Errors
/// The CA knows no such EK, or several.
pub fn find(store: &mut dyn Store, which: &str) -> Result<EkId, EnrolmentError> {
    if let Ok(ek) = which.parse() {
        return Ok(ek);
    }
    if let Ok(device) = which.parse()
        && let Some(ek) = store.ek_of_device(&device)?
    {
        return Ok(ek);
    }
    if which.len() >= SHORT_ID {
        let (eks, prefix) = (store.enrolments()?, which.to_ascii_lowercase());
        let mut matching =
            eks.iter().map(|row| row.ek_id).filter(|ek| ek.to_string().starts_with(&prefix));
        if let (Some(ek), None) = (matching.next(), matching.next()) {
            return Ok(ek);
        }
    }
    Err(EnrolmentError::NotFound)
}

/// What the CA knows of an EK.
///
/// # Errors
/// It knows nothing of it.
pub fn show(store: &mut dyn Store, ek: &EkId) -> Result<EnrolmentRow, EnrolmentError> {
    store.enrolment(ek)?.ok_or(EnrolmentError::Unknown { ek: *ek })
}

/// Changes what an enrolment says; what is `None` stays as it is.
///
/// # Errors
/// The EK is not enrolled, or not known at all.
pub fn update(
    store: &mut dyn Store,
    ek: &EkId,
    reprovision: Option<Reprovision>,
    plain_srk: Option<bool>,
) -> Result<EnrolmentRow, EnrolmentError> {
    let EnrolmentRow { .. } = show(store, ek)?;
    if !store.update_enrolment(ek, reprovision, plain_srk)? {
        return Err(EnrolmentError::NotEnrolled { ek: *ek });
    }
    show(store, ek)
}

/// Keeps an EK out, whether the CA knows it or not; says whether it did.
///
/// # Errors
/// The record cannot be read or written.
pub fn disable(
    store: &mut dyn Store,
    ek: &EkId,
    now: OffsetDateTime,
) -> Result<bool, EnrolmentError> {
    let known = store.enrolment(ek)?.is_some();
    store.set_disabled(ek, true, now)?;
    Ok(known)
}

/// Lets an EK in again that was kept out; says what the CA knows of it.
///
/// # Errors
/// It knows nothing of it.
pub fn enable(
    store: &mut dyn Store,
    ek: &EkId,
    now: OffsetDateTime,
) -> Result<EnrolmentRow, EnrolmentError> {
    let row = show(store, ek)?;
    store.set_disabled(ek, false, now)?;
    Ok(row)
}

/// Retires the shared key of an EK: its device gets the next one when it asks again.
///
/// # Errors
/// It never had one.
pub fn rotate(store: &mut dyn Store, ek: &EkId) -> Result<(), EnrolmentError> {
    if store.retire_shared_key(ek)? {
        return Ok(());
    }
    Err(EnrolmentError::NoSharedKey { ek: *ek })
}

/// What was known of an EK that was removed, and what that ended.
#[derive(Clone, Debug)]
pub struct Forgotten {
    /// The device id that is free now.
    pub device_id: Option<DeviceId>,
    /// Whether it stays disabled.
    pub stays_disabled: bool,
    /// What ended.
    pub removed: Removed,
}

/// Forgets an EK, and ends all that it has.
///
/// # Errors
/// There is nothing to forget.
pub fn remove(
    store: &mut dyn Store,
    ek: &EkId,
    now: OffsetDateTime,
) -> Result<Forgotten, EnrolmentError> {
    let row = store.enrolment(ek)?;
    let removed = store.remove(ek, now)?.ok_or(EnrolmentError::NothingToForget { ek: *ek })?;
    let stays_disabled = row.as_ref().is_some_and(|row| row.disabled);
    Ok(Forgotten { device_id: row.and_then(|row| row.device_id), stays_disabled, removed })
}

/// Why something could not be done to an EK.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum EnrolmentError {
    #[error("not an EK id, the first {SHORT_ID} digits of one, or a device id that the CA knows")]
    NotFound,
    #[error("EK {ek} is not enrolled, registered or disabled")]
    Unknown { ek: EkId },
    #[error("EK {ek} is not enrolled, and only an enrolment has a policy")]
    NotEnrolled { ek: EkId },
    #[error("EK {ek} never had a shared key")]
    NoSharedKey { ek: EkId },
    #[error("the CA knows nothing of EK {ek}")]
    NothingToForget { ek: EkId },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How many digits of an EK id are shown in tables, and taken for the whole.
pub const SHORT_ID: usize = 16;
