//! What the CA says instead of what was asked for.

use std::time::Duration;

use assay_device_core::{Failure, ProvisionRequest};
use assay_wire::{Flow, Problem, ProblemCode};

use crate::world::World;
use crate::{FLOWS, request, serial};

fn a_problem(code: ProblemCode) -> Problem {
    Problem::new(code, "as the test has it".into())
}

#[test]
fn busy_ca_is_asked_again_when_it_says() {
    for code in [ProblemCode::Busy, ProblemCode::Internal] {
        for (flow, _) in FLOWS {
            let mut world = World::default();
            world.ca.problems.push_back(a_problem(code).retry_after(90));
            world.run(request(flow)).unwrap().unwrap();
            let wait = world.sent[1] - world.sent[0];
            assert!(
                (Duration::from_secs(90)..Duration::from_secs(92)).contains(&wait),
                "{flow}: {wait:?}"
            );
        }
    }
}

#[test]
fn advice_beyond_the_deadline_is_not_waited_for() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        world.ca.problems.push_back(a_problem(ProblemCode::Busy).retry_after(u32::MAX));
        let failure = world.run(request(flow)).unwrap().unwrap_err();
        let Failure::NotReached { reason } = &failure else { panic!("{failure}") };
        assert!(reason.starts_with("busy"), "{reason}");
        assert!(world.now < Duration::from_secs(1));
    }
}

#[test]
fn refusal_ends_the_run_and_leaves_what_is_in_use_alone() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        world.run(request(flow)).unwrap().unwrap();
        let in_use = world.memory.in_use.clone();
        let key = world.tpm.hmac_key.clone();
        for code in [ProblemCode::DeviceDisabled, ProblemCode::EkNotEnrolled] {
            world.ca.problems.push_back(a_problem(code));
            let again = ProvisionRequest { again: true, ..request(flow) };
            let failure = world.run(again).unwrap();
            assert_eq!(failure, Err(Failure::Refused(a_problem(code))), "{flow}");
            assert_eq!((&world.memory.in_use, &world.tpm.hmac_key), (&in_use, &key));
        }
    }
}

#[test]
fn lost_claim_is_asked_for_anew_three_times_at_most() {
    for code in [ProblemCode::ClaimExpired, ProblemCode::TicketRefused] {
        for flow in [Flow::Ticket, Flow::Sealed] {
            let mut world = World::default();
            world.ca.refuses_last = Some(code);
            let failure = world.run(request(flow)).unwrap();
            assert_eq!(failure, Err(Failure::Refused(a_problem(code))));
            assert_eq!(world.sent.len(), 8, "once, and three times again");
            assert!(world.ca.certified.len() <= 1);

            world.ca.refuses_last = None;
            assert_eq!(serial(&world.run(request(flow)).unwrap().unwrap()), "0");
        }
    }
}

#[test]
fn certificate_that_a_refused_confirmation_leaves_is_kept() {
    let mut world = World::default();
    world.ca.refuses_last = Some(ProblemCode::ClaimExpired);
    world.run(request(Flow::Sealed)).unwrap().unwrap_err();
    assert!(world.memory.in_use.is_some(), "anybody on the way can forge the refusal");
}
