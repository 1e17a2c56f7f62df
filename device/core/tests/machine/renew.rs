//! Certificates that are renewed: when, by which requests, and what a device has meanwhile.

use std::time::Duration;

use assay_device_core::{
    Action, AnswerError, Attempt, Credential, EkCertificates, EkChoice, EkKind, Failure, Grant,
    ProvisionRequest, Provisioned, RenewalOutcome, Step, TpmOperation, Trouble,
};
use assay_wire::{EkPublic, Flow, Problem, ProblemCode, RequestBody};

use crate::ca::{LIFETIME, RENEWED_AFTER, certificate};
use crate::world::{BEGIN, Fate, World};
use crate::{request, serial};

const CERTIFICATE_FLOWS: [Flow; 2] = [Flow::Ticket, Flow::Sealed];

/// A device that was provisioned this long ago. What was asked and told then is forgotten.
pub(crate) fn provisioned(flow: Flow, age: u64) -> World {
    let mut world = World::default();
    world.run(request(flow)).unwrap().unwrap();
    world.now += Duration::from_secs(age);
    world.ca.heard.clear();
    world.sent.clear();
    world
}

/// A device whose certificate is due for renewal.
fn due(flow: Flow) -> World {
    provisioned(flow, RENEWED_AFTER + 60)
}

fn to_renew(flow: Flow) -> ProvisionRequest {
    ProvisionRequest { renew: true, ..request(flow) }
}

pub(crate) fn kinds(world: &World) -> Vec<&'static str> {
    let kind = |request: &RequestBody| match request {
        RequestBody::Challenge(_) => "challenge",
        RequestBody::Certify(_) => "certify",
        RequestBody::Enroll(_) => "enroll",
        RequestBody::Confirm(_) => "confirm",
        RequestBody::Renew(_) => "renew",
        RequestBody::Adopt(_) => "adopt",
        RequestBody::Rekey(_) => "rekey",
        RequestBody::Register(_) => "register",
        RequestBody::Ping => "ping",
    };
    world.ca.heard.iter().map(kind).collect()
}

fn assert_renewed(world: &World, provisioned: &Provisioned) {
    assert_eq!(serial(provisioned), "1");
    let Some(Grant::Certificate(grant)) = &world.memory.in_use else { panic!() };
    assert_eq!(grant.chain[0][32], 1);
    assert_eq!(world.memory.attempt, None);
    assert_eq!((&world.ca.superseded[..], &world.ca.waiting[..]), (&[0][..], &[][..]));
}

#[test]
fn certificate_that_is_due_is_renewed_and_adopted_and_the_next_run_asks_nobody() {
    for flow in CERTIFICATE_FLOWS {
        let mut world = due(flow);
        let renewed = world.run(request(flow)).unwrap().unwrap();
        assert_eq!(kinds(&world), ["renew", "adopt"]);
        assert_renewed(&world, &renewed);
        assert_eq!((renewed.flow, renewed.was_provisioned), (flow, false));
        assert_eq!(renewed.renewal, Some(RenewalOutcome::Renewed));
        let next = world.run(ProvisionRequest::new("default".parse().unwrap())).unwrap().unwrap();
        assert_eq!((next.was_provisioned, next.renewal), (true, None));
        assert_eq!(next.credential, renewed.credential);
        assert_eq!(world.ca.heard.len(), 2);
    }
}

#[test]
fn certificate_that_is_not_due_is_kept_and_nobody_is_asked() {
    let mut world = provisioned(Flow::Ticket, RENEWED_AFTER - 60);
    let kept = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!((kept.was_provisioned, kept.renewal), (true, None));
    assert!(world.ca.heard.is_empty());
}

