//! A way to a software TPM that is cut after some commands, as if the process had been killed there.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result};
use assay_tests::Swtpm;

/// Listens until the process ends.
pub(crate) struct Proxy {
    port: u16,
    commands: Arc<AtomicUsize>,
}

impl Proxy {
    /// Lets `limit` commands through, each with its answer, and drops what comes then.
    pub(crate) fn with_limit(swtpm: &Swtpm, limit: usize) -> Result<Self> {
        let behind: u16 = swtpm.tcti().rsplit_once("port=").context("no port")?.1.parse()?;
        let (commands, control) = two_ports()?;
        let port = commands.local_addr()?.port();
        let this = Self { port, commands: Arc::default() };
        let count = Arc::clone(&this.commands);
        // libtss2 opens a connection for each command.
        serve(commands, behind, move || count.fetch_add(1, Ordering::SeqCst) < limit);
        serve(control, behind + 1, || true);
        Ok(this)
    }

    pub(crate) fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port)
    }

    /// How many commands were sent, passed on or not.
    pub(crate) fn commands(&self) -> usize {
        self.commands.load(Ordering::SeqCst)
    }
}

/// libtss2 looks for swtpm's control channel on the port behind that of the TPM.
fn two_ports() -> io::Result<(TcpListener, TcpListener)> {
    loop {
        let first = TcpListener::bind("127.0.0.1:0")?;
        let next = first.local_addr()?.port().checked_add(1);
        if let Some(Ok(second)) = next.map(|port| TcpListener::bind(("127.0.0.1", port))) {
            return Ok((first, second));
        }
    }
}

fn serve(listener: TcpListener, behind: u16, may_pass: impl Fn() -> bool + Send + 'static) {
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if may_pass() {
                _ = pass_on(client, behind);
            }
        }
    });
}

/// Copies both ways until the client has closed.
fn pass_on(mut client: TcpStream, behind: u16) -> io::Result<()> {
    let mut tpm = TcpStream::connect(("127.0.0.1", behind))?;
    let (mut from_tpm, mut to_client) = (tpm.try_clone()?, client.try_clone()?);
    let answers = thread::spawn(move || copy(&mut from_tpm, &mut to_client));
    copy(&mut client, &mut tpm)?;
    tpm.shutdown(Shutdown::Both)?;
    answers.join().unwrap()
}

fn copy(from: &mut TcpStream, to: &mut TcpStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => to.write_all(&buffer[..read])?,
        }
    }
}
