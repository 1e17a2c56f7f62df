//! What the database promises, whoever calls it.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration as StdDuration, Instant};

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{
    Allowances, Assurance, CertificateFacts, Records, Reprovision, RevocationReason, Role,
    SharedKeyOnRecord, TicketKey, Unconfirmed, unchecked,
};
use assay_server::directory::Directory;
use assay_store::Change;
use assay_store::{
    Act, AnchorRow, AuditEntry, Basis, CertificateStatus, EnrolError, Enrolled, Entry,
    IdInQuestion, NewEnrolment, Question, Recorded, Removed, RevokedCertificates, Snapshot, Store,
    StoreError, Tags, Trusted, Whom,
};
use assay_wire::{DeviceId, EkId, ProblemCode, Scope};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::create(&directory.path().join("assay.db")).unwrap();
    (directory, store)
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

fn ek(n: u8) -> EkId {
    EkId::from([n; 32])
}

fn key() -> TicketKey {
    TicketKey::new([7; TicketKey::LEN])
}

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

/// A certificate that this test chose, in one byte.
fn certificate(serial: u8, device: &str, ek_id: EkId) -> CertificateFacts {
    CertificateFacts {
        serial: [serial; 16],
        not_before: now(),
        not_after: now() + Duration::days(90),
        device_id: id(device),
        ek_id,
        ik_id: sha256(&[serial]),
        assurance: Assurance::VendorCertificate,
        issued_at: now(),
        confirm_by: None,
    }
}

/// One that waits for ten minutes to be confirmed.
fn sealed(serial: u8, device: &str, ek_id: EkId) -> CertificateFacts {
    CertificateFacts {
        confirm_by: Some(now() + Duration::minutes(10)),
        ..certificate(serial, device, ek_id)
    }
}

fn act(certificate: &CertificateFacts, der: Vec<u8>) -> Act {
    let facts = certificate.clone();
    match facts.confirm_by {
        None => Act::Certify(unchecked::issued(facts, der)),
        Some(_) => {
            let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
            Act::Seal(unchecked::sealed(facts, der, &key(), &mut rng).unwrap())
        }
    }
}

/// Records an act that depends on nothing.
fn record(store: &mut Store, act: Act) -> Result<(), StoreError> {
    let entry = Entry { act, basis: None, audit: None };
    let recorded = store.record(&"default".parse().unwrap(), &[entry])?;
    assert_eq!(recorded, [Recorded::Done]);
    Ok(())
}

fn add(store: &mut Store, certificate: &CertificateFacts) -> Result<(), StoreError> {
    record(store, act(certificate, vec![certificate.serial[0]]))
}

fn question(ek: EkId, device: &str, now: OffsetDateTime) -> Question {
    Question::about(ek, &id(device), now)
}

/// What is on record about an EK, and about no device id.
fn records(store: &Store, ek: EkId, at: OffsetDateTime) -> Records {
    store.snapshot(&question(ek, "nobody", at)).unwrap().records
}

/// What is on record for an EK and an IK.
fn certificates_of(store: &Store, ek: EkId, ik_id: [u8; 32], at: OffsetDateTime) -> Snapshot {
    let ik_id = Some(ik_id);
    let question = Question { ik_id, waiting: true, ..question(ek, "nobody", at) };
    store.snapshot(&question).unwrap()
}

/// Of a certificate whose device shows it.
fn status(store: &Store, serial: u8) -> CertificateStatus {
    let issued =
        store.certificates().unwrap().into_iter().find(|issued| issued.serial == [serial; 16]);
    let device = issued.map_or_else(|| id("pump-17"), |issued| issued.device_id);
    store.certificate_status(&device, &[serial; 16], &sha256(&[serial])).unwrap()
}

/// As the writer does each second.
fn prune(store: &mut Store, at: OffsetDateTime) {
    if store.has_what_to_prune(at).unwrap() {
        store.transaction(|transaction| transaction.prune_expired(at)).unwrap();
        assert!(!store.has_what_to_prune(at).unwrap());
    }
}

/// What a revocation list would say.
fn revoked(store: &mut Store) -> Vec<(u8, RevocationReason)> {
    let revoked = store.revoked(now()).unwrap();
    let RevokedCertificates { once_in_force, never_in_force } = revoked;
    once_in_force
        .into_iter()
        .chain(never_in_force)
        .map(|revoked| (revoked.serial[0], revoked.reason))
        .collect()
}

fn offer(store: &mut Store, ek_id: EkId, device: &str, generation: u32) {
    offer_to(store, ParentKind::Import, ek_id, device, generation);
}

fn offer_to(store: &mut Store, parent: ParentKind, ek_id: EkId, device: &str, generation: u32) {
    let (device, assurance) = (id(device), Assurance::VendorCertificate);
    let key = unchecked::offered_key(ek_id, device, assurance, generation, parent);
    record(store, Act::Offer(key)).unwrap();
}

fn accept(store: &mut Store, ek_id: EkId, device: &str, generation: u32) -> Result<(), StoreError> {
    let (device, assurance) = (id(device), Assurance::VendorCertificate);
    let first_use = unchecked::first_use(ek_id, device, assurance, generation, now());
    record(store, Act::Accept(first_use))
}

fn shared_key(store: &Store, ek_id: EkId) -> Option<SharedKeyOnRecord> {
    records(store, ek_id, now()).shared_key
}

fn waiting(store: &Store, ek: EkId, serial: u8) -> Vec<Unconfirmed> {
    certificates_of(store, ek, sha256(&[serial]), now()).waiting
}

/// As *confirm* does with a certificate that waits; `false` if it does not.
fn confirm(store: &mut Store, serial: u8, at: OffsetDateTime) -> bool {
    for ek in [ek(1), ek(2)] {
        if let Some(certificate) = waiting(store, ek, serial).into_iter().next() {
            let confirmed = unchecked::confirmed(certificate, &key(), at).unwrap();
            record(store, Act::Activate(confirmed)).unwrap();
            return true;
        }
    }
    false
}

fn enrolment(ek_id: EkId, device_id: Option<&str>) -> NewEnrolment {
    NewEnrolment {
        ek_id,
        device_id: device_id.map(id),
        recognised: "test".into(),
        reprovision: None,
        legacy_dps_ek: None,
        plain_srk: None,
        disabled: None,
        tags: Tags::new(),
        added_at: now(),
    }
}

fn enroll(store: &mut Store, ek_id: EkId, device_id: Option<&str>) -> Result<Enrolled, EnrolError> {
    store.enroll(&[enrolment(ek_id, device_id)]).unwrap().remove(0)
}

