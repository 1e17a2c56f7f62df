//! Who may have which device id: the rules that need to know what happened before.

use assay_wire::{DeviceId, EkId};
use time::{Duration, OffsetDateTime};

use crate::Rejection;
use crate::challenge::ProvenDevice;
use crate::evidence::Evidence;
use crate::trust::{Assurance, TrustedEk};

/// An entry of the operator's list of EKs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// The device id the operator gave the EK, if any.
    pub device_id: Option<DeviceId>,
    /// Whether the operator locked the EK out.
    pub disabled: bool,
}

/// A device that once got a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The device id it got.
    pub device_id: DeviceId,
    /// Whether the operator locked the device out.
    pub disabled: bool,
    /// The certificate it has now.
    pub certificate: Option<CertificateOnRecord>,
    /// How many certificates it got within the last [`QUOTA_PERIOD`].
    pub recent_certificates: u32,
}

/// A device's active certificate, as far as admission depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateOnRecord {
    /// SHA-256 of the SubjectPublicKeyInfo of the IK it is for.
    pub ik_id: [u8; 32],
    /// When it was issued.
    pub issued_at: OffsetDateTime,
}

/// What is on record about an EK and the device id in question.
///
/// What was true before the challenge need not be true after it: read them again in the transaction that stores a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// The EK's entry on the enrolment list.
    pub enrolment: Option<Enrolment>,
    /// The device that the EK is registered as.
    pub registration: Option<Registration>,
    /// The EK that is registered or enrolled under the [id in question](Evidence::device_id_in_question), or
    /// under [that of a claim](ProvenDevice::device_id).
    pub id_holder: Option<EkId>,
}

impl Evidence {
    /// The device id this request is about: the one asked for, else the one due to the EK.
    pub fn device_id_in_question(
        &self,
        enrolment: Option<&Enrolment>,
        registration: Option<&Registration>,
    ) -> DeviceId {
        match self.requested_device_id() {
            Some(requested) => requested.clone(),
            None => due_device_id(enrolment, registration).cloned().unwrap_or_else(|| self.derived_device_id()),
        }
    }
}

/// A trusted EK and the device id it may have.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub(crate) ek: TrustedEk,
    pub(crate) device_id: DeviceId,
}

impl Admitted {
    /// Gives the EK its device id, or refuses the one that was requested.
    ///
    /// An EK keeps the id it is registered under. Before that it gets the one its enrolment names, else the one
    /// derived from it.
    pub fn decide(ek: TrustedEk, requested: Option<&DeviceId>, records: &Records) -> Result<Self, Rejection> {
        let due = due_device_id(records.enrolment.as_ref(), records.registration.as_ref());
        let due = due.unwrap_or(&ek.derived_device_id).clone();
        check(&ek.ek_id(), requested.unwrap_or(&due), &due, records)?;
        Ok(Self { ek, device_id: due })
    }

    /// The id the device gets.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }
}

/// A device that proved itself, and that is still welcome.
#[derive(Debug)]
pub struct Readmitted(pub(crate) ProvenDevice);

impl ProvenDevice {
    /// Decides once more, with what is on record now: an operator may have acted since the challenge, another
    /// device may have taken the id, or this device may have moved on to another IK, to which an old claim must not bring it back.
    pub fn readmit(self, records: &Records) -> Result<Readmitted, Rejection> {
        let ek = self.ek_id();
        if self.assurance() == Assurance::EnrolmentList && records.enrolment.is_none() {
            return Err(Rejection::EkNotEnrolled { ek });
        }
        if let Some(registration) = &records.registration {
            self.check_rekey(registration)?;
        }
        let claimed = self.device_id();
        let due = due_device_id(records.enrolment.as_ref(), records.registration.as_ref());
        check(&ek, claimed, due.unwrap_or(claimed), records)?;
        Ok(Readmitted(self))
    }

    /// A device that has a certificate for this IK gets that one again. For another IK the claim must be younger than the
    /// certificate, or two claims could take turns for as long as they are valid; and there is a quota.
    fn check_rekey(&self, registration: &Registration) -> Result<(), Rejection> {
        let certificate = registration.certificate.as_ref().filter(|certificate| certificate.ik_id != self.ik_id());
        if certificate.is_some_and(|certificate| certificate.issued_at >= self.issued_at()) {
            return Err(Rejection::ClaimOutdated { issued_at: self.issued_at() });
        }
        let count = registration.recent_certificates;
        if certificate.is_some() && count >= QUOTA {
            return Err(Rejection::QuotaExceeded { count });
        }
        Ok(())
    }
}

/// Certificates that a device may get for new IKs within [`QUOTA_PERIOD`]. A device makes a new IK when its TPM was cleared;
/// what makes more is a fault or an attempt to fill the store.
pub const QUOTA: u32 = 24;

/// See [`QUOTA`].
pub const QUOTA_PERIOD: Duration = Duration::days(1);

impl Readmitted {
    /// The device.
    pub fn device(&self) -> &ProvenDevice {
        &self.0
    }
}

fn due_device_id<'a>(enrolment: Option<&'a Enrolment>, registration: Option<&'a Registration>) -> Option<&'a DeviceId> {
    let enrolled = enrolment.and_then(|enrolment| enrolment.device_id.as_ref());
    registration.map(|registration| &registration.device_id).or(enrolled)
}

fn check(ek: &EkId, requested: &DeviceId, due: &DeviceId, records: &Records) -> Result<(), Rejection> {
    let disabled = records.enrolment.as_ref().is_some_and(|enrolment| enrolment.disabled)
        || records.registration.as_ref().is_some_and(|registration| registration.disabled);
    if disabled {
        return Err(Rejection::DeviceDisabled { ek: *ek });
    }
    if requested != due
        && let Some(registration) = &records.registration
    {
        let registered = registration.device_id.clone();
        return Err(Rejection::EkRegistered { ek: *ek, registered, requested: requested.clone() });
    }
    if let Some(holder) = records.id_holder.filter(|holder| holder != ek) {
        return Err(Rejection::DeviceIdTaken { device_id: requested.clone(), holder, ek: *ek });
    }
    if requested != due {
        return Err(Rejection::DeviceIdNotEnrolled { ek: *ek, requested: requested.clone(), due: due.clone() });
    }
    Ok(())
}
