//! What the CA does with a store, in short: each plans on what is on record, and records.

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{
    Assurance, Enrolment, IssuedCertificate, Records, SharedKeyOnRecord, TicketKey,
};
use assay_store::contract::Store;
use assay_store::{
    Act, AuditEntry, Basis, Change, Entry, FirstUse, KeyOffer, OwnedIdInQuestion as IdInQuestion,
    Question, Recorded, Snapshot, StoreError, Whom,
};
use assay_wire::{DeviceId, EkId, Scope};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::fixture::Any;

pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap()
}

pub(crate) fn ek(n: u8) -> EkId {
    EkId::from([n; 32])
}

pub(crate) fn key() -> TicketKey {
    TicketKey::new([7; TicketKey::LEN])
}

pub(crate) fn id(text: &str) -> DeviceId {
    text.parse().unwrap()
}

pub(crate) fn scope() -> Scope {
    "default".parse().unwrap()
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// Of which `serial` is the serial number, the certificate and the IK.
pub(crate) fn certificate(serial: u8, device: &str, ek_id: EkId) -> IssuedCertificate {
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

/// One that waits for ten minutes to be confirmed.
pub(crate) fn sealed(serial: u8, device: &str, ek_id: EkId) -> IssuedCertificate {
    IssuedCertificate {
        confirm_by: Some(now() + Duration::minutes(10)),
        ..certificate(serial, device, ek_id)
    }
}

pub(crate) fn question(ek: EkId, device: &str, ik_id: [u8; 32], at: OffsetDateTime) -> Question {
    Question {
        ek,
        device: IdInQuestion::Is(id(device)),
        ik_id: Some(ik_id),
        waiting: false,
        now: at,
    }
}

/// What a plan would be made by.
pub(crate) fn basis(store: &mut dyn Store, question: Question) -> Result<Basis, StoreError> {
    let snapshot = store.snapshot(&question)?;
    Ok(Basis { question, snapshot })
}

/// A plan for a certificate: to be in force, or to wait if it has a time to be confirmed.
pub(crate) fn plan(
    store: &mut dyn Store,
    certificate: &IssuedCertificate,
    at: OffsetDateTime,
) -> Result<Act, StoreError> {
    let ik_id = sha256(&certificate.ik_spki);
    let device = certificate.device_id.as_str();
    let basis = basis(store, question(certificate.ek_id, device, ik_id, at))?;
    let certificate = certificate.clone();
    Ok(match certificate.confirm_by {
        None => Act::Certify { basis, certificate },
        Some(_) => {
            let random = &mut rand_core::UnwrapErr(getrandom::SysRng);
            let stored = key().encrypt(&certificate.der, &certificate.serial, random).unwrap();
            Act::Seal { basis, certificate, stored }
        }
    })
}

pub(crate) fn record(store: &mut dyn Store, act: Act) -> Result<Recorded, StoreError> {
    Ok(store.record(&scope(), &[Entry { act, audit: None }])?.remove(0))
}

pub(crate) fn add_at(
    store: &mut Any,
    certificate: &IssuedCertificate,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    let act = plan(&mut **store, certificate, at)?;
    assert_eq!(record(&mut **store, act)?, Recorded::Done);
    Ok(())
}

pub(crate) fn add(store: &mut Any, certificate: &IssuedCertificate) -> Result<(), StoreError> {
    add_at(store, certificate, now())
}

pub(crate) fn offer(store: &mut Any, ek_id: EkId, device: &str, generation: u32) {
    offer_to(store, ParentKind::Import, ek_id, device, generation);
}

pub(crate) fn offer_to(
    store: &mut Any,
    parent: ParentKind,
    ek_id: EkId,
    device: &str,
    generation: u32,
) {
    let assurance = Assurance::VendorCertificate;
    let offer = KeyOffer { ek_id, device_id: id(device), assurance, generation, parent };
    offer_key(store, offer, now());
}

pub(crate) fn offer_key(store: &mut Any, offer: KeyOffer, at: OffsetDateTime) {
    let question = Question { ik_id: None, ..question(offer.ek_id, offer.device_id.as_str(), [0; 32], at) };
    let basis = basis(&mut **store, question).unwrap();
    assert_eq!(record(&mut **store, Act::Offer { basis, offer }).unwrap(), Recorded::Done);
}

pub(crate) fn accept(
    store: &mut Any,
    ek_id: EkId,
    device: &str,
    generation: u32,
) -> Result<(), StoreError> {
    let assurance = Assurance::VendorCertificate;
    let first_use = FirstUse { ek_id, device_id: id(device), assurance, generation };
    let question = Question { ik_id: None, ..question(ek_id, device, [0; 32], now()) };
    let basis = basis(&mut **store, question)?;
    assert_eq!(record(&mut **store, Act::Accept { basis, first_use })?, Recorded::Done);
    Ok(())
}

pub(crate) fn snapshot(store: &mut Any, ek: EkId, at: OffsetDateTime) -> Snapshot {
    store.snapshot(&question(ek, "nobody", [0; 32], at)).unwrap()
}

pub(crate) fn records(store: &mut Any, ek: EkId, at: OffsetDateTime) -> Records {
    snapshot(store, ek, at).records
}

pub(crate) fn shared_key(store: &mut Any, ek_id: EkId) -> Option<SharedKeyOnRecord> {
    records(store, ek_id, now()).shared_key
}

/// The certificates that wait for an EK and IK, decrypted; under another key none is.
pub(crate) fn waiting(
    store: &mut Any,
    ek: EkId,
    ik_id: [u8; 32],
    key: &TicketKey,
) -> Vec<([u8; 16], Vec<u8>)> {
    let question = Question { waiting: true, ..question(ek, "nobody", ik_id, now()) };
    let waiting = store.snapshot(&question).unwrap().waiting.into_iter();
    let decrypted = waiting.filter_map(|waiting| {
        let serial = waiting.certificate.serial;
        Some((serial, key.decrypt(&waiting.stored, &serial)?))
    });
    decrypted.collect()
}

/// As *confirm* plans with a certificate that waits; `None` if it does not.
pub(crate) fn plan_to_confirm(store: &mut Any, serial: u8, at: OffsetDateTime) -> Option<Act> {
    [ek(1), ek(2)].into_iter().find_map(|ek| {
        let ik_id = sha256(&[serial]);
        let wanted = Question { waiting: true, ..question(ek, "nobody", ik_id, at) };
        let found = store.snapshot(&wanted).unwrap().waiting.into_iter().next()?;
        let device = IdInQuestion::Is(found.certificate.device_id.clone());
        let basis = basis(&mut **store, Question { device, ..wanted }).unwrap();
        // Its name is one that an operator gave.
        let named = Enrolment {
            device_id: Some(found.certificate.device_id.clone()),
            ..Enrolment::default()
        };
        let records = Records { enrolment: Some(named), ..basis.snapshot.records.clone() };
        let der = key().decrypt(&found.stored, &found.certificate.serial).unwrap();
        let confirmed = found.certificate.confirm(&records, at).unwrap();
        Some(Act::Activate { basis, confirmed, der })
    })
}

/// As *confirm* does with a certificate that waits; `false` if it does not.
pub(crate) fn confirm(store: &mut Any, serial: u8, at: OffsetDateTime) -> bool {
    let Some(act) = plan_to_confirm(store, serial, at) else { return false };
    record(&mut **store, act).unwrap() == Recorded::Done
}

pub(crate) fn decision(n: u32, device: Option<Whom>) -> AuditEntry {
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

/// Writes decisions alone.
pub(crate) fn audit(store: &mut Any, entries: impl IntoIterator<Item = AuditEntry>) {
    let entry = |audit| Entry { act: Act::None, audit: Some(audit) };
    let entries: Vec<_> = entries.into_iter().map(entry).collect();
    for batch in entries.chunks(10_000) {
        let recorded = store.record(&scope(), batch).unwrap();
        assert!(recorded.iter().all(|recorded| *recorded == Recorded::Done));
    }
}
