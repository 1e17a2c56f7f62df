//! `assay-device rekey`: another identity key takes the place of the one in use, whatever is killed.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{
    Agent, AssayDir, Device, EVERY_FLOW, EkKind, Mosquitto, Worker, json, run, trusted_vendor,
};
use serde_json::Value;

use crate::lab::{Lab, refused_with};
use crate::renewing::{signs_in, spawn_told, wait_for_step};

/// Certificates count in seconds, and a claim must be newer than the certificate in force.
const A_SECOND: Duration = Duration::from_millis(1100);

fn rekey(lab: &Lab, device: &Device, arguments: &[&str]) -> Result<Value> {
    thread::sleep(A_SECOND);
    json(device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?.args(arguments))
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str> {
    value[name].as_str().with_context(|| format!("no {name} in {value}"))
}

#[test]
fn a_device_rekeys_to_every_kind_of_key_and_the_certificate_before_is_revoked() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, (flow, kinds)) in
        [("ticket", ["p-256", "p-256", "p-384"]), ("sealed", ["p-384", "rsa-2048", "p-256"])]
            .into_iter()
            .enumerate()
    {
        let tpm = vendor.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let mut old = lab.provision(&device, &["--flow", flow, "--ik", kinds[0]])?;
        let id = text(&old, "device_id")?.to_owned();
        for (count, kind) in (1..).zip(&kinds[1..]) {
            let (state, certificate) = (device.state(), device.state().join("certificate.pem"));
            let before = fs::read(state.join("device.json"))?;
            let new = rekey(&lab, &device, &["--ik", kind])?;
            ensure!(new["renewal"] == "rekeyed" && new["ik"] == *kind, "{new}");
            ensure!(new["serial"] != old["serial"] && new["device_id"] == *id, "{new}");
            ensure!(new["flow"] == flow && new["requests"] == 3, "{new}");
            let statuses = lab.statuses(&id)?;
            ensure!(statuses.iter().filter(|it| *it == "superseded").count() == count);
            ensure!(statuses.last().is_some_and(|it| it == "active"), "{statuses:?}");
            lab.openssl_verifies(&certificate)?;
            signs_in(&lab, &device)?;
            ensure!(is_revoked(&lab, text(&old, "serial")?)?, "{old} is on no list");
            ensure!(!is_revoked(&lab, text(&new, "serial")?)?);

            // The old key is gone, with what is needed to load it.
            let status = json(&mut device.status()?)?;
            let handle = text(&status, "ik_handle")?;
            let kept = format!("identity-{}.private", handle.trim_start_matches("0x"));
            let private = |entry: fs::DirEntry| {
                let name = entry.file_name().into_string().ok()?;
                name.ends_with(".private").then_some(name)
            };
            let found: Vec<_> =
                fs::read_dir(&state)?.filter_map(|entry| private(entry.ok()?)).collect();
            ensure!(found == [kept], "{found:?}");
            let after = fs::read(state.join("device.json"))?;
            fs::write(state.join("device.json"), before)?;
            ensure!(signs_in(&lab, &device).is_err(), "the key before it is in no TPM");
            fs::write(state.join("device.json"), after)?;
            ensure!(lab.provision(&device, &[])?["serial"] == new["serial"]);
            old = new;
        }
    }
    Ok(())
}

#[test]
fn a_device_rekeys_over_a_broker_that_is_not_ours() -> Result<()> {
    let dir = AssayDir::init()?;
    fs::write(dir.path().join("assay.toml"), EVERY_FLOW)?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let _worker = Worker::start(&dir, &broker)?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let old = json(&mut device.provision_at(&broker, &dir.root_pem())?)?;
    thread::sleep(A_SECOND);
    let new = json(&mut device.rekey_at(&broker, &dir.root_pem())?)?;
    ensure!(new["renewal"] == "rekeyed" && new["serial"] != old["serial"], "{new}");
    Ok(())
}

#[test]
fn a_device_killed_at_any_step_of_a_rekey_signs_in_and_ends_with_one_certificate() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for step in 0.. {
        let tpm = vendor.device(EkKind::P256, step)?;
        let device = Device::new(&tpm)?;
        let old = lab.provision(&device, &[])?;
        let id = text(&old, "device_id")?;
        thread::sleep(A_SECOND);
        let command = device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?;
        let mut running = spawn_told(command)?;
        let finished = wait_for_step(&mut running, step)?;
        running.kill()?;
        running.wait()?;

        let at = || format!("killed at step {step}");
        signs_in(&lab, &device).with_context(at)?;
        lab.provision(&device, &[]).with_context(at)?;
        signs_in(&lab, &device).with_context(at)?;
        ensure!(lab.active_certificates(id)? == 1, "{}", at());
        if !finished {
            let new = rekey(&lab, &device, &[]).with_context(at)?;
            ensure!(new["renewal"] == "rekeyed", "{}: {new}", at());
            signs_in(&lab, &device).with_context(at)?;
            ensure!(lab.active_certificates(id)? == 1, "{}", at());
        } else {
            ensure!(step > 8, "a rekey has more than {step} steps");
            return Ok(());
        }
    }
    unreachable!("a rekey has an end")
}

