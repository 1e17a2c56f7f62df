//! Who may renew a certificate, what comes back, and when it comes into force.

use std::sync::Arc;

use assay_ca_core::{
    ActiveCertificate, Admission, Admitted, Adopting, AdoptionEvidence, Assurance,
    CertificateOnRecord, Confirmed, Enrolment, Failure, Flaws, InForce, Issued, Offered,
    Overlapping, Prepared, Profile, Proven, QUOTA, Readmitted, Records, Registration, Rejection,
    RenewFlow, RenewalEvidence, RenewalProof, Renewed, Renewing, Reprovision, STATEMENT_LIFETIME,
    SealedFlow, SealedOnRecord, Sealing, Shown, TicketKey, TrustedEk, Unconfirmed,
};
use assay_ca_core::{BoundKey, CLOCK_SKEW, Candidate, TrustAnchors};
use assay_wire::{Adoption, CertificateReply, ProblemCode, Renewal};
use rcgen::{KeyPair, SigningKey};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::fixture::*;

/// A device with a certificate that it got by a ticket, of 90 days, at [`now`].
pub(crate) struct Holder {
    pub(crate) ca: Ca,
    pub(crate) device: Device,
    ik: KeyPair,
    pub(crate) active: ActiveCertificate,
    pub(crate) profile: Profile,
}

impl Holder {
    pub(crate) fn new() -> Self {
        Self::with_ik(p256_ik())
    }

    fn with_ik((ik_area, ik): (assay_ca_core::tpm::public::PublicArea, KeyPair)) -> Self {
        let vendor = Vendor::new("Acme");
        let mut ca = Ca::trusting(&vendor);
        let device = Device { ik_area, csr: csr(&ik), ..Device::of(&vendor) };
        let nothing = nothing_on_record();
        let proof = device.answer(&ca.challenge(&device, &nothing).unwrap());
        let readmitted = Readmitted::decide(ca.prove(&proof).unwrap(), &nothing).unwrap();
        let profile = Profile::default();
        let prepared = Prepared::<Proven>::new(
            readmitted,
            &profile,
            ca.issuers.current(now()),
            now(),
            &mut ca.rng,
        )
        .unwrap();
        let issued = Issued::<Proven>::sign(prepared).unwrap();
        let active = ActiveCertificate {
            serial: issued.facts().serial,
            ik_id: issued.facts().ik_id,
            der: issued.der().to_vec(),
        };
        Self { ca, device, ik, active, profile }
    }

    /// What is on record about it.
    pub(crate) fn records(&self) -> Records {
        let ek = self.device.ek.key().ek_id();
        let device_id = self.device.evidence().ek.derived_device_id();
        let certificate = CertificateOnRecord {
            ik_id: self.active.ik_id,
            issued_at: now(),
            in_force_since: now(),
        };
        let registration =
            Registration { device_id, certificate: Some(certificate), recent_certificates: 0 };
        Records { registration: Some(registration), id_holder: Some(ek), ..nothing_on_record() }
    }

