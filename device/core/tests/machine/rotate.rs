//! The next HMAC key takes the place of the one in use: when, and what a device has meanwhile.

use std::time::Duration;

use assay_device_core::{
    Attempt, Credential, DEFAULT_HMAC_HANDLE, Failure, Grant, HmacPublic, Memory, ProvisionRequest,
    Provisioned, RenewalOutcome, Rotation, SharedKeyGrant, Step, TpmOperation, Trouble, Verdict,
};
use assay_wire::{Flow, Problem, ProblemCode};

use crate::renew::kinds;
use crate::request;
use crate::world::{Fate, World};

const FIRST: u32 = DEFAULT_HMAC_HANDLE;
const SECOND: u32 = DEFAULT_HMAC_HANDLE + 1;
const DAY: Duration = Duration::from_hours(24);
/// What the CA advises.
const AFTER: Duration = Duration::from_hours(90 * 24);

/// A device that has used its first key for this long.
fn provisioned(age: Duration) -> World {
    let mut world = World::default();
    world.ca.rotate_after = Some(AFTER.as_secs() as u32);
    world.run(plain()).unwrap().unwrap();
    assert!(world.sign_in_by_key());
    world.now += age;
    world.ca.heard.clear();
    world
}

fn plain() -> ProvisionRequest {
    request(Flow::SharedKey)
}

/// Asks for the next key, whatever the clock says.
fn to_rotate() -> ProvisionRequest {
    ProvisionRequest { renew: true, ..plain() }
}

fn refusal(code: ProblemCode) -> Problem {
    Problem::new(code, "as the test has it".into())
}

fn run(world: &mut World, request: ProvisionRequest) -> Provisioned {
    world.run(request).unwrap().unwrap()
}

fn handle(provisioned: &Provisioned) -> u32 {
    let Credential::SharedKey { hmac_handle, .. } = provisioned.credential else { panic!() };
    hmac_handle
}

fn in_use(world: &World) -> SharedKeyGrant {
    let Some(Grant::SharedKey(grant)) = world.memory.in_use.clone() else { panic!() };
    grant
}

/// The handles at which the TPM has HMAC keys, and the number of each key.
fn held(world: &World) -> Vec<(u32, u8)> {
    world.tpm.hmac_keys.iter().map(|(handle, key)| (*handle, key[0])).collect()
}

#[test]
fn key_that_is_due_is_rotated_and_the_one_before_goes_once_a_broker_took_the_next() {
    let mut world = provisioned(AFTER);
    let rotated = run(&mut world, plain());
    assert_eq!(kinds(&world), ["register"]);
    assert_eq!((rotated.renewal, handle(&rotated)), (Some(RenewalOutcome::Rotated), SECOND));
    assert!(!rotated.was_provisioned && world.steps().contains(&Step::HmacKeyKept(SECOND)));
    assert_eq!(held(&world), [(FIRST, 1), (SECOND, 2)]);
    assert!(matches!(&world.memory.attempt, Some(Attempt::Rotated(_))));
    assert_eq!(in_use(&world).record.hmac_handle, FIRST);

    let again = run(&mut world, plain());
    assert!(again.was_provisioned && handle(&again) == SECOND && kinds(&world).len() == 1);
    assert!(world.sign_in_by_key());
    assert!(world.steps().contains(&Step::KeyRemoved(FIRST)));
    assert_eq!(held(&world), [(SECOND, 2)]);
    assert_eq!((in_use(&world).record.hmac_handle, &world.memory.attempt), (SECOND, &None));

    // The one after it goes where the first one was.
    world.now += AFTER;
    assert_eq!(handle(&run(&mut world, plain())), FIRST);
    assert!(world.sign_in_by_key());
    assert_eq!(held(&world), [(FIRST, 3)]);
    assert!(kinds(&world).len() == 2 && world.sign_in_by_key());
}

#[test]
fn key_that_is_not_due_is_not_rotated() {
    let mut world = provisioned(AFTER - Duration::from_secs(60));
    assert!(run(&mut world, plain()).was_provisioned);
    assert!(kinds(&world).is_empty());
}

/// A CA of before rotations says nothing. Its successor will.
#[test]
fn device_whose_ca_says_nothing_asks_after_the_usual_time() {
    let mut world = World::default();
    run(&mut world, plain());
    assert!(world.sign_in_by_key());
    for _ in 0..2 {
        world.now += AFTER - Duration::from_secs(60);
        assert!(run(&mut world, plain()).renewal.is_none());
        world.now += Duration::from_secs(60);
        assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated));
        assert!(world.sign_in_by_key());
    }
}

#[test]
fn key_of_an_earlier_version_is_rotated_at_once() {
    let mut world = provisioned(DAY);
    let grant = SharedKeyGrant { rotation: Rotation::AT_ONCE, ..in_use(&world) };
    world.memory = Memory { in_use: Some(Grant::SharedKey(grant)), attempt: None };
    assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated));
}

