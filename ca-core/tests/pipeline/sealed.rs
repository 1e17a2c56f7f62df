//! What the sealed flow sends, who can open it, and how a device confirms it.

use assay_ca_core::tpm::credential::Credential;
use assay_ca_core::{
    ActiveCertificate, BoundKey, Candidate, CertificateFacts, CertificateOnRecord, Confirmation,
    Confirmed, Confirming, EncryptedCertificate, Enrolment, Failure, Issued, KeyOffer, Overlapping,
    Prepared, Profile, Proven, QUOTA, Readmitted, Records, Registration, Rejection, Reprovision,
    SealedFlow, SealedOnRecord, Sealing, SharedKeyFlow, Shown, TicketKey, Unconfirmed, Unproven,
};
use assay_wire::{EkId, ProblemCode, Proof, Receipt, SealedCertificate, SealedReply, Ticket};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fixture::*;

/// A device with a certificate sealed to it.
struct Enrolled {
    ca: Ca,
    device: Device,
    issued: Issued<Unproven>,
    reply: SealedReply,
}

impl Enrolled {
    fn new() -> Self {
        let vendor = Vendor::new("Acme");
        Self::with(Ca::trusting(&vendor), Device::of(&vendor))
    }

    fn with(mut ca: Ca, device: Device) -> Self {
        let (reply, issued) = seal(&mut ca, &device, &nothing_on_record(), None, &[], now());
        Self { issued: issued.unwrap(), ca, device, reply }
    }

    /// The certificate, as its device gets it from the box.
    fn der(&self) -> Vec<u8> {
        self.open(&self.reply).unwrap().chain[0].to_vec()
    }

    fn facts(&self) -> &CertificateFacts {
        self.issued.facts()
    }

    fn confirm(
        &self,
        certificate: Unconfirmed,
        records: &Records,
        at: OffsetDateTime,
    ) -> Result<Confirmed, Rejection> {
        let confirmation = self.verify(&self.proof(), now())?;
        let shown = Shown::by_confirmation(certificate, &confirmation)?;
        Confirmed::decide(shown, records, &self.ca.ticket_keys, at)
    }

    fn receipt(&self) -> Receipt {
        let confirmation = self.verify(&self.proof(), now()).unwrap();
        let key = &self.ca.ticket_keys;
        match Confirming::plan(confirmation, self.active(false), key, now()).unwrap() {
            Confirming::OnRecord { reply, .. } => reply.receipt,
            Confirming::New { .. } => panic!("it is active already"),
        }
    }

    /// The certificate once it is confirmed.
    fn active(&self, disabled: bool) -> SealedOnRecord {
        let CertificateFacts { device_id, assurance, .. } = self.facts().clone();
        let records = Box::new(Records { disabled, ..nothing_on_record() });
        SealedOnRecord::Active { device_id, assurance, records, der: self.der() }
    }

    fn open(&self, reply: &SealedReply) -> Option<SealedCertificate> {
        open(&self.device, &self.device, &self.device, reply)
    }

    fn proof(&self) -> Proof {
        Proof { claim: self.reply.claim.clone(), ticket: self.open(&self.reply).unwrap().ticket }
    }

    fn verify(&self, proof: &Proof, at: OffsetDateTime) -> Result<Confirmation, Rejection> {
        Confirmation::verify(proof, &self.ca.scope, &self.ca.ticket_keys, at)
    }

    fn unconfirmed(&self) -> Unconfirmed {
        let facts = self.facts();
        Unconfirmed {
            serial: facts.serial,
            device_id: facts.device_id.clone(),
            ek_id: facts.ek_id,
            ik_id: facts.ik_id,
            assurance: facts.assurance,
            issued_at: now(),
            confirm_by: facts.confirm_by.unwrap(),
            sha256: self.issued.sha256(),
            encrypted: self.issued.encrypted(),
        }
    }
}

fn candidate(ca: &Ca, device: &Device, records: &Records) -> Result<Candidate, Rejection> {
    let key = BoundKey::verify(&device.evidence())?;
    let admitted = ca.admit_to::<SealedFlow>(device, records)?;
    Candidate::decide(&admitted, &key, &ca.scope, records, now())
}

/// The reply to the sealed flow's first step, and the certificate if it is new.
fn seal(
    ca: &mut Ca,
    device: &Device,
    records: &Records,
    active: Option<&ActiveCertificate>,
    waiting: &[Unconfirmed],
    at: OffsetDateTime,
) -> (SealedReply, Option<Issued<Unproven>>) {
    let sealing = plan(ca, device, records, active, waiting, at).unwrap();
    sealing.sign(ca.ticket_keys.in_use(at), at, &mut ca.rng).unwrap()
}

