//! The CA: the checks and plans of `ca-core` on the store, in the order of the server's stages.

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{
    Admitted, AdmittedParent, BoundKey, Candidate, Certification, Challenge, Confirmation,
    Confirming, EkEvidence, Evidence, Failure, Fault, KeyOffer, Login, MasterSecret,
    ParentEvidence, Profile, ProvenDevice, Rejection, SealedOnRecord, Sealing, TicketKey, Token,
    TrustedEk,
};
use assay_store::sqlite::Sqlite;
use assay_store::{
    Act, Basis, CertificateStatus, Enrolled, Entry, IdInQuestion, NewEnrolment, Question, Recorded,
    Retention, Snapshot, Store, StoreError,
};
use assay_wire::{
    ConfirmedReply, DeviceId, EkId, Flow, Problem, ProblemCode, Reply, ReplyBody, Request,
    RequestBody, RequestId, Scope,
};
use time::OffsetDateTime;

use crate::chance::Chance;
use crate::factory::FACTORY;
use crate::rules::{Deed, Dump, DumpedCertificate};

pub(crate) struct Ca {
    store: Box<dyn Store>,
    scope: Scope,
    profile: Profile,
    ticket_key: TicketKey,
    master: MasterSecret,
    rng: Chance,
}

/// What becomes of a request, for now.
pub(crate) enum Decision {
    /// It is answered; `about` is the EK that the request is about.
    Answered { about: Option<EkId>, reply: Reply },
    /// It is answered once this is on record.
    Planned(Box<Planned>),
}

/// What is signed, and not on record yet.
pub(crate) struct Planned {
    request: Request,
    about: Option<EkId>,
    received_at: OffsetDateTime,
    act: Act,
    basis: Option<Basis>,
    reply: ReplyBody,
    attempts: u32,
}

/// What became of it.
pub(crate) enum Outcome {
    /// It is on record.
    Recorded(Box<Done>),
    /// It was stale, and is decided again.
    Again(Decision),
}

/// What is on record, and the answer that it leads to.
pub(crate) struct Done {
    pub(crate) deed: Deed,
    pub(crate) received_at: OffsetDateTime,
    pub(crate) about: Option<EkId>,
    pub(crate) reply: Reply,
}

/// Why a request is not granted.
enum Refusal {
    Rejection(Box<Problem>),
    Store(StoreError),
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejection(Box::new(rejection.problem()))
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        panic!("the CA failed: {fault}")
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Rejection(rejection) => rejection.into(),
            Failure::Fault(fault) => fault.into(),
        }
    }
}

impl Ca {
    pub(crate) fn new(scope: &Scope) -> Self {
        let mut rng = Chance::new(1);
        Self {
            store: Box::new(Sqlite::in_memory().unwrap()),
            scope: scope.clone(),
            profile: Profile::default().with_flows(Flow::ALL.to_vec()).unwrap(),
            ticket_key: TicketKey::generate(&mut rng),
            master: MasterSecret::generate(&mut rng),
            rng,
        }
    }

    /// Secrets that nobody may see on the link.
    pub(crate) fn secrets(&self) -> [&[u8]; 2] {
        [self.ticket_key.secret(), self.master.secret()]
    }

    /// Examines a request, plans and signs.
    pub(crate) fn decide(&mut self, message: &[u8], now: OffsetDateTime) -> Decision {
        match Request::decode(message) {
            Ok(request) => self.decide_on(request, now, 1),
            Err(error) => {
                let problem = Problem::new(ProblemCode::Malformed, error.to_string());
                // The id can often be read all the same; the server does so.
                let id = assay_wire::Head::read(message).map_or(RequestId::NIL, |head| head.id());
                let reply = Reply { id, body: ReplyBody::Problem(problem) };
                Decision::Answered { about: None, reply }
            }
        }
    }

