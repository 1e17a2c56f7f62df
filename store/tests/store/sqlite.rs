//! What only the file of SQLite does.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use assay_ca_core::Role;
use assay_store::sqlite::Sqlite;
use assay_store::{AnchorRow, StoreError, Trusted};

use crate::acts::*;
use crate::fixture::{Any, Fixture};

#[test]
fn the_file_is_never_overwritten_and_is_its_owners_alone() {
    let fixture = Fixture::sqlite();
    let path = fixture.path();
    assert!(matches!(Sqlite::create(&path), Err(StoreError::File(_))));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn sealed_certificate_is_not_to_be_found_in_the_file_until_it_is_confirmed() {
    let fixture = Fixture::sqlite();
    let mut store = fixture.store();
    let der: Vec<u8> = b"only the TPM can read this certificate; ".repeat(20);
    enter(&mut store, act(&sealed(1, "pump-17", ek(1)), der.clone())).unwrap();
    let is_in_a_file = || {
        fixture.directory.path().read_dir().unwrap().any(|file| {
            let content = std::fs::read(file.unwrap().path()).unwrap();
            content.windows(40).any(|window| window == &der[..40])
        })
    };
    assert!(!is_in_a_file());
    assert_eq!(store.certificates().unwrap()[0].der, None);
    assert!(confirm(&mut store, 1, now()));
    assert!(is_in_a_file());
    assert_eq!(store.certificates().unwrap()[0].der, Some(der));
}

/// To find five hundred thousand certificates takes a second, and others must be able to write
/// meanwhile.
#[test]
fn what_is_revoked_is_found_while_somebody_writes() {
    let fixture = Fixture::sqlite();
    let mut store = fixture.store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    let mut other = Sqlite::open(&fixture.path()).unwrap();
    let found = other.transaction(|_| store.revoked(now())).unwrap();
    assert_eq!(found.once_in_force.len(), 1);
}

#[test]
fn a_failed_transaction_leaves_nothing() {
    let fixture = Fixture::sqlite();
    let mut store = fixture.store();
    offer(&mut store, ek(1), "pump-17", 1);
    let before = shared_key(&mut store, ek(1));
    let mut other = Sqlite::open(&fixture.path()).unwrap();
    let result: Result<(), _> = other.transaction(|transaction| {
        assert!(transaction.retire_shared_key(&ek(1))?);
        Err(StoreError::Empty)
    });
    assert!(result.is_err());
    assert_eq!(shared_key(&mut store, ek(1)), before);
}

#[test]
fn checkpoint_moves_what_is_committed_out_of_the_log() {
    let fixture = Fixture::sqlite();
    let mut store = fixture.store();
    let length = || std::fs::metadata(fixture.path()).unwrap().len();
    store.checkpoint().unwrap();
    let before = length();
    enter(&mut store, act(&certificate(1, "pump-17", ek(1)), vec![1; 4096])).unwrap();
    assert_eq!(length(), before, "a commit leaves it in the log");
    store.checkpoint().unwrap();
    assert!(length() > before, "a page more");
}

#[test]
fn the_check_that_the_file_can_be_written_writes_it_and_changes_nothing() {
    let fixture = Fixture::sqlite();
    let mut store = fixture.store();
    let log = fixture.directory.path().join("assay.db-wal");
    let dump = |store: &mut Any| (store.devices().unwrap().len(), anchors_version(store));
    let (before, length) = (dump(&mut store), log.metadata().unwrap().len());
    store.check_writable().unwrap();
    assert!(log.metadata().unwrap().len() > length, "a page went to the log");
    assert_eq!(dump(&mut store), before);
    drop(Sqlite::open(&fixture.path()).expect("the schema version is what it was"));
    let files = fixture.directory.path().read_dir().unwrap();
    let files: Vec<_> = files.map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.iter().all(|name| name.to_string_lossy().starts_with("assay.db")), "{files:?}");
}

#[test]
fn the_check_that_the_file_can_be_written_waits_for_another_writer() {
    let fixture = Fixture::sqlite();
    let mut store = fixture.store();
    while_somebody_writes(&fixture.path(), || store.check_writable().unwrap());
}

#[test]
fn certificate_is_added_though_somebody_else_is_writing() {
    let fixture = Fixture::sqlite();
    let mut store = fixture.store();
    let anchor = AnchorRow {
        fingerprint: [1; 32],
        certificate: vec![1],
        subject: "CN=vendor".into(),
        role: Role::Root,
        not_after: 0,
        added_at: 0,
    };
    while_somebody_writes(&fixture.path(), || {
        assert_eq!(store.add_anchor(&anchor).unwrap(), Trusted::Added);
    });
}

/// Does `work`, which has to wait for the transaction of another connection.
fn while_somebody_writes(path: &Path, work: impl FnOnce()) {
    let held = Duration::from_millis(300);
    let mut other = Sqlite::open(path).unwrap();
    let started = Instant::now();
    thread::scope(|scope| {
        let (locked, is_locked) = mpsc::channel();
        scope.spawn(move || {
            let hold = other.transaction(|_| {
                locked.send(()).unwrap();
                thread::sleep(held);
                Ok(())
            });
            hold.unwrap();
        });
        is_locked.recv().unwrap();
        work();
    });
    assert!(started.elapsed() >= held);
}
