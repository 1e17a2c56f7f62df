//! A wire tap: records what passes over a TCP port in both directions, and how long answers take.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Stands in front of a server and records what passes.
pub struct Tap {
    port: u16,
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    heard: Vec<u8>,
    requests: usize,
    waited: Duration,
}

/// Who must speak next on one connection.
#[derive(Default)]
struct Turn {
    is_the_servers: bool,
    /// When the last piece passed.
    since: Option<Instant>,
}

impl Tap {
    pub fn before(server: u16) -> Result<Self> {
        Self::slowing(server, Duration::ZERO)
    }

    /// As [`before`](Self::before), in front of a software TPM. Clients also reach the TPM's
    /// control channel, at the next port.
    pub fn before_tpm(server: u16) -> Result<Self> {
        for _ in 0..100 {
            let tap = Self::before(server)?;
            if let Some(next) = tap.port.checked_add(1)
                && Self::at(next, server + 1, Duration::ZERO).is_ok()
            {
                return Ok(tap);
            }
        }
        bail!("no two adjacent ports are free")
    }

    /// Passes each answer on after `delay`, as if the server were slower.
    pub fn slowing(server: u16, delay: Duration) -> Result<Self> {
        Self::at(0, server, delay)
    }

    fn at(port: u16, server: u16, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let tap = Self { port: listener.local_addr()?.port(), record: Arc::default() };
        let record = Arc::clone(&tap.record);
        // The thread ends with the process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else {
                    continue;
                };
                _ = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
                let (Ok(client_side), Ok(server_side)) = (client.try_clone(), server.try_clone())
                else {
                    continue;
                };
                let turn = Arc::new(Mutex::new(Turn::default()));
                for (from, to, is_answer) in
                    [(client, server, false), (server_side, client_side, true)]
                {
                    let (record, turn) = (Arc::clone(&record), Arc::clone(&turn));
                    let delay = if is_answer { delay } else { Duration::ZERO };
                    thread::spawn(move || pass(from, to, &record, &turn, is_answer, delay));
                }
            }
        });
        Ok(tap)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How often a client sent something first, or after an answer of the server. For a TPM, this
    /// is the number of commands.
    pub fn requests(&self) -> usize {
        locked(&self.record).requests
    }

    /// How many bytes passed, in both directions.
    pub fn bytes(&self) -> usize {
        locked(&self.record).heard.len()
    }

    /// The sum of the server's times for its answers: from the last byte that the server got to the
    /// last byte that it sent back.
    pub fn waited(&self) -> Duration {
        locked(&self.record).waited
    }

    /// How often `needle` went over the wire. The record mixes pieces of all directions and
    /// connections, so `needle` must be shorter than one TCP segment.
    pub fn heard(&self, needle: &[u8]) -> usize {
        locked(&self.record).heard.windows(needle.len()).filter(|window| *window == needle).count()
    }
}

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    record: &Mutex<Record>,
    turn: &Mutex<Turn>,
    is_answer: bool,
    delay: Duration,
) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        thread::sleep(delay);
        let arrived = Instant::now();
        {
            let mut record = locked(record);
            record.heard.extend_from_slice(&buffer[..length]);
            let mut turn = locked(turn);
            if !is_answer {
                record.requests += usize::from(!turn.is_the_servers);
            } else if let Some(since) = turn.since {
                record.waited += arrived - since;
            }
            // Before the bytes are passed on, because the answer may overtake this thread.
            *turn = Turn { is_the_servers: !is_answer, since: Some(arrived) };
        }
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    _ = to.shutdown(Shutdown::Write);
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
