//! A Debian machine in a folder, which runs commands and boots with its own systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{daemon, run, spawn, tool};

/// A fresh Debian of this machine's release, because packages that are built here need its C
/// library.
pub(crate) struct Machine {
    root: PathBuf,
}

impl Machine {
    /// Makes the machine at `root`, in place of what was there. The folder is removed when this is
    /// dropped.
    pub(crate) fn make(root: &Path) -> Result<Self> {
        if root.exists() {
            fs::remove_dir_all(root)
                .with_context(|| format!("cannot remove {}", root.display()))?;
        }
        let machine = Self { root: root.to_path_buf() };
        let mut debootstrap = tool("debootstrap")?;
        debootstrap.args(["--variant=minbase", "--include=dbus,systemd", &release()?]);
        // The folder is temporary, so dpkg need not wait for the disk. This halves the time.
        run(debootstrap.arg(root).env("DPKG_FORCE", "unsafe-io"))?;
        // The variant minbase has no such file.
        machine.write("etc/hosts", "127.0.0.1 localhost\n")?;
        Ok(machine)
    }

    /// The path on our side of the machine's `path`.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(crate) fn write(&self, path: &str, content: &str) -> Result<()> {
        fs::write(self.path(path), content).with_context(|| format!("cannot write {path}"))
    }

    /// Runs a command as root on the machine while it is off, with our network.
    pub(crate) fn run(&self, command: &[&str]) -> Result<Output> {
        run(self.nspawn()?.args(["--pipe", "--"]).args(command).stdin(Stdio::null()))
    }

    /// Boots the machine in a network of its own that leads nowhere. The machine sees our folder
    /// `shared` at `at`.
    pub(crate) fn boot(&self, shared: &Path, at: &str) -> Result<Booted<'_>> {
        let mut nspawn = daemon("systemd-nspawn")?;
        nspawn.args(self.arguments()).args(["--boot", "--private-network"]);
        nspawn.arg(format!("--bind={}:{at}", shared.display()));
        let log = self.root.with_extension("boot.log");
        let output = fs::File::create(&log)?;
        let nspawn = nspawn.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut booted = Booted {
            machine: self,
            process: spawn(std::mem::replace(nspawn, Command::new("")))?,
            init: 0,
        };
        booted.wait().with_context(|| format!("systemd does not start, see {}", log.display()))?;
        Ok(booted)
    }

    fn nspawn(&self) -> Result<Command> {
        let mut nspawn = tool("systemd-nspawn")?;
        nspawn.args(self.arguments());
        Ok(nspawn)
    }

    /// With these, `systemd-nspawn` needs no running systemd on our side.
    fn arguments(&self) -> [String; 5] {
        let directory = format!("--directory={}", self.root.display());
        ["--quiet", "--register=no", "--keep-unit", "--machine=assay-trial", &directory]
            .map(String::from)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // If this fails, the next run removes the folder before it begins.
        _ = fs::remove_dir_all(&self.root);
    }
}

/// A running machine. Its power is cut when this is dropped.
pub(crate) struct Booted<'a> {
    pub(crate) machine: &'a Machine,
    process: Child,
    /// The machine's systemd, by its process id on our side.
    init: u32,
}

impl Booted<'_> {
    /// Runs a command as root; failure is an error.
    pub(crate) fn run(&self, command: &[&str]) -> Result<String> {
        let output = run(self.command(command)?.stdin(Stdio::null()))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Runs a command that must fail, and returns what it said.
    pub(crate) fn fails(&self, command: &[&str]) -> Result<String> {
        let output = self.command(command)?.stdin(Stdio::null()).output()?;
        ensure!(!output.status.success(), "{command:?} succeeded");
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// The value of a property of a unit, as systemd gives it.
    pub(crate) fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.run(&["systemctl", "show", "--value", "--property", name, unit])
    }

    fn command(&self, command: &[&str]) -> Result<Command> {
        let mut nsenter = tool("nsenter")?;
        nsenter.args(["--target", &self.init.to_string()]);
        nsenter
            .args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--"])
            .args(command);
        Ok(nsenter)
    }

    fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("systemd-nspawn: {status}");
            }
            self.init = self.only_child().unwrap_or_default();
            // "degraded" means that some service failed. That is not a good start for a test.
            if self.init != 0
                && self
                    .run(&["systemctl", "is-system-running"])
                    .is_ok_and(|state| state == "running")
            {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not running after {} s", BOOT_TIMEOUT.as_secs());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// The process id of the only child of systemd-nspawn.
    fn only_child(&self) -> Option<u32> {
        let process = self.process.id();
        fs::read_to_string(format!("/proc/{process}/task/{process}/children"))
            .ok()?
            .trim()
            .parse()
            .ok()
    }
}

impl Drop for Booted<'_> {
    fn drop(&mut self) {
        // The machine's systemd ends with systemd-nspawn, and all processes of the machine with it.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// The code name of this machine's Debian release, such as "bookworm".
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("this is no Debian machine")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("/etc/os-release has no VERSION_CODENAME; this is no Debian machine")?
        .trim_matches('"')
        .to_owned())
}

/// A boot takes 3 s. The rest is for a machine under load.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);
