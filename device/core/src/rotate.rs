//! Rotation: the next HMAC key, at a handle of its own. The one before it stays in use, and in the
//! TPM, until a broker has accepted a token of the new one. Nothing else shows that the CA sent it:
//! whoever carries the messages can wrap a key for a TPM.

use alloc::string::ToString;

use assay_wire::{ParentBundle, ProblemCode};

use crate::certificate::check_device_id;
use crate::ek;
use crate::failure::Failure;
use crate::line::Line;
use crate::memory::{
    Attempt, Grant, HmacPublic, HmacRecord, KeyPurpose, Memory, Rotation, SharedKeyGrant,
};
use crate::policy::RENEWAL_LIMIT;
use crate::renew::passes;
use crate::run::{Provisioned, RenewalOutcome, Run, Verdict};
use crate::shared_key::{
    Received, Registrant, asking_for, is_held, key_at, parent_public, provisioned, suits,
};
use crate::step::Step;
use crate::tpm::{TpmAnswer, TpmOperation};

/// What became of the question for the next key.
enum Answer {
    /// The next key, which the TPM keeps.
    Next(SharedKeyGrant),
    /// The CA gave the key that is in use.
    NotDue(Rotation),
}

/// Rotates a good key if that is due or the request says so.
///
/// No trouble with the CA ends the run badly, unless the request was to rotate: the key in use
/// stays good. If the CA refuses, the device asks again a day later, or later if that is the
/// operator's policy. It cannot know whether the CA refused, or somebody on the way.
pub(crate) async fn keep_good(run: &Run, grant: SharedKeyGrant) -> Result<Provisioned, Failure> {
    let desk = run.desk();
    let at = grant.rotation.at;
    if !run.request.renew {
        let clock = desk.clock().await;
        if clock < at {
            desk.progress(Step::HmacKeyIsThere);
            return Ok(provisioned(&grant, true, None));
        }
    }
    match run.memory().rotated() {
        // There is no place for a third one, and this one may have come from somebody else.
        Some((_, new)) if new == grant => {
            desk.progress(Step::NotRotated("no broker has taken a token of it yet".into()));
            return Ok(provisioned(&grant, true, Some(RenewalOutcome::Postponed)));
        }
        // Somebody removed the newer key from the TPM.
        Some((_, new)) => {
            let attempt = Some(Attempt::Hmac(new.record));
            run.remember(Memory { in_use: Some(Grant::SharedKey(grant.clone())), attempt }).await;
        }
        None => {}
    }
    desk.progress(Step::Rotating(at));
    let kept = |outcome| provisioned(&grant, true, Some(outcome));
    match ask(run, &grant).await {
        Ok(answer) => Ok(take(run, &grant, answer).await),
        Err(Failure::Refused(problem)) if !passes(&problem) => {
            desk.progress(Step::NotRotated(problem.to_string()));
            let clock = desk.clock().await;
            let rotation = match problem.code {
                ProblemCode::ReprovisionRefused => Rotation::refused(clock),
                _ => Rotation::postponed(clock),
            };
            keep_until(run, &grant, rotation).await;
            Ok(kept(RenewalOutcome::Postponed))
        }
        Err(failure) if run.request.renew => Err(failure),
        Err(failure) => {
            desk.progress(Step::NotRotated(failure.to_string()));
            Ok(kept(RenewalOutcome::Postponed))
        }
    }
}

/// Begins a rotation again that was begun and not finished, because the request is to ask the CA.
/// Returns `None` if there is none to begin again.
pub(crate) async fn begin_again(run: &Run) -> Result<Option<Provisioned>, Failure> {
    let Memory { in_use: Some(Grant::SharedKey(old)), attempt: Some(attempt) } = run.memory()
    else {
        return Ok(None);
    };
    let (Attempt::Hmac(record) | Attempt::Rotated(SharedKeyGrant { record, .. })) = attempt else {
        return Ok(None);
    };
    let is_of_a_rotation = record.first_handle == old.record.first_handle
        && record.hmac_handle != old.record.hmac_handle
        && !record.keys.is_empty();
    if !is_of_a_rotation || !suits(&run.request, &old) || !is_held(run, &old).await? {
        return Ok(None);
    }
    let in_use = Some(Grant::SharedKey(old.clone()));
    run.remember(Memory { in_use, attempt: Some(Attempt::Hmac(record)) }).await;
    let answer = ask(run, &old).await?;
    Ok(Some(take(run, &old, answer).await))
}

/// Remembers what the CA gave.
async fn take(run: &Run, old: &SharedKeyGrant, answer: Answer) -> Provisioned {
    match answer {
        Answer::Next(next) => {
            let attempt = Some(Attempt::Rotated(next.clone()));
            run.remember(Memory { attempt, ..run.memory() }).await;
            provisioned(&next, false, Some(RenewalOutcome::Rotated))
        }
        Answer::NotDue(rotation) => {
            run.desk().progress(Step::RotationNotDue(rotation.at));
            keep_until(run, old, rotation).await;
            provisioned(old, true, Some(RenewalOutcome::NotDue))
        }
    }
}

