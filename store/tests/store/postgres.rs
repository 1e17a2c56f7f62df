//! What only PostgreSQL does.

use std::fs;

use assay_store::postgres::Postgres;
use assay_store::{Database, IdentityRole, PostgresSettings, Retention, StoreError, copy};
use assay_tests::Postgres as Server;
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::acts::*;
use crate::fixture::Fixture;

#[test]
fn empty_database_is_no_ca() {
    let server = Server::shared().unwrap();
    let settings = PostgresSettings::new(&server.address().unwrap(), None, None).unwrap();
    assert!(matches!(Postgres::open(&settings), Err(StoreError::Empty)));
    let database = Database::Postgres(settings);
    assert!(matches!(database.upgrade(), Err(StoreError::Empty)));
    assert_eq!(database.status().unwrap().schema, 0);
}

#[test]
fn schema_of_a_later_version_is_refused_with_the_version_that_wrote_it() {
    let server = Server::shared().unwrap();
    let address = server.address().unwrap();
    let settings = PostgresSettings::new(&address, None, None).unwrap();
    Postgres::upgrade(&settings).unwrap();
    Postgres::upgrade(&settings).expect("a second time changes nothing");
    let schema = address.split("search_path=").nth(1).unwrap().trim_end_matches('\'');
    let later = format!(
        "UPDATE {schema}.writer SET version = '9.1.0';
         UPDATE {schema}.refinery_schema_history SET version = 99 WHERE version =
             (SELECT max(version) FROM {schema}.refinery_schema_history)"
    );
    server.sql(&later).unwrap();
    for error in
        [Postgres::open(&settings).err().unwrap(), Postgres::upgrade(&settings).unwrap_err()]
    {
        let StoreError::Newer { found, writer } = &error else { panic!("{error}") };
        assert_eq!((*found, &**writer), (99, "9.1.0"));
    }
}

#[test]
fn upgraded_database_keeps_its_identities() {
    let server = Server::shared().unwrap();
    let address = server.address().unwrap();
    let mut client = postgres::Client::connect(&address, postgres::NoTls).unwrap();
    let first = include_str!("../../src/postgres/migrations/V7__schema.sql");
    let first = refinery::Migration::unapplied("V7__schema", first).unwrap();
    refinery::Runner::new(&[first]).run(&mut client).unwrap();
    let rows = "INSERT INTO writer VALUES ('0.1.0');
        INSERT INTO credentials (sha256, name, role, serial, issued_at, not_after, revoked_at) VALUES
            (decode(repeat('04', 32), 'hex'), 'anna', 'operator', '\\x07', 80, 90, NULL),
            (decode(repeat('05', 32), 'hex'), 'worker', 'worker', '\\x08', 81, 91, 82)";
    client.batch_execute(rows).unwrap();
    let database = Database::Postgres(PostgresSettings::new(&address, None, None).unwrap());
    assert!(matches!(database.open().err().unwrap(), StoreError::Older(7)));
    database.upgrade().unwrap();
    let mut store = database.open().unwrap();
    let found: Vec<_> = store
        .identities()
        .unwrap()
        .into_iter()
        .map(|row| (row.name, row.role, row.certificates[0].clone()))
        .map(|(name, role, row)| (name, role, row.sha256[0], row.not_after, row.revoked_at))
        .collect();
    assert_eq!(
        found,
        [
            ("anna".to_owned(), IdentityRole::Operator, 4, 90, None),
            ("worker".to_owned(), IdentityRole::Worker, 5, 91, Some(82)),
        ]
    );
    assert_eq!(store.epoch().unwrap().number, 0);
    store.mark_clock(now()).unwrap();
    assert_eq!(store.clocks().unwrap().latest, now());
}

#[test]
fn several_cas_in_one_database_know_nothing_of_each_other() {
    let [a, b] = [Fixture::postgres(), Fixture::postgres()];
    let mut stores = [a.store(), b.store()];
    stores[0].next_revocation_list().unwrap();
    assert_eq!(stores[0].next_revocation_list().unwrap(), 2);
    assert_eq!(stores[1].next_revocation_list().unwrap(), 1);
}