#[test]
fn a_server_killed_at_any_step_of_a_rekey_leaves_devices_that_sign_in() -> Result<()> {
    let mut lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    // These delays after the last step lead to moments before, in and after a commit.
    let extra_delays = [0, 2, 5, 12].map(Duration::from_millis);
    for step in 2..10 {
        let tpm = vendor.device(EkKind::P256, step)?;
        let device = Device::new(&tpm)?;
        let id = text(&lab.provision(&device, &[])?, "device_id")?.to_owned();
        let delay = extra_delays[step % extra_delays.len()];
        thread::sleep(A_SECOND);
        let command = device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?;
        let mut running = spawn_told(command)?;
        wait_for_step(&mut running, step)?;
        thread::sleep(delay);
        lab.server.restart()?;
        let status = running.wait()?;
        let at = || format!("killed {delay:?} after step {step}");
        ensure!(status.success(), "{}: {status}", at());
        signs_in(&lab, &device).with_context(at)?;
        lab.provision(&device, &[]).with_context(at)?;
        ensure!(lab.active_certificates(&id)? == 1, "{}", at());
        let waiting = lab.statuses(&id)?.iter().filter(|it| *it == "unconfirmed").count();
        ensure!(waiting == 0, "{}: {waiting} certificates wait", at());
    }
    Ok(())
}

#[test]
fn a_device_whose_state_was_put_back_comes_back_by_itself() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    let id = text(&old, "device_id")?;
    let backup = fs::read(device.state().join("device.json"))?;
    let new = rekey(&lab, &device, &[])?;
    fs::write(device.state().join("device.json"), backup)?;
    ensure!(signs_in(&lab, &device).is_err(), "the key before is gone");
    thread::sleep(A_SECOND);
    let back = lab.provision(&device, &[])?;
    ensure!(back["serial"] != new["serial"] && back["device_id"] == *id, "{back}");
    ensure!(lab.active_certificates(id)? == 1);
    signs_in(&lab, &device)
}

#[test]
fn a_policy_that_keeps_the_key_refuses_a_rekey_and_the_certificate_stays() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.enroll(&tpm, EkKind::P256, "pump-1", &["--reprovision", "never"])?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    thread::sleep(A_SECOND);
    let refused = device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?.output()?;
    refused_with(&refused, "reprovision-refused")?;
    ensure!(json(&mut device.status()?)?["serial"] == old["serial"]);
    ensure!(lab.statuses("pump-1")? == ["active"]);
    signs_in(&lab, &device)
}

#[test]
fn a_device_without_a_certificate_has_nothing_to_rekey() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let mut early = device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?;
    ensure!(early.output()?.status.code() == Some(8));
    lab.provision(&device, &["--flow", "shared-key"])?;
    let mut keyed = device.rekey_at(&lab.server.bootstrap, &lab.dir.root_pem())?;
    ensure!(keyed.output()?.status.code() == Some(2), "a shared key is no certificate");
    Ok(())
}

#[test]
fn an_agent_goes_on_with_the_new_key_when_another_process_rekeys() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says(&format!("by certificate {}", text(&old, "serial")?), 1)?;
    let new = rekey(&lab, &device, &["--ik", "p-384"])?;
    agent.says(&format!("by certificate {}", text(&new, "serial")?), 1)?;
    let export = run(&mut device.export_key("handle")?)?;
    let handle = text(&json(&mut device.status()?)?, "ik_handle")?.to_owned();
    ensure!(String::from_utf8(export.stdout)?.trim() == format!("handle:{handle}"));
    Ok(())
}

/// Whether the CA's list of revoked devices names this serial number, within a few seconds.
fn is_revoked(lab: &Lab, serial: &str) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(1);
    let file = lab.dir.path().join("rekey.crl");
    loop {
        fs::write(&file, lab.assay(&["crl", "--pem"])?.stdout)?;
        let mut openssl = assay_tests::tool("openssl")?;
        let shown = run(openssl.args(["crl", "-noout", "-text", "-in"]).arg(&file))?;
        let shown = String::from_utf8(shown.stdout)?.to_lowercase();
        if shown.contains(serial) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(100));
    }
}
