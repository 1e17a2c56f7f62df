//! How long a store takes to certify a device in the ticket flow, with few and with many devices on
//! record: two snapshots (for *challenge* and *certify*) and the device's share of a batch.
//!
//! `cargo run --release -p assay-store --example throughput -- sqlite|postgres [DEVICES [BATCH [ROWS…]]]`
//!
//! The example starts its own PostgreSQL, in a temporary directory. All writes are durable.

use std::env;
use std::fs;
use std::process::exit;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use assay_ca_core::{Assurance, CertificateFacts, unchecked};
use assay_store::contract::Store;
use assay_store::postgres::Postgres;
use assay_store::sqlite::Sqlite;
use assay_store::{
    Act, AuditEntry, Basis, Change, Database, Entry, IdInQuestion, PostgresSettings, Question,
    Recorded, StoreError, Whom,
};
use assay_tests::Postgres as Server;
use assay_wire::{DeviceId, EkId, Scope};
use time::OffsetDateTime;

fn main() -> Result<(), StoreError> {
    let mut arguments = env::args().skip(1);
    let kind = arguments.next().unwrap_or_default();
    let mut numbers = arguments.map(|number| number.parse::<usize>().unwrap_or_else(|_| usage()));
    let devices = numbers.next().unwrap_or(20_000);
    let batch = numbers.next().unwrap_or(256);
    let mut sizes: Vec<_> = numbers.collect();
    if sizes.is_empty() {
        sizes = vec![1_000, 1_000_000];
    }
    let place = Place::make(&kind)?;
    println!(
        "store     rows on record  snapshot   record, a device  processor, a device  one thread   \
         with 2 planners"
    );
    let mut store = place.database.open()?;
    store.record_scope(&scope())?;
    let mut rows = 0;
    for size in sizes {
        fill(&mut *store, size.saturating_sub(rows))?;
        place.settle();
        // After a checkpoint, PostgreSQL writes each page whole when it first changes. In operation
        // there is a checkpoint every five minutes, so this is not measured here.
        fill(&mut *store, devices)?;
        let before = place.processor();
        let (snapshot, record) = one_by_one(&mut *store, devices, batch)?;
        let done = u32::try_from(devices.div_ceil(batch) * batch).unwrap_or(u32::MAX);
        let processor = (place.processor() - before) / done;
        let each = 2 * snapshot + record;
        let planned = pipeline(&place.database, devices, batch)?;
        rows = size.max(rows) + 3 * devices;
        println!(
            "{kind:<9} {size:>14} {snapshot:>9.1?} {record:>18.1?} {processor:>20.1?} {:>9.0}/s \
             {:>15.0}/s",
            each.as_secs_f64().recip(),
            devices as f64 / planned.as_secs_f64()
        );
    }
    Ok(())
}

/// The place of the store. It is deleted when this is dropped.
struct Place {
    database: Database,
    server: Option<Server>,
    _directory: tempfile::TempDir,
}

impl Place {
    fn make(kind: &str) -> Result<Self, StoreError> {
        let directory = tempfile::tempdir()?;
        let (database, server) = match kind {
            "sqlite" => {
                let path = directory.path().join("assay.db");
                Sqlite::create(&path)?;
                (Database::Sqlite(path), None)
            }
            "postgres" => {
                let settings = env::var("ASSAY_BENCH_POSTGRES").unwrap_or_default();
                let failed = |error| StoreError::Settings(format!("{error:#}"));
                let server = Server::start_with(&settings.replace(';', "\n")).map_err(failed)?;
                let address = server.address().map_err(failed)?;
                let settings = PostgresSettings::new(&address, None, None)?;
                Postgres::upgrade(&settings)?;
                (Database::Postgres(settings), Some(server))
            }
            _ => usage(),
        };
        Ok(Self { database, server, _directory: directory })
    }

    /// The processor time of this process and of the server's.
    fn processor(&self) -> Duration {
        let stat = |process: &str| fs::read_to_string(format!("/proc/{process}/stat")).ok();
        // After the name in parentheses: state, parent …; times 11 to 14 (proc(5)).
        let fields = |stat: &str| -> Vec<u64> {
            let after = stat.rsplit(')').next().unwrap_or_default();
            after.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect()
        };
        let mut ticks: u64 = stat("self").map_or(0, |stat| fields(&stat)[11..13].iter().sum());
        let Some(server) = &self.server else { return Duration::from_millis(10 * ticks) };
        let parent = u64::from(server.pid());
        for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(stat) = stat(&process.file_name().to_string_lossy()) else { continue };
            let (fields, own) = (fields(&stat), process.file_name() == *parent.to_string());
            if own {
                ticks += fields[11..15].iter().sum::<u64>();
            } else if fields[1] == parent {
                ticks += fields[11..13].iter().sum::<u64>();
            }
        }
        Duration::from_millis(10 * ticks)
    }

    /// Brings the database into the state that it has after some minutes of operation.
    fn settle(&self) {
        if let Some(server) = &self.server {
            server
                .sql("VACUUM ANALYZE")
                .and_then(|_| server.sql("CHECKPOINT"))
                .expect("it settles");
        }
    }
}

