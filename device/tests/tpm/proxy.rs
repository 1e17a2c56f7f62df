//! A connection to a software TPM that ends at some command, as if the process or the connection
//! had been killed there.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;
use assay_tests::{Swtpm, agent_tcti};

/// Listens until the process ends.
pub(crate) struct Proxy {
    port: u16,
    commands: Arc<AtomicUsize>,
}

impl Proxy {
    /// Lets `limit` commands through, each with its response, and closes each connection that sends
    /// more.
    pub(crate) fn with_limit(swtpm: &Swtpm, limit: usize) -> Result<Self> {
        Self::start(swtpm, move |number, _| if number < limit { Fate::Passed } else { Fate::Lost })
    }

    /// Loses one response; the command is done.
    pub(crate) fn losing_response(swtpm: &Swtpm, lost: usize) -> Result<Self> {
        Self::start(
            swtpm,
            move |number, _| if number == lost { Fate::Unanswered } else { Fate::Passed },
        )
    }

    /// Flips a bit of the byte at `at` in each response to a command with this code, if the
    /// response is long enough.
    pub(crate) fn altering_response(swtpm: &Swtpm, code: [u8; 4], at: usize) -> Result<Self> {
        Self::start(
            swtpm,
            move |_, command| if command[6..10] == code { Fate::Altered(at) } else { Fate::Passed },
        )
    }

    fn start(swtpm: &Swtpm, fate: impl Fn(usize, &[u8]) -> Fate + Send + 'static) -> Result<Self> {
        let (listener, control) = two_ports()?;
        let this = Self { port: listener.local_addr()?.port(), commands: Arc::default() };
        let (behind, commands) = (swtpm.port(), Arc::clone(&this.commands));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                _ = pass_on(client, behind, |command| {
                    fate(commands.fetch_add(1, Ordering::SeqCst), command)
                });
            }
        });
        thread::spawn(move || {
            for client in control.incoming().flatten() {
                _ = pass_control(client, behind + 1);
            }
        });
        Ok(this)
    }

    pub(crate) fn tcti(&self) -> String {
        agent_tcti(self.port)
    }

    /// How many commands were sent, passed on or not.
    pub(crate) fn commands(&self) -> usize {
        self.commands.load(Ordering::SeqCst)
    }
}

/// What becomes of a command.
#[derive(PartialEq, Eq)]
enum Fate {
    Passed,
    Altered(usize),
    /// The TPM does it, and the client does not hear of it.
    Unanswered,
    Lost,
}

/// Passes commands and responses on until the client closes, or a command has another fate.
fn pass_on(mut client: TcpStream, behind: u16, fate: impl Fn(&[u8]) -> Fate) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut tpm = TcpStream::connect(("127.0.0.1", behind))?;
    tpm.set_nodelay(true)?;
    loop {
        let command = read_message(&mut client)?;
        let fate = fate(&command);
        if fate == Fate::Lost {
            return Ok(());
        }
        tpm.write_all(&command)?;
        let mut response = read_message(&mut tpm)?;
        if fate == Fate::Unanswered {
            return Ok(());
        }
        if let Fate::Altered(at) = fate
            && at < response.len()
        {
            response[at] ^= 1;
        }
        client.write_all(&response)?;
    }
}

/// libtss2 looks for swtpm's control channel at the port after that of the TPM.
fn two_ports() -> io::Result<(TcpListener, TcpListener)> {
    loop {
        let first = TcpListener::bind("127.0.0.1:0")?;
        let next = first.local_addr()?.port().checked_add(1);
        if let Some(Ok(second)) = next.map(|port| TcpListener::bind(("127.0.0.1", port))) {
            return Ok((first, second));
        }
    }
}

/// Passes bytes on in both directions until the client closes.
fn pass_control(client: TcpStream, behind: u16) -> io::Result<()> {
    let tpm = TcpStream::connect(("127.0.0.1", behind))?;
    let (mut from_tpm, mut to_client) = (tpm.try_clone()?, client.try_clone()?);
    thread::spawn(move || io::copy(&mut from_tpm, &mut to_client));
    io::copy(&mut &client, &mut &tpm)?;
    tpm.shutdown(Shutdown::Both)
}

/// A whole command or response: both give their size behind a tag of two bytes (TPM 2.0 Part 1,
/// 18).
pub(crate) fn read_message(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 6];
    from.read_exact(&mut message)?;
    let size = u32::from_be_bytes(message[2..6].try_into().unwrap()) as usize;
    message.resize(size, 0);
    from.read_exact(&mut message[6..])?;
    Ok(message)
}
