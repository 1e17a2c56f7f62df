//! What the CA has on record of a client: whether its certificate or its token is good now.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::doorkeeper::{Good, LoggedIn, NotGood, Register};
use assay_ca_core::{
    CLOCK_SKEW, Confirmed, Login, LoginRefused, Records, SealedOnRecord, Shown, Token, Unconfirmed,
};
use assay_store::{
    Act, AuditEntry, Basis, CertificateStatus, Change, Database, Entry, Question, Recorded, Store,
    StoreError, Whom,
};
use assay_wire::{ClientId, DeviceId, EkId, Identity, Rights};
use time::OffsetDateTime;
use tracing::info;

use crate::ca::Ca;
use crate::clock::Gate;

/// The register that answers from the store.
///
/// It opens the store several times. So a look at a certificate never waits for a login, and
/// neither waits for the recording of a first use, which may have to wait for another process.
pub struct StoreRegister {
    ca: Box<dyn Fn() -> Arc<Ca> + Send + Sync>,
    certificates: Vec<Mutex<Box<dyn Store>>>,
    next: AtomicUsize,
    logins: Mutex<Box<dyn Store>>,
    writer: Mutex<Box<dyn Store>>,
    /// How many certificates that waited are being confirmed.
    confirming: AtomicUsize,
    gate: Arc<Gate>,
}

impl Register for StoreRegister {
    fn certificate(&self, certificate: &ClientCertificate) -> Result<Good, NotGood> {
        // A worker may come in, to answer that nothing is answered.
        if certificate.identity != Identity::Worker {
            self.refuse_if_unfit()?;
        }
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let reader = &self.certificates[next % self.certificates.len()];
        let (ca, now) = ((self.ca)(), OffsetDateTime::now_utc());
        let decide = |store: &mut dyn Store| decide_certificate(store, &ca, certificate, now);
        let Decided { value, first_use } = decide(&mut **lock(reader))?;
        if first_use.is_none() {
            return Ok(value);
        }
        // Those who wait for the store hold a place that connected devices need, too.
        let confirming = Counted::among(&self.confirming, CONFIRMING)
            .ok_or_else(|| unknown("too many certificates are being confirmed"))?;
        let good = self.record(&ca, decide)?;
        drop(confirming);
        info!(client = %certificate.identity, "confirmed a certificate that waited by its handshake");
        Ok(good)
    }

    fn login(&self, user_name: &str, password: &[u8]) -> Result<LoggedIn, NotGood> {
        self.refuse_if_unfit()?;
        let (ca, now) = ((self.ca)(), OffsetDateTime::now_utc());
        let token = Token::parse(user_name, password).map_err(refused)?;
        let decide = |store: &mut dyn Store| decide_login(store, &ca, &token, now);
        let Decided { value, first_use } = decide(&mut **lock(&self.logins))?;
        let login = if first_use.is_none() { value } else { self.record(&ca, decide)? };
        Ok(logged_in(&ca, &login, now))
    }
}

impl StoreRegister {
    /// Opens the store. Nobody is found good while `gate` is closed. `ca` returns the keys and
    /// rules that are good now.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(
        database: &Database,
        gate: Arc<Gate>,
        ca: impl Fn() -> Arc<Ca> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let open = || database.open().map(Mutex::new);
        let certificates = (0..CERTIFICATES).map(|_| open()).collect::<Result<_, _>>()?;
        let (next, confirming) = Default::default();
        let (logins, writer) = (open()?, open()?);
        Ok(Self { ca: Box::new(ca), certificates, next, logins, writer, confirming, gate })
    }

    fn refuse_if_unfit(&self) -> Result<(), NotGood> {
        self.gate.allows(OffsetDateTime::now_utc()).map_err(unknown)
    }

    /// Decides again, with nobody else of this process writing, and records the first use. Of
    /// several that come at once, the later ones find it on record.
    fn record<T>(
        &self,
        ca: &Ca,
        decide: impl Fn(&mut dyn Store) -> Result<Decided<T>, NotGood>,
    ) -> Result<T, NotGood> {
        let mut writer = lock(&self.writer);
        for _ in 0..ATTEMPTS {
            let Decided { value, first_use } = decide(&mut **writer)?;
            let Some(entry) = first_use else { return Ok(value) };
            let recorded = writer.record(&ca.scope, &[entry]).map_err(unknown)?;
            if recorded == [Recorded::Done] {
                return Ok(value);
            }
        }
        Err(unknown("the record changed each time before a first use was recorded"))
    }
}

/// One of a number that is limited, for as long as this value lives.
struct Counted<'c>(&'c AtomicUsize);

