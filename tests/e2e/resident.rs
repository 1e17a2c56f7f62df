//! `assay-device run`: the resident agent, and what an operator sees of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use assay_tests::{Agent, Device, EkKind, json, spawn, trusted_vendor};
use serde_json::json;

use crate::lab::Lab;
use crate::renewing::set_renew_at;

/// With this, the CA renews every certificate. A renewed one must end later than the one before it,
/// and certificates count in seconds.
const ALWAYS_DUE: &str = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1";

#[test]
fn an_operator_sees_when_a_device_comes_is_killed_and_stops() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let operator = Operator::watch(&lab)?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    operator.sees("online")?;
    // It is retained: an operator who comes later sees it too.
    Operator::watch(&lab)?.sees("online")?;

    agent.signal("KILL")?;
    operator.sees("offline")?;

    let mut agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    operator.sees("online")?;
    let told = Instant::now();
    agent.signal("TERM")?;
    operator.sees("offline")?;
    ensure!(agent.wait()?.success() && told.elapsed() < Duration::from_secs(3));
    Operator::watch(&lab)?.sees("offline")?;
    ensure!(operator.sees_nothing(), "its Will was published too");
    Ok(())
}

#[test]
fn a_device_comes_back_when_its_broker_does() -> Result<()> {
    let mut lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let mut agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("online as", 1)?;
    for round in 2..4 {
        lab.server.kill9()?;
        agent.says("offline:", round - 1)?;
        thread::sleep(Duration::from_secs(1));
        lab.server.restart()?;
        agent.says("online as", round)?;
    }
    ensure!(agent.runs()?);
    Ok(())
}

#[test]
fn an_agent_that_starts_before_its_ca_waits_for_it() -> Result<()> {
    let mut lab = Lab::open()?;
    lab.server.kill9()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("not done yet, and the CA is asked again", 1)?;
    thread::sleep(Duration::from_secs(2));
    ensure!(agent.count("the CA is asked again") == 1, "one line for one state");
    lab.server.restart()?;
    agent.says("online as", 1)
}

#[test]
fn a_certificate_that_is_due_is_renewed_and_the_connection_goes_over_to_it() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let old = lab.provision(&device, &[])?;
    let id = old["device_id"].as_str().context("an id")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    set_renew_at(&device, json!(now + 4))?;

    let heard = tpm.work_dir().join("heard");
    let hook = tpm.work_dir().join("hook");
    let text = format!(
        "echo \"$1 $ASSAY_DEVICE_ID $ASSAY_STATE $ASSAY_CERTIFICATE \
         ${{ASSAY_OWNER_AUTH-none}}\" >> {}\n",
        heard.display()
    );
    script(&hook, &text)?;
    let mut command = device.run(&lab.dir, &lab.server)?;
    command.env("ASSAY_OWNER_AUTH", "").arg("--on-renewed");
    let agent = Agent::start({
        command.arg(format!("{} renewed", hook.display()));
        command
    })?;
    let operator = Operator::watch(&lab)?;
    operator.sees("online")?;
    let old_serial = old["serial"].as_str().context("a serial number")?;
    agent.says(&format!("by certificate {old_serial}"), 1)?;

    agent.says("online as", 2)?;
    let new = json(&mut device.status()?)?;
    let new_serial = new["serial"].as_str().context("a serial number")?;
    ensure!(new_serial != old_serial);
    agent.says(&format!("by certificate {new_serial}"), 1)?;
    ensure!(lab.statuses(id)? == ["superseded", "active"]);
    // The new connection ends the old one, whose Will comes first.
    operator.sees("offline")?;
    let gone = Instant::now();
    operator.sees("online")?;
    ensure!(gone.elapsed() < Duration::from_secs(3), "it was away for {:?}", gone.elapsed());
    let expected = format!(
        "renewed {id} {} {} none\n",
        device.state().display(),
        device.state().join("certificate.pem").display()
    );
    eventually(|| Ok(fs::read_to_string(&heard).is_ok_and(|text| text == expected)))
}

#[test]
fn a_device_renews_over_its_own_connection_where_nobody_listens_for_strangers() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let id = lab.provision(&device, &[])?["device_id"].clone();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    set_renew_at(&device, json!(now + 4))?;
    let nowhere = "mqtts://127.0.0.1:1";
    let command = device.run_at(nowhere, &lab.server.operational, &lab.dir.root_pem())?;
    let agent = Agent::start(command)?;
    agent.says("online as", 2)?;
    ensure!(lab.statuses(id.as_str().context("an id")?)? == ["superseded", "active"]);
    ensure!(agent.count("not reached") == 0, "{}", agent.log());
    Ok(())
}

