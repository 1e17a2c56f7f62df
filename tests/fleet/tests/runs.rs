//! `assay-fleet` as a process, against a served CA.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// All kinds of EK, three or four of each.
const EVERY_EK: [&str; 4] = ["--devices", "14", "--ek", "p-256,p-384,rsa-2048,rsa-3072"];

#[test]
fn every_ek_is_provisioned_in_the_ticket_flow_with_every_ik() -> Result<()> {
    let report =
        report(&[&EVERY_EK[..], &["--ik", "p-256,p-384,rsa-2048", "--concurrency", "4"]].concat())?;
    assert_eq!(report["devices"]["done"], 14, "{report:#}");
    assert_eq!(report["latency_ms"]["certify"]["count"], 14, "{report:#}");
    Ok(())
}

#[test]
fn every_ek_is_provisioned_in_the_sealed_flow() -> Result<()> {
    let report =
        report(&[&EVERY_EK[..], &["--flow", "sealed", "--connection", "per-device"]].concat())?;
    assert_eq!(report["devices"]["done"], 14, "{report:#}");
    assert_eq!(
        (&report["connections"], &report["latency_ms"]["confirm"]["count"]),
        (&14.into(), &14.into())
    );
    Ok(())
}

#[test]
fn every_ek_is_provisioned_in_the_shared_key_flow() -> Result<()> {
    let report = report(&[&EVERY_EK[..], &["--flow", "shared-key"]].concat())?;
    assert_eq!(report["devices"]["done"], 14, "{report:#}");
    Ok(())
}

#[test]
fn devices_with_every_ek_and_every_ik_renew_and_adopt_once() -> Result<()> {
    let keys = ["--ik", "p-256,p-384,rsa-2048", "--hold"];
    for store in ["sqlite", "postgres"] {
        let renew = ["--flow", "renew", "--store", store];
        let report = report(&[&EVERY_EK[..], &keys, &renew].concat())?;
        let latencies = &report["latency_ms"];
        for request in ["renew", "adopt"] {
            assert_eq!(latencies[request]["count"], 14, "{store}: {report:#}");
        }
        assert_eq!(report["devices"]["done"], 14, "{store}: {report:#}");
        assert_eq!(report["held"]["connections"], 14, "{store}: {report:#}");
        assert!(latencies["challenge"].is_null(), "what comes before is not measured: {report:#}");
        assert_eq!(report["cpu_us_per_device"]["store"].is_number(), store == "postgres");
    }
    Ok(())
}

#[test]
fn kept_devices_connect_in_a_later_run_unless_they_sleep_and_come_back_if_they_are_refused()
-> Result<()> {
    let (dir, cache) = (assay_tests::AssayDir::init()?, tempfile::tempdir()?);
    let server = assay_tests::AssayServer::start(&dir)?;
    let vendor = assay_tests::run(fleet()?.arg("--vendor").arg("--cache").arg(cache.path()))?;
    let vendor = String::from_utf8(vendor.stdout)?;
    assay_tests::run(dir.assay(&["trust", "add", "--admit"])?.args(vendor.lines()))?;
    let state = cache.path().join("state");
    let run = |arguments: &[&str]| -> Result<Value> {
        let mut known = fleet()?;
        known.args(["--json", "--hold", "--broker", &server.bootstrap]);
        known.args(["--operational", &server.operational, "--ca-root"]).arg(dir.root_pem());
        known.arg("--cache").arg(cache.path()).arg("--state").arg(&state).args(arguments);
        let report: Value = serde_json::from_slice(&assay_tests::run(&mut known)?.stdout)?;
        Ok(report)
    };
    let first = run(&["--devices", "4"])?;
    assert_eq!(first["held"]["connections"], 4, "{first:#}");
    assert_eq!(std::fs::metadata(&state)?.permissions().mode() & 0o777, 0o600);

    let second = run(&["--flow", "renew", "--asleep", "0.5"])?;
    let devices = &second["devices"];
    assert_eq!((&devices["done"], &devices["asleep"]), (&2.into(), &2.into()), "{second:#}");
    assert_eq!(second["held"]["connections"], 2, "{second:#}");
    assert!(second["latency_ms"]["renew"].is_null(), "nothing is due: {second:#}");

    let rows = dir.list("devices")?;
    let lost = rows[0]["device_id"].as_str().context("an id")?;
    assay_tests::run(&mut dir.assay(&["enroll", "remove", lost])?)?;
    let third = run(&["--flow", "renew"])?;
    assert_eq!(third["devices"]["came_back"], 1, "{third:#}");
    assert_eq!(third["held"]["connections"], 4, "{third:#}");
    assert_eq!(dir.list("devices")?.len(), 4, "they are the same devices");
    server.stop()
}

