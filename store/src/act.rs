//! Questions that are asked of the record to plan an answer, and acts that are put on record once
//! they are signed.

use assay_ca_core::{
    ActiveCertificate, Confirmed, EkFacts, FirstUse, Issued, OfferedKey, Proven, Records, Renewed,
    Unconfirmed, Unproven,
};
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use crate::audit::AuditEntry;
use crate::groups::GroupsVersion;
use crate::pending::Waiting;
use crate::trust::AnchorsVersion;

/// A question about an EK and a device id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The EK.
    pub ek: EkId,
    /// The device id in question: the records say which EK holds it.
    pub device: IdInQuestion,
    /// The IK whose certificates are wanted.
    pub ik: IkInQuestion,
    /// Which certificates that wait to be confirmed or adopted are wanted too.
    pub waiting: WaitingInQuestion,
    /// The time of the question: quotas and expiry count from it.
    pub now: OffsetDateTime,
}

impl Question {
    /// About an EK and a device id, and no IK.
    pub fn about(ek: EkId, device: &DeviceId, now: OffsetDateTime) -> Self {
        let device = IdInQuestion::Is(device.clone());
        Self { ek, device, ik: IkInQuestion::None, waiting: WaitingInQuestion::None, now }
    }
}

/// Which IK is in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IkInQuestion {
    /// None: no certificate is wanted.
    None,
    /// The one whose SubjectPublicKeyInfo has this SHA-256 digest.
    Is([u8; 32]),
    /// That of the EK's active certificate.
    OfActive,
}

impl From<Option<[u8; 32]>> for IkInQuestion {
    fn from(ik_id: Option<[u8; 32]>) -> Self {
        ik_id.map_or(Self::None, Self::Is)
    }
}

/// Which certificates that wait are in question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingInQuestion {
    /// None.
    None,
    /// Those of the EK for the IK in question.
    OfIk,
    /// All of the EK.
    OfEk,
}

/// Which device id is in question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdInQuestion {
    /// This one.
    Is(DeviceId),
    /// The device id that is due to the EK. This may be the derived one. Who asks this is going to
    /// verify the EK and to ask whether it is admitted, so the answer has the versions of the
    /// vendors' certificates and of the groups.
    Due {
        /// The device id that is derived from the EK.
        derived: DeviceId,
        /// Other EKs of the same TPM. One of them may be on record instead.
        other_eks: Vec<EkId>,
    },
}

/// The answer to a [`Question`]: what is on record at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What is on record about the EK and the device id.
    pub records: Records,
    /// The EK's active certificate, if it is for the IK in question and has not expired.
    pub active: Option<ActiveCertificate>,
    /// The certificates in question that are neither confirmed nor adopted, newest first.
    pub waiting: Vec<Unconfirmed>,
    /// The version of the vendors' certificates, if the question is about the device id that is
    /// due.
    pub anchors: Option<AnchorsVersion>,
    /// The version of the groups, in the same case.
    pub groups: Option<GroupsVersion>,
    /// Since when an operator is asked about the EK, if one is. No plan depends on it.
    pub waits_since: Option<OffsetDateTime>,
}

/// What a plan depends on: a question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// The question.
    pub question: Question,
    /// The answer when the plan was made.
    pub snapshot: Snapshot,
}

impl Basis {
    /// The basis of a decision on a certificate that waits for its confirmation.
    pub fn of_waiting(certificate: &Unconfirmed, records: &Records, now: OffsetDateTime) -> Self {
        let question = Question::about(certificate.ek_id, &certificate.device_id, now);
        let records = records.clone();
        let snapshot = Snapshot {
            records,
            active: None,
            waiting: Vec::new(),
            anchors: None,
            groups: None,
            waits_since: None,
        };
        Self { question, snapshot }
    }
}

/// A change to put on record. Only the checks of `ca-core` can make the values in it.
#[derive(Debug)]
pub enum Act {
    /// Only the audit: the request changes nothing, or was refused.
    None,
    /// An operator is asked about an EK. It depends on nothing.
    Ask(Waiting),
    /// A certificate said this of an EK. It is kept if the EK is enrolled, in place of what was
    /// known before. It depends on nothing.
    Learn(EkId, EkFacts),
    /// The certificate of a device that proved itself, as its only active one.
    Certify(Issued<Proven>),
    /// A certificate that waits to be confirmed.
    Seal(Issued<Unproven>),
    /// A certificate that waits to be adopted. Whatever else waits for the same EK and IK is
    /// revoked.
    Renew(Issued<Renewed>),
    /// A certificate for another IK, which waits to be adopted. Whatever else waits for the same EK
    /// is revoked, except what renews the certificate in force.
    Rekey(Issued<Renewed>),
    /// A certificate that waited to be confirmed or adopted becomes its device's only active one.
    Activate(Confirmed),
    /// A shared key is offered to an EK.
    Offer(OfferedKey),
    /// A shared key was used for the first time: earlier generations are retired, and the device is
    /// registered.
    Accept(FirstUse),
}

/// An act, the basis of its plan, and its audit entry. The store records all of them or none.
#[derive(Debug)]
pub struct Entry {
    /// The act.
    pub act: Act,
    /// The basis of its plan; `None` if the act depends on nothing.
    pub basis: Option<Basis>,
    /// Its audit entry, if it has one.
    pub audit: Option<AuditEntry>,
}

/// What became of an [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// It is on record.
    Done,
    /// Nothing of it is on record, because the basis of its plan no longer holds. Plan again.
    Stale,
}
