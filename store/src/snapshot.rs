//! What a plan is made by: a question to the store, and its answer.

use assay_ca_core::{EncryptedCertificate, Records, Unconfirmed};
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

/// What is asked about an EK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The EK.
    pub ek: EkId,
    /// The device id whose holder the records name.
    pub device: IdInQuestion,
    /// SHA-256 of the SubjectPublicKeyInfo of the IK that is to be certified.
    pub ik_id: Option<[u8; 32]>,
    /// Whether certificates are wanted that wait for their confirmation.
    pub waiting: bool,
    /// The time of the plan. What is counted within the last day is counted from here.
    pub now: OffsetDateTime,
}

/// Which device id's holder the records name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdInQuestion {
    /// This one.
    Is(DeviceId),
    /// The one that is due, which may be the derived one.
    Due {
        /// The device id that follows from the EK.
        derived: DeviceId,
        /// EKs of which one may be on record instead; the first that is counts.
        other_eks: Vec<EkId>,
    },
}

/// What is on record about an EK, of one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What the rules of admission need to know.
    pub records: Records,
    /// The EK's active certificate.
    pub active: Option<ActiveCertificate>,
    /// Unconfirmed certificates of this EK and IK, newest first, if the question wants them.
    pub waiting: Vec<WaitingCertificate>,
}

/// The active certificate of an EK.
#[derive(Clone, Debug)]
pub struct ActiveCertificate {
    /// Its serial number, unique for the CA.
    pub serial: Vec<u8>,
    /// The certificate in DER, if it is for the IK in question and has not expired.
    pub der: Option<Vec<u8>>,
}

/// A certificate never changes under its serial number; so comparing needs no DER.
impl PartialEq for ActiveCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

impl Eq for ActiveCertificate {}

/// A certificate that waits for its confirmation, encrypted under the ticket key.
#[derive(Clone, Debug)]
pub struct WaitingCertificate {
    /// What is known of it.
    pub certificate: Unconfirmed,
    /// The certificate as it is stored.
    pub stored: EncryptedCertificate,
}

/// As for [`ActiveCertificate`].
impl PartialEq for WaitingCertificate {
    fn eq(&self, other: &Self) -> bool {
        self.certificate.serial == other.certificate.serial
    }
}

impl Eq for WaitingCertificate {}

/// What a plan was made by. [`record`](crate::contract::Store::record) asks the question again,
/// with the plan's `now`, and compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Basis {
    /// What was asked.
    pub question: Question,
    /// What was answered.
    pub snapshot: Snapshot,
}