fn plan(
    ca: &mut Ca,
    device: &Device,
    records: &Records,
    active: Option<&ActiveCertificate>,
    waiting: &[Unconfirmed],
    at: OffsetDateTime,
) -> Result<Sealing, Failure> {
    let candidate = candidate(ca, device, records)?;
    let (key, issuers, profile) = (&ca.ticket_keys, &ca.issuers, &Profile::default());
    Sealing::plan(candidate, records, active, waiting, key, profile, issuers, at, &mut ca.rng)
}

/// Opens a reply with the TPM of `tpm`, on a device that believes that it has the EK of `ek` and
/// the IK of `ik`.
fn open(tpm: &Device, ek: &Device, ik: &Device, reply: &SealedReply) -> Option<SealedCertificate> {
    let credential = Credential {
        id_object: reply.credential_blob.to_vec(),
        encrypted_seed: reply.encrypted_seed.to_vec(),
    };
    let secret = tpm.ek.activate(&tpm.ik_name(), &credential)?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret).unwrap());
    let ik_id = BoundKey::verify(&ik.evidence()).unwrap().ik_id();
    let data = SealedReply::associated_data(&reply.claim, &ek.ek.key().ek_id(), &ik_id);
    let (nonce, sealed) = reply.sealed.split_at_checked(NONCE_LEN)?;
    let mut sealed = sealed.to_vec();
    let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
    let opened = key.open_in_place(nonce, Aad::from(&data), &mut sealed).ok()?;
    SealedCertificate::decode(opened).ok()
}

fn code<T>(result: Result<T, Rejection>) -> ProblemCode {
    match result {
        Ok(_) => panic!("accepted"),
        Err(rejection) => rejection.problem().code,
    }
}

#[test]
fn every_kind_of_ek_opens_its_sealed_certificate() {
    let vendor = Vendor::new("Acme");
    for kind in ["rsa2048", "rsa3072", "p256", "p384"] {
        let device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
        let enrolled = Enrolled::with(Ca::trusting(&vendor), device);
        let opened = enrolled.open(&enrolled.reply).unwrap();
        let (_, leaf) = X509Certificate::from_der(&opened.chain[0]).unwrap();
        assert_eq!(leaf.raw_serial(), enrolled.facts().serial, "{kind}");
        let confirmation = enrolled.verify(&enrolled.proof(), now()).unwrap();
        assert_eq!(confirmation.ek_id(), enrolled.facts().ek_id);
        assert_eq!(confirmation.certificate_sha256()[..], enrolled.issued.sha256()[..]);
        let receipt = enrolled.receipt();
        assert_eq!(Sha256::digest(receipt.as_bytes())[..], opened.receipt_sha256, "{kind}");
    }
}

#[test]
fn receipt_is_neither_the_ticket_nor_that_of_another_claim() {
    let enrolled = [Enrolled::new(), Enrolled::new()];
    let [receipt, other] = enrolled.each_ref().map(Enrolled::receipt);
    assert_ne!(receipt.as_bytes(), enrolled[0].proof().ticket.as_bytes());
    assert_ne!(receipt, other);
}

#[test]
fn disabled_device_gets_no_receipt_for_a_certificate_that_it_confirmed_before() {
    let enrolled = Enrolled::new();
    let confirmation = enrolled.verify(&enrolled.proof(), now()).unwrap();
    let key = &enrolled.ca.ticket_keys;
    let refused = Confirming::plan(confirmation, enrolled.active(true), key, now());
    assert_eq!(code(refused), ProblemCode::DeviceDisabled);
}

#[test]
fn nothing_in_the_reply_tells_of_the_certificate() {
    let enrolled = Enrolled::new();
    let (facts, der, reply) = (enrolled.facts(), enrolled.der(), &enrolled.reply);
    let seen =
        [&reply.claim[..], &reply.credential_blob, &reply.encrypted_seed, &reply.sealed].concat();
    for encrypted in [facts.device_id.as_str().as_bytes(), &facts.serial, &der[100..132]] {
        assert!(!seen.windows(encrypted.len()).any(|window| window == encrypted));
    }
}

#[test]
fn sealed_certificate_does_not_open_in_another_tpm_nor_for_another_ek_or_ik() {
    let Enrolled { ca, device, reply, .. } = Enrolled::new();
    let vendor = Vendor::new("Other");
    let other = Device::of(&vendor);
    drop(ca);
    assert!(open(&device, &device, &device, &reply).is_some());
    assert!(open(&device, &other, &device, &reply).is_none(), "another EK");
    assert!(open(&device, &device, &other, &reply).is_none(), "another IK");
    let same_ik = Device { ek: other.ek, ..device };
    assert!(open(&same_ik, &same_ik, &same_ik, &reply).is_none(), "another TPM");
}

