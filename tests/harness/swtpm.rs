//! One software TPM: a process with its own state directory.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::ports::Ports;
use crate::tool::{daemon, run, signal, spawn, tool};
use crate::vendor::EkKind;

/// A running software TPM; killed when dropped.
///
/// Its NV memory survives [`kill`](Self::kill) and [`restart`](Self::restart), as that of a chip
/// survives a loss of power.
pub struct Swtpm {
    state: PathBuf,
    /// Files of the tpm2 commands. `state` is in it too, unless the TPM works on another directory.
    work: TempDir,
    ports: Ports,
    process: Option<Child>,
    owner: String,
    endorsement: String,
}

impl Swtpm {
    /// A new TPM that no manufacturer has certified.
    pub fn without_ek_certificate() -> Result<Self> {
        let work = tempfile::tempdir()?;
        let state = work.path().join("state");
        fs::create_dir(&state)?;
        Self::power_on(state, work)
    }

    /// A TPM that begins with a copy of the state `factory`.
    pub(crate) fn copy_of(factory: &Path) -> Result<Self> {
        let work = tempfile::tempdir()?;
        let state = work.path().join("state");
        fs::create_dir(&state)?;
        fs::copy(factory.join(PERMANENT_STATE), state.join(PERMANENT_STATE))?;
        Self::power_on(state, work)
    }

    /// A TPM that works on the directory `state` itself.
    pub(crate) fn on_state(state: &Path) -> Result<Self> {
        Self::power_on(state.to_path_buf(), tempfile::tempdir()?)
    }

    fn power_on(state: PathBuf, work: TempDir) -> Result<Self> {
        let mut tpm = Self {
            state,
            work,
            ports: Ports::claim()?,
            process: None,
            owner: String::new(),
            endorsement: String::new(),
        };
        tpm.start()?;
        Ok(tpm)
    }

    /// The value for the agent's `--tcti`. It stays the same over restarts.
    pub fn tcti(&self) -> String {
        agent_tcti(self.port())
    }

    /// The TCTI for other users of libtss2.
    pub(crate) fn tools_tcti(&self) -> String {
        tcti(self.port())
    }

    /// The port for commands. The next port is for control.
    pub fn port(&self) -> u16 {
        self.ports.first()
    }

    /// Powers on a TPM that was killed, and waits until it listens.
    pub fn start(&mut self) -> Result<()> {
        let port = self.ports.first();
        let log = fs::File::create(self.work.path().join("log"))?;
        let mut command = daemon("swtpm")?;
        command
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
            .arg(format!("dir={}", self.state.display()))
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            // libtss2 expects the control port to be the next one.
            .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = self.process.insert(spawn(command)?);

        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.work.path().join("log"))?;
                bail!("swtpm does not listen on port {port} ({ended:?}): {log}");
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Cuts the power: SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Whether it was killed.
    pub fn is_off(&self) -> bool {
        self.process.is_none()
    }

    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// Makes the TPM hang: it accepts commands and does not answer, until [`resume`](Self::resume).
    pub fn pause(&self) -> Result<()> {
        signal(self.process_id()?, "STOP")
    }

    pub fn resume(&self) -> Result<()> {
        signal(self.process_id()?, "CONT")
    }

    /// Runs the tpm2-tools command `arguments` on this TPM, in [`work_dir`](Self::work_dir);
    /// failure is an error.
    pub fn tpm2(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = tool("tpm2")?;
        command.args(arguments).current_dir(self.work_dir());
        command.env("TPM2TOOLS_TCTI", self.tools_tcti()).env("TSS2_LOG", "all+NONE");
        run(&mut command)
    }

    /// The directory that relative paths of [`tpm2`](Self::tpm2) refer to.
    pub fn work_dir(&self) -> &Path {
        self.work.path()
    }

    /// The public key of the EK of this `kind`, PEM.
    pub fn ek_public_pem(&self, kind: EkKind) -> Result<String> {
        Ok(String::from_utf8(self.read_ek_public(kind, "pem")?)?)
    }