#[test]
fn device_that_is_told_to_rotate_asks_the_ca_whatever_its_clock_says() {
    let mut world = provisioned(DAY);
    world.clock_error = -400 * 86_400;
    assert_eq!(run(&mut world, to_rotate()).renewal, Some(RenewalOutcome::Rotated));
    let mut away = provisioned(DAY);
    away.troubles = vec![Trouble::Passing("away".into()); 99].into();
    let failure = away.run(to_rotate()).unwrap().unwrap_err();
    assert!(matches!(failure, Failure::NotReached { .. }), "{failure:?}");
    assert_eq!(held(&away), [(FIRST, 1)]);
}

#[test]
fn device_whose_ca_is_away_keeps_its_key_and_asks_at_its_next_run() {
    let mut world = provisioned(AFTER);
    world.troubles = vec![Trouble::Passing("away".into()); 99].into();
    let kept = run(&mut world, plain());
    assert_eq!((kept.renewal, handle(&kept)), (Some(RenewalOutcome::Postponed), FIRST));
    assert!(world.steps().iter().any(|step| matches!(step, Step::NotRotated(_))));
    world.troubles.clear();
    assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated));
}

#[test]
fn ca_that_gives_the_same_key_says_when_to_come_again_and_no_key_is_kept() {
    let mut world = provisioned(AFTER);
    world.ca.repeats_key = true;
    for _ in 0..2 {
        let kept = run(&mut world, plain());
        assert_eq!((kept.renewal, handle(&kept)), (Some(RenewalOutcome::NotDue), FIRST));
        assert_eq!((held(&world), &world.memory.attempt), (vec![(FIRST, 1)], &None));
        let unused = |step: &Step| matches!(step, Step::Unused { .. });
        assert!(!world.steps().iter().any(unused), "{:?}", world.steps());
        assert!(run(&mut world, plain()).renewal.is_none(), "it is not due any more");
        world.now += AFTER;
    }
}

#[test]
fn device_that_the_ca_refuses_a_key_keeps_its_own_and_asks_later() {
    for (code, later) in
        [(ProblemCode::DeviceDisabled, DAY), (ProblemCode::ReprovisionRefused, 90 * DAY)]
    {
        let mut world = provisioned(AFTER);
        world.ca.problems.push_back(refusal(code));
        let kept = run(&mut world, to_rotate());
        assert_eq!((kept.renewal, handle(&kept)), (Some(RenewalOutcome::Postponed), FIRST));
        world.ca.heard.clear();
        world.now += later - Duration::from_secs(60);
        assert!(run(&mut world, plain()).renewal.is_none() && kinds(&world).is_empty());
        world.now += Duration::from_secs(60);
        assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated));
    }
}

/// Anybody on the way can write a time into a reply.
#[test]
fn advice_to_come_at_once_is_followed_once_a_day() {
    let mut world = provisioned(AFTER);
    world.ca.rotate_after = Some(0);
    for _ in 0..3 {
        assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated));
        assert!(world.sign_in_by_key());
        world.ca.heard.clear();
        world.now += DAY - Duration::from_secs(60);
        assert!(run(&mut world, plain()).renewal.is_none() && kinds(&world).is_empty());
        world.now += Duration::from_secs(60);
    }
}

#[test]
fn key_that_a_broker_does_not_take_leaves_the_one_before_in_use_and_the_next_takes_its_place() {
    let mut world = provisioned(AFTER);
    run(&mut world, plain());
    world.settle(Verdict::Refused).unwrap().unwrap().unwrap();
    assert_eq!((in_use(&world).record.hmac_handle, kinds(&world).len()), (FIRST, 1));
    assert_eq!(held(&world), [(FIRST, 1), (SECOND, 2)]);
    assert!(world.sign_in_by_key() && run(&mut world, plain()).renewal.is_none());
    world.now += DAY;
    assert_eq!(handle(&run(&mut world, plain())), SECOND);
    assert_eq!(held(&world), [(FIRST, 1), (SECOND, 3)]);
    assert!(world.sign_in_by_key());
    assert_eq!(held(&world), [(SECOND, 3)]);
}

#[test]
fn key_for_another_device_is_not_kept() {
    let mut world = provisioned(AFTER);
    let grant = SharedKeyGrant { device_id: "pump-18".parse().unwrap(), ..in_use(&world) };
    world.memory.in_use = Some(Grant::SharedKey(grant));
    assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Postponed));
    assert_eq!(held(&world), [(FIRST, 1)]);
}

#[test]
fn next_key_leaves_alone_what_others_keep_in_the_tpm() {
    let mut world = provisioned(AFTER);
    world.tpm.hmac_keys.insert(SECOND, vec![99; 20]);
    assert_eq!(handle(&run(&mut world, plain())), SECOND + 1);
    assert!(world.sign_in_by_key());
    assert_eq!(held(&world), [(SECOND, 99), (SECOND + 1, 2)]);
}