#[test]
fn sealed_reply_altered_in_any_byte_does_not_open() {
    let enrolled = Enrolled::new();
    let reply = &enrolled.reply;
    for at in 0..reply.claim.len() {
        let altered =
            SealedReply { claim: flipped(&reply.claim, at).try_into().unwrap(), ..reply.clone() };
        assert!(enrolled.open(&altered).is_none(), "claim, byte {at}");
    }
    for at in 0..reply.sealed.len() {
        let altered =
            SealedReply { sealed: flipped(&reply.sealed, at).try_into().unwrap(), ..reply.clone() };
        assert!(enrolled.open(&altered).is_none(), "box, byte {at}");
    }
    // The first two bytes of the blob are the size of the HMAC. A TPM reads it, but this test's TPM
    // does not.
    for at in 2..reply.credential_blob.len() {
        let blob = flipped(&reply.credential_blob, at).try_into().unwrap();
        assert!(
            enrolled.open(&SealedReply { credential_blob: blob, ..reply.clone() }).is_none(),
            "blob, byte {at}"
        );
    }
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

#[test]
fn two_replies_for_one_certificate_have_nothing_in_common_that_is_encrypted() {
    let enrolled = Enrolled::new();
    let waiting = [enrolled.unconfirmed()];
    let Enrolled { mut ca, device, reply, .. } = enrolled;
    let (again, new) = seal(&mut ca, &device, &nothing_on_record(), None, &waiting, now());
    assert!(new.is_none());
    assert_eq!(again.claim, reply.claim);
    assert_ne!(again.credential_blob, reply.credential_blob);
    assert_ne!(again.sealed[..NONCE_LEN], reply.sealed[..NONCE_LEN]);
    assert_ne!(again.sealed[NONCE_LEN..], reply.sealed[NONCE_LEN..]);
}

#[test]
fn waiting_certificate_is_given_again_only_if_it_says_what_a_new_one_would_and_can_be_confirmed() {
    let mut enrolled = Enrolled::new();
    let named = |device_id: &str| {
        let device_id = Some(device_id.parse().unwrap());
        Records {
            enrolment: Some(Enrolment { device_id, ..Enrolment::default() }),
            ..nothing_on_record()
        }
    };
    let (waiting, records) = (enrolled.unconfirmed(), nothing_on_record());
    let newer = has_certificate(&enrolled, [7; 32], now() - Duration::SECOND);
    let mut is_given_again = |waiting: &Unconfirmed, records: &Records, at| {
        let waiting = std::slice::from_ref(waiting);
        seal(&mut enrolled.ca, &enrolled.device, records, None, waiting, at).1.is_none()
    };
    assert!(is_given_again(&waiting, &records, now()));
    assert!(!is_given_again(&waiting, &named("pump-9"), now()), "another device id was granted");
    assert!(!is_given_again(&waiting, &records, waiting.confirm_by), "too late");
    let older = Unconfirmed { issued_at: now() - Duration::SECOND, ..waiting.clone() };
    assert!(is_given_again(&waiting, &newer, now()));
    assert!(!is_given_again(&older, &newer, now()), "older than the active one");
    let by_list =
        Unconfirmed { assurance: assay_ca_core::Assurance::EnrolmentList, ..waiting.clone() };
    let listed = named(waiting.device_id.as_str());
    assert!(!is_given_again(&by_list, &listed, now()), "trusted for another reason");
    let other_ik = Unconfirmed { ik_id: [7; 32], ..waiting.clone() };
    assert!(!is_given_again(&other_ik, &records, now()), "another IK");
    let other_ek = Unconfirmed { ek_id: EkId::from([7; 32]), ..waiting.clone() };
    assert!(!is_given_again(&other_ek, &records, now()), "another EK");
    let encrypted = EncryptedCertificate::new(vec![1; 100]);
    let unreadable = Unconfirmed { encrypted, ..waiting };
    assert!(!is_given_again(&unreadable, &records, now()), "under another ticket key");
}

#[test]
fn certificate_in_force_is_sealed_again_and_none_is_issued() {
    let Enrolled { mut ca, device, issued, .. } = Enrolled::new();
    let challenge = ca.challenge(&device, &nothing_on_record()).unwrap();
    let proven = ca.prove(&device.answer(&challenge)).unwrap();
    let readmitted = Readmitted::decide(proven, &nothing_on_record()).unwrap();
    let profile = Profile::default();
    let prepared = Prepared::<Proven>::new(
        readmitted,
        &profile,
        ca.issuers.current(now()),
        now(),
        &mut ca.rng,
    )
    .unwrap();
    let certificate = Issued::<Proven>::sign(prepared).unwrap();
    let active = ActiveCertificate {
        serial: certificate.facts().serial,
        ik_id: issued.facts().ik_id,
        der: certificate.der().to_vec(),
    };
    let (reply, new) = seal(&mut ca, &device, &nothing_on_record(), Some(&active), &[], now());
    assert!(new.is_none());
    assert_eq!(*open(&device, &device, &device, &reply).unwrap().chain[0], active.der);

    let other_ik = ActiveCertificate { ik_id: [7; 32], ..active.clone() };
    let replaced = ActiveCertificate { der: ca.root.to_vec(), ..active };
    for other in [other_ik, replaced] {
        let (_, new) = seal(&mut ca, &device, &nothing_on_record(), Some(&other), &[], now());
        assert!(new.is_some(), "{other:?}");
    }
}

mod confirmation {
    use super::*;

    #[test]
    fn wrong_ticket_or_altered_claim_confirms_nothing() {
        let enrolled = Enrolled::new();
        let good = enrolled.proof();
        for at in 0..Ticket::LEN {
            let ticket: [u8; Ticket::LEN] = flipped(good.ticket.as_bytes(), at).try_into().unwrap();
            let wrong = Proof { ticket: ticket.into(), ..good.clone() };
            assert_eq!(code(enrolled.verify(&wrong, now())), ProblemCode::TicketRefused);
        }
        for at in 0..good.claim.len() {
            let altered =
                Proof { claim: flipped(&good.claim, at).try_into().unwrap(), ..good.clone() };
            assert_eq!(
                code(enrolled.verify(&altered, now())),
                ProblemCode::TicketRefused,
                "byte {at}"
            );
        }
    }

    #[test]
    fn ticket_of_another_devices_certificate_confirms_nothing() {
        let enrolled = Enrolled::new();
        let vendor = Vendor::new("Acme");
        let mut ca = Ca::trusting(&vendor);
        ca.ticket_keys = enrolled.ca.ticket_keys.clone();
        let other = Enrolled::with(ca, Device::of(&vendor));
        let mixed = Proof { claim: other.reply.claim.clone(), ..enrolled.proof() };
        assert_eq!(code(enrolled.verify(&mixed, now())), ProblemCode::TicketRefused);
        let confirmation = enrolled.verify(&enrolled.proof(), now()).unwrap();
        assert_ne!(*confirmation.certificate_sha256(), other.issued.sha256());
    }

    /// A ticket of the ticket flow must not confirm, and a ticket of the sealed flow must not
    /// certify, even for the same bytes.
    #[test]
    fn claims_of_one_flow_prove_nothing_in_the_other() {
        let mut enrolled = Enrolled::new();
        let challenge = enrolled.ca.challenge(&enrolled.device, &nothing_on_record()).unwrap();
        let answered = enrolled.device.answer(&challenge);
        assert_eq!(code(enrolled.verify(&answered, now())), ProblemCode::TicketRefused);
        assert_eq!(code(enrolled.ca.prove(&enrolled.proof())), ProblemCode::TicketRefused);
    }

    #[test]
    fn certificate_that_waits_is_not_stored_in_clear() {
        let enrolled = Enrolled::new();
        let (der, stored) = (enrolled.der(), enrolled.issued.stored());
        let clear: std::collections::HashSet<_> = der.windows(8).collect();
        assert!(!stored.windows(8).any(|window| clear.contains(window)));
        let confirmed = enrolled.confirm(enrolled.unconfirmed(), &nothing_on_record(), now());
        assert_eq!(confirmed.unwrap().der(), der, "and is, once it is confirmed");
    }

    #[test]
    fn confirmation_is_of_the_certificate_that_it_names_alone() {
        let enrolled = Enrolled::new();
        let certificate = enrolled.unconfirmed();
        let others = [
            Unconfirmed { sha256: [7; 32], ..certificate.clone() },
            Unconfirmed { ek_id: EkId::from([7; 32]), ..certificate.clone() },
            Unconfirmed { serial: [7; 16], ..certificate.clone() },
            Unconfirmed { encrypted: EncryptedCertificate::new(vec![1; 99]), ..certificate },
        ];
        for other in others {
            let refusal = enrolled.confirm(other, &nothing_on_record(), now()).unwrap_err();
            assert!(matches!(refusal, Rejection::CertificateEnded { .. }), "{refusal}");
        }
    }

    #[test]
    fn handshake_with_a_certificate_confirms_it_and_no_other() {
        let enrolled = Enrolled::new();
        let (certificate, key) = (enrolled.unconfirmed(), &enrolled.ca.ticket_keys);
        let sha256: [u8; 32] = Sha256::digest(enrolled.der()).into();
        let shown = Shown::by_handshake(certificate.clone(), &sha256).unwrap();
        let confirmed = Confirmed::decide(shown, &nothing_on_record(), key, now()).unwrap();
        assert_eq!(confirmed.der(), enrolled.der());

        let refusal = Shown::by_handshake(certificate, &[7; 32]).unwrap_err();
        assert!(matches!(refusal, Rejection::CertificateEnded { .. }), "{refusal}");
    }

    #[test]
    fn confirmation_under_another_key_or_scope_is_refused() {
        let mut enrolled = Enrolled::new();
        let proof = enrolled.proof();
        enrolled.ca.scope = "plant-8".parse().unwrap();
        assert!(matches!(
            enrolled.verify(&proof, now()),
            Err(Rejection::ClaimOfAnotherScope { .. })
        ));
        enrolled.ca.ticket_keys = TicketKey::new([3; TicketKey::LEN]).into();
        assert_eq!(enrolled.verify(&proof, now()).unwrap_err(), Rejection::ClaimOfAnotherKey);
    }

    /// The device has the digest of a receipt that was made with the same key as its ticket.
    #[test]
    fn certificate_that_was_sealed_before_the_ticket_key_was_replaced_is_confirmed() {
        let mut enrolled = Enrolled::new();
        let receipt = enrolled.receipt();
        let before = enrolled.ca.ticket_keys.in_use(now()).clone();
        let next = (now(), TicketKey::new([3; TicketKey::LEN]));
        enrolled.ca.ticket_keys = Overlapping::new(before, Some(next));
        enrolled.confirm(enrolled.unconfirmed(), &nothing_on_record(), now()).unwrap();
        assert_eq!(enrolled.receipt(), receipt);
    }

    #[test]
    fn confirmation_past_the_deadline_is_refused() {
        let enrolled = Enrolled::new();
        let deadline = now() + Profile::default().confirm_within();
        enrolled.verify(&enrolled.proof(), deadline - Duration::SECOND).unwrap();
        assert_eq!(code(enrolled.verify(&enrolled.proof(), deadline)), ProblemCode::ClaimExpired);
        let confirm = |at| enrolled.confirm(enrolled.unconfirmed(), &nothing_on_record(), at);
        confirm(deadline - Duration::SECOND).unwrap();
        assert_eq!(code(confirm(deadline)), ProblemCode::ClaimExpired);
    }

    #[test]
    fn device_that_is_no_longer_admitted_confirms_nothing() {
        let enrolled = Enrolled::new();
        let confirm =
            |records: Records| code(enrolled.confirm(enrolled.unconfirmed(), &records, now()));
        assert_eq!(
            confirm(Records { disabled: true, ..nothing_on_record() }),
            ProblemCode::DeviceDisabled
        );
        let id_holder = Some(EkId::from([7; 32]));
        assert_eq!(
            confirm(Records { id_holder, ..nothing_on_record() }),
            ProblemCode::DeviceIdTaken
        );
        let of_list = Unconfirmed {
            assurance: assay_ca_core::Assurance::EnrolmentList,
            ..enrolled.unconfirmed()
        };
        assert_eq!(
            code(enrolled.confirm(of_list, &nothing_on_record(), now())),
            ProblemCode::EkNotEnrolled
        );
    }

    #[test]
    fn certificate_older_than_the_active_one_is_not_confirmed() {
        let enrolled = Enrolled::new();
        let with_active = |issued_at| has_certificate(&enrolled, [7; 32], issued_at);
        let refusal =
            enrolled.confirm(enrolled.unconfirmed(), &with_active(now()), now()).unwrap_err();
        assert!(matches!(refusal, Rejection::ClaimOutdated { .. }), "{refusal}");
        enrolled
            .confirm(enrolled.unconfirmed(), &with_active(now() - Duration::SECOND), now())
            .unwrap();
    }

    /// Times on record are in whole seconds, so a certificate issued in the same second could never
    /// be confirmed.
    #[test]
    fn nothing_is_sealed_that_could_not_be_confirmed() {
        let enrolled = Enrolled::new();
        let key = BoundKey::verify(&enrolled.device.evidence()).unwrap();
        let records = has_certificate(&enrolled, [7; 32], now());
        let admitted = enrolled.ca.admit_to::<SealedFlow>(&enrolled.device, &records).unwrap();
        let scope = &enrolled.ca.scope;
        let candidate = |at| Candidate::decide(&admitted, &key, scope, &records, at);
        let refusal = candidate(now() + Duration::milliseconds(999)).unwrap_err();
        assert!(matches!(refusal, Rejection::ClaimOutdated { .. }), "{refusal}");
        candidate(now() + Duration::SECOND).unwrap();
    }
}

/// Records of a device with an active certificate.
fn has_certificate(enrolled: &Enrolled, ik_id: [u8; 32], issued_at: OffsetDateTime) -> Records {
    let registration = Registration {
        device_id: enrolled.facts().device_id.clone(),
        certificate: Some(CertificateOnRecord { ik_id, issued_at, in_force_since: issued_at }),
        recent_certificates: 1,
    };
    Records { registration: Some(registration), ..nothing_on_record() }
}

#[test]
fn ek_with_too_many_unconfirmed_certificates_is_told_to_wait_and_may_use_the_ticket_flow() {
    let Enrolled { mut ca, device, .. } = Enrolled::new();
    let records = |recent_unconfirmed| Records { recent_unconfirmed, ..nothing_on_record() };
    plan(&mut ca, &device, &records(QUOTA - 1), None, &[], now()).unwrap();
    let refusal = plan(&mut ca, &device, &records(QUOTA), None, &[], now()).unwrap_err();
    let Failure::Rejection(refusal) = refusal else { panic!("{refusal}") };
    assert_eq!(refusal.code(), ProblemCode::QuotaExceeded);
    assert!(refusal.problem().retry_after.is_some());
    ca.challenge(&device, &records(QUOTA)).unwrap();
}

mod reprovisioning {
    use super::*;
    use assay_ca_core::tpm::template::ParentKind;
    use assay_ca_core::{FIRST_GENERATION, SharedKeyOnRecord};

    fn with_policy(reprovision: Reprovision) -> Records {
        Records {
            enrolment: Some(Enrolment { reprovision, ..Enrolment::default() }),
            ..nothing_on_record()
        }
    }

    #[test]
    fn device_with_a_new_ik_is_certified_anew_unless_its_enrolment_forbids_it() {
        let enrolled = Enrolled::new();
        let same_ik = enrolled.unconfirmed().ik_id;
        for (policy, ik_id, is_refused) in [
            (Reprovision::Reissue, [7; 32], false),
            (Reprovision::Reuse, [7; 32], false),
            (Reprovision::Never, [7; 32], true),
            (Reprovision::Never, same_ik, false),
        ] {
            let old = has_certificate(&enrolled, ik_id, now() - Duration::HOUR);
            let records = Records { enrolment: with_policy(policy).enrolment, ..old };
            let decisions = [
                candidate(&enrolled.ca, &enrolled.device, &records).map(drop),
                enrolled.confirm(enrolled.unconfirmed(), &records, now()).map(drop),
                Readmitted::decide(proven(&enrolled, &records), &records).map(drop),
            ];
            for decision in decisions {
                match decision {
                    Ok(()) => assert!(!is_refused, "{policy}"),
                    Err(refusal) => {
                        assert!(is_refused, "{policy}: {refusal}");
                        assert_eq!(refusal.code(), ProblemCode::ReprovisionRefused);
                    }
                }
            }
        }
    }

    fn proven(enrolled: &Enrolled, records: &Records) -> assay_ca_core::ProvenDevice {
        let mut ca = Ca { rng: CountingRng::new(), ..Ca::trusting(&Vendor::new("unused")) };
        ca.anchors = enrolled.ca.anchors.clone();
        let challenge = ca.challenge(&enrolled.device, records).unwrap();
        ca.prove(&enrolled.device.answer(&challenge)).unwrap()
    }

    #[test]
    fn generation_follows_policy_and_use() {
        let Enrolled { ca, device, .. } = Enrolled::new();
        let used =
            |is_used| Some(SharedKeyOnRecord { generation: 5, is_used, plain_srk_generation: 0 });
        for (policy, shared_key, offered, accepted) in [
            (Reprovision::Reissue, None, Some(FIRST_GENERATION), &[][..]),
            (Reprovision::Reissue, used(false), Some(5), &[5]),
            (Reprovision::Reissue, used(true), Some(6), &[5, 6]),
            (Reprovision::Reuse, used(false), Some(5), &[5]),
            (Reprovision::Reuse, used(true), Some(5), &[5, 6]),
            (Reprovision::Never, None, Some(FIRST_GENERATION), &[]),
            (Reprovision::Never, used(false), Some(5), &[5]),
            (Reprovision::Never, used(true), None, &[5, 6]),
        ] {
            let records = of_a_young_key(shared_key, policy);
            let decided = generation(&ca, &device, ParentKind::Import, &records);
            assert_eq!(decided.as_ref().ok().copied(), offered, "{policy} {shared_key:?}");
            if let Err(refusal) = decided {
                assert_eq!(refusal.code(), ProblemCode::ReprovisionRefused);
            }
            assert_eq!(records.accepted_generations(), accepted, "{policy} {shared_key:?}");
        }
    }

    /// The key is not due to be rotated.
    fn of_a_young_key(shared_key: Option<SharedKeyOnRecord>, policy: Reprovision) -> Records {
        Records { shared_key, key_used_since: Some(now()), ..with_policy(policy) }
    }

    fn generation(
        ca: &Ca,
        device: &Device,
        to: ParentKind,
        records: &Records,
    ) -> Result<u32, Rejection> {
        let parent = match to {
            ParentKind::Import => SoftwareParent::fresh_p256(),
            ParentKind::PlainSrk => SoftwareParent::fresh_p256().into_plain_srk(),
        };
        let admitted = ca.admit_to::<SharedKeyFlow>(device, records).unwrap();
        let parent = parent.admitted(&admitted);
        let offer = KeyOffer::decide(admitted, parent, records, &Profile::default(), now());
        offer.map(|offer| offer.record().generation())
    }

    /// A key that was offered to a plain SRK may be known outside of the TPM, so an import parent
    /// is offered another one. Each row has what is on record (the policy, the last generation that
    /// was offered to a plain SRK, whether the key is used), what is offered to each kind of
    /// parent, and which generations are accepted.
    #[test]
    fn key_that_a_plain_srk_was_offered_is_not_offered_to_an_import_parent() {
        use ParentKind::{Import, PlainSrk};
        let Enrolled { ca, device, .. } = Enrolled::new();
        for (policy, plain_srk_generation, is_used, to_import, to_plain, accepted) in [
            (Reprovision::Reissue, 5, false, Some(6), Some(5), &[5, 6][..]),
            (Reprovision::Reissue, 5, true, Some(6), Some(6), &[5, 6]),
            (Reprovision::Reissue, 6, true, Some(7), Some(6), &[5, 6, 7]),
            (Reprovision::Reissue, 4, true, Some(6), Some(6), &[5, 6]),
            (Reprovision::Reissue, 4, false, Some(5), Some(5), &[5]),
            (Reprovision::Reuse, 5, true, Some(6), Some(5), &[5, 6]),
            (Reprovision::Reuse, 6, true, Some(7), Some(5), &[5, 6, 7]),
            (Reprovision::Reuse, 3, true, Some(5), Some(5), &[5, 6]),
            (Reprovision::Never, 5, false, Some(6), Some(5), &[5, 6]),
            (Reprovision::Never, 5, true, None, None, &[5, 6]),
        ] {
            let shared_key =
                Some(SharedKeyOnRecord { generation: 5, is_used, plain_srk_generation });
            let records = of_a_young_key(shared_key, policy);
            let offered = |to| generation(&ca, &device, to, &records).ok();
            assert_eq!(offered(Import), to_import, "{policy} {shared_key:?}");
            assert_eq!(offered(PlainSrk), to_plain, "{policy} {shared_key:?}");
            assert_eq!(records.accepted_generations(), accepted, "{policy} {shared_key:?}");
        }
    }

    /// An operator may change the policy between an offer and its first use. The device then has
    /// the old key or the new one.
    #[test]
    fn change_of_policy_locks_no_device_out_that_has_its_key() {
        let Enrolled { ca, device, .. } = Enrolled::new();
        let records = |policy, generation, is_used| Records {
            shared_key: Some(SharedKeyOnRecord { generation, is_used, plain_srk_generation: 0 }),
            ..with_policy(policy)
        };
        for (before, after) in Reprovision::ALL
            .into_iter()
            .flat_map(|before| Reprovision::ALL.map(|after| (before, after)))
        {
            for is_used in [false, true] {
                let on_offer = records(before, 5, is_used);
                let Ok(offered) = generation(&ca, &device, ParentKind::Import, &on_offer) else {
                    continue;
                };
                let accepted = records(after, 5, is_used).accepted_generations();
                assert!(
                    accepted.contains(&offered),
                    "{before} then {after}: {offered} was offered"
                );
                assert!(!is_used || accepted.contains(&5), "{before} then {after}: 5 is in use");
                let accepted = records(after, offered, true).accepted_generations();
                assert!(accepted.contains(&offered), "{before} then {after}: {offered} is in use");
            }
        }
    }

    #[test]
    fn device_that_used_too_many_generations_is_told_to_wait() {
        let Enrolled { ca, device, .. } = Enrolled::new();
        let generation = |reprovision, is_used, recent_generations| {
            let shared_key =
                Some(SharedKeyOnRecord { generation: 5, is_used, plain_srk_generation: 0 });
            let young = of_a_young_key(shared_key, reprovision);
            let records = Records { recent_generations, ..young };
            generation(&ca, &device, ParentKind::Import, &records)
        };
        let problem = generation(Reprovision::Reissue, true, QUOTA).unwrap_err().problem();
        assert_eq!(problem.code, ProblemCode::QuotaExceeded);
        assert!(problem.retry_after.is_some());
        assert_eq!(generation(Reprovision::Reissue, true, QUOTA - 1), Ok(6));
        assert_eq!(generation(Reprovision::Reissue, false, QUOTA), Ok(5));
        assert_eq!(generation(Reprovision::Reuse, true, QUOTA), Ok(5));
    }

    #[test]
    fn policies_read_back_from_their_names() {
        for policy in Reprovision::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
        }
        assert!("sometimes".parse::<Reprovision>().is_err());
    }
}

