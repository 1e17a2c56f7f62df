//! Whether a device that was admitted before is still welcome.

use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use crate::Rejection;
use crate::admission::Standing;
use crate::ek::assurance::Assurance;
use crate::ek::evidence::digest_naming;
use crate::records::{QUOTA, Records, Reprovision};

/// A device that may have its device id now.
///
/// Does not establish that the device has its TPM; the earlier proof did.
#[derive(Clone, Debug)]
pub struct Welcome {
    device_id: DeviceId,
}

impl Welcome {
    /// Determines again which device id is due to the EK, with what is on record now.
    ///
    /// An id that an operator gave is lost with the enrolment and the registration. Nobody gave an
    /// id that is derived from an EK, so nobody can take it back. That it is derived from *this* EK
    /// was established when the EK was [admitted](crate::Admitted::decide).
    pub fn decide(
        ek: EkId,
        device_id: &DeviceId,
        assurance: Assurance,
        records: &Records,
    ) -> Result<Self, Rejection> {
        let standing = Standing::decide(ek, assurance, records)?;
        let derived = digest_naming(device_id).map(|_| device_id);
        let due = records.granted_device_id().or(derived);
        let withdrawn = || Rejection::DeviceIdWithdrawn { ek, device_id: device_id.clone() };
        let device_id = standing.grant(device_id, due.ok_or_else(withdrawn)?)?;
        Ok(Self { device_id })
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(device_id: DeviceId) -> Self {
        Self { device_id }
    }

    /// The device's id.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    pub(crate) fn into_device_id(self) -> DeviceId {
        self.device_id
    }
}

/// Whether a certificate for an IK may become the device's active one, and what that changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyChange {
    /// No certificate ends: the device has one for this IK, or has none yet.
    None,
    /// The device has a certificate for another IK, and that one ends.
    Rekey,
}

impl KeyChange {
    /// Decides on an IK. `decided_at` is when the CA decided on the certificate for it.
    ///
    /// If the device has a certificate for another IK, that one must have come into force before.
    /// Otherwise two certificates could replace each other for as long as they are valid, and a
    /// delayed message could bring a key back that its TPM no longer has. The policy of the
    /// enrolment and the quota apply too.
    pub(crate) fn decide(
        ek: EkId,
        ik_id: &[u8; 32],
        decided_at: OffsetDateTime,
        records: &Records,
    ) -> Result<Self, Rejection> {
        let Some(registration) = &records.registration else { return Ok(Self::None) };
        let Some(certificate) =
            registration.certificate.as_ref().filter(|certificate| certificate.ik_id != *ik_id)
        else {
            return Ok(Self::None);
        };
        if records.reprovision() == Reprovision::Never {
            return Err(Rejection::ReprovisionRefused { ek });
        }
        if certificate.in_force_since >= decided_at {
            return Err(Rejection::ClaimOutdated { issued_at: decided_at });
        }
        let count = registration.recent_certificates;
        if count >= QUOTA {
            return Err(Rejection::QuotaExceeded { count });
        }
        Ok(Self::Rekey)
    }
}
