//! The resident agent of a device, `assay-device run`, as a process of its own.

use std::fs;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tempfile::NamedTempFile;

use crate::tool::{signal, spawn};

/// A running resident agent. When dropped, it is killed and its log is written to stderr. The test
/// runner shows the log if the test failed.
pub struct Agent {
    process: Child,
    log: NamedTempFile,
}

impl Agent {
    /// Starts what [`Device::run`](crate::Device::run) made.
    pub fn start(mut command: Command) -> Result<Self> {
        let log = NamedTempFile::new()?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.reopen()?);
        Ok(Self { process: spawn(command)?, log })
    }

    /// Waits until the agent has said this `times` times.
    pub fn says(&self, text: &str, times: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.count(text) < times {
            if Instant::now() > deadline {
                bail!("{text:?} is not {times} times in:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How many lines of the log have this text.
    pub fn count(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends the agent a signal: "TERM", "INT", "KILL", "STOP", "CONT".
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.process.id(), name)
    }

    /// Waits until the agent ends.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.process.wait()?)
    }

    /// Whether the agent still runs.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        eprintln!("--- log of `assay-device run` ---\n{}", self.log());
    }
}

/// A device is online in about a second. The rest is for delays that grow, and for a machine under
/// load.
const PATIENCE: Duration = Duration::from_secs(60);
