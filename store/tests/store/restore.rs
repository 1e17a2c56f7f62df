//! Backups, epochs, lists of before a restore, and the time on record, in both stores.

use assay_ca_core::{RevocationReason, Revoked, SharedKeyOnRecord};
use assay_store::sqlite::Sqlite;
use assay_store::{
    CertificateStatus, Database, IdentityCertificate, IdentityRole, ListedAre, NewIdentity,
    PublishedList, Raised, SharedKeys, TakenOver, backup, copy,
};
use assay_wire::{Identity, Rights};
use time::Duration;

use crate::acts::*;
use crate::fixture::{Any, Fixture, on_both};

on_both! {
    a_configuration_after_a_restore_is_newer_than_any_before,
    a_backup_has_everything_and_leaves_the_ca_as_it_is,
    a_backup_sees_one_moment_and_keeps_nobody_from_writing,
    a_restored_ca_is_held_until_it_is_resumed,
    everything_that_was_given_out_moves_forward_with_an_epoch,
    what_a_published_list_names_is_not_good_again,
    what_a_published_list_names_and_nobody_knows_stays_on_the_list_until_it_expired,
    operators_that_a_published_list_names_are_not_let_in_again,
    the_time_on_record_goes_back_only_if_an_operator_says_so,
}

/// The same CA, restored from a backup of an hour ago to an empty database of the same kind.
fn restored(fixture: &Fixture, shared_keys: SharedKeys) -> (Fixture, Raised) {
    let new = Fixture::sqlite();
    std::fs::remove_file(new.path()).unwrap();
    backup(&fixture.database, &new.path(), |_| {}).unwrap();
    let mut file = Sqlite::open(&new.path()).unwrap();
    let raised = file.raise_epoch(now() - Duration::HOUR, shared_keys, now()).unwrap();
    drop(file);
    match fixture.database {
        Database::Sqlite(_) => (new, raised),
        Database::Postgres(_) => {
            let server = Fixture::postgres();
            copy(&new.database, &server.database, |_| {}).unwrap();
            (server, raised)
        }
    }
}

fn a_configuration_after_a_restore_is_newer_than_any_before(fixture: &Fixture) {
    let mut store = fixture.store();
    let one = id("pump-1");
    let backup = now() - Duration::HOUR;
    store.set_configuration(Some(&one), Some(b"before"), backup).unwrap();
    let (new, _) = restored(fixture, SharedKeys::Retire);
    // After the backup, and before it is restored.
    let between = now() - Duration::MILLISECOND;
    let lost = store.set_configuration(Some(&one), Some(b"lost"), between).unwrap().unwrap();
    let lost_of_all = store.set_configuration(None, Some(b"lost"), between).unwrap().unwrap();

    let mut store = new.store();
    let due = store.configuration(&one).unwrap().unwrap();
    assert_eq!(due.document.as_deref(), Some(&b"before"[..]));
    assert!(due.revision > lost, "{due:?}");
    let of_others = store.configuration(&id("pump-2")).unwrap().unwrap();
    assert_eq!(of_others.document, None);
    assert!(of_others.revision > lost_of_all, "{of_others:?}");
    let next = store.set_configuration(Some(&one), Some(b"after"), now()).unwrap().unwrap();
    assert!(next > due.revision);
}

fn status(store: &mut Any, serial: u8, device: &str) -> CertificateStatus {
    store.certificate_status(&id(device), &[serial; 16], &sha256(&[serial])).unwrap()
}

fn listed(serial: u8, reason: RevocationReason) -> Revoked {
    Revoked { serial: [serial; 16], since: now(), reason }
}

fn a_backup_has_everything_and_leaves_the_ca_as_it_is(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-1", ek(1))).unwrap();
    store.set_disabled(&ek(9), true, now()).unwrap();
    let file = fixture.directory.path().join("backup.db");
    backup(&fixture.database, &file, |_| {}).unwrap();
    let mut copied = Database::Sqlite(file.clone()).open().unwrap();
    let [copied_rows, rows] = [&mut copied, &mut store].map(|store| {
        format!("{:?}{:?}", store.certificates().unwrap(), store.enrolments().unwrap())
    });
    assert_eq!(copied_rows, rows);
    assert_eq!(copied.changes().unwrap(), store.changes().unwrap());
    assert!(!copied.epoch().unwrap().is_held(), "the CA itself is not restored");
    // The CA goes on, and an earlier backup is not overwritten.
    assert_eq!(store.next_revocation_list().unwrap(), 1);
    drop(copied);
    let before = std::fs::read(&file).unwrap();
    if matches!(fixture.database, Database::Postgres(_)) {
        assert!(backup(&fixture.database, &file, |_| {}).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), before);
    }
}

