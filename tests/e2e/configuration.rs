//! Documents that an operator attaches to devices: on their way, kept, told of, and refused.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use assay_tests::{Agent, AssayDir, Device, EkKind, json, run, trusted_vendor};

use crate::external_brokers::Deployed;
use crate::lab::Lab;
use crate::resident::{eventually, script};

#[test]
fn a_document_comes_with_the_certificate_in_either_flow() -> Result<()> {
    let lab = Lab::open()?;
    let revision = set(&lab.dir, &["--scope"], "{\"interval\": 30}")?;
    for (number, flow) in ["ticket", "sealed"].into_iter().enumerate() {
        let tpm = trusted_vendor()?.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        lab.provision(&device, &["--flow", flow])?;
        ensure!(kept(&device)? == "{\"interval\": 30}", "{flow}");
        ensure!(json(&mut device.status()?)?["configuration"] == revision, "{flow}");
        ensure!(json(&mut device.inspect(&lab.dir)?)?["configuration"] == revision, "{flow}");
    }
    Ok(())
}

/// What takes its place here is a directory, which nothing can replace. A full disk does the same.
#[test]
fn a_document_that_cannot_be_kept_costs_no_certificate_and_comes_again() -> Result<()> {
    let lab = Lab::open()?;
    set(&lab.dir, &["--scope"], "[1]")?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let in_its_place = device.state().join("configuration");
    fs::create_dir_all(&in_its_place)?;
    fs::set_permissions(device.state(), Permissions::from_mode(0o700))?;
    let provisioned = run(&mut device.provision(&lab.dir, &lab.server)?)?;
    let said = String::from_utf8_lossy(&provisioned.stderr).into_owned();
    ensure!(said.contains("the configuration is not taken: it cannot be kept"), "{said}");
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    fs::remove_dir(in_its_place)?;
    run(&mut device.renew(&lab.dir, &lab.server)?)?;
    ensure!(kept(&device)? == "[1]");
    Ok(())
}

#[test]
fn a_devices_own_document_goes_first_and_what_is_removed_goes() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let id = lab.provision(&device, &[])?["device_id"].clone();
    let id = id.as_str().context("an id")?;
    ensure!(device.configuration()?.output()?.status.code() == Some(8), "there is none");
    // The worker may take a second to notice the first one.
    let renewed = |expected: &str| {
        eventually(|| {
            run(&mut device.renew(&lab.dir, &lab.server)?)?;
            Ok(kept(&device).unwrap_or_default() == expected)
        })
    };
    set(&lab.dir, &["--scope"], "[1]")?;
    renewed("[1]")?;
    set(&lab.dir, &["--device", id], "[2]")?;
    set(&lab.dir, &["--scope"], "[3]")?;
    renewed("[2]")?;
    lab.assay(&["configuration", "remove", "--device", id])?;
    renewed("[3]")?;
    let removed = lab.assay(&["configuration", "remove", "--scope"])?;
    renewed("")?;
    ensure!(device.configuration()?.output()?.status.code() == Some(8), "it was removed");
    ensure!(json(&mut device.status()?)?["configuration"] == revision_in(&removed.stderr)?);
    ensure!(lab.assay(&["configuration", "list", "--json"])?.stdout.is_empty());
    Ok(())
}

#[test]
fn a_change_is_told_within_seconds_and_each_revision_once() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let id = lab.provision(&device, &[])?["device_id"].clone();
    let id = id.as_str().context("an id")?;
    let (program, heard) = (tpm.work_dir().join("on-configuration"), tpm.work_dir().join("heard"));
    let fails = tpm.work_dir().join("fails");
    let text = format!(
        "echo \"$1 $ASSAY_DEVICE_ID $ASSAY_REVISION <$(cat)>\" >> {}\n! test -e {}\n",
        heard.display(),
        fails.display()
    );
    script(&program, &text)?;
    let start = || {
        let mut command = device.run(&lab.dir, &lab.server)?;
        command.args(["--on-configuration", &format!("{} told", program.display())]);
        let agent = Agent::start(command)?;
        agent.says("online as", 1)?;
        Ok::<_, anyhow::Error>(agent)
    };
    let mut expected = String::new();
    let mut hears = |revision: u64, text: &str| {
        expected += &format!("told {id} {revision} <{text}>\n");
        eventually(|| Ok(fs::read_to_string(&heard).unwrap_or_default() == expected))
    };
    let agent = start()?;
    let first = set(&lab.dir, &["--device", id], "[1]")?;
    hears(first, "[1]")?;
    agent.says(&format!("{id} has configuration {first}: 3 bytes"), 1)?;
    set(&lab.dir, &["--device", "another"], "[0]")?;
    // The program fails: it did not take this one.
    fs::write(&fails, "")?;
    set(&lab.dir, &["--scope"], "[0]")?;
    let last = set(&lab.dir, &["--device", id], "[4]")?;
    hears(last, "[4]")?;
    agent.says(&format!("the program for configurations failed with revision {last}"), 1)?;
    agent.signal("KILL")?;
    drop(agent);
    fs::remove_file(&fails)?;
    let agent = start()?;
    hears(last, "[4]")?;
    let told = device.state().join("configuration.told");
    eventually(|| Ok(fs::read_to_string(&told).unwrap_or_default() == format!("{last}\n")))?;
    drop(agent);
    // It was taken, so the next start says nothing of it.
    let _agent = start()?;
    lab.assay(&["configuration", "remove", "--scope"])?;
    let removed = lab.assay(&["configuration", "remove", "--device", id])?;
    hears(revision_in(&removed.stderr)?, "")
}