    /// A request that asks for the certificate in force to be renewed.
    fn request(&self, at: OffsetDateTime) -> Renewal {
        let certificate = Sha256::digest(&self.active.der).into();
        let time = at.unix_timestamp().unsigned_abs();
        let signature = self.sign(&Renewal::signed(&self.ca.scope, &certificate, time));
        let bundle = self.device.request();
        Renewal {
            ek_public: bundle.ek_public,
            ek_certificates: bundle.ek_certificates,
            certificate,
            time,
            signature: signature.try_into().unwrap(),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.ik.sign(message).unwrap()
    }

    /// Every check up to the proof.
    fn prove(
        &self,
        request: Renewal,
        records: &Records,
        at: OffsetDateTime,
    ) -> Result<RenewalProof, Rejection> {
        self.prove_with(request, records, Some(&self.active), &self.ca.anchors, at)
    }

    fn prove_with(
        &self,
        request: Renewal,
        records: &Records,
        active: Option<&ActiveCertificate>,
        anchors: &TrustAnchors,
        at: OffsetDateTime,
    ) -> Result<RenewalProof, Rejection> {
        let evidence = RenewalEvidence::parse(request, at)?;
        let ek = TrustedEk::verify(&evidence.ek, anchors, records.enrolment.as_ref(), at)?;
        let admission = Admission {
            groups: &self.ca.groups,
            flaws: &Flaws::default(),
            waits_since: None,
            ik: None,
            now: at,
        };
        let offered = Offered::<RenewFlow>::ALWAYS;
        let admitted = Admitted::decide(offered, ek, records, &admission)?;
        RenewalProof::verify(InForce::find(&admitted, &evidence, active, &self.ca.scope, at)?)
    }

    /// Renews with everything as it should be, except what is on record.
    fn renew_with(
        &mut self,
        records: &Records,
        waiting: &[Unconfirmed],
        at: OffsetDateTime,
    ) -> Result<(CertificateReply, Option<Issued<Renewed>>), Failure> {
        let proof = self.prove(self.request(at), records, at)?;
        let Ca { ticket_keys, issuers, rng, .. } = &mut self.ca;
        let renewing =
            Renewing::plan(proof, records, waiting, ticket_keys, &self.profile, issuers, at, rng)?;
        Ok(renewing.sign(ticket_keys.in_use(at), rng)?)
    }

    /// Renews when it is due.
    pub(crate) fn renewed(&mut self) -> Issued<Renewed> {
        self.renew_with(&self.records(), &[], due()).unwrap().1.unwrap()
    }

    fn adoption(&self, renewed: &Issued<Renewed>, at: OffsetDateTime) -> Adoption {
        let (certificate, time) = (renewed.sha256(), at.unix_timestamp().unsigned_abs());
        let signature = self.sign(&Adoption::signed(&self.ca.scope, &certificate, time));
        let signature = signature.try_into().unwrap();
        Adoption { certificate, time, signature, ek_id: renewed.facts().ek_id }
    }

    fn adopt(
        &self,
        adoption: Adoption,
        waiting: SealedOnRecord,
        at: OffsetDateTime,
    ) -> Result<Adopting, Rejection> {
        let evidence = AdoptionEvidence::parse(adoption, at)?;
        Adopting::plan(&evidence, waiting, &self.ca.scope, &self.ca.ticket_keys, at)
    }
}

/// When a certificate of [`Holder`] may be renewed.
pub(crate) fn due() -> OffsetDateTime {
    now() + Duration::days(60)
}

/// A renewed certificate as it is on record.
pub(crate) fn waiting(renewed: &Issued<Renewed>) -> Unconfirmed {
    let facts = renewed.facts();
    Unconfirmed {
        serial: facts.serial,
        device_id: facts.device_id.clone(),
        ek_id: facts.ek_id,
        ik_id: facts.ik_id,
        assurance: facts.assurance,
        issued_at: facts.issued_at,
        confirm_by: facts.confirm_by.unwrap(),
        sha256: renewed.sha256(),
        encrypted: renewed.encrypted(),
    }
}

fn code<T>(result: Result<T, Rejection>) -> ProblemCode {
    match result {
        Ok(_) => panic!("accepted"),
        Err(rejection) => rejection.problem().code,
    }
}

pub(crate) fn rejection<T>(result: Result<T, Failure>) -> Rejection {
    match result {
        Err(Failure::Rejection(rejection)) => rejection,
        Err(Failure::Fault(fault)) => panic!("{fault}"),
        Ok(_) => panic!("accepted"),
    }
}

#[test]
fn a_renewed_certificate_is_for_the_same_device_and_key_and_waits_until_its_end() {
    for ik in [p256_ik(), p384_ik(), rsa_ik()] {
        let mut holder = Holder::with_ik(ik);
        let records = holder.records();
        let (reply, issued) = holder.renew_with(&records, &[], due()).unwrap();
        let issued = issued.unwrap();
        assert_eq!(reply.chain[0][..], *issued.der());
        let [old, new] = [&holder.active.der[..], &reply.chain[0]]
            .map(|der| X509Certificate::from_der(der).unwrap().1);
        assert_eq!(old.public_key().raw, new.public_key().raw);
        assert_eq!(old.subject().as_raw(), new.subject().as_raw());
        let san = |certificate: &X509Certificate<'_>| {
            let san = certificate.subject_alternative_name().unwrap().unwrap();
            format!("{:?}", san.value)
        };
        assert_eq!(san(&old), san(&new));
        assert!(holder.ca.issuers.current(now()).has_signed(issued.der()));
        let facts = issued.facts();
        assert_eq!(facts.issued_at, due());
        assert_eq!(facts.not_after, due() + Duration::days(90));
        assert_eq!(facts.confirm_by, Some(facts.not_after));
        assert_ne!(issued.stored(), issued.der(), "it is stored encrypted");
        let renew_at = i64::try_from(reply.renew_at.unwrap()).unwrap();
        let renewal = OffsetDateTime::from_unix_timestamp(renew_at).unwrap() - due();
        assert!((Duration::days(60)..Duration::hours(60 * 24 + 180)).contains(&renewal));
    }
}

