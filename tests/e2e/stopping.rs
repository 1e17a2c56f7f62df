//! A worker that is told to stop finishes the requests that it has, and leaves the rest to others.

use std::collections::HashSet;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_tests::{AssayDir, EkKind, Mosquitto, Worker, assay_bin, run, trusted_vendor};
use assay_wire::RequestBody;
use serde_json::Value;

use crate::lab::Lab;
use crate::raw_client::{PlainDevice, RawClient};
use crate::tools_device::ToolsDevice;

#[test]
fn a_worker_that_is_told_to_stop_answers_all_that_the_broker_holds_for_it() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true\nset_tcp_nodelay true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let mut worker = Worker::start(&dir, &broker)?;
    let mut device = PlainDevice::connect(&broker, 200)?;
    // The stopped worker takes nothing. Mosquitto sends it 20 requests and queues the rest.
    worker.signal("STOP")?;
    let mut open = (0..200)
        .map(|_| device.send(&RequestBody::Ping, QoS::AtLeastOnce))
        .collect::<Result<HashSet<_>>>()?;
    device.wait_until_acknowledged(200)?;
    worker.signal("TERM")?;
    worker.signal("CONT")?;
    let told = Instant::now();
    while !open.is_empty() {
        let reply = device.reply().with_context(|| format!("{} are unanswered", open.len()))?;
        ensure!(open.remove(&reply.id), "a second reply to {}", reply.id);
    }
    ensure!(worker.wait()?.success(), "{}", worker.log());
    ensure!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    Ok(())
}

#[test]
fn two_workers_are_restarted_in_turn_under_load_and_no_device_notices() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true\nmax_inflight_messages \
                                        0\nmax_queued_messages 0\nset_tcp_nodelay true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let cache = tempfile::tempdir()?;
    let mut fleet = Command::new(assay_bin("assay-fleet")?);
    fleet.arg("--cache").arg(cache.path());
    let vendor = String::from_utf8(run(fleet.arg("--vendor"))?.stdout)?;
    run(dir.assay(&["trust", "add", "--admit"])?.args(vendor.lines()))?;

    let mut workers = [Worker::start(&dir, &broker)?, Worker::start(&dir, &broker)?];
    let mut fleet = Command::new(assay_bin("assay-fleet")?);
    fleet
        .arg("--cache")
        .arg(cache.path())
        .args(["--json", "--broker", &broker, "--ca-root"])
        .arg(dir.root_pem());
    fleet.args(["--devices", "600", "--rate", "60"]).stdout(Stdio::piped());
    let running = fleet.spawn()?;
    // Devices come while keys are made, and afterwards for ten seconds.
    while dir.list("devices")?.is_empty() {
        thread::sleep(Duration::from_millis(100));
    }
    for worker in &mut workers {
        worker.signal("TERM")?;
        ensure!(worker.wait()?.success(), "{}", worker.log());
        *worker = Worker::start(&dir, &broker)?;
    }
    let known = dir.list("devices")?.len();
    let output = running.wait_with_output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        report["devices"]["done"] == 600 && report["lost"] == serde_json::json!({}),
        "{report:#}"
    );
    ensure!(known < 600, "the load was over before the workers were restarted");
    Ok(())
}

#[test]
fn a_worker_that_cannot_finish_ends_after_ten_seconds_and_says_what_is_left() -> Result<()> {
    let mut blocked = Blocked::new()?;
    let told = Instant::now();
    blocked.worker.signal("TERM")?;
    let (status, took) = (blocked.worker.wait()?, told.elapsed());
    let log = blocked.worker.log();
    ensure!(
        status.code() == Some(1) && log.contains("1 requests and messages are left"),
        "{status}: {log}"
    );
    ensure!((9.5..12.0).contains(&took.as_secs_f64()), "{took:?}");
    Ok(())
}

#[test]
fn a_second_signal_ends_it_at_once() -> Result<()> {
    let mut blocked = Blocked::new()?;
    blocked.worker.signal("TERM")?;
    thread::sleep(Duration::from_millis(500));
    let told = Instant::now();
    blocked.worker.signal("INT")?;
    let (status, took) = (blocked.worker.wait()?, told.elapsed());
    let log = blocked.worker.log();
    ensure!(status.code() == Some(1) && log.contains("a second time"), "{status}: {log}");
    ensure!(took < Duration::from_secs(2), "{took:?}");
    Ok(())
}

#[test]
fn a_server_that_is_told_to_stop_records_what_it_decided() -> Result<()> {
    let Lab { server, dir } = Lab::open()?;
    let mut stranger = RawClient::connect(&server.bootstrap, &dir.root_pem())?;
    for _ in 0..10 {
        stranger.ask_bytes(b"no request".to_vec())?;
    }
    let told = Instant::now();
    // The server writes refusals in batches, but all of them before it ends.
    server.stop()?;
    ensure!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
    ensure!(dir.decisions()?.len() == 10);
    Ok(())
}

/// A worker on Mosquitto with a request that it cannot answer, because somebody else writes to its
/// database.
struct Blocked {
    worker: Worker,
    _mosquitto: Mosquitto,
    _dir: AssayDir,
    _lock: rusqlite::Connection,
}

impl Blocked {
    fn new() -> Result<Self> {
        let dir = AssayDir::init()?;
        let vendor = trusted_vendor()?;
        dir.trust(&vendor)?;
        let tpm = vendor.device(EkKind::P256, 0)?;
        let enroll = RequestBody::Enroll(ToolsDevice::new(&tpm, EkKind::P256)?.evidence()?);
        let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
        let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
        let worker = Worker::start(&dir, &broker)?;
        let lock = rusqlite::Connection::open(dir.path().join("assay.db"))?;
        lock.execute_batch("BEGIN IMMEDIATE")?;
        let mut device = PlainDevice::connect(&broker, 16)?;
        // SQLite waits for ten seconds: first to record the refusal of this message, and only then
        // for the other request.
        device.send_bytes(b"no request".to_vec())?;
        device.reply()?;
        thread::sleep(Duration::from_millis(500));
        device.send(&enroll, QoS::AtLeastOnce)?;
        device.wait_until_acknowledged(2)?;
        Ok(Self { worker, _mosquitto: mosquitto, _dir: dir, _lock: lock })
    }
}
