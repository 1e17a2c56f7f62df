//! What is asked of the record to plan an answer, and what is put there once it is signed.

use assay_ca_core::{
    ActiveCertificate, Confirmed, FirstUse, Issued, OfferedKey, Proven, Records, Unconfirmed,
    Unproven,
};
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use crate::audit::AuditEntry;

/// A question about an EK and a device id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The EK.
    pub ek: EkId,
    /// Whose holder the records name.
    pub device: IdInQuestion,
    /// The IK whose certificates are wanted: SHA-256 of its SubjectPublicKeyInfo.
    pub ik_id: Option<[u8; 32]>,
    /// Whether the certificates that wait to be confirmed are wanted too.
    pub waiting: bool,
    /// The time of the question: quotas and expiry count from it.
    pub now: OffsetDateTime,
}

impl Question {
    /// About an EK and a device id, and no IK.
    pub fn about(ek: EkId, device: &DeviceId, now: OffsetDateTime) -> Self {
        let device = IdInQuestion::Is(device.clone());
        Self { ek, device, ik_id: None, waiting: false, now }
    }
}

/// Which device id's holder the records name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdInQuestion {
    /// This one.
    Is(DeviceId),
    /// The one that is due to the EK, which may be the derived one.
    Due {
        /// The device id that is derived from the EK.
        derived: DeviceId,
        /// EKs of which one may be on record instead.
        other_eks: Vec<EkId>,
    },
}

/// The answer to a [`Question`]: what is on record, of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Of the EK and of the device id.
    pub records: Records,
    /// The EK's certificate in force, if it is for the IK in question and valid.
    pub active: Option<ActiveCertificate>,
    /// What was sealed to the EK for the IK in question and is not confirmed, the newest first.
    pub waiting: Vec<Unconfirmed>,
}

/// What a plan was made by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// What was asked.
    pub question: Question,
    /// What was answered then.
    pub snapshot: Snapshot,
}

impl Basis {
    /// What is decided by about a certificate that waits to be confirmed.
    pub fn of_waiting(certificate: &Unconfirmed, records: &Records, now: OffsetDateTime) -> Self {
        let question = Question::about(certificate.ek_id, &certificate.device_id, now);
        let snapshot = Snapshot { records: records.clone(), active: None, waiting: Vec::new() };
        Self { question, snapshot }
    }
}

/// What is to be put on record. It is made of values that `ca-core`'s checks alone can make.
#[derive(Debug)]
pub enum Act {
    /// Nothing but the audit: nothing changes, or the request was refused.
    None,
    /// The certificate of a device that proved itself, as its only active one.
    Certify(Issued<Proven>),
    /// A certificate that waits to be confirmed.
    Seal(Issued<Unproven>),
    /// A certificate that waited becomes its device's only active one.
    Activate(Confirmed),
    /// A shared key is offered to an EK.
    Offer(OfferedKey),
    /// A shared key was used for the first time: earlier generations are retired, and the device is
    /// registered.
    Accept(FirstUse),
}

/// An act, what it was decided by, and its record in the audit. All of it is recorded, or none.
#[derive(Debug)]
pub struct Entry {
    /// What is put on record.
    pub act: Act,
    /// What it was planned by; `None` if it depends on nothing.
    pub basis: Option<Basis>,
    /// For the audit.
    pub audit: Option<AuditEntry>,
}

/// What became of an [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// It is on record.
    Done,
    /// Nothing of it is: what it was planned by no longer holds. Plan again.
    Stale,
}
