//! Eclipse Mosquitto: a broker that is not ours.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
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
    process: Child,
    dir: TempDir,
}

impl Mosquitto {
    /// A broker with one listener, which the lines `config` (mosquitto.conf(5)) describe further.
    pub fn start(config: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = Ports::claim()?;
        let port = ports.first();
        let path = dir.path().join("mosquitto.conf");
        // Started by root, it would change to a user who cannot read our files.
        fs::write(&path, format!("user root\nlistener {port} 127.0.0.1\n{}\n", config.join("\n")))?;
        let log = fs::File::create(dir.path().join("log"))?;
        let mut command = daemon("mosquitto")?;
        command.arg("-c").arg(path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut broker = Self { ports, process: spawn(command)?, dir };

        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            let ended = broker.process.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(broker.dir.path().join("log"))?;
                bail!("mosquitto does not listen on port {port} ({ended:?}): {log}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(broker)
    }

    pub fn port(&self) -> u16 {
        self.ports.first()
    }
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
        let port = broker.port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        drop(broker);
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        Ok(())
    }
}
