//! Devices that wait until an operator approves them.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{
    Agent, AssayDir, AssayServer, Device, EkKind, Swtpm, run, spawn, trusted_vendor,
};
use serde_json::Value;

use crate::lab::Lab;

/// A CA as `assay init` makes it, which trusts the vendor.
fn asking_lab() -> Result<(Lab, Vec<Swtpm>)> {
    let (dir, vendor) = (AssayDir::init()?, trusted_vendor()?);
    run(dir.assay(&["trust", "add"])?.arg(vendor.root_pem()).arg(vendor.intermediate_pem()))?;
    Ok((Lab { server: AssayServer::start(&dir)?, dir }, vendor.devices(EkKind::P256, 3)?))
}

#[test]
fn a_new_device_waits_until_an_operator_approves_it_and_gets_the_name_that_they_give() -> Result<()>
{
    let (lab, tpms) = asking_lab()?;
    let device = Device::new(&tpms[0])?;
    let mut provision = device.provision(&lab.dir, &lab.server)?;
    provision.stdout(Stdio::piped()).stderr(Stdio::piped());
    let provision = spawn(provision)?;
    let row = only_one_waits(&lab)?;
    ensure!(row["flow"] == "ticket" && row["device_id"].is_null(), "{row}");
    ensure!(row["manufacturer"].as_str().is_some_and(|id| id.starts_with("id:")), "{row}");
    ensure!(row["vendor"].as_str().is_some_and(|name| !name.is_empty()), "{row}");
    let ek = row["ek_id"].as_str().context("an EK id")?;
    ensure!(lab.dir.list("devices")?.is_empty());

    lab.assay(&["pending", "approve", &ek[..16], "--name", "pump-17"])?;
    let output = provision.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && said.contains("pending (36)"), "{said}");
    let provisioned: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(provisioned["device_id"] == "pump-17", "{provisioned}");
    ensure!(waiting(&lab)?.is_empty());
    let shown: Value = serde_json::from_slice(&lab.assay(&["enroll", "show", ek])?.stdout)?;
    ensure!(shown["tpm"]["model"] == row["model"], "what the approval knew is kept: {shown}");
    let audit = lab.dir.list("audit")?;
    let approval = audit.iter().find(|row| row["action"] == "approve").context("an approval")?;
    ensure!(approval["ek_id"] == ek && approval["due_device_id"] == "pump-17", "{approval}");
    ensure!(approval["client"].as_str().is_some_and(|who| who.starts_with("unix:")), "{approval}");
    Ok(())
}

#[test]
fn a_device_that_nobody_approves_in_time_ends_with_a_status_of_its_own() -> Result<()> {
    let (lab, tpms) = asking_lab()?;
    let device = Device::new(&tpms[0])?;
    let output = device.provision(&lab.dir, &lab.server)?.args(["--deadline", "2"]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(11), "{}: {said}", output.status);
    ensure!(said.contains("not admitted yet") && said.contains("assay pending approve"), "{said}");
    ensure!(lab.audited("pending")?["due_device_id"].is_null());
    Ok(())
}

#[test]
fn a_resident_agent_waits_and_one_that_is_turned_away_is_refused_until_it_is_enabled() -> Result<()>
{
    let (lab, tpms) = asking_lab()?;
    let device = Device::new(&tpms[0])?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    let ek = only_one_waits(&lab)?["ek_id"].as_str().context("an EK id")?.to_owned();
    lab.assay(&["pending", "refuse", &ek])?;
    ensure!(waiting(&lab)?.is_empty());
    let other = Device::new(&tpms[0])?;
    lab.refused(&other, &[], "device-disabled")?;
    lab.assay(&["enroll", "enable", &ek])?;
    only_one_waits(&lab)?;
    lab.assay(&["pending", "approve", "--all"])?;
    agent.says("online as", 1)?;
    let audit = lab.dir.list("audit")?;
    ensure!(audit.iter().any(|row| row["action"] == "turn-away" && row["ek_id"] == *ek));
    Ok(())
}

#[test]
fn a_device_that_asks_for_a_name_gets_that_one_or_none() -> Result<()> {
    let (lab, tpms) = asking_lab()?;
    let named = Device::new(&tpms[0])?;
    let ask = ["--device-id", "pump-18", "--deadline", "1"];
    ensure!(named.provision(&lab.dir, &lab.server)?.args(ask).output()?.status.code() == Some(11));
    let row = only_one_waits(&lab)?;
    ensure!(row["device_id"] == "pump-18", "{row}");
    for (arguments, reason) in [
        (&["--all"][..], "--as-asked"),
        (&["0123456789abcdef"], "no EK 0123456789abcdef waits"),
        (&["--manufacturer", "id:00000000"], "no EK waits that is meant"),
        (&["--all", "--name", "pump-1", "--as-asked"], "cannot be used with"),
    ] {
        let approve = [&["pending", "approve"], arguments].concat();
        let output = lab.dir.assay(&approve)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(reason), "{arguments:?}: {said}");
    }
    let manufacturer = row["manufacturer"].as_str().context("a manufacturer")?;
    lab.assay(&["pending", "approve", "--manufacturer", manufacturer, "--as-asked"])?;
    let provisioned = lab.provision(&named, &["--device-id", "pump-18"])?;
    ensure!(provisioned["device_id"] == "pump-18", "{provisioned}");

    // What the operator enrolled needs no approval.
    lab.enroll(&tpms[1], EkKind::P256, "pump-19", &[])?;
    let provisioned = lab.provision(&Device::new(&tpms[1])?, &[])?;
    ensure!(provisioned["device_id"] == "pump-19", "{provisioned}");
    Ok(())
}

#[test]
fn devices_that_are_approved_together_get_the_next_numbers_that_are_free() -> Result<()> {
    let (lab, tpms) = asking_lab()?;
    lab.enroll(&tpms[0], EkKind::P256, "pump-2", &[])?;
    let devices = [Device::new(&tpms[1])?, Device::new(&tpms[2])?];
    for device in &devices {
        device.provision(&lab.dir, &lab.server)?.args(["--deadline", "1"]).output()?;
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while waiting(&lab)?.len() < 2 {
        ensure!(Instant::now() < deadline, "{:?}", waiting(&lab)?);
        thread::sleep(Duration::from_millis(50));
    }
    let refused =
        lab.dir.assay(&["pending", "approve", "--all", "--name", "pump {n}"])?.output()?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("is no device id"));
    let refused = lab.dir.assay(&["pending", "approve", "--all", "--name", "pump-1"])?.output()?;
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("--name is for one EK"));
    lab.assay(&["pending", "approve", "--all", "--name", "pump-{n}"])?;
    let mut ids = Vec::new();
    for device in &devices {
        ids.push(lab.provision(device, &[])?["device_id"].as_str().context("an id")?.to_owned());
    }
    ids.sort();
    ensure!(ids == ["pump-1", "pump-3"], "{ids:?}");
    Ok(())
}

/// Waits until one EK waits.
fn only_one_waits(lab: &Lab) -> Result<Value> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut rows = waiting(lab)?;
        if rows.len() == 1 {
            return Ok(rows.remove(0));
        }
        ensure!(Instant::now() < deadline, "{rows:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn waiting(lab: &Lab) -> Result<Vec<Value>> {
    let listed = lab.assay(&["pending", "list", "--json"])?.stdout;
    let rows = serde_json::Deserializer::from_slice(&listed).into_iter();
    rows.collect::<Result<_, _>>().context("`assay pending list --json` writes JSON")
}
