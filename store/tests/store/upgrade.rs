//! Files that earlier and later versions of Assay wrote.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use assay_ca_core::{Answer, Conditions, Reprovision};
use assay_store::sqlite::Sqlite;
use assay_store::{CertificateStatus, Database, IdentityRole, StoreError};
use assay_wire::Identity;
use rusqlite::Connection;

use crate::acts::*;
use crate::fixture::Fixture;

/// For each version: its schema, and rows of the tables that changed with it.
const VERSIONS: [(i64, &str, &str); 10] = [
    (
        1,
        include_str!("schemas/1.sql"),
        "INSERT INTO anchors VALUES (5, K4, x'30', 'CN=vendor', 1, 9, 8);
         INSERT INTO enrolments VALUES (K1, 'pump-1', 'test', 0, 11), (K3, NULL, 'test', 1, 12);
         INSERT INTO devices VALUES ('pump-1', K1, 'enrolment-list', 0, 13),
                                    ('pump-2', K2, 'vendor-certificate', 1, 14);
         INSERT INTO certificates VALUES
             (S1, 'pump-1', I1, 'superseded', 1, 1900000000, 20, x'01'),
             (S2, 'pump-1', I1, 'active', 2, 1900000000, 30, x'02'),
             (S3, 'pump-2', I1, 'active', 3, 1900000000, 40, x'03');
         INSERT INTO audit VALUES (7, 50, 'c', 'certify', K1, 'pump-1', NULL, NULL, 60),
                                  (8, 51, 'c', 'challenge', K2, 'pump-2', 3, 'no', 61);
         UPDATE revocations SET count = 4;",
    ),
    (
        2,
        include_str!("schemas/2.sql"),
        "INSERT INTO anchors VALUES (5, K4, x'30', 'CN=vendor', 1, 9, 8);
         INSERT INTO enrolments VALUES (K1, 'pump-1', 'test', 'reissue', 0, 11),
                                       (K3, NULL, 'test', 'never', 1, 12);
         INSERT INTO devices VALUES ('pump-1', K1, 'enrolment-list', 13),
                                    ('pump-2', K2, 'vendor-certificate', 14);
         INSERT INTO disabled_eks VALUES (K2, 15), (K3, 15);
         INSERT INTO certificates VALUES
             (S1, 'pump-1', K1, I1, 'enrolment-list', 'superseded', 1, 1900000000, 20, NULL, 20, 30, x'01'),
             (S2, 'pump-1', K1, I1, 'enrolment-list', 'active', 2, 1900000000, 30, NULL, 30, NULL, x'02'),
             (S3, 'pump-2', K2, I1, 'vendor-certificate', 'active', 3, 1900000000, 40, NULL, 40, NULL, x'03'),
             (S4, 'pump-1', K1, I1, 'enrolment-list', 'unconfirmed', 4, 1900000000, 41, 99, NULL, NULL, x'04');
         INSERT INTO shared_keys VALUES (K1, 'pump-1', 'enrolment-list', 3, 1, 70, 2);
         INSERT INTO audit VALUES (7, 50, 'c', 'certify', K1, 'pump-1', NULL, NULL, 60),
                                  (8, 51, 'c', 'challenge', K2, 'pump-2', 3, 'no', 61);
         UPDATE revocation_lists SET number = 6;
         UPDATE revocations SET connections = 4, list = 5;",
    ),
    (3, include_str!("schemas/3.sql"), ""),
    (
        4,
        include_str!("schemas/4.sql"),
        "INSERT INTO anchors VALUES (5, K4, x'30', 'CN=vendor', 'root', '', 9, 8);
         INSERT INTO enrolments VALUES (K1, 'pump-1', 'test', 'reissue', 0, 11, '{\"site\":\"north\"}'),
                                       (K3, NULL, 'test', 'never', 1, 12, '{}');",
    ),
    (
        5,
        include_str!("schemas/5.sql"),
        "INSERT INTO credentials VALUES (K4, 'operator', 'operator', x'07', 80, 90, NULL);",
    ),
    (
        6,
        include_str!("schemas/6.sql"),
        "INSERT INTO scope VALUES ('default');
         INSERT INTO anchors VALUES (5, K4, x'30', 'CN=vendor', 'root', '', 9, 8);
         INSERT INTO enrolments VALUES
             (K1, 'pump-1', 'test', 'reissue', 0, 11, '{\"site\":\"north\"}', 1),
             (K3, NULL, 'test', 'never', 1, 12, '{}', 0);
         INSERT INTO devices VALUES ('pump-1', K1, 'enrolment-list', 13),
                                    ('pump-2', K2, 'vendor-certificate', 14);
         INSERT INTO disabled_eks VALUES (K2, 15), (K3, 15);
         INSERT INTO certificates VALUES
             (S1, 'pump-1', K1, I1, 'enrolment-list', 'superseded', 1, 1900000000, 20, NULL, 20, 30, D1, x'01'),
             (S2, 'pump-1', K1, I1, 'enrolment-list', 'active', 2, 1900000000, 30, NULL, 30, NULL, D2, x'02'),
             (S3, 'pump-2', K2, I1, 'vendor-certificate', 'active', 3, 1900000000, 40, NULL, 40, NULL, D3, x'03'),
             (S4, 'pump-1', K1, I1, 'enrolment-list', 'unconfirmed', 4, 1900000000, 41, 1900000000, NULL, NULL, D4, x'04');
         INSERT INTO shared_keys VALUES (K1, 'pump-1', 'enrolment-list', 3, 1, 70, 2, 2);
         INSERT INTO audit_changes VALUES (7, 50000000, 'c', 'certify', K1, 'pump-1', 1, NULL, NULL, 60);
         INSERT INTO audit_others VALUES (8, 51000000, 'c', 'challenge', K2, 'pump-2', 0, 3, 'no', 61);
         INSERT INTO credentials VALUES (K4, 'operator', 'operator', x'07', 80, 90, NULL);
         UPDATE revocation_lists SET number = 6;
         UPDATE revocations SET connections = 4, list = 5;",
    ),
    (7, include_str!("schemas/7.sql"), "INSERT INTO writer VALUES ('0.1.0');"),
    (
        8,
        include_str!("schemas/8.sql"),
        "INSERT INTO identities VALUES ('operator', 'operator', '', '');
         INSERT INTO identity_certificates VALUES (K4, 'operator', x'07', 80, 90, NULL);",
    ),
    (9, include_str!("schemas/9.sql"), ""),
    (
        10,
        include_str!("schemas/10.sql"),
        "INSERT INTO admission_groups VALUES (1, 'enrolled', 'admit', '{\"enrolled\":true}'),
                                             (2, 'vendors', 'admit', '{}');",
    ),
];

