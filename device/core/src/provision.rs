//! A whole run: which flow, and which EK if the CA refuses one.

use alloc::string::ToString;
use core::time::Duration;

use assay_wire::{Flow, Problem, RequestBody, Scope};

use crate::desk::Desk;
use crate::ek;
use crate::failure::Failure;
use crate::kinds::EkKind;
use crate::line::Line;
use crate::machine::Machine;
use crate::memory::Memory;
use crate::policy::is_about_the_ek;
use crate::run::{ProvisionRequest, Provisioned, Run};
use crate::step::Step;
use crate::tpm::{TpmFailure, TpmFailureKind};
use crate::{rekey, rotate, sealed, shared_key, ticket};

/// Makes a device able to sign in: with a valid certificate for an identity key in its TPM, or with
/// an HMAC key there.
///
/// `memory` is what was stored last, or [`Memory::default`] at the first run. If the device can
/// sign in already, it does not ask the CA, unless the request says so. Until the CA agrees, what
/// the device has stays in use.
///
/// If the request names no EK and no CA has agreed to one, the device tries the other EKs in turn,
/// as long as the CA refuses each because of its certificate, its enrolment or its device id.
pub fn provision(request: ProvisionRequest, memory: Memory, now: Duration) -> Machine<Provisioned> {
    Machine::start(now, |desk| async move {
        let end = now.saturating_add(request.deadline);
        let line = Line { desk, scope: request.scope.clone(), end };
        let run = Run::new(request, memory, line);
        let outcome = match begin(&run).await {
            Err(Failure::Refused(problem)) if is_about_the_ek(problem.code) => {
                provision_with_another_ek(&run, problem).await
            }
            outcome => outcome,
        };
        outcome.or_else(|failure| match run.kept() {
            Some(good) => {
                run.desk().progress(Step::RenewalPostponed(failure.to_string()));
                Ok(good)
            }
            None => Err(failure),
        })
    })
}

/// A machine that asks once whether a CA answers in this scope. It says nothing of any device. Its
/// result is how long the answer took. Any answer counts, because an older CA does not know the
/// question.
pub fn ping(scope: Scope, deadline: Duration, now: Duration) -> Machine<Duration> {
    Machine::start(now, |desk: Desk| async move {
        let line = Line { desk, scope, end: now.saturating_add(deadline) };
        line.once(async || {
            let asked = line.desk.now();
            line.ask(RequestBody::Ping).await?;
            Ok(line.desk.now().saturating_sub(asked))
        })
        .await
    })
}

/// Settles which HMAC key stays, finishes a rekey, or rekeys; if there is none of it to do, goes
/// through a flow.
async fn begin(run: &Run) -> Result<Provisioned, Failure> {
    if let Some(provisioned) = rotate::settle(run).await {
        return Ok(provisioned);
    }
    if let Some(provisioned) = rekey::settle(run).await? {
        return Ok(provisioned);
    }
    if run.request.rekey
        && let Some(provisioned) = rekey::rekey(run).await?
    {
        return Ok(provisioned);
    }
    provision_with(run, None).await
}

async fn provision_with(run: &Run, instead: Option<EkKind>) -> Result<Provisioned, Failure> {
    match run.request.flow.or_else(|| run.memory().flow()).unwrap_or(Flow::Ticket) {
        Flow::Ticket => ticket::provision(run, instead).await,
        Flow::Sealed => sealed::provision(run, instead).await,
        Flow::SharedKey => shared_key::provision(run, instead).await,
    }
}

/// Tries the other EKs in turn. A device that lost its state, or never had one, may be registered
/// under another EK than the first with a certificate, because the operator may have enrolled any
/// of them. The CA refuses those that it does not take.
async fn provision_with_another_ek(run: &Run, refusal: Problem) -> Result<Provisioned, Failure> {
    if !run.request.leaves_the_ek_open() || run.memory().shown().is_some() {
        return Err(Failure::Refused(refusal));
    }
    let mut code = refusal.code;
    let refused = run.memory().attempt.map(|attempt| attempt.record().into_shown().ek);
    for kind in EkKind::CERTIFIED.into_iter().filter(|kind| Some(*kind) != refused) {
        // Without a certificate, such an EK is rarely enrolled, and some chips need minutes to make
        // it.
        if kind == EkKind::Rsa3072 && !ek::has_certificate(run.desk(), kind).await? {
            continue;
        }
        run.desk().progress(Step::TryingEk { refusal: code, next: kind });
        match provision_with(run, Some(kind)).await {
            Err(Failure::Refused(problem)) if is_about_the_ek(problem.code) => {
                code = problem.code;
            }
            Err(
                Failure::Unsupported(_)
                | Failure::Tpm(TpmFailure { kind: TpmFailureKind::Unsupported, .. }),
            ) => {}
            outcome => return outcome,
        }
    }
    Err(Failure::Refused(refusal))
}
