//! Every kind of EK with every kind of IK: certificate, chain, mutual TLS.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, run, trusted_vendor};

use crate::lab::{Lab, watched};

#[test]
fn every_ek_with_every_ik_gets_a_certificate_and_speaks_mutual_tls() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, ik) in ["p-256", "p-384", "rsa-2048"].into_iter().enumerate() {
        for ek in EkKind::ALL {
            let tpm = vendor.device(ek, number)?;
            let device = Device::new(&tpm)?;
            let provisioned =
                lab.provision(&device, &["--ek", ek.name(), "--ik", ik]).with_context(|| format!("{ek:?} × {ik}"))?;
            let chain = provisioned["certificate"].as_str().context("a path")?;
            lab.openssl_verifies(Path::new(chain))?;

            let said = watched(&lab, 1, || {
                run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5 °C")?).map(drop)
            })?;
            let id = provisioned["device_id"].as_str().context("an id")?;
            ensure!(said == format!("device/v1/default/{id}/telemetry 21.5 °C\n"), "{ek:?} × {ik}: {said}");
        }
    }
    ensure!(lab.dir.list("certs")?.len() == 3 * EkKind::ALL.len());
    Ok(())
}

#[test]
fn a_provisioned_device_asks_for_nothing() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let first = lab.provision(&device, &[])?;
    let second = lab.provision(&device, &[])?;
    ensure!(first["serial"] == second["serial"]);
    ensure!(lab.dir.list("audit")?.len() == 2, "one challenge, one certify");
    Ok(())
}

#[test]
fn a_device_that_lost_its_state_gets_the_certificate_it_has() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let first = lab.provision(&Device::new(&tpm)?, &[])?;
    let second = lab.provision(&Device::new(&tpm)?, &[])?;
    ensure!(first["serial"] == second["serial"]);
    ensure!(tpm.persistent_handles()?.iter().filter(|handle| **handle == 0x8100_0200).count() == 1);
    Ok(())
}

#[test]
fn a_cleared_tpm_gets_a_new_certificate_that_supersedes_the_old() -> Result<()> {
    let lab = Lab::open()?;
    let mut tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let first = lab.provision(&device, &[])?;
    tpm.clear()?;
    let second = lab.provision(&device, &[])?;
    ensure!(first["serial"] != second["serial"] && first["device_id"] == second["device_id"]);
    ensure!(lab.active_certificates(first["device_id"].as_str().context("an id")?)? == 1);
    Ok(())
}
