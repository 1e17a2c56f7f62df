//! `assay-device` rotates its shared key: what it has before, in between and afterwards, whatever
//! is killed, and without anybody who helps.

use std::fs;
use std::process::Child;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use assay_tests::{Agent, Device, EkKind, Swtpm, json, run, trusted_vendor};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::renewing::{signs_in, spawn_told, wait_for_step};
use crate::resident::{eventually, script};

const FIRST: &str = "0x81000100";
const SECOND: &str = "0x81000101";

/// A device that has signed in with its first key.
fn provisioned(lab: &Lab, number: usize) -> Result<(Swtpm, Device, String)> {
    let tpm = trusted_vendor()?.device(EkKind::P256, number)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &["--flow", "shared-key"])?;
    signs_in(lab, &device)?;
    let id = provisioned["device_id"].as_str().context("an id")?.to_owned();
    Ok((tpm, device, id))
}

#[test]
fn a_key_that_is_due_is_rotated_by_provision_and_the_one_before_goes_at_the_next_sign_in()
-> Result<()> {
    let lab = Lab::open()?;
    let (tpm, device, id) = provisioned(&lab, 0)?;
    let status = json(&mut device.status()?)?;
    let rotate_at = status["rotate_at"].as_str().context("a time")?.to_owned();
    ensure!(status["rotation_due"] == false && status["confirmed"] == true, "{status}");
    ensure!(lab.provision(&device, &[])?["renewal"].is_null(), "it is not due");

    is_due(&device)?;
    ensure!(json(&mut device.status()?)?["rotation_due"] == true);
    let new = lab.provision(&device, &[])?;
    ensure!(new["renewal"] == "rotated" && new["requests"] == 1, "{new}");
    ensure!(new["device_id"] == *id && new["hmac_handle"] == SECOND, "{new}");
    let status = json(&mut device.status()?)?;
    ensure!(status["hmac_handle"] == SECOND && status["confirmed"] == false, "{status}");
    ensure!(status["rotation_due"] == false && status["rotate_at"] != *rotate_at, "{status}");
    ensure!(hmac_keys(&tpm)? == [FIRST, SECOND], "nobody has tried the next one");
    ensure!(generation(&lab, &id)? == 1);

    signs_in(&lab, &device)?;
    ensure!(hmac_keys(&tpm)? == [SECOND]);
    ensure!(generation(&lab, &id)? == 2);
    ensure!(json(&mut device.status()?)?["confirmed"] == true);
    ensure!(lab.provision(&device, &[])?["renewal"].is_null(), "it is not due again");
    // The next one goes where the first one was.
    is_due(&device)?;
    ensure!(lab.provision(&device, &[])?["hmac_handle"] == FIRST);
    signs_in(&lab, &device)?;
    ensure!(hmac_keys(&tpm)? == [FIRST]);
    Ok(())
}

#[test]
fn a_resident_agent_rotates_its_key_by_itself_and_goes_over_to_the_next() -> Result<()> {
    let lab = Lab::open()?;
    let (tpm, device, id) = provisioned(&lab, 0)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    set_rotation(&device, json!({ "from": now, "at": now + 4 }))?;
    let (heard, hook) = (tpm.work_dir().join("heard"), tpm.work_dir().join("hook"));
    script(&hook, &format!("echo $ASSAY_DEVICE_ID >> {}\n", heard.display()))?;
    let mut command = device.run(&lab.dir, &lab.server)?;
    command.arg("--on-renewed").arg(&hook);
    let agent = Agent::start(command)?;
    agent.says("by a token", 1)?;
    agent.says(&format!("{id} has its key, to be rotated at "), 1)?;
    agent.says("by a token", 2)?;
    eventually(|| Ok(hmac_keys(&tpm)? == [SECOND]))?;
    ensure!(generation(&lab, &id)? == 2);
    eventually(|| Ok(fs::read_to_string(&heard).is_ok_and(|text| text == format!("{id}\n"))))?;
    let status = json(&mut device.status()?)?;
    ensure!(status["confirmed"] == true && status["rotation_due"] == false, "{status}");
    ensure!(agent.count("has its key") == 1 && agent.count("not renewed") == 0, "{}", agent.log());
    Ok(())
}

