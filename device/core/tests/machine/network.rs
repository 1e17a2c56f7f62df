//! What becomes of a run when replies are lost, repeated, late, altered, or do not belong to it.

use std::time::Duration;

use assay_device_core::{
    Action, Failure, Memory, ProvisionRequest, REPLY_LIMIT, Step, TpmOperation, Trouble,
};
use assay_wire::{Flow, RequestBody};

use crate::world::{Fate, World};
use crate::{FLOWS, request, serial};

/// Runs each flow once for each of its replies, and lets this reply have this fate.
fn each_reply(fate: Fate, mut check: impl FnMut(Flow, usize, World)) {
    for (flow, replies) in FLOWS {
        for number in 0..replies {
            let mut world = World {
                fates: [vec![Fate::Arrives; number], vec![fate]].concat().into(),
                ..World::default()
            };
            world.run(request(flow)).unwrap().unwrap();
            assert!(world.memory.in_use.is_some() && world.memory.attempt.is_none());
            assert!(world.ca.certified.len() <= 1, "one key, one certificate");
            check(flow, number, world);
        }
    }
}

#[test]
fn reply_that_is_lost_is_asked_for_again() {
    each_reply(Fate::Lost, |flow, number, world| {
        let wait = world.sent[number + 1] - world.sent[number];
        assert!(wait >= REPLY_LIMIT, "{flow}, reply {number}: after {wait:?}");
        let is_told = |step: &Step| matches!(step, Step::Retry { reason, .. } if reason.contains("did not answer"));
        assert!(world.steps().iter().any(is_told));
        // A certificate that waits for its confirmation is not asked for again.
        let enrols = |request: &&RequestBody| matches!(request, RequestBody::Enroll(_));
        if flow == Flow::Sealed {
            assert_eq!(world.ca.heard.iter().filter(enrols).count(), 2 - number);
        }
    });
}

#[test]
fn connection_that_breaks_is_made_again() {
    each_reply(Fate::BreaksConnection, |_, _, world| {
        let connects = |action: &&Action| matches!(action, Action::Connect(_));
        assert_eq!(world.actions.iter().filter(connects).count(), 2);
    });
}

#[test]
fn reply_that_comes_more_than_once_counts_once() {
    each_reply(Fate::Twice, |flow, _, world| {
        let requests = FLOWS.iter().find(|(known, _)| *known == flow).unwrap().1;
        assert_eq!(world.sent.len(), requests);
    });
}

#[test]
fn reply_that_comes_after_another_request_is_passed_over() {
    each_reply(Fate::Late, |_, number, world| assert!(world.sent.len() > number + 1));
}

/// Anybody who carries the messages can make a run fail or wait, and nothing else.
#[test]
fn reply_altered_in_any_byte_gives_nothing_that_the_ca_did_not_give() {
    for (flow, replies) in FLOWS {
        for number in 0..replies {
            for at in 0..300 {
                let mut world = World {
                    fates: [vec![Fate::Arrives; number], vec![Fate::Corrupted(at)]].concat().into(),
                    ..World::default()
                };
                match world.run(request(flow)).unwrap() {
                    Ok(provisioned) if flow != Flow::SharedKey => {
                        assert_eq!(serial(&provisioned), "0");
                    }
                    Ok(_) => assert_eq!(world.tpm.hmac_key().unwrap().len(), 20),
                    Err(Failure::Answer(_) | Failure::Refused(_)) => {
                        // Only a sealed certificate that is good is kept before the end.
                        let is_kept = world.memory.in_use.is_some();
                        assert_eq!(is_kept, flow == Flow::Sealed && number == 1, "byte {at}");
                    }
                    Err(other) => panic!("{flow}, reply {number}, byte {at}: {other}"),
                }
                assert!(world.ca.certified.len() <= 1);
                // The next run succeeds.
                world.run(request(flow)).unwrap().unwrap();
            }
        }
    }
}

