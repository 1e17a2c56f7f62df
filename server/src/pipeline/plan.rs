//! The decisions of `ca-core`, on a snapshot of the record: what would be issued.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use assay_ca_core::{
    Admission, Admitted, AdmittedParent, Adopting, BoundKey, Candidate, Certification, Confirming,
    EkEvidence, Fault, GroupName, Groups, IkKind, InForce, Instead, KeyOffer, Naming, Offered,
    Place, RenewFlow, RenewalProof, Renewing, SealedOnRecord, Sealing, TicketFlow, TrustAnchors,
    TrustedEk,
};
use assay_store::{
    Actor, AnchorsVersion, Basis, EnrolError, GroupsVersion, IdInQuestion, IkInQuestion,
    NewEnrolment, Question, Snapshot, Store, StoreError, Tags, WaitingInQuestion, Whom,
};
use assay_wire::{Bytes, Configuration, EkId, MAX_SIGNED_CONFIGURATION};
use time::OffsetDateTime;
use tracing::warn;

use super::authorise::Asking;
use super::examine::Examined;
use super::outcome::{About, Refusal};
use crate::anchors::read_anchors;
use crate::ca::Ca;
use crate::hook::Wish;
use crate::operations::pending::next_free;
use crate::random::random;

/// What a request leads to, as far as the record allows it now.
pub(super) enum Plan {
    Pong,
    Challenge(Admitted<TicketFlow>, BoundKey, Instead),
    Certify(Certification, Basis),
    Enroll(Box<Sealing>, Basis),
    Confirm(Confirming, Option<Basis>),
    Register(Box<KeyOffer>, Basis),
    Renew(Box<Renewing>, Basis),
    Rekey(Box<Renewing>, Basis),
    Adopt(Adopting, Option<Basis>),
}

/// Reads the record, and plans by it. Each thread has its own planner.
pub struct Planner {
    /// The store that it reads.
    pub store: Box<dyn Store>,
    anchors: TrustAnchors,
    /// Which ones they are; `None` before the first question.
    anchors_version: Option<AnchorsVersion>,
    groups: Groups,
    /// As for the anchors.
    groups_version: Option<GroupsVersion>,
    /// When these places were found to be all taken.
    full: HashMap<Place, Instant>,
    /// The last number that each group gave, so that not all of them are tried for each device.
    last_named: HashMap<GroupName, u32>,
    /// When the store was last asked whether there are configurations, and what it said.
    configurations: Option<(Instant, bool)>,
}

