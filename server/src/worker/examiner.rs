//! From the queue to a decision, on threads of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use assay_ca_core::{Confirmation, Evidence, ParentEvidence, ProvenDevice};
use assay_wire::{
    DecodeError, EkId, Flow, Problem, ProblemCode, ReplyBody, Request, RequestBody, Topic,
};
use crossbeam_channel::{Receiver, Sender};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::debug;

use super::writer::{Pending, Task, Write};
use super::{DecisionLog, Job, Outbox, Outfit, Pulse, Queues, Work, internal};
use crate::ca::{Ca, Examiner, Refusal};
use assay_store::Change;
use assay_store::{AuditEntry, Whom};

/// Examines requests until the queues are closed.
pub(super) fn run(
    outfit: &watch::Receiver<Outfit>,
    mut examiner: Examiner,
    jobs: &Queues<Receiver<Job>>,
    pulses: &Receiver<Pulse>,
    writes: &Sender<Write>,
    outbox: &Outbox,
    log: &DecisionLog,
) {
    for taken in 0.. {
        let job = match jobs.take(taken, pulses) {
            Some(Work::Job(job)) => job,
            Some(Work::Pulse(pulse)) => {
                _ = writes.send(Write::Pulse(pulse));
                continue;
            }
            None => break,
        };
        // The one that this request is decided with to its end, whatever is reread meanwhile.
        let ca = Arc::clone(&outfit.borrow().ca);
        let id = Request::id_of(&job.message);
        // A panic would be a bug of ours, but one that a stranger's bytes found must not take a
        // thread from everybody else.
        let outcome = catch_unwind(AssertUnwindSafe(|| examine(&ca, &mut examiner, &job, log)));
        let (decision, subject) = outcome.unwrap_or_else(|_| {
            log.fault("examining a request panicked", &job.client);
            (Decision::Reply(ReplyBody::Problem(internal())), Subject::unread())
        });
        match decision {
            Decision::Reply(body) => {
                let audit = audit_entry(&job, subject, &body);
                log.decision(&audit);
                outbox.reply(job, id, body);
                _ = writes.send(Write::Audit(audit));
            }
            Decision::Pong => {
                debug!(client = %job.client, "ping answered");
                outbox.reply(job, id, ReplyBody::Pong);
            }
            Decision::Write(task) => {
                _ = writes.send(Write::Request(Box::new(Pending { ca, job, id, task })))
            }
        }
    }
}

enum Decision {
    Reply(ReplyBody),
    /// Of which nobody wants a record: it says nothing of any device.
    Pong,
    Write(Box<Task>),
}

/// Whom a decision is about, as far as that is known.
pub(super) struct Subject {
    pub(super) action: &'static str,
    pub(super) ek_id: Option<EkId>,
    pub(super) device: Option<Whom>,
    pub(super) change: Change,
}

impl Subject {
    fn new(action: &'static str) -> Self {
        Self { action, ek_id: None, device: None, change: Change::None }
    }

    fn unread() -> Self {
        Self::new("unreadable")
    }
}

fn examine(ca: &Ca, examiner: &mut Examiner, job: &Job, log: &DecisionLog) -> (Decision, Subject) {
    let now = OffsetDateTime::now_utc();
    if let Some(problem) = response_topic_problem(ca, job) {
        return (Decision::Reply(ReplyBody::Problem(problem)), Subject::unread());
    }
    match Request::decode(&job.message) {
        Err(error) => {
            let problem = Problem::new(decode_problem(&error), error.to_string());
            (Decision::Reply(ReplyBody::Problem(problem)), Subject::unread())
        }
        Ok(Request { body, .. }) => {
            let mut subject = Subject::new(action(&body));
            match decide(ca, examiner, body, &mut subject, now) {
                Ok(decision) => (decision, subject),
                Err(refusal) => {
                    (Decision::Reply(ReplyBody::Problem(problem(&refusal, log))), subject)
                }
            }
        }
    }
}

