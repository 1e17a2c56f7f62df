//! What the CA does with a store, in short: it plans on what is on record, and records.

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{
    Assurance, CertificateFacts, EkFacts, Place, Records, Role, SharedKeyOnRecord, TicketKey,
    TpmModel, Unconfirmed, unchecked,
};
use assay_store::contract::Store;
use assay_store::{
    Act, AnchorRow, AnchorsVersion, AuditEntry, Basis, Change, Entry, IdInQuestion,
    IdentityCertificate, IdentityRole, IkInQuestion, NewEnrolment, NewIdentity, Question, Recorded,
    Snapshot, StoreError, Tags, Waiting, WaitingInQuestion, Whom,
};
use assay_wire::{DeviceId, EkId, Flow, Rights, Scope};
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

/// An identity with a certificate of its own.
pub(crate) fn identity(name: &str, role: IdentityRole, rights: Rights) -> NewIdentity {
    NewIdentity { name: name.into(), role, rights, certificate: identity_certificate() }
}

/// A certificate that no other is equal to. Its serial number has 16 bytes, as ours have.
pub(crate) fn identity_certificate() -> IdentityCertificate {
    let mut params = rcgen::CertificateParams::new(["name".to_owned()]).unwrap();
    let mut serial = [0x40; 16];
    serial[1..]
        .copy_from_slice(&sha256(format!("{:?}", std::time::Instant::now()).as_bytes())[..15]);
    params.serial_number = Some(rcgen::SerialNumber::from_slice(&serial));
    let key = rcgen::KeyPair::generate().unwrap();
    IdentityCertificate::read(params.self_signed(&key).unwrap().der()).unwrap()
}

