//! Eight processes work on one database and are killed at any moment.
//!
//! Each process runs the test that started it. Its environment tells it that it is one of the
//! eight.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{Assurance, CertificateFacts, unchecked};
use assay_store::{
    Act, AuditEntry, Change, Changes, Entry, NewEnrolment, Question, Recorded, StoreError, Tags,
    WaitingInQuestion, Whom,
};
use assay_tests::Postgres as Server;
use assay_wire::EkId;

use crate::acts::*;
use crate::fixture::{Any, Fixture, open};

#[test]
fn invariants_hold_on_sqlite_though_processes_are_killed() {
    if env::var_os(DATABASE).is_some() {
        return run();
    }
    let test = "race::invariants_hold_on_sqlite_though_processes_are_killed";
    race(test, &Fixture::sqlite(), Duration::from_secs(6), || {});
}

#[test]
fn invariants_hold_on_postgresql_though_processes_and_the_server_are_killed() {
    if env::var_os(DATABASE).is_some() {
        return run();
    }
    let test = "race::invariants_hold_on_postgresql_though_processes_and_the_server_are_killed";
    let server = Arc::new(Server::start().unwrap());
    let fixture = Fixture::on(Arc::clone(&server));
    race(test, &fixture, Duration::from_secs(9), move || server.crash().unwrap());
}

/// Kills and starts processes for some time, and makes `trouble` twice meanwhile. A machine that is
/// busy gets more time, so that something happens that can be judged.
fn race(test: &str, fixture: &Fixture, time: Duration, mut trouble: impl FnMut()) {
    let log = fixture.directory.path().join("log");
    let (started, mut troubled, mut killed) = (Instant::now(), 0, 0);
    let mut racers: Vec<_> = (0..RACERS).map(|n| racer(test, fixture, &log, n)).collect();
    let is_enough = || Told::read(&log).recorded.len() > ENOUGH;
    while started.elapsed() < time || (!is_enough() && started.elapsed() < 10 * time) {
        thread::sleep(Duration::from_millis(fastrand::u64(50..150)));
        let victim = fastrand::usize(..racers.len());
        kill(&mut racers[victim]);
        killed += 1;
        racers[victim] = racer(test, fixture, &log, RACERS + killed);
        if started.elapsed() > time / 3 * (troubled + 1) && troubled < 2 {
            troubled += 1;
            trouble();
        }
    }
    racers.iter_mut().for_each(kill);
    let told = Told::read(&log);
    assert!(told.recorded.len() > ENOUGH && killed > 20, "{} of {killed}", told.recorded.len());
    judge(&mut fixture.store(), &told);
}

/// What the racers wrote to the log after the store had answered.
#[derive(Default)]
struct Told {
    /// Entries that were recorded, by their clients.
    recorded: BTreeSet<String>,
    /// Serial numbers of certificates that were superseded.
    superseded: BTreeSet<String>,
    /// For each EK, a generation that must no longer be accepted.
    retired: HashMap<u8, u32>,
}

impl Told {
    fn read(log: &Path) -> Self {
        let mut told = Self::default();
        for line in fs::read_to_string(log).unwrap().lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["recorded", client] => drop(told.recorded.insert(client.to_owned())),
                ["superseded", serial] => drop(told.superseded.insert(serial.to_owned())),
                ["retired", ek, generation] => {
                    let retired = told.retired.entry(ek.parse().unwrap()).or_default();
                    *retired = (*retired).max(generation.parse().unwrap());
                }
                // The last line of a racer that was killed may be incomplete.
                _ if line.starts_with("violated") => panic!("{line}"),
                _ => {}
            }
        }
        told
    }
}

