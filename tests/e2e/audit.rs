//! The audit as an auditor has it: who did what, and whether it is as it was.

use std::fs;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, run, trusted_vendor};

use crate::lab::Lab;

#[test]
fn audit_is_verified_with_the_ca_without_it_and_against_what_was_kept() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let provisioned = lab.provision(&Device::new(&tpm)?, &[])?;
    let id = provisioned["device_id"].as_str().context("a device id")?;
    let ek = lab.dir.list("devices")?[0]["ek_id"].as_str().context("an EK id")?.to_owned();
    lab.assay(&["enroll", "disable", &ek])?;
    lab.assay(&["keys", "rotate", "ticket"])?;

    let acts: Vec<_> =
        lab.dir.list("audit")?.into_iter().filter(|it| it["chain"] == "acts").collect();
    let actions: Vec<_> = acts.iter().filter_map(|act| act["action"].as_str()).collect();
    ensure!(actions.starts_with(&["trust"]), "{actions:?}");
    ensure!(actions.ends_with(&["disable", "rotate-key"]), "{actions:?}");
    let disabled = &acts[acts.len() - 2];
    ensure!(disabled["ek_id"] == *ek && disabled["due_device_id"] == id, "{disabled}");
    let shown = String::from_utf8(lab.assay(&["audit"])?.stdout)?;
    ensure!(shown.contains("by unix:"), "{shown}");

    let seen = lab.dir.path().join("audit.seen");
    let verified = lab.assay(&["audit", "verify"])?.stdout;
    ensure!(String::from_utf8_lossy(&verified).lines().count() == 3, "{verified:?}");
    fs::write(&seen, verified)?;
    let verify_seen = ["audit", "verify", "--seen", seen.to_str().context("a path")?];
    lab.assay(&verify_seen)?;

    let export = lab.dir.path().join("audit.ndjson");
    let lines = String::from_utf8(lab.assay(&["audit", "export"])?.stdout)?;
    fs::write(&export, &lines)?;
    let verify = ["audit", "verify", "--file", export.to_str().context("a path")?];
    lab.assay(&verify)?;
    let python = as_documented()?;
    run(std::process::Command::new("python3")
        .args(["-c", &python])
        .stdin(fs::File::open(&export)?))?;

    let forged = lines.replace("\"action\":\"disable\"", "\"action\":\"enable\"");
    ensure!(forged != lines);
    fs::write(&export, forged)?;
    let refused = |output: Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains("of the chain acts"), "{said}");
        Ok(said)
    };
    let said = refused(lab.dir.assay(&verify)?.output()?)?;
    ensure!(said.contains("audit.ndjson:"), "{said}");
    let output = std::process::Command::new("python3")
        .args(["-c", &python])
        .stdin(fs::File::open(&export)?)
        .stderr(Stdio::null())
        .status()?;
    ensure!(!output.success(), "what the documentation shows finds it, too");

    let record = rusqlite::Connection::open(lab.dir.path().join("assay.db"))?;
    record.execute("DELETE FROM audit_acts WHERE action = 'rotate-key'", [])?;
    lab.assay(&["audit", "verify"]).context("the end is missing, which the chain does not show")?;
    refused(lab.dir.assay(&verify_seen)?.output()?)?;
    record.execute("UPDATE audit_acts SET client = 'unix:eve' WHERE action = 'disable'", [])?;
    refused(lab.dir.assay(&["audit", "verify"])?.output()?)?;

    // Nor can all of it be called old.
    let cut = "INSERT INTO audit_cuts VALUES ('acts', 1000, 0, zeroblob(32))";
    record.execute_batch(&format!("DELETE FROM audit_acts; {cut}"))?;
    lab.assay(&["audit", "verify"])?;
    let said = refused(lab.dir.assay(&verify_seen)?.output()?)?;
    ensure!(said.contains("is gone"), "{said}");
    Ok(())
}

/// The program in docs/operations.md that verifies an export.
fn as_documented() -> Result<String> {
    let manual = include_str!("../../docs/operations.md");
    let (_, program) = manual.split_once("```python\nimport hashlib").context("a program")?;
    let (program, _) = program.split_once("```").context("its end")?;
    Ok(format!("import hashlib{program}"))
}