#[test]
fn tpm_does_not_use_the_ek_for_a_renewal_and_signs_twice() {
    let mut world = due(Flow::Ticket);
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    let operations = world.actions.iter().filter_map(|action| match action {
        Action::Tpm(operation) => Some(operation),
        _ => None,
    });
    let operations: Vec<_> = operations.collect();
    assert!(
        matches!(
            operations[..],
            [
                TpmOperation::IdentityKey { .. },
                TpmOperation::EkCertificates(EkKind::P256),
                TpmOperation::Sign { .. },
                TpmOperation::Sign { .. },
            ]
        ),
        "{operations:?}"
    );
    let [RequestBody::Renew(renewal), RequestBody::Adopt(adoption)] = &world.ca.heard[..] else {
        panic!()
    };
    assert_eq!(adoption.ek_id, crate::tpm::ek_id(EkKind::P256));
    let index = EkKind::P256.certificate_index().unwrap();
    assert_eq!(renewal.ek_public, EkPublic::OfCertificate(index));
    assert_eq!(renewal.ek_certificates.len(), 1);
}

#[test]
fn ek_without_a_certificate_is_shown_in_full() {
    let ek = Some(EkChoice::Kind(EkKind::Rsa3072));
    let mut world = World::default();
    world.run(ProvisionRequest { ek, ..request(Flow::Ticket) }).unwrap().unwrap();
    world.now += Duration::from_secs(RENEWED_AFTER + 60);
    let renewed = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_renewed(&world, &renewed);
    let RequestBody::Renew(renewal) = &world.ca.heard[2] else { panic!() };
    assert!(matches!(renewal.ek_public, EkPublic::Area(_)) && renewal.ek_certificates.is_empty());
}

#[test]
fn advice_of_the_ca_says_when_to_renew() {
    for flow in CERTIFICATE_FLOWS {
        for (advice, age, is_asked) in [
            (RENEWED_AFTER + 1000, RENEWED_AFTER + 900, false),
            (RENEWED_AFTER + 1000, RENEWED_AFTER + 1001, true),
            (RENEWED_AFTER - 1000, RENEWED_AFTER - 900, true),
            // Somebody on the way wrote it.
            (u64::MAX - BEGIN, LIFETIME - LIFETIME / 20 - 60, false),
            (u64::MAX - BEGIN, LIFETIME - LIFETIME / 20 + 60, true),
        ] {
            let mut world = World::default();
            world.ca.advice = Some(BEGIN + advice);
            world.run(request(flow)).unwrap().unwrap();
            world.ca.heard.clear();
            world.now += Duration::from_secs(age);
            world.run(request(flow)).unwrap().unwrap();
            assert_eq!(!world.ca.heard.is_empty(), is_asked, "{flow}, {advice}, {age}");
        }
    }
}

#[test]
fn new_root_that_comes_with_a_certificate_is_pinned_before_that_is_verified() {
    let pinned_at =
        |world: &World, wanted: fn(&Action) -> bool| world.actions.iter().position(wanted).unwrap();
    for (age, answer) in [(0, "a first"), (RENEWED_AFTER + 60, "a renewed")] {
        let mut world = match age {
            0 => World::default(),
            age => provisioned(Flow::Ticket, age),
        };
        world.ca.new_root = Some(b"root 2".to_vec());
        world.run(request(Flow::Ticket)).unwrap().unwrap();
        assert_eq!(world.pinned, [b"root 2"], "{answer} certificate");
        assert!(world.steps().contains(&Step::RootPinned("root 2".into())));
        let pinned = pinned_at(&world, |action| matches!(action, Action::Pin(_)));
        let stored = world.actions[pinned..].iter();
        assert!(stored.clone().any(|action| matches!(action, Action::VerifyPath(_))));
        assert!(stored.clone().any(|action| matches!(action, Action::Store(_))));
        // It comes again with every certificate.
        world.run(to_renew(Flow::Ticket)).unwrap().unwrap();
        assert_eq!(world.pinned.len(), 1);
    }
}

