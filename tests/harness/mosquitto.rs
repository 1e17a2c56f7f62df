//! Eclipse Mosquitto: a broker that is not ours.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tempfile::TempDir;

use crate::ports::Ports;
use crate::tool::{daemon, spawn};

/// A running Mosquitto on a port of its own; killed when dropped.
///
/// It has nothing to do with the system service that Debian's package starts on port 1883.
pub struct Mosquitto {
    ports: Ports,
    listeners: u16,
    process: Child,
    dir: TempDir,
}

impl Mosquitto {
    /// A broker with one or two listeners. Each element of `listeners` has further lines of
    /// mosquitto.conf(5) for one listener.
    pub fn start(listeners: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = Ports::claim()?;
        // If root starts Mosquitto, it changes to a user who cannot read our files.
        let mut config = "user root\nper_listener_settings true\n".to_owned();
        for (port, lines) in (ports.first()..).zip(listeners) {
            write!(config, "listener {port} 127.0.0.1\n{lines}\n")?;
        }
        fs::write(dir.path().join("mosquitto.conf"), config)?;
        let listeners = u16::try_from(listeners.len())?;
        let mut broker = Self { ports, listeners, process: run_on(dir.path())?, dir };
        broker.wait_until_it_listens()?;
        Ok(broker)
    }

    /// Kills the broker.
    pub fn stop(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Kills the broker, if it runs, and starts it again on the same ports.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.process = run_on(self.dir.path())?;
        self.wait_until_it_listens()
    }

    /// The port of a listener. Numbers begin at 0.
    pub fn port(&self, number: u16) -> u16 {
        self.ports.first() + number
    }

    /// The broker's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    fn wait_until_it_listens(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let is_closed = |number: u16| {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.first() + number)).is_err()
        };
        while (0..self.listeners).any(is_closed) {
            let ended = self.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.dir.path().join("log"))?;
                bail!(
                    "mosquitto does not listen from port {} on ({ended:?}): {log}",
                    self.ports.first()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

fn run_on(dir: &Path) -> Result<Child> {
    let log = fs::File::options().create(true).append(true).open(dir.join("log"))?;
    let mut command = daemon("mosquitto")?;
    command
        .arg("-c")
        .arg(dir.join("mosquitto.conf"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    Ok(spawn(command)?)
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mosquitto_listens_and_ends_with_its_owner() -> Result<()> {
        let broker = Mosquitto::start(&["allow_anonymous true"])?;
        let port = broker.port(0);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        drop(broker);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        Ok(())
    }
}
