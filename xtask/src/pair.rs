//! `cargo xtask pair`: device and CA against each other, in many sequences.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::{cargo, show, workspace};

#[derive(Args)]
pub(crate) struct Pair {
    /// How many sequences
    #[arg(default_value_t = Self::default().sequences)]
    sequences: u32,
    /// Plays the sequences of this seed again [default: a new seed each time]
    #[arg(long)]
    seed: Option<u64>,
}

impl Default for Pair {
    fn default() -> Self {
        Self { sequences: 10_000, seed: None }
    }
}

impl Pair {
    /// The sequences of the commit that is checked out: others for each commit, so that they find
    /// something, and the same ones each time, so that a change passes or does not.
    pub(crate) fn of_commit() -> Self {
        let mut git = Command::new("git");
        let commit = git.args(["rev-parse", "HEAD"]).current_dir(workspace()).output();
        let commit = commit.ok().and_then(|output| String::from_utf8(output.stdout).ok());
        let seed = commit.and_then(|commit| u64::from_str_radix(commit.get(..8)?, 16).ok());
        Self { seed, ..Self::default() }
    }

    pub(crate) fn run(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let (seed, sequences) = (self.seed.unwrap_or(now), self.sequences);
        // The whole workspace, so that shared crates keep their features and are not built again.
        show(
            cargo(&["test", "--workspace", "--test", "sequences", "--", "--nocapture"])
                .env("ASSAY_PAIR_SEED", seed.to_string())
                .env("ASSAY_PAIR_SEQUENCES", sequences.to_string()),
        )
    }
}