impl Planner {
    /// Reads the vendors' certificates and the groups.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn open(mut store: Box<dyn Store>) -> Result<Self, StoreError> {
        let anchors = read_anchors(&mut *store)?;
        let (_, groups) = store.groups()?;
        Ok(Self {
            store,
            anchors,
            anchors_version: None,
            groups,
            groups_version: None,
            full: HashMap::new(),
            last_named: HashMap::new(),
            configurations: None,
        })
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
            Examined::Challenge(offered, evidence, instead) => {
                let Basis { snapshot, .. } =
                    self.due(&evidence.ek, IkInQuestion::None, WaitingInQuestion::None, now)?;
                let ek = self.trust(ca, &evidence.ek, &snapshot, now, about)?;
                let ik = BoundKey::verify(evidence)?;
                let admission = self.admission(ca, &snapshot, Some(ik.kind()), now)?;
                let admitted = Admitted::decide(*offered, ek, &snapshot.records, &admission)?;
                let admitted = self.settle(admitted, now)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                Plan::Challenge(admitted, ik, *instead)
            }
            Examined::Certify(device) if device.instead() == Instead::OnceTaken => {
                let question = Question {
                    ik: IkInQuestion::Is(device.ik_id()),
                    waiting: WaitingInQuestion::OfEk,
                    ..Question::about(device.ek_id(), device.device_id(), now)
                };
                let basis = self.ask(question)?;
                let Snapshot { records, active, waiting, .. } = &basis.snapshot;
                let rekeying = Renewing::rekey(
                    device.clone(),
                    records,
                    active.as_ref(),
                    waiting,
                    ca.ticket_keys.get()?,
                    &ca.profile.lasting(device.lifetime()),
                    &ca.issuers,
                    now,
                    &mut random(),
                )?;
                Plan::Rekey(Box::new(rekeying), basis)
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
                    &ca.profile.lasting(device.lifetime()),
                    &ca.issuers,
                    now,
                    &mut random(),
                )?;
                Plan::Certify(certification, basis)
            }
            Examined::Enroll(offered, evidence) => {
                let ik = evidence.claimed_ik_id().into();
                let basis = self.due(&evidence.ek, ik, WaitingInQuestion::OfIk, now)?;
                let ek = self.trust(ca, &evidence.ek, &basis.snapshot, now, about)?;
                let ik = BoundKey::verify(evidence)?;
                let Snapshot { records, active, waiting, .. } = &basis.snapshot;
                let admission = self.admission(ca, &basis.snapshot, Some(ik.kind()), now)?;
                let admitted = Admitted::decide(*offered, ek, records, &admission)?;
                let admitted = self.settle(admitted, now)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                let sealing = Sealing::plan(
                    Candidate::decide(&admitted, &ik, &ca.scope, records, now)?,
                    records,
                    active.as_ref(),
                    waiting,
                    ca.ticket_keys.get()?,
                    &ca.profile.lasting(admitted.lifetime()),
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
                    Confirming::plan(confirmation.clone(), sealed, ca.ticket_keys.get()?, now)?;
                about.device = Some(Whom::Proven(confirming.device_id().clone()));
                Plan::Confirm(confirming, basis)
            }
            Examined::Register(offered, evidence) => {
                let none = WaitingInQuestion::None;
                let basis = self.due(&evidence.ek, IkInQuestion::None, none, now)?;
                let ek = self.trust(ca, &evidence.ek, &basis.snapshot, now, about)?;
                let (parent, records) = (evidence.parent()?, &basis.snapshot.records);
                let admission = self.admission(ca, &basis.snapshot, None, now)?;
                let admitted = Admitted::decide(*offered, ek, records, &admission)?;
                let admitted = self.settle(admitted, now)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                let parent = AdmittedParent::decide(&admitted, parent, records)?;
                let offer = KeyOffer::decide(admitted, parent, records, &ca.profile, now)?;
                Plan::Register(Box::new(offer), basis)
            }
            Examined::Ping => Plan::Pong,
            Examined::Renew(evidence) => {
                let of_ik = WaitingInQuestion::OfIk;
                let basis = self.due(&evidence.ek, IkInQuestion::OfActive, of_ik, now)?;
                let ek = self.trust(ca, &evidence.ek, &basis.snapshot, now, about)?;
                let Snapshot { records, active, waiting, .. } = &basis.snapshot;
                let (offered, admission) =
                    (Offered::<RenewFlow>::ALWAYS, self.admission(ca, &basis.snapshot, None, now)?);
                let admitted = Admitted::decide(offered, ek, records, &admission)?;
                about.device = Some(Whom::Due(admitted.device_id().clone()));
                let in_force = InForce::find(&admitted, evidence, active.as_ref(), &ca.scope, now)?;
                let proof = RenewalProof::verify(in_force)?;
                about.device = Some(Whom::Proven(proof.device_id().clone()));
                let renewing = Renewing::plan(
                    proof,
                    records,
                    waiting,
                    ca.ticket_keys.get()?,
                    &ca.profile.lasting(admitted.lifetime()),
                    &ca.issuers,
                    now,
                    &mut random(),
                )?;
                // What it has already, it gets again.
                let asking = about.asking.take().filter(|_| renewing.is_new());
                about.asking = asking.map(|asking| Asking { wish: Wish::Renew, ..asking });
                Plan::Renew(Box::new(renewing), basis)
            }
            Examined::Adopt(evidence) => {
                let (ek, sha256) = (evidence.ek_id(), evidence.certificate_sha256());
                let waiting = self.store.sealed_certificate(&ek, sha256, now)?;
                let basis = of_waiting(&waiting, now);
                let adopting =
                    Adopting::plan(evidence, waiting, &ca.scope, ca.ticket_keys.get()?, now)?;
                about.device = Some(Whom::Proven(adopting.device_id().clone()));
                Plan::Adopt(adopting, basis)
            }
        })
    }

    /// The document for the device that this plan gives a certificate, signed; `None` if it gives
    /// none, or there is no document.
    ///
    /// # Errors
    /// The store failed.
    pub(super) fn configuration(
        &mut self,
        ca: &Ca,
        plan: &Plan,
        about: &About,
    ) -> Result<Option<Bytes<MAX_SIGNED_CONFIGURATION>>, Refusal> {
        let (
            Plan::Certify(..) | Plan::Enroll(..) | Plan::Renew(..) | Plan::Rekey(..),
            Some(device),
        ) = (plan, &about.device)
        else {
            return Ok(None);
        };
        if !self.has_configurations()? {
            return Ok(None);
        }
        let (Whom::Proven(device_id) | Whom::Due(device_id)) = device;
        let Some(due) = self.store.configuration(device_id)? else { return Ok(None) };
        let Some(signer) = &ca.documents else {
            warn!(
                "devices get no documents: worker.key is not a P-256 key with worker.pem; run \
                 assay identity renew worker"
            );
            return Ok(None);
        };
        let signed = due
            .document
            .map(Bytes::try_from)
            .transpose()
            .map_err(|limit| Fault::Oversize { field: "the document", limit });
        let signed = signed.and_then(|document| {
            let (scope, device_id) = (ca.scope.clone(), device_id.clone());
            signer.sign(&Configuration { scope, device_id, revision: due.revision, document })
        });
        // Whatever is wrong with a document, a device gets its certificate.
        Ok(signed
            .inspect_err(|error| warn!(%error, device = %device_id, "a device gets no document"))
            .ok())
    }

    /// Whether there are any. Most CAs have none, and then no request should cost a question. A
    /// device that gets its certificate a moment too early hears of its document by the news.
    fn has_configurations(&mut self) -> Result<bool, StoreError> {
        if let Some((asked, there_are)) = self.configurations
            && (there_are || asked.elapsed() < CONFIGURATIONS_POLL)
        {
            return Ok(there_are);
        }
        let there_are = self.store.newest_configuration()? > 0;
        self.configurations = Some((Instant::now(), there_are));
        Ok(there_are)
    }

    /// What is on record about an EK and the device id that is due to it.
    fn due(
        &mut self,
        evidence: &EkEvidence,
        ik: IkInQuestion,
        waiting: WaitingInQuestion,
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
        ca: &Ca,
        evidence: &EkEvidence,
        snapshot: &Snapshot,
        now: OffsetDateTime,
        about: &mut About,
    ) -> Result<TrustedEk, Refusal> {
        if snapshot.anchors != self.anchors_version {
            // They may be newer than the snapshot. Then the basis is stale, and the next plan reads
            // them again.
            self.anchors = read_anchors(&mut *self.store)?;
            self.anchors_version = snapshot.anchors;
        }
        let enrolment = snapshot.records.enrolment.as_ref();
        let ek = TrustedEk::verify(evidence, &self.anchors, enrolment, now)?;
        if let Some(enrolment) = enrolment
            && ek.facts().is_some_and(|shown| enrolment.facts.as_ref() != Some(shown))
        {
            about.facts = ek.facts().cloned();
        }
        if ca.hook.is_some() {
            let is_new = snapshot.records.registration.is_none();
            let wish = if is_new { Wish::Admit } else { Wish::Recover };
            let on_record = enrolment.and_then(|enrolment| enrolment.facts.as_ref());
            about.asking = Some(Asking { wish, facts: ek.facts().or(on_record).cloned() });
        }
        Ok(ek)
    }

    fn admission<'a>(
        &'a mut self,
        ca: &'a Ca,
        snapshot: &Snapshot,
        ik: Option<IkKind>,
        now: OffsetDateTime,
    ) -> Result<Admission<'a>, StoreError> {
        if snapshot.groups != self.groups_version {
            // As for the anchors.
            self.groups = self.store.groups()?.1;
            self.groups_version = snapshot.groups;
        }
        let (groups, flaws, waits_since) = (&self.groups, &ca.flaws, snapshot.waits_since);
        Ok(Admission { groups, flaws, waits_since, ik, now })
    }

    /// Puts on record what a new device gets from its group before anything is made for it.
    fn settle<F>(
        &mut self,
        admitted: Admitted<F>,
        now: OffsetDateTime,
    ) -> Result<Admitted<F>, Refusal> {
        let admitted = self.take_place(admitted, now)?;
        let Some(naming) = admitted.naming() else { return Ok(admitted) };
        let first = self.last_named.get(&naming.group).map_or(1, |last| last.saturating_add(1));
        let Some(last) = self.name(&admitted, naming, first, now)? else {
            return Err(admitted.full().into());
        };
        self.last_named.insert(naming.group.clone(), last);
        Err(Refusal::PlanAgain)
    }

    /// Enrols an EK under the first name that is free. Returns its number; `None` if none is free.
    fn name<F>(
        &mut self,
        admitted: &Admitted<F>,
        Naming { group, names }: &Naming,
        first: u32,
        now: OffsetDateTime,
    ) -> Result<Option<u32>, StoreError> {
        let mut number = first;
        loop {
            let Some((found, device_id)) = next_free(&mut *self.store, names, number)? else {
                return Ok(None);
            };
            let enrolment = NewEnrolment {
                ek_id: admitted.ek_id(),
                device_id: Some(device_id),
                recognised: format!("group {group}"),
                reprovision: None,
                legacy_dps_ek: None,
                plain_srk: None,
                disabled: None,
                tags: Tags::new(),
                facts: admitted.facts().cloned(),
                added_at: now,
            };
            self.store.act_as(group_itself(group, now));
            match self.store.approve(&[enrolment])?.pop() {
                // Another planner was faster.
                Some(Err(EnrolError::DeviceIdTaken(..))) => number = found,
                // Nor is it an error if that was for the same EK.
                Some(Ok(_) | Err(_)) | None => return Ok(Some(found)),
            }
        }
    }

    /// Takes the place that a new device needs in its group, before anything is made for it. It is
    /// on record at once: the device may prove itself to another worker.
    fn take_place<F>(
        &mut self,
        admitted: Admitted<F>,
        now: OffsetDateTime,
    ) -> Result<Admitted<F>, Refusal> {
        let Some(place) = admitted.place() else { return Ok(admitted) };
        match self.take(&admitted.ek_id(), place, now)? {
            true => Ok(admitted),
            false => Err(admitted.full().into()),
        }
    }

    /// Whether the EK has this place now.
    fn take(&mut self, ek: &EkId, place: &Place, now: OffsetDateTime) -> Result<bool, StoreError> {
        let was_full = self.full.get(place).is_some_and(|at| at.elapsed() < FULL);
        // To look for a free place in a large group that is full takes a while, and anybody can ask.
        if was_full && !self.store.has_place(ek, place)? {
            return Ok(false);
        }
        if self.store.take_place(ek, place, now)? {
            return Ok(true);
        }
        self.full.retain(|_, at| at.elapsed() < FULL);
        self.full.insert(place.clone(), Instant::now());
        Ok(false)
    }
}

