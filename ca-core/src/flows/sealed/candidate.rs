//! Who may get a certificate before any proof, if it is sealed.

use assay_wire::{EkId, Scope};
use time::OffsetDateTime;

use crate::Rejection;
use crate::admission::Admitted;
use crate::ik::BoundKey;
use crate::profile::SealedFlow;
use crate::readmission::KeyChange;
use crate::records::Records;
use crate::subject::Subject;
use crate::tpm::public::Name;
use crate::tpm::template::EkArea;

/// An EK with its device id and an IK, which may get a certificate if it is sealed.
///
/// Does not establish that the two are in one TPM, or that the sender has that TPM: anybody can
/// send public keys.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub(crate) subject: Subject,
    pub(super) ek_area: EkArea,
    pub(super) ik_name: Name,
}

impl Candidate {
    /// Decides whether a certificate may be issued for this IK before the device has proved itself.
    pub fn decide(
        admitted: &Admitted<SealedFlow>,
        ik: &BoundKey,
        scope: &Scope,
        records: &Records,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let subject = Subject::new(admitted, ik, scope);
        // In whole seconds, because the times on record are. The confirmation is decided with the
        // time on record.
        let decided_at = now.replace_nanosecond(0).expect("0 is a nanosecond");
        // The confirmation decides again whether the key changes.
        let (KeyChange::None | KeyChange::Rekey) =
            KeyChange::decide(subject.ek_id, &subject.ik_id(), decided_at, records)?;
        Ok(Self { subject, ek_area: admitted.ek.area.clone(), ik_name: ik.area.name().clone() })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.subject.ek_id
    }

    /// SHA-256 of the IK's SubjectPublicKeyInfo.
    pub fn ik_id(&self) -> [u8; 32] {
        self.subject.ik_id()
    }
}
