//! The CA: a directory made by `assay init`, and `assay serve` as a process of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::assay_bin;
use crate::tool::{daemon, run, signal, spawn};
use crate::vendor::VendorCa;

/// What `assay init` makes, in a temporary directory.
pub struct AssayDir {
    temporary: TempDir,
}

/// A line of `assay.toml`. A new CA does not offer the shared-key flow.
pub const EVERY_FLOW: &str = "flows = [\"ticket\", \"sealed\", \"shared-key\"]";

impl AssayDir {
    /// A new CA that offers every flow.
    pub fn init() -> Result<Self> {
        Self::init_with(&[], &[])
    }

    /// The same with more arguments of `assay init`, and variables in its environment.
    pub fn init_with(arguments: &[&str], environment: &[(&str, &OsStr)]) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let dir = Self { temporary };
        let mut init = Command::new(assay_bin("assay")?);
        init.arg("init").arg(dir.path()).args(arguments);
        run(init.envs(environment.iter().copied()))?;
        let settings = dir.path().join("assay.toml");
        let text = fs::read_to_string(&settings)?;
        let offered = text.replace("flows = [\"ticket\", \"sealed\"]", EVERY_FLOW);
        ensure!(offered != text, "{} offers other flows", settings.display());
        fs::write(settings, offered)?;
        Ok(dir)
    }

    /// A CA that somebody makes in the directory `assay` of the place that they are given.
    pub fn made(make: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        make(temporary.path())?;
        Ok(Self { temporary })
    }

    /// A CA that `assay restore` makes from a backup, with these arguments.
    pub fn restore(backup: &Path, arguments: &[&str]) -> Result<Self> {
        let temporary = tempfile::tempdir()?;
        let dir = Self { temporary };
        run(dir.assay(&["restore"])?.arg(backup).args(arguments))?;
        Ok(dir)
    }

    /// The same with these settings in place of those in the backup.
    pub fn restore_with(backup: &Path, settings: &Path) -> Result<Self> {
        let dir = Self { temporary: tempfile::tempdir()? };
        fs::create_dir(dir.path())?;
        fs::copy(settings, dir.path().join("assay.toml"))?;
        run(dir.assay(&["restore"])?.arg(backup))?;
        Ok(dir)
    }

    pub fn path(&self) -> PathBuf {
        self.temporary.path().join("assay")
    }

    /// The root that devices pin.
    pub fn root_pem(&self) -> PathBuf {
        self.path().join("root.pem")
    }

    /// `assay --dir DIR`, for the caller to complete.
    pub fn assay(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(assay_bin("assay")?);
        command.arg("--dir").arg(self.path()).args(arguments);
        Ok(command)
    }

    /// Trusts the EK certificates of `vendor`, and admits every EK that has one.
    pub fn trust(&self, vendor: &VendorCa) -> Result<()> {
        run(&mut self.trust_command(vendor)?).map(drop)
    }

    /// The command behind [`trust`](Self::trust).
    pub fn trust_command(&self, vendor: &VendorCa) -> Result<Command> {
        let mut command = self.assay(&["trust", "add", "--admit"])?;
        command.arg(vendor.root_pem()).arg(vendor.intermediate_pem());
        Ok(command)
    }

    /// What `assay devices`, `certs` or `audit` lists with `--json`: an object per line.
    pub fn list(&self, table: &str) -> Result<Vec<Value>> {
        let listed = run(&mut self.assay(&[table, "--json"])?)?.stdout;
        let rows = serde_json::Deserializer::from_slice(&listed).into_iter();
        rows.collect::<Result<_, _>>()
            .with_context(|| format!("`assay {table} --json` writes JSON"))
    }

    /// What the CA decided, by its audit, without what operators did.
    ///
    /// # Errors
    /// The command failed.
    pub fn decisions(&self) -> Result<Vec<Value>> {
        let mut audit = self.list("audit")?;
        audit.retain(|entry| entry["chain"] != "acts");
        Ok(audit)
    }
}

/// A running `assay serve`: embedded broker and worker.
///
/// When dropped, it is killed and its log is written to stderr. The test runner shows the log if
/// the test failed.
pub struct AssayServer {
    dir: PathBuf,
    log: PathBuf,
    environment: Vec<(String, OsString)>,
    process: Option<Child>,
    /// The URLs of the two listeners. They stay the same over restarts.
    pub bootstrap: String,
    pub operational: String,
    /// Where it answers HTTP, if assay.toml says so; another place after each start.
    pub http: Option<String>,
}

