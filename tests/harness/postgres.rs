//! PostgreSQL: a server of our own, while somebody needs it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::ports::Ports;
use crate::tool::{run, signal, spawn, tool};

/// A running PostgreSQL, which clients reach by a Unix socket in its own directory, or by TLS on
/// its own port; killed when dropped.
///
/// It has nothing to do with the system service that Debian's package starts. As in operation, it
/// reports a commit only when the data is on the disk.
pub struct Postgres {
    process: Mutex<Child>,
    schemas: AtomicU32,
    ports: Ports,
    dir: TempDir,
}

impl Postgres {
    /// The server that other tests of this process use now, or a new one.
    pub fn shared() -> Result<Arc<Self>> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = shared.upgrade() {
            return Ok(server);
        }
        let server = Arc::new(Self::start()?);
        *shared = Arc::downgrade(&server);
        Ok(server)
    }

    /// A new server, with these lines added to its postgresql.conf.
    pub fn start_with(settings: &str) -> Result<Self> {
        Self::make(settings, None)
    }

    /// A new server that takes TLS on 127.0.0.1, with this certificate and key in PEM.
    pub fn start_tls(certificate: &str, key: &str) -> Result<Self> {
        Self::make("listen_addresses = '127.0.0.1'\nssl = on", Some((certificate, key)))
    }

    fn make(settings: &str, tls: Option<(&str, &str)>) -> Result<Self> {
        let (dir, ports) = (tempfile::tempdir()?, Ports::claim()?);
        if is_root()? {
            // PostgreSQL refuses to run as root.
            let (user, group) = account()?;
            chown(dir.path(), Some(user), Some(group))?;
        }
        let data = dir.path().join("data");
        // The data need not survive a crash of this machine before the first test.
        run(program("initdb")?.arg("--pgdata").arg(&data).args([
            "--no-sync",
            "--auth=trust",
            "--username=assay",
            "--encoding=UTF8",
            "--locale=C",
        ]))?;
        let conf = data.join("postgresql.conf");
        let text = format!(
            "{}\nlisten_addresses = ''\nunix_socket_directories = '{}'\n{settings}\n",
            fs::read_to_string(&conf)?,
            dir.path().display()
        );
        fs::write(conf, text)?;
        if let Some((certificate, key)) = tls {
            for (name, text) in [("server.crt", certificate), ("server.key", key)] {
                let file = data.join(name);
                fs::write(&file, text)?;
                fs::set_permissions(&file, Permissions::from_mode(0o600))?;
                if is_root()? {
                    let (user, group) = account()?;
                    chown(&file, Some(user), Some(group))?;
                }
            }
        }
        let process = run_in(dir.path(), ports.first())?.into();
        let server = Self { process, schemas: AtomicU32::new(0), ports, dir };
        server.wait_until_it_listens()?;
        Ok(server)
    }

    /// A new server.
    pub fn start() -> Result<Self> {
        Self::start_with("")
    }

    /// The connection string of a new, empty schema.
    pub fn address(&self) -> Result<String> {
        let name = format!("ca_{}", self.schemas.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("CREATE SCHEMA {name}"))?;
        let (directory, port) = (self.dir.path().display(), self.port());
        Ok(format!(
            "host={directory} port={port} user=assay dbname=postgres \
             options='-c search_path={name}'"
        ))
    }

    /// Runs a command of SQL, as the superuser.
    pub fn sql(&self, command: &str) -> Result<String> {
        let output = run(tool("psql")?
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--username=assay"])
            .arg("--host")
            .arg(self.dir.path())
            .args([
                "--port",
                &self.port().to_string(),
                "--dbname=postgres",
                "--command",
                command,
            ]))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Kills the server with all its processes, as a power cut does, and starts it again.
    pub fn crash(&self) -> Result<()> {
        self.stop()?;
        self.restart()
    }

    /// Starts it again after a [stop](Self::stop).
    pub fn restart(&self) -> Result<()> {
        let process = run_in(self.dir.path(), self.port())?;
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
        self.wait_until_it_listens()
    }

    /// Kills the server with all its processes, until it is [restarted](Self::restart).
    pub fn stop(&self) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        kill_family(process.id())?;
        process.wait()?;
        Ok(())
    }

    /// The server's directory, with `data` and the socket in it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The process id of the server, which is the parent of all its processes.
    pub fn pid(&self) -> u32 {
        self.process.lock().unwrap_or_else(PoisonError::into_inner).id()
    }

    /// The port that the server listens on. The name of its socket contains it.
    pub fn port(&self) -> u16 {
        self.ports.first()
    }

    fn wait_until_it_listens(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let socket = self.dir.path().join(format!(".s.PGSQL.{}", self.port()));
        while UnixStream::connect(&socket).is_err() || self.sql("SELECT 1").is_err() {
            let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
            let ended = process.try_wait()?;
            if Instant::now() > deadline {
                let log = fs::read_to_string(self.dir.path().join("log"))?;
                bail!("postgres does not listen ({ended:?}): {log}");
            }
            // After a crash, a new server refuses to start until the old server's processes are
            // gone.
            if ended.is_some() {
                *process = run_in(self.dir.path(), self.port())?;
            }
            drop(process);
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The process id of a stopped server may belong to another process now.
        if let Ok(None) = process.try_wait() {
            let _ = kill_family(process.id());
            let _ = process.wait();
        }
    }
}

