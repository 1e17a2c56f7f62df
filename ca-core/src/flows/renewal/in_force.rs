//! The certificate that a device wants to renew, as it is on record.

use assay_wire::{DeviceId, Scope};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::evidence::RenewalEvidence;
use super::statement::Statement;
use crate::Rejection;
use crate::admission::Admitted;
use crate::issue::Term;
use crate::key::PublicKey;
use crate::profile::RenewFlow;
use crate::records::ActiveCertificate;
use crate::subject::Subject;

/// The certificate in force of an admitted EK, which a request for a renewal names.
///
/// Its device proved that EK and IK are in one TPM, before this certificate or an earlier one for
/// the same IK came into force. Does not establish that the sender has the IK: see
/// [`RenewalProof`](super::RenewalProof).
#[derive(Clone, Debug)]
pub struct InForce {
    pub(super) subject: Subject,
    pub(super) ik: PublicKey,
    pub(super) der: Vec<u8>,
    pub(super) term: Term,
    pub(super) statement: Statement,
}

impl InForce {
    /// Checks that the request names the EK's active certificate, and that this is valid now (RFC
    /// 5280 §4.1.2.5). `active` is what is on record for the EK.
    pub fn find(
        admitted: &Admitted<RenewFlow>,
        evidence: &RenewalEvidence,
        active: Option<&ActiveCertificate>,
        scope: &Scope,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let statement = evidence.statement.clone();
        let not_in_force = || Rejection::CertificateNotInForce {
            ek: admitted.ek.ek_id(),
            certificate: crate::hex(&statement.certificate),
        };
        let der = active
            .map(|active| &active.der)
            .filter(|der| Sha256::digest(der)[..] == statement.certificate)
            .ok_or_else(not_in_force)?;
        let term = Term::of(der).filter(|term| now < term.not_after).ok_or_else(not_in_force)?;
        let ik = PublicKey::from_certificate(der).map_err(|_| not_in_force())?;
        let subject = Subject::of_key(admitted, ik.spki(), scope);
        Ok(Self { subject, ik, der: der.clone(), term, statement })
    }

    /// The device's id.
    pub fn device_id(&self) -> &DeviceId {
        &self.subject.device_id
    }
}
