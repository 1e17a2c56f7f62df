//! What a claim and its ticket prove, and for how long.

use assay_ca_core::{
    CLAIM_LIFETIME, CLOCK_SKEW, CertificateOnRecord, Enrolment, Overlapping, ProvenDevice, QUOTA,
    Readmitted, Records, Registration, Rejection, TicketKey,
};
use assay_wire::{EkId, ProblemCode, Proof, Ticket};
use time::Duration;

use crate::fixture::*;

/// A device that has activated its credential.
fn answered() -> (Ca, Device, Proof) {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let challenge = ca.challenge(&device, &nothing_on_record()).unwrap();
    let request = device.answer(&challenge);
    (ca, device, request)
}

fn code(result: Result<ProvenDevice, Rejection>) -> ProblemCode {
    result.unwrap_err().problem().code
}

#[test]
fn activated_credential_proves_the_device() {
    let (ca, device, request) = answered();
    let proven = ca.prove(&request).unwrap();
    assert_eq!(proven.ek_id(), device.ek.key().ek_id());
    assert_eq!(proven.ik_spki(), device.ik_area.public_key().unwrap().spki());
    assert_eq!(*proven.device_id(), device.evidence().ek.derived_device_id());
}

#[test]
fn every_kind_of_ek_proves_every_kind_of_ik() {
    let vendor = Vendor::new("Acme");
    let mut ca = Ca::trusting(&vendor);
    for kind in ["rsa2048", "rsa3072", "p256", "p384"] {
        for (area, ik) in [p256_ik(), p384_ik(), rsa_ik()] {
            let mut device = Device::with_ek(&vendor, SoftwareEk::golden(kind));
            (device.ik_area, device.csr) = (area, csr(&ik));
            let challenge = ca.challenge(&device, &nothing_on_record()).unwrap();
            ca.prove(&device.answer(&challenge)).unwrap();
        }
    }
}

#[test]
fn wrong_ticket_is_refused() {
    let (ca, _, mut request) = answered();
    for byte in 0..Ticket::LEN {
        let mut ticket = *request.ticket.as_bytes();
        ticket[byte] ^= 1;
        let wrong = Proof { claim: request.claim.clone(), ticket: ticket.into() };
        assert_eq!(code(ca.prove(&wrong)), ProblemCode::TicketRefused);
    }
    request.ticket = [0; Ticket::LEN].into();
    assert_eq!(code(ca.prove(&request)), ProblemCode::TicketRefused);
}

#[test]
fn claim_altered_in_any_byte_is_refused() {
    let (ca, _, request) = answered();
    for byte in 0..request.claim.len() {
        for change in [0x01, 0x80, 0xFF] {
            let mut claim = request.claim.to_vec();
            claim[byte] ^= change;
            let altered =
                Proof { claim: claim.try_into().unwrap(), ticket: request.ticket.clone() };
            assert_eq!(code(ca.prove(&altered)), ProblemCode::TicketRefused, "byte {byte}");
        }
    }
    let longer = [&request.claim[..], &[0]].concat();
    let altered = Proof { claim: longer.try_into().unwrap(), ..request };
    assert_eq!(code(ca.prove(&altered)), ProblemCode::TicketRefused);
}

#[test]
fn ticket_of_another_claim_is_refused() {
    let (ca, _, request) = answered();
    let (_, _, other) = answered();
    let mixed = Proof { claim: request.claim, ticket: other.ticket };
    assert_eq!(code(ca.prove(&mixed)), ProblemCode::TicketRefused);
}

#[test]
fn claim_of_another_cas_key_is_refused() {
    let (mut ca, _, request) = answered();
    ca.ticket_keys = TicketKey::generate(&mut ca.rng).into();
    let refusal = ca.prove(&request).unwrap_err();
    assert_eq!(refusal, Rejection::ClaimOfAnotherKey);
    assert_eq!(refusal.code(), ProblemCode::TicketRefused);
}

#[test]
fn claims_of_the_key_in_use_of_the_one_before_and_of_the_next_are_accepted() {
    let (mut ca, _, request) = answered();
    let key = ca.ticket_keys.in_use(now()).clone();
    let other = || TicketKey::new([3; TicketKey::LEN]);
    for keys in [
        Overlapping::new(key.clone(), Some((now(), other()))),
        Overlapping::new(other(), Some((now() + Duration::HOUR, key.clone()))),
    ] {
        ca.ticket_keys = keys;
        ca.prove(&request).unwrap();
        assert_ne!(ca.ticket_keys.in_use(now()).secret(), key.secret());
    }
}

