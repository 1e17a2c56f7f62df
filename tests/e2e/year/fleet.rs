//! The thousand simulated devices of `assay-fleet`, which keeps them from month to month.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use assay_tests::{assay_bin, run};
use serde_json::Value;

use super::world::World;

pub(super) const DEVICES: usize = 1_000;

pub(super) struct Fleet {
    state: PathBuf,
}

/// What a fleet did in a month.
pub(super) struct Done {
    pub(super) awake: usize,
    /// Devices that proved their TPMs anew.
    pub(super) came_back: usize,
}

impl Fleet {
    /// Every device gets its first certificate, and connects with it.
    pub(super) fn provision(world: &World) -> Result<Self> {
        let fleet = Self { state: world.file("fleet") };
        let vendor = run(Command::new(assay_bin("assay-fleet")?).arg("--vendor"))?.stdout;
        let files = String::from_utf8(vendor)?;
        let files: Vec<_> = files.lines().collect();
        world.assay(&[&["trust", "add", "--admit"], &files[..]].concat())?;
        let done = fleet.run(world, &["--devices", &DEVICES.to_string()])?;
        ensure!(done.awake == DEVICES, "{} devices were provisioned", done.awake);
        Ok(fleet)
    }

    /// Every device that is awake does what is due, and connects. `asleep` is the share that
    /// sleeps.
    pub(super) fn live(&self, world: &World, asleep: f64) -> Result<Done> {
        self.run(world, &["--flow", "renew", "--asleep", &asleep.to_string()])
    }

    fn run(&self, world: &World, arguments: &[&str]) -> Result<Done> {
        let mut command = world.clock.give_to(Command::new(assay_bin("assay-fleet")?));
        command.args(["--json", "--hold", "--concurrency", "250"]);
        command.args(["--broker", &world.lab.server.bootstrap]);
        command.args(["--operational", &world.lab.server.operational]);
        command.arg("--ca-root").arg(&world.root).arg("--state").arg(&self.state).args(arguments);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.stdout.is_empty(), "month {}: {}", world.month, said.trim());
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let count = |name: &str| -> Result<usize> {
            let count = report["devices"][name].as_u64().context("a number")?;
            Ok(usize::try_from(count)?)
        };
        let (awake, asleep) = (count("done")?, count("asleep")?);
        let (month, failures) = (world.month, &report["failures"]);
        ensure!(
            awake + asleep == DEVICES,
            "month {month}: of {DEVICES}, {awake} are well: {failures:#}"
        );
        let held = &report["held"]["connections"];
        ensure!(*held == awake, "month {month}: {held} of {awake} connected");
        Ok(Done { awake, came_back: count("came_back")? })
    }
}