#[test]
fn the_file_is_never_overwritten_and_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, _store) = store();
    let path = directory.path().join("assay.db");
    assert!(matches!(Store::create(&path), Err(StoreError::File(_))));
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_file_of_another_schema_version_is_refused() {
    let (directory, store) = store();
    drop(store);
    let path = directory.path().join("assay.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Version(99))));
}

#[test]
fn a_newer_certificate_supersedes_the_older() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert_eq!(status(&store, 1), CertificateStatus::Active);
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    assert_eq!(status(&store, 1), CertificateStatus::Superseded);
    assert_eq!(status(&store, 2), CertificateStatus::Active);
    assert_eq!(store.devices().unwrap().len(), 1);
}

/// As somebody can make it who stole the issuing key.
#[test]
fn another_certificate_with_the_serial_number_of_a_good_one_is_unknown() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    let worth = |device: &str, der: &[u8]| {
        store.certificate_status(&id(device), &[1; 16], &sha256(der)).unwrap()
    };
    assert_eq!(worth("pump-17", &[1]), CertificateStatus::Active);
    assert_eq!(worth("pump-17", &[2]), CertificateStatus::Unknown);
    assert_eq!(worth("pump-18", &[1]), CertificateStatus::Unknown);
}

#[test]
fn a_certificate_nobody_issued_is_unknown() {
    let (_directory, store) = store();
    assert_eq!(status(&store, 9), CertificateStatus::Unknown);
}

#[test]
fn another_eks_certificate_under_the_same_device_id_changes_nothing() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert!(add(&mut store, &certificate(2, "pump-17", ek(2))).is_err());
    assert_eq!(status(&store, 1), CertificateStatus::Active);
    assert_eq!(store.devices().unwrap()[0].ek_id, ek(1));
}

#[test]
fn the_same_ek_under_a_second_device_id_changes_nothing() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert!(add(&mut store, &certificate(2, "pump-18", ek(1))).is_err());
    assert_eq!(store.devices().unwrap().len(), 1);
    assert_eq!(store.certificates().unwrap().len(), 1);
}

#[test]
fn of_two_eks_racing_for_a_device_id_one_wins() {
    let (directory, store) = store();
    let path = directory.path().join("assay.db");
    for round in 0..20 {
        let device = format!("pump-{round}");
        let (device, path) = (&device, &path);
        let begin = &std::sync::Barrier::new(2);
        let won = thread::scope(|scope| {
            let race = |n: u8| {
                scope.spawn(move || {
                    let mut store = Store::open(path).unwrap();
                    begin.wait();
                    add(&mut store, &certificate(2 * round + n, device, ek(2 * round + n))).is_ok()
                })
            };
            [race(0), race(1)].map(|racer| racer.join().unwrap())
        });
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}");
    }
    assert_eq!(store.devices().unwrap().len(), 20);
    assert!(store.devices().unwrap().iter().all(|device| device.serial.is_some()));
}

#[test]
fn a_failed_transaction_leaves_nothing() {
    let (_directory, mut store) = store();
    offer(&mut store, ek(1), "pump-17", 1);
    let before = shared_key(&store, ek(1));
    let result: Result<(), _> = store.transaction(|transaction| {
        assert!(transaction.retire_shared_key(&ek(1))?);
        Err(StoreError::Version(0))
    });
    assert!(result.is_err());
    assert_eq!(shared_key(&store, ek(1)), before);
}

#[test]
fn an_ek_is_enrolled_once_and_an_id_is_granted_once() {
    let (_directory, mut store) = store();
    enroll(&mut store, ek(1), Some("pump-17")).unwrap();
    assert_eq!(enroll(&mut store, ek(1), Some("pump-17")).unwrap(), Enrolled::Unchanged);
    assert_eq!(store.enrolments().unwrap().len(), 1);
    assert!(
        matches!(enroll(&mut store, ek(2), Some("pump-17")), Err(EnrolError::DeviceIdTaken(_, holder)) if holder == ek(1))
    );
    enroll(&mut store, ek(2), None).unwrap();
    enroll(&mut store, ek(3), None).unwrap();
    assert_eq!(store.ek_of_device(&id("pump-17")).unwrap(), Some(ek(1)));
}

#[test]
fn a_registered_ek_keeps_its_id_when_it_is_enrolled() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert!(matches!(
        enroll(&mut store, ek(1), Some("pump-18")),
        Err(EnrolError::Registered(_, _))
    ));
    assert!(matches!(
        enroll(&mut store, ek(2), Some("pump-17")),
        Err(EnrolError::DeviceIdTaken(_, _))
    ));
    enroll(&mut store, ek(1), Some("pump-17")).unwrap();
}

#[test]
fn many_are_enrolled_or_none() {
    let (_directory, mut store) = store();
    enroll(&mut store, ek(1), Some("pump-1")).unwrap();
    let new = [
        enrolment(ek(1), Some("pump-1")),
        enrolment(ek(2), Some("pump-2")),
        enrolment(ek(3), Some("pump-1")),
        enrolment(ek(4), None),
        enrolment(ek(5), Some("pump-2")),
    ];
    for results in [store.rehearse_enroll(&new).unwrap(), store.enroll(&new).unwrap()] {
        let failed: Vec<_> = (0..5).filter(|n| results[*n].is_err()).collect();
        assert_eq!(failed, [2, 4], "each where it stands");
        assert!(
            matches!(results[0], Ok(Enrolled::Unchanged))
                && matches!(results[1], Ok(Enrolled::Added))
        );
        assert_eq!(store.enrolments().unwrap().len(), 1);
    }
    assert!(store.rehearse_enroll(&new[..2]).unwrap().iter().all(Result::is_ok));
    assert_eq!(store.enrolments().unwrap().len(), 1, "a rehearsal leaves nothing");
    assert!(store.enroll(&new[..2]).unwrap().iter().all(Result::is_ok));
    assert_eq!(store.enrolments().unwrap().len(), 2);
}