fn decide(
    ca: &Ca,
    examiner: &mut Examiner,
    body: RequestBody,
    subject: &mut Subject,
    now: OffsetDateTime,
) -> Result<Decision, Refusal> {
    match body {
        RequestBody::Challenge(bundle) => {
            let evidence = Evidence::parse(bundle)?;
            subject.ek_id = Some(evidence.ek.ek_id());
            let (reply, device_id) = examiner.challenge(ca, evidence, now)?;
            subject.device = Some(Whom::Due(device_id));
            Ok(Decision::Reply(ReplyBody::Challenge(reply)))
        }
        RequestBody::Certify(proof) => {
            let device = ProvenDevice::verify(&proof, &ca.scope, &ca.ticket_key, now)?;
            Ok(Decision::Write(Box::new(Task::Certify(device))))
        }
        RequestBody::Enroll(bundle) => {
            let evidence = Evidence::parse(bundle)?;
            subject.ek_id = Some(evidence.ek.ek_id());
            ca.profile.check_flow(Flow::Sealed)?;
            Ok(Decision::Write(Box::new(Task::Enroll(examiner.applicant(&evidence, now)?))))
        }
        RequestBody::Confirm(proof) => {
            let confirmation = Confirmation::verify(&proof, &ca.scope, &ca.ticket_key, now)?;
            Ok(Decision::Write(Box::new(Task::Confirm(confirmation))))
        }
        RequestBody::Register(bundle) => {
            let evidence = ParentEvidence::parse(bundle)?;
            subject.ek_id = Some(evidence.ek.ek_id());
            ca.profile.check_flow(Flow::SharedKey)?;
            Ok(Decision::Write(Box::new(Task::Register(
                examiner.parent_applicant(&evidence, now)?,
            ))))
        }
        RequestBody::Ping => Ok(Decision::Pong),
    }
}

/// A request's kind, as the audit and the log name it.
fn action(body: &RequestBody) -> &'static str {
    match body {
        RequestBody::Challenge(_) => "challenge",
        RequestBody::Certify(_) => "certify",
        RequestBody::Enroll(_) => "enroll",
        RequestBody::Confirm(_) => "confirm",
        RequestBody::Register(_) => "register",
        RequestBody::Ping => "ping",
    }
}

/// Replies go where the client's own topic leads and nowhere else, so that nobody can have one sent
/// to somebody else.
fn response_topic_problem(ca: &Ca, job: &Job) -> Option<Problem> {
    let asked = job.response_topic.as_ref()?;
    let due = Topic::Reply(ca.scope.clone(), job.client.clone()).to_string();
    (*asked != due).then(|| {
        Problem::new(ProblemCode::Malformed, format!("the Response Topic must be absent or {due}"))
    })
}

fn decode_problem(error: &DecodeError) -> ProblemCode {
    match error {
        DecodeError::Oversize(_) => ProblemCode::Oversize,
        DecodeError::UnknownKind(_) => ProblemCode::Unsupported,
        DecodeError::Malformed(_) | DecodeError::NotDeterministic(_) => ProblemCode::Malformed,
    }
}

/// What a device is told of a refusal; of our own faults, nothing but that there was one.
pub(super) fn problem(refusal: &Refusal, log: &DecisionLog) -> Problem {
    match refusal {
        Refusal::Rejection(rejection) => rejection.problem(),
        Refusal::Fault(_) | Refusal::Store(_) => {
            log.fault("the CA failed", refusal);
            internal()
        }
    }
}

/// The record of a decision.
pub(super) fn audit_entry(job: &Job, subject: Subject, body: &ReplyBody) -> AuditEntry {
    let refusal = match body {
        ReplyBody::Problem(problem) => Some((problem.code, problem.detail.clone())),
        _ => None,
    };
    AuditEntry {
        time: OffsetDateTime::now_utc(),
        client: job.client.clone(),
        action: subject.action,
        ek_id: subject.ek_id,
        device: subject.device,
        change: subject.change,
        refusal,
        duration_us: job.receipt.received.elapsed().as_micros().try_into().unwrap_or(u32::MAX),
    }
}
