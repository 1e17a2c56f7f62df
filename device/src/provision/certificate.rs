//! The flows that give a certificate: ticket and sealed.

use assay_wire::{
    Bundle, CertificateList, EkId, Proof, Receipt, ReplyBody, RequestBody, SealedCertificate,
    SealedReply, Ticket,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::{Failure, Line, Progress, Step};
use crate::clock::Clock;
use crate::error::Error;
use crate::key::IdentityKey;
use crate::state::Confirmation;
use crate::tpm::{EkKind, TpmError};
use crate::transport::Bootstrap;
use crate::verify::{self, AnswerError, DeviceCertificate};

/// A device with its keys made and its case written, about to talk to the CA.
pub(crate) struct Applicant<'a> {
    pub(crate) line: &'a Line<'a>,
    pub(crate) roots: &'a RootCertStore,
    pub(crate) clock: &'a Clock,
    pub(crate) bundle: Bundle,
    pub(crate) ek: EkKind,
    pub(crate) ek_id: EkId,
    pub(crate) ik: &'a IdentityKey,
}

impl Applicant<'_> {
    /// The ticket flow: talks to the CA until it grants a certificate that passes our checks.
    pub(crate) async fn obtain(&self, progress: Progress<'_>) -> Result<DeviceCertificate, Error> {
        self.line.insist(progress, async |ca, step| self.prove_and_certify(ca, step).await).await
    }

    async fn prove_and_certify(
        &self,
        ca: &mut Bootstrap,
        step: &mut Step<'_>,
    ) -> Result<DeviceCertificate, Failure> {
        let challenge = match ca.ask(RequestBody::Challenge(self.bundle.clone())).await? {
            ReplyBody::Challenge(challenge) => challenge,
            other => return Err(Failure::out_of_turn("challenge", other)),
        };
        step.done("challenge received: the CA accepts the EK and the identity key");
        let secret = self
            .activate(challenge.credential_blob.into_vec(), challenge.encrypted_seed.into_vec())?;
        let ticket = ticket(&secret)?;
        step.done("credential activated by the TPM");

        let certify = Proof { claim: challenge.claim, ticket };
        let granted = match ca.ask(RequestBody::Certify(certify)).await? {
            ReplyBody::Certificate(granted) => granted,
            other => return Err(Failure::out_of_turn("certificate", other)),
        };
        let certificate = self.verify(&granted.chain)?;
        step.done(&format!("certificate {} received and verified", certificate.serial));
        Ok(certificate)
    }

    /// The sealed flow: talks to the CA until it has confirmed a certificate that passes our
    /// checks.
    ///
    /// `pending` is a certificate that an earlier run verified and did not see confirmed.
    /// `remember` is called with one that is verified, before the confirmation is sent. If the CA
    /// does not take the confirmation, another one is asked for; that it does not is no reason to
    /// forget anything, for the answer may be forged.
    pub(crate) async fn obtain_sealed(
        &self,
        mut pending: Option<(DeviceCertificate, Confirmation)>,
        mut remember: impl FnMut(&DeviceCertificate, &Confirmation) -> Result<(), Error>,
        progress: Progress<'_>,
    ) -> Result<DeviceCertificate, Error> {
        let attempt = async |ca: &mut Bootstrap, step: &mut Step<'_>| {
            let (certificate, confirmation) = match &pending {
                Some(pending) => pending,
                None => {
                    let (certificate, confirmation) = self.unseal(ca, step).await?;
                    remember(&certificate, &confirmation)?;
                    pending.insert((certificate, confirmation))
                }
            };
            let confirmed = match ca.ask(RequestBody::Confirm(confirmation.proof.clone())).await? {
                ReplyBody::Confirmed(reply) => {
                    check_receipt(&reply.receipt, &confirmation.receipt_sha256)?;
                    Ok(certificate.clone())
                }
                other => Err(Failure::out_of_turn("confirmation", other)),
            };
            match &confirmed {
                Ok(certificate) => {
                    step.done(&format!("certificate {} confirmed", certificate.serial))
                }
                Err(failure) if failure.is_lost_claim() => pending = None,
                Err(_) => {}
            }
            confirmed
        };
        self.line.insist(progress, attempt).await
    }

    async fn unseal(
        &self,
        ca: &mut Bootstrap,
        step: &mut Step<'_>,
    ) -> Result<(DeviceCertificate, Confirmation), Failure> {
        let reply = match ca.ask(RequestBody::Enroll(self.bundle.clone())).await? {
            ReplyBody::Sealed(reply) => reply,
            other => return Err(Failure::out_of_turn("sealed certificate", other)),
        };
        step.done("sealed certificate received: the CA accepts the EK and the identity key");
        let key = self.activate(reply.credential_blob.to_vec(), reply.encrypted_seed.to_vec())?;
        step.done("credential activated by the TPM");
        let SealedCertificate { chain, ticket, receipt_sha256 } =
            open(&reply, &key, &self.ek_id, &self.ik.public.id())?;
        let certificate = self.verify(&chain)?;
        step.done(&format!("certificate {} opened and verified", certificate.serial));
        Ok((
            certificate,
            Confirmation { proof: Proof { claim: reply.claim, ticket }, receipt_sha256 },
        ))
    }

    fn activate(&self, blob: Vec<u8>, seed: Vec<u8>) -> Result<Zeroizing<Vec<u8>>, Error> {
        let (ek, ik) = (self.ek, self.ik.handle);
        let secret = self
            .ik
            .tpm
            .call("activating the credential", move |tpm| tpm.activate(ek, ik, &blob, &seed));
        secret.map_err(|error| match error {
            TpmError::Refused { .. } | TpmError::BadArgument { .. } => {
                AnswerError::Challenge(error).into()
            }
            error => error.into(),
        })
    }

    fn verify(&self, chain: &CertificateList<1>) -> Result<DeviceCertificate, AnswerError> {
        let chain: Vec<_> =
            chain.iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect();
        let (scope, now) = (self.line.scope, self.clock.at(&chain));
        let certificate =
            verify::device_certificate(chain, self.roots, &self.ik.public, scope, now)?;
        if let Some(wanted) = &self.bundle.device_id {
            verify::device_id(wanted, &certificate.device_id)?;
        }
        Ok(certificate)
    }
}

