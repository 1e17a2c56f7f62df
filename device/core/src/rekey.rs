//! Rekey: a certificate for another identity key, by ticket. The one in use stays good until the
//! new one is adopted or used, and its key stays in the TPM as long.

use assay_wire::RequestBody;

use crate::answer::AnswerError;
use crate::certificate::{DeviceCertificate, check_device_id};
use crate::failure::Failure;
use crate::granted::{IdentityKey, provisioned, verify};
use crate::identity::{Applicant, bundle, create_identity_key, identity_key};
use crate::line::Line;
use crate::memory::{Attempt, CertificateGrant, Grant, IdentityRecord, KeyPurpose, Memory};
use crate::policy::RENEWAL_LIMIT;
use crate::renew::{adopt, passes};
use crate::run::{DEFAULT_IK_HANDLE, Provisioned, RenewalOutcome, Run};
use crate::step::Step;
use crate::ticket;
use crate::tpm::{KeyPublic, TpmAnswer, TpmOperation};

/// Finishes a rekey that an earlier run left: the certificate is stored, and the CA is to hear of
/// it. Returns `None` if there is nothing to finish or to verify it with, if the CA refused for
/// good, or if the request asks for more.
///
/// After a refusal the device goes on with what is in use. The new key stays in the TPM, and is
/// remembered: somebody else may have refused, and the CA may still hear of the adoption.
pub(crate) async fn settle(run: &Run) -> Result<Option<Provisioned>, Failure> {
    let (memory, request) = (run.memory(), &run.request);
    let Some((_, new)) = memory.rekeyed() else { return Ok(None) };
    let record = &new.record;
    if record.shown.scope != request.scope {
        return Ok(None);
    }
    let key = find(run, record).await?;
    let Some(key) = key else {
        give_up(run, record).await;
        return Ok(None);
    };
    let certificate = match verify(run, new.chain.clone(), new.renew_at, &key.id).await {
        Ok(certificate) => certificate,
        Err(AnswerError::OtherKey | AnswerError::Expired { .. }) => {
            give_up(run, record).await;
            return Ok(None);
        }
        // The clock is wrong, and will be right again.
        Err(error @ AnswerError::NotYetValid { .. }) => return Err(error.into()),
        // This run was told another root or another device id.
        Err(_) => return Ok(None),
    };
    run.desk().progress(Step::NotAdopted);
    let insists = request.renew || request.again || request.rekey;
    let limit = run.desk().now().saturating_add(RENEWAL_LIMIT);
    let line = Line {
        desk: run.desk().clone(),
        scope: request.scope.clone(),
        end: if insists { run.line.end } else { run.line.end.min(limit) },
    };
    line.begin_to_connect().await;
    let key = IdentityKey { kind: record.ik, handle: record.ik_handle, id: key.id };
    let ek_id = record.shown.ek_id;
    match line.insist(async || adopt(run, &line, ek_id, &certificate, key).await).await {
        Ok(()) => {
            finish(run).await;
            let suits = request.ik.is_none_or(|wanted| wanted == record.ik);
            let is_enough = !request.again && (suits || !request.rekey);
            Ok(is_enough.then(|| rekeyed(record, certificate)))
        }
        Err(Failure::Refused(problem)) if !passes(&problem) => {
            run.desk().progress(Step::RekeyRefused(alloc::format!("{problem}")));
            give_up(run, record).await;
            Ok(None)
        }
        Err(failure @ Failure::Tpm(_)) => Err(failure),
        Err(failure) if insists => Err(failure),
        Err(failure) => {
            run.desk().progress(Step::RenewalPostponed(alloc::format!("{failure}")));
            Ok(Some(provisioned(record, certificate, true, Some(RenewalOutcome::Postponed))))
        }
    }
}

