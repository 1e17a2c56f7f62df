//! What all commands print in the same way.

use std::io::{self, Write};
use std::process::exit;
use std::time::Duration;

use assay_device::Error;
use assay_wire::printable_json;
use serde_json::Value;

pub(super) fn show_step(step: &str, took: Duration) {
    // Written in one piece, because stderr has no buffer.
    let line = format!("{:>8.1} ms  {step}\n", took.as_secs_f64() * 1e3);
    _ = io::stderr().write_all(line.as_bytes());
}

pub(super) fn hexadecimal(handle: u32) -> String {
    format!("{handle:#010x}")
}

/// Prints a JSON value in one line.
pub(super) fn print_json(json: &Value) -> Result<(), Error> {
    print_line(&printable_json(&json.to_string()))
}

/// Prints bytes as they are.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit(128 + 13),
        outcome => outcome.map_err(|error| Error::Internal(format!("stdout: {error}"))),
    }
}

/// Like `println!`. But if the reader closes the pipe, as `head` does, the process ends silently,
/// as if by SIGPIPE.
pub(super) fn print_line(line: &str) -> Result<(), Error> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit(128 + 13),
        outcome => outcome.map_err(|error| Error::Internal(format!("stdout: {error}"))),
    }
}
