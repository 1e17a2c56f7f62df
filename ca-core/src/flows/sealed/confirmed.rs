//! A certificate that becomes active because its device could read it.

use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use super::confirmation::Shown;
use super::waiting::Unconfirmed;
use crate::Rejection;
use crate::ek::assurance::Assurance;
use crate::flows::mac::TicketKey;
use crate::readmission::{KeyChange, Welcome};
use crate::records::Records;
use crate::secret::Overlapping;

/// A certificate that becomes its device's active one when it is recorded.
#[derive(Debug)]
pub struct Confirmed {
    certificate: Unconfirmed,
    welcome: Welcome,
    der: Vec<u8>,
    decided_at: OffsetDateTime,
}

impl Confirmed {
    /// Decides with what is on record now, as [`Readmitted::decide`](crate::Readmitted::decide)
    /// does for a device that proved itself by a ticket.
    ///
    /// # Errors
    /// It is too late, the device is no longer welcome, or a certificate for another IK is active.
    pub fn decide(
        shown: Shown,
        records: &Records,
        keys: &Overlapping<TicketKey>,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let certificate = shown.into_certificate();
        let welcome = may_be_confirmed(&certificate, records, now)?;
        let der = certificate.decrypt(keys).ok_or_else(|| certificate.outdated())?;
        Ok(Self { certificate, welcome, der, decided_at: now })
    }

    #[cfg(feature = "unchecked")]
    pub(crate) fn unchecked(
        certificate: Unconfirmed,
        keys: &Overlapping<TicketKey>,
        decided_at: OffsetDateTime,
    ) -> Option<Self> {
        let welcome = Welcome::unchecked(certificate.device_id.clone());
        let der = certificate.decrypt(keys)?;
        Some(Self { certificate, welcome, der, decided_at })
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> [u8; 16] {
        self.certificate.serial
    }

    /// The device's id.
    pub fn device_id(&self) -> &DeviceId {
        self.welcome.device_id()
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.certificate.ek_id
    }

    /// Why the EK was trusted.
    pub fn assurance(&self) -> Assurance {
        self.certificate.assurance
    }

    /// The certificate in DER. It is no longer secret.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// When the CA decided on the confirmation.
    pub fn decided_at(&self) -> OffsetDateTime {
        self.decided_at
    }
}

/// Whether this certificate may be confirmed now. An operator may have granted another device id
/// meanwhile, or another certificate may have become active.
pub(crate) fn may_be_confirmed(
    certificate: &Unconfirmed,
    records: &Records,
    now: OffsetDateTime,
) -> Result<Welcome, Rejection> {
    let Unconfirmed { ek_id, ik_id, device_id, assurance, issued_at, confirm_by, .. } = certificate;
    if now >= *confirm_by {
        return Err(Rejection::ClaimExpired { expired_at: *confirm_by, now });
    }
    // A later certificate for the same IK must not give way to an earlier one either.
    let active = records.registration.as_ref().and_then(|it| it.certificate.as_ref());
    if active.is_some_and(|active| active.ik_id == *ik_id && active.issued_at >= *issued_at) {
        return Err(Rejection::CertificateOvertaken { issued_at: *issued_at });
    }
    let (KeyChange::None | KeyChange::Rekey) =
        KeyChange::decide(*ek_id, ik_id, *issued_at, records)?;
    Welcome::decide(*ek_id, device_id, *assurance, records)
}
