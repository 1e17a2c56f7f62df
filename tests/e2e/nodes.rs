//! Several nodes: `assay serve` more than once over one PostgreSQL.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{
    Agent, AssayDir, AssayServer, Device, EVERY_FLOW, EkKind, Postgres, Swtpm, json, run,
    trusted_vendor,
};

use crate::lab::refused_with;

/// Two nodes with the files of one CA.
struct Nodes {
    one: AssayServer,
    other: AssayServer,
    dir: AssayDir,
    _postgres: Postgres,
}

impl Nodes {
    fn start() -> Result<Self> {
        let (dir, postgres) = (AssayDir::init()?, Postgres::start()?);
        dir.trust(&trusted_vendor()?)?;
        let store = format!("[store]\nurl = \"{}\"\n", postgres.address()?);
        // Certificates are due for renewal at once.
        let due = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1\n";
        fs::write(dir.path().join("assay.toml"), format!("{EVERY_FLOW}\n{due}{store}"))?;
        run(&mut dir.assay(&["store", "copy", "postgres"])?)?;
        let (one, other) = (AssayServer::start(&dir)?, AssayServer::start(&dir)?);
        Ok(Self { one, other, dir, _postgres: postgres })
    }

    fn tpms(count: usize) -> Result<Vec<Swtpm>> {
        trusted_vendor()?.devices(EkKind::P256, count)
    }
}

#[test]
fn device_is_known_at_every_node_whichever_it_began_with() -> Result<()> {
    let nodes = Nodes::start()?;
    let tpms = Nodes::tpms(3)?;
    for (flow, tpm) in ["ticket", "sealed", "shared-key"].iter().zip(&tpms) {
        let device = Device::new(tpm)?;
        let provisioned = json(device.provision(&nodes.dir, &nodes.one)?.args(["--flow", flow]))?;
        run(&mut device.publish(&nodes.dir, &nodes.other, "telemetry", "1")?)?;
        let again = ["--flow", flow, "--again"];
        let again = json(device.provision(&nodes.dir, &nodes.other)?.args(again))?;
        ensure!(again["device_id"] == provisioned["device_id"], "{again}");
    }
    let device = Device::new(&tpms[0])?;
    run(&mut device.provision(&nodes.dir, &nodes.one)?)?;
    run(&mut device.renew(&nodes.dir, &nodes.other)?)?;
    run(&mut device.publish(&nodes.dir, &nodes.one, "telemetry", "1")?)?;
    ensure!(nodes.dir.list("devices")?.len() == 3);
    Ok(())
}

#[test]
fn disabled_device_is_cut_at_the_node_that_it_is_connected_to_and_let_in_nowhere() -> Result<()> {
    let nodes = Nodes::start()?;
    let tpms = Nodes::tpms(1)?;
    let device = Device::new(&tpms[0])?;
    let provisioned = json(&mut device.provision(&nodes.dir, &nodes.one)?)?;
    let agent = Agent::start(device.run(&nodes.dir, &nodes.other)?)?;
    agent.says("online as", 1)?;
    let device_id = provisioned["device_id"].as_str().context("a device id")?;
    run(&mut nodes.dir.assay(&["enroll", "disable", device_id])?)?;
    let since = Instant::now();
    agent.says("device-disabled", 1)?;
    ensure!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    drop(agent);
    for node in [&nodes.one, &nodes.other] {
        let publish = device.publish(&nodes.dir, node, "telemetry", "1")?.output()?;
        ensure!(!publish.status.success());
        let output = Device::new(&tpms[0])?.provision(&nodes.dir, node)?.output()?;
        refused_with(&output, "device-disabled")?;
    }
    Ok(())
}

#[test]
fn places_of_a_group_and_answers_of_an_operator_count_at_every_node() -> Result<()> {
    let nodes = Nodes::start()?;
    let tpms = Nodes::tpms(2)?;
    let group = ["group", "add", "one", "--admit", "--quota", "1", "--position", "1"];
    run(&mut nodes.dir.assay(&group)?)?;
    let devices = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    run(&mut devices[0].provision(&nodes.dir, &nodes.one)?)?;
    let output = devices[1].provision(&nodes.dir, &nodes.other)?.output()?;
    refused_with(&output, "group one has as many devices as it may")?;

    run(&mut nodes.dir.assay(&["group", "update", "one", "--without", "quota", "--ask"])?)?;
    let mut asking = devices[1].provision(&nodes.dir, &nodes.one)?;
    ensure!(asking.args(["--deadline", "2"]).output()?.status.code() == Some(11));
    let since = Instant::now();
    while !nodes.dir.assay(&["pending", "approve", "--all"])?.output()?.status.success() {
        ensure!(since.elapsed() < Duration::from_secs(3), "nobody waits");
        thread::sleep(Duration::from_millis(50));
    }
    run(&mut devices[1].provision(&nodes.dir, &nodes.other)?).map(drop)
}

#[test]
fn a_node_that_dies_costs_its_devices_a_connection() -> Result<()> {
    let mut nodes = Nodes::start()?;
    let tpms = Nodes::tpms(1)?;
    let device = Device::new(&tpms[0])?;
    run(&mut device.provision(&nodes.dir, &nodes.one)?)?;
    nodes.one.kill9()?;
    run(&mut device.publish(&nodes.dir, &nodes.other, "telemetry", "1")?)?;
    run(&mut device.renew(&nodes.dir, &nodes.other)?)?;
    let again = json(&mut Device::new(&tpms[0])?.provision(&nodes.dir, &nodes.other)?)?;
    let active: Vec<_> =
        nodes.dir.list("certs")?.into_iter().filter(|row| row["status"] == "active").collect();
    ensure!(active.len() == 1 && active[0]["device_id"] == again["device_id"], "{active:?}");
    Ok(())
}
