//! What the audit has of operators, and that its chains show what somebody changed, on both stores.

use std::ops::ControlFlow;

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{CertificateFacts, Groups, Reprovision};
use assay_store::{
    Act, Actor, AuditEntry, AuditRow, Broken, Chain, Change, Deed, Entry, IdentityRole, Link,
    Retention, Verified, Verifier, Walked, Which, Whom,
};
use assay_wire::{ProblemCode, Rights};
use time::Duration;

use crate::acts::*;
use crate::fixture::{Any, Fixture, on_both};

on_both! {
    whatever_an_operator_changes_is_in_the_audit_with_who_did_it,
    what_was_not_changed_is_no_act,
    only_a_connection_of_an_operator_records_acts,
    the_audit_says_what_became_of_certificates_and_keys,
    an_entry_that_was_changed_or_removed_is_named,
    what_is_left_after_retention_can_be_verified,
    entries_are_forgotten_by_age_and_kind,
    chains_of_before_a_copy_go_on_after_it,
    a_chain_that_was_made_anew_does_not_fit_what_was_seen,
}

fn actor() -> Actor {
    Actor { name: "unix:anna".parse().unwrap(), at: now() }
}

fn operator(fixture: &Fixture) -> Any {
    let mut store = fixture.store();
    store.act_as(actor());
    store
}

fn actions(store: &mut Any) -> Vec<String> {
    store.audit(99).unwrap().into_iter().map(|row| row.action).collect()
}

fn whatever_an_operator_changes_is_in_the_audit_with_who_did_it(fixture: &Fixture) {
    let store = &mut operator(fixture);
    let (id_1, rights) = (id("pump-1"), Rights::new(["device/+/command/#"], []).unwrap());
    enroll(store, 1, Some("pump-1"));
    store.update_enrolment(&ek(1), Some(Reprovision::Never), None).unwrap();
    store.set_disabled(&ek(1), true, now()).unwrap();
    store.set_disabled(&ek(1), false, now()).unwrap();
    offer_to(store, ParentKind::Import, ek(1), "pump-1", 1);
    store.retire_shared_key(&ek(1)).unwrap();
    store.remove(&ek(1), now()).unwrap();
    for n in [2, 3] {
        enter(store, Act::Ask(stranger(n, 0))).unwrap();
    }
    store.approve(&[enrolment(ek(2), None)]).unwrap();
    store.turn_away(&[ek(3)], now()).unwrap();
    let (version, _) = store.groups().unwrap();
    store.set_groups(version, &Groups::of_new_ca()).unwrap();
    store.add_identity(&identity("sink", IdentityRole::Backend, rights), now()).unwrap();
    store.renew_identity("sink", &identity_certificate(), now()).unwrap();
    store.set_rights("sink", &Rights::default()).unwrap();
    store.revoke_identity("sink", Which::Every, now()).unwrap();
    store.add_anchor(&vendor_root(1)).unwrap();
    store.remove_anchor(&[1; 32]).unwrap();
    store.set_configuration(Some(&id_1), Some(b"{}"), now()).unwrap();
    store.set_configuration(Some(&id_1), None, now()).unwrap();
    store.accept_clock(now()).unwrap();
    store.note(Deed::of_ca("rotate-keys", "ticket".into())).unwrap();

    let rows = store.audit(99).unwrap();
    let found: Vec<_> =
        rows.iter().map(|row| (&*row.action, row.ek_id, row.due.as_deref())).collect();
    let pump = |action| (action, Some(ek(1)), Some("pump-1"));
    let on_ca = |action| (action, None, None);
    assert_eq!(
        found,
        [
            pump("enroll"),
            ("update", Some(ek(1)), None),
            pump("disable"),
            pump("enable"),
            pump("retire-shared-key"),
            pump("remove"),
            ("approve", Some(ek(2)), None),
            ("turn-away", Some(ek(3)), None),
            on_ca("set-groups"),
            on_ca("add-identity"),
            on_ca("renew-identity"),
            on_ca("set-rights"),
            on_ca("revoke-identity"),
            on_ca("trust"),
            on_ca("distrust"),
            ("set-configuration", None, Some("pump-1")),
            ("remove-configuration", None, Some("pump-1")),
            on_ca("accept-clock"),
            on_ca("rotate-keys"),
        ]
    );
    assert!(rows.iter().all(|row| row.client == "unix:anna" && row.chain == Chain::Acts));
    assert!(rows[11].detail.as_ref().unwrap().starts_with("sink publish=[]"), "{:?}", rows[11]);
    assert!(verify(store).is_ok());
}

