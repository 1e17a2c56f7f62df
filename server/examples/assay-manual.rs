//! Writes the manual pages and shell completions of `assay` for its package. They come from the
//! same definition as the command line.

#[expect(dead_code, reason = "only the definition is needed, not what it starts")]
#[path = "../src/cli/mod.rs"]
mod cli;

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

fn main() -> Result<()> {
    let directory: PathBuf = env::args_os().nth(1).context("usage: assay-manual DIR")?.into();
    clap_mangen::generate_to(cli::Cli::command(), &directory)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut cli::Cli::command(), "assay", &directory)?;
    }
    Ok(())
}