#[test]
fn an_older_document_is_refused_and_the_newer_one_stays() -> Result<()> {
    let mut lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let older = set(&lab.dir, &["--scope"], "[1]")?;
    lab.provision(&device, &[])?;
    lab.server.kill9()?;
    let database = |name: &str| lab.dir.path().join(name);
    let copies = ["assay.db", "assay.db-wal", "assay.db-shm"];
    for name in copies {
        _ = fs::copy(database(name), database(&format!("{name}.older")));
    }
    lab.server.restart()?;
    let newer = set(&lab.dir, &["--scope"], "[2]")?;
    run(&mut device.renew(&lab.dir, &lab.server)?)?;
    ensure!(kept(&device)? == "[2]");

    lab.server.kill9()?;
    for name in copies {
        _ = fs::remove_file(database(name));
        _ = fs::copy(database(&format!("{name}.older")), database(name));
    }
    lab.server.restart()?;
    let renewed = run(&mut device.renew(&lab.dir, &lab.server)?)?;
    let said = String::from_utf8_lossy(&renewed.stderr).into_owned();
    let refused = format!("revision {older}, and this device has revision {newer} already");
    ensure!(said.contains(&refused), "{said}");
    ensure!(kept(&device)? == "[2]");
    Ok(())
}

#[test]
fn a_document_that_no_device_could_take_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    for (document, reason) in [
        ("interval = 30".to_owned(), "neither JSON"),
        (format!("\"{}\"", "x".repeat(4095)), "4097 bytes; a device takes 4096"),
        (String::new(), "neither JSON"),
    ] {
        let refused = set(&lab.dir, &["--scope"], &document).unwrap_err().to_string();
        ensure!(refused.contains(reason), "{refused}");
    }
    let neither = lab.dir.assay(&["configuration", "set", "-"])?.output()?;
    ensure!(neither.status.code() == Some(2));
    // The longest one goes through.
    let longest = format!("\"{}\"", "x".repeat(4094));
    set(&lab.dir, &["--scope"], &longest)?;
    for (number, flow) in ["ticket", "sealed"].into_iter().enumerate() {
        let device = trusted_vendor()?.device(EkKind::Rsa2048, number)?;
        let device = Device::new(&device)?;
        lab.provision(&device, &["--flow", flow])?;
        ensure!(kept(&device)? == longest, "{flow}");
    }
    let shown = lab.assay(&["configuration", "show", "--scope"])?;
    ensure!(String::from_utf8(shown.stdout)? == longest);
    Ok(())
}

#[test]
fn on_mosquitto_a_change_is_told_too() -> Result<()> {
    let deployed = Deployed::start()?;
    let (dir, url) = (&deployed.dir, |listener| deployed.url(listener));
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let agent = Agent::start(device.run_at(&url(0), &url(1), &dir.root_pem())?)?;
    agent.says("online as", 1)?;
    let revision = set(dir, &["--scope"], "{}")?;
    agent.says(&format!("has configuration {revision}: 2 bytes"), 1)
}

/// `assay configuration set`, with the document on standard input. Returns the revision.
fn set(dir: &AssayDir, target: &[&str], document: &str) -> Result<u64> {
    let mut command = dir.assay(&[&["configuration", "set"], target, &["-"]].concat())?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("stdin is a pipe")?.write_all(document.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    revision_in(&output.stderr)
}

/// The revision at the end of the first line that `assay configuration` says.
fn revision_in(said: &[u8]) -> Result<u64> {
    let said = str::from_utf8(said)?;
    let revision = said.lines().next().and_then(|line| line.rsplit(' ').next());
    revision.and_then(|it| it.parse().ok()).with_context(|| format!("no revision in {said:?}"))
}

/// `assay-device configuration`; empty if there is none.
fn kept(device: &Device) -> Result<String> {
    Ok(String::from_utf8(device.configuration()?.output()?.stdout)?)
}
