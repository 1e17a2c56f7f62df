//! Another identity key takes the place of the one in use: by which requests, and what a device has
//! meanwhile.

use std::time::Duration;

use assay_device_core::{
    AnswerError, Attempt, DEFAULT_IK_HANDLE, Failure, Grant, IkKind, Memory, ProvisionRequest,
    RenewalOutcome, Step, TpmOperation,
};
use assay_wire::{Flow, Problem, ProblemCode};

use crate::ca::LIFETIME;
use crate::renew::{kinds, provisioned};
use crate::world::{Fate, World};
use crate::{request, serial};

fn to_rekey() -> ProvisionRequest {
    ProvisionRequest { rekey: true, ..ProvisionRequest::new("default".parse().unwrap()) }
}

fn plain() -> ProvisionRequest {
    ProvisionRequest::new("default".parse().unwrap())
}

fn refusal(code: ProblemCode) -> Problem {
    Problem::new(code, "as the test has it".into())
}

/// The device has one key, the second that its TPM made, and the certificate for it alone.
fn assert_rekeyed(world: &World) {
    let new = DEFAULT_IK_HANDLE + 1;
    assert_eq!(world.tpm.iks.iter().collect::<Vec<_>>(), [(&new, &[2; 32])]);
    let Some(Grant::Certificate(grant)) = &world.memory.in_use else { panic!() };
    assert_eq!((grant.record.ik_handle, &grant.chain[0][..32]), (new, &[2; 32][..]));
    assert_eq!(world.memory.attempt, None);
    assert!(world.is_let_in());
    assert_eq!((&world.ca.superseded[..], &world.ca.waiting[..]), (&[0][..], &[][..]));
}

/// Whether the CA takes a certificate that is stored, and the TPM has its key.
fn can_sign_in(world: &World) -> bool {
    world.memory.credentials().any(|grant| match grant {
        Grant::Certificate(grant) => {
            let key = world.tpm.iks.get(&grant.record.ik_handle);
            world.ca.lets_in(&grant.chain[0])
                && key.is_some_and(|key| grant.chain[0].starts_with(key))
        }
        Grant::SharedKey(_) => false,
    })
}

#[test]
fn device_that_rekeys_has_a_certificate_for_another_key_and_forgets_the_one_before() {
    for flow in [Flow::Ticket, Flow::Sealed] {
        let mut world = provisioned(flow, 60);
        let rekeyed = world.run(to_rekey()).unwrap().unwrap();
        assert_eq!(kinds(&world), ["rekey", "certify", "adopt"]);
        assert_eq!((serial(&rekeyed), rekeyed.flow), ("1", flow));
        assert_eq!(rekeyed.renewal, Some(RenewalOutcome::Rekeyed));
        assert_rekeyed(&world);
        assert!(world.steps().contains(&Step::KeyRemoved(DEFAULT_IK_HANDLE)));
        assert!(!world.steps().iter().any(|step| matches!(step, Step::Unused { .. })));
        let next = world.run(plain()).unwrap().unwrap();
        assert_eq!((next.was_provisioned, next.renewal), (true, None));
        assert_eq!(world.ca.heard.len(), 3);
    }
}

#[test]
fn rekey_after_a_rekey_takes_the_handle_that_is_free_again() {
    let mut world = provisioned(Flow::Ticket, 60);
    for handle in [1, 0, 1] {
        world.run(to_rekey()).unwrap().unwrap();
        let handles: Vec<_> = world.tpm.iks.keys().copied().collect();
        assert_eq!(handles, [DEFAULT_IK_HANDLE + handle]);
    }
}

#[test]
fn key_of_a_device_whose_tpm_was_cleared_gets_another_handle() {
    let mut world = provisioned(Flow::Ticket, 60);
    world.tpm.clear();
    let rekeyed = world.run(to_rekey()).unwrap().unwrap();
    assert_eq!(rekeyed.renewal, Some(RenewalOutcome::Rekeyed));
    assert_rekeyed(&world);
}

#[test]
fn device_without_a_certificate_goes_through_its_flow() {
    let mut world = World::default();
    let first = world.run(to_rekey()).unwrap().unwrap();
    assert_eq!((kinds(&world), first.renewal), (vec!["challenge", "certify"], None));
}

#[test]
fn device_can_sign_in_whenever_the_power_fails_and_the_next_run_ends_the_rekey() {
    let count = {
        let mut world = provisioned(Flow::Ticket, 60);
        world.run(to_rekey()).unwrap().unwrap();
        world.actions.len()
    };
    for actions in 0..=count {
        for next in [plain(), to_rekey()] {
            let mut world = provisioned(Flow::Ticket, 60);
            world.power_for = Some(actions);
            _ = world.run(to_rekey());
            assert!(can_sign_in(&world), "after {actions} actions");
            world.power_for = None;
            let is_begun = matches!(world.memory.attempt, Some(Attempt::Renewed(_)));
            let is_done = world.memory.attempt.is_none() && world.tpm.iks.len() == 1;
            let is_rekeyed = is_begun || (is_done && world.tpm.iks.contains_key(&0x8100_0201));
            world.run(next.clone()).unwrap().unwrap();
            assert!(can_sign_in(&world), "after {actions} actions");
            if is_begun || (next.rekey && !is_rekeyed) {
                assert_rekeyed(&world);
            }
            assert!(world.tpm.iks.len() <= 2, "no key is lost track of");
        }
    }
}

