//! Programs of others. None of them outlives us, and an error names the program that is missing or
//! fails.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::sync::{LazyLock, mpsc};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

/// A command for `program`, found in PATH or where Debian keeps daemons. If it is missing, the
/// error names its package.
pub fn tool(program: &str) -> Result<Command> {
    locate(program).map(Command::new)
}

/// As [`tool`], for a program that keeps running. The kernel kills it when this process dies in any
/// way.
///
/// Start it with [`spawn`].
pub fn daemon(program: impl AsRef<Path>) -> Result<Command> {
    let program = match program.as_ref().to_str() {
        Some(name) if !name.contains('/') => locate(name)?,
        _ => program.as_ref().to_path_buf(),
    };
    let mut command = tool("setpriv")?;
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    Ok(command)
}

/// Starts a [`daemon`].
///
/// Linux sends the parent-death signal when the *thread* that started the child ends (prctl(2),
/// PR_SET_PDEATHSIG). So one thread that never ends starts all children.
pub fn spawn(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::Sender<io::Result<Child>>);
    static STARTER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
        let (requests, queue) = mpsc::channel::<Request>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                answer.send(command.spawn()).expect("the asker waits for its answer");
            }
        });
        requests
    });
    let (answer, child) = mpsc::channel();
    STARTER.send((command, answer)).expect("the starter never ends");
    child.recv().expect("the starter answers every request")
}

/// Runs `command` to its end; an exit status other than 0 is an error that quotes what it wrote.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        let written = [&output.stdout[..], &output.stderr].concat();
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&written).trim_end());
    }
    Ok(output)
}

/// Sends `signal` ("KILL", "STOP", "CONT", "TERM") to one process.
///
/// This is the shell's own `kill`, because not every machine has the program of that name.
pub fn signal(process: u32, signal: &str) -> Result<()> {
    run(tool("sh")?.args(["-c", &format!("kill -{signal} {process}")])).map(drop)
}

fn locate(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        // Mosquitto is in this directory, which is not in an ordinary user's PATH on Debian.
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| match package_of(program) {
            Some(package) => {
                anyhow!("`{program}` is not installed: run `apt-get install {package}`")
            }
            None => anyhow!("`{program}` is not installed"),
        })
}

fn package_of(program: &str) -> Option<&'static str> {
    Some(match program {
        "age" | "age-keygen" => "age",
        "certtool" => "gnutls-bin",
        "curl" => "curl",
        "dbus-daemon" => "dbus-daemon",
        "debootstrap" => "debootstrap",
        "git" => "git",
        "mosquitto" => "mosquitto",
        "mosquitto_pub" | "mosquitto_sub" => "mosquitto-clients",
        "openssl" => "openssl",
        "promtool" => "prometheus",
        "nsenter" | "setpriv" | "unshare" => "util-linux",
        "initdb" | "postgres" => "postgresql-15",
        "psql" => "postgresql-client-15",
        "pkcs11-tool" => "opensc",
        "tpm2_ptool" => "libtpm2-pkcs11-tools",
        "script" => "bsdutils",
        "softhsm2-util" => "softhsm2",
        "swtpm" => "swtpm",
        "swtpm_localca" | "swtpm_setup" => "swtpm-tools",
        "systemd-nspawn" => "systemd-container",
        "tpm2" => "tpm2-tools",
        "tpm2-abrmd" => "tpm2-abrmd",
        _ => return None,
    })
}
