//! A service manager in systemd's place (sd_notify(3)): what the server tells it, and when it tells
//! nothing.

use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use assay_tests::{
    Agent, AssayDir, AssayServer, Device, EkKind, Mosquitto, Worker, trusted_vendor,
};
use assay_wire::{ReplyBody, RequestBody};
use tempfile::TempDir;

use crate::lab::Lab;
use crate::raw_client::RawClient;

#[test]
fn a_client_that_connects_at_the_moment_of_the_start_is_answered_at_once() -> Result<()> {
    let mut lab = Lab::open()?;
    let root = lab.dir.root_pem();
    for _ in 0..5 {
        let (answered, took) = lab.server.restart_while(|server| {
            let deadline = Instant::now() + PATIENCE;
            // The client connects as soon as the port is open, which is before any worker runs.
            let mut client = loop {
                match RawClient::connect(&server.bootstrap, &root) {
                    Ok(client) => break client,
                    Err(error) => ensure!(Instant::now() < deadline, "{error:#}"),
                }
            };
            let asked = Instant::now();
            Ok((client.ask(RequestBody::Ping)?, asked.elapsed()))
        })?;
        ensure!(matches!(answered, ReplyBody::Pong));
        ensure!(took < Duration::from_secs(5), "answered after {took:?}");
    }
    Ok(())
}

#[test]
fn a_server_says_that_it_is_ready_reloads_and_stops() -> Result<()> {
    let manager = Manager::new()?;
    let dir = AssayDir::init()?;
    let server = AssayServer::start_with(&dir, &manager.environment(None))?;
    manager.hears(&format!("READY=1\nSTATUS=taking requests at {}", server.operational))?;
    server.signal("HUP")?;
    // Since version 253, systemd fails the reload if the time is missing.
    manager.hears("RELOADING=1\nMONOTONIC_USEC=")?;
    manager.hears("READY=1\nSTATUS=reread")?;
    std::fs::write(dir.path().join("assay.toml"), "flows = []")?;
    server.signal("HUP")?;
    manager.hears("RELOADING=1")?;
    manager.hears("READY=1\nSTATUS=nothing was reread")?;
    server.signal("TERM")?;
    manager.hears("STOPPING=1")?;
    ensure!(
        !manager.heard.borrow().iter().any(|message| message.contains("WATCHDOG")),
        "nobody asked for it"
    );
    Ok(())
}

#[test]
fn a_watchdog_hears_from_a_worker_while_its_broker_is_gone_but_not_that_it_is_ready() -> Result<()>
{
    let manager = Manager::new()?;
    let dir = AssayDir::init()?;
    let mut mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    mosquitto.stop()?;
    let _worker = Worker::start_with(&dir, &broker, &manager.environment(Some(WATCHDOG)))?;
    manager.hears(&format!("STATUS=no connection to {broker}"))?;
    for _ in 0..3 {
        manager.hears("WATCHDOG=1")?;
    }
    ensure!(!manager.heard.borrow().iter().any(|message| message.contains("READY")));
    mosquitto.restart()?;
    manager.hears("READY=1")?;
    Ok(())
}

#[test]
fn a_watchdog_hears_nothing_while_the_writer_is_stuck() -> Result<()> {
    let manager = Manager::new()?;
    let dir = AssayDir::init()?;
    dir.trust(&trusted_vendor()?)?;
    let server = AssayServer::start_with(&dir, &manager.environment(Some(WATCHDOG)))?;
    for _ in 0..3 {
        manager.hears("WATCHDOG=1")?;
    }
    let mut database = rusqlite::Connection::open(dir.path().join("assay.db"))?;
    let lock = database.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    // The writer now waits to record the refusal of this message.
    RawClient::connect(&server.bootstrap, &dir.root_pem())?.ask_bytes(b"no request".to_vec())?;
    thread::sleep(WATCHDOG);
    manager.forget()?;
    thread::sleep(3 * WATCHDOG);
    ensure!(
        manager.forget()? == 0,
        "something is stuck, and the watchdog is told that all is well"
    );
    lock.rollback()?;
    manager.hears("WATCHDOG=1")
}

#[test]
fn a_device_says_that_it_is_ready_online_alive_and_stops() -> Result<()> {
    let manager = Manager::new()?;
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.server.signal("STOP")?;
    let mut command = device.run(&lab.dir, &lab.server)?;
    command.envs(manager.environment(Some(WATCHDOG)));
    let agent = Agent::start(command)?;
    for _ in 0..3 {
        manager.hears("WATCHDOG=1")?;
    }
    ensure!(!manager.heard.borrow().iter().any(|message| message.contains("READY")));
    lab.server.signal("CONT")?;
    manager.hears("READY=1")?;
    manager.hears("STATUS=online as")?;
    agent.signal("TERM")?;
    manager.hears("STOPPING=1")
}

/// Receives what is sent to `NOTIFY_SOCKET`.
struct Manager {
    socket: UnixDatagram,
    directory: TempDir,
    heard: std::cell::RefCell<Vec<String>>,
}

impl Manager {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let socket = UnixDatagram::bind(directory.path().join("notify"))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { socket, directory, heard: Default::default() })
    }

    /// The environment of a process that notifies this manager, with the interval of a watchdog if
    /// there is one.
    fn environment(&self, watchdog: Option<Duration>) -> Vec<(&'static str, &'static OsStr)> {
        // Leaked for the life of the test process, which is short.
        let leak = |text: String| -> &'static OsStr { OsStr::new(text.leak()) };
        let socket: PathBuf = self.directory.path().join("notify");
        let socket = ("NOTIFY_SOCKET", leak(socket.display().to_string()));
        let watchdog = watchdog.map(|time| ("WATCHDOG_USEC", leak(time.as_micros().to_string())));
        [socket].into_iter().chain(watchdog).collect()
    }

    /// Waits for a message with this text.
    fn hears(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(message) = self.next()
                && message.contains(text)
            {
                return Ok(());
            }
        }
        anyhow::bail!("{text:?} is not among {:?}", self.heard.borrow())
    }

    /// Drops the messages that have come, and counts them.
    fn forget(&self) -> Result<usize> {
        self.socket.set_nonblocking(true)?;
        let count = std::iter::from_fn(|| self.next()).count();
        self.socket.set_nonblocking(false)?;
        Ok(count)
    }

    fn next(&self) -> Option<String> {
        let mut buffer = [0; 4096];
        let length = self.socket.recv(&mut buffer).ok()?;
        let message = String::from_utf8_lossy(&buffer[..length]).into_owned();
        self.heard.borrow_mut().push(message.clone());
        Some(message)
    }
}

const PATIENCE: Duration = Duration::from_secs(30);
/// A worker sends a sign of life twice in this time.
const WATCHDOG: Duration = Duration::from_secs(1);