#[test]
fn device_can_sign_in_when_the_power_fails_in_the_run_that_ends_a_rekey() {
    for actions in 0..60 {
        let mut world = provisioned(Flow::Ticket, 60);
        // The CA hears of the adoption, and the device does not hear of that.
        world.fates = vec![Fate::Arrives, Fate::Arrives].into();
        world.fates.extend([Fate::Lost; 100]);
        world.run(to_rekey()).unwrap().unwrap_err();
        world.fates.clear();
        world.power_for = Some(actions);
        let ended = world.run(plain());
        assert!(can_sign_in(&world), "after {actions} actions");
        world.power_for = None;
        world.run(plain()).unwrap().unwrap();
        assert_rekeyed(&world);
        if ended.is_some() {
            return;
        }
    }
    panic!("the run has an end");
}

#[test]
fn lost_replies_are_asked_for_again_and_give_one_certificate() {
    for (fates, requests) in [
        (vec![Fate::Lost], &["rekey", "rekey", "certify", "adopt"][..]),
        (vec![Fate::Arrives, Fate::Lost], &["rekey", "certify", "rekey", "certify", "adopt"]),
        (vec![Fate::Arrives, Fate::Arrives, Fate::Lost], &["rekey", "certify", "adopt", "adopt"]),
        (
            vec![Fate::Arrives, Fate::Arrives, Fate::BreaksConnection],
            &["rekey", "certify", "adopt", "adopt"],
        ),
        (vec![Fate::Twice, Fate::Twice, Fate::Twice], &["rekey", "certify", "adopt"]),
    ] {
        let mut world = provisioned(Flow::Ticket, 60);
        world.fates = fates.into();
        world.run(to_rekey()).unwrap().unwrap();
        assert_eq!(kinds(&world), requests);
        assert_rekeyed(&world);
        assert_eq!(world.ca.certified.len(), 2);
    }
}

#[test]
fn rekey_that_the_ca_refuses_leaves_what_is_in_use_and_the_next_one_takes_the_same_key() {
    for (before, requests) in [(0, 1), (1, 2), (2, 3)] {
        let mut world = provisioned(Flow::Ticket, 60);
        let in_use = world.memory.in_use.clone();
        let problem = refusal(ProblemCode::ReprovisionRefused);
        world.ca.refuses_after = Some((before, problem.clone()));
        let failure = world.run(to_rekey()).unwrap().unwrap_err();
        assert_eq!(failure, Failure::Refused(problem));
        assert_eq!(world.ca.heard.len(), requests);
        assert_eq!(world.memory.in_use, in_use);
        assert!(matches!(world.memory.attempt, Some(Attempt::Rekey(_))), "{before}");
        assert!(can_sign_in(&world));
        // It signs in with the old one, and asks nobody.
        world.ca.heard.clear();
        let kept = world.run(plain()).unwrap().unwrap();
        assert_eq!((serial(&kept), world.ca.heard.len()), ("0", 0));
        world.run(to_rekey()).unwrap().unwrap();
        assert_rekeyed(&world);
        assert_eq!(world.ca.certified.len(), 2);
    }
}

#[test]
fn rekey_that_was_begun_goes_on_with_its_kind_unless_another_is_asked_for() {
    for (wanted, kind, key) in [
        (None, IkKind::P384, 2),
        (Some(IkKind::P384), IkKind::P384, 2),
        (Some(IkKind::P256), IkKind::P256, 3),
    ] {
        let mut world = provisioned(Flow::Ticket, 60);
        world.ca.refuses_after = Some((1, refusal(ProblemCode::ReprovisionRefused)));
        let first = ProvisionRequest { ik: Some(IkKind::P384), ..to_rekey() };
        world.run(first).unwrap().unwrap_err();
        world.run(ProvisionRequest { ik: wanted, ..to_rekey() }).unwrap().unwrap();
        let Some(Grant::Certificate(grant)) = &world.memory.in_use else { panic!() };
        assert_eq!((grant.record.ik, grant.chain[0][0]), (kind, key));
        assert_eq!(world.tpm.iks.len(), 1, "no key is left behind");
    }
}

