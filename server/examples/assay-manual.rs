//! Writes the manual pages and shell completions of `assay` for its package. They come from the
//! same definition as the command line.

#[expect(dead_code, reason = "only the definition is needed, not what it starts")]
#[path = "../src/cli/mod.rs"]
mod cli;

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

fn main() -> Result<()> {
    let directory: PathBuf = env::args_os().nth(1).context("usage: assay-manual DIR")?.into();
    clap_mangen::generate_to(cli::Cli::command(), &directory)?;
    // That name is of the agent's page, in the other package. `assay device` has only commands, and
    // each has its page.
    fs::remove_file(directory.join("assay-device.1"))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut cli::Cli::command(), "assay", &directory)?;
    }
    Ok(())
}
