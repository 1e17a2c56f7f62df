//! `cargo xtask bench pkcs11`: devices before a CA whose issuing key is in SoftHSM, and before one
//! whose key is in a file, in turn; and before one whose token takes 20 ms a signature.

use anyhow::Result;
use assay_tests::SoftHsm;
use clap::Args;

use super::fleet::{Bench, at_least, at_most, print_outcomes};

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
    let (runs, devices, slow_devices) = match arguments.quick {
        true => (1, QUICK, QUICK),
        false => (arguments.runs, DEVICES, SLOW_DEVICES),
    };
    let softhsm = SoftHsm::new(&["bench"])?;
    let environment = softhsm.environment();
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let bench = Bench::new(runs.max(1), environment.into())?;
    let key = format!("--issuing-key={}", softhsm.uri("bench", None));
    let loads: [(_, &[&str]); 2] = [("key in a file", &[]), ("key in SoftHSM", &[&key])];
    let [file, token] = bench.in_turn(loads, devices)?;
    let slow = softhsm.shim(&format!("EACH_US={}", SIGNATURE_MS * 1000.0))?;
    let slow = format!("--issuing-key={}", SoftHsm::through(&softhsm.uri("bench", None), &slow));
    // More at once than are signed and wait.
    let crowd = ["--concurrency=128", &slow];
    let crowd = bench.load("20 ms, 128 at once", bench.runs, &crowd, slow_devices)?;
    let calm: [(_, &[&str]); 2] =
        [("file, 40 a second", &["--rate=40"]), ("20 ms, 40 a second", &["--rate=40", &slow])];
    let [calm_file, calm_slow] = bench.in_turn(calm, slow_devices)?;

    let of = |load: &super::fleet::Load| load.median("/devices_per_second");
    let challenge = |load: &super::fleet::Load| load.median("/latency_ms/challenge/p50");
    print_outcomes(&[
        at_least(0.8, "devices/s, key in SoftHSM ÷ in a file", of(&token)? / of(&file)?),
        at_least(0.9, "devices/s, 20 ms ÷ what the token makes", of(&crowd)? * SIGNATURE_MS / 1e3),
        at_most(
            1.25,
            "p50 of a challenge, 20 ms ÷ in a file",
            challenge(&calm_slow)? / challenge(&calm_file)?,
        ),
    ]);
    let heads = ["devices/s", "p50, ms", "p99, ms", "challenge p50"];
    println!("\n{:<24}{}", "", heads.map(|head| format!("{head:>15}")).concat());
    for load in [&file, &token, &crowd, &calm_file, &calm_slow] {
        let [p50, p99] = ["p50", "p99"].map(|it| load.median(&format!("/latency_ms/device/{it}")));
        let cells = [of(load)?, p50?, p99?, challenge(load)?].map(|cell| format!("{cell:>15.1}"));
        println!("{:<24}{}", load.name, cells.concat());
    }
    Ok(())
}

/// Some seconds.
const DEVICES: usize = 15_000;
const QUICK: usize = 60;
/// Half a minute each.
const SLOW_DEVICES: usize = 1_500;
/// How long the slow token takes.
const SIGNATURE_MS: f64 = 20.0;
