//! From the queue to a decision, on threads of their own.

use std::panic::{AssertUnwindSafe, catch_unwind};

use assay_ca_core::{Evidence, ProvenDevice};
use assay_wire::{DecodeError, DeviceId, EkId, Problem, ProblemCode, ReplyBody, Request, RequestBody, Topic};
use crossbeam_channel::{Receiver, Sender};
use time::OffsetDateTime;
use tracing::{error, info};

use super::writer::{Certify, Write};
use super::{Job, Outbox, internal};
use crate::ca::{Ca, Examiner, Refusal};
use crate::store::AuditEntry;

/// Examines requests until the queue is closed.
pub(super) fn run(ca: &Ca, mut examiner: Examiner, jobs: &Receiver<Job>, writes: &Sender<Write>, outbox: &Outbox) {
    for job in jobs {
        let id = Request::id_of(&job.message);
        // A panic would be a bug of ours, but one that a stranger's bytes found must not take a thread from everybody else.
        let outcome = catch_unwind(AssertUnwindSafe(|| examine(ca, &mut examiner, &job)));
        let (decision, subject) = outcome.unwrap_or_else(|_| {
            error!(client = %job.client, "examining a request panicked");
            (Decision::Reply(ReplyBody::Problem(internal())), Subject::unread())
        });
        match decision {
            Decision::Reply(body) => {
                let audit = audit_entry(&job, subject, &body);
                log(&audit);
                outbox.reply(job, id, body);
                _ = writes.send(Write::Audit(audit));
            }
            Decision::Certify(device) => _ = writes.send(Write::Certify(Box::new(Certify { job, id, device }))),
        }
    }
}

enum Decision {
    Reply(ReplyBody),
    Certify(ProvenDevice),
}

/// Whom a decision is about, as far as that is known.
pub(super) struct Subject {
    pub(super) action: &'static str,
    pub(super) ek_id: Option<EkId>,
    pub(super) device_id: Option<DeviceId>,
}

impl Subject {
    fn unread() -> Self {
        Self { action: "unreadable", ek_id: None, device_id: None }
    }
}

fn examine(ca: &Ca, examiner: &mut Examiner, job: &Job) -> (Decision, Subject) {
    let now = OffsetDateTime::now_utc();
    if let Some(problem) = response_topic_problem(ca, job) {
        return (Decision::Reply(ReplyBody::Problem(problem)), Subject::unread());
    }
    match Request::decode(&job.message) {
        Err(error) => {
            let problem = Problem::new(decode_problem(&error), error.to_string());
            (Decision::Reply(ReplyBody::Problem(problem)), Subject::unread())
        }
        Ok(Request { body: RequestBody::Challenge(request), .. }) => {
            let mut subject = Subject { action: "challenge", ek_id: None, device_id: request.device_id.clone() };
            let answer = Evidence::parse(request).map_err(Refusal::from).and_then(|evidence| {
                subject.ek_id = Some(evidence.ek_id());
                examiner.challenge(ca, evidence, now)
            });
            match answer {
                Ok((reply, device_id)) => {
                    subject.device_id = Some(device_id);
                    (Decision::Reply(ReplyBody::Challenge(reply)), subject)
                }
                Err(refusal) => (Decision::Reply(ReplyBody::Problem(problem(&refusal))), subject),
            }
        }
        Ok(Request { body: RequestBody::Certify(request), .. }) => {
            let subject = Subject { action: "certify", ek_id: None, device_id: None };
            match ProvenDevice::verify(&request, &ca.scope, &ca.ticket_key, now) {
                Ok(device) => (Decision::Certify(device), subject),
                Err(rejection) => (Decision::Reply(ReplyBody::Problem(rejection.problem())), subject),
            }
        }
        Ok(Request { body: RequestBody::Enroll(_) | RequestBody::Confirm(_) | RequestBody::Register(_), .. }) => {
            let problem = Problem::new(ProblemCode::FlowNotOffered, "it is not built yet".into());
            (Decision::Reply(ReplyBody::Problem(problem)), Subject::unread())
        }
    }
}

/// Replies go where the client's own topic leads and nowhere else, so that nobody can have one sent to somebody else.
fn response_topic_problem(ca: &Ca, job: &Job) -> Option<Problem> {
    let asked = job.response_topic.as_ref()?;
    let due = Topic::Reply(ca.scope.clone(), job.client.clone()).to_string();
    (*asked != due).then(|| Problem::new(ProblemCode::Malformed, format!("the Response Topic must be absent or {due}")))
}

fn decode_problem(error: &DecodeError) -> ProblemCode {
    match error {
        DecodeError::Oversize(_) => ProblemCode::Oversize,
        DecodeError::UnknownKind(_) => ProblemCode::Unsupported,
        DecodeError::Malformed(_) | DecodeError::NotDeterministic(_) => ProblemCode::Malformed,
    }
}

/// What a device is told of a refusal; of our own faults, nothing but that there was one.
pub(super) fn problem(refusal: &Refusal) -> Problem {
    match refusal {
        Refusal::Rejection(rejection) => rejection.problem(),
        Refusal::Fault(_) | Refusal::Store(_) => {
            error!(error = %refusal, "the CA failed");
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
        time: OffsetDateTime::now_utc().unix_timestamp(),
        client: job.client.clone(),
        action: subject.action,
        ek_id: subject.ek_id,
        device_id: subject.device_id,
        refusal,
        duration_us: job.receipt.received.elapsed().as_micros().try_into().unwrap_or(u32::MAX),
    }
}

/// One line a decision; for a certificate, once it is stored.
pub(super) fn log(entry: &AuditEntry) {
    let (ek, device) = (entry.ek_id.map(|id| id.to_string()), entry.device_id.as_ref().map(DeviceId::as_str));
    match &entry.refusal {
        Some((code, detail)) => info!(client = %entry.client, ek, device, %code, detail, "{} refused", entry.action),
        None => info!(client = %entry.client, ek, device, "{} granted", entry.action),
    }
}
