//! Who may have a certificate for another IK that waits, and what becomes of it.

use assay_ca_core::{
    Adopting, AdoptionEvidence, Assurance, CertificateOnRecord, Enrolment, Failure, Instead,
    Issued, ProvenDevice, QUOTA, Records, Registration, Rejection, Renewed, Renewing, Reprovision,
    SealedOnRecord, TicketKey, Unconfirmed,
};
use assay_wire::{Adoption, CertificateReply};
use rcgen::{KeyPair, SigningKey};
use time::{Duration, OffsetDateTime};

use crate::fixture::*;
use crate::renewal::{Holder, due, rejection, waiting};

/// A device with a certificate that was issued at [`now`], and another IK.
struct Rekeyer {
    holder: Holder,
    ik: KeyPair,
}

impl Rekeyer {
    fn new() -> Self {
        let mut holder = Holder::new();
        let (ik_area, ik) = p384_ik();
        holder.device = Device { ik_area, csr: csr(&ik), ..holder.device };
        Self { holder, ik }
    }

    /// Both round trips, the first one a second before.
    fn rekey_with(
        &mut self,
        records: &Records,
        waiting: &[Unconfirmed],
        at: OffsetDateTime,
    ) -> Result<(CertificateReply, Option<Issued<Renewed>>), Failure> {
        let device = self.proven(Instead::OnceTaken, at - Duration::SECOND)?;
        let Holder { ca, active, profile, .. } = &mut self.holder;
        let active = (active.ik_id == device.ik_id()).then_some(&*active);
        let Ca { ticket_keys, issuers, rng, .. } = ca;
        let rekeying = Renewing::rekey(
            device,
            records,
            active,
            waiting,
            ticket_keys,
            profile,
            issuers,
            at,
            rng,
        )?;
        Ok(rekeying.sign(ticket_keys.in_use(at), rng)?)
    }

    fn proven(&mut self, instead: Instead, at: OffsetDateTime) -> Result<ProvenDevice, Rejection> {
        let Holder { ca, device, .. } = &mut self.holder;
        let challenge = ca.challenge_at(device, &nothing_on_record(), instead, at)?;
        let proof = device.answer(&challenge);
        ProvenDevice::verify(&proof, &ca.scope, &ca.ticket_keys, at)
    }

    fn rekeyed(&mut self, at: OffsetDateTime) -> Issued<Renewed> {
        let records = self.holder.records();
        self.rekey_with(&records, &[], at).unwrap().1.unwrap()
    }

    fn adopt(
        &self,
        certificate: &Issued<Renewed>,
        records: Records,
        at: OffsetDateTime,
    ) -> Result<Adopting, Rejection> {
        let Ca { scope, ticket_keys, .. } = &self.holder.ca;
        let (sha256, time) = (certificate.sha256(), at.unix_timestamp().unsigned_abs());
        let signature = self.ik.sign(&Adoption::signed(scope, &sha256, time)).unwrap();
        let signature = signature.try_into().unwrap();
        let ek_id = certificate.facts().ek_id;
        let adoption = Adoption { certificate: sha256, time, signature, ek_id };
        let evidence = AdoptionEvidence::parse(adoption, at)?;
        let waits = SealedOnRecord::waiting(waiting(certificate), records);
        Adopting::plan(&evidence, waits, scope, ticket_keys, at)
    }
}

/// When the device rekeys.
fn then() -> OffsetDateTime {
    now() + Duration::DAY
}

#[test]
fn a_claim_says_whether_the_certificate_in_force_stays() {
    let mut device = Rekeyer::new();
    for instead in [Instead::AtOnce, Instead::OnceTaken] {
        assert_eq!(device.proven(instead, then()).unwrap().instead(), instead);
    }
    // The device sends the claim back. It cannot turn the one into the other.
    let Holder { ca, device, .. } = &mut device.holder;
    let mut claims = [Instead::AtOnce, Instead::OnceTaken].map(|instead| {
        let challenge = ca.challenge_at(device, &nothing_on_record(), instead, then()).unwrap();
        device.answer(&challenge)
    });
    let [a, b] = &mut claims;
    std::mem::swap(&mut a.claim, &mut b.claim);
    for proof in claims {
        let refused = ProvenDevice::verify(&proof, &ca.scope, &ca.ticket_keys, then()).unwrap_err();
        assert!(matches!(refused, Rejection::TicketWrong), "{refused}");
    }
}

#[test]
fn a_certificate_for_another_ik_waits_until_its_end_and_comes_into_force_by_its_adoption() {
    let mut device = Rekeyer::new();
    let issued = device.rekeyed(then());
    let facts = issued.facts();
    assert_eq!(facts.confirm_by, Some(facts.not_after));
    assert_ne!(facts.ik_id, device.holder.active.ik_id);
    assert_eq!(facts.device_id, device.holder.records().registration.unwrap().device_id);
    assert_ne!(issued.stored(), issued.der(), "it is encrypted while it waits");
    let records = device.holder.records();
    for at in [then(), then() + Duration::days(40)] {
        let adopting = device.adopt(&issued, records.clone(), at).unwrap();
        assert!(matches!(adopting, Adopting::New(_)));
    }
}

