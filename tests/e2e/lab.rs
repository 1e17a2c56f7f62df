//! A CA that serves, and what tests ask of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use assay_tests::{
    AssayDir, AssayServer, Device, EVERY_FLOW, EkKind, Swtpm, json, run, tool, trusted_vendor,
};
use serde_json::Value;

/// A served CA that trusts the trusted vendor.
pub(crate) struct Lab {
    pub(crate) server: AssayServer,
    pub(crate) dir: AssayDir,
}

impl Lab {
    pub(crate) fn open() -> Result<Self> {
        Self::with_settings("")
    }

    /// A CA with these lines as assay.toml. It offers every flow if the lines do not name flows.
    pub(crate) fn with_settings(settings: &str) -> Result<Self> {
        let dir = AssayDir::init()?;
        let flows = if settings.contains("flows") { "" } else { EVERY_FLOW };
        fs::write(dir.path().join("assay.toml"), format!("{flows}\n{settings}"))?;
        dir.trust(&trusted_vendor()?)?;
        Ok(Self { server: AssayServer::start(&dir)?, dir })
    }

    /// `assay-device provision`, which must succeed; `arguments` come last.
    pub(crate) fn provision(&self, device: &Device, arguments: &[&str]) -> Result<Value> {
        json(device.provision(&self.dir, &self.server)?.args(arguments))
    }

    /// `assay-device provision`, which the CA must refuse with this problem.
    pub(crate) fn refused(&self, device: &Device, arguments: &[&str], problem: &str) -> Result<()> {
        let output = device.provision(&self.dir, &self.server)?.args(arguments).output()?;
        refused_with(&output, problem)
    }

    /// Checks with OpenSSL that a device's certificate leads to the root.
    pub(crate) fn openssl_verifies(&self, chain: &Path) -> Result<()> {
        let mut verify = tool("openssl")?;
        verify
            .args(["verify", "-x509_strict", "-purpose", "sslclient", "-CAfile"])
            .arg(self.dir.root_pem());
        verify.arg("-untrusted").arg(chain).arg(chain);
        run(&mut verify).map(drop)
    }

    /// `assay`, with these arguments, which must succeed.
    pub(crate) fn assay(&self, arguments: &[&str]) -> Result<Output> {
        run(&mut self.dir.assay(arguments)?)
    }

    /// Puts the EK certificate of a TPM on the enrolment list under a device id. More arguments of
    /// `enroll add` come last.
    pub(crate) fn enroll(
        &self,
        tpm: &Swtpm,
        kind: EkKind,
        device_id: &str,
        arguments: &[&str],
    ) -> Result<()> {
        let file = tpm.work_dir().join("ek.der");
        fs::write(&file, tpm.ek_certificate(kind)?)?;
        let add = ["enroll", "add", file.to_str().context("a path")?, "--device-id", device_id];
        self.assay(&[&add[..], arguments].concat()).map(drop)
    }

    /// The statuses of all certificates of a device, in the order of issuance.
    pub(crate) fn statuses(&self, device_id: &str) -> Result<Vec<String>> {
        let certificates =
            self.dir.list("certs")?.into_iter().filter(|row| row["device_id"] == device_id);
        certificates.map(|row| Ok(row["status"].as_str().context("a status")?.to_owned())).collect()
    }

    /// How many certificates of a device are active.
    pub(crate) fn active_certificates(&self, device_id: &str) -> Result<usize> {
        let certificates = self.dir.list("certs")?;
        Ok(certificates
            .iter()
            .filter(|row| row["device_id"] == device_id && row["status"] == "active")
            .count())
    }

    /// Waits until the audit has a decision with this problem. The server writes refusals within a
    /// tenth of a second.
    pub(crate) fn audited(&self, problem: &str) -> Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let decisions = self.dir.list("audit")?;
            if let Some(decision) = decisions.iter().find(|row| row["problem"] == problem) {
                return Ok(decision.clone());
            }
            if Instant::now() > deadline {
                bail!("no {problem} among {decisions:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Checks for exit status 3, and for the problem on stderr.
pub(crate) fn refused_with(output: &Output, problem: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(3) || !said.contains(problem) {
        bail!("expected a refusal with {problem}, got {}: {said}", output.status);
    }
    Ok(())
}

/// Runs `watch` until it has printed `count` lines while `talk` runs; returns the lines.
pub(crate) fn watched(lab: &Lab, count: u32, talk: impl FnOnce() -> Result<()>) -> Result<String> {
    let mut watch: Command = lab.dir.assay(&[
        "watch",
        "--broker",
        &lab.server.operational,
        "--count",
        &count.to_string(),
    ])?;
    let mut watch =
        watch.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn()?;
    // `watch` writes a line to stderr once its subscription is granted.
    let mut said = std::io::BufReader::new(watch.stderr.take().context("stderr is a pipe")?);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line)?;
    let talked = talk();
    if talked.is_err() {
        _ = watch.kill();
    }
    let output = watch.wait_with_output()?;
    talked?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The id of the EK that a device with this TPM shows.
pub(crate) fn ek_of(tpm: &Swtpm) -> Result<String> {
    let ek = json(Device::new(tpm)?.ek()?.args(["--kind", "auto", "--json"]))?;
    Ok(ek["ek_id"].as_str().context("an EK id")?.to_owned())
}
