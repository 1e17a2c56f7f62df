//! Decides what must be recorded, and records it: one transaction for as many requests as are
//! waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_ca_core::tpm::template::ParentArea;
use assay_ca_core::{BoundKey, Confirmation, ProvenDevice};
use assay_wire::{DeviceId, ReplyBody, RequestId, Topic};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use time::OffsetDateTime;
use tracing::{error, info};

use super::examiner::{Subject, audit_entry, problem};
use super::{DecisionLog, Job, Outbox, Pulse, internal};
use crate::ca::{Applicant, Ca, Refusal};
use assay_store::Change;
use assay_store::{AuditEntry, Store, StoreError, Transaction, Whom};

/// Something to be written.
pub(super) enum Write {
    Audit(AuditEntry),
    Request(Box<Pending>),
    Pulse(Pulse),
}

/// A request that was examined and waits for its transaction.
pub(super) struct Pending {
    /// What it was examined with.
    pub(super) ca: Arc<Ca>,
    pub(super) job: Job,
    pub(super) id: RequestId,
    pub(super) task: Box<Task>,
}

/// What is left to decide.
pub(super) enum Task {
    Certify(ProvenDevice),
    Enroll(Applicant<BoundKey>),
    Confirm(Confirmation),
    Register(Applicant<ParentArea>),
}

impl Task {
    fn subject(&self) -> Subject {
        let (action, ek_id, device) = match self {
            Self::Certify(device) => {
                ("certify", device.ek_id(), Some(Whom::Proven(device.device_id().clone())))
            }
            Self::Enroll(applicant) => ("enroll", applicant.ek_id(), None),
            Self::Confirm(confirmation) => ("confirm", confirmation.ek_id(), None),
            Self::Register(applicant) => ("register", applicant.ek_id(), None),
        };
        Subject { action, ek_id: Some(ek_id), device, change: Change::None }
    }
}