#[test]
fn file_of_every_earlier_version_is_upgraded_and_keeps_what_it_has() {
    for version in 1..=10 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("assay.db");
        make(&path, version);
        let mut store = Database::Sqlite(path.clone()).open().unwrap();

        let serials: Vec<_> =
            store.certificates().unwrap().iter().map(|row| row.serial[0]).collect();
        assert_eq!(serials[..3], [1, 2, 3], "{version}");
        let mut status = |serial: u8, device: &str| {
            store.certificate_status(&id(device), &[serial; 16], &sha256(&[serial])).unwrap()
        };
        assert_eq!(status(1, "pump-1"), CertificateStatus::Superseded, "{version}");
        assert_eq!(status(2, "pump-1"), CertificateStatus::Active, "{version}");
        assert_eq!(status(3, "pump-2"), CertificateStatus::Disabled, "{version}");
        let waits = status(4, "pump-1");
        match version {
            1 => assert_eq!(waits, CertificateStatus::Unknown),
            // In these versions, it was stored without encryption, so the upgrade revokes it.
            2..=5 => assert_eq!(waits, CertificateStatus::Revoked),
            _ => assert_eq!(waits, CertificateStatus::Unconfirmed([1; 32].into())),
        }
        let devices = store.devices().unwrap();
        assert_eq!(devices.len(), 2, "{version}");
        assert_eq!(devices[0].shared_key, (version > 1).then_some(3), "{version}");
        assert!(!devices[0].disabled && devices[1].disabled, "{version}");
        let enrolment = store.enrolment(&ek(1)).unwrap().unwrap();
        assert_eq!(enrolment.reprovision, Some(Reprovision::Reissue), "{version}");
        assert_eq!(enrolment.tags.len(), usize::from(version >= 4), "{version}");
        assert!(store.enrolment(&ek(3)).unwrap().unwrap().disabled, "{version}");
        assert_eq!(store.anchors().unwrap().len(), 1, "{version}");
        let (_, groups) = store.groups().unwrap();
        let answers: Vec<_> = groups.all().iter().map(|group| group.answer).collect();
        assert_eq!(answers, [Answer::Admit; 2], "{version}: it admits whom it admitted");
        assert_eq!(groups.all()[1].conditions, Conditions::default(), "{version}");
        let audit = store.audit(9).unwrap();
        let times: Vec<_> = audit.iter().map(|row| (row.time_us, row.proven.is_some())).collect();
        assert_eq!(times, [(50_000_000, true), (51_000_000, false)], "{version}");
        let identities = store.identities().unwrap();
        assert_eq!(identities.len(), usize::from(version >= 5), "{version}");
        if let [operator] = &identities[..] {
            let found = (&*operator.name, operator.role, operator.rights.is_empty());
            assert_eq!(found, ("operator", IdentityRole::Operator, true), "{version}");
            let (status, _) = store.identity_status(&Identity::Operator, &[4; 32]).unwrap();
            assert_eq!(status, CertificateStatus::Active, "{version}");
        }
        let changes = store.changes().unwrap();
        assert!(changes.connections >= 4 && changes.list >= 4, "{version}: {changes:?}");
        let expected = if version == 1 { 1 } else { 7 };
        assert_eq!(store.next_revocation_list().unwrap(), expected, "{version}");
        add(&mut store, &certificate(9, "pump-9", ek(9))).unwrap();
    }
}