fn what_was_not_changed_is_no_act(fixture: &Fixture) {
    let store = &mut operator(fixture);
    enroll(store, 1, Some("pump-1"));
    enroll(store, 1, Some("pump-1"));
    // The device id is taken, so nobody is enrolled.
    store.enroll(&[enrolment(ek(2), None), enrolment(ek(3), Some("pump-1"))]).unwrap();
    store.rehearse_enroll(&[enrolment(ek(2), None)]).unwrap();
    assert!(!store.set_disabled(&ek(1), false, now()).unwrap());
    assert!(store.remove(&ek(5), now()).unwrap().is_none());
    assert!(!store.remove_anchor(&[1; 32]).unwrap());
    assert!(!store.set_rights("nobody", &Rights::default()).unwrap());
    assert!(!store.resume(now()).unwrap());
    assert_eq!(actions(store), ["enroll"]);
}

fn only_a_connection_of_an_operator_records_acts(fixture: &Fixture) {
    let mut store = fixture.store();
    enroll(&mut store, 1, None);
    store.set_disabled(&ek(1), true, now()).unwrap();
    assert_eq!(actions(&mut store), [""; 0]);
}

/// Records an act with the audit of it, and returns what the audit has.
fn audited(store: &mut Any, entry: Entry) -> AuditRow {
    let device = Some(Whom::Proven(id("pump-1")));
    let audit = Some(AuditEntry { change: Change::Made, ..decision(1, device) });
    let recorded = store.record(&scope(), &[Entry { audit, ..entry }]).unwrap();
    assert_eq!(recorded, [assay_store::Recorded::Done]);
    store.audit(1).unwrap().remove(0)
}

fn the_audit_says_what_became_of_certificates_and_keys(fixture: &Fixture) {
    let store = &mut fixture.store();
    let said = |row: AuditRow| (row.event, row.serial, row.replaced);
    let expected = |event: &str, serial: u8, replaced: Option<u8>| {
        let serial_of = |n: u8| vec![n; 16];
        (Some(event.to_owned()), Some(serial_of(serial)), replaced.map(serial_of))
    };
    let entry = plan(&mut **store, &certificate(1, "pump-1", ek(1))).unwrap();
    assert_eq!(said(audited(store, entry)), expected("provisioned", 1, None));
    let entry = plan(&mut **store, &certificate(2, "pump-1", ek(1))).unwrap();
    assert_eq!(said(audited(store, entry)), expected("provisioned", 2, Some(1)));

    let in_force = certificate(2, "pump-1", ek(1));
    let at = now() + Duration::seconds(9);
    let renewed = CertificateFacts { serial: [3; 16], ..in_force };
    let entry = plan_to_renew(store, &renewed);
    let waits = audited(store, entry);
    assert_eq!((waits.event, waits.serial), (None, None), "it is not in force");
    // The second argument stands for the IK.
    let entry = plan_to_confirm(store, 2, at).unwrap();
    assert_eq!(said(audited(store, entry)), expected("renewed", 3, Some(2)));

    let entry = plan_to_rekey(store, &certificate(4, "pump-1", ek(1)));
    audited(store, entry);
    let entry = plan_to_confirm(store, 4, at).unwrap();
    assert_eq!(said(audited(store, entry)), expected("rekeyed", 4, Some(3)));

    let entry = plan(&mut **store, &sealed(5, "pump-1", ek(1))).unwrap();
    assert_eq!(audited(store, entry).event, None, "nobody may know of it");
    let entry = plan_to_confirm(store, 5, at).unwrap();
    assert_eq!(said(audited(store, entry)), expected("confirmed", 5, Some(4)));

    let refusal = Some((ProblemCode::EkWeak, "weak".to_owned()));
    audit(store, [AuditEntry { refusal, ..decision(1, None) }]);
    assert_eq!(store.audit(1).unwrap()[0].event.as_deref(), Some("refused"));
    for expected in [Some("pending"), None] {
        let refusal = Some((ProblemCode::Pending, "wait".to_owned()));
        let asked = AuditEntry { refusal, ..decision(1, None) };
        let entry = Entry { act: Act::Ask(stranger(7, 0)), basis: None, audit: Some(asked) };
        assert_eq!(store.record(&scope(), &[entry]).unwrap().len(), 1);
        assert_eq!(store.audit(1).unwrap()[0].event.as_deref(), expected, "once");
    }
    assert!(verify(store).is_ok());
}

