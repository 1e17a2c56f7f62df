//! The enrolment list: EKs that an operator vouches for, and devices that an operator disabled or
//! removed.

use std::collections::BTreeMap;

use assay_ca_core::{EkFacts, Reprovision, SharedKeyOnRecord};
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use crate::error::StoreError;

/// An EK to put on the list. A field that is `None` agrees with any value that is on record for an
/// EK on the list.
#[derive(Clone, Debug)]
pub struct NewEnrolment {
    /// The EK.
    pub ek_id: EkId,
    /// The device id that it gets; if `None`, the id that is derived from the EK.
    pub device_id: Option<DeviceId>,
    /// The encoding of the EK in the operator's file.
    pub recognised: String,
    /// What happens when the device asks again; [`Reprovision::Reissue`] if not given.
    pub reprovision: Option<Reprovision>,
    /// Whether it is an EK of Azure's SDKs, which no vendor certified; `false` if not given.
    pub legacy_dps_ek: Option<bool>,
    /// Whether its shared key may be sent to a plain storage root key; `false` if not given.
    pub plain_srk: Option<bool>,
    /// Whether it is disabled; `false` if not given.
    pub disabled: Option<bool>,
    /// What the operator's list says besides. If this is empty, the tags on record stay.
    pub tags: Tags,
    /// What is known of its TPM from a certificate.
    pub facts: Option<EkFacts>,
    /// The time of the enrolment.
    pub added_at: OffsetDateTime,
}

/// What else an operator's list says of an EK, by the names of the list's columns. It means nothing
/// to the CA.
pub type Tags = BTreeMap<String, String>;

/// What became of a [`NewEnrolment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolled {
    /// It was put on the list.
    Added,
    /// It was on the list with the same values, and has other tags now.
    Retagged,
    /// It was on the list, with the same values.
    Unchanged,
}

/// What became of several, in the order of the [`NewEnrolment`]s.
pub type EnrolResults = Vec<Result<Enrolled, EnrolError>>;

/// An EK that the CA knows: enrolled, registered, disabled, or several of these.
#[derive(Clone, Debug)]
pub struct EnrolmentRow {
    /// The EK.
    pub ek_id: EkId,
    /// The device id under which it is registered; if it is not, the one that its enrolment grants.
    pub device_id: Option<DeviceId>,
    /// The encoding of the EK in the operator's file; `None` without an enrolment.
    pub recognised: Option<String>,
    /// What happens when the device asks again; `None` without an enrolment, which means
    /// [`Reprovision::Reissue`].
    pub reprovision: Option<Reprovision>,
    /// Whether it was enrolled as an EK of Azure's SDKs.
    pub legacy_dps_ek: bool,
    /// Whether its shared key may be sent to a plain storage root key.
    pub plain_srk: bool,
    /// Whether an operator disabled it.
    pub disabled: bool,
    /// Whether a device with this EK proved itself.
    pub registered: bool,
    /// The shared key that was last offered to it.
    pub shared_key: Option<SharedKeyOnRecord>,
    /// What else the operator's list says of it.
    pub tags: Tags,
    /// What is known of its TPM from a certificate; `None` without an enrolment.
    pub facts: Option<EkFacts>,
    /// When it was enrolled; if it was not, when it was registered; if neither, when it was
    /// disabled. In seconds since 1970.
    pub added_at: i64,
}

/// What [`Store::remove`](crate::Store::remove) ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How many certificates are revoked.
    pub certificates: usize,
    /// Whether a shared key is retired.
    pub shared_key: bool,
}

/// Another TPM for a device.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// The device.
    pub device_id: DeviceId,
    /// The EK that holds its id, and is to hold it no more.
    pub old: EkId,
    /// The EK of its next TPM. What is `None` in it is taken from the old one's enrolment, with the
    /// tags; its device id is the device's.
    pub new: NewEnrolment,
}

impl Replacement {
    /// What is enrolled in place of this row.
    pub(crate) fn enrolment(&self, old: Option<&EnrolmentRow>) -> NewEnrolment {
        let mut new = self.new.clone();
        new.device_id = Some(self.device_id.clone());
        new.reprovision = new.reprovision.or_else(|| old?.reprovision);
        if new.tags.is_empty() {
            new.tags = old.map(|old| old.tags.clone()).unwrap_or_default();
        }
        new
    }
}

/// What became of a [`Replacement`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replaced {
    /// The new EK holds the id.
    Done(Removed),
    /// Another EK holds it than the old one, or none does.
    NotHeld,
}

/// An EK that is registered under a device id, or was until it was removed or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The EK.
    pub ek_id: EkId,
    /// Since when it was registered, in seconds since 1970.
    pub since: i64,
    /// Until when, in the same way; `None` if it is.
    pub until: Option<i64>,
}

