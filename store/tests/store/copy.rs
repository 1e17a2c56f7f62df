//! A CA that moves from one store to another.

use std::collections::BTreeMap;
use std::path::Path;

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{Groups, Role};

use assay_store::sqlite::Sqlite;
use assay_store::{
    Act, AnchorRow, Database, IdentityRole, NewEnrolment, SharedKeys, StoreError, Tags, Which,
    Whom, copy,
};
use assay_wire::Rights;
use rusqlite::Connection;
use rusqlite::types::Value;
use time::Duration;

use crate::acts::*;
use crate::fixture::{Any, Fixture};

#[test]
fn nothing_is_lost_on_the_way_to_postgresql_and_back() {
    let (file, server) = (Fixture::sqlite(), Fixture::postgres());
    fill(&mut file.store());
    let mut restored = Sqlite::open(&file.path()).unwrap();
    restored.raise_epoch(now(), SharedKeys::Keep, now()).unwrap();
    drop(restored);
    let rows = copy(&file.database, &server.database, |_| {}).unwrap();
    let back = file.directory.path().join("back.db");
    assert_eq!(copy(&server.database, &Database::Sqlite(back.clone()), |_| {}).unwrap(), rows);
    let (before, after) = (tables(&file.path()), tables(&back));
    assert!(before.values().all(|rows| !rows.is_empty()), "every table has rows: {before:?}");
    assert_eq!(before, after);
}

#[test]
fn copy_answers_as_the_original_does_and_counts_on() {
    let (file, server) = (Fixture::sqlite(), Fixture::postgres());
    fill(&mut file.store());
    let other = file.directory.path().join("other.db");
    std::fs::copy(file.path(), &other).unwrap();
    copy(&Database::Sqlite(other), &server.database, |_| {}).unwrap();
    let mut stores = [file.store(), server.store()];
    let answers = stores.each_mut().map(|store| {
        let at = now() + Duration::hours(1);
        let snapshots: Vec<_> = (1..=5).map(|n| snapshot(store, ek(n), at)).collect();
        (
            format!("{snapshots:?}{:?}", store.revoked(at).unwrap()),
            format!("{:?}{:?}", store.enrolments().unwrap(), store.devices().unwrap()),
            format!("{:?}{:?}", store.groups().unwrap(), store.pending().unwrap()),
            format!("{:?}{:?}", store.certificates().unwrap(), store.audit(99).unwrap()),
            format!("{:?}{:?}", store.identities().unwrap(), store.anchors().unwrap()),
            (store.changes().unwrap(), anchors_version(store)),
        )
    });
    assert_eq!(answers[0], answers[1]);
    // The next numbers follow those before the copy.
    let next = stores.each_mut().map(|store| {
        store.add_anchor(&anchor(9)).unwrap();
        (anchors_version(store), store.next_revocation_list().unwrap())
    });
    assert_eq!(next[0], next[1]);
}

#[test]
fn copy_overwrites_no_ca() {
    let (file, server) = (Fixture::sqlite(), Fixture::postgres());
    fill(&mut file.store());
    assert!(matches!(copy(&file.database, &file.database, |_| {}), Err(StoreError::NotEmpty(_))));
    let other = Fixture::sqlite();
    copy(&file.database, &server.database, |_| {}).unwrap();
    let again = copy(&other.database, &server.database, |_| {});
    assert!(matches!(again, Err(StoreError::NotEmpty(_))));
    for left in ["new.db-wal", "new.db-shm"] {
        let left = other.directory.path().join(left);
        std::fs::write(&left, "").unwrap();
        let target = Database::Sqlite(other.directory.path().join("new.db"));
        let refused = copy(&other.database, &target, |_| {});
        assert!(matches!(refused, Err(StoreError::NotEmpty(_))), "{refused:?}");
        std::fs::remove_file(left).unwrap();
    }
    let missing = Database::Sqlite(file.directory.path().join("missing.db"));
    assert!(copy(&missing, &Fixture::postgres().database, |_| {}).is_err());
}

