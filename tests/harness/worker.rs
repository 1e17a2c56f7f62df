//! The CA's worker on somebody else's broker, as a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};

use crate::server::AssayDir;
use crate::tool::spawn;

/// `assay worker`; killed when dropped.
pub struct Worker(Child);

impl Worker {
    /// Starts a worker; returns when it takes requests.
    pub fn start(dir: &AssayDir, broker: &str) -> Result<Self> {
        let mut command = dir.assay(&["worker", "--broker", broker])?;
        command.env("ASSAY_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut worker = Self(spawn(command)?);
        let mut line = String::new();
        BufReader::new(worker.0.stdout.take().context("stdout is a pipe")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "`assay worker` said {line:?}");
        Ok(worker)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}