#[test]
fn a_rekey_that_is_asked_for_again_gives_the_certificate_that_waits_or_is_in_force() {
    let mut device = Rekeyer::new();
    let issued = device.rekeyed(then());
    let records = device.holder.records();
    for at in [then(), then() + Duration::days(20)] {
        let (reply, again) = device.rekey_with(&records, &[waiting(&issued)], at).unwrap();
        assert!(again.is_none());
        assert_eq!(reply.chain[0][..], *issued.der());
    }
    // It was adopted, and the device did not hear of it.
    let facts = issued.facts();
    device.holder.active = assay_ca_core::ActiveCertificate {
        serial: facts.serial,
        ik_id: facts.ik_id,
        der: issued.der().to_vec(),
    };
    let records = device.holder.records();
    let (reply, again) = device.rekey_with(&records, &[], then()).unwrap();
    assert!(again.is_none());
    assert_eq!(reply.chain[0][..], *issued.der());
}

#[test]
fn while_one_waits_for_another_ik_the_next_may_be_made_an_hour_later() {
    let mut device = Rekeyer::new();
    let issued = device.rekeyed(then());
    let records = device.holder.records();
    let waits = [Unconfirmed { ik_id: [7; 32], ..waiting(&issued) }];
    let soon = then() + Duration::HOUR - Duration::SECOND;
    let refused = rejection(device.rekey_with(&records, &waits, soon));
    assert!(matches!(refused, Rejection::RenewedTooOften { .. }), "{refused}");
    assert!(device.rekey_with(&records, &waits, then() + Duration::HOUR).unwrap().1.is_some());
}

/// Its issuing CA was replaced, so that the one in force is not given.
#[test]
fn a_rekey_to_the_key_in_force_is_limited_as_well() {
    let mut device = Rekeyer::new();
    let issued = device.rekeyed(then());
    let mut records = device.holder.records();
    let certificate = records.registration.as_mut().unwrap().certificate.as_mut().unwrap();
    certificate.ik_id = issued.facts().ik_id;
    let other = Unconfirmed { assurance: Assurance::EnrolmentList, ..waiting(&issued) };
    let soon = then() + Duration::MINUTE;
    let refused = rejection(device.rekey_with(&records, &[other], soon));
    assert!(matches!(refused, Rejection::RenewedTooOften { .. }), "{refused}");
}

#[test]
fn what_waits_for_the_ik_in_force_or_was_sealed_keeps_no_device_from_a_rekey() {
    let mut device = Rekeyer::new();
    let mut other = Holder::new();
    other.ca.ticket_keys = TicketKey::generate(&mut other.ca.rng).into();
    let renewed = other.renewed();
    let records = device.holder.records();
    let of_active = Unconfirmed { ik_id: device.holder.active.ik_id, ..waiting(&renewed) };
    // A stranger can ask for these. Only the CA can tell them apart, by the key.
    let sealed_or_of_old_key = Unconfirmed { ik_id: [7; 32], ..waiting(&renewed) };
    let waits = [of_active, sealed_or_of_old_key];
    assert!(device.rekey_with(&records, &waits, due()).unwrap().1.is_some());
}

#[test]
fn a_rekey_follows_the_rules_of_another_key() {
    let mut device = Rekeyer::new();
    let good = device.holder.records();
    let issued = device.rekeyed(then());
    let never = Enrolment { reprovision: Reprovision::Never, ..enrolled() };
    let registration = good.registration.clone().unwrap();
    let quota = Registration { recent_certificates: QUOTA, ..registration.clone() };
    let later = CertificateOnRecord {
        in_force_since: then() + Duration::SECOND,
        ..registration.certificate.clone().unwrap()
    };
    let overtaken = Registration { certificate: Some(later), ..registration };
    for (records, refusal) in [
        (Records { enrolment: Some(never), ..good.clone() }, "ReprovisionRefused"),
        (Records { disabled: true, ..good.clone() }, "DeviceDisabled"),
        (Records { registration: Some(quota), ..good.clone() }, "QuotaExceeded"),
        // A certificate that waited longer came into force meanwhile.
        (Records { registration: Some(overtaken), ..good.clone() }, "ClaimOutdated"),
    ] {
        let found = rejection(device.rekey_with(&records, &[], then()));
        assert!(format!("{found:?}").starts_with(refusal), "{found:?}");
        // What was good when it was issued is judged again.
        let found = device.adopt(&issued, records, then()).unwrap_err();
        assert!(format!("{found:?}").starts_with(refusal), "{found:?}");
    }
}

#[test]
fn a_certificate_that_waits_under_another_ticket_key_is_neither_given_nor_adopted() {
    let mut device = Rekeyer::new();
    let issued = device.rekeyed(then());
    device.holder.ca.ticket_keys = TicketKey::generate(&mut device.holder.ca.rng).into();
    let records = device.holder.records();
    device.adopt(&issued, records.clone(), then()).unwrap_err();
    let (_, again) = device.rekey_with(&records, &[waiting(&issued)], then()).unwrap();
    assert_ne!(again.unwrap().der(), issued.der());
}

#[test]
fn another_key_adopts_nothing() {
    let mut device = Rekeyer::new();
    let issued = device.rekeyed(then());
    let (_, other) = p384_ik();
    device.ik = other;
    let refused = device.adopt(&issued, device.holder.records(), then()).unwrap_err();
    assert!(matches!(refused, Rejection::StatementWrong { .. }), "{refused}");
}