fn a_backup_sees_one_moment_and_keeps_nobody_from_writing(fixture: &Fixture) {
    let mut store = fixture.store();
    audit(&mut store, (0..3_000).map(|n| decision(n, None)));
    for n in 1..=200 {
        add(&mut store, &certificate(n, &format!("pump-{n}"), ek(n))).unwrap();
    }
    let file = fixture.directory.path().join("backup.db");
    let mut written = 0;
    backup(&fixture.database, &file, |_| {
        // A device comes while the backup is made: its two rows are both in it, or neither.
        if written < 20 {
            let n = 201 + written;
            add(&mut store, &certificate(n, &format!("pump-{n}"), ek(n))).unwrap();
            written += 1;
        }
    })
    .unwrap();
    let mut copied = Database::Sqlite(file).open().unwrap();
    let (devices, certificates) = (copied.devices().unwrap(), copied.certificates().unwrap());
    assert_eq!(devices.len(), certificates.len());
    assert!(devices.len() >= 200);
    if matches!(fixture.database, Database::Postgres(_)) {
        assert!(written > 0 && devices.len() == 200, "{written}");
    }
}

fn a_restored_ca_is_held_until_it_is_resumed(fixture: &Fixture) {
    assert_eq!(fixture.store().epoch().unwrap().number, 0);
    assert!(!fixture.store().resume(now()).unwrap(), "it was never restored");
    let (fixture, raised) = restored(fixture, SharedKeys::Retire);
    let mut store = fixture.store();
    let epoch = store.epoch().unwrap();
    assert!(epoch.is_held() && epoch.number == 1 && raised.epoch == 1);
    assert_eq!(epoch.restored.unwrap().backed_up_at, now() - Duration::HOUR);
    assert!(store.resume(now()).unwrap());
    assert!(!store.epoch().unwrap().is_held());
    assert!(!store.resume(now()).unwrap());
    let (fixture, raised) = restored(&fixture, SharedKeys::Retire);
    assert_eq!(raised.epoch, 2);
    assert!(fixture.store().epoch().unwrap().is_held(), "each time anew");
}

fn everything_that_was_given_out_moves_forward_with_an_epoch(fixture: &Fixture) {
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(2, "pump-2", ek(2))).unwrap();
    offer(&mut store, ek(3), "pump-3", 1);
    accept(&mut store, ek(3), "pump-3", 1).unwrap();
    let list = store.next_revocation_list().unwrap();
    let seen = store.changes().unwrap();
    for kept in [SharedKeys::Keep, SharedKeys::Retire] {
        let (fixture, raised) = restored(fixture, kept);
        let mut store = fixture.store();
        assert_eq!((raised.waiting, raised.list.0), (1, list));
        assert!(i64::from(store.next_revocation_list().unwrap()) > now().unix_timestamp());
        let changes = store.changes().unwrap();
        let million = 1_000_000_000;
        assert!(
            changes.connections > seen.connections + million && changes.list > seen.list + million
        );
        assert_eq!(status(&mut store, 1, "pump-1"), CertificateStatus::Active);
        assert_eq!(status(&mut store, 2, "pump-2"), CertificateStatus::Revoked);
        let (generation, is_used) = match kept {
            SharedKeys::Keep => (1, true),
            SharedKeys::Retire => (3, false),
        };
        let key = SharedKeyOnRecord { generation, is_used, plain_srk_generation: 0 };
        assert_eq!(shared_key(&mut store, ek(3)), Some(key));
    }
}