#[test]
fn bad_requests_are_refused_for_what_is_wrong_with_them_while_others_pass() -> Result<()> {
    for (flow, kinds) in [
        ("ticket", &[&EVERYWHERE[..], &["foreign-csr", "wrong-ticket"]].concat()),
        ("sealed", &[&EVERYWHERE[..], &["foreign-csr", "wrong-ticket"]].concat()),
        ("shared-key", &[&EVERYWHERE[..], &["plain-srk"]].concat()),
    ] {
        let shares: Vec<_> = kinds.iter().map(|kind| format!("--bad={kind}=0.1")).collect();
        let mut arguments = vec!["--devices", "40", "--flow", flow];
        arguments.extend(shares.iter().map(String::as_str));
        let report = report(&arguments)?;
        for kind in kinds {
            assert_eq!(report["refused"][kind], 4, "{kind} in flow {flow}: {report:#}");
        }
        assert_eq!(report["devices"]["done"], 40 - 4 * kinds.len(), "{report:#}");
    }
    Ok(())
}

/// Kinds of bad requests that every flow has.
const EVERYWHERE: [&str; 6] = [
    "truncated",
    "oversize",
    "untrusted-vendor",
    "foreign-certificate",
    "not-fixed-tpm",
    "foreign-response-topic",
];

#[test]
fn devices_that_break_off_come_back_and_are_provisioned() -> Result<()> {
    let report = report(&["--devices", "20", "--churn", "0.5"])?;
    assert_eq!(
        (&report["devices"]["done"], &report["devices"]["churned"]),
        (&20.into(), &10.into()),
        "{report:#}"
    );
    Ok(())
}

#[test]
fn a_shared_connection_serves_32_publishes_and_is_replaced() -> Result<()> {
    let report = report(&["--devices", "40", "--concurrency", "1"])?;
    assert_eq!(report["connections"], 3, "80 publishes: {report:#}");
    assert_eq!(
        report["lost"],
        serde_json::json!({}),
        "the broker cuts a connection at its 33rd publish"
    );
    Ok(())
}

#[test]
fn devices_whose_connection_is_lost_try_again() -> Result<()> {
    let (dir, cache) = (assay_tests::AssayDir::init()?, tempfile::tempdir()?);
    let server = assay_tests::AssayServer::start(&dir)?;
    let broker = format!("mqtts://127.0.0.1:{}", unreliable_proxy(&server, 3)?);
    let mut known = fleet()?;
    known.args(["--json", "--broker", &broker, "--ca-root"]).arg(dir.root_pem());
    known.arg("--cache").arg(cache.path()).arg("--devices");
    trust_vendor(&dir, &mut known)?;
    let report: Value = serde_json::from_slice(&assay_tests::run(known.arg("5"))?.stdout)?;
    assert_eq!(report["devices"]["done"], 5, "{report:#}");
    let lost: u64 =
        report["lost"].as_object().context("an object")?.values().filter_map(Value::as_u64).sum();
    // The third lost connection was of the device that the CA did not trust yet.
    assert_eq!(lost, 2, "{report:#}");
    server.stop()
}

/// The port of a proxy to the broker that drops every other connection until it has dropped
/// `count`.
fn unreliable_proxy(server: &assay_tests::AssayServer, count: usize) -> Result<u16> {
    let broker = server.bootstrap.trim_start_matches("mqtts://").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || -> std::io::Result<()> {
        for (number, client) in listener.incoming().enumerate() {
            let client = client?;
            if number % 2 == 0 && number / 2 < count {
                continue;
            }
            let server = TcpStream::connect(&broker)?;
            for (mut from, mut to) in [(client.try_clone()?, server.try_clone()?), (server, client)]
            {
                thread::spawn(move || {
                    _ = std::io::copy(&mut from, &mut to);
                    to.shutdown(Shutdown::Both)
                });
            }
        }
        Ok(())
    });
    Ok(port)
}