mod legacy_ek {
    use super::*;
    use assay_ca_core::Assurance;

    /// A TPM's EK as Azure's C SDK makes it, shown with the vendor's certificate, which is for
    /// another EK.
    fn legacy_device() -> (Ca, Device) {
        let vendor = Vendor::new("Acme");
        let mut device = Device::with_ek(&vendor, SoftwareEk::golden("rsa2048"));
        device.ek_certificates =
            vendor.certify(&golden_area("ek-rsa2048").public_key().unwrap(), |_| ());
        (Ca::trusting(&vendor), device)
    }

    #[test]
    fn ek_of_azures_sdk_is_recognised_and_refused_with_an_explanation() {
        let (ca, device) = legacy_device();
        for enrolment in [None, Some(Enrolment::default())] {
            let refusal = ca.trust(&device, enrolment.as_ref()).unwrap_err();
            assert!(matches!(refusal, Rejection::EkOfAzureSdk { .. }), "{refusal}");
            assert_eq!(refusal.code(), ProblemCode::EkCertificateMismatch);
            assert!(refusal.to_string().contains("--legacy-dps-ek"));
        }
    }

    #[test]
    fn ek_of_azures_sdk_is_trusted_for_its_enrolment_alone_if_that_says_so() {
        let (ca, mut device) = legacy_device();
        let enrolment = Enrolment { legacy_dps_ek: true, ..Enrolment::default() };
        assert_eq!(
            ca.trust(&device, Some(&enrolment)).unwrap().assurance(),
            Assurance::EnrolmentList
        );
        device.ek_certificates.clear();
        assert_eq!(
            ca.trust(&device, Some(&enrolment)).unwrap().assurance(),
            Assurance::EnrolmentList
        );
    }