#[test]
fn a_program_for_new_certificates_that_fails_costs_a_line_and_nothing_else() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let mut command = device.run(&lab.dir, &lab.server)?;
    command.args(["--on-renewed", "/bin/false"]);
    let mut agent = Agent::start(command)?;
    agent.says("the program for new certificates failed: /bin/false: exit status: 1", 1)?;
    agent.says("online as", 1)?;
    ensure!(agent.runs()?);
    Ok(())
}

#[test]
fn a_disabled_device_says_so_once_and_is_back_when_it_is_enabled() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let id = lab.provision(&device, &[])?["device_id"].clone();
    let id = id.as_str().context("an id")?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("online as", 1)?;
    lab.assay(&["enroll", "disable", id])?;
    agent.says("device-disabled", 1)?;
    // It asks again and again, with growing pauses.
    eventually(|| {
        let refused = lab.dir.list("audit")?;
        Ok(refused.iter().filter(|row| row["problem"] == "device-disabled").count() > 2)
    })?;
    ensure!(agent.count("device-disabled") == 1, "one line for one state");
    lab.assay(&["enroll", "enable", id])?;
    agent.says("online as", 2)?;
    ensure!(lab.statuses(id)? == ["active"], "the same certificate");
    Ok(())
}

#[test]
fn a_device_whose_tpm_is_away_or_cleared_goes_on_when_it_is_back() -> Result<()> {
    let mut lab = Lab::open()?;
    let mut tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("online as", 1)?;
    tpm.kill()?;
    lab.server.restart()?;
    agent.says("no TPM at", 1)?;
    tpm.start()?;
    agent.says("online as", 2)?;

    tpm.clear()?;
    lab.server.restart()?;
    agent.says("no longer holds an identity key", 1)?;
    agent.says("online as", 3)
}

#[test]
fn a_state_directory_that_somebody_deletes_costs_nothing() -> Result<()> {
    let mut lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("online as", 1)?;
    let before = json(&mut device.status()?)?;
    fs::remove_dir_all(device.state())?;
    lab.server.restart()?;
    agent.says("online as", 2)?;
    ensure!(json(&mut device.status()?)?["serial"] == before["serial"]);
    Ok(())
}

#[test]
fn a_device_with_a_shared_key_is_online_by_a_token() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let operator = Operator::watch(&lab)?;
    let mut command = device.run(&lab.dir, &lab.server)?;
    command.args(["--flow", "shared-key"]);
    let agent = Agent::start(command)?;
    operator.sees("online")?;
    agent.says("by a token", 1)
}

#[test]
fn other_commands_use_the_state_while_the_agent_runs_and_a_second_agent_does_not() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("online as", 1)?;
    ensure!(lab.provision(&device, &[])?["renewal"].is_null());
    let mut second = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    second.says("another assay-device runs as its resident agent", 1)?;
    ensure!(second.wait()?.code() == Some(6));
    Ok(())
}

/// `assay watch` on the presence of devices.
struct Operator {
    watch: Child,
    lines: mpsc::Receiver<String>,
}

impl Operator {
    fn watch(lab: &Lab) -> Result<Self> {
        let filter = "device/v1/default/+/presence";
        let mut command = lab.dir.assay(&["watch", "--broker", &lab.server.operational, filter])?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut watch = spawn(command)?;
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

    /// Waits for the next message, which must say this.
    fn sees(&self, presence: &str) -> Result<()> {
        let line = self.lines.recv_timeout(PATIENCE).with_context(|| format!("no {presence}"))?;
        ensure!(line.ends_with(&format!("/presence {presence}")), "{line}");
        Ok(())
    }

    fn sees_nothing(&self) -> bool {
        self.lines.recv_timeout(Duration::from_millis(500)).is_err()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        _ = self.watch.kill();
        _ = self.watch.wait();
    }
}

/// Writes a program for `sh`.
pub(crate) fn script(file: &Path, text: &str) -> Result<()> {
    fs::write(file, format!("#!/bin/sh\n{text}"))?;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o700))?)
}

pub(crate) fn eventually(is_so: impl Fn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not within {} s", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// For what takes seconds, and for delays that grow.
const PATIENCE: Duration = Duration::from_secs(60);
