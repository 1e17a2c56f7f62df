//! Local TCP ports that no two users of this harness hold at once, even in different processes.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};

/// A block of `SIZE` consecutive ports.
///
/// The last port of a block is the token. It stays bound while the block is held, so the kernel
/// keeps others away, and frees the block when the holder dies. The ports before it are for the
/// servers.
pub(crate) struct Ports {
    first: u16,
    _token: TcpListener,
}

impl Ports {
    pub(crate) fn claim() -> Result<Self> {
        let start = RandomState::new().hash_one(()) as usize;
        for attempt in 0..BLOCKS {
            let first =
                LOWEST + ((start.wrapping_add(attempt) % BLOCKS) * usize::from(SIZE)) as u16;
            let Ok(token) = bind(first + SIZE - 1) else { continue };
            // No other user of the harness has the block now, but some other server may use a port
            // in it.
            if (first..first + SIZE - 1).all(|port| bind(port).is_ok()) {
                return Ok(Self { first, _token: token });
            }
        }
        bail!("no block of {SIZE} free ports from {LOWEST} up")
    }

    /// The first port. swtpm takes it for commands, and the next one for control.
    pub(crate) fn first(&self) -> u16 {
        self.first
    }
}

fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

/// Below Linux's range for outgoing connections (from 32768), where any port may be taken at any
/// moment.
const LOWEST: u16 = 20_000;
const BLOCKS: usize = 4_000;
/// swtpm wants two adjacent ports; the third is the token.
const SIZE: u16 = 3;