#[test]
fn a_renewal_by_another_key_is_refused() {
    let (holder, other) = (Holder::new(), Holder::new());
    let request = Renewal { signature: other.request(due()).signature, ..holder.request(due()) };
    let refused = holder.prove(request, &holder.records(), due());
    assert_eq!(code(refused), ProblemCode::StatementRefused);
    // Somebody else's IK, who signs what the device should have signed.
    let mut request = holder.request(due());
    let message = Renewal::signed(&holder.ca.scope, &request.certificate, request.time);
    request.signature = other.sign(&message).try_into().unwrap();
    let refused = holder.prove(request, &holder.records(), due());
    assert_eq!(code(refused), ProblemCode::StatementRefused);
    holder.prove(holder.request(due()), &holder.records(), due()).unwrap();
}

#[test]
fn a_renewal_signed_for_another_scope_time_certificate_or_purpose_is_refused() {
    let holder = Holder::new();
    let good = holder.request(due());
    let (scope, other_scope) = (&holder.ca.scope, &"plant-8".parse().unwrap());
    let signed = [
        Renewal::signed(other_scope, &good.certificate, good.time),
        Renewal::signed(scope, &[1; 32], good.time),
        Renewal::signed(scope, &good.certificate, good.time + 1),
        Adoption::signed(scope, &good.certificate, good.time),
    ];
    for message in signed {
        let signature = holder.sign(&message).try_into().unwrap();
        let refused = holder.prove(Renewal { signature, ..good.clone() }, &holder.records(), due());
        assert_eq!(code(refused), ProblemCode::StatementRefused);
    }
}

#[test]
fn a_renewal_whose_time_is_far_from_the_cas_is_refused_with_both_times() {
    let holder = Holder::new();
    let limit = STATEMENT_LIFETIME + CLOCK_SKEW;
    for apart in [limit, -limit] {
        holder.prove(holder.request(due() + apart), &holder.records(), due()).unwrap();
        let far = apart + if apart.is_positive() { Duration::SECOND } else { -Duration::SECOND };
        let refused = holder.prove(holder.request(due() + far), &holder.records(), due());
        let problem = refused.unwrap_err().problem();
        assert_eq!((problem.code, problem.retry_after), (ProblemCode::ClockOff, None));
        for time in [due(), due() + far] {
            assert!(problem.detail.contains(&time.to_string()), "{}", problem.detail);
        }
    }
    let never = Renewal { time: u64::MAX, ..holder.request(due()) };
    assert_eq!(code(holder.prove(never, &holder.records(), due())), ProblemCode::ClockOff);
}

#[test]
fn a_certificate_that_is_not_in_force_is_not_renewed() {
    let (holder, other) = (Holder::new(), Holder::new());
    let prove = |request, active, at| {
        let anchors = &holder.ca.anchors;
        code(holder.prove_with(request, &holder.records(), active, anchors, at))
    };
    let request = holder.request(due());
    assert_eq!(prove(request.clone(), None, due()), ProblemCode::CertificateNotInForce);
    // The EK has another certificate in force, e.g. a later one.
    let another = Some(&other.active);
    assert_eq!(prove(request, another, due()), ProblemCode::CertificateNotInForce);
    let end = now() + Duration::days(90);
    let late = holder.request(end);
    assert_eq!(prove(late, Some(&holder.active), end), ProblemCode::CertificateNotInForce);
    let before = end - Duration::SECOND;
    holder.prove(holder.request(before), &holder.records(), before).unwrap();
}

