//! The user-space resource manager in front of a software TPM, with its own message bus.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::swtpm::Swtpm;
use crate::tool::{daemon, spawn, tool};

/// A running `tpm2-abrmd` and its bus; killed when dropped.
pub struct AccessBroker {
    bus: Child,
    broker: Child,
    address: String,
}

impl AccessBroker {
    /// Starts both; returns when the TPM answers.
    pub fn before(tpm: &Swtpm) -> Result<Self> {
        let mut command = daemon("dbus-daemon")?;
        command
            .args(["--session", "--nofork", "--print-address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut bus = spawn(command)?;
        let mut address = String::new();
        BufReader::new(bus.stdout.take().context("stdout is a pipe")?).read_line(&mut address)?;
        let address = address.trim().to_owned();

        let mut command = daemon("tpm2-abrmd")?;
        command.args(["--session", "--allow-root", &format!("--tcti={}", tpm.tools_tcti())]);
        command.env("DBUS_SESSION_BUS_ADDRESS", &address).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let this = Self { bus, broker: spawn(command)?, address };
        let deadline = Instant::now() + START_TIMEOUT;
        while !this.is_answering()? {
            ensure!(Instant::now() < deadline, "no TPM answers behind tpm2-abrmd");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(this)
    }

    /// The value for `--tcti`.
    pub fn tcti(&self) -> &'static str {
        TCTI
    }

    /// The address of the bus, for the variable `DBUS_SESSION_BUS_ADDRESS`.
    pub fn bus(&self) -> &str {
        &self.address
    }

    /// Lets a command find the bus.
    pub fn reachable_for<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.address)
    }

    fn is_answering(&self) -> Result<bool> {
        let mut command = tool("tpm2")?;
        command
            .args(["getrandom", "--hex", "8"])
            .env("TPM2TOOLS_TCTI", TCTI)
            .env("TSS2_LOG", "all+NONE");
        Ok(self.reachable_for(&mut command).output()?.status.success())
    }
}

impl Drop for AccessBroker {
    fn drop(&mut self) {
        for process in [&mut self.broker, &mut self.bus] {
            _ = process.kill();
            _ = process.wait();
        }
    }
}

const TCTI: &str = "tabrmd:bus_type=session";
/// Both start in a fraction of a second. The rest is for a machine under load.
const START_TIMEOUT: Duration = Duration::from_secs(10);
