//! `assay-device`: the TPM's side of Assay, for a device.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assay-device: {}", cli::advice::with_advice(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