/// Who acts, in the audit, if a group gives a name.
fn group_itself(group: &GroupName, at: OffsetDateTime) -> Actor {
    Actor { name: format!("group:{group}").parse().expect("names of groups are short"), at }
}

/// How late it is noticed at most that a group has a free place again.
const FULL: Duration = Duration::from_secs(2);
/// How late the first configuration is noticed at most.
const CONFIGURATIONS_POLL: Duration = Duration::from_secs(1);

/// The basis of a decision on a certificate, if it waits.
fn of_waiting(certificate: &SealedOnRecord, now: OffsetDateTime) -> Option<Basis> {
    match certificate {
        SealedOnRecord::Unconfirmed { certificate, records } => {
            Some(Basis::of_waiting(certificate, records, now))
        }
        SealedOnRecord::Active { .. } | SealedOnRecord::Ended => None,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::directory::Directory;

    #[test]
    fn group_that_is_full_is_not_searched_again_for_a_while_and_its_members_pass() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let directory = Directory::open(&parent.path().join("ca")).unwrap();
        let mut planner = Planner::open(directory.store().unwrap()).unwrap();
        let (now, place) =
            (OffsetDateTime::now_utc(), |quota| Place { group: "pumps".parse().unwrap(), quota });
        let [member, next] = [[1; 32], [2; 32]].map(EkId::from);
        assert!(planner.take(&member, &place(1), now).unwrap());
        assert!(!planner.take(&next, &place(1), now).unwrap());
        let noticed = planner.full[&place(1)];
        // The place of a device that never comes is free in the end, and nobody looks yet.
        let later = now + time::Duration::days(30);
        assert!(!planner.take(&next, &place(1), later).unwrap());
        assert_eq!(planner.full[&place(1)], noticed, "it was not searched");
        assert!(planner.take(&member, &place(1), later).unwrap(), "it has its place");
        // One that has more places now is another.
        assert!(planner.take(&next, &place(2), now).unwrap());
        assert!(!planner.take(&EkId::from([3; 32]), &place(2), now).unwrap());
        assert_eq!(planner.full.len(), 2);
        thread::sleep(FULL);
        assert!(!planner.take(&EkId::from([4; 32]), &place(2), now).unwrap());
        assert_eq!(planner.full.len(), 1, "what is old is forgotten");
    }
}
