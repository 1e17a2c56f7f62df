//! Text in columns, and JSON, on standard output.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::exit;

use assay_wire::{MAX_SHOWN, printable_json};
use serde_json::Value;

/// Prints rows under a heading, each column as wide as its widest cell.
pub(crate) fn print<const N: usize>(
    heading: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) {
    let rows = rows.into_iter().map(|row| row.map(|cell| assay_wire::printable(&cell, MAX_SHOWN)));
    let rows: Vec<_> = std::iter::once(heading.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().map(|row: &[String; N]| row[column].chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in &rows {
        let cells: Vec<_> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        print_line(cells.join("  ").trim_end());
    }
}

/// Digits of an id or a fingerprint in hexadecimal that are shown where space is scarce: no two are
/// alike.
pub(crate) const SHORT_ID: usize = assay_server::operations::enrol::SHORT_ID;

/// Text that a stranger may have written, as it may be shown.
pub(crate) fn printable(text: &str) -> String {
    assay_wire::printable(text, usize::MAX)
}

/// One JSON value a line.
pub(crate) fn print_json(value: &Value) {
    print_line(printable_json(&value.to_string()));
}

/// Like `println!`. But whoever closes the pipe, as `head` does, has seen enough: the process ends
/// without a word, as if by SIGPIPE.
pub(crate) fn print_line(text: impl Display) {
    written(writeln!(io::stdout(), "{text}"));
}

/// What became of something written to standard output.
pub(crate) fn written(outcome: io::Result<()>) {
    match outcome {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit(SIGPIPE),
        Err(error) => {
            eprintln!("assay: cannot write to standard output: {error}");
            exit(1)
        }
    }
}

/// The exit status of a process that the signal ended, as a shell tells it.
const SIGPIPE: i32 = 128 + 13;

/// `disabled` or `enabled`.
pub(crate) fn status(disabled: bool) -> &'static str {
    if disabled { "disabled" } else { "enabled" }
}