    fn decide_on(&mut self, request: Request, now: OffsetDateTime, attempts: u32) -> Decision {
        let (id, mut about) = (request.id, None);
        let (act, basis, reply) = match self.plan_and_sign(&request.body, now, &mut about) {
            Ok(planned) => planned,
            Err(Refusal::Rejection(problem)) => (Act::None, None, ReplyBody::Problem(*problem)),
            Err(Refusal::Store(error)) => panic!("the store failed: {error}"),
        };
        if matches!(act, Act::None) {
            return Decision::Answered { about, reply: Reply { id, body: reply } };
        }
        let received_at = now;
        Decision::Planned(Box::new(Planned {
            request,
            about,
            received_at,
            act,
            basis,
            reply,
            attempts,
        }))
    }

    /// Records what was planned, unless what it was planned by no longer holds.
    pub(crate) fn record(&mut self, planned: Planned) -> Outcome {
        let Planned { request, about, received_at, act, basis, reply, attempts } = planned;
        let deed = deed(&act);
        let entry = Entry { act, basis, audit: None };
        match self.store.record(&self.scope, &[entry]).unwrap()[..] {
            [Recorded::Done] => {
                let reply = Reply { id: request.id, body: reply };
                Outcome::Recorded(Box::new(Done { deed, received_at, about, reply }))
            }
            _ if attempts < ATTEMPTS => {
                Outcome::Again(self.decide_on(request, received_at, attempts + 1))
            }
            _ => {
                let problem = Problem::new(ProblemCode::Busy, "it changed".into()).retry_after(1);
                let body = ReplyBody::Problem(problem);
                let reply = Reply { id: request.id, body };
                Outcome::Again(Decision::Answered { about: None, reply })
            }
        }
    }

    fn plan_and_sign(
        &mut self,
        body: &RequestBody,
        now: OffsetDateTime,
        about: &mut Option<EkId>,
    ) -> Result<(Act, Option<Basis>, ReplyBody), Refusal> {
        let issuer = &FACTORY.issuer;
        match body {
            RequestBody::Ping => Ok((Act::None, None, ReplyBody::Pong)),
            RequestBody::Challenge(bundle) => {
                let evidence = Evidence::parse(bundle.clone())?;
                *about = Some(evidence.ek.ek_id());
                let offered = self.profile.offer()?;
                let Basis { snapshot, .. } = self.due(&evidence.ek, None, false, now)?;
                let ek = trust(&evidence.ek, &snapshot, now)?;
                let ik = BoundKey::verify(&evidence)?;
                let admitted = Admitted::decide(offered, ek, &snapshot.records)?;
                let (scope, key) = (&self.scope, &self.ticket_key);
                let challenge = Challenge::new(&admitted, &ik, scope, key, now, &mut self.rng)?;
                Ok((Act::None, None, ReplyBody::Challenge(challenge.into_reply())))
            }
            RequestBody::Certify(proof) => {
                let device = ProvenDevice::verify(proof, &self.scope, &self.ticket_key, now)?;
                *about = Some(device.ek_id());
                let question = Question {
                    ik_id: Some(device.ik_id()),
                    ..Question::about(device.ek_id(), device.device_id(), now)
                };
                let basis = self.ask(question)?;
                let Snapshot { records, active, .. } = &basis.snapshot;
                let certification = Certification::plan(
                    device,
                    records,
                    active.as_ref(),
                    &self.profile,
                    issuer,
                    now,
                    &mut self.rng,
                )?;
                let (reply, issued) = certification.sign(issuer)?;
                let act = issued.map_or(Act::None, Act::Certify);
                Ok((act, Some(basis), ReplyBody::Certificate(reply)))
            }
            RequestBody::Enroll(bundle) => {
                let evidence = Evidence::parse(bundle.clone())?;
                *about = Some(evidence.ek.ek_id());
                let offered = self.profile.offer()?;
                let basis = self.due(&evidence.ek, evidence.claimed_ik_id(), true, now)?;
                let Snapshot { records, active, waiting } = &basis.snapshot;
                let ek = trust(&evidence.ek, &basis.snapshot, now)?;
                let ik = BoundKey::verify(&evidence)?;
                let admitted = Admitted::decide(offered, ek, records)?;
                let key = &self.ticket_key;
                let sealing = Sealing::plan(
                    Candidate::decide(&admitted, &ik, &self.scope, records, now)?,
                    records,
                    active.as_ref(),
                    waiting,
                    key,
                    &self.profile,
                    issuer,
                    now,
                    &mut self.rng,
                )?;
                let (reply, issued) = sealing.sign(issuer, key, now, &mut self.rng)?;
                let act = issued.map_or(Act::None, Act::Seal);
                Ok((act, Some(basis), ReplyBody::Sealed(reply)))
            }
            RequestBody::Confirm(proof) => {
                let confirmation = Confirmation::verify(proof, &self.scope, &self.ticket_key, now)?;
                *about = Some(confirmation.ek_id());
                let sealed = self.sealed_certificate(&confirmation, now)?;
                let basis = basis_of(&sealed, now);
                Ok(match Confirming::plan(confirmation, sealed, &self.ticket_key, now)? {
                    Confirming::OnRecord { reply, .. } => {
                        (Act::None, None, ReplyBody::Confirmed(reply))
                    }
                    Confirming::New(confirmed) => {
                        let reply = ConfirmedReply { receipt: confirmed.receipt().clone() };
                        (Act::Activate(*confirmed), basis, ReplyBody::Confirmed(reply))
                    }
                })
            }
            RequestBody::Register(bundle) => {
                let evidence = ParentEvidence::parse(bundle.clone())?;
                *about = Some(evidence.ek.ek_id());
                let offered = self.profile.offer()?;
                let basis = self.due(&evidence.ek, None, false, now)?;
                let records = &basis.snapshot.records;
                let ek = trust(&evidence.ek, &basis.snapshot, now)?;
                let parent = evidence.parent()?;
                let admitted = Admitted::decide(offered, ek, records)?;
                let parent = AdmittedParent::decide(&admitted, parent, records)?;
                let offer = KeyOffer::decide(admitted, parent, records)?;
                let reply = offer.activation(&self.scope, &self.master, &mut self.rng)?;
                let act = Act::Offer(offer.record());
                Ok((act, Some(basis), ReplyBody::Activation(reply)))
            }
        }
    }