    /// The public area of the EK of this `kind`, TPM2B_PUBLIC.
    pub fn ek_public(&self, kind: EkKind) -> Result<Vec<u8>> {
        self.read_ek_public(kind, "tss")
    }

    fn read_ek_public(&self, kind: EkKind, format: &str) -> Result<Vec<u8>> {
        let output = ["-f", format, "-o", "ek.public"];
        match kind.persistent_handle() {
            Some(handle) => {
                self.tpm2(&[&["readpublic", "-c", &argument(handle)], &output[..]].concat())?
            }
            None => {
                self.tpm2(&["createek", "-G", "ecc", "-P", &self.endorsement, "-c", "ek.ctx"])?;
                self.tpm2(&[&["readpublic", "-c", "ek.ctx"], &output[..]].concat())?;
                self.tpm2(&["flushcontext", "-t"])?
            }
        };
        Ok(fs::read(self.work.path().join("ek.public"))?)
    }

    /// The EK certificate of this `kind` in NV memory, DER.
    pub fn ek_certificate(&self, kind: EkKind) -> Result<Vec<u8>> {
        let index = &argument(kind.certificate_index());
        Ok(self.tpm2(&["nvread", index, "-C", index])?.stdout)
    }

    /// Puts `der` where a manufacturer puts the EK certificate of this `kind`, and replaces a
    /// certificate that is there.
    pub fn write_ek_certificate(&self, kind: EkKind, der: &[u8]) -> Result<()> {
        let index = &argument(kind.certificate_index());
        if self.handles("nv-index")?.contains(&kind.certificate_index()) {
            self.tpm2(&["nvundefine", "-C", "p", index])?;
        }
        fs::write(self.work.path().join("ek.der"), der)?;
        let size = der.len().to_string();
        self.tpm2(&["nvdefine", index, "-C", "p", "-s", &size, "-a", CERTIFICATE_ATTRIBUTES])?;
        self.tpm2(&["nvwrite", index, "-C", "p", "-i", "ek.der"])?;
        Ok(())
    }

    /// Protects the owner and the endorsement hierarchy by passwords.
    pub fn set_passwords(&mut self, owner: &str, endorsement: &str) -> Result<()> {
        self.tpm2(&["changeauth", "-c", "owner", "-p", &self.owner, owner])?;
        self.owner = owner.to_owned();
        self.tpm2(&["changeauth", "-c", "endorsement", "-p", &self.endorsement, endorsement])?;
        self.endorsement = endorsement.to_owned();
        Ok(())
    }

    /// TPM2_Clear: removes all persistent objects and the passwords, and makes a new SRK. The EK's
    /// seed and certificate stay.
    pub fn clear(&mut self) -> Result<()> {
        self.tpm2(&["clear", "-c", "p"])?;
        self.owner.clear();
        self.endorsement.clear();
        Ok(())
    }

    pub fn persistent_handles(&self) -> Result<Vec<u32>> {
        self.handles("persistent")
    }

    pub fn transient_handles(&self) -> Result<Vec<u32>> {
        self.handles("transient")
    }

    pub fn loaded_sessions(&self) -> Result<Vec<u32>> {
        self.handles("loaded-session")
    }

    fn handles(&self, range: &str) -> Result<Vec<u32>> {
        let listed = self.tpm2(&["getcap", &format!("handles-{range}")])?.stdout;
        let listed = String::from_utf8(listed)?;
        let handles = listed.lines().filter_map(|line| line.trim().strip_prefix("- 0x"));
        handles
            .map(|handle| {
                u32::from_str_radix(handle, 16).context("tpm2_getcap lists hexadecimal handles")
            })
            .collect()
    }

    fn process_id(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("the TPM has no power")?.id())
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // SIGKILL ends a paused process too. A process that is gone already needs nothing.
        let _ = self.kill();
    }
}

/// The value of `--tcti` for the software TPM at a port. It goes through libtss2 if the agent under
/// test has libtss2, so that the same tests try both ways.
pub fn agent_tcti(port: u16) -> String {
    let way = if agent_has_libtss2() { "tss2:" } else { "" };
    format!("{way}{}", tcti(port))
}