impl AssayServer {
    /// Serves `dir` on two free ports of the loopback interface; returns when both listen.
    pub fn start(dir: &AssayDir) -> Result<Self> {
        Self::start_with(dir, &[])
    }

    /// The same, with more variables in the server's environment.
    pub fn start_with(dir: &AssayDir, environment: &[(&str, &OsStr)]) -> Result<Self> {
        let any = "mqtts://127.0.0.1:0".to_owned();
        let log = dir.temporary.path().join("serve.log");
        let environment = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let (dir, bootstrap, operational) = (dir.path(), any.clone(), any);
        let (process, http) = (None, None);
        let mut server = Self { dir, log, environment, process, bootstrap, operational, http };
        server.serve()?;
        Ok(server)
    }

    /// `kill -9`.
    pub fn kill9(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Serves again after [`kill9`](Self::kill9), on the same ports.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9()?;
        self.serve()
    }

    /// As [`restart`](Self::restart), but does `meanwhile` while the server starts.
    pub fn restart_while<T>(&mut self, meanwhile: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.kill9()?;
        let lines = self.spawn()?;
        let done = meanwhile(self)?;
        self.wait_until_ready(&lines)?;
        Ok(done)
    }

    /// Asks the server to end (SIGTERM) and waits until it ends.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()
    }

    /// Asks the server to end, and serves again on the same ports after `meanwhile`.
    pub fn restart_after(&mut self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        self.terminate()?;
        meanwhile()?;
        self.serve()
    }

    fn terminate(&mut self) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            signal(process.id(), "TERM")?;
            let status = process.wait()?;
            if !status.success() {
                bail!("`assay serve` ended with {status}");
            }
        }
        Ok(())
    }

    /// Sends the server a signal: "STOP", "CONT", "HUP", "TERM".
    pub fn signal(&self, name: &str) -> Result<()> {
        signal(self.pid().context("the server was killed")?, name)
    }

    /// The process id of the server, unless it was killed.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Memory that the server occupies now, in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        let pid = self.pid().context("the server was killed")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let size =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(size.context("/proc/PID/status has no VmRSS")?.parse()?)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn serve(&mut self) -> Result<()> {
        let lines = self.spawn()?;
        self.wait_until_ready(&lines)
    }

    fn spawn(&mut self) -> Result<mpsc::Receiver<String>> {
        let log = fs::File::options().create(true).append(true).open(&self.log)?;
        let mut command = daemon(assay_bin("assay")?)?;
        command.arg("--dir").arg(&self.dir).arg("serve");
        command.args([
            "--bootstrap",
            address(&self.bootstrap),
            "--operational",
            address(&self.operational),
        ]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        lines_of(self.process.insert(spawn(with_log(command, log))?))
    }

    fn wait_until_ready(&mut self, lines: &mpsc::Receiver<String>) -> Result<()> {
        let url = |listener: &str| {
            let line = lines.recv_timeout(READY_TIMEOUT).unwrap_or_default();
            let url = line.strip_prefix(listener).map(|url| url.trim().to_owned());
            url.with_context(|| {
                format!("`assay serve` said {line:?} instead of its {listener} URL")
            })
        };
        (self.bootstrap, self.operational) = (url("bootstrap")?, url("operational")?);
        let settings = fs::read_to_string(self.dir.join("assay.toml"))?;
        let answers = settings.lines().any(|line| line.starts_with("listen = "));
        self.http = answers.then(|| url("http")).transpose()?;
        Ok(())
    }
}

impl Drop for AssayServer {
    fn drop(&mut self) {
        if self.process.is_some() {
            let _ = self.kill9();
            eprintln!("--- log of `assay serve` ---\n{}", self.log());
        }
    }
}

/// The lines that `process` writes to its standard output, as they come.
pub(crate) fn lines_of(process: &mut Child) -> Result<mpsc::Receiver<String>> {
    let stdout = process.stdout.take().context("standard output is a pipe")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        // The thread reads on when nobody listens any more, so that a full pipe does not block the
        // process.
        BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .for_each(|line| drop(sender.send(line)));
    });
    Ok(lines)
}

fn with_log(mut command: Command, log: fs::File) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    command
}

/// `HOST:PORT` of a URL.
fn address(url: &str) -> &str {
    url.trim_start_matches("mqtts://")
}

/// Opening the store and binding two sockets takes well under a second. The rest is for a machine
/// under load.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
