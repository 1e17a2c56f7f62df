//! Events: what others hear of devices and of the CA, once each, in order, and after a crash.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{AssayDir, Device, EkKind, Worker, json, trusted_vendor};
use rusqlite::Connection;
use serde_json::Value;

use crate::external_brokers::{mosquitto_as_deployed, url_of};
use crate::lab::Lab;

#[test]
fn every_flow_and_act_is_told_once_and_in_order() -> Result<()> {
    // Every certificate is due to be renewed.
    let lab = Lab::with_settings("[certificates]\nlifetime_days = 1\nrenew_before_days = 1")?;
    let events = Events::on(&lab.dir, &lab.server.operational)?;
    let vendor = trusted_vendor()?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let first = lab.provision(&device, &[])?;
    // The answer to a repetition changes nothing.
    lab.provision(&device, &[])?;
    // A renewed certificate ends later, and a claim is younger than what it replaces.
    thread::sleep(A_SECOND);
    let renewed = json(&mut device.renew(&lab.dir, &lab.server)?)?;
    thread::sleep(A_SECOND);
    let rekeyed = json(&mut device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?)?;
    let id = first["device_id"].as_str().context("a device id")?;
    let ek = lab.dir.list("devices")?[0]["ek_id"].as_str().context("an EK id")?.to_owned();
    lab.assay(&["enroll", "disable", &ek])?;
    lab.refused(&Device::new(&tpm)?, &[], "device-disabled")?;
    lab.assay(&["enroll", "enable", &ek])?;
    lab.assay(&["enroll", "remove", &ek])?;
    let other = vendor.device(EkKind::P256, 1)?;
    let sealed = lab.provision(&Device::new(&other)?, &["--flow", "sealed"])?;
    lab.assay(&["keys", "rotate", "ticket"])?;

    let told = events.until("assay.ca.rotate-key")?;
    let types = |topic: &str| {
        let of_topic = told.iter().filter(|(it, _)| it == topic);
        let kinds = of_topic.filter_map(|(_, event)| event["type"].as_str());
        kinds.map(|kind| kind.trim_start_matches("assay.").to_owned()).collect::<Vec<_>>()
    };
    let found = types(&format!("fleet/v1/default/{id}/event"));
    let due = [
        "device.provisioned",
        "device.renewed",
        "device.superseded",
        "device.rekeyed",
        "device.superseded",
        "device.disabled",
        "device.enabled",
        "device.revoked",
        "device.removed",
    ];
    ensure!(found == due, "{found:?}");
    let found = types("fleet/v1/default/@ca/event");
    ensure!(found.contains(&"device.refused".into()), "{found:?}");
    let sealed_id = sealed["device_id"].as_str().context("a device id")?;
    let found = types(&format!("fleet/v1/default/{sealed_id}/event"));
    ensure!(found == ["device.confirmed"], "{found:?}");

    let serials: Vec<_> = told.iter().filter_map(|(_, it)| it["data"]["serial"].as_str()).collect();
    let [first, renewed, rekeyed, sealed] = [first, renewed, rekeyed, sealed]
        .map(|device| device["serial"].as_str().unwrap_or_default().to_owned());
    ensure!(serials == [&first, &renewed, &first, &rekeyed, &renewed, &rekeyed, &sealed][..]);
    let ids: std::collections::BTreeSet<_> = told.iter().map(|(_, it)| it["id"].as_str()).collect();
    ensure!(ids.len() == told.len(), "each has an id of its own");
    let numbers: Vec<_> = told.iter().map(|(_, it)| it["data"]["number"].as_u64()).collect();
    ensure!(numbers.is_sorted(), "{numbers:?}");
    ensure!(told.iter().all(|(_, it)| it["specversion"] == "1.0" && it["time"].is_string()));
    Ok(())
}