/// Why an EK cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// It is on the list with another device id.
    #[error("EK {ek} is enrolled{}, not as {wanted}; to give it another device id, run `assay enroll remove {ek}` first", known_as(.found))]
    EnrolledAs {
        /// The EK.
        ek: EkId,
        /// The device id that it was given, if any.
        found: Option<DeviceId>,
        /// The one that is wanted.
        wanted: DeviceId,
    },
    /// It is on the list with another policy.
    #[error(
        "EK {ek} is enrolled with re-provisioning {found}, not {wanted}; `assay enroll update \
         {ek} --reprovision {wanted}` changes it"
    )]
    Reprovision {
        /// The EK.
        ek: EkId,
        /// Its policy.
        found: Reprovision,
        /// The one that is wanted.
        wanted: Reprovision,
    },
    /// It is on the list as an EK of Azure's SDKs and should not be one, or the other way round.
    #[error("EK {ek} is enrolled with legacy_dps_ek {found}, not {}; run `assay enroll remove {ek}`, then enrol it again", !.found)]
    LegacyDpsEk {
        /// The EK.
        ek: EkId,
        /// The value of its enrolment.
        found: bool,
    },
    /// Its shared key may be sent to a plain storage root key and should not be, or the other way
    /// round.
    #[error("EK {ek} is enrolled with plain_srk {found}, not {}; `assay enroll update {ek} --plain-srk={}` changes it", !.found, !.found)]
    PlainSrk {
        /// The EK.
        ek: EkId,
        /// The value of its enrolment.
        found: bool,
    },
    /// It is disabled and should not be, or the other way round.
    #[error("EK {ek} is {}; `assay enroll {} {ek}` changes that", if *.found { "disabled" } else { "enabled" }, if *.found { "enable" } else { "disable" })]
    Disabled {
        /// The EK.
        ek: EkId,
        /// Whether it is disabled.
        found: bool,
    },
    /// It is registered under another device id.
    #[error("EK {0} is registered as {1}; enrol it under that id or leave the device id out")]
    Registered(EkId, DeviceId),
    /// The device id is another EK's.
    #[error(
        "device id {0} belongs to EK {1}; to give it to this EK, run `assay enroll remove {0}` \
         first"
    )]
    DeviceIdTaken(DeviceId, EkId),
}

fn known_as(device_id: &Option<DeviceId>) -> String {
    device_id.as_ref().map_or_else(|| " without a device id".into(), |id| format!(" as {id}"))
}

/// What becomes of a new enrolment. `known` is what is known of its EK; `holder` says which EK
/// holds a device id.
pub(crate) fn decide(
    known: Option<&EnrolmentRow>,
    new: &NewEnrolment,
    holder: impl FnOnce(&DeviceId) -> Result<Option<EkId>, StoreError>,
) -> Result<Result<Enrolled, EnrolError>, StoreError> {
    if let Some(difference) = known.and_then(|known| difference(known, new)) {
        return Ok(Err(difference));
    }
    if let Some(known) = known.filter(|known| known.recognised.is_some()) {
        let same = new.tags.is_empty() || new.tags == known.tags;
        return Ok(Ok(if same { Enrolled::Unchanged } else { Enrolled::Retagged }));
    }
    if let Some(wanted) = &new.device_id
        && let Some(holder) = holder(wanted)?
        && holder != new.ek_id
    {
        return Ok(Err(EnrolError::DeviceIdTaken(wanted.clone(), holder)));
    }
    Ok(Ok(Enrolled::Added))
}

/// The first value that contradicts the record.
fn difference(known: &EnrolmentRow, new: &NewEnrolment) -> Option<EnrolError> {
    let ek = known.ek_id;
    let enrolled = known.recognised.is_some();
    if let Some(wanted) = new.device_id.clone()
        && known.device_id.as_ref() != Some(&wanted)
    {
        match known.device_id.clone() {
            Some(device_id) if known.registered => {
                return Some(EnrolError::Registered(ek, device_id));
            }
            found if enrolled => return Some(EnrolError::EnrolledAs { ek, found, wanted }),
            _ => {}
        }
    }
    if let (Some(found), Some(wanted)) = (known.reprovision, new.reprovision)
        && found != wanted
    {
        return Some(EnrolError::Reprovision { ek, found, wanted });
    }
    if enrolled && new.legacy_dps_ek.is_some_and(|wanted| wanted != known.legacy_dps_ek) {
        return Some(EnrolError::LegacyDpsEk { ek, found: known.legacy_dps_ek });
    }
    if enrolled && new.plain_srk.is_some_and(|wanted| wanted != known.plain_srk) {
        return Some(EnrolError::PlainSrk { ek, found: known.plain_srk });
    }
    if new.disabled.is_some_and(|wanted| wanted != known.disabled) {
        return Some(EnrolError::Disabled { ek, found: known.disabled });
    }
    None
}