#[test]
fn reply_to_another_question_ends_the_run_and_grants_nothing() {
    use assay_wire::{Reply, ReplyBody, Request};

    for (flow, _) in FLOWS {
        let mut machine =
            assay_device_core::provision(request(flow), Memory::default(), Duration::ZERO);
        let mut world = World::default();
        let mut reply = None;
        let failure = loop {
            let Some(action) = machine.poll_action() else { break machine.into_result() };
            let event = match action {
                Action::Send(message) => {
                    let id = Request::decode(&message).unwrap().id;
                    reply = Some(Reply { id, body: ReplyBody::Pong }.encode());
                    continue;
                }
                Action::Wait { .. } if reply.is_some() => {
                    assay_device_core::Event::Reply(reply.take().unwrap())
                }
                action => match world.perform(action) {
                    Some(event) => event,
                    None => continue,
                },
            };
            machine.handle(Duration::ZERO, event);
        };
        assert!(matches!(failure, Err(Failure::Answer(_))), "{failure:?}");
        assert_eq!(world.memory.in_use, None);
    }
}

#[test]
fn broker_that_is_away_is_tried_again() {
    for (flow, _) in FLOWS {
        let mut world =
            World { troubles: vec![Trouble::Passing("away".into()); 3].into(), ..World::default() };
        world.run(request(flow)).unwrap().unwrap();
        let retries = |step: &&Step| matches!(step, Step::Retry { .. });
        assert_eq!(world.steps().iter().filter(retries).count(), 3);
    }
}

#[test]
fn nothing_is_sent_on_a_connection_that_broke_while_the_tpm_worked() {
    let mut world = World {
        breaks_in: Some(|action| matches!(action, Action::Tpm(TpmOperation::Activate { .. }))),
        ..World::default()
    };
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    let kinds = |request: &RequestBody| matches!(request, RequestBody::Certify(_));
    let certified: Vec<_> = world.ca.heard.iter().map(kinds).collect();
    assert_eq!(certified, [false, false, true], "the second attempt begins anew");
}

#[test]
fn trouble_that_lasts_ends_the_run_at_once() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        world.troubles.push_back(Trouble::Lasting);
        assert_eq!(world.run(request(flow)).unwrap(), Err(Failure::Lasting));
        assert_eq!((world.sent.len(), world.troubles.len()), (0, 0));
        assert_eq!(world.memory.in_use, None);
    }
}

#[test]
fn run_gives_up_at_its_deadline_and_says_why() {
    for (flow, _) in FLOWS {
        for deadline in [0, 1, 19, 60, 3600].map(Duration::from_secs) {
            let mut world = World { fates: vec![Fate::Lost; 1000].into(), ..World::default() };
            let failure = world.run(ProvisionRequest { deadline, ..request(flow) }).unwrap();
            assert!(matches!(failure, Err(Failure::NotReached { .. })), "{failure:?}");
            assert!(world.now <= deadline, "{:?} of {deadline:?}", world.now);
            if deadline > REPLY_LIMIT {
                assert!(failure.unwrap_err().to_string().contains("did not answer within 20 s"));
            }
            assert_eq!(world.memory.in_use, None);
        }
    }
}

#[test]
fn delays_grow_to_a_minute() {
    let mut world =
        World { troubles: vec![Trouble::Passing("away".into()); 200].into(), ..World::default() };
    let deadline = Duration::from_secs(7200);
    _ = world.run(ProvisionRequest { deadline, ..request(Flow::Ticket) });
    let delay = |step: Step| match step {
        Step::Retry { delay, .. } => Some(delay),
        _ => None,
    };
    let delays: Vec<_> = world.steps().into_iter().filter_map(delay).collect();
    assert!(delays[0] <= Duration::from_secs(1), "{delays:?}");
    assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(60)), "{delays:?}");
    assert!(delays.iter().any(|delay| *delay > Duration::from_secs(50)), "{delays:?}");
}
