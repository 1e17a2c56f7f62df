//! Certifies and records, one transaction for as many requests as are waiting.

use std::time::Duration;

use assay_ca_core::ProvenDevice;
use assay_wire::{CertificateReply, ReplyBody, RequestId, Topic};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use time::OffsetDateTime;
use tracing::error;

use super::examiner::{Subject, audit_entry, log, problem};
use super::{Job, Outbox, internal};
use crate::ca::{Ca, Refusal};
use crate::store::{AuditEntry, Store, StoreError, Transaction};

/// Something to be written.
pub(super) enum Write {
    Audit(AuditEntry),
    Certify(Box<Certify>),
}

/// A device that has proven itself and waits for its certificate.
pub(super) struct Certify {
    pub(super) job: Job,
    pub(super) id: RequestId,
    pub(super) device: ProvenDevice,
}

/// Writes until every examiner is gone.
pub(super) fn run(ca: &Ca, mut store: Store, writes: &Receiver<Write>, outbox: &Outbox) {
    let mut audits = Vec::new();
    loop {
        let first = match writes.recv_timeout(AUDIT_DELAY) {
            Ok(write) => Some(write),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let idle = first.is_none();
        let mut waiting = Vec::new();
        for write in first.into_iter().chain(writes.try_iter().take(BATCH)) {
            match write {
                Write::Audit(entry) => audits.push(entry),
                Write::Certify(certify) => waiting.push(*certify),
            }
        }
        if !waiting.is_empty() || audits.len() >= BATCH || (idle && !audits.is_empty()) {
            commit(ca, &mut store, waiting, std::mem::take(&mut audits), outbox);
        }
    }
    commit(ca, &mut store, Vec::new(), audits, outbox);
}

/// One transaction, and only then the replies. If it fails, nothing of it happened and every device is told to try again.
fn commit(ca: &Ca, store: &mut Store, waiting: Vec<Certify>, audits: Vec<AuditEntry>, outbox: &Outbox) {
    let (envelopes, devices): (Vec<_>, Vec<_>) =
        waiting.into_iter().map(|certify| ((certify.job, certify.id), certify.device)).unzip();
    let answers = store.transaction(|transaction| {
        let answers = devices
            .into_iter()
            .zip(&envelopes)
            .map(|(device, (job, _))| answer(ca, transaction, device, job))
            .collect::<Result<Vec<_>, _>>()?;
        for entry in &audits {
            transaction.audit(entry)?;
        }
        Ok(answers)
    });
    match answers {
        Ok(answers) => {
            for ((job, id), (answer, audit)) in envelopes.into_iter().zip(answers) {
                log(&audit);
                if let ReplyBody::Certificate(reply) = &answer {
                    outbox.event(Topic::Event(ca.scope.clone(), reply.device_id.clone()), event(reply));
                }
                outbox.reply(job, id, answer);
            }
        }
        Err(error) => {
            error!(%error, "a batch could not be written");
            for (job, id) in envelopes {
                outbox.reply(job, id, ReplyBody::Problem(internal()));
            }
        }
    }
}

fn answer(
    ca: &Ca,
    transaction: &Transaction<'_>,
    device: ProvenDevice,
    job: &Job,
) -> Result<(ReplyBody, AuditEntry), StoreError> {
    let subject =
        Subject { action: "certify", ek_id: Some(device.ek_id()), device_id: Some(device.device_id().clone()) };
    let answer = match ca.certify(transaction, device, OffsetDateTime::now_utc()) {
        Ok(reply) => ReplyBody::Certificate(reply),
        // What the store half did must not be committed, so this ends the transaction.
        Err(Refusal::Store(error)) => return Err(error),
        Err(refusal) => ReplyBody::Problem(problem(&refusal)),
    };
    let audit = audit_entry(job, subject, &answer);
    transaction.audit(&audit)?;
    Ok((answer, audit))
}

/// What operators hear of a certificate.
fn event(reply: &CertificateReply) -> Vec<u8> {
    serde_json::json!({ "event": "certified", "device_id": reply.device_id.as_str() }).to_string().into_bytes()
}

/// Requests in one transaction: past this, a longer batch gains nothing and only delays the first in it.
const BATCH: usize = 256;
/// How long a refusal may wait for company before it is written; certificates never wait.
const AUDIT_DELAY: Duration = Duration::from_millis(100);