/// The time of a snapshot, and a device's share of the time of a batch.
fn one_by_one(
    store: &mut dyn Store,
    devices: usize,
    batch: usize,
) -> Result<(Duration, Duration), StoreError> {
    let (mut planning, mut recording) = (Duration::ZERO, Duration::ZERO);
    let mut done = 0;
    while done < devices {
        let started = Instant::now();
        let entries = (0..batch).map(|_| plan(store)).collect::<Result<Vec<_>, _>>()?;
        let planned = Instant::now();
        record(store, &entries)?;
        planning += planned - started;
        recording += planned.elapsed();
        done += batch;
    }
    let count = u32::try_from(done).unwrap_or(u32::MAX);
    Ok((planning / (2 * count), recording / count))
}

/// Does as a worker does: two threads plan, and another one records what waits.
fn pipeline(database: &Database, devices: usize, batch: usize) -> Result<Duration, StoreError> {
    let mut recorder = database.open()?;
    let planners = [database.open()?, database.open()?];
    let (plans, planned) = mpsc::sync_channel(2 * batch);
    let started = Instant::now();
    thread::scope(|scope| {
        for mut planner in planners {
            let plans = plans.clone();
            scope.spawn(move || {
                for _ in 0..devices / 2 {
                    plans.send(plan(&mut *planner)).expect("somebody records");
                }
            });
        }
        drop(plans);
        while let Ok(first) = planned.recv() {
            let waiting = [first].into_iter().chain(planned.try_iter().take(batch - 1));
            record(&mut *recorder, &waiting.collect::<Result<Vec<_>, _>>()?)?;
        }
        Ok(started.elapsed())
    })
}

/// Plans *challenge* and *certify* of a device that is not on record.
fn plan(store: &mut dyn Store) -> Result<Entry, StoreError> {
    let (ek, name): (EkId, DeviceId) = new_device();
    let now = OffsetDateTime::now_utc();
    let due = IdInQuestion::Due { derived: name.clone(), other_eks: vec![new_device().0] };
    store.snapshot(&Question { device: due, ..Question::about(ek, &name, now) })?;
    let question =
        Question { ik: assay_store::IkInQuestion::Is([7; 32]), ..Question::about(ek, &name, now) };
    let snapshot = store.snapshot(&question)?;
    Ok(entry(ek, name, Some(Basis { question, snapshot }), now))
}

fn record(store: &mut dyn Store, entries: &[Entry]) -> Result<(), StoreError> {
    let recorded = store.record(&scope(), entries)?;
    assert!(recorded.iter().all(|recorded| *recorded == Recorded::Done));
    Ok(())
}

fn fill(store: &mut dyn Store, devices: usize) -> Result<(), StoreError> {
    let mut left = devices;
    while left > 0 {
        let now = OffsetDateTime::now_utc();
        let entries: Vec<_> = (0..left.min(2_000))
            .map(|_| {
                let (ek, name) = new_device();
                entry(ek, name, None, now)
            })
            .collect();
        record(store, &entries)?;
        left -= entries.len();
        while store.prune(&assay_store::Retention::default(), now)?.more {}
    }
    Ok(())
}

fn entry(ek_id: EkId, device_id: DeviceId, basis: Option<Basis>, now: OffsetDateTime) -> Entry {
    let mut der = vec![0; 700];
    fastrand::fill(&mut der);
    // The CA's serial numbers begin with the time, so these do too.
    let mut serial = [0; 16];
    fastrand::fill(&mut serial[8..]);
    let micros = u64::try_from(now.unix_timestamp_nanos() / 1000).unwrap_or_default();
    serial[..8].copy_from_slice(&micros.to_be_bytes());
    let audit = AuditEntry {
        time: now,
        client: "0123456789abcdef0123456789abcdef".parse().expect("a client id"),
        action: "certify",
        ek_id: Some(ek_id),
        device: Some(Whom::Proven(device_id.clone())),
        change: Change::Made,
        refusal: None,
        duration_us: 1_000,
    };
    let facts = CertificateFacts {
        serial,
        not_before: now,
        not_after: now + time::Duration::days(90),
        device_id,
        ek_id,
        ik_id: [7; 32],
        assurance: Assurance::VendorCertificate,
        issued_at: now,
        confirm_by: None,
    };
    Entry { act: Act::Certify(unchecked::issued(facts, der)), basis, audit: Some(audit) }
}

fn new_device() -> (EkId, DeviceId) {
    let mut ek = [0; 32];
    fastrand::fill(&mut ek);
    let name = format!("ek-{}", hex::encode(&ek[..16]));
    (ek.into(), name.parse().expect("a device id"))
}

fn scope() -> Scope {
    "default".parse().expect("a scope")
}

fn usage() -> ! {
    eprintln!("usage: throughput sqlite|postgres [DEVICES [BATCH [ROWS…]]]");
    exit(2)
}