#[test]
fn what_an_enrolment_says_is_kept_and_what_it_leaves_open_is_not_changed() {
    let (_directory, mut store) = store();
    let full = NewEnrolment {
        reprovision: Some(Reprovision::Never),
        legacy_dps_ek: Some(true),
        plain_srk: Some(true),
        disabled: Some(true),
        ..enrolment(ek(1), Some("pump-1"))
    };
    store.enroll(std::slice::from_ref(&full)).unwrap().remove(0).unwrap();
    let row = store.enrolment(&ek(1)).unwrap().unwrap();
    assert_eq!((row.reprovision, row.disabled), (Some(Reprovision::Never), true));
    assert!(row.legacy_dps_ek && row.plain_srk);
    let records = records(&store, ek(1), now());
    let granted = records.enrolment.unwrap();
    assert!(records.disabled && granted.legacy_dps_ek && granted.plain_srk);
    assert_eq!(enroll(&mut store, ek(1), None).unwrap(), Enrolled::Unchanged);

    let mut refused = |new: NewEnrolment| store.enroll(&[new]).unwrap().remove(0).unwrap_err();
    let error = refused(NewEnrolment { device_id: Some(id("pump-2")), ..full.clone() });
    assert!(matches!(error, EnrolError::EnrolledAs { found: Some(_), .. }), "{error}");
    let error = refused(NewEnrolment { reprovision: Some(Reprovision::Reissue), ..full.clone() });
    assert!(matches!(error, EnrolError::Reprovision { found: Reprovision::Never, .. }), "{error}");
    let error = refused(NewEnrolment { legacy_dps_ek: Some(false), ..full.clone() });
    assert!(matches!(error, EnrolError::LegacyDpsEk { found: true, .. }), "{error}");
    let error = refused(NewEnrolment { plain_srk: Some(false), ..full.clone() });
    assert!(matches!(error, EnrolError::PlainSrk { found: true, .. }), "{error}");
    let error = refused(NewEnrolment { disabled: Some(false), ..full });
    assert!(matches!(error, EnrolError::Disabled { found: true, .. }), "{error}");
}

#[test]
fn tags_are_kept_and_change_with_the_list_that_has_them() {
    let (_directory, mut store) = store();
    let tagged = |site: &str| {
        let tags = Tags::from([("site".to_owned(), site.to_owned())]);
        NewEnrolment { tags, ..enrolment(ek(1), None) }
    };
    let mut enroll = |new: NewEnrolment| store.enroll(&[new]).unwrap().remove(0).unwrap();
    assert_eq!(enroll(tagged("north")), Enrolled::Added);
    assert_eq!(enroll(tagged("north")), Enrolled::Unchanged);
    assert_eq!(enroll(tagged("south")), Enrolled::Retagged);
    assert_eq!(
        enroll(enrolment(ek(1), None)),
        Enrolled::Unchanged,
        "what says nothing changes nothing"
    );
    assert_eq!(store.enrolment(&ek(1)).unwrap().unwrap().tags, tagged("south").tags);
}

#[test]
fn only_an_enrolment_has_a_policy() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    assert!(!store.update_enrolment(&ek(1), Some(Reprovision::Never), Some(true)).unwrap());
    enroll(&mut store, ek(1), None).unwrap();
    let mut changed = |reprovision, plain_srk| {
        assert!(store.update_enrolment(&ek(1), reprovision, plain_srk).unwrap());
        let row = store.enrolment(&ek(1)).unwrap().unwrap();
        (row.reprovision.unwrap(), row.plain_srk)
    };
    assert_eq!(changed(Some(Reprovision::Never), None), (Reprovision::Never, false));
    assert_eq!(changed(None, Some(true)), (Reprovision::Never, true));
    assert_eq!(changed(Some(Reprovision::Reuse), Some(false)), (Reprovision::Reuse, false));
}

#[test]
fn sealed_certificates_wait_for_their_own_ek_and_ik_until_they_are_confirmed() {
    let (_directory, mut store) = store();
    add(&mut store, &sealed(1, "pump-17", ek(1))).unwrap();
    let found = waiting(&store, ek(1), 1);
    assert_eq!((found.len(), found[0].serial, found[0].sha256), (1, [1; 16], sha256(&[1])));
    assert!(waiting(&store, ek(2), 1).is_empty() && waiting(&store, ek(1), 9).is_empty());
    assert!(confirm(&mut store, 1, now()));
    assert!(waiting(&store, ek(1), 1).is_empty());
}

#[test]
fn an_unconfirmed_certificate_supersedes_nothing_and_registers_nobody() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    let seen = store.revocations().unwrap();
    add(&mut store, &sealed(2, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(3, "pump-2", ek(2))).unwrap();
    assert_eq!(
        (status(&store, 1), status(&store, 2)),
        (CertificateStatus::Active, CertificateStatus::Unconfirmed)
    );
    assert_eq!(store.devices().unwrap().len(), 1);
    assert!(store.enrolment(&ek(2)).unwrap().is_none());
    assert_eq!(store.revocations().unwrap(), seen);
}

#[test]
fn a_confirmed_certificate_supersedes_and_registers() {
    let (_directory, mut store) = store();
    let earlier = now() - Duration::hours(1);
    let first = CertificateFacts { issued_at: earlier, ..certificate(1, "pump-1", ek(1)) };
    add(&mut store, &first).unwrap();
    add(&mut store, &sealed(2, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(3, "pump-2", ek(2))).unwrap();
    let later = now() + Duration::minutes(1);
    for serial in [2, 3] {
        assert!(confirm(&mut store, serial, later));
        assert_eq!(status(&store, serial), CertificateStatus::Active);
    }
    assert_eq!(status(&store, 1), CertificateStatus::Superseded);
    let devices = store.devices().unwrap();
    assert_eq!(
        devices.iter().map(|device| device.serial.as_ref().unwrap()[0]).collect::<Vec<_>>(),
        [2, 3]
    );
    assert_eq!(revoked(&mut store), [(1, RevocationReason::Superseded)]);
}

#[test]
fn a_certificate_that_was_not_confirmed_in_time_is_revoked() {
    let (_directory, mut store) = store();
    add(&mut store, &sealed(1, "pump-1", ek(1))).unwrap();
    let deadline = now() + Duration::minutes(10);
    let before = deadline - Duration::seconds(1);
    let revoke = |store: &mut Store, now| {
        store.transaction(|transaction| transaction.revoke_unconfirmed(now)).unwrap()
    };
    assert!(!store.has_overdue_confirmations(before).unwrap());
    assert_eq!(revoke(&mut store, before), 0);
    assert!(store.has_overdue_confirmations(deadline).unwrap());
    let (connections, lists) = (store.revocations().unwrap(), store.list_changes().unwrap());
    assert_eq!(revoke(&mut store, deadline), 1);
    assert!(store.list_changes().unwrap() > lists);
    assert_eq!(store.revocations().unwrap(), connections, "nobody can be connected with it");
    assert!(!store.has_overdue_confirmations(deadline).unwrap());
    assert_eq!(status(&store, 1), CertificateStatus::Revoked);
    assert_eq!(revoked(&mut store), [(1, RevocationReason::CessationOfOperation)]);
    assert!(!confirm(&mut store, 1, before));
    assert_eq!(status(&store, 1), CertificateStatus::Revoked, "it does not come back");
}

#[test]
fn certificates_of_a_device_are_counted_for_a_day() {
    let (_directory, mut store) = store();
    for serial in 1..=3 {
        add(&mut store, &certificate(serial, "pump-1", ek(1))).unwrap();
    }
    add(&mut store, &certificate(9, "pump-2", ek(2))).unwrap();
    let count = |at| {
        let records = records(&store, ek(1), at);
        records.registration.unwrap().recent_certificates
    };
    assert_eq!(count(now()), 3);
    assert_eq!(count(now() + Duration::DAY), 0);
}

#[test]
fn certificates_that_nobody_confirmed_are_counted_for_a_day() {
    let (_directory, mut store) = store();
    let count = |store: &Store, now| records(store, ek(1), now).recent_unconfirmed;
    for serial in 1..=3 {
        add(&mut store, &sealed(serial, "pump-1", ek(1))).unwrap();
    }
    add(&mut store, &sealed(9, "pump-2", ek(2))).unwrap();
    assert_eq!(count(&store, now()), 3);
    assert!(confirm(&mut store, 1, now()));
    assert_eq!(count(&store, now()), 2, "one was confirmed");
    store
        .transaction(|transaction| transaction.revoke_unconfirmed(now() + Duration::hours(1)))
        .unwrap();
    assert_eq!(count(&store, now() + Duration::hours(1)), 2, "revoked ones count");
    assert_eq!(count(&store, now() + Duration::days(1)), 0);
}

#[test]
fn the_revocation_list_gives_reasons_and_forgets_what_expired() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-1", ek(1))).unwrap();
    add(&mut store, &certificate(3, "pump-2", ek(2))).unwrap();
    add(&mut store, &certificate(4, "pump-3", ek(3))).unwrap();
    add(&mut store, &certificate(5, "pump-4", ek(4))).unwrap();
    store.set_disabled(&ek(2), true, now()).unwrap();
    store.remove(&ek(3), now()).unwrap();
    let (superseded, removed) =
        ((1, RevocationReason::Superseded), (4, RevocationReason::CessationOfOperation));
    assert_eq!(revoked(&mut store), [superseded, (3, RevocationReason::CertificateHold), removed]);
    store.set_disabled(&ek(2), false, now()).unwrap();
    assert_eq!(revoked(&mut store), [superseded, removed]);
    let expired = now() + Duration::days(90);
    assert_eq!(store.revoked(expired).unwrap(), RevokedCertificates::default());
}