#[test]
fn an_agent_killed_in_the_middle_of_a_rotation_finishes_it_at_its_next_start() -> Result<()> {
    let mut lab = Lab::open()?;
    let (tpm, device, id) = provisioned(&lab, 0)?;
    is_due(&device)?;
    // The next key is there, and no broker has seen it.
    ensure!(lab.provision(&device, &[])?["renewal"] == "rotated");
    lab.server.kill9()?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("not connected", 1)?;
    agent.signal("KILL")?;
    ensure!(hmac_keys(&tpm)? == [FIRST, SECOND]);
    lab.server.restart()?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("by a token", 1)?;
    eventually(|| Ok(hmac_keys(&tpm)? == [SECOND]))?;
    ensure!(generation(&lab, &id)? == 2);
    Ok(())
}

/// Somebody on the way may have sent the next key. Here, the operator retires what was offered.
#[test]
fn an_agent_whose_next_key_the_broker_does_not_take_goes_back_and_then_asks_the_ca() -> Result<()> {
    let lab = Lab::open()?;
    let (tpm, device, id) = provisioned(&lab, 0)?;
    is_due(&device)?;
    ensure!(lab.provision(&device, &[])?["renewal"] == "rotated");
    lab.assay(&["enroll", "rotate", &id])?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("the HMAC key is not rotated now", 1)?;
    agent.says("by a token", 1)?;
    eventually(|| Ok(hmac_keys(&tpm)?.len() == 1))?;
    ensure!(generation(&lab, &id)? == 3);
    Ok(())
}

#[test]
fn a_device_killed_at_any_step_of_a_rotation_signs_in_and_ends_with_one_key() -> Result<()> {
    let lab = Lab::open()?;
    for step in 0.. {
        let (tpm, device, id) = provisioned(&lab, step)?;
        is_due(&device)?;
        let mut running = start(&lab, &device)?;
        let finished = wait_for_step(&mut running, step)?;
        running.kill()?;
        running.wait()?;

        let at = || format!("killed at step {step}");
        signs_in(&lab, &device).with_context(at)?;
        lab.provision(&device, &[]).with_context(at)?;
        signs_in(&lab, &device).with_context(at)?;
        ensure!(generation(&lab, &id)? == 2, "{}", at());
        ensure!(hmac_keys(&tpm)?.len() == 1, "{}: {:?}", at(), hmac_keys(&tpm)?);
        if finished {
            ensure!(step > 5, "a rotation has more than {step} steps");
            return Ok(());
        }
    }
    unreachable!("a rotation has an end")
}

#[test]
fn a_server_killed_at_any_step_of_a_rotation_leaves_devices_that_sign_in() -> Result<()> {
    let mut lab = Lab::open()?;
    for step in 0..6 {
        let (tpm, device, id) = provisioned(&lab, step)?;
        for (round, delay) in (0..).zip([0, 2, 5, 12].map(Duration::from_millis)) {
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
            let found = generation(&lab, &id)?;
            ensure!(found == round + 2, "{}: {found}", at());
            ensure!(hmac_keys(&tpm)?.len() == 1, "{}: {:?}", at(), hmac_keys(&tpm)?);
        }
    }
    Ok(())
}

#[test]
fn a_device_that_may_not_be_provisioned_again_keeps_its_key_and_says_so() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.enroll(&tpm, EkKind::P256, "pump-17", &["--reprovision", "never"])?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &["--flow", "shared-key"])?;
    signs_in(&lab, &device)?;
    is_due(&device)?;
    let mut provision = device.provision(&lab.dir, &lab.server)?;
    let output = run(&mut provision)?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        said.contains("the HMAC key is not rotated now") && said.contains("reprovision"),
        "{said}"
    );
    signs_in(&lab, &device)?;
    ensure!(json(&mut device.status()?)?["rotation_due"] == false, "it asks later");
    ensure!(hmac_keys(&tpm)? == [FIRST]);
    Ok(())
}

