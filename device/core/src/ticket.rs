//! The ticket flow: two round trips. The CA's challenge holds a ticket that only the TPM can read.
//! For the ticket, the CA gives the certificate.

use assay_wire::{Bundle, Flow, Proof, ReplyBody, RequestBody, Ticket};

use crate::answer::AnswerError;
use crate::certificate::DeviceCertificate;
use crate::failure::Failure;
use crate::granted;
use crate::identity::{self, Applicant, Ready};
use crate::kinds::EkKind;
use crate::line::Ended;
use crate::run::{Provisioned, Run};
use crate::step::Step;

pub(crate) async fn provision(run: &Run, instead: Option<EkKind>) -> Result<Provisioned, Failure> {
    let applicant = match identity::prepare(run, Flow::Ticket, instead).await? {
        Ready::Provisioned(provisioned) => return Ok(*provisioned),
        Ready::ToAsk(applicant) => applicant,
    };
    let certificate =
        run.line.insist(async || certify(run, &applicant, RequestBody::Challenge).await).await?;
    Ok(applicant.finish(run, certificate).await)
}

/// Both round trips. `ask` says whether the certificate counts at once.
pub(crate) async fn certify(
    run: &Run,
    applicant: &Applicant,
    ask: impl Fn(Bundle) -> RequestBody,
) -> Result<DeviceCertificate, Ended> {
    let request = ask(applicant.bundle.clone());
    let challenge = match run.line.ask(request).await? {
        ReplyBody::Challenge(challenge) => challenge,
        other => return Err(Ended::out_of_turn("challenge", other)),
    };
    run.desk().progress(Step::ChallengeReceived);
    let (blob, seed) = (challenge.credential_blob, challenge.encrypted_seed);
    let secret = applicant.activate(run.desk(), blob.into_vec(), seed.into_vec()).await?;

    let proof = Proof { claim: challenge.claim, ticket: ticket(&secret)? };
    let reply = match run.line.ask(RequestBody::Certify(proof)).await? {
        ReplyBody::Certificate(reply) => reply,
        other => return Err(Ended::out_of_turn("certificate", other)),
    };
    granted::pin(run, reply.new_root).await;
    let certificate = applicant.verify(run, &reply.chain, reply.renew_at).await?;
    run.desk().progress(Step::CertificateReceived(certificate.serial.clone()));
    run.keep_configuration(reply.configuration, &certificate).await;
    Ok(certificate)
}

fn ticket(secret: &[u8]) -> Result<Ticket, AnswerError> {
    let ticket = <[u8; Ticket::LEN]>::try_from(secret)
        .map_err(|_| AnswerError::TicketLength(secret.len()))?;
    Ok(ticket.into())
}
