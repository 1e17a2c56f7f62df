//! Runs the programs that an operator named, without a shell, and ends them if they take too long.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use assay_wire::DeviceId;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A program to run once.
pub(super) struct Program {
    command: Vec<String>,
    environment: Vec<(&'static str, OsString)>,
    input: Vec<u8>,
    limit: Duration,
}

impl Program {
    /// `command` is a program and its arguments.
    ///
    /// Its environment has PATH and what stands here, and nothing else: the agent's own may hold
    /// passwords of the TPM.
    pub(super) fn new(command: &[String], state: &Path, device_id: &DeviceId) -> Self {
        let (command, environment, input) = (command.to_vec(), vec![], vec![]);
        let program = Self { command, environment, input, limit: LIMIT };
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

    /// Runs it until it ends. What it leaves in its process group is killed then: each run could
    /// leave something behind, and anybody who may send commands could have as many runs as they
    /// like. If it takes too long, or if nobody waits any more, all are killed.
    pub(super) async fn run(self) -> Result<ExitStatus, NotRun> {
        let (program, arguments) = self.command.split_first().ok_or(NotRun::Empty)?;
        let not_started = |error: io::Error| NotRun::NotStarted(error.to_string());
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.environment).process_group(0);
        command.stdin(if self.input.is_empty() { Stdio::null() } else { Stdio::piped() });
        let mut group = Group(command.spawn().map_err(not_started)?);
        let stdin = group.0.stdin.take();
        let outcome = timeout(self.limit, async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // A program need not read what it gets.
                    _ = stdin.write_all(&self.input).await;
                }
            };
            let end = async {
                group.ended().await?;
                group.kill();
                group.0.wait().await
            };
            tokio::join!(end, write).0
        });
        match outcome.await {
            Ok(status) => status.map_err(not_started),
            Err(_) => Err(NotRun::TookTooLong(self.limit)),
        }
    }
}

/// Why a program did not come to its end.
#[derive(Debug)]
pub(super) enum NotRun {
    Empty,
    NotStarted(String),
    TookTooLong(Duration),
}

impl fmt::Display for NotRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no program is named"),
            Self::NotStarted(reason) => write!(f, "not started: {reason}"),
            Self::TookTooLong(limit) => write!(f, "killed after {} s", limit.as_secs()),
        }
    }
}

/// A process that leads a group of its own. When this is dropped before the process has ended, the
/// whole group is killed.
struct Group(Child);

impl Group {
    /// Waits until the leader has ended. It is not waited for by wait(2) yet, so that its number,
    /// which is that of the group, is nobody else's.
    async fn ended(&self) -> io::Result<()> {
        let Some(id) = self.id() else { return Ok(()) };
        let leader = pidfd_open(id, PidfdFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "its successor is unsafe; the descriptor stays open")]
        let leader = AsyncFd::new(leader)?;
        // It can be read from once the process has ended (pidfd_open(2)).
        leader.readable().await.map(drop)
    }

    fn kill(&self) {
        if let Some(id) = self.id() {
            _ = kill_process_group(id, Signal::KILL);
        }
    }

    /// `None` once the leader was waited for: the number may be another's by now.
    fn id(&self) -> Option<Pid> {
        self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Enough to restart a service.
const LIMIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use super::*;
    use crate::runtime::runtime;

    fn shell(text: &str) -> Program {
        let command = ["/bin/sh", "-c", text].map(str::to_owned);
        Program::new(&command, Path::new("/state"), &"pump-1".parse().unwrap())
    }

    fn run(program: Program) -> Result<ExitStatus, NotRun> {
        runtime().unwrap().block_on(program.run())
    }

    #[test]
    fn program_gets_its_input_and_nothing_of_the_agents_environment() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("heard");
        let text = format!("cat > {0}; env | sort >> {0}", file.display());
        let input = b"$(reboot)\n\0".to_vec();
        run(shell(&text).with("ASSAY_COMMAND", "a b").reading(input.clone())).unwrap();
        let heard = fs::read(file).unwrap();
        let environment = heard.strip_prefix(&input[..]).unwrap();
        let names: Vec<_> = str::from_utf8(environment)
            .unwrap()
            .lines()
            .filter_map(|line| line.split('=').next())
            // The shell sets them.
            .filter(|name| !["OLDPWD", "PWD", "SHLVL", "_"].contains(name))
            .collect();
        let due = ["ASSAY_CERTIFICATE", "ASSAY_COMMAND", "ASSAY_DEVICE_ID", "ASSAY_STATE", "PATH"];
        assert_eq!(names, due);
    }

    #[test]
    fn program_that_takes_too_long_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("alive");
        let text = format!("(sleep 1; touch {}) & sleep 10", file.display());
        let program = Program { limit: Duration::from_millis(200), ..shell(&text) };
        let begun = Instant::now();
        assert!(matches!(run(program), Err(NotRun::TookTooLong(_))));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!file.exists(), "a child lives on");
    }

    #[test]
    fn what_a_program_leaves_in_the_background_is_killed_when_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("alive");
        // It holds the standard input of the program, too, and does not read it.
        let text = format!("(sleep 1; touch {}) & exit 5", file.display());
        let begun = Instant::now();
        let status = run(shell(&text).reading(vec![0; 1 << 20])).unwrap();
        assert_eq!(status.code(), Some(5));
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(1500));
        assert!(!file.exists(), "a child lives on");
    }

    #[test]
    fn program_that_does_not_read_its_input_ends_all_the_same() {
        let status = run(shell("exit 3").reading(vec![0; 1 << 20])).unwrap();
        assert_eq!(status.code(), Some(3));
    }
}
