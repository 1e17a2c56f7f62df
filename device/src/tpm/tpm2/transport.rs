//! Sends whole commands to the TPM, and receives whole responses.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;

use zeroize::Zeroizing;

use super::parts::CommandError;
use crate::tpm::tcti::Wire;

/// An open connection to a TPM.
pub(super) struct Transport {
    wire: Wire,
    stream: Box<dyn Stream>,
    has_answered: bool,
    /// Whether a command was sent twice. If the TPM did the first one, its response was lost.
    pub(super) has_resent: bool,
}

impl Transport {
    pub(super) fn open(wire: &Wire) -> io::Result<Self> {
        let stream: Box<dyn Stream> = match wire {
            Wire::Device(path) => {
                let device = OpenOptions::new().read(true).write(true).open(path)?;
                // If the path is a file, a command overwrites its beginning.
                if !device.metadata()?.file_type().is_char_device() {
                    return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a device"));
                }
                Box::new(device)
            }
            Wire::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                // A command is one write, so waiting for more gains nothing.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Wire::Unix(path) => Box::new(UnixStream::connect(path)?),
        };
        Ok(Self { wire: wire.clone(), stream, has_answered: false, has_resent: false })
    }

    /// Sends one command and waits for the response. The size in the header of the returned
    /// response is right.
    pub(super) fn exchange(&mut self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let response = match self.send_and_receive(command) {
            // With `--server …,disconnect`, swtpm closes the connection after each response, and
            // has not read this command. Another simulator might have read it.
            Err(CommandError::Io(error))
                if self.has_answered && !self.is_device() && is_closed(&error) =>
            {
                *self = Self { has_resent: true, ..Self::open(&self.wire)? };
                self.send_and_receive(command)
            }
            outcome => outcome,
        }?;
        self.has_answered = true;
        Ok(response)
    }

    fn is_device(&self) -> bool {
        matches!(self.wire, Wire::Device(_))
    }

    fn send_and_receive(&mut self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        // The kernel takes a command in one write and gives its response in one read.
        self.stream.write_all(command)?;
        let mut response = Zeroizing::new(vec![0; MAX_SIZE]);
        let mut arrived = 0;
        loop {
            let wanted = size_in_header(&response[..arrived]);
            match wanted {
                Some(size) if !(HEADER_SIZE..=MAX_SIZE).contains(&size) => {
                    return Err(CommandError::BadResponse(format!("a response of {size} bytes")));
                }
                Some(size) if arrived > size => {
                    return Err(CommandError::BadResponse(format!(
                        "{arrived} bytes for a response of {size}"
                    )));
                }
                Some(size) if arrived == size => {
                    response.truncate(size);
                    return Ok(response);
                }
                _ => {}
            }
            match self.stream.read(&mut response[arrived..]) {
                Ok(0) if arrived == 0 => {
                    return Err(io::Error::new(
                        ErrorKind::UnexpectedEof,
                        "closed without a response",
                    )
                    .into());
                }
                Ok(0) => {
                    return Err(CommandError::BadResponse(format!(
                        "a response cut off after {arrived} bytes"
                    )));
                }
                Ok(read) => arrived += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if arrived == 0 => return Err(error.into()),
                Err(error) => {
                    return Err(CommandError::BadResponse(format!(
                        "a response cut off after {arrived} bytes: {error}"
                    )));
                }
            }
        }
    }
}

trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

/// `responseSize`, once all of it has arrived (TPM 2.0 Part 1, 18).
fn size_in_header(arrived: &[u8]) -> Option<usize> {
    let size = arrived.get(2..6)?;
    // Unwrap safety: four bytes.
    Some(u32::from_be_bytes(size.try_into().unwrap()) as usize)
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

/// A tag, a size and a code (TPM 2.0 Part 1, 18).
pub(super) const HEADER_SIZE: usize = 10;
/// The largest command and response. The Linux kernel passes on this much (TPM_BUFSIZE), and no TPM
/// has a larger TPM_PT_MAX_COMMAND_SIZE or TPM_PT_MAX_RESPONSE_SIZE.
pub(super) const MAX_SIZE: usize = 4096;
