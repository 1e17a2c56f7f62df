//! Renewal: one round trip and an adoption. The identity key signs both statements, and the TPM
//! does not use the EK.

use alloc::string::ToString;
use alloc::vec::Vec;

use assay_wire::{
    Adoption, Bytes, CertificateList, EkId, EkPublic, MAX_SIGNATURE, Problem, ProblemCode, Renewal,
    ReplyBody, RequestBody,
};

use crate::answer::AnswerError;
use crate::certificate::{DeviceCertificate, check_device_id};
use crate::ek;
use crate::failure::Failure;
use crate::granted::{self, Granted, IdentityKey, provisioned};
use crate::line::{Ended, Line};
use crate::memory::{CertificateGrant, Grant, Memory};
use crate::policy::RENEWAL_LIMIT;
use crate::run::{Provisioned, RenewalOutcome, Run};
use crate::step::Step;
use crate::tpm::{TpmAnswer, TpmOperation};

/// Renews a good certificate if that is due or the request says so, and finishes an adoption that
/// was left. Returns `None` if the CA refused for good: then the device has to prove its TPM anew.
///
/// As long as the device has a certificate that is good, no trouble with the CA ends the run badly,
/// unless the request was to renew: not here, nor in the flow after a refusal.
pub(crate) async fn keep_good(
    run: &Run,
    granted: Granted,
    key: IdentityKey,
) -> Result<Option<Provisioned>, Failure> {
    let desk = run.desk();
    let Granted { grant, certificate, is_renewed } = granted;
    if is_renewed {
        desk.progress(Step::NotAdopted);
    } else if run.request.renew || certificate.renew_at <= desk.clock().await {
        desk.progress(Step::Renewing(certificate.renew_at));
    } else {
        desk.progress(Step::CertificateIsGood);
        return Ok(Some(provisioned(&grant.record, certificate, true, None)));
    }

    let stored = is_renewed.then(|| (grant.clone(), certificate.clone()));
    let (outcome, stored) = renew(run, &grant, &certificate, key, stored).await;
    let is_stored = stored.is_some();
    let (grant, certificate) = stored.unwrap_or((grant, certificate));
    let kept = |certificate, outcome| provisioned(&grant.record, certificate, true, Some(outcome));
    match outcome {
        Ok(Answer::Adopted) => {
            let in_use = Some(Grant::Certificate(grant.clone()));
            run.remember(Memory { in_use, attempt: None }).await;
            let outcome = Some(RenewalOutcome::Renewed);
            Ok(Some(provisioned(&grant.record, certificate, false, outcome)))
        }
        Ok(Answer::NotDue(certificate)) => Ok(Some(kept(certificate, RenewalOutcome::NotDue))),
        Ok(Answer::OtherEk) => Ok(None),
        Err(Failure::Refused(problem)) if !passes(&problem) => {
            desk.progress(Step::RenewalRefused(problem.to_string()));
            if is_stored {
                run.renew_soon();
            }
            if !run.request.renew {
                run.keep(kept(certificate, RenewalOutcome::Postponed));
            }
            Ok(None)
        }
        // A device whose TPM does not sign cannot sign in either.
        Err(failure @ Failure::Tpm(_)) => Err(failure),
        Err(failure) if run.request.renew => Err(failure),
        Err(failure) => {
            desk.progress(Step::RenewalPostponed(failure.to_string()));
            Ok(Some(kept(certificate, RenewalOutcome::Postponed)))
        }
    }
}

enum Answer {
    /// The CA knows that the renewed certificate is stored.
    Adopted,
    /// The CA gave the certificate that it is to renew.
    NotDue(DeviceCertificate),
    /// The TPM has another EK than the one that the certificate was granted for.
    OtherEk,
}

/// A renewed certificate that is stored, and verified.
type Stored = (CertificateGrant, DeviceCertificate);

/// Asks for a new certificate, unless one is stored, and adopts it. Also returns which one is
/// stored then, however it ends.
async fn renew(
    run: &Run,
    grant: &CertificateGrant,
    certificate: &DeviceCertificate,
    key: IdentityKey,
    mut stored: Option<Stored>,
) -> (Result<Answer, Failure>, Option<Stored>) {
    let desk = run.desk();
    let limit = desk.now().saturating_add(RENEWAL_LIMIT);
    let line = Line {
        desk: desk.clone(),
        scope: run.request.scope.clone(),
        end: if run.request.renew { run.line.end } else { run.line.end.min(limit) },
    };
    let given = run.request.ek_certificates.as_ref();
    let ek = match &stored {
        Some(_) => None,
        None => match ek::evidence(desk, &grant.record.shown, given).await {
            Ok(Some(ek)) => Some(ek),
            Ok(None) => return (Ok(Answer::OtherEk), None),
            Err(failure) => return (Err(failure), None),
        },
    };
    let old = ek.map(|ek| Old { grant, certificate, ek });
    line.begin_to_connect().await;
    let outcome = line.insist(async || {
        let renewed = match (stored.take(), &old) {
            (None, Some(old)) => match ask(run, &line, old, key).await? {
                Reply::NotDue(certificate) => return Ok(Answer::NotDue(certificate)),
                Reply::Renewed(certificate) => {
                    let grant = granted::grant(grant.record.clone(), &certificate, None);
                    run.remember(run.memory().with_renewed(grant.clone())).await;
                    Some((grant, certificate))
                }
            },
            (stored, _) => stored,
        };
        stored = renewed.clone();
        if let Some((grant, certificate)) = &renewed {
            adopt(run, &line, grant.record.shown.ek_id, certificate, key).await?;
        }
        Ok(Answer::Adopted)
    });
    let outcome = outcome.await;
    (outcome, stored)
}

