//! The CA: its record, and the server's decisions on it.

use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::doorkeeper::NotGood;
use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{
    Answer, Conditions, Flaws, Group, Groups, MasterSecret, Profile, Terms, TicketKey, Token,
};
use assay_server::ca::Ca as Keys;
use assay_server::pipeline::{
    DecisionLog, Examination, Issued, Outcome, Planner, Received, decide,
};
use assay_server::register::{Decided, decide_certificate, decide_login};
use assay_store::sqlite::Sqlite;
use assay_store::{Act, CertificateStatus, Enrolled, Entry, NewEnrolment, Recorded, Retention};
use assay_wire::{ClientId, DeviceId, EkId, Flow, Problem, ProblemCode, Reply, ReplyBody, Scope};
use time::OffsetDateTime;

use crate::chance::Chance;
use crate::factory::FACTORY;
use crate::rules::{Deed, Dump, DumpedCertificate, RENEW_BEFORE};

pub(crate) struct Ca {
    keys: Keys,
    planner: Planner,
    log: DecisionLog,
    rng: Chance,
}

/// The CA's decision on a request.
pub(crate) enum Decision {
    /// The reply can be sent. `about` is the EK of the request.
    Answered { about: Option<EkId>, reply: Reply },
    /// The reply can be sent once this is on record.
    Planned(Box<Planned>),
}

/// What the CA planned and signed, but has not recorded yet.
pub(crate) struct Planned {
    received: Received,
    received_at: OffsetDateTime,
    about: Option<EkId>,
    issued: Box<Issued>,
    examination: Box<Examination>,
    attempts: u32,
    /// Whether the CA has another ticket key by now.
    pub(crate) is_of_old_key: bool,
}

/// The result of recording a plan.
pub(crate) enum Written {
    /// The plan is on record.
    Recorded(Box<Done>),
    /// The plan was stale, and the CA decided again.
    Again(Decision),
}

/// What is on record now, and the reply that follows from it.
pub(crate) struct Done {
    pub(crate) deed: Deed,
    pub(crate) received_at: OffsetDateTime,
    pub(crate) about: Option<EkId>,
    pub(crate) reply: Reply,
    pub(crate) is_of_old_key: bool,
}

impl Ca {
    pub(crate) fn new(scope: &Scope) -> Self {
        let mut rng = Chance::new(1);
        let mut store = Sqlite::in_memory().unwrap();
        let (none, _) = store.groups().unwrap();
        assert!(store.set_groups(none, &everyone()).unwrap());
        store.add_anchor(&FACTORY.anchor).unwrap();
        Self {
            keys: Keys {
                scope: scope.clone(),
                ticket_keys: TicketKey::generate(&mut rng).into(),
                masters: MasterSecret::generate(&mut rng).into(),
                new_root: None,
                issuers: FACTORY.issuers(),
                certificates: String::new(),
                profile: Profile::default()
                    .with_flows(Flow::ALL.to_vec())
                    .and_then(|profile| profile.with_renewal(Some(RENEW_BEFORE)))
                    .unwrap(),
                documents: None,
                flaws: Flaws::default(),
                hook: None,
            },
            planner: Planner::open(Box::new(store)).unwrap(),
            log: DecisionLog::default(),
            rng,
        }
    }

    /// Secrets that nobody may see on the link.
    pub(crate) fn secrets(&self, now: OffsetDateTime) -> [&[u8]; 2] {
        [self.keys.ticket_keys.in_use(now).secret(), self.keys.masters.in_use(now).secret()]
    }

    /// Examines a request, plans and signs.
    pub(crate) fn decide(
        &mut self,
        client: ClientId,
        message: Vec<u8>,
        now: OffsetDateTime,
    ) -> Decision {
        let received = Received::new(client, message.into(), None, now);
        self.decide_on(received, now, None, 1)
    }

    fn decide_on(
        &mut self,
        received: Received,
        received_at: OffsetDateTime,
        examination: Option<Box<Examination>>,
        attempts: u32,
    ) -> Decision {
        let (outcome, about) =
            decide(&mut self.planner, &self.keys, &received, examination, &self.log);
        let about = about.ek_id;
        let body = match outcome {
            Outcome::Pong => ReplyBody::Pong,
            Outcome::Answered(body) => body,
            Outcome::Waits(problem, _) => ReplyBody::Problem(problem),
            Outcome::Refused(problem) => {
                assert_ne!(problem.code, ProblemCode::Internal, "the CA failed");
                ReplyBody::Problem(problem)
            }
            Outcome::Issued(issued, examination) => {
                let planned = Planned {
                    received,
                    received_at,
                    about,
                    issued,
                    examination,
                    attempts,
                    is_of_old_key: false,
                };
                return Decision::Planned(Box::new(planned));
            }
        };
        Decision::Answered { about, reply: Reply { id: received.id(), body } }
    }

    /// Records a plan, unless the snapshot that the plan was made on no longer holds.
    pub(crate) fn record(&mut self, planned: Planned) -> Written {
        let Planned { received, received_at, about, issued, examination, attempts, .. } = planned;
        let is_of_old_key = planned.is_of_old_key;
        let (id, Issued { act, basis, reply }) = (received.id(), *issued);
        let deed = deed(&act);
        let entry = Entry { act, basis, audit: None };
        match self.planner.store.record(&self.keys.scope, &[entry]).unwrap()[..] {
            [Recorded::Done] => {
                let reply = Reply { id, body: reply };
                Written::Recorded(Box::new(Done { deed, received_at, about, reply, is_of_old_key }))
            }
            _ if attempts < ATTEMPTS => {
                let examination = Some(examination);
                Written::Again(self.decide_on(received, received_at, examination, attempts + 1))
            }
            _ => {
                let problem = Problem::new(ProblemCode::Busy, "it changed".into()).retry_after(1);
                let reply = Reply { id, body: ReplyBody::Problem(problem) };
                Written::Again(Decision::Answered { about: None, reply })
            }
        }
    }
}

