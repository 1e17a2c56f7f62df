//! What a certificate binds together, as far as the CA verified it.

use assay_wire::{DeviceId, EkId, Scope};
use sha2::{Digest, Sha256};

use crate::admission::Admitted;
use crate::ek::assurance::Assurance;
use crate::ek::hardware::HardwareIdentity;
use crate::ik::BoundKey;

/// An EK, its device id and an IK.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) scope: Scope,
    pub(crate) device_id: DeviceId,
    pub(crate) ek_id: EkId,
    pub(crate) ik_spki: Vec<u8>,
    pub(crate) assurance: Assurance,
    pub(crate) hardware: HardwareIdentity,
}

impl Subject {
    pub(crate) fn new<F>(admitted: &Admitted<F>, ik: &BoundKey, scope: &Scope) -> Self {
        Self::of_key(admitted, ik.spki(), scope)
    }

    /// The same, with the SubjectPublicKeyInfo of an IK that was verified before.
    pub(crate) fn of_key<F>(admitted: &Admitted<F>, ik_spki: Vec<u8>, scope: &Scope) -> Self {
        Self {
            scope: scope.clone(),
            device_id: admitted.device_id.clone(),
            ek_id: admitted.ek.ek_id(),
            ik_spki,
            assurance: admitted.ek.assurance(),
            hardware: admitted.ek.hardware.clone(),
        }
    }

    /// SHA-256 of the IK's SubjectPublicKeyInfo, which names the IK on record.
    pub(crate) fn ik_id(&self) -> [u8; 32] {
        Sha256::digest(&self.ik_spki).into()
    }
}
