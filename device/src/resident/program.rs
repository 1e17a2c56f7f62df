//! Runs the programs that an operator named, without a shell, and ends them if they take too long.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use assay_wire::DeviceId;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A program to run once.
pub(super) struct Program {
    command: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
    input: Vec<u8>,
}

impl Program {
    /// `command` is a program and its arguments.
    ///
    /// Its environment has PATH and what stands here, and nothing else: the agent's own may hold
    /// passwords of the TPM.
    pub(super) fn new(command: &[String], state: &Path, device_id: &DeviceId) -> Self {
        let program = Self { command: command.to_vec(), environment: vec![], input: vec![] };
        let program = match std::env::var_os("PATH") {
            Some(path) => program.with("PATH", path),
            None => program,
        };
        program
            .with("ASSAY_STATE", state)
            .with("ASSAY_DEVICE_ID", device_id.as_str())
            .with("ASSAY_CERTIFICATE", crate::state::certificate_path(state))
    }

    /// The same program with a variable more in its environment.
    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name, value.as_ref().into()));
        self
    }

    /// The same program with this on its standard input.
    #[must_use]
    pub(super) fn reading(mut self, input: Vec<u8>) -> Self {
        self.input = input;
        self
    }

    /// Runs it until it ends. If it takes too long, or if nobody waits any more, it is killed with
    /// all that it started in its process group.
    pub(super) async fn run(self) -> Result<ExitStatus, NotRun> {
        let (program, arguments) = self.command.split_first().ok_or(NotRun::Empty)?;
        let not_started = |error: std::io::Error| NotRun::NotStarted(error.to_string());
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.environment).process_group(0);
        command.stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut group = Group(command.spawn().map_err(not_started)?);
        let stdin = group.0.stdin.take();
        let outcome = timeout(LIMIT, async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // A program need not read what it gets.
                    _ = stdin.write_all(&self.input).await;
                }
            };
            tokio::join!(group.0.wait(), write).0
        });
        match outcome.await {
            Ok(status) => status.map_err(not_started),
            Err(_) => Err(NotRun::TookTooLong),
        }
    }
}

/// Why a program did not come to its end.
#[derive(Debug)]
pub(super) enum NotRun {
    Empty,
    NotStarted(String),
    TookTooLong,
}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no program is named"),
            Self::NotStarted(reason) => write!(f, "not started: {reason}"),
            Self::TookTooLong => write!(f, "killed after {} s", LIMIT.as_secs()),
        }
    }
}

/// A process that leads a group of its own. When this is dropped before the process has ended, the
/// whole group is killed.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // `id` has none once the process was waited for, so the number is not another's by now.
        let id = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(id) = id {
            _ = kill_process_group(id, Signal::KILL);
        }
    }
}

/// Enough to restart a service.
const LIMIT: Duration = Duration::from_secs(60);