#[test]
fn a_list_that_is_too_long_leaves_out_what_never_came_into_force() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca");
    Directory::create(&path, "Test", &[]).unwrap();
    let directory = Directory::open(&path).unwrap();
    let (ca, mut store) = (directory.ca().unwrap(), directory.store().unwrap());
    for serial in 1..=2 {
        add(&mut store, &certificate(serial, "pump-17", ek(1))).unwrap();
    }
    for serial in 3..=40 {
        add(&mut store, &sealed(serial, "pump-18", ek(2))).unwrap();
    }
    let later = now() + Duration::HOUR;
    let mut serials = |longest| {
        let list = ca.revocation_list(&mut store, longest, later).unwrap();
        let (_, list) = CertificateRevocationList::from_der(&list).unwrap();
        list.iter_revoked_certificates().map(|revoked| revoked.raw_serial()[0]).collect::<Vec<_>>()
    };
    assert_eq!(serials(usize::MAX).len(), 39);
    assert_eq!(serials(1024), [1]);
}

#[test]
fn numbers_of_revocation_lists_stand_for_states_one_after_the_other() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &sealed(2, "pump-18", ek(2))).unwrap();
    let list = |store: &mut Store, at| {
        let (RevokedCertificates { once_in_force, never_in_force }, number) =
            store.revocation_list(at).unwrap();
        (once_in_force.len(), never_in_force.len(), number)
    };
    assert_eq!(list(&mut store, now()), (0, 0, 1));
    add(&mut store, &certificate(3, "pump-17", ek(1))).unwrap();
    assert_eq!(list(&mut store, now()), (1, 0, 2));
    assert_eq!(
        list(&mut store, now() + Duration::HOUR),
        (1, 1, 3),
        "what is overdue is revoked first"
    );
}

#[test]
fn pruning_is_done_bit_by_bit() {
    let (_directory, mut store) = store();
    let many = 501_u32;
    let entries: Vec<_> = (0..=many)
        .map(|n| {
            let mut next = certificate(1, "pump-17", ek(1));
            next.serial[..4].copy_from_slice(&n.to_be_bytes());
            Entry { act: act(&next, vec![1]), basis: None, audit: None }
        })
        .collect();
    store.record(&"default".parse().unwrap(), &entries).unwrap();
    let at = now() + Duration::days(121);
    let prune =
        |store: &mut Store| store.transaction(|transaction| transaction.prune_expired(at)).unwrap();
    assert_eq!(prune(&mut store), 500);
    assert!(store.has_what_to_prune(at).unwrap());
    assert_eq!(prune(&mut store), 1);
    assert!(!store.has_what_to_prune(at).unwrap());
}

#[test]
fn scope_is_the_devices_once_there_are_any() {
    let (_directory, mut store) = store();
    let [a, b] = ["plant-a", "plant-b"].map(|scope| scope.parse::<Scope>().unwrap());
    let serves = |store: &mut Store, scope| store.record(scope, &[]).is_ok();
    store.record_scope(&a).unwrap();
    let parent = tempfile::tempdir().unwrap();
    Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
    let [check] =
        Directory::open(&parent.path().join("ca")).unwrap().throw_away_devices([now()]).unwrap();
    store.add_throw_away(&check.id, &check.credentials.chain[0], now()).unwrap();
    store.record_scope(&b).unwrap();
    assert!(!serves(&mut store, &a) && serves(&mut store, &b), "who began to serve before notices");
    let certified = act(&certificate(1, "pump-17", ek(1)), vec![1]);
    let entry = Entry { act: certified, basis: None, audit: None };
    assert_eq!(store.record(&b, &[entry]).unwrap(), [Recorded::Done]);
    assert!(matches!(store.record_scope(&a), Err(StoreError::Scope { was, .. }) if was == b));
    store.record_scope(&b).unwrap();
}