#[test]
fn the_next_secret_is_in_use_from_its_time_on() {
    let keys = Overlapping::new(1, Some((now(), 2)));
    assert_eq!([now() - Duration::SECOND, now()].map(|at| *keys.in_use(at)), [1, 2]);
}

#[test]
fn claim_of_another_scope_is_refused() {
    let (mut ca, _, request) = answered();
    ca.scope = "plant-8".parse().unwrap();
    assert!(matches!(ca.prove(&request), Err(Rejection::ClaimOfAnotherScope { .. })));
    assert_eq!(code(ca.prove(&request)), ProblemCode::TicketRefused);
}

#[test]
fn claim_is_refused_from_its_expiry_on() {
    let (ca, _, request) = answered();
    let at = |time| ProvenDevice::verify(&request, &ca.scope, &ca.ticket_keys, time);
    at(now() + CLAIM_LIFETIME - Duration::SECOND).unwrap();
    assert_eq!(code(at(now() + CLAIM_LIFETIME)), ProblemCode::ClaimExpired);
}

#[test]
fn claim_from_the_future_is_refused_beyond_the_skew_of_clocks() {
    let (ca, _, request) = answered();
    let at = |time| ProvenDevice::verify(&request, &ca.scope, &ca.ticket_keys, time);
    at(now() - CLOCK_SKEW).unwrap();
    assert!(matches!(
        at(now() - CLOCK_SKEW - Duration::SECOND),
        Err(Rejection::ClaimFromTheFuture { .. })
    ));
}

/// The credential opens for the IK that was checked, and for no other object in the same TPM.
#[test]
fn credential_is_bound_to_the_name_of_the_ik() {
    let vendor = Vendor::new("Acme");
    let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
    let challenge = ca.challenge(&device, &nothing_on_record()).unwrap();
    let credential = assay_ca_core::tpm::credential::Credential {
        id_object: challenge.credential_blob.to_vec(),
        encrypted_seed: challenge.encrypted_seed.to_vec(),
    };
    assert!(device.ek.activate(&Device::of(&vendor).ik_name(), &credential).is_none());
}

#[test]
fn ticket_key_shows_nothing_when_printed() {
    assert_eq!(format!("{:?}", TicketKey::new([7; 32])), "TicketKey(..)");
    let (ca, _, request) = answered();
    let key_in_claim = request
        .claim
        .windows(4)
        .any(|window| window == &ca.ticket_keys.in_use(now()).secret()[..4]);
    assert!(!key_in_claim);
}

mod readmission {
    use super::*;

    fn readmit(records: &Records) -> Result<(), ProblemCode> {
        let (ca, _, request) = answered();
        Readmitted::decide(ca.prove(&request).unwrap(), records)
            .map(drop)
            .map_err(|rejection| rejection.code())
    }

    #[test]
    fn device_is_readmitted_if_nothing_changed() {
        readmit(&nothing_on_record()).unwrap();
    }

    #[test]
    fn device_that_was_disabled_meanwhile_is_refused() {
        assert_eq!(
            readmit(&Records { disabled: true, ..nothing_on_record() }),
            Err(ProblemCode::DeviceDisabled)
        );
    }

    #[test]
    fn device_whose_id_was_taken_meanwhile_is_refused() {
        let id_holder = Some(EkId::from([7; 32]));
        assert_eq!(
            readmit(&Records { id_holder, ..nothing_on_record() }),
            Err(ProblemCode::DeviceIdTaken)
        );
    }

    /// The name is then free for the hardware that replaces the device.
    #[test]
    fn device_that_was_removed_meanwhile_has_lost_the_name_that_was_given_to_it() {
        let vendor = Vendor::new("Acme");
        let (mut ca, device) = (Ca::trusting(&vendor), Device::of(&vendor));
        let named =
            Enrolment { device_id: Some("pump-17".parse().unwrap()), ..Enrolment::default() };
        let before = Records { enrolment: Some(named), ..nothing_on_record() };
        let request = device.answer(&ca.challenge(&device, &before).unwrap());
        let readmit = |records: &Records| Readmitted::decide(ca.prove(&request).unwrap(), records);
        readmit(&before).unwrap();
        let refusal = readmit(&nothing_on_record()).unwrap_err();
        assert!(matches!(refusal, Rejection::DeviceIdWithdrawn { .. }), "{refusal}");
        assert_eq!(
            refusal.code(),
            ProblemCode::ClaimExpired,
            "it begins again, and learns what is due to it now"
        );
        let disabled = readmit(&Records { disabled: true, ..nothing_on_record() }).unwrap_err();
        assert_eq!(disabled.code(), ProblemCode::DeviceDisabled, "it is not to begin again");
        let renamed =
            Enrolment { device_id: Some("pump-18".parse().unwrap()), ..Enrolment::default() };
        let refusal =
            readmit(&Records { enrolment: Some(renamed), ..nothing_on_record() }).unwrap_err();
        assert_eq!(refusal.code(), ProblemCode::DeviceIdNotEnrolled);
    }

