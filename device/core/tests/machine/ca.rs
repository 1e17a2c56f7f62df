//! A CA that does what the real one promises: one certificate for one key, however often a device
//! asks.

use std::collections::VecDeque;

use assay_device_core::EkKind;
use assay_wire::{
    ActivationReply, CertificateReply, ChallengeReply, ConfirmedReply, EkId, EkPublic, Problem,
    ProblemCode, ReplyBody, RequestBody, SealedCertificate, SealedReply,
};

use crate::tpm::{credential_tag, ek_id, key_tag};
use crate::{tag, tag32};

#[derive(Default)]
pub(crate) struct FakeCa {
    /// The keys that have a certificate. The index of a key is the serial number of its
    /// certificate.
    pub(crate) certified: Vec<[u8; 32]>,
    /// The serial numbers of sealed certificates that were confirmed.
    pub(crate) confirmed: Vec<u8>,
    pub(crate) keys_sent: u8,
    /// The only EK that is enrolled, if not all are.
    pub(crate) enrolled: Option<EkKind>,
    /// The problems that it answers with before anything else, in turn.
    pub(crate) problems: VecDeque<Problem>,
    /// The problem that every *certify* and *confirm* meets.
    pub(crate) refuses_last: Option<ProblemCode>,
    /// What it encrypts in place of a ticket or a key.
    pub(crate) secret: Option<Vec<u8>>,
    /// What it seals in place of a certificate.
    pub(crate) contents: Option<Vec<u8>>,
    /// How much of the sealed box it sends.
    pub(crate) sealed_length: Option<usize>,
    /// Whether somebody else answers confirmations.
    pub(crate) is_forged: bool,
    pub(crate) heard: Vec<RequestBody>,
}

impl FakeCa {
    pub(crate) fn answer(&mut self, request: &RequestBody) -> ReplyBody {
        self.heard.push(request.clone());
        if let Some(problem) = self.problems.pop_front() {
            return ReplyBody::Problem(problem);
        }
        let ek = match request {
            RequestBody::Challenge(bundle) | RequestBody::Enroll(bundle) => {
                Some(shown(&bundle.ek_public))
            }
            RequestBody::Register(bundle) => Some(shown(&bundle.ek_public)),
            _ => None,
        };
        if ek.is_some_and(|ek| self.enrolled.is_some_and(|enrolled| ek_id(enrolled) != ek)) {
            return problem(ProblemCode::EkNotEnrolled);
        }
        match (request, ek) {
            (RequestBody::Challenge(bundle), Some(ek)) => {
                let ik: [u8; 32] = bundle.ik_public[..].try_into().unwrap();
                let secret = self.secret.clone().unwrap_or_else(|| tag32(&[b"ticket", &ik]).into());
                let (blob, seed) = credential(&ek, &ik, &secret);
                ReplyBody::Challenge(ChallengeReply {
                    claim: ik.to_vec().try_into().unwrap(),
                    credential_blob: blob.try_into().unwrap(),
                    encrypted_seed: seed.try_into().unwrap(),
                })
            }
            (RequestBody::Certify(proof), _) => {
                let ik: [u8; 32] = proof.claim[..].try_into().unwrap();
                if let Some(code) = self.refuses_last {
                    return problem(code);
                }
                if *proof.ticket.as_bytes() != tag32(&[b"ticket", &ik]) {
                    return problem(ProblemCode::TicketRefused);
                }
                let certificate = self.certify(ik);
                let chain = vec![certificate.try_into().unwrap()].try_into().unwrap();
                ReplyBody::Certificate(CertificateReply { chain, renew_at: None })
            }
            (RequestBody::Enroll(bundle), Some(ek)) => {
                let ik: [u8; 32] = bundle.ik_public[..].try_into().unwrap();
                self.seal(&ek, ik)
            }
            (RequestBody::Confirm(proof), _) => {
                if let Some(code) = self.refuses_last {
                    return problem(code);
                }
                if *proof.ticket.as_bytes() != tag32(&[b"ticket", &proof.claim]) {
                    return problem(ProblemCode::TicketRefused);
                }
                if self.is_forged {
                    return ReplyBody::Confirmed(ConfirmedReply { receipt: [0; 32].into() });
                }
                self.confirmed.push(proof.claim[0]);
                let receipt = tag32(&[b"receipt", &proof.claim]).into();
                ReplyBody::Confirmed(ConfirmedReply { receipt })
            }
            (RequestBody::Register(bundle), Some(ek)) => {
                self.keys_sent += 1;
                let public = vec![self.keys_sent; 20];
                let parts = [&[2][..], &[3], &[4], &public].concat();
                ReplyBody::Activation(ActivationReply {
                    credential_blob: vec![2].try_into().unwrap(),
                    encrypted_seed: vec![3].try_into().unwrap(),
                    duplicate: key_tag(&ek, &bundle.parent_public, &parts).try_into().unwrap(),
                    symmetric_seed: vec![4].try_into().unwrap(),
                    key_public: public.try_into().unwrap(),
                    device_id: "pump-17".parse().unwrap(),
                })
            }
            _ => ReplyBody::Pong,
        }
    }

