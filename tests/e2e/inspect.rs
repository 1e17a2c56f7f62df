//! What a device has, and how it is rid of it: `status`, `inspect` and `cleanup`.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use assay_tests::{Agent, Device, EkKind, Swtpm, json, run, trusted_vendor, untrusted_vendor};
use serde_json::Value;

use crate::lab::Lab;

#[test]
fn inspect_says_whether_the_device_can_use_what_it_has_and_why_the_ca_trusted_it() -> Result<()> {
    let lab = Lab::open()?;
    let (trusted, untrusted) = (trusted_vendor()?, untrusted_vendor()?);
    for (number, (vendor, flow, attested_by)) in [
        (&trusted, "ticket", Some("vendor")),
        (&untrusted, "sealed", Some("operator")),
        (&trusted, "shared-key", None),
    ]
    .into_iter()
    .enumerate()
    {
        let mut tpm = vendor.device(EkKind::P256, number)?;
        if attested_by == Some("operator") {
            lab.enroll(&tpm, EkKind::P256, "pump-17", &[])?;
        }
        let device = Device::new(&tpm)?;
        ensure!(device.inspect(&lab.dir)?.output()?.status.code() == Some(8), "{flow}");
        let provisioned = lab.provision(&device, &["--flow", flow])?;
        let found = json(&mut device.inspect(&lab.dir)?)?;
        ensure!(found["usable"] == true && found["signature_ms"].is_u64(), "{found}");
        ensure!(found["device_id"] == provisioned["device_id"], "{found}");
        ensure!(found["attested_by"].as_str() == attested_by, "{found}");
        if attested_by.is_some() {
            ensure!(found["serial"] == provisioned["serial"], "{found}");
            ensure!(found["issuer"].as_str().is_some_and(|it| !it.is_empty()), "{found}");
        }

        tpm.clear()?;
        let output = device.inspect(&lab.dir)?.output()?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(output.status.code() == Some(2) && found["usable"] == false, "{found}");
    }
    Ok(())
}

#[test]
fn status_has_the_days_that_are_left_and_whether_a_renewal_is_due() -> Result<()> {
    let lab = Lab::with_settings("[certificates]\nlifetime_days = 30")?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    let status = json(&mut device.status()?)?;
    let days = status["days_left"].as_u64().context("a number")?;
    ensure!([29, 30].contains(&days) && status["renewal_due"] == false, "{status}");
    Ok(())
}

#[test]
fn cleanup_removes_the_devices_own_key_and_state_and_nothing_else() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, flow) in ["ticket", "shared-key"].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P256, number)?;
        let before = tpm.persistent_handles()?;
        let device = Device::new(&tpm)?;
        lab.provision(&device, &["--flow", flow])?;
        let provisioned = tpm.persistent_handles()?;
        ensure!(provisioned.len() == before.len() + 1);

        // Nobody can be asked.
        let refused = device.cleanup()?.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(2) && said.contains("--yes"), "{said}");
        ensure!(tpm.persistent_handles()? == provisioned && device.state().exists());

        run(device.cleanup()?.arg("--yes"))?;
        ensure!(tpm.persistent_handles()? == before && !device.state().exists());
        lab.provision(&device, &["--flow", flow])?;
    }
    Ok(())
}

#[test]
fn cleanup_leaves_a_key_that_took_the_place_of_the_devices_own() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    occupy(&tpm)?;
    let occupied = tpm.persistent_handles()?;
    let output = device.cleanup()?.arg("--yes").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(5) && said.contains("0x81000200"), "{said}");
    ensure!(tpm.persistent_handles()? == occupied && device.state().exists());
    Ok(())
}

#[test]
fn cleanup_waits_for_no_agent_but_refuses() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let agent = Agent::start(device.run(&lab.dir, &lab.server)?)?;
    agent.says("online as", 1)?;
    let output = device.cleanup()?.arg("--yes").output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(6) && said.contains("resident agent"), "{said}");
    ensure!(json(&mut device.inspect(&lab.dir)?)?["usable"] == true);
    Ok(())
}

/// Puts a key of another kind at the handle of the identity key.
fn occupy(tpm: &Swtpm) -> Result<()> {
    let handle = "0x81000200";
    tpm.tpm2(&["evictcontrol", "-C", "o", "-c", handle])?;
    tpm.tpm2(&["createprimary", "-C", "o", "-G", "ecc", "-c", "other.ctx"])?;
    tpm.tpm2(&["evictcontrol", "-C", "o", "-c", "other.ctx", handle]).context("occupied")?;
    tpm.tpm2(&["flushcontext", "-t"]).map(drop)
}
