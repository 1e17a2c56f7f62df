//! Which of a TPM's endorsement keys a device shows, and how an operator gets to know it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, Swtpm, run, trusted_vendor, untrusted_vendor};
use serde_json::Value;

use crate::lab::Lab;

#[test]
fn what_ek_prints_is_what_enroll_add_wants_and_names_the_device_as_the_ca_does() -> Result<()> {
    let lab = Lab::open()?;
    for kind in EkKind::ALL {
        let tpm = trusted_vendor()?.device(kind, 0)?;
        let device = Device::new(&tpm)?;
        let eks = run(device.ek()?.arg("--json"))?.stdout;
        let eks: Vec<Value> =
            serde_json::Deserializer::from_slice(&eks).into_iter().collect::<Result<_, _>>()?;
        let names: Vec<_> = eks.iter().map(|ek| ek["ek"].as_str().unwrap_or_default()).collect();
        ensure!(names == ["p-256", "p-384", "rsa-2048", "rsa-3072"], "{names:?}");
        for ek in &eks {
            let is_certified = ek["ek"] == kind.name();
            ensure!(
                ek["default"] == is_certified && ek["certificate"].is_null() != is_certified,
                "{ek}"
            );
            let file = ek_file(&tpm, &device, ek["ek"].as_str().context("a kind")?)?;
            let printed = lab.assay(&["enroll", "add", &file.to_string_lossy()])?.stdout;
            ensure!(ek["ek_id"] == String::from_utf8(printed)?.trim(), "{ek}");
            lab.assay(&["enroll", "remove", ek["ek_id"].as_str().context("an id")?])?;
        }
        let certified =
            eks.iter().find(|ek| ek["default"] == true).context("one is the default")?;
        ensure!(
            certified["certificate"]["issuer"]
                .as_str()
                .is_some_and(|issuer| issuer.contains("Test TPM Vendor"))
        );
        ensure!(lab.provision(&device, &[])?["device_id"] == certified["device_id"]);
        ensure!(tpm.transient_handles()?.is_empty() && tpm.loaded_sessions()?.is_empty());
    }
    Ok(())
}

/// README.md's recipe for a device without a vendor's certificate.
#[test]
fn ek_that_is_printed_as_the_default_is_the_one_that_is_shown_and_found_again_without_its_state()
-> Result<()> {
    let lab = Lab::open()?;
    for (number, vendor) in [untrusted_vendor()?, trusted_vendor()?].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P384, 0)?;
        let file = ek_file(&tpm, &Device::new(&tpm)?, "auto")?;
        let name = format!("pump-{number}");
        lab.assay(&["enroll", "add", &file.to_string_lossy(), "--device-id", &name])?;
        // Each device has a state directory of its own.
        for _ in 0..2 {
            ensure!(lab.provision(&Device::new(&tpm)?, &[])?["device_id"] == name.as_str());
        }
    }
    Ok(())
}

/// If the vendor is not trusted, the CA refuses the first EK for its certificate. If the vendor is
/// trusted, the device would become a second device with that EK.
#[test]
fn device_without_state_finds_the_ek_that_is_on_record_among_others() -> Result<()> {
    let lab = Lab::open()?;
    for vendor in [untrusted_vendor()?, trusted_vendor()?] {
        for (flow, certified) in
            [("ticket", EkKind::P384), ("sealed", EkKind::Rsa2048), ("shared-key", EkKind::P384)]
        {
            let tpm = vendor.device(certified, 0)?;
            enroll_p256(&lab, &tpm, flow)?;
            for _ in 0..2 {
                let provisioned =
                    lab.provision(&Device::new(&tpm)?, &["--flow", flow]).context(flow)?;
                ensure!(
                    provisioned["device_id"] == flow && provisioned["ek"] == "p-256",
                    "{provisioned}"
                );
            }
            lab.assay(&["enroll", "remove", flow])?;
        }
    }
    Ok(())
}

