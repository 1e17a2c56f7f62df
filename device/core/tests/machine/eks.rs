//! Which EK a device shows, and what it does if the CA refuses that one.

use assay_device_core::{EkChoice, EkKind, Failure, ProvisionRequest, Step, find_ek};
use assay_wire::{Flow, ProblemCode};

use crate::world::World;
use crate::{FLOWS, request};

#[test]
fn other_eks_are_tried_while_the_ca_refuses_each() {
    for (flow, _) in FLOWS {
        for enrolled in [EkKind::P256, EkKind::Rsa2048] {
            let mut world = World::default();
            world.ca.enrolled = Some(enrolled);
            assert_eq!(world.run(request(flow)).unwrap().unwrap().ek, enrolled);
            // And by no detour the next time.
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
