//! Fills a CA's database with devices that do not exist: enrolled, registered and certified. `cargo
//! xtask bench scale` measures what their number costs.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, ensure};
use assay_ca_core::{Assurance, CertificateFacts, Issued, Proven, unchecked};
use assay_server::directory::Directory;
use assay_store::{Act, Entry, NewEnrolment, Recorded, Store, Tags};
use assay_wire::{DeviceId, EkId, Scope};
use clap::Parser;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

#[derive(Parser)]
struct Arguments {
    /// The CA's directory, as `assay init` made it
    directory: PathBuf,
    /// How many devices
    count: u64,
}

fn main() -> Result<()> {
    let Arguments { directory, count } = Arguments::parse();
    let directory = Directory::open(&directory)?;
    let (mut store, scope) = (directory.store()?, &directory.config().scope);
    let (started, now) = (Instant::now(), OffsetDateTime::now_utc());
    let numbers: Vec<_> = (0..count).collect();
    for batch in numbers.chunks(BATCH) {
        add(&mut *store, scope, batch, now)?;
    }
    eprintln!("{count} devices in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn add(store: &mut dyn Store, scope: &Scope, batch: &[u64], now: OffsetDateTime) -> Result<()> {
    let enrolments = batch.iter().map(|&number| NewEnrolment {
        ek_id: ek_id(number),
        device_id: Some(device_id(number)),
        recognised: "a certificate in DER".into(),
        reprovision: None,
        legacy_dps_ek: None,
        plain_srk: None,
        disabled: None,
        tags: Tags::new(),
        facts: None,
        added_at: now,
    });
    let results = store.enroll(&enrolments.collect::<Vec<_>>())?;
    ensure!(
        results.iter().all(Result::is_ok),
        "the directory has such devices already: make a new one"
    );
    let entries: Vec<_> = batch
        .iter()
        .map(|&number| {
            let act = Act::Certify(certificate(number, now));
            Entry { act, basis: None, audit: None }
        })
        .collect();
    let recorded = store.record(scope, &entries)?;
    ensure!(recorded.iter().all(|recorded| *recorded == Recorded::Done));
    Ok(())
}

fn certificate(number: u64, now: OffsetDateTime) -> Issued<Proven> {
    let serial = hash("serial", number);
    // Nobody reads it; its length is that of a certificate for a P-256 IK.
    let der = serial.repeat(DER_LEN / serial.len());
    let facts = CertificateFacts {
        serial: *serial.first_chunk().expect("a hash is longer"),
        not_before: now,
        not_after: now + time::Duration::days(90),
        device_id: device_id(number),
        ek_id: ek_id(number),
        ik_id: hash("IK", number),
        assurance: Assurance::EnrolmentList,
        issued_at: now,
        confirm_by: None,
    };
    unchecked::issued(facts, der)
}

fn device_id(number: u64) -> DeviceId {
    // As long as an id that follows from an EK, and in no order, like those.
    let id = hex::encode(hash("device", number));
    id[..52].parse().expect("52 hexadecimal digits are a device id")
}

fn ek_id(number: u64) -> EkId {
    hash("EK", number).into()
}

fn hash(what: &str, number: u64) -> [u8; 32] {
    Sha256::digest(format!("{what} {number}")).into()
}

/// Devices in one transaction: their rows together fit into SQLite's cache.
const BATCH: usize = 5_000;
const DER_LEN: usize = 832;