impl<'c> Counted<'c> {
    fn among(count: &'c AtomicUsize, limit: usize) -> Option<Self> {
        let counted = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < limit).then_some(counted)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a client is let in by.
pub struct Decided<T> {
    /// It holds once `first_use` is on record.
    pub value: T,
    /// A certificate or a key comes into force by being used.
    pub first_use: Option<Entry>,
}

/// Decides whether a certificate lets in whom it names.
///
/// It does if that very one is on record, active, and made for whom it names. What a stolen issuing
/// key signs is on no record, whatever name and number it has. A device's certificate that waits
/// for its confirmation becomes active by the handshake; see [`Shown::by_handshake`].
///
/// # Errors
/// It does not, or that cannot be found out.
pub fn decide_certificate(
    store: &mut dyn Store,
    ca: &Ca,
    certificate: &ClientCertificate,
    now: OffsetDateTime,
) -> Result<Decided<Good>, NotGood> {
    let ClientCertificate { identity, serial, sha256, .. } = certificate;
    let found = match identity {
        Identity::Device { device_id, .. } => store
            .certificate_status(device_id, serial, sha256)
            .map(|status| (status, Rights::default())),
        Identity::Operator | Identity::Worker | Identity::Backend { .. } => {
            store.identity_status(identity, sha256)
        }
    };
    let (status, rights) = found.map_err(unknown)?;
    match status {
        CertificateStatus::Active => Ok(Decided { value: Good { rights }, first_use: None }),
        CertificateStatus::Unconfirmed(ek) => {
            match store.sealed_certificate(&ek, sha256, now).map_err(unknown)? {
                SealedOnRecord::Unconfirmed { certificate, records } => {
                    let entry = confirm(*certificate, &records, ca, sha256, now)?;
                    Ok(Decided { value: Good::default(), first_use: Some(entry) })
                }
                SealedOnRecord::Active { .. } => {
                    Err(unknown("another connection confirmed its certificate at this moment"))
                }
                SealedOnRecord::Ended => Err(refused("its certificate was not confirmed in time")),
            }
        }
        status => Err(refused(format!("its certificate is {status}"))),
    }
}

fn confirm(
    certificate: Unconfirmed,
    records: &Records,
    ca: &Ca,
    sha256: &[u8; 32],
    now: OffsetDateTime,
) -> Result<Entry, NotGood> {
    let (since, ek_id) = (Instant::now(), certificate.ek_id);
    let basis = Some(Basis::of_waiting(&certificate, records, now));
    let keys = ca.ticket_keys.get().map_err(unknown)?;
    let shown = Shown::by_handshake(certificate, sha256).map_err(refused)?;
    let confirmed = Confirmed::decide(shown, records, keys, now).map_err(refused)?;
    let audit = Some(connected(confirmed.device_id(), ek_id, since, now));
    Ok(Entry { act: Act::Activate(confirmed), basis, audit })
}

/// The audit of a device that connected with something that it had not used before.
fn connected(device: &DeviceId, ek_id: EkId, since: Instant, now: OffsetDateTime) -> AuditEntry {
    AuditEntry {
        time: now,
        client: ClientId::from(device),
        action: "connect",
        ek_id: Some(ek_id),
        device: Some(Whom::Proven(device.clone())),
        change: Change::Made,
        refusal: None,
        duration_us: since.elapsed().as_micros().try_into().unwrap_or(u32::MAX),
    }
}

/// Decides whether a token lets its device in: a device's shared key signed it. If a device id went
/// from one EK to another, both have been offered a key under it.
///
/// # Errors
/// It does not, or that cannot be found out.
pub fn decide_login(
    store: &mut dyn Store,
    ca: &Ca,
    token: &Token,
    now: OffsetDateTime,
) -> Result<Decided<Login>, NotGood> {
    let (since, offered) = (Instant::now(), ca.profile.offer().map_err(refused)?);
    let masters = ca.masters.get().map_err(unknown)?;
    let mut refusal = LoginRefused::NoKey { device_id: token.device_id().clone() };
    for holder in store.shared_key_holders(token.device_id()).map_err(unknown)? {
        let question = Question::about(holder.ek_id, token.device_id(), now);
        let snapshot = store.snapshot(&question).map_err(unknown)?;
        let (scope, records) = (&ca.scope, &snapshot.records);
        match Login::decide(offered, token, &holder, scope, masters, records, now) {
            Ok(login) => {
                let act = login.first_use(records).map(Act::Accept);
                let basis = Some(Basis { question, snapshot });
                let audit = Some(connected(login.device_id(), holder.ek_id, since, now));
                let first_use = act.map(|act| Entry { act, basis, audit });
                return Ok(Decided { value: login, first_use });
            }
            Err(refused) => refusal = refused,
        }
    }
    Err(refused(refusal))
}

fn logged_in(ca: &Ca, login: &Login, now: OffsetDateTime) -> LoggedIn {
    let identity =
        Identity::Device { scope: ca.scope.clone(), device_id: login.device_id().clone() };
    let left = login.expires_at() + CLOCK_SKEW - now;
    LoggedIn { identity, expires_in: left.max(time::Duration::ZERO).unsigned_abs() }
}

fn lock(store: &Mutex<Box<dyn Store>>) -> MutexGuard<'_, Box<dyn Store>> {
    // After a panic elsewhere the store is as good as before: an open transaction was rolled back.
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(reason: impl ToString) -> NotGood {
    NotGood::Refused(reason.to_string())
}

fn unknown(error: impl ToString) -> NotGood {
    NotGood::Unknown(error.to_string())
}

/// Connections for looks at certificates. After each revocation all devices that are connected are
/// looked at again, and a store on another machine answers each after a round trip.
const CERTIFICATES: usize = 4;
/// Certificates that may be confirmed at once by their first handshake. The broker asks about
/// 64 certificates at once, so others still get an answer while the store takes long to write.
const CONFIRMING: usize = 8;
/// How often a first use is decided, if the record that it was decided by changes each time.
const ATTEMPTS: u32 = 5;

#[cfg(test)]
mod tests {
    use assay_ca_core::{Assurance, CertificateFacts, unchecked};
    use assay_store::{NewEnrolment, Tags};
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::directory::Directory;
    use crate::random::random;