#[test]
fn handle_that_was_named_at_first_means_the_key_wherever_a_rotation_put_it() {
    let named = ProvisionRequest { hmac_handle: Some(FIRST + 7), ..plain() };
    let mut world = World::default();
    world.ca.rotate_after = Some(AFTER.as_secs() as u32);
    run(&mut world, named.clone());
    assert!(world.sign_in_by_key());
    world.now += AFTER;
    assert_eq!(handle(&run(&mut world, named.clone())), FIRST + 8);
    for _ in 0..2 {
        assert!(run(&mut world, named.clone()).was_provisioned);
        assert!(world.sign_in_by_key());
    }
    let again = ProvisionRequest { again: true, ..named };
    assert_eq!(handle(&run(&mut world, again)), FIRST + 8);
    assert_eq!(held(&world), [(FIRST + 8, 3)]);
}

#[test]
fn next_key_that_somebody_removed_does_not_cost_the_one_in_use() {
    let mut world = provisioned(AFTER);
    run(&mut world, plain());
    world.tpm.hmac_keys.remove(&SECOND);
    let kept = run(&mut world, ProvisionRequest { renew: false, ..plain() });
    assert_eq!((kept.renewal, handle(&kept)), (Some(RenewalOutcome::Rotated), SECOND));
    assert_eq!(held(&world), [(FIRST, 1), (SECOND, 3)]);
}

#[test]
fn tpm_without_room_for_a_second_key_does_not_cost_the_one_in_use() {
    for fails in
        [(|it| matches!(it, TpmOperation::FreeHandle { .. })) as fn(&TpmOperation) -> bool, |it| {
            matches!(it, TpmOperation::KeepHmacKey { .. })
        }]
    {
        let mut world = provisioned(AFTER);
        world.tpm.fails = Some(fails);
        let kept = run(&mut world, plain());
        assert_eq!((kept.renewal, handle(&kept)), (Some(RenewalOutcome::Postponed), FIRST));
        assert!(world.sign_in_by_key());
        world.tpm.fails = None;
        assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated));
    }
}

#[test]
fn device_whose_power_fails_at_any_point_of_a_rotation_has_a_key_that_the_ca_takes() {
    let mut longest = provisioned(AFTER);
    run(&mut longest, plain());
    let actions = longest.actions.len();
    assert!(actions > 10);
    for first in 0..=actions {
        for second in 0..12 {
            let mut world = provisioned(AFTER);
            world.power_for = Some(first);
            _ = world.run(plain());
            let at = format!("after {first} and {second} actions: {:?}", world.memory);
            assert!(world.has_good_key(), "{at}");
            world.power_for = Some(second);
            assert!(world.sign_in_by_key(), "{at}");
            world.power_for = None;
            assert!(world.has_good_key(), "{at}");
            assert!(world.sign_in_by_key(), "{at}");
            run(&mut world, plain());
            assert!(world.sign_in_by_key(), "{at}");
            assert_eq!(held(&world).len(), 1, "{at}");
            let HmacPublic(key) = in_use(&world).record.keys[0].clone();
            assert!(key[0] > 1, "{at}");
        }
    }
}

#[test]
fn lost_reply_costs_no_key() {
    for fate in [Fate::Lost, Fate::Twice, Fate::Late, Fate::BreaksConnection] {
        let mut world = provisioned(AFTER);
        world.fates = vec![fate].into();
        assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated), "{fate:?}");
        assert!(world.sign_in_by_key(), "{fate:?}");
        assert_eq!(held(&world).len(), 1, "{fate:?}");
    }
}

#[test]
fn device_that_asks_again_before_a_rotation_is_finished_begins_it_again_and_leaves_no_key_behind() {
    let again = ProvisionRequest { again: true, ..plain() };
    let mut world = provisioned(AFTER);
    run(&mut world, plain());
    assert_eq!(run(&mut world, again.clone()).renewal, Some(RenewalOutcome::Rotated));
    assert_eq!(held(&world), [(FIRST, 1), (SECOND, 3)]);
    // As after a stop before it was stored that the rotation is done.
    let Some(Attempt::Rotated(SharedKeyGrant { record, .. })) = world.memory.attempt.take() else {
        panic!()
    };
    world.memory.attempt = Some(Attempt::Hmac(record));
    assert_eq!(handle(&run(&mut world, again)), SECOND);
    assert_eq!(held(&world), [(FIRST, 1), (SECOND, 4)]);
    assert!(world.sign_in_by_key());
    assert_eq!(held(&world), [(SECOND, 4)]);
}

/// A broker that is not honest may send an earlier key, and nobody has tried it.
#[test]
fn key_that_no_broker_has_taken_costs_the_one_before_it_nothing_when_it_is_due_itself() {
    let mut world = provisioned(AFTER);
    run(&mut world, plain());
    world.now += AFTER;
    for request in [plain(), to_rotate()] {
        let kept = run(&mut world, request);
        assert_eq!((kept.renewal, handle(&kept)), (Some(RenewalOutcome::Postponed), SECOND));
        assert_eq!(held(&world), [(FIRST, 1), (SECOND, 2)]);
    }
    assert_eq!(kinds(&world).len(), 1);
    assert!(world.sign_in_by_key());
    assert_eq!(run(&mut world, plain()).renewal, Some(RenewalOutcome::Rotated));
}
