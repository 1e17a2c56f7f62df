//! Every kind of EK with every kind of IK: certificate, chain, mutual TLS.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkCertificate, EkKind, Swtpm, json, run, trusted_vendor};

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
fn a_device_asks_again_when_told_and_a_ca_that_lost_its_records_certifies_it_anew() -> Result<()> {
    let mut lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let backup = lab.dir.path().join("backup.db");
    fs::copy(lab.dir.path().join("assay.db"), &backup)?;
    let first = lab.provision(&device, &[])?;
    ensure!(lab.provision(&device, &["--again"])?["serial"] == first["serial"], "nothing new is issued");

    lab.server.kill9()?;
    for file in ["assay.db-wal", "assay.db-shm"] {
        _ = fs::remove_file(lab.dir.path().join(file));
    }
    fs::copy(&backup, lab.dir.path().join("assay.db"))?;
    lab.dir.trust(&trusted_vendor()?)?;
    lab.server.restart()?;
    ensure!(lab.provision(&device, &[])?["serial"] == first["serial"], "the device knows of nothing");
    ensure!(!device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?.status.success());
    ensure!(lab.provision(&device, &["--again"])?["serial"] != first["serial"]);
    ensure!(device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?.status.success());
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

#[test]
fn a_tpm_with_passwords_and_its_certificate_in_a_file_is_provisioned() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let mut tpm = Swtpm::without_ek_certificate()?;
    let certificate = vendor.certify(&tpm.ek_public_pem(EkKind::P256)?, &EkCertificate::default())?;
    let file = tpm.work_dir().join("ek.der");
    fs::write(&file, certificate)?;
    tpm.set_passwords("owner's", "endorsement's")?;

    let device = Device::new(&tpm)?;
    let file = file.to_str().context("a path")?;
    let mut provision = device.provision(&lab.dir, &lab.server)?;
    provision.args(["--ek", "p-256", "--ek-certificate", file]);
    ensure!(provision.output()?.status.code() == Some(5), "the TPM takes no wrong password");
    provision.env("ASSAY_OWNER_AUTH", "owner's").env("ASSAY_ENDORSEMENT_AUTH", "endorsement's");
    json(&mut provision)?;
    Ok(())
}