#[test]
fn a_server_killed_after_the_commit_and_before_the_event_loses_none() -> Result<()> {
    let mut lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    // As if another worker were telling events at this moment.
    let held = hold_events(&lab.dir, Duration::from_secs(6))?;
    let provisioned = lab.provision(&Device::new(&tpm)?, &[])?;
    lab.server.kill9()?;
    lab.server.restart()?;
    let events = Events::on(&lab.dir, &lab.server.operational)?;
    ensure!(held.elapsed() < Duration::from_secs(6), "too slow to test anything");
    let told = events.until("assay.device.provisioned")?;
    let (_, event) = told.last().context("an event")?;
    ensure!(event["data"]["serial"] == provisioned["serial"], "{event}");
    ensure!(!told.iter().rev().skip(1).any(|(_, it)| it["type"] == event["type"]), "{told:?}");
    Ok(())
}

/// On Mosquitto, workers come and go, and the broker stays.
#[test]
fn a_worker_on_mosquitto_killed_between_commit_and_event_leaves_it_to_the_next() -> Result<()> {
    let dir = AssayDir::init()?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mosquitto = mosquitto_as_deployed(&dir)?;
    let [bootstrap, operational] = [0, 1].map(|listener| url_of(&mosquitto, listener));
    let events = Events::on(&dir, &operational)?;
    let worker = Worker::start(&dir, &operational)?;
    let provision = |n: usize| {
        let tpm = vendor.device(EkKind::P256, n)?;
        json(&mut Device::new(&tpm)?.provision_at(&bootstrap, &dir.root_pem())?)
    };
    let first = provision(0)?;
    let told = events.until("assay.device.provisioned")?;
    ensure!(told.last().context("an event")?.1["data"]["serial"] == first["serial"]);

    hold_events(&dir, Duration::from_secs(3))?;
    let second = provision(1)?;
    // Dropped, it is killed.
    drop(worker);
    let _next = Worker::start(&dir, &operational)?;
    // The first may be told again, if the broker's acknowledgement came too late to be noted.
    for _ in 0..2 {
        let told = events.until("assay.device.provisioned")?;
        let serial = &told.last().context("an event")?.1["data"]["serial"];
        if *serial == second["serial"] {
            return Ok(());
        }
        ensure!(*serial == first["serial"], "{told:?}");
    }
    bail!("nobody told of the second")
}

/// Keeps workers from telling events for a while.
fn hold_events(dir: &AssayDir, period: Duration) -> Result<Instant> {
    let record = Connection::open(dir.path().join("assay.db"))?;
    record.busy_timeout(Duration::from_secs(5))?;
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)? + period;
    let hold = "UPDATE event_cursor SET teller = x'00112233445566778899aabbccddeeff', until = ?1";
    record.execute(hold, [i64::try_from(until.as_millis())?])?;
    Ok(Instant::now())
}

/// `assay watch` on all events.
struct Events {
    watch: Child,
    lines: mpsc::Receiver<String>,
}

impl Events {
    fn on(dir: &AssayDir, broker: &str) -> Result<Self> {
        let mut command = dir.assay(&["watch", "--broker", broker, "fleet/v1/default/+/event"])?;
        let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        // It writes a line to stderr once its subscription is granted.
        let mut said = String::new();
        BufReader::new(watch.stderr.take().context("stderr is a pipe")?).read_line(&mut said)?;
        ensure!(said.starts_with("watching"), "{said}");
        let stdout = BufReader::new(watch.stdout.take().context("stdout is a pipe")?);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)))
        });
        Ok(Self { watch, lines })
    }

    /// What is told up to the first event of this type: topics and events.
    fn until(&self, kind: &str) -> Result<Vec<(String, Value)>> {
        let (mut told, deadline) = (Vec::new(), Instant::now() + PATIENCE);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { bail!("no {kind} in {told:?}") };
            let (topic, event) = line.split_once(' ').context("a topic and an event")?;
            let event: Value = serde_json::from_str(event)?;
            let is_last = event["type"] == kind;
            told.push((topic.to_owned(), event));
            if is_last {
                return Ok(told);
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        _ = self.watch.kill();
        _ = self.watch.wait();
    }
}

const A_SECOND: Duration = Duration::from_millis(1100);
const PATIENCE: Duration = Duration::from_secs(30);