fn judge(store: &mut Any, told: &Told) {
    let certificates = store.certificates().unwrap();
    let audit = store.audit(u32::MAX).unwrap();
    let audited: Vec<_> = audit.iter().map(|row| row.client.clone()).collect();
    let clients: BTreeSet<_> = audited.iter().cloned().collect();
    assert_eq!(clients.len(), audited.len(), "an entry was recorded twice");
    assert!(told.recorded.is_subset(&clients), "an entry was lost");
    let of = |action: &str| -> BTreeSet<_> {
        let rows = audit.iter().filter(|row| row.action == action);
        rows.map(|row| row.client.split('-').next().unwrap().to_owned()).collect()
    };
    let serials = |keep: &dyn Fn(&assay_store::CertificateRow) -> bool| -> BTreeSet<_> {
        let kept = certificates.iter().filter(|row| keep(row));
        kept.map(|row| hex::encode(&row.serial)).collect()
    };
    let issued = of("certify").union(&of("enroll")).cloned().collect();
    assert_eq!(serials(&|_| true), issued, "a certificate without its audit, or the reverse");
    let confirmed = of("certify").union(&of("confirm")).cloned().collect();
    assert_eq!(serials(&|row| row.der.is_some()), confirmed, "the same of a confirmation");

    let mut active = BTreeMap::new();
    for row in certificates.iter().filter(|row| row.status == "active") {
        *active.entry(row.device_id.clone()).or_insert(0) += 1;
    }
    assert!(active.values().all(|count| *count == 1), "{active:?}");
    let devices = store.devices().unwrap();
    let eks: BTreeSet<_> = devices.iter().map(|device| device.ek_id).collect();
    let ids: BTreeSet<_> = devices.iter().map(|device| device.device_id.clone()).collect();
    assert_eq!((eks.len(), ids.len()), (devices.len(), devices.len()));

    let ended = serials(&|row| ["superseded", "revoked"].contains(&&*row.status));
    assert!(told.superseded.is_subset(&ended), "a revocation was lost");
    let changes = store.changes().unwrap();
    assert!(changes.connections >= i64::try_from(told.superseded.len()).unwrap(), "{changes:?}");
    for (ek_number, generation) in &told.retired {
        let key = shared_key(store, ek(*ek_number)).unwrap();
        assert!(key.generation >= *generation, "a retired generation is back: {key:?}");
    }
}

fn racer(test: &str, fixture: &Fixture, log: &Path, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test])
        .env(DATABASE, &fixture.address)
        .env("ASSAY_TEST_LOG", log)
        .env("ASSAY_TEST_SEED", seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn kill(racer: &mut Child) {
    racer.kill().unwrap();
    racer.wait().unwrap();
}

/// What each process of a race does.
fn run() {
    let variable = |name| env::var(name).unwrap();
    let mut racer = Racer {
        store: open(&variable(DATABASE)).open().unwrap(),
        log: variable("ASSAY_TEST_LOG"),
        random: fastrand::Rng::with_seed(variable("ASSAY_TEST_SEED").parse().unwrap()),
        generations: HashMap::new(),
        changes: Changes::default(),
    };
    // The test kills this process. The limit is for the case that the test died.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        if let Err(error) = racer.act() {
            // The server may be away for long, or the outcome of a commit may not be known. Neither
            // happens with SQLite.
            if !matches!(error, StoreError::Postgres(_) | StoreError::Undecided) {
                racer.tell(&format!("violated: {error}"));
            }
        }
    }
}

struct Racer {
    store: Any,
    log: String,
    random: fastrand::Rng,
    /// The last generation that was seen of each EK.
    generations: HashMap<u8, u32>,
    changes: Changes,
}

impl Racer {
    fn act(&mut self) -> Result<(), StoreError> {
        let (n, device) = (self.random.u8(1..=EKS), format!("pump-{}", self.random.u8(1..=4)));
        match self.random.u8(..100) {
            0..40 => self.certify(n, &device)?,
            40..55 => self.enroll_and_confirm(n, &device)?,
            55..75 => self.share_key(n, &device)?,
            75..82 => {
                self.store.set_disabled(&ek(n), true, now())?;
                self.store.set_disabled(&ek(n), false, now())?;
            }
            82..88 => drop(self.store.remove(&ek(n), now())?),
            88..93 => self.retire(n)?,
            _ => drop(self.store.enroll(&[enrolment(n, &device)])?),
        }
        self.look(n)
    }

    /// Checks that what may only grow did not shrink.
    fn look(&mut self, n: u8) -> Result<(), StoreError> {
        let snapshot = self.store.snapshot(&Question::about(ek(n), &id("nobody"), now()))?;
        let generation = snapshot.records.shared_key.map_or(0, |key| key.generation);
        let seen = self.generations.insert(n, generation).unwrap_or_default();
        let (before, changes) = (self.changes, self.store.changes()?);
        self.changes = changes;
        if seen > generation
            || before.connections > changes.connections
            || before.list > changes.list
        {
            self.tell(&format!("violated: {seen} {generation} {before:?} {changes:?}"));
        }
        Ok(())
    }

    fn certify(&mut self, n: u8, device: &str) -> Result<(), StoreError> {
        let serial = self.serial();
        let question = question(ek(n), device, ik(n), now());
        let basis = basis(&mut *self.store, question)?;
        if !may_have(&basis.snapshot.records, n, device) {
            return Ok(());
        }
        let before = basis.snapshot.active.as_ref().map(|active| hex::encode(active.serial));
        let facts = CertificateFacts { serial, ik_id: ik(n), ..certificate(0, device, ek(n)) };
        let entry = Entry {
            act: act(&facts, serial.to_vec()),
            basis: Some(basis),
            audit: Some(audited("certify", hex::encode(serial), device)),
        };
        if self.record(entry)?
            && let Some(before) = before
        {
            self.tell(&format!("superseded {before}"));
        }
        Ok(())
    }

