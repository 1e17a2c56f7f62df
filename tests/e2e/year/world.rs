//! The CA, its clock, and what devices were given on the first day.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use assay_tests::{AssayDir, AssayServer, EVERY_FLOW, run, trusted_vendor};
use serde_json::Value;
use tempfile::TempDir;

use crate::fake_clock::FakeClock;
use crate::lab::Lab;

/// A month of this year, in days: sixteen are a year.
const MONTH: i64 = 23;
/// A certificate outlives two months and not three. It is due before the end of the first: ten days
/// after its issue, and its device is told a time within the twelve and a half days after that.
const CERTIFICATES: &str = "[certificates]\nlifetime_days = 60\nrenew_before_days = 50";

pub(super) struct World {
    pub(super) lab: Lab,
    pub(super) clock: FakeClock,
    /// How many months have passed.
    pub(super) month: u32,
    /// When this month began, in seconds since 1970.
    pub(super) began: i64,
    /// The root, as every device was given it on the first day.
    pub(super) root: PathBuf,
    place: TempDir,
}

impl World {
    pub(super) fn new() -> Result<Self> {
        let (dir, place, clock) = (AssayDir::init()?, tempfile::tempdir()?, FakeClock::new()?);
        fs::write(dir.path().join("assay.toml"), format!("{EVERY_FLOW}\n{CERTIFICATES}"))?;
        dir.trust(&trusted_vendor()?)?;
        let root = place.path().join("root.pem");
        fs::copy(dir.root_pem(), &root)?;
        let environment = clock.environment();
        let environment = environment.each_ref().map(|(name, value)| (*name, value.as_os_str()));
        let lab = Lab { server: AssayServer::start_with(&dir, &environment)?, dir };
        Ok(Self { lab, clock, month: 0, began: 0, root, place })
    }

    /// A month passes, and the CA's machine is started anew: a CA that serves takes no such step of
    /// its clock for true.
    pub(super) fn pass_a_month(&mut self) -> Result<()> {
        self.month += 1;
        self.began = self.now()?;
        let offset = self.offset();
        self.lab.server.restart_after(|| {
            self.clock.set(offset)?;
            // The resident agents look at it when they are connected again.
            thread::sleep(FakeClock::NOTICED);
            Ok(())
        })
    }

    /// Seconds since 1970.
    pub(super) fn now(&self) -> Result<i64> {
        let machine = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        Ok(i64::try_from(machine)? + self.offset())
    }

    /// When the next month begins, in seconds since 1970.
    pub(super) fn ends(&self) -> i64 {
        self.began + MONTH * 86_400
    }

    /// The month of a time.
    pub(super) fn month_of(&self, time: i64) -> Result<i64> {
        // The test takes less than a day, so a month begins on the same day for all of it.
        let machine = self.now()? - self.offset();
        Ok((time - machine + 86_400).div_euclid(MONTH * 86_400))
    }

    fn offset(&self) -> i64 {
        i64::from(self.month) * MONTH * 86_400
    }

    /// A file of the operator or of a device.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// `assay` at the CA's time, which must succeed.
    pub(super) fn assay(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.clock.give_to(self.lab.dir.assay(arguments)?))
    }

    /// The certificates on record.
    pub(super) fn certificates(&self) -> Result<Vec<Value>> {
        self.lab.dir.list("certs")
    }

    /// The CA's disk is lost, and the CA is made anew from this backup, at the same place. `lists`
    /// are the last revocation lists that it published.
    pub(super) fn restore(&mut self, backup: &Path, lists: &Path) -> Result<()> {
        self.lab.server.kill9()?;
        fs::remove_dir_all(self.lab.dir.path())?;
        let (backup, lists) = (backup.to_str(), lists.to_str());
        self.assay(&["restore", backup.context("a path")?])?;
        self.assay(&["resume", "--list", lists.context("a path")?])?;
        self.lab.server.restart()
    }
}
