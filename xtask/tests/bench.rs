//! The benchmarks run to their end. Only a quiet machine gives useful figures, but the programs
//! must work everywhere.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use assay_tests::{assay_bin, run};
use serde_json::Value;

#[test]
fn bench_fleet_measures_every_target_and_keeps_the_reports() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("fleet.json");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_xtask"));
    bench.args(["bench", "fleet", "--quick", "--out"]).arg(&out);
    bench.env(
        "ASSAY_BIN_DIR",
        assay_bin("assay-fleet")?.parent().context("a binary has a directory")?,
    );
    let table = String::from_utf8(run(&mut bench)?.stdout)?;
    ensure!(table.contains("reached") && table.contains("≥ 1000"), "{table}");

    let written: Value = serde_json::from_slice(&fs::read(out)?)?;
    let results = written["results"].as_array().context("results")?;
    ensure!(
        results.len() == 8 && results.iter().all(|result| result["reached"].is_number()),
        "{written:#}"
    );
    let loads = written["loads"].as_array().context("loads")?;
    for load in loads {
        let devices = &load["reports"][0]["devices"];
        ensure!(devices["done"] == devices["all"], "{load:#}");
    }
    ensure!(loads.len() == 6 && loads[5]["reports"][0]["held"]["connections"] == 50, "{written:#}");
    Ok(())
}

#[test]
fn bench_fleet_has_devices_renew_with_each_store() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("renewals.json");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_xtask"));
    bench.args(["bench", "fleet", "--flow", "renew", "--quick", "--out"]).arg(&out);
    bench.env(
        "ASSAY_BIN_DIR",
        assay_bin("assay-fleet")?.parent().context("a binary has a directory")?,
    );
    let table = String::from_utf8(run(&mut bench)?.stdout)?;
    ensure!(table.contains("renewals/s, SQLite") && table.contains("≥ 3000"), "{table}");
    let written: Value = serde_json::from_slice(&fs::read(out)?)?;
    for load in written["loads"].as_array().context("loads")? {
        let report = &load["reports"][0];
        ensure!(report["devices"]["done"] == report["devices"]["all"], "{load:#}");
        ensure!(report["latency_ms"]["adopt"]["count"] == report["devices"]["all"], "{load:#}");
    }
    Ok(())
}

#[test]
fn bench_scale_measures_with_each_database() -> Result<()> {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_xtask"));
    bench.args(["bench", "scale", "--quick", "--json"]);
    bench.env(
        "ASSAY_BIN_DIR",
        assay_bin("assay-fleet")?.parent().context("a binary has a directory")?,
    );
    let figures: Value = serde_json::from_slice(&run(&mut bench)?.stdout)?;
    let costs = figures["costs"].as_array().context("costs")?;
    ensure!(
        costs.iter().map(|cost| &cost["known"]).eq([&Value::from(10), &Value::from(100)]),
        "{figures:#}"
    );
    ensure!(costs.iter().all(|cost| cost["server_cpu_us_per_device"].is_number()), "{figures:#}");
    Ok(())
}