fn an_entry_that_was_changed_or_removed_is_named(fixture: &Fixture) {
    let store = &mut operator(fixture);
    fill(store, 5);
    assert_eq!(verify(store).unwrap().count, 15);
    let refused = |store: &mut Any, change: &str, undo: &str| {
        execute(fixture, change);
        let Broken { chain, id, .. } = verify(store).unwrap_err();
        execute(fixture, undo);
        assert!(verify(store).is_ok(), "{undo}");
        (chain, id)
    };
    let changed = refused(
        store,
        "UPDATE audit_acts SET client = 'unix:eve' WHERE id = 3",
        "UPDATE audit_acts SET client = 'unix:anna' WHERE id = 3",
    );
    assert_eq!(changed, ("acts".into(), 3));
    let changed = refused(
        store,
        "UPDATE audit_changes SET duration_us = 7 WHERE id = 2",
        "UPDATE audit_changes SET duration_us = 2 WHERE id = 2",
    );
    assert_eq!(changed, ("changes".into(), 2));
    execute(fixture, "DELETE FROM audit_others WHERE id = 2");
    let Broken { chain, id, .. } = verify(store).unwrap_err();
    assert_eq!((&*chain, id), ("others", 3));
    execute(fixture, "DELETE FROM audit_others WHERE id = 1");
    assert_eq!(verify(store).unwrap_err().id, 3, "the beginning is missing");
}

fn what_is_left_after_retention_can_be_verified(fixture: &Fixture) {
    let store = &mut operator(fixture);
    fill(store, 1_500);
    let (before, seen) = (exported(store), verify(store).unwrap().ends);
    let retention = Retention::default().with_audit(1_000).unwrap();
    tell_all(store);
    assert_eq!(store.prune(&retention, now()).unwrap().audit, 1_000);
    let Verified { count, ends, .. } = verify(store).unwrap();
    assert_eq!((count, &ends), (3_500, &seen));
    fill(store, 1);
    assert_eq!(verify_expecting(store, seen).unwrap().count, 3_503);

    // What was seen of an entry that is gone proves nothing any more.
    let old = before.iter().find(|(link, _)| (link.chain, link.id) == (Chain::Others, 20));
    let old = old.unwrap().0;
    assert_eq!(verify_expecting(store, vec![old]).unwrap().gone, [old]);
    // All are gone, and the chains go on.
    tell_all(store);
    let much_later = now() + Duration::days(4_000);
    while store.prune(&retention, much_later).unwrap().more {}
    assert_eq!(verify(store).unwrap().count, 0);
    fill(store, 1);
    assert_eq!(verify(store).unwrap().count, 3);
    let ids: Vec<_> = store.audit(9).unwrap().iter().map(|row| row.id).collect();
    assert_eq!(ids, [1_502; 3]);
}