    #[test]
    fn a_certificate_that_waits_is_confirmed_by_the_first_handshake_with_it() {
        let desk = Desk::open();
        let mut store = desk.database.open().unwrap();
        assert_eq!(store.certificates().unwrap()[0].status, "unconfirmed");
        for _ in 0..2 {
            assert_eq!(desk.register.certificate(&desk.shown), Ok(Good::default()));
            assert_eq!(store.certificates().unwrap()[0].status, "active");
        }
        assert_eq!(store.devices().unwrap().len(), 1);
        let [decision] = &store.audit(10).unwrap()[..] else { panic!("one decision") };
        assert_eq!((&*decision.action, decision.code), ("connect", None));
        assert_eq!(decision.proven.as_deref(), Some(DERIVED));
    }

    #[test]
    fn a_renewed_certificate_comes_into_force_by_the_first_handshake_and_supersedes_the_old_one() {
        let desk = Desk::open();
        assert_eq!(desk.register.certificate(&desk.shown), Ok(Good::default()));
        let renewed = desk.renew();
        let mut store = desk.database.open().unwrap();
        let mut statuses = || {
            let rows = store.certificates().unwrap().into_iter();
            rows.map(|row| row.status).collect::<Vec<_>>()
        };
        assert_eq!(statuses(), ["active", "unconfirmed"]);
        assert_eq!(
            desk.register.certificate(&desk.shown),
            Ok(Good::default()),
            "the old one is good"
        );
        assert_eq!(statuses(), ["active", "unconfirmed"]);
        let other = ClientCertificate { sha256: [7; 32], ..renewed.clone() };
        assert!(matches!(desk.register.certificate(&other), Err(NotGood::Refused(_))));
        for _ in 0..2 {
            assert_eq!(desk.register.certificate(&renewed), Ok(Good::default()));
            assert_eq!(statuses(), ["superseded", "active"]);
        }
        assert!(matches!(desk.register.certificate(&desk.shown), Err(NotGood::Refused(_))));
    }

    #[test]
    fn few_confirmations_wait_for_the_store_at_once_and_others_are_told_to_try_again() {
        let desk = Desk::open();
        desk.register.confirming.store(CONFIRMING, Ordering::Relaxed);
        let answer = desk.register.certificate(&desk.shown);
        assert!(matches!(answer, Err(NotGood::Unknown(_))), "{answer:?}");
        assert_eq!(desk.register.confirming.load(Ordering::Relaxed), CONFIRMING);

        desk.register.confirming.store(CONFIRMING - 1, Ordering::Relaxed);
        assert_eq!(desk.register.certificate(&desk.shown), Ok(Good::default()));
        assert_eq!(desk.register.confirming.load(Ordering::Relaxed), CONFIRMING - 1);
    }

    #[test]
    fn another_certificate_with_the_serial_number_of_one_that_waits_confirms_nothing() {
        let desk = Desk::open();
        let other = ClientCertificate { sha256: [7; 32], ..desk.shown.clone() };
        let answer = desk.register.certificate(&other);
        assert!(matches!(answer, Err(NotGood::Refused(_))), "{answer:?}");
        let mut store = desk.database.open().unwrap();
        assert_eq!(store.certificates().unwrap()[0].status, "unconfirmed");
    }