/// A sealed reply has no field for it.
#[test]
fn new_root_that_is_the_last_issuer_of_a_sealed_certificate_is_pinned() {
    let mut world = World::default();
    world.ca.new_root = Some(b"root 2".to_vec());
    world.run(request(Flow::Sealed)).unwrap().unwrap();
    assert_eq!(world.pinned, [b"root 2"]);
    assert!(world.steps().contains(&Step::RootPinned("root 2".into())));
}

#[test]
fn root_that_is_refused_keeps_no_certificate_from_being_renewed() {
    let mut world = provisioned(Flow::Ticket, RENEWED_AFTER + 60);
    world.ca.new_root = Some(b"forged".to_vec());
    let renewed = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_renewed(&world, &renewed);
    assert!(world.pinned.is_empty());
    assert!(world.steps().contains(&Step::RootRefused("it is none".into())));
}

#[test]
fn renewal_that_the_ca_says_is_not_due_leaves_the_certificate_alone() {
    let mut world = provisioned(Flow::Ticket, RENEWED_AFTER - 60);
    let before = world.memory.clone();
    let advice = BEGIN + RENEWED_AFTER + 7;
    world.ca.advice = Some(advice);
    let kept = world.run(to_renew(Flow::Ticket)).unwrap().unwrap();
    assert_eq!(kinds(&world), ["renew"]);
    assert_eq!((kept.was_provisioned, kept.renewal), (true, Some(RenewalOutcome::NotDue)));
    let Credential::Certificate { certificate, .. } = &kept.credential else { panic!() };
    assert_eq!((certificate.serial.as_str(), certificate.renew_at), ("0", advice));
    assert!(world.steps().contains(&Step::NotDue(advice)));
    // The device asks at the time that the CA said, and not before.
    let (Some(Grant::Certificate(old)), Some(Grant::Certificate(new))) =
        (before.in_use, world.memory.in_use.clone())
    else {
        panic!()
    };
    assert_eq!((old.chain, new.renew_at), (new.chain, Some(advice)));
    assert_eq!(world.memory.attempt, None);
    for (age, requests) in [(RENEWED_AFTER + 6, 1), (RENEWED_AFTER + 8, 3)] {
        world.now = Duration::from_secs(age);
        world.run(request(Flow::Ticket)).unwrap().unwrap();
        assert_eq!(world.ca.heard.len(), requests, "{age}");
    }
}

#[test]
fn renewal_that_the_ca_refuses_has_the_device_prove_its_tpm_in_the_same_run() {
    for (flow, requests) in
        [(Flow::Ticket, ["challenge", "certify"]), (Flow::Sealed, ["enroll", "confirm"])]
    {
        for code in [
            ProblemCode::CertificateNotInForce,
            ProblemCode::StatementRefused,
            ProblemCode::ClaimExpired,
            ProblemCode::QuotaExceeded,
            ProblemCode::Unsupported,
            ProblemCode::Other(999),
        ] {
            for request in [request(flow), to_renew(flow)] {
                let mut world = due(flow);
                world.ca.problems.push_back(Problem::new(code, "as the test has it".into()));
                let provisioned = world.run(request).unwrap().unwrap();
                assert_eq!(kinds(&world)[0], "renew");
                assert_eq!(kinds(&world)[1..], requests, "{code}");
                assert_eq!((serial(&provisioned), provisioned.renewal), ("0", None));
            }
        }
    }
}

#[test]
fn renewal_is_asked_for_in_the_flow_that_the_request_names_or_else_that_flow_is_gone_through() {
    let mut world = due(Flow::Ticket);
    let problem = Problem::new(ProblemCode::CertificateNotInForce, String::new());
    world.ca.problems.push_back(problem);
    world.run(request(Flow::Sealed)).unwrap().unwrap();
    assert_eq!(kinds(&world), ["renew", "enroll", "confirm"]);
    assert!(world.is_let_in());
}

#[test]
fn clock_that_is_wrong_costs_a_refusal_and_no_certificate() {
    let mut world = due(Flow::Ticket);
    world.clock_error = 301;
    let kept = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!((serial(&kept), kept.renewal), ("0", Some(RenewalOutcome::Postponed)));
    assert_eq!(kinds(&world), ["renew"]);
    assert!(world.is_let_in());
}

