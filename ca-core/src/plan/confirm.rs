//! The sealed flow's last step: the confirmation of a certificate.

use assay_wire::{ConfirmedReply, DeviceId};
use time::OffsetDateTime;

use crate::Rejection;
use crate::flows::mac::TicketKey;
use crate::flows::sealed::{Confirmation, Confirmed, SealedOnRecord, Shown};
use crate::readmission::Welcome;
use crate::secret::Overlapping;

/// What a confirmation leads to.
#[derive(Debug)]
pub enum Confirming {
    /// The certificate is active already.
    OnRecord {
        /// The device.
        device_id: DeviceId,
        /// The reply to the device.
        reply: ConfirmedReply,
    },
    /// The certificate becomes active when it is recorded.
    New {
        /// What is recorded.
        confirmed: Box<Confirmed>,
        /// The reply to the device, after that.
        reply: ConfirmedReply,
    },
}

impl Confirming {
    /// The device.
    pub fn device_id(&self) -> &DeviceId {
        match self {
            Self::OnRecord { device_id, .. } => device_id,
            Self::New { confirmed, .. } => confirmed.device_id(),
        }
    }

    /// Makes a certificate active that its device could read. A repeated confirmation changes
    /// nothing; only a device that is still welcome gets an answer to it.
    ///
    /// `sealed` is the present state of the certificate that the confirmation names.
    pub fn plan(
        confirmation: Confirmation,
        sealed: SealedOnRecord,
        keys: &Overlapping<TicketKey>,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        match sealed {
            SealedOnRecord::Unconfirmed { certificate, records } => {
                let shown = Shown::by_confirmation(*certificate, &confirmation)?;
                let confirmed = Box::new(Confirmed::decide(shown, &records, keys, now)?);
                let reply = ConfirmedReply { receipt: confirmation.into_receipt() };
                Ok(Self::New { confirmed, reply })
            }
            SealedOnRecord::Active { device_id, assurance, records, .. } => {
                let ek = confirmation.ek_id();
                let welcome = Welcome::decide(ek, &device_id, assurance, &records)?;
                let device_id = welcome.into_device_id();
                let reply = ConfirmedReply { receipt: confirmation.into_receipt() };
                Ok(Self::OnRecord { device_id, reply })
            }
            SealedOnRecord::Ended => Err(confirmation.outdated()),
        }
    }
}