/// Five hundred thousand certificates take a second to find.
#[test]
fn what_is_revoked_is_found_while_somebody_writes() {
    let (directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    let mut other = Store::open(&directory.path().join("assay.db")).unwrap();
    let found = other.transaction(|_| store.revoked(now())).unwrap();
    assert_eq!(found.once_in_force.len(), 1);
}

#[test]
fn sealed_certificate_is_not_to_be_found_in_the_file_until_it_is_confirmed() {
    let (directory, mut store) = store();
    let der: Vec<u8> = b"only the TPM can read this certificate; ".repeat(20);
    record(&mut store, act(&sealed(1, "pump-17", ek(1)), der.clone())).unwrap();
    let is_in_a_file = || {
        directory.path().read_dir().unwrap().any(|file| {
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

#[test]
fn certificate_that_does_not_wait_any_more_is_not_activated() {
    let (_directory, mut store) = store();
    add(&mut store, &sealed(1, "pump-17", ek(1))).unwrap();
    let certificate = waiting(&store, ek(1), 1).pop().unwrap();
    let later = now() + Duration::HOUR;
    store.transaction(|transaction| transaction.revoke_unconfirmed(later)).unwrap();
    let confirmed = unchecked::confirmed(certificate, &key(), now()).unwrap();
    let entry = Entry { act: Act::Activate(confirmed), basis: None, audit: None };
    let recorded = store.record(&"default".parse().unwrap(), &[entry]).unwrap();
    assert_eq!(recorded, [Recorded::Stale]);
    assert_eq!(store.certificates().unwrap()[0].status, "revoked");
}

#[test]
fn act_is_stale_once_what_it_was_planned_by_has_changed() {
    let (_directory, mut store) = store();
    enroll(&mut store, ek(1), Some("pump-17")).unwrap();
    let question = question(ek(1), "pump-17", now());
    let basis = |store: &Store| {
        let snapshot = store.snapshot(&question).unwrap();
        Some(Basis { question: question.clone(), snapshot })
    };
    let audit = |action| AuditEntry { action, ..decision(1, None) };
    let changes: [fn(&mut Store); 6] = [
        |store| assert!(store.set_disabled(&ek(1), true, now()).unwrap()),
        |store| assert!(store.set_disabled(&ek(1), false, now()).unwrap()),
        |store| assert!(store.update_enrolment(&ek(1), Some(Reprovision::Never), None).unwrap()),
        |store| add(store, &certificate(9, "pump-17", ek(1))).unwrap(),
        |store| offer(store, ek(1), "pump-17", 1),
        |store| assert!(store.remove(&ek(1), now()).unwrap().is_some()),
    ];
    let count = changes.len();
    for (n, change) in changes.into_iter().enumerate() {
        let before = basis(&store);
        change(&mut store);
        let next = certificate(u8::try_from(n).unwrap(), "pump-17", ek(1));
        let entry =
            |basis| Entry { act: act(&next, vec![7]), basis, audit: Some(audit("certify")) };
        let scope = "default".parse().unwrap();
        let other = Entry { act: Act::None, basis: None, audit: Some(audit("confirm")) };
        let recorded = store.record(&scope, &[entry(before), other]).unwrap();
        assert_eq!(recorded, [Recorded::Stale, Recorded::Done], "change {n}");
        let serials: Vec<_> =
            store.certificates().unwrap().into_iter().map(|row| row.serial[0]).collect();
        assert!(!serials.contains(&next.serial[0]), "change {n}");
    }
    let audited = store.audit(99).unwrap();
    assert!(audited.len() == count && audited.iter().all(|row| row.action == "confirm"));
    let fresh = Entry {
        act: act(&certificate(7, "pump-17", ek(1)), vec![7]),
        basis: basis(&store),
        audit: None,
    };
    let recorded = store.record(&"default".parse().unwrap(), &[fresh]).unwrap();
    assert_eq!(recorded, [Recorded::Done]);
}

#[test]
fn what_was_only_offered_to_an_ek_goes_when_it_is_removed() {
    let (_directory, mut store) = store();
    assert_eq!(store.remove(&ek(1), now()).unwrap(), None);
    add(&mut store, &sealed(1, "pump-1", ek(1))).unwrap();
    offer(&mut store, ek(2), "pump-2", 1);
    assert_eq!(
        store.remove(&ek(1), now()).unwrap(),
        Some(Removed { certificates: 1, shared_key: false })
    );
    assert_eq!(status(&store, 1), CertificateStatus::Revoked);
    assert_eq!(
        store.remove(&ek(2), now()).unwrap(),
        Some(Removed { certificates: 0, shared_key: true })
    );
    assert_eq!(
        shared_key(&store, ek(2)),
        Some(SharedKeyOnRecord { generation: 3, is_used: false, plain_srk_generation: 0 })
    );
}

#[test]
fn what_was_never_confirmed_is_forgotten_when_it_has_expired() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    add(&mut store, &sealed(3, "pump-18", ek(2))).unwrap();
    let mut left = |at| {
        store.transaction(|transaction| transaction.revoke_unconfirmed(at)).unwrap();
        prune(&mut store, at);
        store.certificates().unwrap().len()
    };
    assert_eq!(left(now() + Duration::HOUR), 3);
    assert_eq!(left(now() + Duration::days(91)), 2);
}

#[test]
fn device_that_does_not_exist_is_let_in_until_its_certificate_is_revoked_and_then_forgotten() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("ca");
    Directory::create(&path, "Test", &[]).unwrap();
    let directory = Directory::open(&path).unwrap();
    let now = OffsetDateTime::now_utc();
    let [device] = directory.throw_away_devices([now]).unwrap();
    let der = &device.credentials.chain[0][..];
    let mut store = directory.store().unwrap();
    store.add_throw_away(&device.id, der, now).unwrap();

    let serial = store.certificates().unwrap()[0].serial.clone();
    let status =
        |store: &Store| store.certificate_status(&device.id, &serial, &sha256(der)).unwrap();
    assert_eq!(status(&store), CertificateStatus::Active);
    assert!(store.devices().unwrap().is_empty());
    assert_eq!(store.audit(9).unwrap()[0].action, "check");

    let before = store.revocations().unwrap();
    store.revoke_throw_away([der], now).unwrap();
    assert_eq!(status(&store), CertificateStatus::Revoked);
    assert!(store.revocations().unwrap() > before, "who is connected with it is not cut");
    let revoked = store.revoked(now).unwrap();
    assert_eq!((revoked.once_in_force.len(), revoked.never_in_force.len()), (0, 1));
    prune(&mut store, now + Duration::HOUR);
    assert_eq!(status(&store), CertificateStatus::Unknown);
}

#[test]
fn what_expired_is_on_no_list_though_its_device_is_disabled() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    store.set_disabled(&ek(1), true, now()).unwrap();
    let count = |at| store.revoked(at).unwrap().once_in_force.len();
    assert_eq!(count(now()), 1);
    assert_eq!(count(now() + Duration::days(91)), 0);
}

#[test]
fn an_active_certificate_that_has_expired_is_not_given_again() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    let again = |ik: u8, at| {
        certificates_of(&store, ek(1), sha256(&[ik]), at).active.map(|active| active.der)
    };
    assert_eq!(again(1, now()), Some(vec![1]));
    assert_eq!(again(2, now()), None, "another IK");
    assert_eq!(again(1, now() + Duration::days(91)), None);
}

#[test]
fn what_was_once_in_force_stays_on_record_for_a_month_when_it_has_ended_and_expired() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    add(&mut store, &certificate(3, "pump-18", ek(2))).unwrap();
    store.remove(&ek(2), now()).unwrap();
    let expiry = now() + Duration::days(90);
    prune(&mut store, expiry + Duration::days(29));
    assert_eq!(
        (status(&store, 1), status(&store, 3)),
        (CertificateStatus::Superseded, CertificateStatus::Revoked)
    );
    prune(&mut store, expiry + Duration::days(31));
    assert_eq!(
        (status(&store, 1), status(&store, 3)),
        (CertificateStatus::Unknown, CertificateStatus::Unknown)
    );
    assert_eq!(
        status(&store, 2),
        CertificateStatus::Active,
        "a device has it until it has another"
    );
}