#[test]
fn upgraded_file_has_the_schema_of_a_new_one() {
    let fixture = Fixture::sqlite();
    let new = schema(&fixture.path());
    for version in 1..=10 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("assay.db");
        make(&path, version);
        Sqlite::open(&path).unwrap();
        assert_eq!(schema(&path), new, "{version}");
    }
}

#[test]
fn file_is_copied_before_it_is_upgraded_and_the_copy_is_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    make(&path, 6);
    Sqlite::open(&path).unwrap();
    let copy = directory.path().join("assay.db.before-11");
    assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let copied = Connection::open(&copy).unwrap();
    let version: i64 = copied.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 6);
    let rows: i64 =
        copied.query_row("SELECT count(*) FROM certificates", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 4);
    let names = directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names.into_iter().any(|name| {
        let name = name.to_string_lossy();
        name.contains("part") || name.contains("upgrade")
    }));
}

#[test]
fn file_that_cannot_be_upgraded_is_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    make(&path, 3);
    let old = Connection::open(&path).unwrap();
    // The file has a table that the upgrade from 5 to 6 makes.
    old.execute_batch("CREATE TABLE audit_others (id INTEGER)").unwrap();
    drop(old);
    let before = schema(&path);
    assert!(matches!(Sqlite::open(&path), Err(StoreError::Migration(_))));
    assert_eq!(schema(&path), before);
    let old = Connection::open(&path).unwrap();
    let version: i64 = old.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 3);
    old.execute_batch("DROP TABLE audit_others").unwrap();
    drop(old);
    Sqlite::open(&path).expect("and once it can be, it is");
}

/// An upgrade commits the empty list of applied migrations before it fills the list.
#[test]
fn upgrade_that_a_crash_cut_short_is_done_by_the_next_one_and_keeps_the_first_copy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    make(&path, 6);
    let old = Connection::open(&path).unwrap();
    let history = "CREATE TABLE refinery_schema_history (version INT4 PRIMARY KEY,
        name VARCHAR(255), applied_on VARCHAR(255), checksum VARCHAR(255))";
    old.execute_batch(history).unwrap();
    drop(old);
    let copy = |suffix: &str| directory.path().join(format!("assay.db.before-11{suffix}"));
    std::fs::write(copy(""), "the first").unwrap();
    let mut store = Database::Sqlite(path.clone()).open().unwrap();
    assert_eq!(store.certificates().unwrap().len(), 4);
    assert_eq!(std::fs::read(copy("")).unwrap(), b"the first");
    let second = Database::Sqlite(copy(".2")).status().unwrap();
    assert_eq!(second.schema, 6);
}