/// Writes until every examiner is gone.
pub(super) fn run(mut store: Store, writes: &Receiver<Write>, outbox: &Outbox, log: &DecisionLog) {
    let mut audits = Vec::new();
    let mut looked = Instant::now();
    loop {
        let first = match writes.recv_timeout(AUDIT_DELAY) {
            Ok(write) => Some(write),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let idle = first.is_none();
        let (mut waiting, mut pulses) = (Vec::new(), Vec::new());
        for write in first.into_iter().chain(writes.try_iter().take(BATCH)) {
            match write {
                Write::Audit(entry) => audits.push(entry),
                Write::Request(pending) => waiting.push(*pending),
                Write::Pulse(pulse) => pulses.push(pulse),
            }
        }
        if !waiting.is_empty() || audits.len() >= BATCH || (idle && !audits.is_empty()) {
            commit(&mut store, waiting, std::mem::take(&mut audits), outbox, log);
        }
        pulses.into_iter().for_each(Pulse::end);
        if looked.elapsed() >= OVERDUE_POLL {
            looked = Instant::now();
            log.tell_left_out();
            if let Err(error) = prune(&mut store) {
                error!(%error, "unconfirmed certificates could not be revoked, nor expired ones be forgotten");
            }
        }
    }
    commit(&mut store, Vec::new(), audits, outbox, log);
    log.tell_left_out();
}

/// One transaction, and only then the replies. If it fails, nothing of it happened and every device
/// is told to try again.
fn commit(
    store: &mut Store,
    waiting: Vec<Pending>,
    audits: Vec<AuditEntry>,
    outbox: &Outbox,
    log: &DecisionLog,
) {
    let (envelopes, tasks): (Vec<_>, Vec<_>) =
        waiting.into_iter().map(|Pending { ca, job, id, task }| ((job, id), (ca, task))).unzip();
    let answers = store.transaction(|transaction| {
        let answers = tasks
            .into_iter()
            .zip(&envelopes)
            .map(|((ca, task), (job, _))| answer(&ca, transaction, *task, job, log))
            .collect::<Result<Vec<_>, _>>()?;
        for entry in &audits {
            transaction.audit(entry)?;
        }
        Ok(answers)
    });
    match answers {
        Ok(answers) => {
            for ((job, id), (answer, audit)) in envelopes.into_iter().zip(answers) {
                log.decision(&audit);
                // A sealed certificate's subject is nobody's business, so there is no event for
                // one.
                if let (ReplyBody::Certificate(_), Some(device_id)) = (&answer, audit.proven()) {
                    outbox.event(
                        Topic::Event(outbox.scope.clone(), device_id.clone()),
                        event(device_id),
                    );
                }
                outbox.reply(job, id, answer);
            }
        }
        Err(error) => {
            log.fault("a batch could not be written", &error);
            for (job, id) in envelopes {
                outbox.reply(job, id, ReplyBody::Problem(internal()));
            }
        }
    }
}

fn answer(
    ca: &Ca,
    transaction: &Transaction<'_>,
    task: Task,
    job: &Job,
    log: &DecisionLog,
) -> Result<(ReplyBody, AuditEntry), StoreError> {
    let mut subject = task.subject();
    let answer = match perform(ca, transaction, task, &mut subject) {
        Ok(reply) => reply,
        // What the store half did must not be committed, so this ends the transaction.
        Err(Refusal::Store(error)) => return Err(error),
        Err(refusal) => ReplyBody::Problem(problem(&refusal, log)),
    };
    let audit = audit_entry(job, subject, &answer);
    transaction.audit(&audit)?;
    Ok((answer, audit))
}

fn perform(
    ca: &Ca,
    transaction: &Transaction<'_>,
    task: Task,
    subject: &mut Subject,
) -> Result<ReplyBody, Refusal> {
    let now = OffsetDateTime::now_utc();
    match task {
        Task::Certify(device) => {
            let (reply, change) = ca.certify(transaction, device, now)?;
            subject.change = change;
            Ok(ReplyBody::Certificate(reply))
        }
        Task::Enroll(applicant) => {
            let (reply, device_id) = ca.enroll(transaction, applicant, now)?;
            subject.device = Some(Whom::Due(device_id));
            Ok(ReplyBody::Sealed(reply))
        }
        Task::Confirm(confirmation) => {
            let (reply, device_id, change) = ca.confirm(transaction, confirmation, now)?;
            (subject.device, subject.change) = (Some(Whom::Proven(device_id)), change);
            Ok(ReplyBody::Confirmed(reply))
        }
        Task::Register(applicant) => {
            let reply = ca.register(transaction, applicant, now)?;
            subject.device = Some(Whom::Due(reply.device_id.clone()));
            Ok(ReplyBody::Activation(reply))
        }
    }
}

fn prune(store: &mut Store) -> Result<(), StoreError> {
    let now = OffsetDateTime::now_utc();
    if store.has_overdue_confirmations(now)? {
        let count = store.transaction(|transaction| transaction.revoke_unconfirmed(now))?;
        info!(count, "revoked what was not confirmed in time");
    }
    if store.has_what_to_prune(now)? {
        store.transaction(|transaction| transaction.prune_expired(now))?;
    }
    Ok(())
}

/// What operators hear of a certificate.
fn event(device_id: &DeviceId) -> Vec<u8> {
    serde_json::json!({ "event": "certified", "device_id": device_id.as_str() })
        .to_string()
        .into_bytes()
}

/// Requests in one transaction: past this, a longer batch gains nothing and only delays the first
/// in it.
const BATCH: usize = 256;
/// How long a refusal may wait for company before it is written; certificates never wait.
const AUDIT_DELAY: Duration = Duration::from_millis(100);
/// How late a certificate is revoked that nobody confirmed. Until then it is refused all the same,
/// for its time is looked at.
const OVERDUE_POLL: Duration = Duration::from_secs(1);
