//! `assay`: a CA for TPMs over MQTT, for operators.

mod cli;

use std::process::ExitCode;

use assay_pkcs11::{MODULE_COMMAND, run_module};
use clap::Parser;

fn main() -> ExitCode {
    // Not a command of anybody's: this program starts itself so.
    if std::env::args_os().nth(1).is_some_and(|first| first == MODULE_COMMAND) {
        return run_module();
    }
    let command = cli::Cli::parse();
    match command.run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("assay: {error:#}");
            ExitCode::FAILURE
        }
    }
}