#[test]
fn whoever_is_not_admitted_does_not_renew() {
    let holder = Holder::new();
    let prove = |records: &Records, anchors: &TrustAnchors| {
        let (request, active) = (holder.request(due()), Some(&holder.active));
        code(holder.prove_with(request, records, active, anchors, due()))
    };
    let (anchors, records) = (&holder.ca.anchors, holder.records());
    let nobody = Vendor::new("Other").anchors();
    assert_eq!(prove(&records, &nobody), ProblemCode::EkCertificateUntrusted);
    let disabled = Records { disabled: true, ..records.clone() };
    assert_eq!(prove(&disabled, anchors), ProblemCode::DeviceDisabled);
    let taken = Records { id_holder: Some([7; 32].into()), ..records.clone() };
    assert_eq!(prove(&taken, anchors), ProblemCode::DeviceIdTaken);
    let mut without = holder.request(due());
    without.ek_certificates = Default::default();
    let refused = holder.prove(without.clone(), &records, due());
    assert_eq!(code(refused), ProblemCode::EkNotEnrolled);
    let enrolled = Records { enrolment: Some(enrolled()), ..records };
    holder.prove(without, &enrolled, due()).unwrap();
}

#[test]
fn a_renewal_is_no_new_provisioning_for_the_policy_of_an_enrolment() {
    let mut holder = Holder::new();
    let never = Enrolment { reprovision: Reprovision::Never, ..enrolled() };
    let records = Records { enrolment: Some(never), ..holder.records() };
    assert!(holder.renew_with(&records, &[], due()).unwrap().1.is_some());
}

#[test]
fn before_it_is_due_a_certificate_comes_back_with_the_time_of_its_renewal() {
    let mut holder = Holder::new();
    let records = holder.records();
    for at in [now(), due() - Duration::SECOND] {
        let (reply, issued) = holder.renew_with(&records, &[], at).unwrap();
        assert!(issued.is_none());
        assert_eq!(reply.chain[0][..], holder.active.der[..]);
        let renew_at = i64::try_from(reply.renew_at.unwrap()).unwrap();
        assert!(renew_at >= due().unix_timestamp());
    }
    assert!(holder.renew_with(&records, &[], due()).unwrap().1.is_some());
    holder.profile = Profile::default().with_renewal(Some(Duration::days(10))).unwrap();
    assert!(holder.renew_with(&records, &[], due()).unwrap().1.is_none());
    let due = now() + Duration::days(80);
    assert!(holder.renew_with(&records, &[], due).unwrap().1.is_some());
}

#[test]
fn a_certificate_is_not_renewed_if_the_new_one_would_not_end_later() {
    let mut holder = Holder::new();
    // The new one would end with its issuer, as the old one does.
    let records = holder.records();
    holder.profile =
        Profile::new(Duration::days(30), Duration::ZERO).unwrap().with_renewal(None).unwrap();
    let (reply, issued) = holder.renew_with(&records, &[], due()).unwrap();
    assert!(issued.is_none());
    assert_eq!(reply.chain[0][..], holder.active.der[..]);
    let later = due() + Duration::SECOND;
    assert!(holder.renew_with(&records, &[], later).unwrap().1.is_some());
}

#[test]
fn a_certificate_of_an_issuing_ca_that_is_not_known_any_more_is_renewed_at_once() {
    let mut holder = Holder::new();
    let soon = now() + Duration::MINUTE;
    holder.ca.rotate("Second", soon);
    holder.ca.forget_old_issuers();
    let records = holder.records();
    let issued = holder.renew_with(&records, &[], soon).unwrap().1.unwrap();
    assert!(holder.ca.issuers.current(soon).has_signed(issued.der()));
}

#[test]
fn a_certificate_of_an_issuing_ca_of_before_is_renewed_when_it_is_due_and_by_the_one_in_use() {
    let mut holder = Holder::new();
    let first = Arc::clone(holder.ca.issuers.current(now()));
    let soon = now() + Duration::MINUTE;
    holder.ca.rotate("Second", soon);
    let records = holder.records();
    for at in [now(), soon, due() - Duration::SECOND] {
        let (reply, issued) = holder.renew_with(&records, &[], at).unwrap();
        assert!(issued.is_none(), "it is not due");
        assert_eq!(*reply.chain, *first.chain(&holder.active.der).unwrap());
    }
    let (reply, issued) = holder.renew_with(&records, &[], due()).unwrap();
    let (second, issued) = (holder.ca.issuers.current(due()), issued.unwrap());
    assert!(second.has_signed(issued.der()) && !first.has_signed(issued.der()));
    assert_eq!(*reply.chain, *second.chain(issued.der()).unwrap());
}