/// If a process of an earlier version went on, it would not write what today's version needs.
#[test]
fn file_that_a_process_of_an_earlier_version_has_open_is_not_upgraded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    make(&path, 6);
    let serves = Connection::open(&path).unwrap();
    serves.pragma_update(None, "journal_mode", "WAL").unwrap();
    let count = "SELECT count(*) FROM certificates";
    let rows: i64 = serves.query_row(count, [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 4);
    assert!(matches!(Sqlite::open(&path), Err(StoreError::InUse(_))));
    assert_eq!(Database::Sqlite(path.clone()).status().unwrap().schema, 6);
    serves.execute("DELETE FROM scope", []).expect("it goes on");
    drop(serves);
    Sqlite::open(&path).unwrap();
}

#[test]
fn upgrade_names_its_writer_even_after_a_crash() {
    let fixture = Fixture::sqlite();
    Connection::open(fixture.path()).unwrap().execute("DELETE FROM writer", []).unwrap();
    fixture.store();
    assert_eq!(fixture.database.status().unwrap().writer, env!("CARGO_PKG_VERSION"));
}

#[test]
fn copies_of_upgrades_that_fail_do_not_fill_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    make(&path, 6);
    Connection::open(&path).unwrap().execute_batch("CREATE TABLE writer (x)").unwrap();
    for _ in 0..9 {
        assert!(matches!(Sqlite::open(&path), Err(StoreError::Migration(_))));
    }
    assert!(matches!(Sqlite::open(&path), Err(StoreError::File(_))));
    let copies =
        directory.path().read_dir().unwrap().filter(|file| {
            file.as_ref().unwrap().file_name().to_string_lossy().contains("before-11")
        });
    assert_eq!(copies.count(), 9);
}

#[test]
fn file_of_a_later_version_is_refused_with_the_version_that_wrote_it() {
    let fixture = Fixture::sqlite();
    let later = Connection::open(fixture.path()).unwrap();
    later.execute("UPDATE writer SET version = '9.1.0'", []).unwrap();
    later.pragma_update(None, "user_version", 99).unwrap();
    let error = Sqlite::open(&fixture.path()).err().unwrap();
    let StoreError::Newer { found, writer } = &error else { panic!("{error}") };
    assert_eq!((*found, &**writer), (99, "9.1.0"));
    assert!(error.to_string().contains("use assay 9.1.0 or later"), "{error}");
}

#[test]
fn status_tells_what_stands_in_a_file_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    make(&path, 5);
    let status = Database::Sqlite(path.clone()).status().unwrap();
    assert_eq!((status.schema, &*status.writer, status.wanted), (5, "unknown", 11));
    assert!(!directory.path().join("assay.db.before-11").exists());
    Database::Sqlite(path.clone()).upgrade().unwrap();
    let status = Database::Sqlite(path).status().unwrap();
    assert_eq!((status.schema, &*status.writer), (11, env!("CARGO_PKG_VERSION")));
}

/// Eight processes start at once. Each of them runs this test to open the file.
#[test]
fn file_is_upgraded_once_however_many_open_it() {
    if let Some(path) = std::env::var_os("ASSAY_TEST_FILE") {
        Sqlite::open(Path::new(&path)).unwrap();
        return std::fs::write(Path::new(&path).with_extension(std::process::id().to_string()), [])
            .unwrap();
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    make(&path, 1);
    let children: Vec<_> = (0..8)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "upgrade::file_is_upgraded_once_however_many_open_it"])
                .env("ASSAY_TEST_FILE", &path)
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let id = child.id();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(path.with_extension(id.to_string()).exists(), "it opened nothing");
    }
    assert_eq!(Database::Sqlite(path.clone()).status().unwrap().schema, 11);
    assert!(directory.path().join("assay.db.before-11").exists());
    assert!(!directory.path().join("assay.db.before-11.2").exists());
}

/// SQLite refuses at once to switch to a write-ahead log then, whatever the timeout is.
#[test]
fn a_file_without_its_write_ahead_log_is_opened_although_somebody_writes_to_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    drop(Sqlite::create(&path).unwrap());
    let writer = Connection::open(&path).unwrap();
    writer.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(())).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let opening = std::thread::spawn(move || Sqlite::open(&path).map(drop));
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!opening.is_finished());
    writer.execute_batch("COMMIT").unwrap();
    opening.join().unwrap().unwrap();
}