#[test]
fn adoption_that_is_refused_in_a_later_run_leaves_what_was_in_use() {
    let mut world = unfinished();
    world.ca.problems.push_back(refusal(ProblemCode::ReprovisionRefused));
    let kept = world.run(plain()).unwrap().unwrap();
    assert_eq!((serial(&kept), kept.renewal), ("0", None));
    assert!(world.steps().iter().any(|step| matches!(step, Step::RekeyRefused(_))));
    assert!(matches!(world.memory.attempt, Some(Attempt::Rekey(_))));
    assert_eq!(world.tpm.iks.len(), 2, "somebody else may have refused");
    assert!(world.is_let_in());
}

#[test]
fn rekey_that_cannot_be_ended_now_is_ended_by_a_later_run() {
    let mut world = unfinished();
    world.fates = vec![Fate::Lost; 100].into();
    let begin = world.now;
    let kept = world.run(plain()).unwrap().unwrap();
    assert_eq!((serial(&kept), kept.renewal), ("1", Some(RenewalOutcome::Postponed)));
    assert!(world.now - begin <= Duration::from_secs(60));
    // Who asks for it is told that it is not done.
    let failure = world.run(to_rekey()).unwrap().unwrap_err();
    assert!(matches!(failure, Failure::NotReached { .. }), "{failure}");
    world.fates.clear();
    let done = world.run(plain()).unwrap().unwrap();
    assert_eq!(done.renewal, Some(RenewalOutcome::Rekeyed));
    assert_rekeyed(&world);
}

/// The clock of a device without a battery, before somebody has set it.
#[test]
fn rekey_is_not_given_up_while_the_clock_is_before_the_new_certificate() {
    let mut world = unfinished();
    world.clock_error = -30 * 86_400;
    let attempt = world.memory.attempt.clone();
    let failure = world.run(plain()).unwrap().unwrap_err();
    let is_early = |error: &AnswerError| matches!(error, AnswerError::NotYetValid { .. });
    assert!(matches!(&failure, Failure::Answer(error) if is_early(error)), "{failure}");
    assert_eq!(world.memory.attempt, attempt);
    world.clock_error = 0;
    let done = world.run(plain()).unwrap().unwrap();
    assert_eq!(done.renewal, Some(RenewalOutcome::Rekeyed));
    assert_rekeyed(&world);
}

#[test]
fn document_that_comes_with_a_rekey_is_kept() {
    let mut world = provisioned(Flow::Ticket, 60);
    world.ca.configuration = Some(b"document".to_vec());
    world.run(to_rekey()).unwrap().unwrap();
    let [received] = &world.configurations[..] else { panic!("{:?}", world.configurations) };
    assert_eq!((&received.signed[..], received.device_id.as_str()), (&b"document"[..], "pump-17"));
    assert_eq!(received.not_after, world.ca.begins[1] + LIFETIME);
    assert!(world.steps().contains(&Step::ConfigurationKept(1)));
}

#[test]
fn state_that_was_put_back_leads_to_a_good_certificate() {
    let mut world = provisioned(Flow::Ticket, 60);
    let mut states: Vec<Memory> = vec![world.memory.clone()];
    world.run(to_rekey()).unwrap().unwrap();
    states.extend(world.actions.iter().filter_map(|action| match action {
        assay_device_core::Action::Store(memory) => Some((**memory).clone()),
        _ => None,
    }));
    assert_eq!(states.len(), 4);
    for state in states {
        world.memory = state;
        world.now += Duration::from_secs(1);
        world.run(plain()).unwrap().unwrap();
        assert!(can_sign_in(&world));
    }
}

#[test]
fn key_that_the_tpm_does_not_remove_is_told_of_and_the_rekey_is_good() {
    let mut world = provisioned(Flow::Ticket, 60);
    world.tpm.fails = Some(|operation| matches!(operation, TpmOperation::RemoveKey { .. }));
    let rekeyed = world.run(to_rekey()).unwrap().unwrap();
    assert_eq!(serial(&rekeyed), "1");
    assert!(world.steps().iter().any(|step| matches!(step, Step::Unused { .. })));
    assert!(world.is_let_in());
}

#[test]
fn device_that_is_told_to_ask_again_ends_its_rekey_first() {
    let mut world = unfinished();
    let again = ProvisionRequest { again: true, ..request(Flow::Ticket) };
    world.run(again).unwrap().unwrap();
    assert_eq!(kinds(&world), ["adopt", "challenge", "certify"]);
    assert_rekeyed(&world);
}

/// A device whose rekey was cut short: the certificate is stored, and the CA has not heard of it.
fn unfinished() -> World {
    for actions in 0.. {
        let mut world = provisioned(Flow::Ticket, 60);
        world.power_for = Some(actions);
        assert!(world.run(to_rekey()).is_none(), "it comes to be stored");
        if matches!(world.memory.attempt, Some(Attempt::Renewed(_))) {
            world.power_for = None;
            world.ca.heard.clear();
            return world;
        }
    }
    unreachable!("a run has an end")
}
