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
            let provisioned = lab
                .provision(&device, &["--ek", ek.name(), "--ik", ik])
                .with_context(|| format!("{ek:?} × {ik}"))?;
            let chain = provisioned["certificate"].as_str().context("a path")?;
            lab.openssl_verifies(Path::new(chain))?;

            let said = watched(&lab, 1, || {
                run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5 °C")?).map(drop)
            })?;
            let id = provisioned["device_id"].as_str().context("an id")?;
            ensure!(
                said == format!("device/v1/default/{id}/telemetry 21.5 °C\n"),
                "{ek:?} × {ik}: {said}"
            );
        }
    }
    ensure!(lab.dir.list("certs")?.len() == 3 * EkKind::ALL.len());
    Ok(())
}

#[test]
fn every_flow_with_every_ek_and_parent_ends_in_a_device_that_speaks() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let flows = [
        &["--flow", "ticket"][..],
        &["--flow", "sealed"],
        &["--flow", "shared-key", "--parent", "rsa-2048"],
        &["--flow", "shared-key", "--parent", "p-256"],
        &["--flow", "shared-key", "--parent", "srk-rsa-2048"],
        &["--flow", "shared-key", "--parent", "srk-p-256"],
    ];
    for (number, flow) in flows.into_iter().enumerate() {
        for ek in [EkKind::Rsa2048, EkKind::P256, EkKind::P384] {
            let tpm = vendor.device(ek, number)?;
            let device = Device::new(&tpm)?;
            let arguments = [&["--ek", ek.name()], flow].concat();
            if flow.last().is_some_and(|parent| parent.starts_with("srk-")) {
                lab.refused(&device, &arguments, "plain-srk")?;
                lab.enroll(&tpm, ek, &format!("plain-{}-{number}", ek.name()), &["--plain-srk"])?;
            }
            let provisioned =
                lab.provision(&device, &arguments).with_context(|| format!("{ek:?}, {flow:?}"))?;
            ensure!(provisioned["flow"] == flow[1]);
            if let Some(chain) = provisioned["certificate"].as_str() {
                lab.openssl_verifies(Path::new(chain))?;
            }
            let said = watched(&lab, 1, || {
                run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5 °C")?).map(drop)
            })?;
            let id = provisioned["device_id"].as_str().context("an id")?;
            ensure!(
                said == format!("device/v1/default/{id}/telemetry 21.5 °C\n"),
                "{ek:?}, {flow:?}: {said}"
            );
            ensure!(
                tpm.transient_handles()?.is_empty() && tpm.loaded_sessions()?.is_empty(),
                "{ek:?}, {flow:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_cleared_tpm_recovers_by_itself_in_every_flow() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, flow) in ["ticket", "sealed", "shared-key"].into_iter().enumerate() {
        let mut tpm = vendor.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let first = lab.provision(&device, &["--flow", flow])?;
        run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
        tpm.clear()?;
        ensure!(
            !device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?.status.success(),
            "{flow}"
        );
        let second = lab.provision(&device, &[]).context(flow)?;
        ensure!(second["flow"] == flow, "the device knows its flow");
        ensure!(first["device_id"] == second["device_id"] && !first["device_id"].is_null());
        run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
        let id = first["device_id"].as_str().context("an id")?;
        let expected = if flow == "shared-key" { vec![] } else { vec!["superseded", "active"] };
        ensure!(lab.statuses(id)? == expected, "{flow}: {:?}", lab.statuses(id)?);
    }
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
    ensure!(lab.dir.decisions()?.len() == 2, "one challenge, one certify");
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
    ensure!(
        lab.provision(&device, &["--again"])?["serial"] == first["serial"],
        "nothing new is issued"
    );

    lab.server.kill9()?;
    for file in ["assay.db-wal", "assay.db-shm"] {
        _ = fs::remove_file(lab.dir.path().join(file));
    }
    fs::copy(&backup, lab.dir.path().join("assay.db"))?;
    lab.dir.trust(&trusted_vendor()?)?;
    lab.server.restart()?;
    ensure!(
        lab.provision(&device, &[])?["serial"] == first["serial"],
        "the device knows of nothing"
    );
    ensure!(
        !device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?.status.success()
    );
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
fn a_tpm_with_passwords_and_its_certificate_in_a_file_is_provisioned() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let mut tpm = Swtpm::without_ek_certificate()?;
    let certificate =
        vendor.certify(&tpm.ek_public_pem(EkKind::P256)?, &EkCertificate::default())?;
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