/// A standby may not have the newest commits of the server that takes writes.
#[test]
fn standby_is_not_asked() {
    let [old, new] = [Server::start().unwrap(), Server::start().unwrap()];
    let addresses = [&old, &new].map(|server| server.address().unwrap());
    for address in &addresses {
        let settings = PostgresSettings::new(address, None, None).unwrap();
        Postgres::upgrade(&settings).unwrap();
    }
    old.stop().unwrap();
    fs::write(old.dir().join("data/standby.signal"), "").unwrap();
    old.restart().unwrap();
    assert_eq!(old.sql("SELECT pg_is_in_recovery()").unwrap(), "t");

    let [old_dir, new_dir] = [&old, &new].map(|server| server.dir().display());
    let options = addresses[1].split_once("user=").unwrap().1;
    let both =
        format!("host={old_dir},{new_dir} port={},{} user={options}", old.port(), new.port());
    let settings = PostgresSettings::new(&both, None, None).unwrap();
    let mut store = Database::Postgres(settings).open().unwrap();
    assert_eq!(store.next_revocation_list().unwrap(), 1);
    store.set_disabled(&ek(1), true, now()).unwrap();
    assert!(store.enrolments().unwrap()[0].disabled);

    let alone = PostgresSettings::new(&addresses[0], None, None).unwrap();
    let error = Postgres::open(&alone).err().unwrap();
    assert!(error.to_string().contains("does not allow writes"), "{error}");
}

#[test]
fn machine_whose_clock_is_ahead_forgets_nothing() {
    let server = Server::shared().unwrap();
    // The test sets the server's clock: this schema's `clock_timestamp` is found before
    // PostgreSQL's.
    let address = server.address().unwrap();
    let schema = address.split("search_path=").nth(1).unwrap().trim_end_matches('\'').to_owned();
    let address = address.replace(&schema, &format!("{schema},pg_catalog"));
    let settings = PostgresSettings::new(&address, None, None).unwrap();
    Postgres::upgrade(&settings).unwrap();
    let mut store = Database::Postgres(settings).open().unwrap();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    let set_clock = |behind: &str| {
        let function = format!(
            "CREATE OR REPLACE FUNCTION {schema}.clock_timestamp() RETURNS timestamptz
             LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() - interval '{behind}' $$"
        );
        server.sql(&function).unwrap();
    };
    let later = now() + time::Duration::days(365);
    set_clock("2 minutes");
    let refused = store.prune(&Retention::default(), later);
    assert!(matches!(refused, Err(StoreError::Clock(110..=130))), "{refused:?}");
    assert_eq!(store.certificates().unwrap().len(), 2);
    set_clock("30 seconds");
    assert_eq!(store.prune(&Retention::default(), later).unwrap().certificates, 1);
}

#[test]
fn database_of_another_encoding_is_refused() {
    let server = Server::shared().unwrap();
    let make = "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0";
    server.sql(make).unwrap();
    let address = server.address().unwrap().replace("dbname=postgres", "dbname=ascii");
    let address = address.split(" options").next().unwrap();
    let settings = PostgresSettings::new(address, None, None).unwrap();
    let file = Fixture::sqlite();
    for error in [
        Postgres::open(&settings).err().unwrap(),
        Postgres::upgrade(&settings).unwrap_err(),
        copy(&file.database, &Database::Postgres(settings.clone()), |_| {}).unwrap_err(),
    ] {
        assert!(error.to_string().contains("SQL_ASCII"), "{error}");
    }
}

#[test]
fn server_must_show_the_certificate_of_its_name_and_of_our_root() {
    let directory = tempfile::tempdir().unwrap();
    let root = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = directory.path().join(name);
        fs::write(&file, issuer.pem()).unwrap();
        (issuer, file)
    };
    let ((issuer, ours), (_, other)) = (root("ours.pem"), root("other.pem"));
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let server = Server::start_tls(&certificate.pem(), &key.serialize_pem()).unwrap();
    let status = |host: &str, roots: &std::path::Path| {
        let address =
            format!("postgres://assay@{host}:{}/postgres?connect_timeout=2", server.port());
        let settings = PostgresSettings::new(&address, Some(roots), None).unwrap();
        Database::Postgres(settings).status()
    };
    assert_eq!(status("localhost", &ours).unwrap().schema, 0);
    assert!(status("localhost", &other).is_err(), "another root");
    assert!(status("127.0.0.1", &ours).is_err(), "another name");
}
