//! `cargo xtask pair`: device and CA against each other, in many sequences.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::{cargo, show};

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
