//! Runs in which nothing goes wrong on the way.

use std::time::Duration;

use assay_device_core::{
    Credential, Failure, Grant, HmacPublic, Memory, ProvisionRequest, Step, ping,
};
use assay_wire::{Flow, RequestBody};

use crate::world::World;
use crate::{FLOWS, request, serial};

#[test]
fn device_is_provisioned_and_the_next_run_asks_nobody() {
    for (flow, requests) in FLOWS {
        let mut world = World::default();
        let first = world.run(request(flow)).unwrap().unwrap();
        assert_eq!((first.flow, first.device_id.as_str()), (flow, "pump-17"));
        assert!(!first.was_provisioned);
        assert_eq!(world.ca.heard.len(), requests, "{flow}");
        assert!(world.memory.attempt.is_none() && world.memory.in_use.is_some());

        let stored = world.memory.clone();
        let second = world.run(ProvisionRequest::new("default".parse().unwrap())).unwrap().unwrap();
        assert!(second.was_provisioned);
        assert_eq!(second.credential, first.credential);
        assert_eq!((world.ca.heard.len(), &world.memory), (requests, &stored));
    }
}

#[test]
fn device_that_is_told_to_asks_again_and_gets_the_same_certificate() {
    for flow in [Flow::Ticket, Flow::Sealed] {
        let mut world = World::default();
        let first = world.run(request(flow)).unwrap().unwrap();
        let again = ProvisionRequest { again: true, ..request(flow) };
        let second = world.run(again).unwrap().unwrap();
        assert!(!second.was_provisioned);
        assert_eq!((serial(&first), serial(&second)), ("0", "0"));
        assert_eq!(world.ca.heard.len(), 4);
    }
}

#[test]
fn sealed_certificate_counts_only_once_the_ca_has_heard_of_it() {
    let mut world = World::default();
    world.run(request(Flow::Sealed)).unwrap().unwrap();
    assert_eq!(world.ca.confirmed, [0]);
    let Some(Grant::Certificate(grant)) = &world.memory.in_use else { panic!() };
    assert_eq!(grant.unconfirmed, None);
}

#[test]
fn hmac_key_that_the_tpm_keeps_is_the_one_that_is_stored() {
    let mut world = World::default();
    world.run(request(Flow::SharedKey)).unwrap().unwrap();
    let Some(Grant::SharedKey(grant)) = &world.memory.in_use else { panic!() };
    assert_eq!(grant.record.keys, [HmacPublic(world.tpm.hmac_key().unwrap())]);
}

#[test]
fn device_without_its_state_finds_its_key_and_gets_the_same_certificate() {
    for flow in [Flow::Ticket, Flow::Sealed] {
        let mut world = World::default();
        world.run(request(flow)).unwrap().unwrap();
        world.memory = Memory::default();
        assert_eq!(serial(&world.run(request(flow)).unwrap().unwrap()), "0");
        assert_eq!(world.ca.certified.len(), 1);
    }
}

#[test]
fn device_without_its_state_leaves_an_hmac_key_alone_that_it_does_not_know() {
    let mut world = World::default();
    world.run(request(Flow::SharedKey)).unwrap().unwrap();
    let key = world.tpm.hmac_key();
    world.memory = Memory::default();
    let failure = world.run(request(Flow::SharedKey)).unwrap().unwrap_err();
    assert!(matches!(failure, Failure::Tpm(_)), "{failure}");
    assert_eq!(world.tpm.hmac_key(), key);
}

#[test]
fn cleared_tpm_is_provisioned_anew() {
    for (flow, _) in FLOWS {
        let mut world = World::default();
        let first = world.run(request(flow)).unwrap().unwrap();
        world.tpm.clear();
        let second = world.run(request(flow)).unwrap().unwrap();
        assert!(!second.was_provisioned);
        match flow {
            Flow::SharedKey => assert_eq!(world.ca.keys_sent, 2),
            _ => assert_ne!(serial(&first), serial(&second)),
        }
        assert!(world.run(request(flow)).unwrap().unwrap().was_provisioned);
    }
}

#[test]
fn credential_of_another_flow_takes_the_place_of_the_first_once_it_is_there() {
    for (first, _) in FLOWS {
        for (second, _) in FLOWS.into_iter().filter(|(second, _)| *second != first) {
            let mut world = World::default();
            world.run(request(first)).unwrap().unwrap();
            let before = world.memory.in_use.clone();
            let provisioned = world.run(request(second)).unwrap().unwrap();
            let is_certificate = matches!(provisioned.credential, Credential::Certificate { .. });
            assert_eq!(is_certificate, second != Flow::SharedKey);
            if (first == Flow::SharedKey) != (second == Flow::SharedKey) {
                assert_ne!(world.memory.in_use, before);
                let unused = |step: &Step| matches!(step, Step::Unused { .. });
                assert!(world.steps().iter().any(unused), "{first} then {second}");
            }
        }
    }
}

#[test]
fn same_events_give_the_same_actions() {
    for (flow, _) in FLOWS {
        let run = || {
            let mut world = World::default();
            world.run(request(flow)).unwrap().unwrap();
            world.actions
        };
        assert_eq!(run(), run());
    }
}

#[test]
fn events_that_nobody_asked_for_change_nothing() {
    for (flow, _) in FLOWS {
        let run = |is_noisy| {
            let mut world = World { is_noisy, ..World::default() };
            world.run(request(flow)).unwrap().unwrap();
            world.actions
        };
        assert_eq!(run(true), run(false));
    }
}

#[test]
fn ping_tells_nothing_of_the_device_and_is_not_repeated() {
    let (scope, limit) = ("default".parse().unwrap(), Duration::from_secs(60));
    let mut world = World::default();
    let took = world.drive(ping(scope, limit, Duration::ZERO)).unwrap().unwrap();
    assert_eq!(took, Duration::from_millis(10));
    assert_eq!(world.ca.heard, [RequestBody::Ping]);

    let mut world = World::default();
    world.fates.push_back(crate::world::Fate::Lost);
    let failure = world.drive(ping("default".parse().unwrap(), limit, Duration::ZERO)).unwrap();
    assert!(matches!(failure, Err(Failure::NotReached { .. })), "{failure:?}");
    assert_eq!(world.ca.heard.len(), 1);
}

#[test]
fn machine_has_no_result_before_it_ends() {
    let machine =
        assay_device_core::provision(request(Flow::Ticket), Memory::default(), Duration::ZERO);
    assert_eq!(machine.into_result(), Err(Failure::Unfinished));
}