fn what_a_published_list_names_is_not_good_again(fixture: &Fixture) {
    let mut store = fixture.store();
    for n in 1..=4 {
        add(&mut store, &certificate(n, &format!("pump-{n}"), ek(n))).unwrap();
    }
    store.remove(&ek(4), now()).unwrap();
    let seen = store.changes().unwrap();
    let list = PublishedList {
        about: ListedAre::Devices,
        number: 70,
        revoked: vec![
            listed(1, RevocationReason::CertificateHold),
            listed(2, RevocationReason::Superseded),
            listed(3, RevocationReason::CessationOfOperation),
            listed(4, RevocationReason::Superseded),
        ],
    };
    let taken = store.take_over(&list, now() + Duration::DAY).unwrap();
    let expected = TakenOver { ended: 2, disabled: 1, unknown: 0, unknown_disabled: 0 };
    assert_eq!(taken, expected);
    let statuses = [1, 2, 3, 4].map(|n| status(&mut store, n, &format!("pump-{n}")));
    use CertificateStatus::{Disabled, Revoked, Superseded};
    assert_eq!(statuses, [Disabled, Superseded, Revoked, Revoked]);
    assert!(records(&mut store, ek(1), now()).disabled);
    let changes = store.changes().unwrap();
    assert!(changes.connections > seen.connections && changes.list > seen.list);
    assert_eq!(store.next_revocation_list().unwrap(), 71);
    let again = store.take_over(&list, now() + Duration::DAY).unwrap();
    assert_eq!(again, TakenOver::default());
}

fn what_a_published_list_names_and_nobody_knows_stays_on_the_list_until_it_expired(
    fixture: &Fixture,
) {
    let mut store = fixture.store();
    let list = PublishedList {
        about: ListedAre::Devices,
        number: 7,
        revoked: vec![
            listed(1, RevocationReason::CertificateHold),
            listed(2, RevocationReason::Superseded),
        ],
    };
    let taken = store.take_over(&list, now() + Duration::DAY).unwrap();
    assert_eq!(taken, TakenOver { unknown: 2, unknown_disabled: 1, ..TakenOver::default() });
    let mut serials = |at| {
        let mut revoked = store.revoked(at).unwrap().once_in_force;
        revoked.sort_by_key(|it| it.serial);
        revoked.iter().map(|it| it.serial[0]).collect::<Vec<_>>()
    };
    assert_eq!(serials(now()), [1, 2]);
    assert!(serials(now() + Duration::DAY).is_empty());
    assert_eq!(status(&mut store, 1, "unknown"), CertificateStatus::Unknown);
    assert!(store.devices().unwrap().is_empty() && store.enrolments().unwrap().is_empty());
    store.record_scope(&scope()).unwrap();
    store.may_serve(&"another".parse().unwrap()).unwrap();
}

fn operators_that_a_published_list_names_are_not_let_in_again(fixture: &Fixture) {
    let mut store = fixture.store();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["operator".to_owned()]).unwrap();
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&[5; 16]));
    let certificate = params.self_signed(&key).unwrap();
    let alice = NewIdentity {
        name: "alice".to_owned(),
        role: IdentityRole::Operator,
        rights: Rights::default(),
        certificate: IdentityCertificate::read(certificate.der()).unwrap(),
    };
    assert!(store.add_identity(&alice, now()).unwrap());
    let revoked = vec![
        listed(5, RevocationReason::CessationOfOperation),
        listed(6, RevocationReason::CessationOfOperation),
    ];
    let list = PublishedList { about: ListedAre::Identities, number: 7, revoked };
    let taken = store.take_over(&list, now() + Duration::DAY).unwrap();
    assert_eq!(taken, TakenOver { ended: 1, unknown: 1, ..TakenOver::default() });
    let digest = sha256(certificate.der());
    let (status, _) = store.identity_status(&Identity::Operator, &digest).unwrap();
    assert_eq!(status, CertificateStatus::Revoked);
    assert_eq!(store.revoked_identities(now()).unwrap().len(), 2);
    assert_eq!(store.take_over(&list, now()).unwrap(), TakenOver::default());
}

fn the_time_on_record_goes_back_only_if_an_operator_says_so(fixture: &Fixture) {
    let mut store = fixture.store();
    store.mark_clock(now()).unwrap();
    store.mark_clock(now() - Duration::HOUR).unwrap();
    let clocks = store.clocks().unwrap();
    assert_eq!((clocks.latest, clocks.accepted), (now(), 0));
    store.accept_clock(now() - Duration::HOUR).unwrap();
    let clocks = store.clocks().unwrap();
    assert_eq!((clocks.latest, clocks.accepted), (now() - Duration::HOUR, 1));
    assert_eq!(clocks.server.is_some(), matches!(fixture.database, Database::Postgres(_)));
}
