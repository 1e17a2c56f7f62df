//! What is still to be told of the audit, and who tells it, on both stores.

use assay_store::{Actor, AuditEntry, Change, Deed, Retention, Teller, Told, Whom};
use assay_wire::ProblemCode;
use time::Duration;

use crate::acts::*;
use crate::fixture::{Any, Fixture, on_both};

on_both! {
    what_others_should_hear_comes_in_the_order_of_the_record_until_it_was_told,
    entries_of_which_nobody_needs_to_hear_are_passed_over,
    one_worker_tells_at_a_time_and_another_goes_on_when_it_died,
    nothing_is_forgotten_that_was_not_told_but_what_strangers_caused,
}

const A: Teller = [1; 16];
const B: Teller = [2; 16];

fn operator(fixture: &Fixture) -> Any {
    let mut store = fixture.store();
    store.act_as(Actor { name: "unix:anna".parse().unwrap(), at: now() });
    store
}

fn certified(store: &mut Any, serial: u8) {
    let device = format!("pump-{serial}");
    let entry = plan(&mut **store, &certificate(serial, &device, ek(serial))).unwrap();
    let whom = Some(Whom::Proven(id(&device)));
    let audit = AuditEntry { change: Change::Made, ..decision(1, whom) };
    let entry = assay_store::Entry { audit: Some(audit), ..entry };
    assert_eq!(store.record(&scope(), &[entry]).unwrap(), [assay_store::Recorded::Done]);
}

fn refused(n: u32) -> AuditEntry {
    AuditEntry { refusal: Some((ProblemCode::EkWeak, "weak".into())), ..decision(n, None) }
}

/// What is to be told next, and how far it goes.
fn next(store: &mut Any, count: u32) -> (String, Told) {
    let untold = store.untold(Told::default(), count).unwrap();
    let word =
        |row: &assay_store::AuditRow| row.event.clone().unwrap_or_else(|| row.action.clone());
    (untold.rows.iter().map(word).collect::<Vec<_>>().join(" "), untold.told)
}

fn what_others_should_hear_comes_in_the_order_of_the_record_until_it_was_told(fixture: &Fixture) {
    let store = &mut operator(fixture);
    certified(store, 1);
    store.set_disabled(&ek(1), true, now()).unwrap();
    audit(store, [refused(1)]);
    certified(store, 2);
    store.note(Deed::of_ca("rotate-key", "ticket.key".into())).unwrap();

    let (all, _) = next(store, 99);
    assert_eq!(all, "provisioned disable refused provisioned rotate-key");
    let (first, told) = next(store, 2);
    assert_eq!(first, "provisioned disable");
    assert_eq!(next(store, 2).0, first, "it was not told yet");
    assert!(store.mark_told(told, &A, now()).unwrap());
    let (then, told) = next(store, 2);
    assert_eq!(then, "refused provisioned");
    assert!(store.mark_told(told, &A, now()).unwrap());
    let (last, told) = next(&mut fixture.store(), 2);
    assert_eq!(last, "rotate-key");
    assert!(store.mark_told(told, &A, now()).unwrap());
    assert_eq!(next(store, 2).0, "");
    // What was told is never taken back.
    assert!(store.mark_told(Told::default(), &A, now()).unwrap());
    assert_eq!(next(store, 2).0, "");
}

fn entries_of_which_nobody_needs_to_hear_are_passed_over(fixture: &Fixture) {
    let store = &mut operator(fixture);
    store.enroll(&[enrolment(ek(7), None)]).unwrap();
    audit(store, (0..10).map(|n| decision(n, None)));
    certified(store, 1);
    let first = store.untold(Told::default(), 6).unwrap();
    assert!(first.rows.is_empty() && first.more);
    let then = store.untold(first.told, 6).unwrap();
    assert_eq!((then.rows.len(), then.more), (1, true));
    assert!(!store.untold(then.told, 6).unwrap().more);
}

fn one_worker_tells_at_a_time_and_another_goes_on_when_it_died(fixture: &Fixture) {
    let store = &mut fixture.store();
    certified(store, 1);
    let untold = store.untold(Told::default(), 9).unwrap();
    assert!(untold.may_be_turn_of(&A, now()) && untold.may_be_turn_of(&B, now()));
    assert!(!untold.is_turn_of(&A, now()));
    assert!(store.mark_told(Told::default(), &A, now()).unwrap());
    let untold = store.untold(Told::default(), 9).unwrap();
    assert!(untold.is_turn_of(&A, now()) && !untold.may_be_turn_of(&B, now()));
    let soon = now() + Duration::seconds(11);
    assert!(!store.mark_told(untold.told, &B, soon).unwrap());
    assert_eq!(next(store, 9).0, "provisioned", "nothing is marked by who may not");
    let later = now() + Duration::seconds(13);
    assert!(untold.may_be_turn_of(&B, later));
    assert!(store.mark_told(untold.told, &B, later).unwrap());
    assert!(!store.mark_told(untold.told, &A, later).unwrap());
    assert_eq!(next(store, 9).0, "");
}

fn nothing_is_forgotten_that_was_not_told_but_what_strangers_caused(fixture: &Fixture) {
    let store = &mut operator(fixture);
    certified(store, 1);
    store.set_disabled(&ek(1), true, now()).unwrap();
    audit(store, (0..3).map(refused));
    let forgotten = |store: &mut Any, days: i64| {
        store.prune(&Retention::default(), now() + Duration::days(days)).unwrap().audit
    };
    assert_eq!(forgotten(store, 400), 3);
    assert_eq!(forgotten(store, 4_000), 0);
    assert_eq!(next(store, 9).0, "provisioned disable");
    let (_, told) = next(store, 9);
    assert!(store.mark_told(told, &A, now()).unwrap());
    assert_eq!(forgotten(store, 4_000), 2);
}
