//! `assay-device` renews its certificate: what it has before, in between and afterwards, whatever
//! is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use assay_tests::{
    AssayDir, Device, EVERY_FLOW, EkKind, Mosquitto, Worker, json, run, trusted_vendor,
};
use serde_json::{Value, json};

use crate::lab::{Lab, refused_with};

/// With this, the CA renews every certificate. A renewed one must end later than the one before it,
/// and certificates count in seconds.
const ALWAYS_DUE: &str = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1";
const A_SECOND: Duration = Duration::from_millis(1100);

#[test]
fn a_certificate_that_is_due_is_renewed_by_provision_whatever_the_flow_and_the_key() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let vendor = trusted_vendor()?;
    for (number, (flow, ik)) in
        [("ticket", "p-256"), ("sealed", "p-384"), ("ticket", "rsa-2048")].into_iter().enumerate()
    {
        let tpm = vendor.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let old = lab.provision(&device, &["--flow", flow, "--ik", ik])?;
        let id = old["device_id"].as_str().context("an id")?;
        ensure!(old["renewal"].is_null() && old["renew_at"].is_string(), "{old}");
        ensure!(lab.provision(&device, &[])?["serial"] == old["serial"], "it is not due");

        is_due(&device)?;
        let new = lab.provision(&device, &[])?;
        ensure!(new["renewal"] == "renewed" && new["requests"] == 2, "{new}");
        ensure!(new["serial"] != old["serial"] && new["device_id"] == id && new["flow"] == flow);
        ensure!(lab.statuses(id)? == ["superseded", "active"], "{flow}, {ik}");
        lab.openssl_verifies(Path::new(new["certificate"].as_str().context("a path")?))?;
        signs_in(&lab, &device)?;
        let status = json(&mut device.status()?)?;
        ensure!(status["serial"] == new["serial"] && status["renew_at"] == new["renew_at"]);
        ensure!(status["confirmed"] == true && status["attempt"].is_null(), "{status}");
        ensure!(lab.provision(&device, &[])?["renewal"].is_null(), "it is not due again");
    }
    Ok(())
}

#[test]
fn a_certificate_is_renewed_over_a_broker_that_is_not_ours() -> Result<()> {
    let dir = AssayDir::init()?;
    fs::write(dir.path().join("assay.toml"), format!("{EVERY_FLOW}\n{ALWAYS_DUE}"))?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let _worker = Worker::start(&dir, &broker)?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provision = || json(&mut device.provision_at(&broker, &dir.root_pem())?);
    let old = provision()?;
    is_due(&device)?;
    let new = provision()?;
    ensure!(new["renewal"] == "renewed" && new["serial"] != old["serial"], "{new}");
    Ok(())
}

#[test]
fn a_device_that_is_told_to_renew_does_so_if_the_ca_agrees_and_says_so_if_it_does_not() -> Result<()>
{
    let vendor = trusted_vendor()?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let lab = Lab::open()?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    let output = run(&mut device.renew(&lab.dir, &lab.server)?)?;
    let kept: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(kept["renewal"] == "not-due" && kept["serial"] == old["serial"], "{kept}");
    let told = String::from_utf8(output.stderr)?;
    ensure!(told.contains("is not due for renewal"), "{told}");
    ensure!(told.contains(kept["renew_at"].as_str().context("a time")?), "{told}");

    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let device = Device::new(&tpm)?;
    let mut early = device.renew(&lab.dir, &lab.server)?;
    ensure!(early.output()?.status.code() == Some(8), "it has nothing to renew");
    let old = lab.provision(&device, &[])?;
    thread::sleep(A_SECOND);
    let new = json(&mut device.renew(&lab.dir, &lab.server)?)?;
    ensure!(new["renewal"] == "renewed" && new["serial"] != old["serial"], "{new}");
    signs_in(&lab, &device)?;

    lab.provision(&device, &["--flow", "shared-key"])?;
    let mut keyed = device.renew(&lab.dir, &lab.server)?;
    ensure!(keyed.output()?.status.code() == Some(2), "a shared key is not renewed");
    Ok(())
}

#[test]
fn status_says_when_the_device_renews_and_whether_that_is_due() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &[])?;
    let shown = json(&mut device.status()?)?["renew_at"].clone();
    ensure!(shown == provisioned["renew_at"], "{shown}");
    let line = |device: &Device| -> Result<String> {
        let mut status = device.status()?;
        let (program, state) = (status.get_program().to_owned(), device.state());
        status = Command::new(program);
        let output = run(status.args(["status", "--state"]).arg(state))?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().find(|line| line.starts_with("renewal")).context(text.clone())?.to_owned())
    };
    ensure!(line(&device)? == format!("renewal       {}", shown.as_str().context("a time")?));
    set_renew_at(&device, json!(1))?;
    ensure!(line(&device)?.ends_with("Z  due"));
    // As an earlier version wrote it: a third of the lifetime before the end.
    set_renew_at(&device, Value::Null)?;
    ensure!(!line(&device)?.ends_with("due"));
    ensure!(lab.provision(&device, &[])?["renewal"].is_null());
    Ok(())
}

#[test]
fn a_device_killed_at_any_step_of_a_renewal_signs_in_and_ends_with_one_certificate() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let vendor = trusted_vendor()?;
    for step in 0.. {
        let tpm = vendor.device(EkKind::P256, step)?;
        let device = Device::new(&tpm)?;
        let old = lab.provision(&device, &[])?;
        let id = old["device_id"].as_str().context("an id")?;
        is_due(&device)?;
        let mut running = start(&lab, &device)?;
        let finished = wait_for_step(&mut running, step)?;
        running.kill()?;
        running.wait()?;

        let at = || format!("killed at step {step}");
        signs_in(&lab, &device).with_context(at)?;
        let new = lab.provision(&device, &[]).with_context(at)?;
        ensure!(new["serial"] != old["serial"], "{}: {new}", at());
        ensure!(lab.statuses(id)? == ["superseded", "active"], "{}", at());
        signs_in(&lab, &device).with_context(at)?;
        if finished {
            ensure!(step > 4, "a renewal has more than {step} steps");
            return Ok(());
        }
    }
    unreachable!("a renewal has an end")
}

