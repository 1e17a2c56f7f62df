//! A sealed or renewed certificate on record.

use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use super::encryption::{EncryptedCertificate, Waits};
use crate::Rejection;
use crate::ek::assurance::Assurance;
use crate::flows::mac::TicketKey;
use crate::records::Records;
use crate::secret::Overlapping;
use crate::subject::Subject;

/// A certificate on record that waits for its device to confirm or adopt it.
///
/// Does not establish that its device has it: see [`Shown`](crate::Shown).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Its serial number.
    pub serial: [u8; 16],
    /// Its subject.
    pub device_id: DeviceId,
    /// The EK of the TPM that keeps its key.
    pub ek_id: EkId,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub ik_id: [u8; 32],
    /// Why the EK was trusted.
    pub assurance: Assurance,
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// The time from which on it cannot be confirmed.
    pub confirm_by: OffsetDateTime,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// The certificate, encrypted.
    pub encrypted: EncryptedCertificate,
}

impl Unconfirmed {
    /// The certificate. `None` if it was encrypted under another ticket key than these.
    pub(super) fn decrypt(&self, keys: &Overlapping<TicketKey>) -> Option<Vec<u8>> {
        [Waits::Sealed, Waits::Renewed]
            .into_iter()
            .find_map(|waits| keys.decrypt(&self.encrypted, &self.serial, waits))
    }

    /// Whether a new certificate for this subject would say the same.
    pub(crate) fn is_for(&self, subject: &Subject) -> bool {
        (self.ek_id, &self.device_id, self.assurance, self.ik_id)
            == (subject.ek_id, &subject.device_id, subject.assurance, subject.ik_id())
    }

    /// Why there is nothing to confirm any more.
    pub(super) fn outdated(&self) -> Rejection {
        Rejection::CertificateEnded { issued_at: self.issued_at }
    }
}

/// The present state of a certificate that was sealed or renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SealedOnRecord {
    /// It waits for its confirmation.
    Unconfirmed {
        /// The certificate.
        certificate: Box<Unconfirmed>,
        /// What is on record about its EK and its device id.
        records: Box<Records>,
    },
    /// It is in force: it was confirmed before, or was in force already when it was sealed.
    Active {
        /// Its device.
        device_id: DeviceId,
        /// Why the EK was trusted.
        assurance: Assurance,
        /// What is on record about its EK and its device id.
        records: Box<Records>,
        /// The certificate in DER.
        der: Vec<u8>,
    },
    /// It was superseded or revoked, or the time to confirm it is over.
    Ended,
}

impl SealedOnRecord {
    /// A certificate that waits for its confirmation, and what is on record about its EK and its
    /// device id.
    pub fn waiting(certificate: Unconfirmed, records: Records) -> Self {
        Self::Unconfirmed { certificate: Box::new(certificate), records: Box::new(records) }
    }
}
