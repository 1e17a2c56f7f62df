//! A CA that does what the real one promises: one certificate for one key, however often a device
//! asks.

use std::collections::VecDeque;

use assay_device_core::EkKind;
use assay_wire::{
    ActivationReply, Adoption, CertificateReply, ChallengeReply, ConfirmedReply, EkId, EkPublic,
    Problem, ProblemCode, Renewal, ReplyBody, RequestBody, Scope, SealedCertificate, SealedReply,
};

use crate::tpm::{credential_tag, ek_id, key_tag};
use crate::{tag, tag32};

#[derive(Default)]
pub(crate) struct FakeCa {
    /// The keys that have a certificate. The index of a key is the serial number of its
    /// certificate.
    pub(crate) certified: Vec<[u8; 32]>,
    /// From when each certificate is valid, by serial number.
    pub(crate) begins: Vec<u64>,
    /// The serial numbers of renewed certificates that wait to be adopted.
    pub(crate) waiting: Vec<u8>,
    /// The serial numbers of certificates that are no longer in force.
    pub(crate) superseded: Vec<u8>,
    /// When it tells devices to renew.
    pub(crate) advice: Option<u64>,
    /// What it sends as a new root.
    pub(crate) new_root: Option<Vec<u8>>,
    /// What it sends as the operator's document.
    pub(crate) configuration: Option<Vec<u8>>,
    /// What it answers to every *renew*, in place of its own answer.
    pub(crate) renews_with: Option<Vec<u8>>,
    /// Its clock, in seconds since 1970.
    pub(crate) clock: u64,
    /// The serial numbers of sealed certificates that were confirmed.
    pub(crate) confirmed: Vec<u8>,
    pub(crate) keys_sent: u8,
    /// Whether it sends the key that it sent last.
    pub(crate) repeats_key: bool,
    /// The key that was used last. No earlier one is taken.
    pub(crate) key_in_use: u8,
    /// After how many seconds it tells devices to ask for the next key.
    pub(crate) rotate_after: Option<u32>,
    /// The only EK that is enrolled, if not all are.
    pub(crate) enrolled: Option<EkKind>,
    /// The problems that it answers with before anything else, in turn.
    pub(crate) problems: VecDeque<Problem>,
    /// The problem that it answers with once, after this many other answers.
    pub(crate) refuses_after: Option<(usize, Problem)>,
    /// The problem that every *certify*, *confirm* and *adopt* meets.
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
        if let Some((after, problem)) = self.refuses_after.take() {
            if after == 0 {
                return ReplyBody::Problem(problem);
            }
            self.refuses_after = Some((after - 1, problem));
        }
        let ek = match request {
            RequestBody::Challenge(bundle)
            | RequestBody::Rekey(bundle)
            | RequestBody::Enroll(bundle) => Some(shown(&bundle.ek_public)),
            RequestBody::Register(bundle) => Some(shown(&bundle.ek_public)),
            _ => None,
        };
        if ek.is_some_and(|ek| self.enrolled.is_some_and(|enrolled| ek_id(enrolled) != ek)) {
            return problem(ProblemCode::EkNotEnrolled);
        }
        match (request, ek) {
            (RequestBody::Challenge(bundle) | RequestBody::Rekey(bundle), Some(ek)) => {
                let ik: [u8; 32] = bundle.ik_public[..].try_into().unwrap();
                let is_rekey = matches!(request, RequestBody::Rekey(_));
                let claim = [&ik[..], &[u8::from(is_rekey)]].concat();
                let ticket = || tag32(&[b"ticket", &claim]).into();
                let secret = self.secret.clone().unwrap_or_else(ticket);
                let (blob, seed) = credential(&ek, &ik, &secret);
                ReplyBody::Challenge(ChallengeReply {
                    claim: claim.try_into().unwrap(),
                    credential_blob: blob.try_into().unwrap(),
                    encrypted_seed: seed.try_into().unwrap(),
                })
            }
            (RequestBody::Certify(proof), _) => {
                let (ik, is_rekey) = proof.claim.split_first_chunk().unwrap();
                if let Some(code) = self.refuses_last {
                    return problem(code);
                }
                if *proof.ticket.as_bytes() != tag32(&[b"ticket", &proof.claim]) {
                    return problem(ProblemCode::TicketRefused);
                }
                let certificate = match is_rekey {
                    [1] => self.rekey(*ik),
                    _ => self.certify(*ik),
                };
                self.certificate_reply(certificate)
            }
            (RequestBody::Renew(renewal), _) => {
                let certificate = self.renews_with.clone();
                match certificate.map_or_else(|| self.renew(renewal), Ok) {
                    Ok(certificate) => self.certificate_reply(certificate),
                    Err(code) => problem(code),
                }
            }
            (RequestBody::Adopt(adoption), _) => {
                let refusal = self.refuses_last.map_or(Ok(()), Err);
                match refusal.and_then(|()| self.adopt(adoption)) {
                    Ok(()) => ReplyBody::Adopted,
                    Err(code) => problem(code),
                }
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
                if !self.repeats_key || self.keys_sent == 0 {
                    self.keys_sent += 1;
                }
                let public = vec![self.keys_sent; 20];
                let parts = [&[2][..], &[3], &[4], &public].concat();
                ReplyBody::Activation(ActivationReply {
                    credential_blob: vec![2].try_into().unwrap(),
                    encrypted_seed: vec![3].try_into().unwrap(),
                    duplicate: key_tag(&ek, &bundle.parent_public, &parts).try_into().unwrap(),
                    symmetric_seed: vec![4].try_into().unwrap(),
                    key_public: public.try_into().unwrap(),
                    device_id: "pump-17".parse().unwrap(),
                    rotate_after: self.rotate_after,
                })
            }
            _ => ReplyBody::Pong,
        }
    }

    fn certificate_reply(&self, certificate: Vec<u8>) -> ReplyBody {
        let chain = vec![certificate.try_into().unwrap()].try_into().unwrap();
        let new_root = self.new_root.clone().map(|root| root.try_into().unwrap());
        let configuration = self.configuration.clone().map(|it| it.try_into().unwrap());
        let renew_at = self.advice;
        ReplyBody::Certificate(CertificateReply { chain, renew_at, configuration, new_root })
    }

    fn certify(&mut self, ik: [u8; 32]) -> Vec<u8> {
        let serial = match self.in_force(&ik) {
            Some(serial) => serial,
            None => {
                // The one that expired.
                self.supersede(&ik);
                self.issue(ik)
            }
        };
        self.certificate(serial)
    }

    /// The certificate for this key, in force or waiting, or a new one that waits.
    fn rekey(&mut self, ik: [u8; 32]) -> Vec<u8> {
        let serial = match self.in_force(&ik) {
            Some(serial) => serial,
            None => self.waiting_for(ik),
        };
        self.certificate(serial)
    }

    fn waiting_for(&mut self, ik: [u8; 32]) -> u8 {
        let waits = self.serials_of(&ik).into_iter().find(|it| self.waiting.contains(it));
        waits.unwrap_or_else(|| {
            let serial = self.issue(ik);
            self.waiting.push(serial);
            serial
        })
    }

    fn issue(&mut self, ik: [u8; 32]) -> u8 {
        self.certified.push(ik);
        self.begins.push(self.clock);
        self.certified.len() as u8 - 1
    }

    fn certificate(&self, serial: u8) -> Vec<u8> {
        let place = usize::from(serial);
        certificate(&self.certified[place], serial, self.begins[place], "pump-17")
    }

    fn serials_of(&self, ik: &[u8; 32]) -> Vec<u8> {
        let serials = 0..self.certified.len() as u8;
        serials.filter(|serial| self.certified[usize::from(*serial)] == *ik).collect()
    }

    fn in_force(&self, ik: &[u8; 32]) -> Option<u8> {
        self.serials_of(ik).into_iter().find(|serial| {
            !self.waiting.contains(serial)
                && !self.superseded.contains(serial)
                && self.clock <= self.begins[usize::from(*serial)] + LIFETIME
        })
    }

    fn supersede(&mut self, ik: &[u8; 32]) {
        let serials = self.serials_of(ik);
        self.superseded.extend(serials.into_iter().filter(|it| !self.waiting.contains(it)));
    }

    /// The serial number of the certificate with this digest, if its key signed the statement now.
    fn stated(
        &self,
        sha256: &[u8; 32],
        time: u64,
        signature: &[u8],
        statement: impl Fn(&Scope, &[u8; 32], u64) -> Vec<u8>,
    ) -> Result<u8, ProblemCode> {
        let mut serials = 0..self.certified.len() as u8;
        let serial = serials
            .find(|serial| tag32(&[b"digest", &self.certificate(*serial)]) == *sha256)
            .ok_or(ProblemCode::CertificateNotInForce)?;
        if self.clock.abs_diff(time) > 300 {
            return Err(ProblemCode::ClockOff);
        }
        let statement = statement(&"default".parse().unwrap(), sha256, time);
        let expected = crate::tpm::signature(&self.certified[usize::from(serial)], &statement);
        if signature != expected {
            return Err(ProblemCode::StatementRefused);
        }
        Ok(serial)
    }

    fn renew(&mut self, renewal: &Renewal) -> Result<Vec<u8>, ProblemCode> {
        let Renewal { certificate, time, signature, .. } = renewal;
        let serial = self.stated(certificate, *time, signature, Renewal::signed)?;
        let ik = self.certified[usize::from(serial)];
        if self.in_force(&ik) != Some(serial) {
            return Err(ProblemCode::CertificateNotInForce);
        }
        if self.clock < self.begins[usize::from(serial)] + RENEWED_AFTER {
            return Ok(self.certificate(serial));
        }
        let serial = self.waiting_for(ik);
        Ok(self.certificate(serial))
    }

    fn adopt(&mut self, adoption: &Adoption) -> Result<(), ProblemCode> {
        let Adoption { certificate, time, signature, ek_id: _ } = adoption;
        let serial = self.stated(certificate, *time, signature, Adoption::signed)?;
        let ik = self.certified[usize::from(serial)];
        if self.waiting.contains(&serial) {
            // This CA has one device.
            let all = (0..self.certified.len() as u8).filter(|it| !self.waiting.contains(it));
            let ended: Vec<_> = all.filter(|it| !self.superseded.contains(it)).collect();
            self.superseded.extend(ended);
            self.waiting.retain(|it| *it != serial);
        }
        if self.in_force(&ik) == Some(serial) {
            return Ok(());
        }
        Err(ProblemCode::CertificateNotInForce)
    }

    /// Whether it takes a token of this HMAC key.
    pub(crate) fn takes_key(&self, key: &[u8]) -> bool {
        (self.key_in_use.max(1)..=self.keys_sent).contains(&key[0])
    }

    /// Whether a broker lets in a device that shows this certificate.
    pub(crate) fn lets_in(&self, certificate: &[u8]) -> bool {
        let serial = certificate[32];
        self.certificate(serial) == certificate && !self.superseded.contains(&serial)
    }

    fn seal(&mut self, ek: &EkId, ik: [u8; 32]) -> ReplyBody {
        let certificate = self.certify(ik);
        let claim = vec![certificate[32]];
        // The root before certified the new one, which is above the issuing CA.
        let above = self.new_root.iter().flat_map(|root| [b"issuing".to_vec(), root.clone()]);
        let chain: Vec<_> =
            std::iter::once(certificate).chain(above).map(|it| it.try_into().unwrap()).collect();
        let contents = SealedCertificate {
            chain: chain.try_into().unwrap(),
            ticket: tag32(&[b"ticket", &claim]).into(),
            receipt_sha256: tag32(&[b"digest", &tag32(&[b"receipt", &claim])]),
            renew_at: self.advice,
            configuration: self.configuration.clone().map(|it| it.try_into().unwrap()),
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

/// How long certificates are valid, in seconds.
pub(crate) const LIFETIME: u64 = 90 * 86_400;
/// How old a certificate is before the CA renews it.
pub(crate) const RENEWED_AFTER: u64 = 60 * 86_400;

/// A certificate: the key, the serial number, the first moment, the name, and the CA's signature.
pub(crate) fn certificate(ik: &[u8; 32], serial: u8, begins: u64, name: &str) -> Vec<u8> {
    let contents = [&ik[..], &[serial], &begins.to_be_bytes(), name.as_bytes()].concat();
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
