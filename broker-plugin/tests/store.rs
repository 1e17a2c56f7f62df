//! What the database promises, whoever calls it.

use assay_broker_plugin::store::{
    AnchorRow, AuditEntry, CertificateStatus, EnrolError, Enrolled, NewEnrolment, Store, StoreError,
};
use assay_ca_core::{Assurance, IssuedCertificate, Reprovision};
use assay_wire::{DeviceId, EkId, ProblemCode};
use time::{Duration, OffsetDateTime};

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

fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

fn certificate(serial: u8, device: &str, ek_id: EkId) -> IssuedCertificate {
    IssuedCertificate {
        der: vec![serial].into(),
        serial: [serial; 16],
        not_before: now(),
        not_after: now() + Duration::days(90),
        device_id: id(device),
        ek_id,
        ik_spki: vec![serial],
        assurance: Assurance::VendorCertificate,
        confirm_by: None,
    }
}

fn add(store: &mut Store, certificate: &IssuedCertificate) -> Result<(), StoreError> {
    store.transaction(|transaction| transaction.add_certificate(certificate, now()))
}

fn enrolment(ek_id: EkId, device_id: Option<&str>) -> NewEnrolment {
    NewEnrolment {
        ek_id,
        device_id: device_id.map(id),
        recognised: "test".into(),
        reprovision: None,
        legacy_dps_ek: None,
        disabled: None,
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
    assert_eq!(store.certificate_status(&[1; 16]).unwrap(), CertificateStatus::Active);
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    assert_eq!(store.certificate_status(&[1; 16]).unwrap(), CertificateStatus::Superseded);
    assert_eq!(store.certificate_status(&[2; 16]).unwrap(), CertificateStatus::Active);
    assert_eq!(store.devices().unwrap().len(), 1);
}

#[test]
fn a_certificate_nobody_issued_is_unknown() {
    let (_directory, store) = store();
    assert_eq!(store.certificate_status(&[9; 16]).unwrap(), CertificateStatus::Unknown);
}

#[test]
fn another_eks_certificate_under_the_same_device_id_changes_nothing() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    assert!(add(&mut store, &certificate(2, "pump-17", ek(2))).is_err());
    assert_eq!(store.certificate_status(&[1; 16]).unwrap(), CertificateStatus::Active);
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
        let won = std::thread::scope(|scope| {
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
    let result: Result<(), _> = store.transaction(|transaction| {
        transaction.add_certificate(&certificate(1, "pump-17", ek(1)), now())?;
        Err(StoreError::Version(0))
    });
    assert!(result.is_err());
    assert!(store.devices().unwrap().is_empty());
}

#[test]
fn an_ek_is_enrolled_once_and_an_id_is_granted_once() {
    let (_directory, mut store) = store();
    enroll(&mut store, ek(1), Some("pump-17")).unwrap();
    assert!(matches!(enroll(&mut store, ek(1), None), Err(EnrolError::Enrolled(_))));
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
    assert!(matches!(enroll(&mut store, ek(1), Some("pump-18")), Err(EnrolError::Registered(_, _))));
    assert!(matches!(enroll(&mut store, ek(2), Some("pump-17")), Err(EnrolError::DeviceIdTaken(_, _))));
    enroll(&mut store, ek(1), Some("pump-17")).unwrap();
}

#[test]
fn disabling_reaches_enrolled_and_registered_eks() {
    let (_directory, mut store) = store();
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    enroll(&mut store, ek(2), None).unwrap();
    assert!(store.set_disabled(&ek(1), true, now()).unwrap());
    assert!(store.set_disabled(&ek(2), true, now()).unwrap());
    assert!(!store.set_disabled(&ek(3), true, now()).unwrap());
    assert_eq!(store.certificate_status(&[1; 16]).unwrap(), CertificateStatus::Disabled);
    assert!(store.enrolments().unwrap().iter().all(|row| row.disabled));
    store.set_disabled(&ek(1), false, now()).unwrap();
    assert_eq!(store.certificate_status(&[1; 16]).unwrap(), CertificateStatus::Active);
}

#[test]
fn whatever_revokes_is_counted() {
    let (_directory, mut store) = store();
    let mut seen = store.revocations().unwrap();
    let mut counted = |store: &Store| {
        let before = std::mem::replace(&mut seen, store.revocations().unwrap());
        seen > before
    };
    add(&mut store, &certificate(1, "pump-17", ek(1))).unwrap();
    enroll(&mut store, ek(2), None).unwrap();
    assert!(!counted(&store), "nothing is revoked yet");
    store.set_disabled(&ek(1), true, now()).unwrap();
    assert!(counted(&store), "a device was disabled");
    store.set_disabled(&ek(2), true, now()).unwrap();
    assert!(counted(&store), "an enrolment was disabled");
    store.set_disabled(&ek(1), false, now()).unwrap();
    assert!(counted(&store), "a device was enabled, which shortens the revocation list");
    add(&mut store, &certificate(2, "pump-17", ek(1))).unwrap();
    assert!(counted(&store), "a certificate was superseded");
}

#[test]
fn a_change_of_anchors_changes_their_version() {
    let (_directory, store) = store();
    let anchor = |n: u8| AnchorRow {
        fingerprint: [n; 32],
        certificate: vec![n],
        subject: "CN=vendor".into(),
        root: true,
        not_after: 0,
        added_at: 0,
    };
    let mut versions = vec![store.anchors_version().unwrap()];
    assert!(store.add_anchor(&anchor(1)).unwrap());
    versions.push(store.anchors_version().unwrap());
    assert!(!store.add_anchor(&anchor(1)).unwrap());
    assert_eq!(store.anchors_version().unwrap(), versions[1]);
    assert!(store.add_anchor(&anchor(2)).unwrap());
    versions.push(store.anchors_version().unwrap());
    assert!(store.remove_anchor(&[1; 32]).unwrap());
    versions.push(store.anchors_version().unwrap());
    assert!(store.add_anchor(&anchor(3)).unwrap());
    versions.push(store.anchors_version().unwrap());
    for (n, version) in versions.iter().enumerate() {
        assert!(!versions[..n].contains(version), "{n}");
    }
}

#[test]
fn the_audit_forgets_the_oldest_beyond_its_limit() {
    let (_directory, mut store) = store();
    let entry = |n: u32| AuditEntry {
        time: 0,
        client: "c".parse().unwrap(),
        action: "challenge",
        ek_id: Some(ek(1)),
        device_id: None,
        refusal: Some((ProblemCode::EkWeak, "weak".into())),
        duration_us: n,
    };
    let over = 5;
    store.transaction(|transaction| (0..100_000 + over).try_for_each(|n| transaction.audit(&entry(n)))).unwrap();
    let rows = store.audit(u32::MAX).unwrap();
    assert_eq!(rows.len(), 100_000);
    assert_eq!(rows[0].duration_us, over);
    assert_eq!(rows[0].code, Some(ProblemCode::EkWeak.number()));
}
