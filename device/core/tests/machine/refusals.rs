//! Answers that the device does not use, and what it does about them.

use std::time::Duration;

use assay_device_core::{Action, AnswerError, Failure, Grant, ProvisionRequest, TpmOperation};
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
fn device_that_an_operator_has_to_approve_comes_back_until_it_is_admitted() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        for advice in [5, 40] {
            world.ca.problems.push_back(a_problem(ProblemCode::Pending).retry_after(advice));
        }
        world.run(request(flow)).unwrap().unwrap();
        let waits: Vec<_> = world.sent.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!((5..7).contains(&waits[0].as_secs()), "{flow}: {waits:?}");
        assert!((40..43).contains(&waits[1].as_secs()), "{flow}: {waits:?}");
    }
}

#[test]
fn device_that_nobody_approves_in_time_says_so_and_has_what_it_had() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        let pending = a_problem(ProblemCode::Pending).retry_after(100);
        world.ca.problems.extend(vec![pending.clone(); 9]);
        let failure = world.run(request(flow)).unwrap();
        assert_eq!(failure, Err(Failure::Pending(pending)), "{flow}");
        assert!(world.sent.len() > 2 && world.now < Duration::from_secs(300), "{flow}");
        assert_eq!(world.memory.in_use, None);
    }
}

#[test]
fn refusal_ends_the_run_and_leaves_what_is_in_use_alone() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        world.run(request(flow)).unwrap().unwrap();
        let in_use = world.memory.in_use.clone();
        let key = world.tpm.hmac_key();
        for code in [ProblemCode::DeviceDisabled, ProblemCode::EkNotEnrolled] {
            world.ca.problems.push_back(a_problem(code));
            let again = ProvisionRequest { again: true, ..request(flow) };
            let failure = world.run(again).unwrap();
            assert_eq!(failure, Err(Failure::Refused(a_problem(code))), "{flow}");
            assert_eq!((&world.memory.in_use, &world.tpm.hmac_key()), (&in_use, &key));
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

#[test]
fn confirmation_that_somebody_else_answers_leaves_the_certificate_unconfirmed() {
    let mut world = World::default();
    world.ca.is_forged = true;
    let failure = world.run(request(Flow::Sealed)).unwrap();
    assert_eq!(failure, Err(Failure::Answer(AnswerError::Receipt)));
    let Some(Grant::Certificate(grant)) = &world.memory.in_use else { panic!() };
    assert!(grant.unconfirmed.is_some());
}

#[test]
fn secret_of_another_length_than_is_due_is_refused() {
    for length in [0, 16, 31, 33] {
        for (flow, error) in [
            (Flow::Ticket, AnswerError::TicketLength(length)),
            (Flow::Sealed, AnswerError::SealKeyLength(length)),
        ] {
            let mut world = World::default();
            world.ca.secret = Some(vec![0x42; length]);
            assert_eq!(world.run(request(flow)).unwrap(), Err(Failure::Answer(error)));
            assert_eq!(world.memory.in_use, None);
        }
    }
}

#[test]
fn sealed_box_that_is_cut_short_is_refused() {
    for length in 1..60 {
        let mut world = World::default();
        world.ca.sealed_length = Some(length);
        let failure = world.run(request(Flow::Sealed)).unwrap();
        assert_eq!(failure, Err(Failure::Answer(AnswerError::Seal)), "{length} bytes");
        assert_eq!(world.memory.in_use, None);
    }
}

#[test]
fn sealed_garbage_is_refused() {
    for contents in [&[][..], b"garbage"] {
        let mut world = World::default();
        world.ca.contents = Some(contents.into());
        let failure = world.run(request(Flow::Sealed)).unwrap();
        assert!(matches!(failure, Err(Failure::Answer(AnswerError::Unreadable(_)))));
        assert_eq!(world.memory.in_use, None);
    }
}

#[test]
fn credential_of_another_device_than_the_one_asked_for_is_refused() {
    for (flow, _) in FLOWS {
        let device_id = Some("pump-18".parse().unwrap());
        let other = ProvisionRequest { device_id, ..request(flow) };
        let mut world = World::default();
        let failure = world.run(other.clone()).unwrap();
        assert!(
            matches!(failure, Err(Failure::Answer(AnswerError::OtherDevice { .. }))),
            "{flow}: {failure:?}"
        );
        assert_eq!((&world.memory.in_use, &world.tpm.hmac_key()), (&None, &None));

        // The stored credential does not pass for the other device's.
        world.run(request(flow)).unwrap().unwrap();
        world.ca.heard.clear();
        world.run(other).unwrap().unwrap_err();
        assert!(!world.ca.heard.is_empty(), "{flow}");
    }
}

#[test]
fn tpm_that_fails_beside_a_connection_ends_the_run_and_the_connection() {
    let mut world = World::default();
    world.tpm.fails = Some(|operation| matches!(operation, TpmOperation::SignRequest { .. }));
    let failure = world.run(request(Flow::Ticket)).unwrap();
    assert!(matches!(failure, Err(Failure::Tpm(_))), "{failure:?}");
    assert_eq!(world.actions.last(), Some(&Action::Disconnect));
    assert!(world.sent.is_empty());
}
