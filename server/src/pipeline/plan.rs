//! The decisions of `ca-core`, on a snapshot of the record: what would be issued.

use assay_ca_core::{
    Admitted, AdmittedParent, Adopting, BoundKey, Candidate, Certification, Confirming, EkEvidence,
    InForce, KeyOffer, Offered, RenewFlow, RenewalProof, Renewing, SealedOnRecord, Sealing,
    TicketFlow, TrustAnchors, TrustedEk,
};
use assay_store::{
    AnchorsVersion, Basis, IdInQuestion, IkInQuestion, Question, Snapshot, Store, StoreError, Whom,
};
use time::OffsetDateTime;

use super::examine::Examined;
use super::outcome::{About, Refusal};
use crate::anchors::read_anchors;
use crate::ca::Ca;
use crate::random::random;

/// What a request leads to, as far as the record allows it now.
pub(super) enum Plan {
    Pong,
    Challenge(Admitted<TicketFlow>, BoundKey),
    Certify(Certification, Basis),
    Enroll(Box<Sealing>, Basis),
    Confirm(Confirming, Option<Basis>),
    Register(Box<KeyOffer>, Basis),
    Renew(Box<Renewing>, Basis),
    Adopt(Adopting, Option<Basis>),
}

/// Reads the record, and plans by it. Each thread has its own planner.
pub struct Planner {
    /// The store that it reads.
    pub store: Box<dyn Store>,
    anchors: TrustAnchors,
    /// Which ones they are; `None` before the first question.
    anchors_version: Option<AnchorsVersion>,
}

