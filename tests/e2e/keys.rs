//! The ticket key and the master secret are replaced while devices are on their way.

use std::fs;

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, json, run, trusted_vendor};

use crate::lab::Lab;

#[test]
fn a_sealed_certificate_that_waits_is_confirmed_after_the_ticket_key_was_replaced() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &["--flow", "sealed"])?;
    let before = fs::read(lab.dir.path().join("ticket.key"))?;
    lab.assay(&["keys", "rotate", "ticket", "--from", "now"])?;
    lab.reload()?;
    // The old key is still there, and the new one makes what is new.
    ensure!(fs::read(lab.dir.path().join("ticket.key"))? == before);
    lab.provision(&device, &["--again"])?;
    let refused = lab.dir.assay(&["keys", "rotate", "ticket"])?.output()?;
    ensure!(!refused.status.success(), "two are there");
    let listed = String::from_utf8(lab.assay(&["keys", "list"])?.stdout)?;
    ensure!(listed.contains("before, accepted: devices may answer a challenge until"), "{listed}");

    lab.assay(&["keys", "retire", "ticket", "--force"])?;
    lab.reload()?;
    ensure!(fs::read(lab.dir.path().join("ticket.key"))? != before);
    lab.provision(&device, &["--again"]).map(drop)
}

#[test]
fn devices_with_a_shared_key_follow_a_new_master_secret() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let [follows, stays] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    for device in [&follows, &stays] {
        lab.provision(device, &["--flow", "shared-key"])?;
        run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    }
    lab.assay(&["keys", "rotate", "master", "--from", "now"])?;
    lab.reload()?;
    run(&mut follows.publish(&lab.dir, &lab.server, "telemetry", "of the old secret")?)?;
    // The next key is of the new secret.
    lab.provision(&follows, &["--again"])?;
    run(&mut follows.publish(&lab.dir, &lab.server, "telemetry", "of the new secret")?)?;
    run(&mut stays.publish(&lab.dir, &lab.server, "telemetry", "of the old secret")?)?;
    let listed = run(&mut lab.dir.assay(&["keys", "list", "--json"])?)?.stdout;
    let listed = String::from_utf8(listed)?;
    ensure!(listed.contains("devices have a shared key of it"), "{listed}");

    lab.assay(&["keys", "retire", "master", "--force"])?;
    lab.reload()?;
    run(&mut follows.publish(&lab.dir, &lab.server, "telemetry", "of the new secret")?)?;
    // One that still has the old key is refused once, and then gets another one by itself.
    let refused =
        stays.publish(&lab.dir, &lab.server, "telemetry", "of the old secret")?.output()?;
    ensure!(!refused.status.success(), "the old secret counts no more");
    let again = lab.provision(&stays, &[])?;
    ensure!(again["device_id"].as_str().context("an id")?.len() > 1, "{again}");
    run(&mut stays.publish(&lab.dir, &lab.server, "telemetry", "of the new secret")?)?;
    json(&mut stays.status()?).map(drop)
}