/// Makes another identity key, gets a certificate for it, adopts that, and forgets the key that was
/// in use. Returns `None` if the device has no certificate.
pub(crate) async fn rekey(run: &Run) -> Result<Option<Provisioned>, Failure> {
    let memory = run.memory();
    let Some(Grant::Certificate(before)) = memory.credentials().next() else { return Ok(None) };
    // It may have expired, or the TPM may be another one. The rekey does not depend on it.
    let old = match find(run, &before.record).await? {
        Some(key) => verify(run, before.chain.clone(), before.renew_at, &key.id).await.ok(),
        None => None,
    };
    let begun = match memory.attempt {
        Some(Attempt::Rekey(record)) => Some(record),
        _ => None,
    };
    let of_begun = begun.as_ref().map(|record| record.ik);
    let ik = run.request.ik.or(of_begun).unwrap_or(before.record.ik);
    let (ek, shown) = run.find_ek(None).await?;
    let record = match begun {
        // The CA may have certified the key that an earlier run made, and gives that again.
        Some(record) if record.ik == ik && record.shown == shown => record,
        begun => {
            // Somebody wants another kind of key now. Nobody has signed in with this one.
            if let Some(record) = begun
                && let Some(key) = find(run, &record).await?
            {
                remove(run, record.ik_handle, key).await;
            }
            let ik_handle = free_handle(run, before.record.ik_handle).await?;
            IdentityRecord { shown, flow: before.record.flow, ik, ik_handle }
        }
    };
    run.line.begin_to_connect().await;
    run.remember(run.memory().attempting(Attempt::Rekey(record.clone()))).await;
    let found = find(run, &record).await?;
    let is_new = found.is_none();
    let key = match found {
        Some(key) => key,
        None => create_identity_key(run.desk(), ik, record.ik_handle).await?,
    };
    run.desk().progress(Step::IdentityKey { kind: ik, handle: record.ik_handle, is_new });
    let bundle = bundle(run, &ek, &key, &record).await?;
    run.desk().progress(Step::RequestSigned);
    let identity = IdentityKey { kind: ik, handle: record.ik_handle, id: key.id };
    let (ek, ek_id) = (ek.kind, ek.key.id);
    let applicant = Applicant { bundle, ek, ek_id, ik: key, record, pending: None };

    let mut stored: Option<DeviceCertificate> = None;
    let outcome = run.line.insist(async || {
        let certificate = match stored.clone() {
            Some(certificate) => certificate,
            None => {
                let certificate = ticket::certify(run, &applicant, RequestBody::Rekey).await?;
                if let Some(old) = &old {
                    check_device_id(&old.device_id, &certificate.device_id)?;
                }
                let grant = applicant.grant(&certificate, None);
                run.remember(run.memory().with_renewed(grant)).await;
                stored.insert(certificate).clone()
            }
        };
        adopt(run, &run.line, ek_id, &certificate, identity).await?;
        Ok(certificate)
    });
    match outcome.await {
        Ok(certificate) => {
            finish(run).await;
            Ok(Some(rekeyed(&applicant.record, certificate)))
        }
        Err(Failure::Refused(problem)) => {
            if stored.is_some() && !passes(&problem) {
                give_up(run, &applicant.record).await;
            }
            Err(Failure::Refused(problem))
        }
        Err(failure) => Err(failure),
    }
}

fn rekeyed(record: &IdentityRecord, certificate: DeviceCertificate) -> Provisioned {
    provisioned(record, certificate, false, Some(RenewalOutcome::Rekeyed))
}

/// The new certificate is in use. The key before it is removed first, if it is the one of the
/// certificate before: a run that follows a stop in between finds the new one stored, adopts it
/// again, and goes on here.
async fn finish(run: &Run) {
    let memory = run.memory();
    let Some((old, new)) = memory.rekeyed() else { return };
    let mut removed = None;
    if old.record.ik_handle != new.record.ik_handle
        && let Ok(found) = find(run, &old.record).await
    {
        let handle = old.record.ik_handle;
        let is_gone = match found {
            None => true,
            Some(key) => {
                let chain = old.chain.clone();
                let is_of_it = verify(run, chain, old.renew_at, &key.id).await.is_ok();
                is_of_it && remove(run, handle, key).await
            }
        };
        removed = is_gone.then_some((KeyPurpose::Identity, handle));
    }
    let next = Memory { in_use: Some(Grant::Certificate(new.clone())), attempt: None };
    run.remember_without(next, removed).await;
}

/// Whether the key is gone. If the TPM does not remove it, it is told of as one that is left there.
async fn remove(run: &Run, handle: u32, key: KeyPublic) -> bool {
    let operation = TpmOperation::RemoveKey { handle, public: key.public };
    let removed = run.desk().tpm(operation, |answer| (answer == TpmAnswer::Removed).then_some(()));
    let is_removed = removed.await.is_ok();
    if is_removed {
        run.desk().progress(Step::KeyRemoved(handle));
    }
    is_removed
}

/// From now on the device signs in with what is in use. It remembers the other key.
async fn give_up(run: &Run, record: &IdentityRecord) {
    let Memory { in_use, .. } = run.memory();
    run.remember(Memory { in_use, attempt: Some(Attempt::Rekey(record.clone())) }).await;
}

async fn find(run: &Run, record: &IdentityRecord) -> Result<Option<KeyPublic>, Failure> {
    let operation = TpmOperation::IdentityKey { kind: record.ik, handle: record.ik_handle };
    Ok(run.desk().tpm(operation, identity_key).await?)
}

/// A free handle. Not that of the key in use, which may be free because the TPM was cleared: by
/// their handles the two keys are told apart.
async fn free_handle(run: &Run, in_use: u32) -> Result<u32, Failure> {
    let mut first = DEFAULT_IK_HANDLE;
    loop {
        let operation = TpmOperation::FreeHandle { first };
        let handle = run.desk().tpm(operation, |answer| match answer {
            TpmAnswer::FreeHandle(handle) => Some(handle),
            _ => None,
        });
        match handle.await? {
            handle if handle == in_use => first = in_use + 1,
            handle => return Ok(handle),
        }
    }
}

impl Memory {
    /// The certificate in use, and one for another key that is to take its place and is not
    /// adopted.
    fn rekeyed(&self) -> Option<(&CertificateGrant, &CertificateGrant)> {
        match (&self.in_use, &self.attempt) {
            (Some(Grant::Certificate(old)), Some(Attempt::Renewed(new)))
                if !new.record.is_of_the_key_of(&old.record) =>
            {
                Some((old, new))
            }
            _ => None,
        }
    }
}