#[test]
fn a_file_is_opened_once_nobody_upgrades_it_and_not_after_ten_seconds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("assay.db");
    Sqlite::create(&path).unwrap();
    // As an upgrade holds it.
    let upgrade = std::fs::File::open(directory.path()).unwrap();
    upgrade.lock().unwrap();
    let open = || {
        let (path, began) = (path.clone(), std::time::Instant::now());
        std::thread::spawn(move || (Sqlite::open(&path).map(drop), began.elapsed()))
    };
    let (opened, waited) = open().join().unwrap();
    assert!(matches!(opened, Err(StoreError::InUse(_))), "{opened:?}");
    assert!(waited.as_secs() >= 9, "{waited:?}");

    let waiting = open();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(!waiting.is_finished());
    upgrade.unlock().unwrap();
    waiting.join().unwrap().0.unwrap();
}

/// Makes a file with this version of the schema.
fn make(path: &Path, version: i64) {
    let file = Connection::open(path).unwrap();
    let (_, schema, _) = VERSIONS[usize::try_from(version).unwrap() - 1];
    file.execute_batch(schema).unwrap();
    file.pragma_update(None, "user_version", version).unwrap();
    let rows = literals(&rows_of(version));
    file.execute_batch(&rows).unwrap_or_else(|error| panic!("{version}: {error}"));
}

/// The rows of a version. Tables that did not change after version 2 get the rows of version 2.
fn rows_of(version: i64) -> String {
    let of = |version: i64| VERSIONS[usize::try_from(version).unwrap() - 1].2;
    let (_, unchanged) = of(2).split_once("INSERT INTO devices").unwrap();
    match version {
        3 => of(2).into(),
        4 => format!("{} INSERT INTO devices {unchanged}", of(4)),
        5 => format!("{} INSERT INTO devices {unchanged} {}", of(4), of(5)),
        7 => format!("{} {}", of(6).replace("3, 1, 70, 2, 2)", "3, 1, 70, 2, 2, 1)"), of(7)),
        9 => rows_of(8),
        10 => {
            let rows = rows_of(8)
                .replace("'{\"site\":\"north\"}', 1)", "'{\"site\":\"north\"}', 1, NULL)");
            format!("{} {}", rows.replace("'{}', 0)", "'{}', 0, NULL)"), of(10))
        }
        8 => {
            let (unchanged, _) = of(6).split_once("INSERT INTO credentials").unwrap();
            let (_, counters) = of(6).split_once("NULL);\n         UPDATE").unwrap();
            let unchanged = unchanged.replace("3, 1, 70, 2, 2)", "3, 1, 70, 2, 2, 1)");
            format!("{unchanged} {} {} UPDATE{counters}", of(7), of(8))
        }
        version => of(version).into(),
    }
}

/// Replaces names by bytes: EKs (`K`), serial numbers (`S`), IKs (`I`) and digests (`D`).
fn literals(sql: &str) -> String {
    let mut text = sql.to_owned();
    for n in 1..=4_u8 {
        text = text
            .replace(&format!("K{n}"), &blob(&[n; 32]))
            .replace(&format!("S{n}"), &blob(&[n; 16]))
            .replace(&format!("I{n}"), &blob(&[n; 32]))
            .replace(&format!("D{n}"), &blob(&sha256(&[n])));
    }
    text
}

fn blob(bytes: &[u8]) -> String {
    format!("x'{}'", hex::encode(bytes))
}

/// Every definition, without comments and without spaces that do not matter.
fn schema(path: &Path) -> Vec<String> {
    let file = Connection::open(path).unwrap();
    let mut query = file
        .prepare(
            "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'
             AND name NOT LIKE 'refinery%' ORDER BY type, name",
        )
        .unwrap();
    let rows = query.query_map([], |row| row.get::<_, String>(0)).unwrap();
    rows.map(|sql| {
        let sql = sql.unwrap();
        let code: Vec<_> =
            sql.lines().map(|line| line.split("--").next().unwrap_or_default()).collect();
        let words: Vec<_> = code.join(" ").split_whitespace().map(str::to_owned).collect();
        words.join(" ").replace(" ,", ",").replace("( ", "(").replace(" )", ")").replace('"', "")
    })
    .collect()
}