fn run_in(dir: &Path, port: u16) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(dir.join("log"))?;
    // The log is opened here, because the server may run under another account.
    let mut command = program_that_ends("postgres")?;
    command
        .arg("-D")
        .arg(dir.join("data"))
        .args(["-p", &port.to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(spawn(command)?)
}

/// One of PostgreSQL's programs, run by an account that is not root's.
fn program(name: &str) -> Result<Command> {
    let mut command = tool("setpriv")?;
    if is_root()? {
        let (user, group) = account()?;
        command.args([format!("--reuid={user}"), format!("--regid={group}")]);
        command.arg("--clear-groups");
    }
    // A directory that this account may enter.
    command.arg("--").arg(locate(name)?).current_dir("/");
    Ok(command)
}

/// The same, but the kernel kills the program when this process dies.
fn program_that_ends(name: &str) -> Result<Command> {
    let mut command = tool("setpriv")?;
    command.args(["--pdeathsig", "KILL"]);
    let program = program(name)?;
    command.args(program.get_args()).current_dir("/");
    Ok(command)
}

/// Debian has a directory for each version's programs, and none of these is in PATH.
fn locate(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name));
    let mut found: Vec<_> = found.filter(|program| program.is_file()).collect();
    found.sort();
    match found.pop() {
        Some(program) => Ok(program),
        None => tool(name).map(|command| command.get_program().into()),
    }
}

/// Kills a process and its children. They form no process group.
fn kill_family(process: u32) -> Result<()> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
    let children = children.unwrap_or_default();
    signal(process, "KILL")?;
    for child in children.split_whitespace() {
        // The child may have ended by itself.
        let _ = signal(child.parse()?, "KILL");
    }
    Ok(())
}

fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

/// User and group of the account that Debian's package makes.
fn account() -> Result<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd")?;
    let line = accounts.lines().find(|line| line.starts_with("postgres:"));
    let line = line.context("there is no account postgres: apt-get install postgresql-15")?;
    let fields: Vec<_> = line.split(':').collect();
    Ok((fields[2].parse()?, fields[3].parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgresql_keeps_what_it_committed_when_it_is_killed() -> Result<()> {
        let server = Postgres::start()?;
        server.sql("CREATE TABLE kept (n int)")?;
        server.sql("INSERT INTO kept VALUES (7)")?;
        server.crash()?;
        assert_eq!(server.sql("SELECT n FROM kept")?, "7");
        let socket = server.dir().join(format!(".s.PGSQL.{}", server.port()));
        drop(server);
        assert!(UnixStream::connect(socket).is_err());
        Ok(())
    }
}
