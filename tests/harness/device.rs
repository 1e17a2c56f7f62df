//! A device: a TPM, a state directory, and the commands of `assay-device` on them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::assay_bin;
use crate::server::{AssayDir, AssayServer};
use crate::swtpm::Swtpm;

/// A device whose state directory is temporary.
pub struct Device {
    tcti: String,
    state: TempDir,
}

impl Device {
    pub fn new(tpm: &Swtpm) -> Result<Self> {
        Self::at(&tpm.tcti())
    }

    /// A device whose TPM is reached through `tcti`.
    pub fn at(tcti: &str) -> Result<Self> {
        Ok(Self { tcti: tcti.into(), state: tempfile::tempdir()? })
    }

    /// The same state directory beside another TPM.
    pub fn with(self, tpm: &Swtpm) -> Self {
        Self { tcti: tpm.tcti(), ..self }
    }

    pub fn state(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// `assay-device provision --json` against `server`, for the caller to complete or to run with
    /// [`json`].
    pub fn provision(&self, dir: &AssayDir, server: &AssayServer) -> Result<Command> {
        self.provision_at(&server.bootstrap, &dir.root_pem())
    }

    /// As [`provision`](Self::provision), against any broker.
    pub fn provision_at(&self, broker: &str, ca_root: &Path) -> Result<Command> {
        let mut command = self.connecting("provision", broker, ca_root)?;
        command.arg("--json");
        Ok(command)
    }

    /// `assay-device renew --json` against `server`.
    pub fn renew(&self, dir: &AssayDir, server: &AssayServer) -> Result<Command> {
        let mut command = self.connecting("renew", &server.bootstrap, &dir.root_pem())?;
        command.arg("--json");
        Ok(command)
    }

    /// `assay-device rekey --json`, against any broker.
    pub fn rekey_at(&self, broker: &str, ca_root: &Path) -> Result<Command> {
        let mut command = self.connecting("rekey", broker, ca_root)?;
        command.arg("--json");
        Ok(command)
    }

    /// `assay-device run` at both listeners of `server`, for [`Agent`](crate::Agent).
    pub fn run(&self, dir: &AssayDir, server: &AssayServer) -> Result<Command> {
        self.run_at(&server.bootstrap, &server.operational, &dir.root_pem())
    }

    /// As [`run`](Self::run), at any broker.
    pub fn run_at(&self, bootstrap: &str, operational: &str, ca_root: &Path) -> Result<Command> {
        let mut command = self.connecting("run", bootstrap, ca_root)?;
        command.args(["--operational", operational]);
        Ok(command)
    }

    /// `assay-device configuration`.
    pub fn configuration(&self) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args(["configuration", "--state"]).arg(self.state());
        Ok(command)
    }

    /// `assay-device publish` over mTLS.
    pub fn publish(
        &self,
        dir: &AssayDir,
        server: &AssayServer,
        topic: &str,
        message: &str,
    ) -> Result<Command> {
        self.publish_at(&server.operational, &dir.root_pem(), topic, message)
    }

    /// As [`publish`](Self::publish), at any broker.
    pub fn publish_at(
        &self,
        broker: &str,
        ca_root: &Path,
        topic: &str,
        message: &str,
    ) -> Result<Command> {
        let mut command = self.connecting("publish", broker, ca_root)?;
        command.args(["--topic", topic, "--message", message]);
        Ok(command)
    }

    /// `assay-device tunnel`, at any broker.
    pub fn tunnel_at(&self, broker: &str, ca_root: &Path, listen: &str) -> Result<Command> {
        let mut command = self.connecting("tunnel", broker, ca_root)?;
        command.args(["--listen", listen]);
        Ok(command)
    }

    /// `assay-device key export`.
    pub fn export_key(&self, format: &str) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args(["key", "export", "--format", format, "--tcti", &self.tcti, "--state"]);
        command.arg(self.state());
        Ok(command)
    }

    /// `assay-device ek`.
    pub fn ek(&self) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args(["ek", "--tcti", &self.tcti]);
        Ok(command)
    }

    /// `assay-device token`.
    pub fn token(&self) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args(["token", "--tcti", &self.tcti, "--state"]).arg(self.state());
        Ok(command)
    }

    /// `assay-device status --json`.
    pub fn status(&self) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args(["status", "--json", "--state"]).arg(self.state());
        Ok(command)
    }

    /// `assay-device inspect --json`.
    pub fn inspect(&self, dir: &AssayDir) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args(["inspect", "--json", "--tcti", &self.tcti, "--ca-root"]);
        command.arg(dir.root_pem()).arg("--state").arg(self.state());
        Ok(command)
    }

    /// `assay-device cleanup`.
    pub fn cleanup(&self) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args(["cleanup", "--tcti", &self.tcti, "--state"]).arg(self.state());
        Ok(command)
    }

    fn connecting(&self, subcommand: &str, broker: &str, ca_root: &Path) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay-device")?);
        command.args([subcommand, "--broker", broker, "--tcti", &self.tcti]);
        command.arg("--ca-root").arg(ca_root).arg("--state").arg(self.state());
        Ok(command)
    }
}

/// Runs a command that succeeds and writes one JSON value.
pub fn json(command: &mut Command) -> Result<Value> {
    let Output { stdout, .. } = crate::tool::run(command)?;
    serde_json::from_slice(&stdout).with_context(|| format!("{command:?} writes JSON"))
}
