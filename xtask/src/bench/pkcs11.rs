//! `cargo xtask bench pkcs11`: devices before a CA whose issuing key is in SoftHSM, and before one
//! whose key is in a file, in turn.

use anyhow::Result;
use assay_tests::SoftHsm;
use clap::Args;

use super::fleet::{Bench, at_least, print_outcomes};

/// How to measure.
#[derive(Args)]
pub(crate) struct Arguments {
    /// One run of each with few devices; its speed means little
    #[arg(long)]
    quick: bool,
    /// Runs of each, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with = "quick")]
    runs: usize,
}

/// Measures, and prints a table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (runs, devices) = if arguments.quick { (1, QUICK) } else { (arguments.runs, DEVICES) };
    let softhsm = SoftHsm::new(&["bench"])?;
    let environment = softhsm.environment();
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let bench = Bench::new(runs.max(1), environment.into())?;
    let key = format!("--issuing-key={}", softhsm.uri("bench", None));
    let loads: [(_, &[&str]); 2] = [("key in a file", &[]), ("key in SoftHSM", &[&key])];
    let [file, token] = bench.in_turn(loads, devices)?;
    let of = |load: &super::fleet::Load| load.median("/devices_per_second");
    print_outcomes(&[at_least(
        0.8,
        "devices/s, key in SoftHSM ÷ in a file",
        of(&token)? / of(&file)?,
    )]);
    println!("\n{:<24}{:>12}{:>12}{:>12}", "", "devices/s", "p50, ms", "p99, ms");
    for load in [&file, &token] {
        let [p50, p99] = ["p50", "p99"].map(|it| load.median(&format!("/latency_ms/device/{it}")));
        println!("{:<24}{:>12.0}{:>12.1}{:>12.1}", load.name, of(load)?, p50?, p99?);
    }
    Ok(())
}

/// Some seconds.
const DEVICES: usize = 15_000;
const QUICK: usize = 60;