#[test]
fn a_ca_that_gives_the_same_key_by_policy_says_when_to_come_again() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.enroll(&tpm, EkKind::P256, "pump-17", &["--reprovision", "reuse"])?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &["--flow", "shared-key"])?;
    signs_in(&lab, &device)?;
    is_due(&device)?;
    let kept = lab.provision(&device, &[])?;
    ensure!(kept["renewal"] == "not-due" && kept["hmac_handle"] == FIRST, "{kept}");
    ensure!(json(&mut device.status()?)?["rotation_due"] == false);
    ensure!(hmac_keys(&tpm)? == [FIRST]);
    signs_in(&lab, &device)
}

#[test]
fn the_setting_of_the_ca_says_when_and_without_it_the_device_takes_the_usual_time() -> Result<()> {
    const DAY: u64 = 86_400;
    for (days, due) in [(8, 6 * DAY..8 * DAY), (0, 89 * DAY..91 * DAY)] {
        let lab = Lab::with_settings(&format!("[shared_keys]\nrotate_days = {days}"))?;
        let (_tpm, device, _) = provisioned(&lab, 0)?;
        let memory: Value = serde_json::from_slice(&fs::read(device.state().join("device.json"))?)?;
        let rotation = &memory["in_use"]["shared-key"]["rotation"];
        let at = |name: &str| rotation[name].as_u64().context("a time");
        ensure!(due.contains(&(at("at")? - at("from")?)), "{days}: {rotation}");
    }
    Ok(())
}

#[test]
fn a_key_of_an_earlier_version_is_rotated_at_once() -> Result<()> {
    let lab = Lab::open()?;
    let (_tpm, device, _) = provisioned(&lab, 0)?;
    let file = device.state().join("device.json");
    let mut memory: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let grant = memory["in_use"]["shared-key"].as_object_mut().context("a shared key")?;
    grant.remove("rotation");
    grant["record"].as_object_mut().context("a record")?.remove("first_handle");
    fs::write(&file, memory.to_string())?;
    ensure!(lab.provision(&device, &[])?["renewal"] == "rotated");
    signs_in(&lab, &device)
}

/// Has the device believe that its key is due.
fn is_due(device: &Device) -> Result<()> {
    set_rotation(device, json!({ "from": 0, "at": 1 }))
}

fn set_rotation(device: &Device, rotation: Value) -> Result<()> {
    let file = device.state().join("device.json");
    let mut memory: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let grant = memory["in_use"]["shared-key"].as_object_mut().context("a shared key")?;
    grant.insert("rotation".into(), rotation);
    Ok(fs::write(&file, memory.to_string())?)
}

/// The persistent handles of HMAC keys.
fn hmac_keys(tpm: &Swtpm) -> Result<Vec<String>> {
    let listed = tpm.tpm2(&["getcap", "handles-persistent"])?;
    let listed = String::from_utf8(listed.stdout)?.to_lowercase();
    let handles = listed.lines().filter_map(|line| line.trim().strip_prefix("- "));
    Ok(handles.filter(|handle| handle.starts_with("0x810001")).map(str::to_owned).collect())
}

/// The generation that the device used last.
fn generation(lab: &Lab, device_id: &str) -> Result<u64> {
    let rows = lab.dir.list("devices")?;
    let row = rows.iter().find(|row| row["device_id"] == device_id).context("a device")?;
    row["shared_key"].as_u64().context("a generation")
}

fn start(lab: &Lab, device: &Device) -> Result<Child> {
    spawn_told(device.provision(&lab.dir, &lab.server)?)
}