impl Planner {
    /// Reads the vendors' certificates.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(mut store: Box<dyn Store>) -> Result<Self, StoreError> {
        let anchors = read_anchors(&mut *store)?;
        Ok(Self { store, anchors, anchors_version: None })
    }

    /// Plans by what is on record now, and notes in `about` whom the request is about.
    ///
    /// # Errors
    /// A check failed, or the store did.
    pub(super) fn plan(
        &mut self,
        ca: &Ca,
        examined: &Examined,
        now: OffsetDateTime,
        about: &mut About,
    ) -> Result<Plan, Refusal> {
        Ok(match examined {
            Examined::Challenge(offered, evidence) => {
                let Basis { snapshot, .. } =
                    self.due(&evidence.ek, IkInQuestion::None, false, now)?;
                let ek = self.trust(&evidence.ek, &snapshot, now)?;
                let ik = BoundKey::verify(evidence)?;
                let admitted = Admitted::decide(*offered, ek, &snapshot.records)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                Plan::Challenge(admitted, ik)
            }
            Examined::Certify(device) => {
                let question = Question {
                    ik: IkInQuestion::Is(device.ik_id()),
                    ..Question::about(device.ek_id(), device.device_id(), now)
                };
                let basis = self.ask(question)?;
                let Snapshot { records, active, .. } = &basis.snapshot;
                let certification = Certification::plan(
                    device.clone(),
                    records,
                    active.as_ref(),
                    &ca.profile,
                    &ca.issuers,
                    now,
                    &mut random(),
                )?;
                Plan::Certify(certification, basis)
            }
            Examined::Enroll(offered, evidence) => {
                let basis = self.due(&evidence.ek, evidence.claimed_ik_id().into(), true, now)?;
                let ek = self.trust(&evidence.ek, &basis.snapshot, now)?;
                let ik = BoundKey::verify(evidence)?;
                let Snapshot { records, active, waiting, .. } = &basis.snapshot;
                let admitted = Admitted::decide(*offered, ek, records)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                let sealing = Sealing::plan(
                    Candidate::decide(&admitted, &ik, &ca.scope, records, now)?,
                    records,
                    active.as_ref(),
                    waiting,
                    &ca.ticket_keys,
                    &ca.profile,
                    &ca.issuers,
                    now,
                    &mut random(),
                )?;
                Plan::Enroll(Box::new(sealing), basis)
            }
            Examined::Confirm(confirmation) => {
                let sealed = self.store.sealed_certificate(
                    &confirmation.ek_id(),
                    confirmation.certificate_sha256(),
                    now,
                )?;
                let basis = of_waiting(&sealed, now);
                let confirming =
                    Confirming::plan(confirmation.clone(), sealed, &ca.ticket_keys, now)?;
                about.device = Some(Whom::Proven(confirming.device_id().clone()));
                Plan::Confirm(confirming, basis)
            }
            Examined::Register(offered, evidence) => {
                let basis = self.due(&evidence.ek, IkInQuestion::None, false, now)?;
                let ek = self.trust(&evidence.ek, &basis.snapshot, now)?;
                let (parent, records) = (evidence.parent()?, &basis.snapshot.records);
                let admitted = Admitted::decide(*offered, ek, records)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                let parent = AdmittedParent::decide(&admitted, parent, records)?;
                Plan::Register(Box::new(KeyOffer::decide(admitted, parent, records)?), basis)
            }
            Examined::Ping => Plan::Pong,
            Examined::Renew(evidence) => {
                let basis = self.due(&evidence.ek, IkInQuestion::OfActive, true, now)?;
                let ek = self.trust(&evidence.ek, &basis.snapshot, now)?;
                let Snapshot { records, active, waiting, .. } = &basis.snapshot;
                let admitted = Admitted::decide(Offered::<RenewFlow>::ALWAYS, ek, records)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                let in_force = InForce::find(&admitted, evidence, active.as_ref(), &ca.scope, now)?;
                let proof = RenewalProof::verify(in_force)?;
                about.device = Some(Whom::Proven(proof.device_id().clone()));
                let renewing = Renewing::plan(
                    proof,
                    records,
                    waiting,
                    &ca.ticket_keys,
                    &ca.profile,
                    &ca.issuers,
                    now,
                    &mut random(),
                )?;
                Plan::Renew(Box::new(renewing), basis)
            }
            Examined::Adopt(evidence) => {
                let (ek, sha256) = (evidence.ek_id(), evidence.certificate_sha256());
                let waiting = self.store.sealed_certificate(&ek, sha256, now)?;
                let basis = of_waiting(&waiting, now);
                let adopting = Adopting::plan(evidence, waiting, &ca.scope, &ca.ticket_keys, now)?;
                about.device = Some(Whom::Proven(adopting.device_id().clone()));
                Plan::Adopt(adopting, basis)
            }
        })
    }

    /// What is on record about an EK and the device id that is due to it.
    fn due(
        &mut self,
        evidence: &EkEvidence,
        ik: IkInQuestion,
        waiting: bool,
        now: OffsetDateTime,
    ) -> Result<Basis, StoreError> {
        let device = IdInQuestion::Due {
            derived: evidence.derived_device_id(),
            other_eks: evidence.other_eks().to_vec(),
        };
        self.ask(Question { ek: evidence.ek_id(), device, ik, waiting, now })
    }

    fn ask(&mut self, question: Question) -> Result<Basis, StoreError> {
        let snapshot = self.store.snapshot(&question)?;
        Ok(Basis { question, snapshot })
    }

    fn trust(
        &mut self,
        evidence: &EkEvidence,
        snapshot: &Snapshot,
        now: OffsetDateTime,
    ) -> Result<TrustedEk, Refusal> {
        if snapshot.anchors != self.anchors_version {
            // They may be newer than the snapshot. Then the basis is stale, and the next plan reads
            // them again.
            self.anchors = read_anchors(&mut *self.store)?;
            self.anchors_version = snapshot.anchors;
        }
        let enrolment = snapshot.records.enrolment.as_ref();
        Ok(TrustedEk::verify(evidence, &self.anchors, enrolment, now)?)
    }
}

/// The basis of a decision on a certificate, if it waits.
fn of_waiting(certificate: &SealedOnRecord, now: OffsetDateTime) -> Option<Basis> {
    match certificate {
        SealedOnRecord::Unconfirmed { certificate, records } => {
            Some(Basis::of_waiting(certificate, records, now))
        }
        SealedOnRecord::Active { .. } | SealedOnRecord::Ended => None,
    }
}
