//! The check whether a shared key may be sent to a parent.

use crate::Rejection;
use crate::admission::Admitted;
use crate::profile::SharedKeyFlow;
use crate::records::{Enrolment, Records};
use crate::tpm::template::{ParentArea, ParentKind};

/// A parent to which the device's shared key may be sent.
#[derive(Clone, Debug)]
pub struct AdmittedParent(pub(super) ParentArea);

impl AdmittedParent {
    /// Accepts an import parent. Accepts a plain storage root key only if the EK's enrolment allows
    /// it.
    ///
    /// This establishes that an operator accepts the risk for a key that may leave its TPM. It does
    /// not establish that the TPM has the parent.
    pub fn decide(
        admitted: &Admitted<SharedKeyFlow>,
        parent: ParentArea,
        records: &Records,
    ) -> Result<Self, Rejection> {
        match (parent.kind(), &records.enrolment) {
            (ParentKind::Import, _)
            | (ParentKind::PlainSrk, Some(Enrolment { plain_srk: true, .. })) => Ok(Self(parent)),
            (ParentKind::PlainSrk, enrolment) => Err(Rejection::PlainSrk {
                ek: admitted.ek.ek_id(),
                is_enrolled: enrolment.is_some(),
            }),
        }
    }

    /// What the TPM does with the content wrapped for it.
    pub fn kind(&self) -> ParentKind {
        self.0.kind()
    }
}