#[test]
fn revocation_lists_are_numbered_once() {
    let (_directory, mut store) = store();
    let mut next = || store.transaction(|transaction| transaction.next_revocation_list()).unwrap();
    assert_eq!([next(), next(), next()], [1, 2, 3]);
}

#[test]
fn a_removed_devices_id_is_free_and_its_certificates_are_not_good() {
    let (_directory, mut store) = store();
    enroll(&mut store, ek(1), Some("pump-1")).unwrap();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    add(&mut store, &sealed(2, "pump-1", ek(1))).unwrap();
    let seen = store.revocations().unwrap();
    assert_eq!(
        store.remove(&ek(1), now()).unwrap(),
        Some(Removed { certificates: 2, shared_key: false })
    );
    assert!(store.revocations().unwrap() > seen);
    assert_eq!(store.remove(&ek(1), now()).unwrap(), None);
    assert_eq!(
        (status(&store, 1), status(&store, 2)),
        (CertificateStatus::Revoked, CertificateStatus::Revoked)
    );
    assert_eq!(store.ek_of_device(&id("pump-1")).unwrap(), None);
    assert!(store.devices().unwrap().is_empty() && store.enrolments().unwrap().is_empty());
    enroll(&mut store, ek(2), Some("pump-1")).unwrap();
    add(&mut store, &certificate(3, "pump-1", ek(2))).unwrap();
}

#[test]
fn an_offer_does_not_change_the_generation() {
    let (_directory, mut store) = store();
    offer(&mut store, ek(1), "pump-1", 1);
    assert_eq!(
        shared_key(&store, ek(1)),
        Some(SharedKeyOnRecord { generation: 1, is_used: false, plain_srk_generation: 0 })
    );
    assert!(store.devices().unwrap().is_empty(), "nobody is registered by an offer");
    accept(&mut store, ek(1), "pump-1", 1).unwrap();
    let seen = store.revocations().unwrap();
    offer(&mut store, ek(1), "pump-1", 2);
    assert_eq!(
        shared_key(&store, ek(1)),
        Some(SharedKeyOnRecord { generation: 1, is_used: true, plain_srk_generation: 0 })
    );
    assert_eq!(store.revocations().unwrap(), seen);
}

#[test]
fn the_first_use_of_a_shared_key_registers_its_device_and_retires_older_ones() {
    let (_directory, mut store) = store();
    offer(&mut store, ek(1), "pump-1", 1);
    accept(&mut store, ek(1), "pump-1", 1).unwrap();
    assert_eq!(store.devices().unwrap()[0].shared_key, Some(1));
    offer(&mut store, ek(1), "pump-1", 2);
    let seen = store.revocations().unwrap();
    accept(&mut store, ek(1), "pump-1", 2).unwrap();
    assert_eq!(store.devices().unwrap()[0].shared_key, Some(2));
    assert!(store.revocations().unwrap() > seen, "connections with the older key are to be cut");
}

#[test]
fn of_two_eks_with_a_shared_key_for_one_device_id_one_is_registered() {
    let (_directory, mut store) = store();
    offer(&mut store, ek(1), "pump-1", 1);
    offer(&mut store, ek(2), "pump-1", 1);
    let holders = store.shared_key_holders(&id("pump-1")).unwrap();
    assert_eq!(holders.iter().map(|holder| holder.ek_id).collect::<Vec<_>>(), [ek(1), ek(2)]);
    accept(&mut store, ek(2), "pump-1", 1).unwrap();
    assert!(accept(&mut store, ek(1), "pump-1", 1).is_err());
    assert_eq!(
        shared_key(&store, ek(1)),
        Some(SharedKeyOnRecord { generation: 1, is_used: false, plain_srk_generation: 0 })
    );
    assert_eq!(store.devices().unwrap()[0].ek_id, ek(2));
}

#[test]
fn a_retired_generation_never_returns() {
    let (_directory, mut store) = store();
    let retire = |store: &mut Store| {
        store.transaction(|transaction| transaction.retire_shared_key(&ek(1))).unwrap()
    };
    assert!(!retire(&mut store), "there is none");
    offer(&mut store, ek(1), "pump-1", 1);
    accept(&mut store, ek(1), "pump-1", 1).unwrap();
    // The device was offered the next one, too.
    offer(&mut store, ek(1), "pump-1", 2);
    let seen = store.revocations().unwrap();
    assert!(retire(&mut store));
    assert_eq!(
        shared_key(&store, ek(1)),
        Some(SharedKeyOnRecord { generation: 3, is_used: false, plain_srk_generation: 0 })
    );
    assert!(store.revocations().unwrap() > seen);

    accept(&mut store, ek(1), "pump-1", 3).unwrap();
    assert_eq!(
        store.remove(&ek(1), now()).unwrap(),
        Some(Removed { certificates: 0, shared_key: true })
    );
    enroll(&mut store, ek(1), Some("pump-1")).unwrap();
    offer(&mut store, ek(1), "pump-1", 1);
    assert_eq!(
        shared_key(&store, ek(1)),
        Some(SharedKeyOnRecord { generation: 5, is_used: false, plain_srk_generation: 0 })
    );
}

#[test]
fn what_a_plain_srk_was_offered_is_remembered_and_retired_with_what_follows_it() {
    let (_directory, mut store) = store();
    let retire = |store: &mut Store| {
        store.transaction(|transaction| transaction.retire_shared_key(&ek(1))).unwrap()
    };
    offer_to(&mut store, ParentKind::PlainSrk, ek(1), "pump-1", 1);
    let on_record = |store: &Store| {
        let key = shared_key(store, ek(1)).unwrap();
        (key.generation, key.plain_srk_generation, key.is_of_plain_srk())
    };
    assert_eq!(on_record(&store), (1, 1, true));
    offer(&mut store, ek(1), "pump-1", 2);
    assert_eq!(on_record(&store), (1, 1, true));
    accept(&mut store, ek(1), "pump-1", 2).unwrap();
    assert_eq!(on_record(&store), (2, 1, false));
    offer_to(&mut store, ParentKind::PlainSrk, ek(1), "pump-1", 3);
    assert_eq!(on_record(&store), (2, 3, true), "3 is accepted from now on");
    offer_to(&mut store, ParentKind::PlainSrk, ek(1), "pump-1", 2);
    assert_eq!(on_record(&store), (2, 3, true));
    // An import parent is offered 4, so it is not what comes next.
    offer(&mut store, ek(1), "pump-1", 4);
    assert!(retire(&mut store));
    assert_eq!(on_record(&store), (5, 3, false));
}