    fn due(
        &mut self,
        evidence: &EkEvidence,
        ik_id: Option<[u8; 32]>,
        waiting: bool,
        now: OffsetDateTime,
    ) -> Result<Basis, Refusal> {
        let device = IdInQuestion::Due {
            derived: evidence.derived_device_id(),
            other_eks: evidence.other_eks().to_vec(),
        };
        self.ask(Question { ek: evidence.ek_id(), device, ik_id, waiting, now })
    }

    fn sealed_certificate(
        &mut self,
        confirmation: &Confirmation,
        now: OffsetDateTime,
    ) -> Result<SealedOnRecord, Refusal> {
        let (ek, sha256) = (confirmation.ek_id(), confirmation.certificate_sha256());
        self.store.sealed_certificate(&ek, sha256, now).map_err(Refusal::Store)
    }

    fn ask(&mut self, question: Question) -> Result<Basis, Refusal> {
        let snapshot = self.store.snapshot(&question).map_err(Refusal::Store)?;
        Ok(Basis { question, snapshot })
    }
}

/// What brokers ask.
impl Ca {
    /// What a device's certificate is worth.
    pub(crate) fn status(
        &mut self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> CertificateStatus {
        self.store.certificate_status(device, serial, sha256).unwrap()
    }

    /// Lets a device in that shows a token: `None` is not. What is on record for it, if it is the
    /// first use of its key.
    pub(crate) fn login(
        &mut self,
        user_name: &str,
        password: &str,
        now: OffsetDateTime,
    ) -> Option<(DeviceId, Option<Deed>)> {
        let token = Token::parse(user_name, password.as_bytes()).unwrap();
        let offered = self.profile.offer().unwrap();
        for holder in self.store.shared_key_holders(token.device_id()).unwrap() {
            let question = Question::about(holder.ek_id, token.device_id(), now);
            let snapshot = self.store.snapshot(&question).unwrap();
            let (records, scope) = (&snapshot.records, &self.scope);
            let Ok(login) =
                Login::decide(offered, &token, &holder, scope, &self.master, records, now)
            else {
                continue;
            };
            let first_use = login.first_use(records).map(|first_use| {
                let act = Act::Accept(first_use);
                let deed = deed(&act);
                let basis = Some(Basis { question, snapshot });
                let entry = Entry { act, basis, audit: None };
                assert_eq!(self.store.record(&self.scope, &[entry]).unwrap(), [Recorded::Done]);
                deed
            });
            return Some((login.device_id().clone(), first_use));
        }
        None
    }
}

/// What operators do.
impl Ca {
    /// Whether the EK was put on the list.
    pub(crate) fn enrol(&mut self, new: NewEnrolment) -> bool {
        matches!(self.store.enroll(&[new]).unwrap()[..], [Ok(Enrolled::Added)])
    }