/// A certificate. `serial` stands for its serial number, its content and its IK.
pub(crate) fn certificate(serial: u8, device: &str, ek_id: EkId) -> CertificateFacts {
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

/// A certificate that waits for ten minutes to be confirmed.
pub(crate) fn sealed(serial: u8, device: &str, ek_id: EkId) -> CertificateFacts {
    CertificateFacts {
        confirm_by: Some(now() + Duration::minutes(10)),
        ..certificate(serial, device, ek_id)
    }
}

/// The act that records a certificate: as active, or as unconfirmed if it has a time to be
/// confirmed.
pub(crate) fn act(certificate: &CertificateFacts, der: Vec<u8>) -> Act {
    let facts = certificate.clone();
    match facts.confirm_by {
        None => Act::Certify(unchecked::issued(facts, der)),
        Some(_) => {
            let random = &mut rand_core::UnwrapErr(getrandom::SysRng);
            Act::Seal(unchecked::sealed(facts, der, &key(), random).unwrap())
        }
    }
}

/// Plans as *renew* does, for the IK of the certificate in force.
pub(crate) fn plan_to_renew(store: &mut Any, renewed: &CertificateFacts) -> Entry {
    let facts = CertificateFacts { confirm_by: Some(renewed.not_after), ..renewed.clone() };
    let (ek, random) = (facts.ek_id, &mut rand_core::UnwrapErr(getrandom::SysRng));
    let der = vec![facts.serial[0]];
    let renewed = unchecked::renewed(facts, der, &key(), random).unwrap();
    let basis = Some(basis(&mut **store, renewing(ek)).unwrap());
    Entry { act: Act::Renew(renewed), basis, audit: None }
}

/// Plans as *certify* does for a device that keeps its certificate meanwhile.
pub(crate) fn plan_to_rekey(store: &mut Any, new: &CertificateFacts) -> Entry {
    let facts = CertificateFacts { confirm_by: Some(new.not_after), ..new.clone() };
    let (ek, ik_id, der) = (facts.ek_id, facts.ik_id, vec![facts.serial[0]]);
    let random = &mut rand_core::UnwrapErr(getrandom::SysRng);
    let new = unchecked::renewed(facts, der, &key(), random).unwrap();
    let basis = Some(basis(&mut **store, rekeying(ek, ik_id)).unwrap());
    Entry { act: Act::Rekey(new), basis, audit: None }
}

/// The question of a rekey.
pub(crate) fn rekeying(ek: EkId, ik_id: [u8; 32]) -> Question {
    let waiting = WaitingInQuestion::OfEk;
    Question { waiting, ..question(ek, "pump-1", ik_id, now()) }
}

/// The question of a renewal.
pub(crate) fn renewing(ek: EkId) -> Question {
    let device = IdInQuestion::Due { derived: id("derived"), other_eks: Vec::new() };
    let ik = IkInQuestion::OfActive;
    Question {
        device,
        ik,
        waiting: WaitingInQuestion::OfIk,
        ..Question::about(ek, &id("derived"), now())
    }
}

/// A question about an EK, a device id and an IK.
pub(crate) fn question(ek: EkId, device: &str, ik_id: [u8; 32], at: OffsetDateTime) -> Question {
    Question { ik: IkInQuestion::Is(ik_id), ..Question::about(ek, &id(device), at) }
}

/// The basis of a plan.
pub(crate) fn basis(store: &mut dyn Store, question: Question) -> Result<Basis, StoreError> {
    let snapshot = store.snapshot(&question)?;
    Ok(Basis { question, snapshot })
}

/// A plan for a certificate.
pub(crate) fn plan(
    store: &mut dyn Store,
    certificate: &CertificateFacts,
) -> Result<Entry, StoreError> {
    let CertificateFacts { ek_id, device_id, ik_id, issued_at, .. } = certificate;
    let question = question(*ek_id, device_id.as_str(), *ik_id, *issued_at);
    let basis = Some(basis(store, question)?);
    Ok(Entry { act: act(certificate, vec![certificate.serial[0]]), basis, audit: None })
}

pub(crate) fn record(store: &mut dyn Store, entry: Entry) -> Result<Recorded, StoreError> {
    Ok(store.record(&scope(), &[entry])?.remove(0))
}

/// Records an act that depends on nothing.
pub(crate) fn enter(store: &mut Any, act: Act) -> Result<(), StoreError> {
    let recorded = record(&mut **store, Entry { act, basis: None, audit: None })?;
    assert_eq!(recorded, Recorded::Done);
    Ok(())
}

pub(crate) fn add(store: &mut Any, certificate: &CertificateFacts) -> Result<(), StoreError> {
    let entry = plan(&mut **store, certificate)?;
    assert_eq!(record(&mut **store, entry)?, Recorded::Done);
    Ok(())
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
    offer_at(store, parent, (ek_id, device, generation), now());
}

pub(crate) fn offer_at(
    store: &mut Any,
    parent: ParentKind,
    (ek_id, device, generation): (EkId, &str, u32),
    at: OffsetDateTime,
) {
    let (assurance, device_id) = (Assurance::VendorCertificate, id(device));
    let basis = basis(&mut **store, Question::about(ek_id, &device_id, at)).unwrap();
    let offer = unchecked::offered_key(ek_id, device_id, assurance, generation, parent);
    let entry = Entry { act: Act::Offer(offer), basis: Some(basis), audit: None };
    assert_eq!(record(&mut **store, entry).unwrap(), Recorded::Done);
}

pub(crate) fn accept(
    store: &mut Any,
    ek_id: EkId,
    device: &str,
    generation: u32,
) -> Result<(), StoreError> {
    accept_at(store, ek_id, device, generation, now())
}

pub(crate) fn accept_at(
    store: &mut Any,
    ek_id: EkId,
    device: &str,
    generation: u32,
    at: OffsetDateTime,
) -> Result<(), StoreError> {
    let (assurance, device_id) = (Assurance::VendorCertificate, id(device));
    let basis = Some(basis(&mut **store, Question::about(ek_id, &device_id, at))?);
    let first_use = unchecked::first_use(ek_id, device_id, assurance, generation, at);
    let entry = Entry { act: Act::Accept(first_use), basis, audit: None };
    assert_eq!(record(&mut **store, entry)?, Recorded::Done);
    Ok(())
}

pub(crate) fn snapshot(store: &mut Any, ek: EkId, at: OffsetDateTime) -> Snapshot {
    store.snapshot(&question(ek, "nobody", [0; 32], at)).unwrap()
}

/// Asks as one who is going to verify an EK does.
pub(crate) fn anchors_version(store: &mut Any) -> AnchorsVersion {
    let device = IdInQuestion::Due { derived: id("nobody"), other_eks: Vec::new() };
    let question = Question { device, ..question(ek(1), "nobody", [0; 32], now()) };
    store.snapshot(&question).unwrap().anchors.unwrap()
}

/// A place in a group that has so many.
pub(crate) fn place(group: &str, quota: u32) -> Place {
    Place { group: group.parse().unwrap(), quota }
}

/// An EK that nobody knows, and which asks after so many seconds.
pub(crate) fn stranger(n: u8, after: i64) -> Waiting {
    stranger_with(ek(n), after)
}

pub(crate) fn stranger_with(ek_id: EkId, after: i64) -> Waiting {
    Waiting {
        ek_id,
        facts: facts("Model 7"),
        flow: Flow::Ticket,
        device_id: Some(id("pump-17")),
        asked_at: now() + Duration::seconds(after),
    }
}

/// What a certificate says of a TPM of this model.
pub(crate) fn facts(model: &str) -> EkFacts {
    let tpm = TpmModel {
        manufacturer: "id:41434D45".into(),
        model: model.into(),
        version: "id:00010002".into(),
    };
    let issuers = vec!["ab".repeat(32).parse().unwrap()];
    EkFacts { vendor: "CN=vendor".into(), tpm: Some(tpm), issuers }
}

pub(crate) fn records(store: &mut Any, ek: EkId, at: OffsetDateTime) -> Records {
    snapshot(store, ek, at).records
}

pub(crate) fn shared_key(store: &mut Any, ek_id: EkId) -> Option<SharedKeyOnRecord> {
    records(store, ek_id, now()).shared_key
}

/// The unconfirmed certificates of an EK and IK.
pub(crate) fn waiting(store: &mut Any, ek: EkId, serial: u8) -> Vec<Unconfirmed> {
    let question = Question {
        waiting: WaitingInQuestion::OfIk,
        ..question(ek, "nobody", sha256(&[serial]), now())
    };
    store.snapshot(&question).unwrap().waiting
}

/// Plans as *confirm* does. Returns `None` if the certificate does not wait to be confirmed.
pub(crate) fn plan_to_confirm(store: &mut Any, serial: u8, at: OffsetDateTime) -> Option<Entry> {
    [ek(1), ek(2)].into_iter().find_map(|ek| {
        let certificate = waiting(store, ek, serial).into_iter().next()?;
        let question = Question::about(ek, &certificate.device_id, at);
        let basis = Some(basis(&mut **store, question).unwrap());
        let confirmed = unchecked::confirmed(certificate, &key(), at).unwrap();
        Some(Entry { act: Act::Activate(confirmed), basis, audit: None })
    })
}

/// Confirms a certificate. Returns `false` if it does not wait to be confirmed.
pub(crate) fn confirm(store: &mut Any, serial: u8, at: OffsetDateTime) -> bool {
    let Some(entry) = plan_to_confirm(store, serial, at) else { return false };
    record(&mut **store, entry).unwrap() == Recorded::Done
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

/// Records decisions that change nothing else.
pub(crate) fn audit(store: &mut Any, entries: impl IntoIterator<Item = AuditEntry>) {
    let entry = |audit| Entry { act: Act::None, basis: None, audit: Some(audit) };
    let entries: Vec<_> = entries.into_iter().map(entry).collect();
    for batch in entries.chunks(10_000) {
        let recorded = store.record(&scope(), batch).unwrap();
        assert!(recorded.iter().all(|recorded| *recorded == Recorded::Done));
    }
}

pub(crate) fn enrolment(ek_id: EkId, device_id: Option<&str>) -> NewEnrolment {
    NewEnrolment {
        ek_id,
        device_id: device_id.map(id),
        recognised: "test".into(),
        reprovision: None,
        legacy_dps_ek: None,
        plain_srk: None,
        disabled: None,
        tags: Tags::new(),
        facts: None,
        added_at: now(),
    }
}

pub(crate) fn vendor_root(n: u8) -> AnchorRow {
    AnchorRow {
        fingerprint: [n; 32],
        certificate: vec![n],
        subject: "CN=vendor".into(),
        role: Role::Root,
        not_after: 0,
        added_at: 0,
    }
}

/// Puts on record that everything was told as an event.
pub(crate) fn tell_all(store: &mut Any) {
    let told = store.untold(assay_store::Told::default(), u32::MAX).unwrap().told;
    assert!(store.mark_told(told, &[7; 16], now()).unwrap());
}