#[test]
fn an_ek_that_the_ca_does_not_know_can_be_disabled_and_is_trusted_no_more_for_it() {
    let (_directory, mut store) = store();
    assert!(store.set_disabled(&ek(1), true, now()).unwrap());
    assert!(!store.set_disabled(&ek(1), true, now()).unwrap());
    let records = |store: &Store| records(store, ek(1), now());
    assert!(records(&store).disabled && records(&store).enrolment.is_none());
    let row = store.enrolment(&ek(1)).unwrap().unwrap();
    assert!(row.disabled && !row.registered && row.recognised.is_none());
    assert_eq!(store.remove(&ek(1), now()).unwrap(), None);
    assert!(store.set_disabled(&ek(1), false, now()).unwrap());
    assert!(!records(&store).disabled && records(&store).enrolment.is_none());
    assert!(store.enrolments().unwrap().is_empty());
}

#[test]
fn what_is_disabled_stays_so_when_it_is_removed_or_enrolled() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-1", ek(1))).unwrap();
    store.set_disabled(&ek(1), true, now()).unwrap();
    store.remove(&ek(1), now()).unwrap().unwrap();
    enroll(&mut store, ek(1), None).unwrap();
    assert!(records(&store, ek(1), now()).disabled);
}

#[test]
fn other_eks_are_looked_for_among_all_that_an_operator_sees() {
    let (_directory, mut store) = store();
    let other_ek = |store: &Store, other_eks: &[EkId]| {
        let (derived, other_eks) = (id("derived"), other_eks.to_vec());
        let device = IdInQuestion::Due { derived, other_eks };
        let question = Question { device, ..question(ek(9), "nobody", now()) };
        store.snapshot(&question).unwrap().records.other_ek
    };
    assert_eq!(other_ek(&store, &[ek(1), ek(2), ek(3)]), None);
    enroll(&mut store, ek(1), None).unwrap();
    add(&mut store, &certificate(1, "pump-17", ek(2))).unwrap();
    store.set_disabled(&ek(3), true, now()).unwrap();
    for known in [1, 2, 3] {
        assert_eq!(other_ek(&store, &[ek(4), ek(known)]), Some(ek(known)));
    }
    assert_eq!(other_ek(&store, &[ek(4)]), None);
}

#[test]
fn disabling_reaches_enrolled_and_registered_eks() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    enroll(&mut store, ek(2), None).unwrap();
    assert!(store.set_disabled(&ek(1), true, now()).unwrap());
    assert!(store.set_disabled(&ek(2), true, now()).unwrap());
    assert_eq!(status(&store, 1), CertificateStatus::Disabled);
    assert!(store.enrolments().unwrap().iter().all(|row| row.disabled));
    store.set_disabled(&ek(1), false, now()).unwrap();
    assert_eq!(status(&store, 1), CertificateStatus::Active);
}

#[test]
fn whatever_revokes_is_counted_and_only_that() {
    let (_directory, mut store) = store();
    let counts = |store: &Store| (store.revocations().unwrap(), store.list_changes().unwrap());
    let mut seen = counts(&store);
    // Whether connections must be looked at, and whether the list changes.
    let mut counted = |store: &Store| {
        let (connections, list) = std::mem::replace(&mut seen, counts(store));
        (seen.0 > connections, seen.1 > list)
    };
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    enroll(&mut store, ek(2), None).unwrap();
    assert_eq!(counted(&store), (false, false), "nothing is revoked yet");
    store.set_disabled(&ek(1), true, now()).unwrap();
    assert_eq!(counted(&store), (true, true), "a device was disabled");
    store.set_disabled(&ek(2), true, now()).unwrap();
    assert_eq!(counted(&store), (true, true), "an enrolled EK was disabled");
    store.set_disabled(&ek(2), true, now()).unwrap();
    assert_eq!(counted(&store), (false, false), "it was disabled before");
    store.set_disabled(&ek(1), false, now()).unwrap();
    assert_eq!(counted(&store), (false, true), "a device was enabled");
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    assert_eq!(counted(&store), (true, true), "a certificate was superseded");
    offer(&mut store, ek(3), "pump-3", 1);
    accept(&mut store, ek(3), "pump-3", 1).unwrap();
    assert_eq!(counted(&store), (false, false), "a first shared key retires none");
    accept(&mut store, ek(3), "pump-3", 2).unwrap();
    assert_eq!(counted(&store), (true, false), "a shared key was retired");
    store.remove(&ek(3), now()).unwrap();
    assert_eq!(counted(&store), (true, false), "a device without a certificate was removed");
}

#[test]
fn generations_taken_into_use_are_counted_for_a_day() {
    let (_directory, mut store) = store();
    let recent = |store: &Store, at| records(&store, ek(1), at).recent_generations;
    offer(&mut store, ek(1), "pump-1", 1);
    for generation in 1..=3 {
        accept(&mut store, ek(1), "pump-1", generation).unwrap();
    }
    assert_eq!(recent(&store, now()), 3);
    assert_eq!(recent(&store, now() + Duration::DAY - Duration::SECOND), 3);
    assert_eq!(recent(&store, now() + Duration::DAY), 0);
}

#[test]
fn an_offer_without_the_vendors_certificate_does_not_make_it_unseen() {
    let (_directory, mut store) = store();
    for (offered, expected) in [
        (Assurance::EnrolmentList, Assurance::EnrolmentList),
        (Assurance::VendorCertificate, Assurance::VendorCertificate),
        (Assurance::EnrolmentList, Assurance::VendorCertificate),
    ] {
        let (device, parent) = (id("pump-1"), ParentKind::Import);
        let key = unchecked::offered_key(ek(1), device, offered, 1, parent);
        record(&mut store, Act::Offer(key)).unwrap();
        assert_eq!(store.shared_key_holders(&id("pump-1")).unwrap()[0].assurance, expected);
    }
}

#[test]
fn certificate_is_added_though_somebody_else_is_writing() {
    let (directory, store) = store();
    while_somebody_writes(&directory, || {
        assert_eq!(store.add_anchor(&vendor_root(1)).unwrap(), Trusted::Added);
    });
}