/// Whether the agent under test is built with the feature `tss2`. The environment's
/// `ASSAY_TEST_TSS2` says so.
pub fn agent_has_libtss2() -> bool {
    env::var_os("ASSAY_TEST_TSS2").is_some()
}

fn tcti(port: u16) -> String {
    format!("swtpm:host=127.0.0.1,port={port}")
}

/// A handle as tpm2-tools take it.
pub(crate) fn argument(handle: u32) -> String {
    format!("{handle:#010x}")
}

/// The version of the installed swtpm, such as "0.7.1". A state that one version made does not fit
/// another.
pub(crate) fn version() -> Result<String> {
    let said = run(tool("swtpm")?.arg("--version"))?.stdout;
    let said = String::from_utf8(said)?;
    let version = said
        .split_whitespace()
        .map(|word| word.trim_end_matches(','))
        .find(|word| word.starts_with(char::is_numeric));
    version
        .map(str::to_owned)
        .with_context(|| format!("cannot read the version of swtpm from {said:?}"))
}

/// The file of swtpm that holds the seeds and NV memory, and so the TPM's identity.
const PERMANENT_STATE: &str = "tpm2-00.permall";
/// The attributes that swtpm_setup gives the index of an EK certificate.
const CERTIFICATE_ATTRIBUTES: &str =
    "ppwrite|writedefine|ppread|ownerread|authread|no_da|platformcreate";
/// A start takes 4 ms. The rest is for a machine under load.
const START_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_tpm_has_no_ek_certificate() -> Result<()> {
        let tpm = Swtpm::without_ek_certificate()?;
        assert!(EkKind::ALL.iter().all(|kind| tpm.ek_certificate(*kind).is_err()));
        Ok(())
    }

    #[test]
    fn what_is_persistent_survives_loss_of_power_and_what_is_transient_does_not() -> Result<()> {
        let mut tpm = Swtpm::without_ek_certificate()?;
        tpm.tpm2(&["createprimary", "-c", "srk.ctx"])?;
        tpm.tpm2(&["evictcontrol", "-c", "srk.ctx", "0x81000001"])?;
        assert!(!tpm.transient_handles()?.is_empty());

        tpm.restart()?;
        assert_eq!(tpm.persistent_handles()?, [0x8100_0001]);
        assert!(tpm.transient_handles()?.is_empty());
        assert!(tpm.loaded_sessions()?.is_empty());
        Ok(())
    }

    #[test]
    fn passwords_protect_until_the_tpm_is_cleared() -> Result<()> {
        let mut tpm = Swtpm::without_ek_certificate()?;
        tpm.set_passwords("own", "endorse")?;
        assert!(tpm.tpm2(&["createprimary", "-C", "o", "-c", "srk.ctx"]).is_err());
        tpm.ek_public_pem(EkKind::P256)?;
        tpm.set_passwords("own2", "endorse2")?;

        tpm.clear()?;
        tpm.tpm2(&["createprimary", "-C", "o", "-c", "srk.ctx"])?;
        Ok(())
    }

    #[test]
    fn a_paused_tpm_hangs_and_a_resumed_one_answers() -> Result<()> {
        let tpm = Swtpm::without_ek_certificate()?;
        tpm.pause()?;
        thread::scope(|scope| {
            let answer = scope.spawn(|| tpm.tpm2(&["getrandom", "8"]).map(drop));
            thread::sleep(Duration::from_millis(200));
            let hung = !answer.is_finished();
            tpm.resume()?;
            assert!(hung);
            answer.join().expect("no panic")
        })
    }

    #[test]
    fn fifty_tpms_run_at_once() -> Result<()> {
        let tpms: Vec<_> =
            (0..50).map(|_| Swtpm::without_ek_certificate()).collect::<Result<_>>()?;
        let mut tctis: Vec<_> = tpms.iter().map(Swtpm::tcti).collect();
        tctis.sort();
        tctis.dedup();
        assert_eq!(tctis.len(), 50);
        Ok(())
    }
}