#[test]
fn certificate_that_the_ca_does_not_know_any_longer_is_replaced_in_the_same_run() {
    let mut world = due(Flow::Ticket);
    world.ca.superseded.push(0);
    let provisioned = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!(kinds(&world), ["renew", "challenge", "certify"]);
    assert_eq!(serial(&provisioned), "1");
    assert!(world.is_let_in());
}

#[test]
fn device_that_the_ca_refuses_in_every_way_keeps_its_good_certificate() {
    let mut world = due(Flow::Ticket);
    let before = world.memory.in_use.clone();
    let problem = Problem::new(ProblemCode::DeviceDisabled, "as the test has it".into());
    world.ca.problems.extend([problem.clone(), problem.clone()]);
    let kept = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!((serial(&kept), kept.renewal), ("0", Some(RenewalOutcome::Postponed)));
    assert_eq!((kinds(&world), &world.memory.in_use), (vec!["renew", "challenge"], &before));
    let said = |step: &Step| step.to_string().contains("as the test has it");
    assert_eq!(world.steps().iter().filter(|step| said(step)).count(), 2);

    world.ca.problems.extend([problem.clone(), problem.clone()]);
    let refused = world.run(to_renew(Flow::Ticket)).unwrap();
    assert_eq!(refused, Err(Failure::Refused(problem)), "who asks for the renewal is told so");
}

#[test]
fn refusal_that_passes_by_itself_postpones_the_renewal_and_starts_no_flow() {
    let clock = Problem::new(ProblemCode::ClockOff, "as the test has it".into());
    let quota = Problem::new(ProblemCode::QuotaExceeded, "as the test has it".into());
    for problem in [clock, quota.retry_after(3600)] {
        let mut world = due(Flow::Ticket);
        world.ca.problems.push_back(problem);
        let kept = world.run(request(Flow::Ticket)).unwrap().unwrap();
        assert_eq!((serial(&kept), kept.renewal), ("0", Some(RenewalOutcome::Postponed)));
        assert_eq!(kinds(&world), ["renew"]);
    }
}

/// A broker may hold the adoption back, refuse it in the CA's place, and deliver it when the device
/// has got its old certificate again.
#[test]
fn certificate_that_a_flow_gives_after_a_refused_adoption_is_renewed_by_the_next_run() {
    let mut world = due(Flow::Ticket);
    world.fates = vec![Fate::Arrives, Fate::Lost].into();
    world.fates.extend([Fate::Lost; 100]);
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert!(matches!(world.memory.attempt, Some(Attempt::Renewed(_))));
    world.fates.clear();
    world.ca.heard.clear();
    let problem = Problem::new(ProblemCode::StatementRefused, "as the test has it".into());
    world.ca.problems.push_back(problem);
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!(kinds(&world), ["adopt", "challenge", "certify"]);
    world.ca.heard.clear();
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!(kinds(&world)[0], "renew");
}

#[test]
fn expired_certificate_is_replaced_by_its_flow_without_a_renewal() {
    for flow in CERTIFICATE_FLOWS {
        for request in [to_renew(flow), request(flow)] {
            let mut world = provisioned(flow, LIFETIME + 1);
            assert_eq!(serial(&world.run(request).unwrap().unwrap()), "1");
            assert!(!kinds(&world).contains(&"renew"));
        }
    }
}

#[test]
fn device_that_is_told_to_ask_again_proves_its_tpm() {
    let mut world = due(Flow::Ticket);
    world.run(ProvisionRequest { again: true, ..request(Flow::Ticket) }).unwrap().unwrap();
    assert_eq!(kinds(&world), ["challenge", "certify"]);
}

