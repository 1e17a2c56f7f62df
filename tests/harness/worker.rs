//! The CA's worker on a broker that is not ours, as a process of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

use crate::server::AssayDir;
use crate::tool::{signal, spawn};

/// A running `assay worker`. When dropped, it is killed and its log is written to stderr. The test
/// runner shows the log if the test failed.
pub struct Worker {
    process: Child,
    log: NamedTempFile,
}

impl Worker {
    /// Starts a worker; returns when it takes requests.
    pub fn start(dir: &AssayDir, broker: &str) -> Result<Self> {
        Self::start_with(dir, broker, &[])?.until_ready()
    }

    /// A worker that also tries whether it hears messages from another listener of the broker,
    /// `bootstrap`.
    pub fn start_beside(dir: &AssayDir, broker: &str, bootstrap: &str) -> Result<Self> {
        Self::spawn(dir.assay(&["worker", "--broker", broker, "--bootstrap", bootstrap])?)?
            .until_ready()
    }

    fn until_ready(mut self) -> Result<Self> {
        let mut line = String::new();
        BufReader::new(self.process.stdout.take().context("stdout is a pipe")?)
            .read_line(&mut line)?;
        ensure!(line == "ready\n", "`assay worker` said {line:?}");
        Ok(self)
    }

    /// Starts a worker with more variables in its environment, and does not wait for anything.
    pub fn start_with(
        dir: &AssayDir,
        broker: &str,
        environment: &[(&str, &OsStr)],
    ) -> Result<Self> {
        let mut command = dir.assay(&["worker", "--broker", broker])?;
        command.envs(environment.iter().copied());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Result<Self> {
        let log = NamedTempFile::new()?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log.reopen()?);
        Ok(Self { process: spawn(command)?, log })
    }

    /// Sends the worker a signal: "STOP", "CONT", "HUP", "TERM".
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.process.id(), name)
    }

    /// Waits until the worker ends.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.process.wait()?)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).unwrap_or_default()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
        eprintln!("--- log of `assay worker` ---\n{}", self.log());
    }
}
