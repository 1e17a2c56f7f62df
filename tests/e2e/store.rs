//! A CA that moves to PostgreSQL and back.

use std::fs;

use anyhow::{Result, ensure};
use assay_tests::{AssayDir, AssayServer, Device, EkKind, Postgres, run, trusted_vendor};
use serde_json::Value;

/// Names a PostgreSQL in the settings that `assay init` wrote.
fn name_postgres(dir: &AssayDir, address: &str) -> Result<()> {
    let settings = dir.path().join("assay.toml");
    let text = fs::read_to_string(&settings)?;
    let named = text.replace("[store]\n", &format!("[store]\nurl = \"{address}\"\n"));
    ensure!(named != text, "there is no [store]");
    Ok(fs::write(settings, named)?)
}

fn status(dir: &AssayDir) -> Result<Value> {
    let output = run(&mut dir.assay(&["store", "status", "--json"])?)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[test]
fn ca_moves_to_postgresql_serves_there_and_moves_back() -> Result<()> {
    let (dir, server) = (AssayDir::init()?, Postgres::start()?);
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    ensure!(status(&dir)?["store"] == "file");
    name_postgres(&dir, &server.address()?)?;
    ensure!(status(&dir)?["schema"].is_null(), "there is no CA yet");
    ensure!(!dir.assay(&["devices"])?.output()?.status.success());

    run(&mut dir.assay(&["store", "copy", "postgres"])?)?;
    ensure!(dir.path().join("assay.db.copied").exists() && !dir.path().join("assay.db").exists());
    let moved = status(&dir)?;
    ensure!(moved["store"] == "postgres" && moved["schema"] == moved["wanted"], "{moved}");
    run(&mut dir.assay(&["store", "upgrade"])?)?;

    let mut ca = AssayServer::start(&dir)?;
    let tpms = [vendor.device(EkKind::P256, 1)?, vendor.device(EkKind::P256, 2)?];
    let [first, second] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    run(&mut first.provision(&dir, &ca)?)?;
    server.crash()?;
    run(&mut second.provision(&dir, &ca)?)?;
    let devices = dir.list("devices")?;
    ensure!(devices.len() == 2, "{devices:?}");
    ca.kill9()?;

    run(&mut dir.assay(&["store", "copy", "file", "--json"])?)?;
    let settings = dir.path().join("assay.toml");
    let text = fs::read_to_string(&settings)?;
    let lines = text.lines().filter(|line| !line.starts_with("url = "));
    fs::write(&settings, lines.map(|line| format!("{line}\n")).collect::<String>())?;
    ensure!(status(&dir)?["store"] == "file");
    ensure!(dir.list("devices")? == devices);
    Ok(())
}