    #[test]
    fn a_certificate_that_waits_lets_no_device_in_that_is_no_longer_welcome() {
        let desk = Desk::open();
        let mut store = desk.database.open().unwrap();
        let enrolment = NewEnrolment {
            ek_id: [17; 32].into(),
            device_id: Some("pump-18".parse().unwrap()),
            recognised: "test".into(),
            reprovision: None,
            legacy_dps_ek: None,
            plain_srk: None,
            disabled: None,
            tags: Tags::new(),
            facts: None,
            added_at: OffsetDateTime::now_utc(),
        };
        store.enroll(&[enrolment]).unwrap().remove(0).unwrap();
        let Err(NotGood::Refused(reason)) = desk.register.certificate(&desk.shown) else {
            panic!("the device has another name now")
        };
        assert!(reason.contains("pump-18"), "{reason}");
        assert_eq!(store.certificates().unwrap()[0].status, "unconfirmed");
    }

    #[test]
    fn a_database_that_cannot_be_read_is_no_refusal() {
        let desk = Desk::open();
        // What SQLite finds at its next look is no database.
        for file in ["assay.db", "assay.db-wal"] {
            std::fs::write(desk.parent.path().join("ca").join(file), [0xFF; 8192]).unwrap();
        }
        let answer = desk.register.certificate(&desk.shown);
        assert!(matches!(answer, Err(NotGood::Unknown(_))), "{answer:?}");
    }

    /// A device id of the form that follows from an EK.
    const DERIVED: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// A CA with a sealed certificate that nobody has confirmed.
    struct Desk {
        parent: tempfile::TempDir,
        database: Database,
        register: StoreRegister,
        shown: ClientCertificate,
        facts: CertificateFacts,
    }

    impl Desk {
        fn open() -> Self {
            let parent = tempfile::tempdir().unwrap();
            Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
            let directory = Directory::open(&parent.path().join("ca")).unwrap();
            let (database, ca) = (directory.database().unwrap(), Arc::new(directory.ca().unwrap()));
            let now = OffsetDateTime::now_utc();
            let facts = CertificateFacts {
                serial: [0x41; 16],
                not_before: now,
                not_after: now + time::Duration::DAY,
                device_id: DERIVED.parse().unwrap(),
                ek_id: [17; 32].into(),
                ik_id: [18; 32],
                assurance: Assurance::VendorCertificate,
                issued_at: now,
                confirm_by: Some(now + time::Duration::HOUR),
            };
            let (der, device_id) = (vec![0x30, 0x00], facts.device_id.clone());
            let shown = ClientCertificate {
                identity: Identity::Device { scope: ca.scope.clone(), device_id },
                not_after: facts.not_after.into(),
                serial: facts.serial.to_vec(),
                sha256: Sha256::digest(&der).into(),
            };
            let sealed = unchecked::sealed(
                facts.clone(),
                der,
                ca.ticket_keys.get().unwrap().in_use(now),
                &mut random(),
            )
            .unwrap();
            let entry = Entry { act: Act::Seal(sealed), basis: None, audit: None };
            let mut store = directory.store().unwrap();
            assert_eq!(store.record(&ca.scope, &[entry]).unwrap(), [Recorded::Done]);
            let register =
                StoreRegister::open(&database, Arc::new(Gate::open()), move || Arc::clone(&ca))
                    .unwrap();
            Self { parent, database, register, shown, facts }
        }

        /// Puts a renewed certificate on record, that waits.
        fn renew(&self) -> ClientCertificate {
            let directory = Directory::open(&self.parent.path().join("ca")).unwrap();
            let ca = directory.ca().unwrap();
            let facts = CertificateFacts {
                serial: [0x42; 16],
                issued_at: self.facts.issued_at + time::Duration::SECOND,
                confirm_by: Some(self.facts.not_after),
                ..self.facts.clone()
            };
            let (der, serial) = (vec![0x30, 0x01, 0x00], facts.serial.to_vec());
            let sha256 = Sha256::digest(&der).into();
            let key = ca.ticket_keys.get().unwrap().in_use(facts.issued_at);
            let renewed = unchecked::renewed(facts, der, key, &mut random()).unwrap();
            let entry = Entry { act: Act::Renew(renewed), basis: None, audit: None };
            let mut store = directory.store().unwrap();
            assert_eq!(store.record(&ca.scope, &[entry]).unwrap(), [Recorded::Done]);
            ClientCertificate { serial, sha256, ..self.shown.clone() }
        }
    }
}