    #[test]
    fn mismatch_of_other_kinds_of_key_is_no_sign_of_azures_sdk() {
        let vendor = Vendor::new("Acme");
        let mut device = Device::of(&vendor);
        device.ek_certificates = Device::of(&vendor).ek_certificates;
        let refusal = Ca::trusting(&vendor).trust(&device, None).unwrap_err();
        assert!(matches!(refusal, Rejection::EkCertificateMismatch { .. }), "{refusal}");
    }
}

mod revocation_list {
    use assay_ca_core::{REVOCATION_LIST_LIFETIME, RevocationReason, Revoked};
    use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

    use super::*;

    #[test]
    fn names_what_it_was_given_and_is_signed_by_the_issuing_ca() {
        let enrolled = Enrolled::new();
        let revoked = |serial, reason| Revoked {
            serial: [serial; 16],
            since: now() - Duration::HOUR,
            reason,
        };
        let revoked = [
            revoked(0x41, RevocationReason::Superseded),
            revoked(0x42, RevocationReason::CertificateHold),
            revoked(0x43, RevocationReason::CessationOfOperation),
        ];
        let list = enrolled.ca.issuers.current(now()).revocation_list(revoked, 7, now()).unwrap();
        let (rest, list) = CertificateRevocationList::from_der(&list).unwrap();
        assert!(rest.is_empty());
        let chain = enrolled.open(&enrolled.reply).unwrap().chain;
        let (_, issuing) = X509Certificate::from_der(&chain[1]).unwrap();
        list.verify_signature(issuing.public_key()).unwrap();
        assert_eq!(list.issuer().as_raw(), issuing.subject().as_raw());
        assert_eq!(list.crl_number().unwrap().to_string(), "7");
        assert_eq!(list.last_update().timestamp(), now().unix_timestamp());
        let until = (now() + REVOCATION_LIST_LIFETIME).unix_timestamp();
        assert_eq!(list.next_update().unwrap().timestamp(), until);
        let entries: Vec<_> = list
            .iter_revoked_certificates()
            .map(|entry| (entry.raw_serial()[0], entry.reason_code().unwrap().1.0))
            .collect();
        assert_eq!(entries, [(0x41, 4), (0x42, 6), (0x43, 5)]);
    }

