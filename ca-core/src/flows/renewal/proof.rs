//! Proof that a device has the IK of its certificate, and wants to renew it now.

use assay_wire::{DeviceId, EkId, Renewal};

use super::in_force::InForce;
use crate::Rejection;
use crate::issue::Term;
use crate::subject::Subject;

/// A device that has the IK of its certificate in force, and asks to renew it.
///
/// The EK and the IK are in one TPM: the device proved that before, and the IK does not leave its
/// TPM.
#[derive(Clone, Debug)]
pub struct RenewalProof {
    pub(crate) subject: Subject,
    pub(crate) der: Vec<u8>,
    pub(crate) term: Term,
}

impl RenewalProof {
    /// Checks that the IK of the certificate in force signed the request: for this certificate, in
    /// this scope, and now.
    pub fn verify(in_force: InForce) -> Result<Self, Rejection> {
        let InForce { subject, ik, der, term, statement } = in_force;
        let message = Renewal::signed(&subject.scope, &statement.certificate, statement.time);
        statement.signed(&message, &ik)?;
        Ok(Self { subject, der, term })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.subject.ek_id
    }

    /// The device's id.
    pub fn device_id(&self) -> &DeviceId {
        &self.subject.device_id
    }
}
