//! Runs that end at any point as if by a loss of power, and the runs after them.

use assay_device_core::{Grant, HmacPublic, ProvisionRequest};
use assay_wire::Flow;

use crate::world::World;
use crate::{FLOWS, request, serial};

/// How many actions a first run takes.
fn actions_of(flow: Flow) -> usize {
    let mut world = World::default();
    world.run(request(flow)).unwrap().unwrap();
    world.actions.len()
}

#[test]
fn run_that_ends_after_any_action_is_gone_on_with_by_the_next() {
    for (flow, _) in FLOWS {
        for actions in 0..actions_of(flow) {
            let mut world = World { power_for: Some(actions), ..World::default() };
            assert!(world.run(request(flow)).is_none());
            world.power_for = None;
            let provisioned = world.run(request(flow)).unwrap().unwrap();
            assert_eq!(provisioned.flow, flow);
            match flow {
                Flow::Ticket | Flow::Sealed => {
                    assert_eq!(serial(&provisioned), "0", "after {actions} actions");
                    assert_eq!(world.ca.certified.len(), 1, "after {actions} actions");
                }
                Flow::SharedKey => {
                    let Some(Grant::SharedKey(grant)) = &world.memory.in_use else { panic!() };
                    let held = HmacPublic(world.tpm.hmac_key().unwrap());
                    assert_eq!(grant.record.keys, [held], "after {actions} actions");
                }
            }
            assert!(world.run(request(flow)).unwrap().unwrap().was_provisioned);
        }
    }
}

#[test]
fn run_that_ends_after_any_two_actions_is_gone_on_with() {
    for (flow, _) in FLOWS {
        let count = actions_of(flow);
        for first in 0..count {
            for second in 0..count {
                let mut world = World { power_for: Some(first), ..World::default() };
                assert!(world.run(request(flow)).is_none());
                world.power_for = Some(second);
                if let Some(outcome) = world.run(request(flow)) {
                    outcome.unwrap();
                }
                world.power_for = None;
                world.run(request(flow)).unwrap().unwrap();
                assert!(world.ca.certified.len() <= 1, "after {first} and {second}");
            }
        }
    }
}

/// The certificate in use stays in use until another one takes its place.
#[test]
fn device_that_asks_again_can_sign_in_whenever_the_power_fails() {
    for flow in [Flow::Ticket, Flow::Sealed] {
        let again = ProvisionRequest { again: true, ..request(flow) };
        for actions in 0..=actions_of(flow) {
            let mut world = World::default();
            world.run(request(flow)).unwrap().unwrap();
            world.power_for = Some(actions);
            _ = world.run(again.clone());
            let Some(Grant::Certificate(grant)) = &world.memory.in_use else { panic!() };
            assert_eq!(grant.chain[0][..32], world.tpm.ik().unwrap());
        }
    }
}

#[test]
fn sealed_certificate_that_is_stored_is_only_confirmed_by_the_next_run() {
    use assay_wire::RequestBody;

    let mut world = World {
        fates: vec![crate::world::Fate::Arrives, crate::world::Fate::Lost].into(),
        ..World::default()
    };
    let deadline = std::time::Duration::from_secs(15);
    world.run(ProvisionRequest { deadline, ..request(Flow::Sealed) }).unwrap().unwrap_err();
    world.ca.heard.clear();
    world.run(request(Flow::Sealed)).unwrap().unwrap();
    assert!(matches!(world.ca.heard[..], [RequestBody::Confirm(_)]), "{:?}", world.ca.heard);
}
