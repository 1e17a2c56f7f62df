//! `cargo xtask bench scale`: how a device's cost grows with the number of devices that the CA
//! knows.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, AssayServer, run as quietly, use_binaries_in};
use clap::Args;
use serde_json::{Value, json};

use super::fleet::{binaries, median};
use crate::show;

/// How to measure.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask bench scale             in about ten minutes; most of the time fills the largest \
                        database (2 GB in the temporary directory)
  cargo xtask bench scale --quick     whether it works")]
pub(crate) struct Arguments {
    /// Few devices and one run; the figures mean little
    #[arg(long)]
    quick: bool,
    /// Runs with each database, in turn, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with = "quick")]
    runs: usize,
    /// Print the figures as one JSON object on stdout instead of a table
    #[arg(long)]
    json: bool,
}

/// Fills a database of each size. Then provisions devices with each database in turn, several
/// times.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bin = binaries()?;
    use_binaries_in(bin.clone());
    let known: &[u64] = if arguments.quick { &QUICK } else { &KNOWN };
    let (devices, runs) = if arguments.quick { (20, 1) } else { (DEVICES, arguments.runs.max(1)) };
    let mut sizes =
        known.iter().map(|known| Size::prepare(&bin, *known)).collect::<Result<Vec<_>>>()?;
    for run in 1..=runs {
        for size in &mut sizes {
            let cost = size.provision(&bin, devices)?;
            eprintln!("{} known, run {run} of {runs}: {cost:.0} µs a device", size.known);
            size.costs.push(cost);
        }
    }
    let costs: Vec<_> = sizes.iter().map(|size| (size.known, median(&size.costs))).collect();
    for size in sizes {
        size.server.stop()?;
    }
    let (_, first) = costs[0];
    let (_, last) = costs[costs.len() - 1];
    if arguments.json {
        let costs = costs
            .iter()
            .map(|(known, cost)| json!({ "known": known, "server_cpu_us_per_device": cost }));
        println!(
            "{:#}",
            json!({ "costs": costs.collect::<Vec<_>>(), "last_to_first": last / first })
        );
        return Ok(());
    }
    println!("\n{:>10}{:>28}{:>10}", "known", "µs of assay serve a device", "ratio");
    for (known, cost) in &costs {
        println!("{known:>10}{cost:>28.0}{:>10.2}", cost / first);
    }
    let missed = if last / first > TARGET { "  MISSED" } else { "" };
    println!("\nmedians of {runs}; target: at most {TARGET} times the first{missed}");
    Ok(())
}

/// A server that knows some devices: enrolled, registered and certified.
struct Size {
    known: u64,
    dir: AssayDir,
    server: AssayServer,
    costs: Vec<f64>,
}

impl Size {
    fn prepare(bin: &Path, known: u64) -> Result<Self> {
        let dir = AssayDir::init()?;
        show(Command::new(bin.join("examples/populate")).arg(dir.path()).arg(known.to_string()))?;
        let vendor = String::from_utf8(
            quietly(Command::new(bin.join("assay-fleet")).arg("--vendor"))?.stdout,
        )?;
        quietly(dir.assay(&["trust", "add", "--admit"])?.args(vendor.lines()))?;
        // Otherwise the kernel would write these files to the disk during the measurement.
        quietly(Command::new("sync").arg(dir.path()))?;
        Ok(Self { known, server: AssayServer::start(&dir)?, dir, costs: Vec::new() })
    }

    /// Provisions devices that the CA has not seen. Returns the server's processor time for each,
    /// in microseconds.
    fn provision(&self, bin: &Path, devices: usize) -> Result<f64> {
        let pid = self.server.pid().context("the server runs")?;
        let before = processor_time(pid)?;
        let mut fleet = Command::new(bin.join("assay-fleet"));
        fleet.args([
            "--json",
            "--devices",
            &devices.to_string(),
            "--broker",
            &self.server.bootstrap,
        ]);
        let output =
            fleet.arg("--ca-root").arg(self.dir.root_pem()).stderr(Stdio::inherit()).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{fleet:?}: no report"))?;
        ensure!(
            report["devices"]["done"] == devices,
            "{fleet:?}: devices failed: {:#}",
            report["failures"]
        );
        Ok((processor_time(pid)? - before) * 1e6 / devices as f64)
    }
}

/// The processor time that a process has used until now, in seconds.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, a name in parentheses, may hold spaces; utime and stime are the 14th and
    // 15th (proc_pid_stat(5)).
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks = fields.skip(11).take(2).map(str::parse::<f64>).sum::<Result<f64, _>>()?;
    Ok(ticks / TICKS_PER_SECOND)
}

const KNOWN: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
const QUICK: [u64; 2] = [10, 100];
/// About three seconds of provisioning.
const DEVICES: usize = 8_000;
/// The highest ratio of the cost with the largest database to the cost with the smallest.
const TARGET: f64 = 1.2;
/// USER_HZ, which is 100 on every platform that Linux still runs on.
const TICKS_PER_SECOND: f64 = 100.0;