/// What brokers ask.
impl Ca {
    /// The status of a device's certificate.
    pub(crate) fn status(
        &mut self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> CertificateStatus {
        self.planner.store.certificate_status(device, serial, sha256).unwrap()
    }

    /// Decides on a device that shows a certificate in its TLS handshake: `None` means that the CA
    /// refuses it. The deed is what the first use of a certificate puts on record.
    pub(crate) fn handshake(
        &mut self,
        certificate: &ClientCertificate,
        now: OffsetDateTime,
    ) -> Option<Option<Deed>> {
        let store = &mut *self.planner.store;
        let decided = decide_certificate(store, &self.keys, certificate, now);
        let Decided { first_use, .. } = unless_refused(decided)?;
        Some(first_use.map(|entry| self.record_first_use(entry)))
    }

    /// Decides on a device that shows a token: `None` means that the CA refuses it. The deed is
    /// what the first use of a key puts on record.
    pub(crate) fn login(
        &mut self,
        user_name: &str,
        password: &str,
        now: OffsetDateTime,
    ) -> Option<(DeviceId, Option<Deed>)> {
        let token = Token::parse(user_name, password.as_bytes()).unwrap();
        let store = &mut *self.planner.store;
        let decided = decide_login(store, &self.keys, &token, now);
        let Decided { value: login, first_use } = unless_refused(decided)?;
        let deed = first_use.map(|entry| self.record_first_use(entry));
        Some((login.device_id().clone(), deed))
    }

    /// Nobody else writes meanwhile.
    fn record_first_use(&mut self, entry: Entry) -> Deed {
        let deed = deed(&entry.act);
        let recorded = self.planner.store.record(&self.keys.scope, &[entry]).unwrap();
        assert_eq!(recorded, [Recorded::Done]);
        deed
    }
}

/// What operators do.
impl Ca {
    /// Puts an EK on the list. Returns whether the EK is new there.
    pub(crate) fn enrol(&mut self, new: NewEnrolment) -> bool {
        matches!(self.planner.store.enroll(&[new]).unwrap()[..], [Ok(Enrolled::Added)])
    }

    pub(crate) fn update(&mut self, ek: &EkId, policy: assay_ca_core::Reprovision) -> bool {
        self.planner.store.update_enrolment(ek, Some(policy), None).unwrap()
    }

    pub(crate) fn remove(&mut self, ek: &EkId, now: OffsetDateTime) {
        self.planner.store.remove(ek, now).unwrap();
    }

    pub(crate) fn set_disabled(&mut self, ek: &EkId, disabled: bool, now: OffsetDateTime) {
        self.planner.store.set_disabled(ek, disabled, now).unwrap();
    }

    /// Returns whether the EK ever had a shared key.
    pub(crate) fn retire_shared_key(&mut self, ek: &EkId) -> bool {
        self.planner.store.retire_shared_key(ek).unwrap()
    }

    pub(crate) fn change_ticket_key(&mut self) {
        self.keys.ticket_keys = TicketKey::generate(&mut self.rng).into();
    }

    pub(crate) fn prune(&mut self, now: OffsetDateTime) {
        while self.planner.store.prune(&Retention::default(), now).unwrap().more {}
    }

    /// The parts of the record that the rules compare.
    pub(crate) fn dump(&mut self) -> Dump {
        let devices = self.planner.store.devices().unwrap();
        let certificates = self.planner.store.certificates().unwrap();
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
        let row = self.planner.store.enrolment(ek).unwrap();
        Some(row?.shared_key?.generation)
    }
}

/// One group, which admits everyone.
fn everyone() -> Groups {
    let all = Group {
        name: "all".parse().unwrap(),
        conditions: Conditions::default(),
        answer: Answer::Admit,
        terms: Terms::default(),
    };
    Groups::new(vec![all]).unwrap()
}

/// The store of this CA can always be read.
fn unless_refused<T>(decided: Result<T, NotGood>) -> Option<T> {
    match decided {
        Ok(decided) => Some(decided),
        Err(NotGood::Refused(_)) => None,
        Err(NotGood::Unknown(reason)) => panic!("{reason}"),
    }
}

/// The deed by which the rules learn of an act.
fn deed(act: &Act) -> Deed {
    match act {
        Act::None | Act::Ask(_) | Act::Learn(..) => unreachable!("nothing is recorded for it"),
        Act::Certify(certificate) => {
            Deed::Certified { facts: certificate.facts().clone(), sha256: certificate.sha256() }
        }
        Act::Seal(certificate) => {
            Deed::Sealed { facts: certificate.facts().clone(), sha256: certificate.sha256() }
        }
        Act::Renew(certificate) => {
            Deed::Renewed { facts: certificate.facts().clone(), sha256: certificate.sha256() }
        }
        Act::Rekey(certificate) => {
            Deed::Rekeyed { facts: certificate.facts().clone(), sha256: certificate.sha256() }
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

/// The server makes as many attempts.
const ATTEMPTS: u32 = 5;