#[test]
fn nobody_writes_to_what_is_copied() {
    for fixture in [Fixture::sqlite(), Fixture::postgres()] {
        fill(&mut fixture.store());
        let target = fixture.directory.path().join("copy.db");
        let mut revoker = None;
        copy(&fixture.database, &Database::Sqlite(target.clone()), |progress| {
            // The other thread waits. Once the copy is finished, it learns that the CA moved.
            if progress.table == "scope" {
                let database = fixture.database.clone();
                revoker = Some(std::thread::spawn(move || {
                    database.open().and_then(|mut store| store.set_disabled(&ek(77), true, now()))
                }));
                std::thread::sleep(std::time::Duration::from_millis(200));
                assert!(!revoker.as_ref().unwrap().is_finished());
            }
        })
        .unwrap();
        let refused = revoker.unwrap().join().unwrap();
        assert!(matches!(refused, Err(StoreError::Moved(_))), "{refused:?}");
        let mut copied = Database::Sqlite(target).open().unwrap();
        assert!(!records(&mut copied, ek(77), now()).disabled);
    }
}

#[test]
fn nobody_opens_or_writes_to_what_was_copied_elsewhere() {
    for fixture in [Fixture::sqlite(), Fixture::postgres()] {
        fill(&mut fixture.store());
        let mut worker = matches!(fixture.database, Database::Postgres(_)).then(|| fixture.store());
        let target = fixture.directory.path().join("copy.db");
        copy(&fixture.database, &Database::Sqlite(target.clone()), |_| {}).unwrap();
        let again = Database::Sqlite(fixture.directory.path().join("again.db"));
        let refusals = [
            fixture.database.open().err(),
            copy(&fixture.database, &again, |_| {}).err(),
            worker.as_mut().and_then(|worker| worker.next_revocation_list().err()),
        ];
        assert_eq!(refusals.iter().flatten().count(), if worker.is_some() { 3 } else { 2 });
        for error in refusals.into_iter().flatten() {
            let StoreError::Moved(place) = &error else { panic!("{error}") };
            assert_eq!(*place, target.display().to_string());
        }
    }
}

#[test]
fn file_that_another_process_has_open_is_not_copied() {
    let (file, server) = (Fixture::sqlite(), Fixture::postgres());
    fill(&mut file.store());
    let worker = file.store();
    let refused = copy(&file.database, &server.database, |_| {});
    assert!(matches!(refused, Err(StoreError::InUse(_))), "{refused:?}");
    drop(worker);
    copy(&file.database, &server.database, |_| {}).unwrap();
    // There is no log that would stay behind under the old name.
    assert!(!file.directory.path().join("assay.db-wal").exists());
}

#[test]
fn progress_reaches_the_number_of_rows() {
    let file = Fixture::sqlite();
    let mut store = file.store();
    audit(&mut store, (0..2_500).map(|n| decision(n, None)));
    drop(store);
    let mut seen = Vec::new();
    let target = Database::Sqlite(file.directory.path().join("copy.db"));
    copy(&file.database, &target, |progress| {
        if progress.table == "audit_others" {
            seen.push((progress.copied, progress.rows));
        }
    })
    .unwrap();
    assert_eq!(seen, [(0, 2_500), (1_000, 2_500), (2_000, 2_500)]);
}