    pub(crate) fn update(&mut self, ek: &EkId, policy: assay_ca_core::Reprovision) -> bool {
        self.store.update_enrolment(ek, Some(policy), None).unwrap()
    }

    pub(crate) fn remove(&mut self, ek: &EkId, now: OffsetDateTime) {
        self.store.remove(ek, now).unwrap();
    }

    pub(crate) fn set_disabled(&mut self, ek: &EkId, disabled: bool, now: OffsetDateTime) {
        self.store.set_disabled(ek, disabled, now).unwrap();
    }

    /// Whether it ever had one.
    pub(crate) fn retire_shared_key(&mut self, ek: &EkId) -> bool {
        self.store.retire_shared_key(ek).unwrap()
    }

    pub(crate) fn change_ticket_key(&mut self) {
        self.ticket_key = TicketKey::generate(&mut self.rng);
    }

    pub(crate) fn prune(&mut self, now: OffsetDateTime) {
        while self.store.prune(&Retention::default(), now).unwrap().more {}
    }

    /// All that is on record, as far as the rules speak of it.
    pub(crate) fn dump(&mut self) -> Dump {
        let devices = self.store.devices().unwrap();
        let certificates = self.store.certificates().unwrap();
        Dump {
            devices: devices.into_iter().map(|row| (row.ek_id, row.device_id)).collect(),
            certificates: certificates
                .into_iter()
                .map(|row| DumpedCertificate {
                    serial: row.serial,
                    device_id: row.device_id,
                    status: row.status,
                })
                .collect(),
        }
    }

    /// The generation of an EK's shared key on record.
    pub(crate) fn generation(&mut self, ek: &EkId) -> Option<u32> {
        let row = self.store.enrolment(ek).unwrap();
        Some(row?.shared_key?.generation)
    }
}

fn trust(
    evidence: &EkEvidence,
    snapshot: &Snapshot,
    now: OffsetDateTime,
) -> Result<TrustedEk, Refusal> {
    let enrolment = snapshot.records.enrolment.as_ref();
    Ok(TrustedEk::verify(evidence, &FACTORY.anchors, enrolment, now)?)
}

fn basis_of(sealed: &SealedOnRecord, now: OffsetDateTime) -> Option<Basis> {
    let SealedOnRecord::Unconfirmed { certificate, records } = sealed else { return None };
    let question = Question::about(certificate.ek_id, &certificate.device_id, now);
    let snapshot = Snapshot { records: (**records).clone(), active: None, waiting: Vec::new() };
    Some(Basis { question, snapshot })
}

/// What the rules hear of an act.
fn deed(act: &Act) -> Deed {
    match act {
        Act::None => unreachable!("nothing is recorded for it"),
        Act::Certify(certificate) => {
            Deed::Certified { facts: certificate.facts().clone(), sha256: certificate.sha256() }
        }
        Act::Seal(certificate) => {
            Deed::Sealed { facts: certificate.facts().clone(), sha256: certificate.sha256() }
        }
        Act::Activate(confirmed) => Deed::Activated { serial: confirmed.serial() },
        Act::Offer(offer) => Deed::Offered {
            ek_id: offer.ek_id(),
            generation: offer.generation(),
            is_plain: offer.parent() == ParentKind::PlainSrk,
        },
        Act::Accept(first_use) => Deed::Accepted {
            ek_id: first_use.ek_id(),
            device_id: first_use.device_id().clone(),
            generation: first_use.generation(),
        },
    }
}

/// As the server's.
const ATTEMPTS: u32 = 5;