#[test]
fn lost_reply_to_a_renewal_is_asked_for_again_and_gives_one_certificate() {
    for (fates, requests) in [
        (vec![Fate::Lost], &["renew", "renew", "adopt"][..]),
        (vec![Fate::Arrives, Fate::Lost], &["renew", "adopt", "adopt"]),
        (vec![Fate::BreaksConnection], &["renew", "renew", "adopt"]),
        (vec![Fate::Arrives, Fate::BreaksConnection], &["renew", "adopt", "adopt"]),
        (vec![Fate::Twice, Fate::Twice], &["renew", "adopt"]),
    ] {
        let mut world = due(Flow::Ticket);
        world.fates = fates.into();
        let renewed = world.run(request(Flow::Ticket)).unwrap().unwrap();
        assert_eq!(kinds(&world), requests);
        assert_renewed(&world, &renewed);
    }
}

#[test]
fn busy_ca_is_asked_for_the_renewal_again_when_it_says() {
    let mut world = due(Flow::Ticket);
    let busy = Problem::new(ProblemCode::Busy, "as the test has it".into()).retry_after(30);
    world.ca.problems.push_back(busy);
    let renewed = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_renewed(&world, &renewed);
    assert!(world.sent[1] - world.sent[0] >= Duration::from_secs(30));
}

#[test]
fn good_certificate_is_used_if_it_cannot_be_renewed_now() {
    let trouble = |trouble| World { troubles: vec![trouble; 100].into(), ..due(Flow::Ticket) };
    for mut world in [
        trouble(Trouble::Passing("away".into())),
        trouble(Trouble::Lasting),
        World { fates: vec![Fate::Lost; 100].into(), ..due(Flow::Ticket) },
    ] {
        let (before, begin) = (world.memory.clone(), world.now);
        let kept = world.run(request(Flow::Ticket)).unwrap().unwrap();
        assert_eq!((kept.was_provisioned, kept.renewal), (true, Some(RenewalOutcome::Postponed)));
        assert_eq!((serial(&kept), &world.memory), ("0", &before));
        assert!(world.now - begin <= Duration::from_secs(60), "{:?}", world.now - begin);
        assert!(world.steps().iter().any(|step| matches!(step, Step::RenewalPostponed(_))));
        // Whoever asks for the renewal is told that there is none.
        let failure = world.run(to_renew(Flow::Ticket)).unwrap().unwrap_err();
        assert!(matches!(failure, Failure::NotReached { .. } | Failure::Lasting), "{failure}");
        assert_eq!(world.memory, before);
    }
}

#[test]
fn renewal_that_somebody_asked_for_is_tried_until_the_deadline() {
    let mut world = World { fates: vec![Fate::Lost; 100].into(), ..due(Flow::Ticket) };
    let (begin, deadline) = (world.now, Duration::from_secs(200));
    world.run(ProvisionRequest { deadline, ..to_renew(Flow::Ticket) }).unwrap().unwrap_err();
    let took = world.now - begin;
    assert!((Duration::from_secs(150)..=deadline).contains(&took), "{took:?}");
}

#[test]
fn ek_certificate_that_the_request_has_is_shown_and_the_one_in_the_tpm_is_not_read() {
    let ek = crate::tpm::ek_id(EkKind::P256);
    let given = |key_id| EkCertificates {
        chain: vec![vec![0x30, 0]],
        key_id: Some(key_id),
        kind: Some(EkKind::P256),
    };
    for (key_id, is_shown) in [(ek, true), ([7; 32].into(), false)] {
        let mut world = due(Flow::Ticket);
        let ek_certificates = Some(given(key_id));
        world.run(ProvisionRequest { ek_certificates, ..request(Flow::Ticket) }).unwrap().unwrap();
        let RequestBody::Renew(renewal) = &world.ca.heard[0] else { panic!() };
        assert_eq!(renewal.ek_certificates[0][..] == [0x30, 0], is_shown);
        let reads =
            |action: &Action| matches!(action, Action::Tpm(TpmOperation::EkCertificates(_)));
        assert_eq!(world.actions.iter().any(reads), !is_shown);
    }
}

