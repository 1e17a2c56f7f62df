//! Adoption: a renewed certificate comes into force.

use assay_wire::{DeviceId, Scope};
use time::OffsetDateTime;

use crate::Rejection;
use crate::flows::mac::TicketKey;
use crate::flows::renewal::{AdoptionEvidence, AdoptionProof};
use crate::flows::sealed::{Confirmed, SealedOnRecord, Shown};
use crate::readmission::Welcome;
use crate::secret::Overlapping;

/// What an adoption leads to.
#[derive(Debug)]
pub enum Adopting {
    /// The certificate is active already.
    OnRecord {
        /// The device.
        device_id: DeviceId,
    },
    /// The certificate becomes active when this is recorded.
    New(Box<Confirmed>),
}

impl Adopting {
    /// The device.
    pub fn device_id(&self) -> &DeviceId {
        match self {
            Self::OnRecord { device_id } => device_id,
            Self::New(confirmed) => confirmed.device_id(),
        }
    }

    /// Makes a renewed certificate active that its device has stored. A repeated adoption changes
    /// nothing; only a device that is still welcome gets an answer to it.
    ///
    /// `waiting` is the present state of the certificate that the adoption names.
    pub fn plan(
        evidence: &AdoptionEvidence,
        waiting: SealedOnRecord,
        scope: &Scope,
        keys: &Overlapping<TicketKey>,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        match waiting {
            SealedOnRecord::Unconfirmed { certificate, records } => {
                let shown = Shown::by_adoption(*certificate, evidence, scope, keys)?;
                Ok(Self::New(Box::new(Confirmed::decide(shown, &records, keys, now)?)))
            }
            SealedOnRecord::Active { device_id, assurance, records, der } => {
                let _proof = AdoptionProof::verify(evidence, &der, scope)?;
                let welcome = Welcome::decide(evidence.ek_id(), &device_id, assurance, &records)?;
                Ok(Self::OnRecord { device_id: welcome.into_device_id() })
            }
            SealedOnRecord::Ended => Err(evidence.nothing_to_adopt()),
        }
    }
}