fn entries_are_forgotten_by_age_and_kind(fixture: &Fixture) {
    let store = &mut operator(fixture);
    fill(store, 2);
    tell_all(store);
    let kept = |store: &mut Any, days: i64| {
        let retention = Retention::default().with_decisions(30).unwrap().with_acts(60).unwrap();
        store.prune(&retention, now() + Duration::days(days)).unwrap();
        let chains = store.audit(99).unwrap().into_iter().map(|row| row.chain.name());
        chains.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(kept(store, 29).split(' ').count(), 6);
    assert_eq!(kept(store, 31), "acts acts");
    // However much others ask.
    audit(store, (0..2_000).map(|n| decision(n, None)));
    let retention = Retention::default().with_audit(1_000).unwrap();
    store.prune(&retention, now()).unwrap();
    let left = store.audit(u32::MAX).unwrap();
    assert_eq!(left.iter().filter(|row| row.chain == Chain::Acts).count(), 2);
    assert_eq!(left.len(), 1_002);
    assert_eq!(kept(store, 61), "");
}

fn chains_of_before_a_copy_go_on_after_it(fixture: &Fixture) {
    let store = &mut operator(fixture);
    fill(store, 3);
    let seen = verify(store).unwrap().ends;
    let (file, server) = (Fixture::postgres(), Fixture::sqlite());
    let other = match &fixture.database {
        assay_store::Database::Sqlite(_) => file.database,
        assay_store::Database::Postgres(_) => {
            assay_store::Database::Sqlite(server.directory.path().join("copy.db"))
        }
    };
    *store = Fixture::sqlite().store();
    assay_store::copy(&fixture.database, &other, |_| {}).unwrap();
    let store = &mut other.open().unwrap();
    store.act_as(actor());
    fill(store, 1);
    assert_eq!(verify_expecting(store, seen).unwrap().count, 12);
}

/// Whoever can write to the database can make every hash anew, but not so that it is what somebody
/// kept.
fn a_chain_that_was_made_anew_does_not_fit_what_was_seen(fixture: &Fixture) {
    let store = &mut operator(fixture);
    fill(store, 3);
    let seen = verify(store).unwrap().ends;
    execute(fixture, "DELETE FROM audit_acts; DELETE FROM audit_changes; DELETE FROM audit_others");
    assert!(verify(store).is_ok(), "by itself, an empty chain is one");
    let Broken { chain, id, .. } = verify_expecting(store, seen.clone()).unwrap_err();
    assert_eq!((&*chain, id), ("acts", 3));
    store.act_as(Actor { name: "unix:eve".parse().unwrap(), at: now() });
    fill(store, 4);
    assert!(verify(store).is_ok());
    let Broken { chain, id, .. } = verify_expecting(store, seen).unwrap_err();
    assert_eq!((&*chain, id), ("acts", 3));
}

/// So many entries of each chain.
fn fill(store: &mut Any, count: u32) {
    let change = |n| AuditEntry { change: Change::Made, ..decision(n, None) };
    for n in 1..=count {
        store.note(Deed::of_ca("resume", n.to_string())).unwrap();
    }
    audit(store, (1..=count).flat_map(|n| [change(n), decision(n, None)]));
}

fn enroll(store: &mut Any, n: u8, device: Option<&str>) {
    store.enroll(&[enrolment(ek(n), device)]).unwrap();
}

fn verify(store: &mut Any) -> Result<Verified, Broken> {
    verify_expecting(store, Vec::new())
}

fn verify_expecting(store: &mut Any, seen: Vec<Link>) -> Result<Verified, Broken> {
    let mut verifier = Verifier::expecting(seen);
    walk(store, |walked| verifier.walk(walked).map(drop))?;
    verifier.finish()
}

/// Every entry, and its line in an export.
fn exported(store: &mut Any) -> Vec<(Link, String)> {
    let (mut verifier, mut lines) = (Verifier::default(), Vec::new());
    walk(store, |walked| {
        let line = verifier.walk(walked)?;
        if let (Walked::Row(row), Some(line)) = (walked, line) {
            let link = Link { chain: row.chain, id: row.id, hash: row.hash.unwrap() };
            lines.push((link, line));
        }
        Ok(())
    })
    .unwrap();
    let mut again = Verifier::default();
    lines.iter().for_each(|(_, line)| again.line(line).unwrap());
    lines
}

fn walk(
    store: &mut Any,
    mut each: impl FnMut(&Walked) -> Result<(), Broken> + Send,
) -> Result<(), Broken> {
    let mut outcome = Ok(());
    store
        .walk_audit(&mut |walked| {
            outcome = each(&walked);
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .unwrap();
    outcome
}

/// As somebody does who has the database.
fn execute(fixture: &Fixture, sql: &str) {
    match &fixture.database {
        assay_store::Database::Sqlite(path) => {
            rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
        }
        assay_store::Database::Postgres(_) => {
            let mut client = postgres::Client::connect(&fixture.address, postgres::NoTls).unwrap();
            client.batch_execute(sql).unwrap();
        }
    }
}