/// Asks for the next key, and has the TPM keep it at a handle of its own.
async fn ask(run: &Run, old: &SharedKeyGrant) -> Result<Answer, Failure> {
    let desk = run.desk();
    let limit = desk.now().saturating_add(RENEWAL_LIMIT);
    let insists = run.request.renew || run.request.again;
    let line = Line {
        desk: desk.clone(),
        scope: run.request.scope.clone(),
        end: if insists { run.line.end } else { run.line.end.min(limit) },
    };
    let given = run.request.ek_certificates.as_ref();
    let shown = old.record.shown.clone();
    let Some((ek_public, ek_certificates)) = ek::evidence(desk, &shown, given).await? else {
        return Err(Failure::Unsupported(shown.ek.to_string()));
    };
    // As at the first time, a request has to name a plain storage root key.
    let parent = run.request.parent.unwrap_or_else(|| old.record.parent.import_parent());
    let parent_public = parent_public(run, parent).await?;
    let (hmac_handle, own) = place(run, old).await?;
    line.begin_to_connect().await;
    let keys = own.iter().cloned().collect();
    let first_handle = old.record.first_handle;
    let ek = shown.ek;
    let record = HmacRecord { shown, parent, hmac_handle, first_handle, keys };
    run.remember(asking_for(&run.memory(), &record)).await;
    desk.progress(Step::Parent(parent));
    let registrant = Registrant {
        bundle: ParentBundle {
            device_id: run.request.device_id.clone(),
            ek_public,
            ek_certificates,
            parent_public: parent_public.try_into()?,
            other_eks: None,
        },
        ek,
        replaced: own.map(|HmacPublic(public)| public),
        record,
    };
    let answer = line.insist(async || {
        let received = registrant.receive(run, &line).await?;
        // Who asks again may have another name by now.
        if !run.request.again {
            check_device_id(&old.device_id, &received.device_id)?;
        }
        let Received { key, rotation, .. } = &received;
        if old.record.keys == [HmacPublic(key.public.clone())] {
            return Ok(Answer::NotDue(*rotation));
        }
        Ok(Answer::Next(registrant.keep(run, received).await?))
    });
    answer.await
}

/// Where the next key is to be kept, and the device's own key that is there. An earlier attempt may
/// have left one.
async fn place(run: &Run, old: &SharedKeyGrant) -> Result<(u32, Option<HmacPublic>), Failure> {
    let memory = run.memory();
    let in_use = old.record.hmac_handle;
    if let Some(Attempt::Hmac(HmacRecord { hmac_handle, .. })) = memory.attempt
        && hmac_handle != in_use
    {
        match key_at(run, hmac_handle).await {
            Ok(None) => return Ok((hmac_handle, None)),
            Ok(Some(found)) if memory.knows(&found) => return Ok((hmac_handle, Some(found))),
            // Somebody else has put something there meanwhile.
            Ok(Some(_)) | Err(_) => {}
        }
    }
    // It is not that of the key in use, because the TPM holds that one.
    let operation = TpmOperation::FreeHandle { first: old.record.first_handle };
    let handle = run.desk().tpm(operation, |answer| match answer {
        TpmAnswer::FreeHandle(handle) => Some(handle),
        _ => None,
    });
    Ok((handle.await?, None))
}

/// Settles which of two keys stays, if the request says what a broker said to the newer one.
///
/// One that is refused stays in the TPM, and is remembered: somebody else may have refused it.
pub(crate) async fn settle(run: &Run) -> Option<Provisioned> {
    let verdict = run.request.broker_said?;
    let (old, new) = run.memory().rotated()?;
    match verdict {
        Verdict::Accepted => {
            finish(run).await;
            Some(provisioned(&new, true, None))
        }
        Verdict::Refused => {
            let reason = "the broker does not take a token of the next one";
            run.desk().progress(Step::NotRotated(reason.into()));
            let rotation = Rotation::postponed(run.desk().clock().await);
            let old = SharedKeyGrant { rotation, ..old };
            let (in_use, attempt) = (Grant::SharedKey(old.clone()), Attempt::Hmac(new.record));
            run.remember(Memory { in_use: Some(in_use), attempt: Some(attempt) }).await;
            Some(provisioned(&old, true, Some(RenewalOutcome::Postponed)))
        }
    }
}

/// The newer key is in use. The one before it is removed first: a run that follows a stop in
/// between finds the newer one stored, and goes on here.
async fn finish(run: &Run) {
    let Some((old, new)) = run.memory().rotated() else { return };
    let handle = old.record.hmac_handle;
    let mut is_gone = true;
    for HmacPublic(public) in old.record.keys {
        let operation = TpmOperation::RemoveKey { handle, public };
        let removed =
            run.desk().tpm(operation, |answer| (answer == TpmAnswer::Removed).then_some(()));
        is_gone &= removed.await.is_ok();
    }
    if is_gone {
        run.desk().progress(Step::KeyRemoved(handle));
    }
    // If the TPM does not remove it, it is told of as one that is left there.
    let removed = is_gone.then_some((KeyPurpose::Hmac, handle));
    let next = Memory { in_use: Some(Grant::SharedKey(new)), attempt: None };
    run.remember_without(next, removed).await;
}

/// The key in use stays, and is to be rotated then.
async fn keep_until(run: &Run, grant: &SharedKeyGrant, rotation: Rotation) {
    let in_use = Some(Grant::SharedKey(SharedKeyGrant { rotation, ..grant.clone() }));
    let (attempt, free) = match run.memory().attempt {
        Some(Attempt::Hmac(record)) if record.keys.is_empty() => (None, Some(record.hmac_handle)),
        // An earlier attempt left a key, which the next one replaces.
        attempt => (attempt, None),
    };
    let free = free.map(|handle| (KeyPurpose::Hmac, handle));
    run.remember_without(Memory { in_use, attempt }, free).await;
}

impl Memory {
    /// The HMAC key in use, and the one that is to take its place.
    fn rotated(&self) -> Option<(SharedKeyGrant, SharedKeyGrant)> {
        match (&self.in_use, &self.attempt) {
            (Some(Grant::SharedKey(old)), Some(Attempt::Rotated(new))) => {
                Some((old.clone(), new.clone()))
            }
            _ => None,
        }
    }
}