#[test]
fn a_renewed_certificate_that_waits_since_before_the_switch_is_given_with_its_own_chain() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    let first = Arc::clone(holder.ca.issuers.current(now()));
    holder.ca.rotate("Second", due() + Duration::MINUTE);
    let later = due() + Duration::HOUR;
    let (reply, issued) = holder.renew_with(&records, &[waiting(&renewed)], later).unwrap();
    assert!(issued.is_none());
    assert_eq!(*reply.chain, *first.chain(renewed.der()).unwrap());
}

#[test]
fn a_renewal_that_is_asked_for_again_gives_the_certificate_that_waits() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    for at in [due(), due() + Duration::days(20)] {
        let (reply, issued) = holder.renew_with(&records, &[waiting(&renewed)], at).unwrap();
        assert!(issued.is_none());
        assert_eq!(reply.chain[0][..], *renewed.der());
        assert!(reply.renew_at.is_some());
    }
}

#[test]
fn a_certificate_that_waits_and_says_something_else_is_replaced_an_hour_later_at_the_earliest() {
    let mut holder = Holder::new();
    let renewed = holder.renewed();
    // Both an enrolment and the vendor's certificate vouch for the EK, which comes with the latter.
    let records = Records { enrolment: Some(enrolled()), ..holder.records() };
    let other = Unconfirmed { assurance: Assurance::EnrolmentList, ..waiting(&renewed) };
    let next = due() + Duration::HOUR;
    let early = next - Duration::SECOND;
    let refused =
        rejection(holder.renew_with(&records, std::slice::from_ref(&other), early)).problem();
    assert_eq!(refused.code, ProblemCode::QuotaExceeded);
    assert!(refused.retry_after.is_some());
    let (_, issued) = holder.renew_with(&records, &[other], next).unwrap();
    assert_ne!(issued.unwrap().der(), renewed.der());
}

#[test]
fn a_certificate_that_waits_and_is_older_than_the_one_in_force_is_not_given() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    let old = Unconfirmed { issued_at: now() - Duration::DAY, ..waiting(&renewed) };
    let (_, issued) = holder.renew_with(&records, &[old], due()).unwrap();
    assert_ne!(issued.unwrap().der(), renewed.der());
}

#[test]
fn a_certificate_that_waits_under_another_ticket_key_or_issuer_is_not_given() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    holder.ca.ticket_keys = TicketKey::generate(&mut holder.ca.rng).into();
    let (_, issued) = holder.renew_with(&records, &[waiting(&renewed)], due()).unwrap();
    let renewed = issued.unwrap();
    holder.ca.rotate("Second", due());
    holder.ca.forget_old_issuers();
    let next = due() + Duration::HOUR;
    let (_, issued) = holder.renew_with(&records, &[waiting(&renewed)], next).unwrap();
    assert!(holder.ca.issuers.current(next).has_signed(issued.unwrap().der()));
}

#[test]
fn a_certificate_that_waits_under_the_ticket_key_before_is_given_again() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    let before = holder.ca.ticket_keys.in_use(due()).clone();
    let next = (due(), TicketKey::generate(&mut holder.ca.rng));
    holder.ca.ticket_keys = Overlapping::new(before, Some(next));
    let (reply, issued) = holder.renew_with(&records, &[waiting(&renewed)], due()).unwrap();
    assert!(issued.is_none());
    assert_eq!(*reply.chain[0], *renewed.der());
}

#[test]
fn sealed_certificates_that_strangers_ask_for_keep_no_device_from_renewing() {
    let mut holder = Holder::new();
    let records = Records { recent_unconfirmed: 10 * QUOTA, ..holder.records() };
    assert!(holder.renew_with(&records, &[], due()).unwrap().1.is_some());
    let mut often = holder.records();
    often.registration.as_mut().unwrap().recent_certificates = QUOTA;
    let refused = rejection(holder.renew_with(&often, &[], due())).problem();
    assert_eq!(refused.code, ProblemCode::QuotaExceeded);
    assert!(refused.retry_after.is_some());
    often.registration.as_mut().unwrap().recent_certificates = QUOTA - 1;
    assert!(holder.renew_with(&often, &[], due()).unwrap().1.is_some());
}