#[test]
fn certificate_for_another_ek_than_the_tpm_has_is_not_renewed() {
    let mut world = due(Flow::Ticket);
    let Some(Grant::Certificate(grant)) = &mut world.memory.in_use else { panic!() };
    grant.record.shown.ek_id = [7; 32].into();
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!(kinds(&world), ["challenge", "certify"]);
}

#[test]
fn tpm_that_does_not_sign_the_renewal_ends_the_run() {
    let mut world = due(Flow::Ticket);
    world.tpm.fails = Some(|operation| matches!(operation, TpmOperation::Sign { .. }));
    let failure = world.run(request(Flow::Ticket)).unwrap();
    assert!(matches!(failure, Err(Failure::Tpm(_))), "{failure:?}");
    assert_eq!(world.actions.last(), Some(&Action::Disconnect));
}

#[test]
fn answer_that_is_no_newer_certificate_for_this_device_is_not_stored() {
    let world = due(Flow::Ticket);
    let (ik, begins) = (world.tpm.ik().unwrap(), world.ca.begins[0]);
    let now = begins + RENEWED_AFTER;
    let mut forged = certificate(&ik, 1, now, "pump-17");
    forged[40] ^= 1;
    for (answer, what) in [
        (certificate(&ik, 1, begins, "pump-17"), "of the same time"),
        (certificate(&ik, 1, begins - 1, "pump-17"), "an older one"),
        (certificate(&[0xAA; 32], 1, now, "pump-17"), "for another key"),
        (certificate(&ik, 1, now, "pump-18"), "for another device"),
        (forged, "that the CA did not sign"),
    ] {
        let mut world = due(Flow::Ticket);
        world.ca.renews_with = Some(answer);
        let before = world.memory.clone();
        let failure = world.run(to_renew(Flow::Ticket)).unwrap().unwrap_err();
        assert!(matches!(failure, Failure::Answer(_)), "{what}: {failure}");
        let is_old = matches!(failure, Failure::Answer(AnswerError::NotNewer { .. }));
        assert_eq!(is_old, what.contains("older") || what.contains("same"), "{what}");
        assert_eq!((&world.memory, kinds(&world)), (&before, vec!["renew"]), "{what}");

        let kept = world.run(request(Flow::Ticket)).unwrap().unwrap();
        assert_eq!(kept.renewal, Some(RenewalOutcome::Postponed), "{what}");
        assert_eq!(world.memory, before);
    }
}

/// Anybody who carries the messages can make a run fail or wait, and nothing else.
#[test]
fn reply_to_a_renewal_altered_in_any_byte_leaves_a_device_that_signs_in() {
    for number in 0..2 {
        for at in 0..120 {
            let fates = [vec![Fate::Arrives; number], vec![Fate::Corrupted(at)]].concat();
            let mut world = World { fates: fates.into(), ..due(Flow::Ticket) };
            world.run(request(Flow::Ticket)).unwrap().unwrap();
            assert!(world.is_let_in(), "byte {at} of reply {number}");
            world.run(request(Flow::Ticket)).unwrap().unwrap();
            assert!(world.is_let_in(), "byte {at} of reply {number}");
        }
    }
}

#[test]
fn adoption_that_was_left_is_finished_by_the_next_run_whatever_the_clock_says() {
    for flow in CERTIFICATE_FLOWS {
        let fates = [vec![Fate::Arrives], vec![Fate::Lost; 100]].concat();
        let mut world = World { fates: fates.into(), ..due(flow) };
        let kept = world.run(request(flow)).unwrap().unwrap();
        assert_eq!((serial(&kept), kept.renewal), ("1", Some(RenewalOutcome::Postponed)));
        assert!(matches!(world.memory.attempt, Some(Attempt::Renewed(_))));
        assert!(world.is_let_in(), "the CA has heard of the adoption");
        world.fates.clear();
        world.ca.heard.clear();
        let renewed = world.run(request(flow)).unwrap().unwrap();
        assert_eq!(kinds(&world), ["adopt"]);
        assert_renewed(&world, &renewed);
    }
}