    fn certify(&mut self, ik: [u8; 32]) -> Vec<u8> {
        if !self.certified.contains(&ik) {
            self.certified.push(ik);
        }
        let serial = self.certified.iter().position(|known| *known == ik).unwrap() as u8;
        certificate(&ik, serial)
    }

    fn seal(&mut self, ek: &EkId, ik: [u8; 32]) -> ReplyBody {
        let certificate = self.certify(ik);
        let claim = vec![certificate[32]];
        let contents = SealedCertificate {
            chain: vec![certificate.try_into().unwrap()].try_into().unwrap(),
            ticket: tag32(&[b"ticket", &claim]).into(),
            receipt_sha256: tag32(&[b"digest", &tag32(&[b"receipt", &claim])]),
            renew_at: None,
        }
        .encode();
        let contents = self.contents.clone().unwrap_or(contents);
        let (key, nonce) = ([0x42; 32], [9; 12]);
        let (blob, seed) = credential(ek, &ik, self.secret.as_deref().unwrap_or(&key));
        let beside = SealedReply::associated_data(&claim, ek, &ik);
        let mut sealed =
            [&nonce[..], &contents, &box_tag(&key, &nonce, &beside, &contents)].concat();
        sealed.truncate(self.sealed_length.unwrap_or(usize::MAX));
        ReplyBody::Sealed(SealedReply {
            claim: claim.try_into().unwrap(),
            credential_blob: blob.try_into().unwrap(),
            encrypted_seed: seed.try_into().unwrap(),
            sealed: sealed.try_into().unwrap(),
        })
    }
}

/// The tag of a box. The contents of a box are not encrypted here.
pub(crate) fn box_tag(key: &[u8; 32], nonce: &[u8; 12], beside: &[u8], contents: &[u8]) -> [u8; 8] {
    tag(&[b"box", key, nonce, beside, contents])
}

/// A certificate: the key, the serial number, the name, and the CA's signature.
pub(crate) fn certificate(ik: &[u8; 32], serial: u8) -> Vec<u8> {
    let contents = [&ik[..], &[serial], b"pump-17"].concat();
    let signature = tag(&[b"certificate", &contents]);
    [contents, signature.to_vec()].concat()
}

pub(crate) fn problem(code: ProblemCode) -> ReplyBody {
    ReplyBody::Problem(Problem::new(code, "as the test has it".into()))
}

fn credential(ek: &EkId, ik: &[u8; 32], secret: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let seed = vec![1];
    ([secret, &credential_tag(ek, ik, secret, &seed)].concat(), seed)
}

fn shown(ek: &EkPublic) -> EkId {
    let is = |kind: &EkKind| match ek {
        EkPublic::OfCertificate(index) => kind.certificate_index() == Some(*index),
        EkPublic::Area(area) => ek_id(*kind).as_bytes()[..] == area[..],
    };
    ek_id(EkKind::ALL.into_iter().find(is).unwrap())
}
