//! A wire tap: everything that goes over a TCP port, in both directions, byte for byte.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use anyhow::Result;

/// Stands in front of a server and keeps what passes.
pub(crate) struct Tap {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
}

impl Tap {
    pub(crate) fn before(server: u16) -> Result<Self> {
        Self::at(0, server)
    }

    /// Two at adjacent ports, as libtss2 looks for swtpm's; returns the first.
    pub(crate) fn before_swtpm(server: u16) -> Result<Self> {
        for _ in 0..100 {
            let first = Self::before(server)?;
            if Self::at(first.port + 1, server + 1).is_ok() {
                return Ok(first);
            }
        }
        anyhow::bail!("no two adjacent ports are free")
    }

    fn at(port: u16, server: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let tap = Self { port: listener.local_addr()?.port(), heard: Arc::default(), connections: Arc::default() };
        let (heard, connections) = (Arc::clone(&tap.heard), Arc::clone(&tap.connections));
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                connections.fetch_add(1, Ordering::Relaxed);
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)) else { continue };
                let (Ok(client_side), Ok(server_side)) = (client.try_clone(), server.try_clone()) else { continue };
                for (from, to) in [(client, server), (server_side, client_side)] {
                    let heard = Arc::clone(&heard);
                    thread::spawn(move || pass(from, to, &heard));
                }
            }
        });
        Ok(tap)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many bytes passed, in both directions.
    pub(crate) fn bytes(&self) -> usize {
        self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).len()
    }

    /// How often `needle` went over the wire. Each direction of a connection is written in pieces, so look for what is shorter than
    /// one TCP segment.
    pub(crate) fn heard(&self, needle: &[u8]) -> usize {
        let heard = self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        heard.windows(needle.len()).filter(|window| *window == needle).count()
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, heard: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    _ = to.shutdown(Shutdown::Write);
}