#[test]
fn an_open_loop_keeps_its_rate() -> Result<()> {
    let report = report(&["--devices", "40", "--rate", "100", "--ramp", "0.2"])?;
    assert_eq!(report["devices"]["done"], 40, "{report:#}");
    // 10 devices in the ramp, and the other 30 at the full rate; the last is due 10 ms before the
    // end.
    let seconds = report["while_arriving"]["seconds"].as_f64().context("a number")?;
    ensure!((0.48..1.5).contains(&seconds), "40 devices arrived in {seconds} s");
    Ok(())
}

#[test]
fn a_run_uses_processor_and_memory_and_draws_its_latencies() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let plot = dir.path().join("latency.svg");
    let report = report(&["--devices", "100", "--plot", plot.to_str().context("a path")?])?;
    for part in ["ca", "broker", "fleet"] {
        ensure!(report["cpu_us_per_device"][part].as_f64() > Some(0.0), "{part}: {report:#}");
    }
    ensure!(report["server_memory_kib"]["peak"].as_u64() > Some(1024), "{report:#}");
    let drawn = std::fs::read_to_string(plot)?;
    ensure!(
        drawn.starts_with("<svg") && drawn.contains("certify") && drawn.contains("99"),
        "{drawn}"
    );
    Ok(())
}

#[test]
fn a_device_that_is_not_provisioned_fails_the_run_and_each_run_has_new_devices() -> Result<()> {
    let (dir, cache) = (assay_tests::AssayDir::init()?, tempfile::tempdir()?);
    let server = assay_tests::AssayServer::start(&dir)?;
    let mut known = fleet()?;
    known.args(["--json", "--broker", &server.bootstrap, "--ca-root"]).arg(dir.root_pem());
    known.arg("--cache").arg(cache.path()).arg("--devices");
    trust_vendor(&dir, &mut known)?;
    known.arg("3");
    for run in 1..=2 {
        let report: Value = serde_json::from_slice(&assay_tests::run(&mut known)?.stdout)?;
        assert_eq!(report["devices"]["done"], 3, "{report:#}");
        assert_eq!(
            dir.list("devices")?.len(),
            3 * run,
            "a CA that knows a device gives it what it has"
        );
    }
    server.stop()
}

/// Runs a fleet that the CA does not trust, and then follows the fleet's advice.
fn trust_vendor(dir: &assay_tests::AssayDir, known: &mut Command) -> Result<()> {
    let mut untrusted = Command::new(known.get_program());
    untrusted.args(known.get_args()).arg("1");
    untrusted.envs(known.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = untrusted.output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(
        (output.status.code(), &report["devices"]["failed"]),
        (Some(1), &1.into()),
        "{report:#}"
    );
    ensure!(report["failures"].to_string().contains("ek-certificate-untrusted"), "{report:#}");
    let said = String::from_utf8(output.stderr)?;
    let advice =
        said.trim().strip_prefix("The CA must trust the vendor: assay ").context(said.clone())?;
    assay_tests::run(&mut dir.assay(&advice.split(' ').collect::<Vec<_>>())?).map(drop)
}

/// The report of a run in which every device got what was due to it.
fn report(arguments: &[&str]) -> Result<Value> {
    let output = assay_tests::run(fleet()?.args(arguments).arg("--json"))?;
    serde_json::from_slice(&output.stdout).context("`assay-fleet --json` writes JSON")
}

/// A command that serves with the `assay` that was built from the present sources.
fn fleet() -> Result<Command> {
    let assay = assay_tests::assay_bin("assay")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_assay-fleet"));
    command.env("ASSAY_BIN_DIR", assay.parent().context("a binary has a directory")?);
    Ok(command)
}

#[test]
fn brokers_are_compared_and_takeovers_lose_nothing() -> Result<()> {
    let mut brokers = Command::new(env!("CARGO_BIN_EXE_assay-brokers"));
    let output = brokers.args(["--quick", "roundtrip", "memory", "takeover"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["takeover"]["takeovers"] == 40 && report["takeover"]["lost"] == 0, "{report:#}");
    ensure!(report["roundtrip"].as_array().is_some_and(|rows| rows.len() == 6), "{report:#}");
    ensure!(report["memory"][0]["kib_each"].as_f64().is_some_and(|each| each > 1.0), "{report:#}");
    Ok(())
}
