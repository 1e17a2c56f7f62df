//! The sealed flow: one round trip and a confirmation. The certificate comes encrypted to the TPM,
//! and counts once the CA knows that the device could read it.

use assay_wire::{Flow, Proof, ReplyBody, RequestBody, SealedCertificate, SealedReply};
use zeroize::Zeroizing;

use crate::answer::AnswerError;
use crate::certificate::DeviceCertificate;
use crate::event::SealedBox;
use crate::failure::Failure;
use crate::granted;
use crate::identity::{self, Applicant, Ready};
use crate::kinds::EkKind;
use crate::line::Ended;
use crate::memory::Confirmation;
use crate::run::{Provisioned, Run};
use crate::step::Step;

pub(crate) async fn provision(run: &Run, instead: Option<EkKind>) -> Result<Provisioned, Failure> {
    let mut applicant = match identity::prepare(run, Flow::Sealed, instead).await? {
        Ready::Provisioned(provisioned) => return Ok(*provisioned),
        Ready::ToAsk(applicant) => applicant,
    };
    let mut pending = applicant.pending.take();
    let certificate = run.line.insist(async || {
        let (certificate, confirmation) = match pending.take() {
            Some(pending) => pending,
            None => {
                let (certificate, confirmation) = unseal(run, &applicant).await?;
                let grant = applicant.grant(&certificate, Some(confirmation.clone()));
                run.remember(run.memory().with_unconfirmed(grant)).await;
                (certificate, confirmation)
            }
        };
        match confirm(run, &certificate, &confirmation).await {
            // The next attempt asks for another certificate. The stored certificate is kept all the
            // same, because anybody who carries the messages can forge the answer.
            Err(ended) if ended.is_lost_claim() => Err(ended),
            Err(ended) => {
                pending = Some((certificate, confirmation));
                Err(ended)
            }
            Ok(()) => Ok(certificate),
        }
    });
    let certificate = certificate.await?;
    Ok(applicant.finish(run, certificate).await)
}

async fn unseal(
    run: &Run,
    applicant: &Applicant,
) -> Result<(DeviceCertificate, Confirmation), Ended> {
    let request = RequestBody::Enroll(applicant.bundle.clone());
    let reply = match run.line.ask(request).await? {
        ReplyBody::Sealed(reply) => reply,
        other => return Err(Ended::out_of_turn("sealed certificate", other)),
    };
    run.desk().progress(Step::SealedReceived);
    let (blob, seed) = (reply.credential_blob.to_vec(), reply.encrypted_seed.to_vec());
    let key = applicant.activate(run.desk(), blob, seed).await?;
    let contents = run.desk().unseal(sealed_box(&reply, &key, applicant)?).await;
    let contents = contents.ok_or(AnswerError::Seal)?;
    let SealedCertificate { chain, ticket, receipt_sha256, renew_at, configuration } =
        SealedCertificate::decode(&contents)
            .map_err(|error| AnswerError::Unreadable(alloc::format!("{error}")))?;
    let certificate = applicant.verify(run, &chain, renew_at).await?;
    run.desk().progress(Step::CertificateOpened(certificate.serial.clone()));
    // A new root comes as the last issuer, as the root before it certified it.
    if let [_, _, .., new_root] = &chain[..] {
        granted::pin(run, Some(new_root.clone())).await;
    }
    run.keep_configuration(configuration, &certificate).await;
    let proof = Proof { claim: reply.claim, ticket };
    Ok((certificate, Confirmation { proof, receipt_sha256 }))
}

/// The box with its associated data, which lets it open only for this EK, this IK and this claim.
fn sealed_box(
    reply: &SealedReply,
    key: &[u8],
    applicant: &Applicant,
) -> Result<SealedBox, AnswerError> {
    let key = <[u8; 32]>::try_from(key).map_err(|_| AnswerError::SealKeyLength(key.len()))?;
    let (nonce, sealed) = reply.sealed.split_first_chunk().ok_or(AnswerError::Seal)?;
    Ok(SealedBox {
        key: Zeroizing::new(key),
        nonce: *nonce,
        associated_data: SealedReply::associated_data(
            &reply.claim,
            &applicant.ek_id,
            &applicant.ik.id,
        ),
        sealed: sealed.to_vec(),
    })
}

async fn confirm(
    run: &Run,
    certificate: &DeviceCertificate,
    confirmation: &Confirmation,
) -> Result<(), Ended> {
    let reply = match run.line.ask(RequestBody::Confirm(confirmation.proof.clone())).await? {
        ReplyBody::Confirmed(reply) => reply,
        other => return Err(Ended::out_of_turn("confirmation", other)),
    };
    // Only the CA that made the box can make the receipt, so the receipt shows that this CA has the
    // confirmation.
    if run.desk().digest(reply.receipt.as_bytes()).await != confirmation.receipt_sha256 {
        return Err(AnswerError::Receipt.into());
    }
    run.desk().progress(Step::CertificateConfirmed(certificate.serial.clone()));
    Ok(())
}
