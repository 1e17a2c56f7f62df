//! Whether an EK is admitted, and the device id that it gets.

use assay_wire::{DeviceId, EkId};

use crate::Rejection;
use crate::ek::assurance::Assurance;
use crate::ek::trust::TrustedEk;
use crate::profile::Offered;
use crate::records::{Records, Registration, due_device_id};

/// A trusted EK, the device id that it may have, and the flow that it asks for.
///
/// It may change afterwards, because an operator can act at any time.
#[derive(Clone, Debug)]
pub struct Admitted<F> {
    pub(crate) ek: TrustedEk,
    pub(crate) device_id: DeviceId,
    _offered: Offered<F>,
}

impl<F> Admitted<F> {
    /// Gives the EK the device id that is [due](due_device_id), or refuses another id that it asked
    /// for.
    ///
    /// Whether another EK has the id that was asked for makes no difference to the answer.
    /// Otherwise any TPM of a trusted vendor could find out which ids there are and who has them.
    pub fn decide(
        offered: Offered<F>,
        ek: TrustedEk,
        records: &Records,
    ) -> Result<Self, Rejection> {
        let standing = Standing::decide(ek.ek_id(), ek.assurance(), records)?;
        let due = due_device_id(
            ek.derived_device_id(),
            records.enrolment.as_ref(),
            records.registration.as_ref(),
        );
        let device_id = standing.grant(ek.requested_device_id().unwrap_or(due), due)?;
        match records.other_ek {
            // A device that lost its state should not become a second device because it shows
            // another EK. This protects an honest device from its own choice. A dishonest device
            // need not name its other EKs.
            Some(other) if records.enrolment.is_none() && records.registration.is_none() => {
                Err(Rejection::OtherEkOnRecord { ek: ek.ek_id(), other })
            }
            _ => Ok(Self { ek, device_id, _offered: offered }),
        }
    }

    /// The id that the device gets.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }
}

/// An EK that no operator disabled. It is enrolled, if the CA trusts it because of its enrolment.
pub(crate) struct Standing<'r> {
    ek: EkId,
    records: &'r Records,
}

impl<'r> Standing<'r> {
    pub(crate) fn decide(
        ek: EkId,
        assurance: Assurance,
        records: &'r Records,
    ) -> Result<Self, Rejection> {
        // First, so that a disabled device learns nothing else.
        if records.disabled {
            return Err(Rejection::DeviceDisabled { ek });
        }
        if assurance == Assurance::EnrolmentList && records.enrolment.is_none() {
            return Err(Rejection::EkNotEnrolled { ek });
        }
        Ok(Self { ek, records })
    }

    /// Grants a device id if it is the due one and no other EK has it.
    pub(crate) fn grant(&self, wanted: &DeviceId, due: &DeviceId) -> Result<DeviceId, Rejection> {
        let ek = self.ek;
        if wanted != due {
            let requested = wanted.clone();
            return Err(match &self.records.registration {
                Some(Registration { device_id, .. }) => {
                    Rejection::EkRegistered { ek, registered: device_id.clone(), requested }
                }
                None => Rejection::DeviceIdNotEnrolled { ek, requested, due: due.clone() },
            });
        }
        match self.records.id_holder.filter(|holder| *holder != ek) {
            Some(_) => Err(Rejection::DeviceIdTaken { device_id: due.clone(), ek }),
            None => Ok(due.clone()),
        }
    }
}