#[test]
fn refused_adoption_has_the_device_prove_its_tpm_and_loses_nothing() {
    let mut world = due(Flow::Ticket);
    world.ca.refuses_last = Some(ProblemCode::CertificateNotInForce);
    let kept = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!((serial(&kept), kept.renewal), ("1", Some(RenewalOutcome::Postponed)));
    assert_eq!(kinds(&world), ["renew", "adopt", "challenge", "certify"]);
    // Anybody on the way can forge the refusal. So both certificates are still there.
    assert!(matches!(world.memory.attempt, Some(Attempt::Renewed(_))));
    assert!(world.is_let_in());
    world.ca.refuses_last = None;
    let renewed = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_renewed(&world, &renewed);
}

#[test]
fn run_that_ends_after_any_action_of_a_renewal_leaves_a_device_that_signs_in_and_goes_on() {
    for flow in CERTIFICATE_FLOWS {
        let mut world = due(flow);
        world.run(request(flow)).unwrap().unwrap();
        for actions in 0..world.actions.len() {
            let mut world = World { power_for: Some(actions), ..due(flow) };
            assert!(world.run(request(flow)).is_none());
            assert!(world.is_let_in(), "after {actions} actions");
            world.power_for = None;
            world.run(request(flow)).unwrap().unwrap();
            assert!(world.is_let_in(), "after {actions} actions");
            let Some(Grant::Certificate(grant)) = &world.memory.in_use else { panic!() };
            assert_eq!((grant.chain[0][32], world.ca.certified.len()), (1, 2), "{actions} actions");
            assert!(world.run(request(flow)).unwrap().unwrap().was_provisioned);
        }
    }
}

#[test]
fn run_that_ends_after_any_two_actions_of_a_renewal_leaves_a_device_that_signs_in() {
    let mut world = due(Flow::Ticket);
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    let count = world.actions.len();
    for first in 0..count {
        for second in 0..count {
            let mut world = World { power_for: Some(first), ..due(Flow::Ticket) };
            assert!(world.run(request(Flow::Ticket)).is_none());
            world.power_for = Some(second);
            if let Some(outcome) = world.run(request(Flow::Ticket)) {
                outcome.unwrap();
            }
            assert!(world.is_let_in(), "after {first} and {second}");
            world.power_for = None;
            world.run(request(Flow::Ticket)).unwrap().unwrap();
            assert!(world.is_let_in(), "after {first} and {second}");
            assert_eq!(world.ca.certified.len(), 2, "after {first} and {second}");
        }
    }
}

#[test]
fn memory_of_before_the_renewal_leaves_a_device_that_comes_back_by_itself() {
    let mut world = due(Flow::Ticket);
    let before = world.memory.clone();
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    world.memory = before;
    assert!(!world.is_let_in(), "the certificate was superseded");
    let provisioned = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!(serial(&provisioned), "1");
    assert!(world.is_let_in());
}

#[test]
fn ca_that_forgot_a_renewal_is_proven_the_tpm_anew() {
    let mut world = due(Flow::Ticket);
    let (certified, begins) = (world.ca.certified.clone(), world.ca.begins.clone());
    world.fates = [vec![Fate::Arrives], vec![Fate::Lost; 100]].concat().into();
    world.run(request(Flow::Ticket)).unwrap().unwrap();
    (world.ca.certified, world.ca.begins) = (certified, begins);
    (world.ca.superseded, world.ca.waiting) = Default::default();
    world.fates.clear();
    world.ca.heard.clear();
    let provisioned = world.run(request(Flow::Ticket)).unwrap().unwrap();
    assert_eq!(kinds(&world), ["adopt", "challenge", "certify"]);
    assert_eq!((serial(&provisioned), &world.memory.attempt), ("0", &None));
    assert!(world.is_let_in());
}