#[test]
fn a_change_of_anchors_changes_their_version() {
    let (_directory, store) = store();
    let anchor = vendor_root;
    let mut versions = vec![store.anchors_version().unwrap()];
    assert_eq!(store.add_anchor(&anchor(1)).unwrap(), Trusted::Added);
    versions.push(store.anchors_version().unwrap());
    assert_eq!(store.add_anchor(&anchor(1)).unwrap(), Trusted::Already);
    assert_eq!(store.anchors_version().unwrap(), versions[1]);
    assert_eq!(store.add_anchor(&anchor(2)).unwrap(), Trusted::Added);
    versions.push(store.anchors_version().unwrap());
    assert!(store.remove_anchor(&[1; 32]).unwrap());
    versions.push(store.anchors_version().unwrap());
    assert_eq!(store.add_anchor(&anchor(3)).unwrap(), Trusted::Added);
    versions.push(store.anchors_version().unwrap());
    let allowances = Allowances { ek_usage: true, tpm_attributes: false };
    let narrow = AnchorRow { role: Role::Anchor(allowances), ..anchor(3) };
    assert_eq!(store.add_anchor(&narrow).unwrap(), Trusted::Changed);
    versions.push(store.anchors_version().unwrap());
    assert_eq!(store.add_anchor(&narrow).unwrap(), Trusted::Already);
    assert_eq!(
        store.add_anchor(&anchor(3)).unwrap(),
        Trusted::Already,
        "what is more than it was stays"
    );
    assert_eq!(store.anchors().unwrap().last().unwrap().role, narrow.role);
    for (n, version) in versions.iter().enumerate() {
        assert!(!versions[..n].contains(version), "{n}");
    }
}

fn vendor_root(n: u8) -> AnchorRow {
    AnchorRow {
        fingerprint: [n; 32],
        certificate: vec![n],
        subject: "CN=vendor".into(),
        role: Role::Root,
        not_after: 0,
        added_at: 0,
    }
}

#[test]
fn the_audit_forgets_the_oldest_beyond_its_limit() {
    let (directory, mut store) = store();
    let mut add = |entries: Vec<AuditEntry>| {
        store
            .transaction(|transaction| {
                entries.iter().try_for_each(|entry| transaction.audit(entry))
            })
            .unwrap();
        store.checkpoint().unwrap();
        store.audit(u32::MAX).unwrap()
    };
    let over = 5;
    // As long as it can be: a client id of 64 characters and a detail of 512.
    let longest = (ProblemCode::EkCertificateUntrusted, "x".repeat(512));
    let refused = |n| AuditEntry { refusal: Some(longest.clone()), ..decision(n, None) };
    let rows = add((0..100_000 + over).map(refused).collect());
    assert_eq!(rows.len(), 100_000);
    assert_eq!(rows[0].duration_us, over);
    assert_eq!(rows[0].code, Some(longest.0.number()));
    let size = std::fs::metadata(directory.path().join("assay.db")).unwrap().len();
    assert!((60_000_000..75_000_000).contains(&size), "{size}");
}

/// One host makes 100,000 refusals in 18 s, and whoever has one ticket can repeat it for 300 s.
#[test]
fn whoever_asks_without_end_pushes_nothing_out_that_changed_what_a_device_has() {
    let (_directory, mut store) = store();
    let certified =
        AuditEntry { change: Change::Made, ..decision(1, Some(Whom::Proven(id("pump-17")))) };
    let repeated = decision(2, Some(Whom::Proven(id("pump-18"))));
    let others = (0..100_000).map(|n| decision(n, Some(Whom::Due(id("pump-19")))));
    let mut entries = [certified, repeated].into_iter().chain(others);
    store
        .transaction(|transaction| entries.try_for_each(|entry| transaction.audit(&entry)))
        .unwrap();
    let rows = store.audit(u32::MAX).unwrap();
    assert!(rows.iter().filter_map(|row| row.proven.as_deref()).eq(["pump-17"]));
    assert_eq!(rows.iter().filter(|row| row.due.as_deref() == Some("pump-19")).count(), 100_000);
}

#[test]
fn decisions_are_in_the_order_in_which_they_were_made() {
    let (_directory, mut store) = store();
    let at = |microseconds: i64, device: Option<&str>| AuditEntry {
        time: now() + Duration::microseconds(microseconds),
        change: if device.is_some() { Change::Made } else { Change::None },
        ..decision(microseconds as u32, device.map(|device| Whom::Proven(id(device))))
    };
    // Refusals are written later than what is proven, and several at once.
    let written = [at(2, Some("a")), at(4, Some("b")), at(3, None), at(1, None)];
    store
        .transaction(|transaction| written.iter().try_for_each(|entry| transaction.audit(entry)))
        .unwrap();
    let order =
        |count| store.audit(count).unwrap().iter().map(|row| row.duration_us).collect::<Vec<_>>();
    assert_eq!(order(9), [1, 2, 3, 4]);
    assert_eq!(order(2), [3, 4]);
}

fn decision(n: u32, device: Option<Whom>) -> AuditEntry {
    AuditEntry {
        time: now(),
        client: "c".repeat(64).parse().unwrap(),
        action: "challenge",
        ek_id: Some(ek(1)),
        device,
        change: Change::None,
        refusal: None,
        duration_us: n,
    }
}

#[test]
fn checkpoint_moves_what_is_committed_out_of_the_log() {
    let (directory, mut store) = store();
    let file = directory.path().join("assay.db");
    let length = || std::fs::metadata(&file).unwrap().len();
    store.checkpoint().unwrap();
    let before = length();
    record(&mut store, act(&certificate(1, "pump-17", ek(1)), vec![1; 100_000])).unwrap();
    assert_eq!(length(), before, "a commit leaves it in the log");
    store.checkpoint().unwrap();
    assert!(length() > before);
}

#[test]
fn the_check_that_the_file_can_be_written_writes_it_and_changes_nothing() {
    let (directory, mut store) = store();
    let log = directory.path().join("assay.db-wal");
    let dump = |store: &Store| (store.devices().unwrap().len(), store.anchors_version().unwrap());
    let (before, length) = (dump(&store), log.metadata().unwrap().len());
    store.check_writable().unwrap();
    assert!(log.metadata().unwrap().len() > length, "a page went to the log");
    assert_eq!(dump(&store), before);
    drop(
        Store::open(&directory.path().join("assay.db")).expect("the schema version is what it was"),
    );
    let files: Vec<_> =
        directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(files.iter().all(|name| name.to_string_lossy().starts_with("assay.db")), "{files:?}");
}

#[test]
fn the_check_that_the_file_can_be_written_waits_for_whoever_writes() {
    let (directory, mut store) = store();
    while_somebody_writes(&directory, || store.check_writable().unwrap());
}

/// Does `work`, which has to wait for another process's transaction.
fn while_somebody_writes(directory: &tempfile::TempDir, work: impl FnOnce()) {
    let held = StdDuration::from_millis(300);
    let mut other = Store::open(&directory.path().join("assay.db")).unwrap();
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

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