/// The certificate to renew.
struct Old<'a> {
    grant: &'a CertificateGrant,
    certificate: &'a DeviceCertificate,
    /// The EK that it was granted for, as a request has it.
    ek: (EkPublic, CertificateList<0>),
}

enum Reply {
    Renewed(DeviceCertificate),
    NotDue(DeviceCertificate),
}

async fn ask(run: &Run, line: &Line, old: &Old<'_>, key: IdentityKey) -> Result<Reply, Ended> {
    let Old { grant, certificate: old, ek: (ek_public, ek_certificates) } = old;
    let certificate = run.desk().digest(&old.chain[0]).await;
    let time = run.desk().clock().await;
    let signature = sign(run, key, Renewal::signed(&old.scope, &certificate, time)).await?;
    let (ek_public, ek_certificates) = (ek_public.clone(), ek_certificates.clone());
    let request = Renewal { ek_public, ek_certificates, certificate, time, signature };
    let reply = match line.ask(RequestBody::Renew(request)).await? {
        ReplyBody::Certificate(reply) => reply,
        other => return Err(as_refusal(Ended::out_of_turn("certificate", other))),
    };
    granted::pin(run, reply.new_root).await;
    let chain = granted::der(&reply.chain);
    if chain[0] == old.chain[0] {
        let same = (*old).clone().advised(reply.renew_at);
        run.desk().progress(Step::NotDue(same.renew_at));
        if grant.renew_at != reply.renew_at {
            let grant = CertificateGrant { renew_at: reply.renew_at, ..(*grant).clone() };
            let in_use = Some(Grant::Certificate(grant));
            run.remember(Memory { in_use, ..run.memory() }).await;
        }
        run.keep_configuration(reply.configuration, &same).await;
        return Ok(Reply::NotDue(same));
    }
    let certificate = granted::verify(run, chain, reply.renew_at, &key.id).await?;
    check_device_id(&old.device_id, &certificate.device_id)?;
    // Whoever carries the messages may answer with an earlier certificate for the same key. The CA
    // may have superseded that one.
    let (not_before, in_use) = (certificate.validity.0, old.validity.0);
    if not_before <= in_use {
        return Err(AnswerError::NotNewer { not_before, in_use }.into());
    }
    run.desk().progress(Step::CertificateReceived(certificate.serial.clone()));
    run.keep_configuration(reply.configuration, &certificate).await;
    Ok(Reply::Renewed(certificate))
}

pub(crate) async fn adopt(
    run: &Run,
    line: &Line,
    ek_id: EkId,
    renewed: &DeviceCertificate,
    key: IdentityKey,
) -> Result<(), Ended> {
    let certificate = run.desk().digest(&renewed.chain[0]).await;
    let time = run.desk().clock().await;
    let signature = sign(run, key, Adoption::signed(&renewed.scope, &certificate, time)).await?;
    match line.ask(RequestBody::Adopt(Adoption { certificate, time, signature, ek_id })).await? {
        ReplyBody::Adopted => {}
        other => return Err(as_refusal(Ended::out_of_turn("adoption", other))),
    }
    run.desk().progress(Step::CertificateAdopted(renewed.serial.clone()));
    Ok(())
}

async fn sign(
    run: &Run,
    key: IdentityKey,
    message: Vec<u8>,
) -> Result<Bytes<MAX_SIGNATURE>, Failure> {
    let operation = TpmOperation::Sign { kind: key.kind, handle: key.handle, message };
    let signature = run.desk().tpm(operation, |answer| match answer {
        TpmAnswer::Signature(signature) => Some(signature),
        _ => None,
    });
    Ok(signature.await?.try_into()?)
}

/// Whether a refusal passes by itself, so that no flow would help: the device comes again.
pub(crate) fn passes(problem: &Problem) -> bool {
    problem.retry_after.is_some() || problem.code == ProblemCode::ClockOff
}

/// Every problem that does not pass by itself is a refusal. A flow would begin again after some of
/// them, but here that would only repeat the request.
fn as_refusal(ended: Ended) -> Ended {
    match ended {
        Ended::Problem(problem)
            if !matches!(problem.code, ProblemCode::Busy | ProblemCode::Internal) =>
        {
            Ended::Failed(Failure::Refused(problem))
        }
        ended => ended,
    }
}