/// A certificate that was sealed to the device, and its record.
fn sealed(holder: &mut Holder, at: OffsetDateTime) -> Unconfirmed {
    let nothing = nothing_on_record();
    let admitted = holder.ca.admit_to::<SealedFlow>(&holder.device, &nothing).unwrap();
    let ik = BoundKey::verify(&holder.device.evidence()).unwrap();
    let candidate = Candidate::decide(&admitted, &ik, &holder.ca.scope, &nothing, at).unwrap();
    let Ca { ticket_keys, issuers, rng, .. } = &mut holder.ca;
    let sealing = Sealing::plan(
        candidate,
        &nothing,
        None,
        &[],
        ticket_keys,
        &holder.profile,
        issuers,
        at,
        rng,
    );
    let (_, issued) = sealing.unwrap().sign(ticket_keys.in_use(at), at, rng).unwrap();
    let issued = issued.unwrap();
    let facts = issued.facts();
    Unconfirmed {
        serial: facts.serial,
        device_id: facts.device_id.clone(),
        ek_id: facts.ek_id,
        ik_id: facts.ik_id,
        assurance: facts.assurance,
        issued_at: facts.issued_at,
        confirm_by: facts.confirm_by.unwrap(),
        sha256: issued.sha256(),
        encrypted: issued.encrypted(),
    }
}

#[test]
fn a_sealed_certificate_that_waits_is_not_sent_in_clear_by_a_renewal() {
    let mut holder = Holder::new();
    let (sealed, records) = (sealed(&mut holder, due()), holder.records());
    let digest = sealed.sha256;
    let (reply, issued) = holder.renew_with(&records, &[sealed], due()).unwrap();
    assert_ne!(<[u8; 32]>::from(Sha256::digest(&*reply.chain[0])), digest);
    assert!(issued.is_some());
}

/// Its digest is in the claim, which anybody can read. So an adoption shows nothing of the TPM.
#[test]
fn a_sealed_certificate_is_not_adopted() {
    let mut holder = Holder::new();
    let sealed = sealed(&mut holder, due());
    let (certificate, time) = (sealed.sha256, due().unix_timestamp().unsigned_abs());
    let signature = holder.sign(&Adoption::signed(&holder.ca.scope, &certificate, time));
    let (signature, ek_id) = (signature.try_into().unwrap(), sealed.ek_id);
    let adoption = Adoption { certificate, time, signature, ek_id };
    let waiting = SealedOnRecord::waiting(sealed, holder.records());
    let refused = holder.adopt(adoption, waiting, due());
    assert_eq!(code(refused), ProblemCode::CertificateNotInForce);
}

#[test]
fn a_renewed_certificate_is_not_sealed() {
    let mut holder = Holder::new();
    let (renewed, nothing) = (holder.renewed(), nothing_on_record());
    let admitted = holder.ca.admit_to::<SealedFlow>(&holder.device, &nothing).unwrap();
    let ik = BoundKey::verify(&holder.device.evidence()).unwrap();
    let candidate = Candidate::decide(&admitted, &ik, &holder.ca.scope, &nothing, due()).unwrap();
    let Ca { ticket_keys, issuers, rng, .. } = &mut holder.ca;
    let waiting = [waiting(&renewed)];
    let sealing = Sealing::plan(
        candidate,
        &nothing,
        None,
        &waiting,
        ticket_keys,
        &holder.profile,
        issuers,
        due(),
        rng,
    );
    let (_, issued) = sealing.unwrap().sign(ticket_keys.in_use(due()), due(), rng).unwrap();
    assert!(issued.is_some());
}

#[test]
fn an_adopted_certificate_becomes_active_and_an_adoption_may_be_repeated() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    let adoption = holder.adoption(&renewed, due());
    let on_record = SealedOnRecord::waiting(waiting(&renewed), records.clone());
    let Adopting::New(confirmed) = holder.adopt(adoption.clone(), on_record, due()).unwrap() else {
        panic!("it waits")
    };
    assert_eq!((confirmed.serial(), confirmed.der()), (renewed.facts().serial, renewed.der()));
    let (device_id, assurance) = (renewed.facts().device_id.clone(), renewed.facts().assurance);
    let active = |records, der: &[u8]| SealedOnRecord::Active {
        device_id: device_id.clone(),
        assurance,
        records: Box::new(records),
        der: der.to_vec(),
    };
    let again = holder.adopt(adoption.clone(), active(records.clone(), renewed.der()), due());
    let Adopting::OnRecord { device_id: found } = again.unwrap() else { panic!("it is active") };
    assert_eq!(found, device_id);
    let disabled = Records { disabled: true, ..records.clone() };
    let refused = holder.adopt(adoption.clone(), active(disabled, renewed.der()), due());
    assert_eq!(code(refused), ProblemCode::DeviceDisabled);
    let refused = holder.adopt(adoption.clone(), active(records, &holder.active.der), due());
    assert_eq!(code(refused), ProblemCode::CertificateNotInForce);
    let refused = holder.adopt(adoption, SealedOnRecord::Ended, due());
    assert_eq!(code(refused), ProblemCode::CertificateNotInForce);
}