    #[test]
    fn device_that_was_registered_under_another_id_meanwhile_is_refused() {
        let registration = Some(Registration {
            device_id: "pump-1".parse().unwrap(),
            certificate: None,
            recent_certificates: 1,
        });
        assert_eq!(
            readmit(&Records { registration, ..nothing_on_record() }),
            Err(ProblemCode::EkRegistered)
        );
    }

    #[test]
    fn claim_from_before_a_certificate_for_another_ik_is_refused() {
        let (ca, _, request) = answered();
        let proven = || ca.prove(&request).unwrap();
        let recent_certificates = 1;
        let registered = |ik_id, issued_at| {
            let certificate =
                Some(CertificateOnRecord { ik_id, issued_at, in_force_since: issued_at });
            let registration = Registration {
                device_id: proven().device_id().clone(),
                certificate,
                recent_certificates,
            };
            Records { registration: Some(registration), ..nothing_on_record() }
        };
        let (other_ik, this_ik) = ([7; 32], proven().ik_id());
        let (later, earlier) = (now() + Duration::seconds(1), now() - Duration::seconds(1));
        let refusal = Readmitted::decide(proven(), &registered(other_ik, later)).unwrap_err();
        assert!(matches!(refusal, Rejection::ClaimOutdated { .. }), "{refusal}");
        assert_eq!(refusal.code(), ProblemCode::ClaimExpired);
        assert!(
            Readmitted::decide(proven(), &registered(other_ik, now())).is_err(),
            "as old as the certificate"
        );
        Readmitted::decide(proven(), &registered(other_ik, earlier)).unwrap();
        Readmitted::decide(proven(), &registered(this_ik, later)).unwrap();
    }

    #[test]
    fn device_that_got_too_many_certificates_is_told_to_wait() {
        let (ca, _, request) = answered();
        let readmit = |ik_id, recent_certificates| {
            let proven = ca.prove(&request).unwrap();
            let certificate = Some(CertificateOnRecord {
                ik_id,
                issued_at: now() - Duration::hours(1),
                in_force_since: now() - Duration::hours(1),
            });
            let device_id = proven.device_id().clone();
            let registration = Some(Registration { device_id, certificate, recent_certificates });
            Readmitted::decide(proven, &Records { registration, ..nothing_on_record() }).map(drop)
        };
        let problem = readmit([7; 32], QUOTA).unwrap_err().problem();
        assert_eq!(problem.code, ProblemCode::QuotaExceeded);
        assert!(problem.retry_after.is_some());
        readmit([7; 32], QUOTA - 1).unwrap();
        readmit(ca.prove(&request).unwrap().ik_id(), QUOTA).unwrap();
    }

    #[test]
    fn device_that_was_enrolled_under_another_id_meanwhile_is_refused() {
        let enrolment =
            Some(Enrolment { device_id: Some("pump-1".parse().unwrap()), ..Enrolment::default() });
        assert_eq!(
            readmit(&Records { enrolment, ..nothing_on_record() }),
            Err(ProblemCode::DeviceIdNotEnrolled)
        );
    }

    #[test]
    fn device_whose_enrolment_was_removed_meanwhile_is_refused() {
        let vendor = Vendor::new("Acme");
        let (mut ca, mut device) = (Ca::trusting(&vendor), Device::of(&vendor));
        device.ek_certificates.clear();
        let records = Records { enrolment: Some(enrolled()), ..nothing_on_record() };
        let request = device.answer(&ca.challenge(&device, &records).unwrap());
        Readmitted::decide(ca.prove(&request).unwrap(), &records).unwrap();
        let refusal =
            Readmitted::decide(ca.prove(&request).unwrap(), &nothing_on_record()).unwrap_err();
        assert_eq!(refusal.code(), ProblemCode::EkNotEnrolled);
    }
}
