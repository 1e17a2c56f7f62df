//! What can be set wrongly at a device of a real CA, and what the device then tells people.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, Device, EkKind, Mosquitto, Worker, run, trusted_vendor};

use crate::lab::Lab;

#[test]
fn wrong_scope_or_listener_is_told_in_seconds_and_not_tried_again() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    told(
        device.provision(&lab.dir, &lab.server)?.args(["--scope", "other"]),
        "provisioned in scope other",
    )?;
    told(
        &mut device.provision_at(&lab.server.operational, &lab.dir.root_pem())?,
        "bootstrap listener",
    )?;
    let without_tls = lab.server.bootstrap.replace("mqtts", "mqtt");
    told(&mut device.provision_at(&without_tls, &lab.dir.root_pem())?, &lab.server.bootstrap)?;
    let other = AssayDir::init()?;
    told(&mut device.provision_at(&lab.server.bootstrap, &other.root_pem())?, "--ca-root")
}

#[test]
fn publishing_at_the_bootstrap_listener_is_told_with_the_right_one() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, flow) in ["ticket", "shared-key"].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        lab.provision(&device, &["--flow", flow])?;
        let mut publish =
            device.publish_at(&lab.server.bootstrap, &lab.dir.root_pem(), "telemetry", "21.5")?;
        told(&mut publish, "operational listener").context(flow)?;
        run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    }
    Ok(())
}

#[test]
fn device_that_is_there_before_the_worker_is_provisioned_once_it_comes() -> Result<()> {
    let dir = AssayDir::init()?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let tpm = vendor.device(EkKind::P256, 0)?;
    let mut provision = Device::new(&tpm)?.provision_at(&broker, &dir.root_pem())?;
    let device = provision.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    thread::sleep(Duration::from_millis(1500));
    let _worker = Worker::start(&dir, &broker)?;
    let started = Instant::now();
    let Output { status, stderr, .. } = device.wait_with_output()?;
    let said = String::from_utf8_lossy(&stderr);
    ensure!(status.success() && said.contains("no CA serves scope default"), "{said}");
    ensure!(
        started.elapsed() < Duration::from_secs(15),
        "it waits for a reply that cannot come: {said}"
    );
    Ok(())
}

#[test]
fn status_says_by_its_exit_code_whether_the_device_can_sign_in() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let status = |code: i32, state: &str| -> Result<()> {
        let output = device.status()?.output()?;
        let json: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(output.status.code() == Some(code) && json["state"] == state, "{output:?}");
        Ok(())
    };
    status(8, "no-state")?;
    lab.refused(&device, &["--device-id", "pump-17"], "device-id-not-enrolled")?;
    status(8, "nothing-granted")?;
    lab.provision(&device, &[])?;
    status(0, "provisioned")
}

#[test]
fn device_with_a_broken_state_file_gets_what_it_had() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, flow) in ["ticket", "sealed", "shared-key"].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let first = lab.provision(&device, &["--flow", flow])?;
        let before = tpm.persistent_handles()?;
        fs::write(device.state().join("device.json"), "{\"in_use\": and then the power fai")?;
        let publish = device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?;
        ensure!(publish.status.code() == Some(6), "{publish:?}");

        let second = lab.provision(&device, &["--flow", flow]).context(flow)?;
        ensure!(
            second["device_id"] == first["device_id"] && second["serial"] == first["serial"],
            "{flow}: {second}"
        );
        ensure!(tpm.persistent_handles()? == before, "{flow}");
        ensure!(device.state().join("device.json.broken").exists());
        run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    }
    Ok(())
}

/// Checks for exit code 3 within seconds, after one attempt, and for `what` on stderr.
fn told(command: &mut Command, what: &str) -> Result<()> {
    let started = Instant::now();
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(3) && said.contains(what),
        "{command:?}: {}: {said}",
        output.status
    );
    ensure!(said.contains("What to do: ") && !said.contains("trying again"), "{said}");
    ensure!(started.elapsed() < Duration::from_secs(20), "after {:?}", started.elapsed());
    Ok(())
}