    fn enroll_and_confirm(&mut self, n: u8, device: &str) -> Result<(), StoreError> {
        let serial = self.serial();
        let wanted = question(ek(n), device, ik(n), now());
        let before = basis(&mut *self.store, wanted.clone())?;
        let facts = CertificateFacts { serial, ik_id: ik(n), ..sealed(0, device, ek(n)) };
        self.record(Entry {
            act: act(&facts, serial.to_vec()),
            basis: Some(before),
            audit: Some(audited("enroll", hex::encode(serial), device)),
        })?;
        let basis =
            basis(&mut *self.store, Question { waiting: WaitingInQuestion::OfIk, ..wanted })?;
        let waiting = basis.snapshot.waiting.iter().find(|waiting| waiting.serial == serial);
        let Some(waiting) = waiting.filter(|_| may_have(&basis.snapshot.records, n, device)) else {
            return Ok(());
        };
        let confirmed = unchecked::confirmed(waiting.clone(), &key(), now()).unwrap();
        self.record(Entry {
            act: Act::Activate(confirmed),
            basis: Some(basis),
            audit: Some(audited("confirm", format!("{}-c", hex::encode(serial)), device)),
        })?;
        Ok(())
    }

    fn share_key(&mut self, n: u8, device: &str) -> Result<(), StoreError> {
        let question = Question::about(ek(n), &id(device), now());
        let before = basis(&mut *self.store, question.clone())?;
        let generation = before.snapshot.records.accepted_generations().pop().unwrap_or(1);
        let (assurance, device_id) = (Assurance::VendorCertificate, id(device));
        let parent = ParentKind::Import;
        let offer = unchecked::offered_key(ek(n), device_id, assurance, generation, parent);
        let client = self.client();
        self.record(Entry {
            act: Act::Offer(offer),
            basis: Some(before),
            audit: Some(audited("register", client, device)),
        })?;
        let basis = basis(&mut *self.store, question)?;
        let records = &basis.snapshot.records;
        if !may_have(records, n, device) || !records.accepted_generations().contains(&generation) {
            return Ok(());
        }
        let first_use = unchecked::first_use(ek(n), id(device), assurance, generation, now());
        let client = self.client();
        let entry = Entry {
            act: Act::Accept(first_use),
            basis: Some(basis),
            audit: Some(audited("login", client, device)),
        };
        if self.record(entry)? {
            self.tell(&format!("retired {n} {generation}"));
        }
        Ok(())
    }

    fn retire(&mut self, n: u8) -> Result<(), StoreError> {
        let before = self.generations.get(&n).copied().unwrap_or_default();
        if self.store.retire_shared_key(&ek(n))? {
            self.tell(&format!("retired {n} {}", before + 2));
        }
        Ok(())
    }

    fn record(&mut self, entry: Entry) -> Result<bool, StoreError> {
        let client = entry.audit.as_ref().map(|audit| audit.client.to_string());
        // Other racers have time to change the basis of the plan.
        thread::sleep(Duration::from_micros(self.random.u64(..1_000)));
        let recorded = self.store.record(&scope(), &[entry])?[0] == Recorded::Done;
        if let Some(client) = client.filter(|_| recorded) {
            self.tell(&format!("recorded {client}"));
        }
        Ok(recorded)
    }

    /// Writes one line at once. It stays whole if this process is killed afterwards.
    fn tell(&self, line: &str) {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        log.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// A serial number that no other process uses.
    fn serial(&mut self) -> [u8; 16] {
        let mut serial = [0; 16];
        self.random.fill(&mut serial);
        serial
    }

    fn client(&mut self) -> String {
        hex::encode(self.serial())
    }
}

fn may_have(records: &assay_ca_core::Records, n: u8, device: &str) -> bool {
    let registered = records.registration.as_ref();
    !records.disabled
        && registered.is_none_or(|registered| registered.device_id.as_str() == device)
        && records.id_holder.is_none_or(|holder| holder == ek(n))
}

fn audited(action: &'static str, client: String, device: &str) -> AuditEntry {
    AuditEntry {
        action,
        client: client.parse().unwrap(),
        change: Change::Made,
        ..decision(1, Some(Whom::Proven(id(device))))
    }
}

fn enrolment(n: u8, device: &str) -> NewEnrolment {
    NewEnrolment {
        ek_id: EkId::from([n; 32]),
        device_id: Some(id(device)),
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

fn ik(n: u8) -> [u8; 32] {
    sha256(&[n])
}

const RACERS: u64 = 8;
/// Entries on record by which a race is worth judging.
const ENOUGH: usize = 100;
/// Tells a process that it is a racer, and on which database.
const DATABASE: &str = "ASSAY_TEST_DATABASE";
const EKS: u8 = 6;