#[test]
fn device_that_asks_for_its_name_finds_the_ek_of_that_name_though_the_vendor_is_trusted()
-> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P384, 0)?;
    enroll_p256(&lab, &tpm, "pump-17")?;
    for _ in 0..2 {
        let provisioned = lab.provision(&Device::new(&tpm)?, &["--device-id", "pump-17"])?;
        ensure!(
            provisioned["device_id"] == "pump-17" && provisioned["ek"] == "p-256",
            "{provisioned}"
        );
    }
    Ok(())
}

#[test]
fn device_without_state_finds_an_rsa_ek_that_is_on_record_without_a_certificate() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let file = ek_file(&tpm, &Device::new(&tpm)?, "rsa-2048")?;
    lab.assay(&["enroll", "add", &file.to_string_lossy(), "--device-id", "pump-17"])?;
    let provisioned = lab.provision(&Device::new(&tpm)?, &[])?;
    ensure!(
        provisioned["device_id"] == "pump-17" && provisioned["ek"] == "rsa-2048",
        "{provisioned}"
    );
    Ok(())
}

#[test]
fn one_tpm_is_two_devices_if_its_eks_are_named() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P384, 0)?;
    enroll_p256(&lab, &tpm, "pump-17")?;
    lab.provision(&Device::new(&tpm)?, &[])?;
    let named = lab.provision(&Device::new(&tpm)?, &["--ek", "p-384"])?;
    ensure!(named["ek"] == "p-384" && named["device_id"] != "pump-17", "{named}");
    // Now both are on record: what `ek` prints as the default comes first.
    ensure!(lab.provision(&Device::new(&tpm)?, &[])?["device_id"] == named["device_id"]);
    Ok(())
}

#[test]
fn ek_that_is_named_or_was_granted_is_the_only_one_that_is_tried() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = untrusted_vendor()?.device(EkKind::P384, 0)?;
    let device = Device::new(&tpm)?;
    enroll_p256(&lab, &tpm, "pump-17")?;
    lab.refused(&device, &["--ek", "p-384"], "ek-certificate-untrusted")?;
    lab.refused(&device, &[], "ek-certificate-untrusted").context("the one named before")?;
    lab.provision(&device, &["--ek", "auto"])?;
    lab.assay(&["enroll", "remove", "pump-17"])?;
    lab.refused(&device, &["--again"], "ek-not-enrolled")?;
    lab.audited("ek-not-enrolled")?;
    let eks = lab.dir.list("audit")?;
    ensure!(eks.iter().filter(|row| row["problem"] == "ek-not-enrolled").count() == 1, "{eks:?}");
    Ok(())
}

#[test]
fn device_of_which_no_ek_is_taken_says_why_the_first_was_not() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = untrusted_vendor()?.device(EkKind::P384, 0)?;
    let output = Device::new(&tpm)?.provision(&lab.dir, &lab.server)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(3), "{said}");
    ensure!(said.contains("trying the one of kind rsa-2048"), "{said}");
    let reason = said.split_once("assay-device: ").context("an error")?.1;
    ensure!(reason.contains("ek-certificate-untrusted"), "{said}");
    Ok(())
}

/// Writes what `assay-device ek --kind` prints to a file.
fn ek_file(tpm: &Swtpm, device: &Device, kind: &str) -> Result<PathBuf> {
    let file = tpm.work_dir().join(format!("{kind}.pem"));
    fs::write(&file, run(device.ek()?.args(["--kind", kind]))?.stdout)?;
    Ok(file)
}

/// Enrols an EK as an operator with tpm2-tools does.
fn enroll_p256(lab: &Lab, tpm: &Swtpm, device_id: &str) -> Result<()> {
    let file = tpm.work_dir().join("enrolled.pem");
    fs::write(&file, tpm.ek_public_pem(EkKind::P256)?)?;
    lab.assay(&["enroll", "add", &file.to_string_lossy(), "--device-id", device_id]).map(drop)
}