#[test]
fn an_adoption_by_another_key_or_of_something_else_is_refused() {
    let (mut holder, mut other) = (Holder::new(), Holder::new());
    let (renewed, others) = (holder.renewed(), other.renewed());
    let good = holder.adoption(&renewed, due());
    let (scope, other_scope) = (holder.ca.scope.clone(), "plant-8".parse().unwrap());
    let (device_id, assurance) = (renewed.facts().device_id.clone(), renewed.facts().assurance);
    let on_record = [
        SealedOnRecord::waiting(waiting(&renewed), holder.records()),
        SealedOnRecord::Active {
            device_id,
            assurance,
            records: Box::new(holder.records()),
            der: renewed.der().to_vec(),
        },
    ];
    let signed = [
        other.sign(&Adoption::signed(&scope, &good.certificate, good.time)),
        holder.sign(&Adoption::signed(&other_scope, &good.certificate, good.time)),
        holder.sign(&Adoption::signed(&scope, &others.sha256(), good.time)),
        holder.sign(&Adoption::signed(&scope, &good.certificate, good.time + 1)),
        holder.sign(&Renewal::signed(&scope, &good.certificate, good.time)),
    ];
    for on_record in on_record {
        for signature in signed.clone() {
            let signature = signature.try_into().unwrap();
            let adoption = Adoption { signature, ..good.clone() };
            let refused = holder.adopt(adoption, on_record.clone(), due());
            assert_eq!(code(refused), ProblemCode::StatementRefused);
        }
        holder.adopt(good.clone(), on_record.clone(), due()).unwrap();
        let late = due() + STATEMENT_LIFETIME + CLOCK_SKEW + Duration::SECOND;
        let refused = holder.adopt(good.clone(), on_record, late);
        assert_eq!(code(refused), ProblemCode::ClockOff);
    }
    // The record has another certificate than the adoption names.
    let another = SealedOnRecord::waiting(
        Unconfirmed { sha256: good.certificate, ..waiting(&others) },
        holder.records(),
    );
    assert_eq!(code(holder.adopt(good, another, due())), ProblemCode::CertificateNotInForce);
}

#[test]
fn an_adoption_is_refused_when_the_device_is_no_longer_welcome() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    let adopt = |records: Records| {
        let waiting = SealedOnRecord::waiting(waiting(&renewed), records);
        code(holder.adopt(holder.adoption(&renewed, due()), waiting, due()))
    };
    assert_eq!(adopt(Records { disabled: true, ..records.clone() }), ProblemCode::DeviceDisabled);
    let taken = Records { id_holder: Some([7; 32].into()), ..records.clone() };
    assert_eq!(adopt(taken), ProblemCode::DeviceIdTaken);
    // A certificate for another IK, or a later one for the same, came into force meanwhile.
    for ik_id in [[9; 32], holder.active.ik_id] {
        let mut overtaken = records.clone();
        let certificate = CertificateOnRecord { ik_id, issued_at: due(), in_force_since: due() };
        overtaken.registration.as_mut().unwrap().certificate = Some(certificate);
        assert_eq!(adopt(overtaken), ProblemCode::ClaimExpired);
    }
}

#[test]
fn a_handshake_with_a_renewed_certificate_puts_it_into_force_until_its_end() {
    let mut holder = Holder::new();
    let (renewed, records) = (holder.renewed(), holder.records());
    let decide = |at| {
        let shown = Shown::by_handshake(waiting(&renewed), &renewed.sha256())?;
        Confirmed::decide(shown, &records, &holder.ca.ticket_keys, at)
    };
    let end = due() + Duration::days(90);
    for at in [due(), end - Duration::SECOND] {
        assert_eq!(decide(at).unwrap().der(), renewed.der());
    }
    assert_eq!(code(decide(end)), ProblemCode::ClaimExpired);
    Shown::by_handshake(waiting(&renewed), &[1; 32]).unwrap_err();
}