fn ticket(secret: &[u8]) -> Result<Ticket, AnswerError> {
    let ticket = <[u8; Ticket::LEN]>::try_from(secret)
        .map_err(|_| AnswerError::TicketLength(secret.len()))?;
    Ok(ticket.into())
}

/// Of a box that the CA made, only the CA can make the receipt, so who shows it has heard the
/// confirmation.
fn check_receipt(receipt: &Receipt, sha256: &[u8; 32]) -> Result<(), AnswerError> {
    let found = digest::digest(&digest::SHA256, receipt.as_bytes());
    if found.as_ref() == sha256 { Ok(()) } else { Err(AnswerError::Receipt) }
}

/// Opens what was sealed for this EK, this IK and the claim beside it (SP 800-38D).
fn open(
    reply: &SealedReply,
    key: &[u8],
    ek_id: &EkId,
    ik_id: &[u8; 32],
) -> Result<SealedCertificate, AnswerError> {
    let key =
        UnboundKey::new(&AES_256_GCM, key).map_err(|_| AnswerError::SealKeyLength(key.len()))?;
    let (nonce, sealed) = reply.sealed.split_first_chunk::<NONCE_LEN>().ok_or(AnswerError::Seal)?;
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let beside = Aad::from(SealedReply::associated_data(&reply.claim, ek_id, ik_id));
    let mut contents = Zeroizing::new(sealed.to_vec());
    let contents = LessSafeKey::new(key)
        .open_in_place(nonce, beside, &mut contents)
        .map_err(|_| AnswerError::Seal)?;
    SealedCertificate::decode(contents).map_err(|error| AnswerError::Unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_of_another_length_than_a_ticket_is_refused() {
        assert!(ticket(&[7; 32]).is_ok());
        for length in [0, 31, 33] {
            assert_eq!(ticket(&vec![7; length]).err(), Some(AnswerError::TicketLength(length)));
        }
    }

    #[test]
    fn receipt_of_another_claim_or_ca_is_refused() {
        let receipt = Receipt::from([9; 32]);
        let sha256: [u8; 32] =
            digest::digest(&digest::SHA256, &[9; 32]).as_ref().try_into().unwrap();
        assert_eq!(check_receipt(&receipt, &sha256), Ok(()));
        for at in 0..sha256.len() {
            let mut other = sha256;
            other[at] ^= 1;
            assert_eq!(check_receipt(&receipt, &other), Err(AnswerError::Receipt));
        }
        assert_eq!(
            check_receipt(&sha256.into(), &sha256),
            Err(AnswerError::Receipt),
            "what is in the box"
        );
    }

    const KEY: [u8; 32] = [0x42; 32];
    const IK_ID: [u8; 32] = [0x17; 32];

    fn ek_id() -> EkId {
        [0xEE; 32].into()
    }

    fn a_certificate() -> SealedCertificate {
        SealedCertificate {
            chain: vec![vec![0x30; 40].try_into().unwrap()].try_into().unwrap(),
            ticket: [7; 32].into(),
            receipt_sha256: [8; 32],
        }
    }

    fn sealed(contents: &[u8]) -> SealedReply {
        let (claim, nonce) = (vec![0xC1; 20], [9; NONCE_LEN]);
        let beside = Aad::from(SealedReply::associated_data(&claim, &ek_id(), &IK_ID));
        let mut sealed = contents.to_vec();
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap());
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), beside, &mut sealed)
            .unwrap();
        SealedReply {
            claim: claim.try_into().unwrap(),
            credential_blob: vec![1].try_into().unwrap(),
            encrypted_seed: vec![2].try_into().unwrap(),
            sealed: [&nonce[..], &sealed].concat().try_into().unwrap(),
        }
    }

    #[test]
    fn sealed_certificate_opens_with_its_key_for_its_keys() {
        let reply = sealed(&a_certificate().encode());
        assert_eq!(open(&reply, &KEY, &ek_id(), &IK_ID), Ok(a_certificate()));
    }

    #[test]
    fn sealed_certificate_altered_in_any_byte_does_not_open() {
        let reply = sealed(&a_certificate().encode());
        for at in 0..reply.sealed.len() {
            let mut altered = reply.sealed.to_vec();
            altered[at] ^= 1;
            let altered = SealedReply { sealed: altered.try_into().unwrap(), ..reply.clone() };
            assert_eq!(open(&altered, &KEY, &ek_id(), &IK_ID), Err(AnswerError::Seal), "byte {at}");
        }
        for length in 0..reply.sealed.len() {
            let cut =
                SealedReply { sealed: reply.sealed[..length].try_into().unwrap(), ..reply.clone() };
            assert_eq!(
                open(&cut, &KEY, &ek_id(), &IK_ID),
                Err(AnswerError::Seal),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn certificate_sealed_for_another_claim_or_key_does_not_open() {
        let reply = sealed(&a_certificate().encode());
        for at in 0..reply.claim.len() {
            let mut claim = reply.claim.to_vec();
            claim[at] ^= 1;
            let other = SealedReply { claim: claim.try_into().unwrap(), ..reply.clone() };
            assert_eq!(open(&other, &KEY, &ek_id(), &IK_ID), Err(AnswerError::Seal), "byte {at}");
        }
        assert_eq!(open(&reply, &[0x43; 32], &ek_id(), &IK_ID), Err(AnswerError::Seal));
        assert_eq!(open(&reply, &KEY, &IK_ID.into(), &IK_ID), Err(AnswerError::Seal));
        assert_eq!(open(&reply, &KEY, &ek_id(), ek_id().as_bytes()), Err(AnswerError::Seal));
    }

    #[test]
    fn key_of_another_length_is_refused() {
        let reply = sealed(&a_certificate().encode());
        for length in [0, 16, 31, 33] {
            let outcome = open(&reply, &vec![0x42; length], &ek_id(), &IK_ID);
            assert_eq!(outcome, Err(AnswerError::SealKeyLength(length)));
        }
    }

    #[test]
    fn sealed_garbage_is_refused() {
        for contents in [&[][..], b"garbage", &[a_certificate().encode(), vec![0]].concat()] {
            let outcome = open(&sealed(contents), &KEY, &ek_id(), &IK_ID);
            assert!(matches!(outcome, Err(AnswerError::Unreadable(_))), "{outcome:?}");
        }
    }
}