#[test]
fn a_server_killed_at_any_step_of_a_renewal_leaves_devices_that_sign_in() -> Result<()> {
    let mut lab = Lab::with_settings(ALWAYS_DUE)?;
    let vendor = trusted_vendor()?;
    // These delays after the last step lead to moments before, in and after a commit.
    let extra_delays = [0, 2, 5, 12].map(Duration::from_millis);
    for step in 0..6 {
        let tpm = vendor.device(EkKind::P256, step)?;
        let device = Device::new(&tpm)?;
        let id = lab.provision(&device, &[])?["device_id"].clone();
        let id = id.as_str().context("an id")?;
        for delay in extra_delays {
            is_due(&device)?;
            let mut running = start(&lab, &device)?;
            wait_for_step(&mut running, step)?;
            thread::sleep(delay);
            lab.server.restart()?;
            let status = running.wait()?;
            let at = || format!("killed {delay:?} after step {step}");
            ensure!(status.success(), "{}: {status}", at());
            signs_in(&lab, &device).with_context(at)?;
            lab.provision(&device, &[]).with_context(at)?;
            signs_in(&lab, &device).with_context(at)?;
            ensure!(lab.active_certificates(id)? == 1, "{}", at());
            let waiting = lab.statuses(id)?.iter().filter(|it| *it == "unconfirmed").count();
            ensure!(waiting == 0, "{}: {waiting} certificates wait", at());
        }
    }
    Ok(())
}

#[test]
fn a_device_whose_ca_is_away_is_provisioned_as_long_as_its_certificate_is_good() -> Result<()> {
    let mut lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    is_due(&device)?;
    lab.server.kill9()?;
    let kept = lab.provision(&device, &["--deadline", "5"])?;
    ensure!(kept["renewal"] == "postponed" && kept["serial"] == old["serial"], "{kept}");
    let mut told = device.renew(&lab.dir, &lab.server)?;
    ensure!(told.args(["--deadline", "5"]).output()?.status.code() == Some(4));
    lab.server.restart()?;
    ensure!(lab.provision(&device, &[])?["renewal"] == "renewed");
    signs_in(&lab, &device)
}

#[test]
fn a_device_that_lost_what_it_stored_of_a_renewal_comes_back_by_itself() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    let id = old["device_id"].as_str().context("an id")?;
    is_due(&device)?;
    let backup = fs::read(device.state().join("device.json"))?;
    let new = lab.provision(&device, &[])?;
    fs::write(device.state().join("device.json"), backup)?;
    ensure!(signs_in(&lab, &device).is_err(), "the old certificate is superseded");
    let back = lab.provision(&device, &[])?;
    ensure!(back["serial"] == new["serial"] && back["renewal"].is_null(), "{back}");
    ensure!(lab.statuses(id)? == ["superseded", "active"]);
    signs_in(&lab, &device)
}

#[test]
fn a_disabled_device_keeps_what_it_has_and_renews_when_it_is_enabled() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    let id = old["device_id"].as_str().context("an id")?;
    is_due(&device)?;
    lab.assay(&["enroll", "disable", id])?;
    let kept = device.provision_at(&lab.server.bootstrap, &lab.dir.root_pem())?.output()?;
    let said = String::from_utf8_lossy(&kept.stderr);
    ensure!(kept.status.success() && said.contains("device-disabled"), "{said}");
    refused_with(&device.renew(&lab.dir, &lab.server)?.output()?, "device-disabled")?;
    ensure!(json(&mut device.status()?)?["serial"] == old["serial"]);
    lab.assay(&["enroll", "enable", id])?;
    ensure!(lab.provision(&device, &[])?["renewal"] == "renewed");
    signs_in(&lab, &device)
}

/// Lets a second pass, and has the device believe that the CA told it to renew before now.
fn is_due(device: &Device) -> Result<()> {
    thread::sleep(A_SECOND);
    set_renew_at(device, json!(1))
}

/// Sets when the CA told a device to renew; without a time, as if by a CA that does not say it.
pub(crate) fn set_renew_at(device: &Device, renew_at: Value) -> Result<()> {
    let file = device.state().join("device.json");
    let mut memory: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let grant = memory["in_use"]["certificate"].as_object_mut().context("a certificate")?;
    if renew_at.is_null() {
        grant.remove("renew_at");
    } else {
        grant.insert("renew_at".into(), renew_at);
    }
    Ok(fs::write(&file, memory.to_string())?)
}

pub(crate) fn signs_in(lab: &Lab, device: &Device) -> Result<()> {
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?).map(drop)
}

fn start(lab: &Lab, device: &Device) -> Result<Child> {
    spawn_told(device.provision(&lab.dir, &lab.server)?)
}

/// Starts a command whose steps are read.
pub(crate) fn spawn_told(mut command: Command) -> Result<Child> {
    Ok(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

/// Waits until the device has reported `step` steps; `true` if it ended before.
pub(crate) fn wait_for_step(device: &mut Child, step: usize) -> Result<bool> {
    let stderr = device.stderr.take().context("stderr is a pipe")?;
    let mut steps: io::Lines<_> = BufReader::new(stderr).lines();
    let finished = steps.by_ref().take(step).count() < step;
    // The device must not die of a closed pipe before it is killed.
    thread::spawn(move || steps.count());
    Ok(finished)
}