    #[test]
    fn is_believed_for_a_day_if_the_issuer_signed_it() {
        let (ca, later) = (Enrolled::new().ca, REVOCATION_LIST_LIFETIME - Duration::SECOND);
        let list = ca.issuers.current(now()).revocation_list([], 1, now()).unwrap();
        assert_eq!(
            ca.issuers.current(now()).believes_until(&list, now() + later),
            Some(now() + REVOCATION_LIST_LIFETIME)
        );
        assert_eq!(
            ca.issuers.current(now()).believes_until(&list, now() + REVOCATION_LIST_LIFETIME),
            None
        );
        for at in [list.len() / 3, list.len() - 1] {
            let mut altered = list.clone();
            altered[at] ^= 1;
            assert_eq!(
                ca.issuers.current(now()).believes_until(&altered, now()),
                None,
                "byte {at}"
            );
        }
        assert_eq!(
            ca.issuers.current(now()).believes_until(&[&list[..], b"x"].concat(), now()),
            None
        );
        assert_eq!(ca.issuers.current(now()).believes_until(b"a list", now()), None);
    }

    #[test]
    fn may_be_empty() {
        let list = Enrolled::new().ca.issuers.current(now()).revocation_list([], 1, now()).unwrap();
        let (_, list) = CertificateRevocationList::from_der(&list).unwrap();
        assert_eq!(list.iter_revoked_certificates().count(), 0);
    }
}
