//! `kill -9` at every step, on either side: afterwards each device has exactly one valid
//! certificate.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, trusted_vendor};
use serde_json::Value;

use crate::lab::Lab;

#[test]
fn a_device_killed_at_any_step_ends_with_one_certificate_and_one_key() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for step in 0.. {
        let tpm = vendor.device(EkKind::P256, step)?;
        let device = Device::new(&tpm)?;
        let handles_before = tpm.persistent_handles()?.len();
        let mut running = start(&lab, &device)?;
        let finished = wait_for_step(&mut running, step)?;
        running.kill()?;
        running.wait()?;

        let provisioned = lab.provision(&device, &[])?;
        one_certificate(&lab, &provisioned).with_context(|| format!("killed at step {step}"))?;
        ensure!(
            tpm.persistent_handles()?.len() == handles_before + 1,
            "killed at step {step}: one IK and no other key"
        );
        if finished {
            ensure!(step > 4, "the flow has more than {step} steps");
            return Ok(());
        }
    }
    unreachable!("the flow has an end")
}

#[test]
fn a_server_killed_at_any_step_loses_nothing() -> Result<()> {
    let mut lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    // These delays after the last step lead to moments before, in and after the commit.
    let extra_delays = [0, 2, 5, 12].map(Duration::from_millis);
    let mut device_number = 0;
    for step in 0..8 {
        for delay in extra_delays {
            let tpm = vendor.device(EkKind::P256, device_number)?;
            device_number += 1;
            let device = Device::new(&tpm)?;
            let mut running = start(&lab, &device)?;
            wait_for_step(&mut running, step)?;
            thread::sleep(delay);
            lab.server.restart()?;
            let status = running.wait()?;
            ensure!(status.success(), "killed {delay:?} after step {step}: {status}");
            one_certificate(&lab, &lab.provision(&device, &[])?)
                .with_context(|| format!("killed {delay:?} after step {step}"))?;
        }
    }
    Ok(())
}

fn start(lab: &Lab, device: &Device) -> Result<Child> {
    let mut provision = device.provision(&lab.dir, &lab.server)?;
    Ok(provision.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?)
}

/// Waits until the device has reported `step` steps; `true` if it ended before.
fn wait_for_step(device: &mut Child, step: usize) -> Result<bool> {
    let mut steps = BufReader::new(device.stderr.take().context("stderr is a pipe")?).lines();
    let finished = steps.by_ref().take(step).count() < step;
    // The device must not die of a closed pipe before it is killed.
    thread::spawn(move || steps.count());
    Ok(finished)
}

fn one_certificate(lab: &Lab, provisioned: &Value) -> Result<()> {
    let id = provisioned["device_id"].as_str().context("an id")?;
    ensure!(lab.active_certificates(id)? == 1);
    let issued = lab.dir.list("certs")?.into_iter().filter(|row| row["device_id"] == id).count();
    ensure!(issued == 1, "{issued} certificates were issued to {id}");
    Ok(())
}
