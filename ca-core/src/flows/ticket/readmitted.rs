//! A device that proved itself and is still welcome.

use super::proof::ProvenDevice;
use crate::Rejection;
use crate::readmission::{KeyChange, Welcome};
use crate::records::Records;
use crate::subject::Subject;

/// A device that proved itself and may have a certificate now.
#[derive(Debug)]
pub struct Readmitted {
    subject: Subject,
    change: KeyChange,
}

impl Readmitted {
    /// Decides once more, with what is on record now. Since the challenge, an operator may have
    /// acted, another device may have taken the id, or this device may have changed to another IK.
    /// An old claim must not undo that change.
    pub fn decide(device: ProvenDevice, records: &Records) -> Result<Self, Rejection> {
        let ProvenDevice { subject, issued_at, .. } = device;
        let change = KeyChange::decide(subject.ek_id, &subject.ik_id(), issued_at, records)?;
        let welcome =
            Welcome::decide(subject.ek_id, &subject.device_id, subject.assurance, records)?;
        let subject = Subject { device_id: welcome.into_device_id(), ..subject };
        Ok(Self { subject, change })
    }

    /// Whether the device may keep the certificate that it has for this IK.
    pub(crate) fn keeps_its_key(&self) -> bool {
        self.change == KeyChange::None
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(crate) fn into_subject(self) -> Subject {
        self.subject
    }
}
