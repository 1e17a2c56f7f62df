//! Which EK a device shows, and what it does if the CA refuses that one.

use assay_device_core::{
    EkCertificates, EkChoice, EkKind, Failure, ProvisionRequest, Step, find_ek,
};
use assay_wire::{Flow, ProblemCode, RequestBody};

use crate::world::World;
use crate::{FLOWS, request};

#[test]
fn other_eks_are_tried_while_the_ca_refuses_each() {
    for (flow, _) in FLOWS {
        for enrolled in [EkKind::P256, EkKind::Rsa2048] {
            let mut world = World::default();
            world.ca.enrolled = Some(enrolled);
            assert_eq!(world.run(request(flow)).unwrap().unwrap().ek, enrolled);
            // The next time, the device shows this EK first.
            let again = ProvisionRequest { again: true, ..request(flow) };
            assert_eq!(world.run(again).unwrap().unwrap().ek, enrolled);
            let detour = |step: &Step| matches!(step, Step::TryingEk { .. });
            assert!(!world.steps().iter().any(detour));
        }
    }
}

#[test]
fn first_refusal_is_told_if_the_ca_takes_no_ek() {
    let mut world = World::default();
    world.ca.enrolled = Some(EkKind::LegacyDps);
    let failure = world.run(request(Flow::Ticket)).unwrap().unwrap_err();
    assert!(
        matches!(&failure, Failure::Refused(problem) if problem.code == ProblemCode::EkNotEnrolled),
        "{failure}"
    );
    // P-384 is not in this TPM, and RSA-3072 has no certificate.
    assert_eq!(world.sent.len(), 2);
    assert_eq!(world.memory.in_use, None);
}

#[test]
fn ek_that_the_request_names_is_the_only_one_shown() {
    let mut world = World::default();
    world.ca.enrolled = Some(EkKind::Rsa2048);
    let ek = Some(EkChoice::Kind(EkKind::P256));
    let named = ProvisionRequest { ek, ..request(Flow::Ticket) };
    assert!(matches!(world.run(named).unwrap(), Err(Failure::Refused(_))));
    assert_eq!(world.sent.len(), 1);
}

#[test]
fn ek_that_a_ca_agreed_to_is_not_left_for_another() {
    let mut world = World::default();
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    world.ca.enrolled = Some(EkKind::Rsa2048);
    let again = ProvisionRequest { again: true, ..request(Flow::Ticket) };
    assert!(matches!(world.run(again).unwrap(), Err(Failure::Refused(_))));
    assert_eq!(world.sent.len(), 3);
}

#[test]
fn ek_without_a_kind_is_the_first_with_a_certificate() {
    let mut world = World::default();
    let found = world.drive(find_ek(None, world.now)).unwrap().unwrap();
    assert_eq!(found.kind, EkKind::P256);
    let found = world.drive(find_ek(Some(EkKind::Rsa3072), world.now)).unwrap().unwrap();
    assert!(found.kind == EkKind::Rsa3072 && found.certificates.chain.is_empty());
    let failure = world.drive(find_ek(Some(EkKind::P384), world.now)).unwrap();
    assert_eq!(failure, Err(Failure::Unsupported("p-384".into())));
}

#[test]
fn request_for_another_ek_is_not_met_by_what_was_granted() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        world.run(request(flow)).unwrap().unwrap();
        let ek = Some(EkChoice::Kind(EkKind::Rsa2048));
        let provisioned = world.run(ProvisionRequest { ek, ..request(flow) }).unwrap().unwrap();
        assert!(!provisioned.was_provisioned && provisioned.ek == EkKind::Rsa2048, "{flow}");
        let told = |step: &Step| *step == Step::NotTheEkBefore(EkKind::P256);
        assert!(world.steps().iter().any(told), "{flow}");
    }
}

#[test]
fn certificate_that_waits_for_its_confirmation_is_not_confirmed_as_another_device() {
    let mut world = World::default();
    world.ca.refuses_last = Some(ProblemCode::DeviceDisabled);
    world.run(request(Flow::Sealed)).unwrap().unwrap_err();
    world.ca.refuses_last = None;
    world.ca.heard.clear();
    let (kind, id) = (EkKind::Rsa2048, crate::tpm::ek_id(EkKind::Rsa2048));
    let ek_certificates =
        EkCertificates { chain: vec![vec![1]], key_id: Some(id), kind: Some(kind) };
    let other =
        ProvisionRequest { ek_certificates: Some(ek_certificates), ..request(Flow::Sealed) };
    assert_eq!(world.run(other).unwrap().unwrap().ek, kind);
    assert!(matches!(world.ca.heard[0], RequestBody::Enroll(_)), "{:?}", world.ca.heard);
}

#[test]
fn certificate_in_the_request_needs_a_kind_that_manufacturers_certify() {
    let given = EkCertificates { chain: vec![vec![1]], ..EkCertificates::default() };
    let given = ProvisionRequest { ek_certificates: Some(given), ..request(Flow::Ticket) };
    assert_eq!(World::default().run(given.clone()).unwrap(), Err(Failure::UnknownKindOfEk));
    let ek = Some(EkChoice::Kind(EkKind::LegacyDps));
    let legacy = ProvisionRequest { ek, ..given };
    assert_eq!(World::default().run(legacy).unwrap(), Err(Failure::CertificateForLegacyEk));
}

/// Anybody who carries the messages can forge the refusal.
#[test]
fn refused_confirmation_neither_loses_the_certificate_nor_has_another_ek_tried() {
    let mut world = World::default();
    world.ca.refuses_last = Some(ProblemCode::EkNotEnrolled);
    let failure = world.run(request(Flow::Sealed)).unwrap();
    assert!(matches!(failure, Err(Failure::Refused(_))), "{failure:?}");
    assert_eq!(world.sent.len(), 2);
    assert!(world.memory.in_use.is_some());
    world.ca.refuses_last = None;
    world.ca.heard.clear();
    world.run(request(Flow::Sealed)).unwrap().unwrap();
    assert!(matches!(world.ca.heard[..], [RequestBody::Confirm(_)]), "{:?}", world.ca.heard);
}