/// Adds rows to every table, with gaps in the numbers.
fn fill(store: &mut Any) {
    store.set_configuration(None, Some(b"{}"), now()).unwrap();
    store.set_configuration(Some(&id("pump-1")), Some(b"\xa0"), now()).unwrap();
    store.record_scope(&scope()).unwrap();
    for n in [1, 2, 3] {
        store.add_anchor(&anchor(n)).unwrap();
    }
    store.remove_anchor(&[3; 32]).unwrap();
    let tags = Tags::from([("site".to_owned(), "north \"7\"".to_owned())]);
    let enrolment = |n: u8, device: Option<&str>| NewEnrolment {
        ek_id: ek(n),
        device_id: device.map(id),
        recognised: "test".into(),
        reprovision: None,
        legacy_dps_ek: Some(n == 4),
        plain_srk: Some(n == 5),
        disabled: Some(n == 5),
        tags: tags.clone(),
        facts: Some(stranger(n, 0).facts),
        added_at: now(),
    };
    store.enroll(&[enrolment(4, Some("pump-4")), enrolment(5, None)]).unwrap();
    let old = assay_store::AuditEntry { time: now() - Duration::days(2), ..decision(1, None) };
    audit(store, [old]);
    let retention = assay_store::Retention::default().with_decisions(1).unwrap();
    assert_eq!(store.prune(&retention, now()).unwrap().audit, 1);
    store.act_as(assay_store::Actor { name: "unix:anna".parse().unwrap(), at: now() });
    add(store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(store, &certificate(2, "pump-1", ek(1))).unwrap();
    add(store, &sealed(3, "pump-2", ek(2))).unwrap();
    add(store, &certificate(4, "pump-3", ek(3))).unwrap();
    store.remove(&ek(3), now()).unwrap();
    offer(store, ek(1), "pump-1", 1);
    accept(store, ek(1), "pump-1", 1).unwrap();
    offer_to(store, ParentKind::PlainSrk, ek(5), "pump-5", 1);
    store.retire_shared_key(&ek(5)).unwrap();
    audit(store, [decision(1, None), decision(2, Some(Whom::Due(id("pump-2"))))]);
    let made = assay_store::AuditEntry {
        change: assay_store::Change::Made,
        ..decision(3, Some(Whom::Proven(id("pump-1"))))
    };
    audit(store, [made]);
    let (none, _) = store.groups().unwrap();
    assert!(store.set_groups(none, &Groups::of_new_ca()).unwrap());
    enter(store, Act::Ask(stranger(9, 0))).unwrap();
    assert!(store.take_place(&ek(1), &place("pumps", 1), now()).unwrap());
    let sink = Rights::new(["device/+/command/#"], ["device/#", "ca/crl"]).unwrap();
    for (name, role, rights) in
        [("sink", IdentityRole::Backend, sink), ("anna", IdentityRole::Operator, Rights::default())]
    {
        store.add_identity(&identity(name, role, rights), now()).unwrap();
        store.renew_identity(name, &identity_certificate(), now()).unwrap();
    }
    store.revoke_identity("anna", Which::Every, now()).unwrap();
    store.next_revocation_list().unwrap();
}

fn anchor(n: u8) -> AnchorRow {
    AnchorRow {
        fingerprint: [n; 32],
        certificate: vec![n],
        subject: format!("CN=vendor {n}"),
        role: Role::Root,
        not_after: 9,
        added_at: 8,
    }
}

/// Every row of every table, in order, and the last number that each table gave.
fn tables(path: &Path) -> BTreeMap<String, Vec<Vec<Value>>> {
    let file = Connection::open(path).unwrap();
    let names = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'refinery%'
        AND name <> 'moved_to'";
    let mut names = file.prepare(names).unwrap();
    let names = names.query_map([], |row| row.get::<_, String>(0)).unwrap();
    names
        .map(|name| {
            let name = name.unwrap();
            let order = match &*name {
                "certificates" | "identities" | "identity_certificates" => "rowid",
                _ => "1",
            };
            let mut rows = file.prepare(&format!("SELECT * FROM {name} ORDER BY {order}")).unwrap();
            let columns = rows.column_count();
            let rows = rows
                .query_map([], |row| (0..columns).map(|column| row.get(column)).collect())
                .unwrap();
            let rows = rows.collect::<Result<_, _>>().unwrap();
            (name, rows)
        })
        .collect()
}
