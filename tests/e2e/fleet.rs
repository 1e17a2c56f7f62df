//! Many devices at once.

use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use assay_tests::{Device, EkKind, trusted_vendor};

use crate::lab::Lab;

#[test]
fn fifty_devices_at_once_are_all_provisioned() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 50)?;
    let started = Instant::now();
    thread::scope(|scope| {
        let devices: Vec<_> =
            tpms.iter().map(|tpm| scope.spawn(|| lab.provision(&Device::new(tpm)?, &[]))).collect();
        devices.into_iter().try_for_each(|device| device.join().expect("no panic").map(drop))
    })?;
    eprintln!(
        "50 devices in {:?}; assay serve occupies {} KiB",
        started.elapsed(),
        lab.server.rss_kib()?
    );
    let devices = lab.dir.list("devices")?;
    ensure!(devices.len() == 50 && devices.iter().all(|device| device["serial"].is_string()));
    ensure!(lab.dir.list("certs")?.len() == 50);
    ensure!(lab.server.rss_kib()? < 128 * 1024, "memory is bounded: {} KiB", lab.server.rss_kib()?);
    Ok(())
}
