//! `cargo xtask bench fleet`: many devices before one `assay serve`, all on this machine.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{bin_dir, cargo, show};

/// How to measure.
#[derive(Args)]
#[command(after_help = "Examples:
  cargo xtask bench fleet                 everything, in about a quarter of an hour, and more the \
                        first time, when keys are made
  cargo xtask bench fleet --flow renew    renewals on SQLite and on PostgreSQL, in two minutes
  cargo xtask bench fleet --quick         whether it works")]
pub(crate) struct Arguments {
    /// What devices do: they are provisioned, or they renew
    #[arg(long, value_enum, default_value_t = Course::Ticket)]
    pub(super) flow: Course,
    /// One run of each load with few devices; its speed means little
    #[arg(long)]
    pub(super) quick: bool,
    /// Runs of each load, of which the median counts; the overload is run once
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with = "quick")]
    runs: usize,
    /// Where to write all reports, as JSON [default: fleet-bench.json or renewal-bench.json in
    /// cargo's target directory]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Course {
    Ticket,
    Renew,
}

/// Measures, prints a table, and writes the reports.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let bench = Bench::of(arguments)?;
    let scale = if arguments.quick { QUICK } else { FULL };

    let p256 =
        bench.load("P-256 EK, reused connections", bench.runs, &["--ek=p-256"], scale.p256)?;
    let rsa =
        bench.load("RSA-2048 EK, reused connections", bench.runs, &["--ek=rsa-2048"], scale.rsa)?;
    let own = ["--ek=p-256", "--connection=per-device"];
    let own = bench.load("P-256 EK, a TLS connection each", bench.runs, &own, scale.own)?;

    let capacity = p256.median("/devices_per_second")?;
    let half = format!("--rate={:.1}", capacity / 2.0);
    let devices = (capacity / 2.0 * scale.half_seconds) as usize;
    let half = bench.load(
        "P-256 EK, half of that rate",
        bench.runs,
        &["--ek=p-256", &half, "--ramp=1"],
        devices,
    )?;
    let thrice = format!("--rate={:.1}", capacity * 3.0);
    let devices = (capacity * 3.0 * scale.overload_seconds) as usize;
    let over = bench.load(
        "P-256 EK, three times that rate",
        1,
        &["--ek=p-256", &thrice, OVERLOAD_CONNECTIONS],
        devices,
    )?;

    let held = bench.load(
        "P-256 EK, all connected afterwards",
        1,
        &["--ek=p-256", "--hold"],
        scale.held,
    )?;
    let connected = held.median("/held/server_memory_kib/now")? / 1024.0;

    let goodput = over.median("/while_arriving/devices_per_second")?;
    let loads = [p256, rsa, own, half, over, held];
    let memory = loads[..5]
        .iter()
        .map(|load| load.median("/server_memory_kib/peak"))
        .collect::<Result<Vec<_>>>()?;
    let memory = memory.into_iter().fold(0.0, f64::max) / 1024.0;
    let [p256, rsa, own, half, over, _] = &loads;
    let results = [
        at_least(
            1000.0,
            "P-256 EK, reused connections, devices/s",
            p256.median("/devices_per_second")?,
        ),
        at_least(
            1000.0,
            "RSA-2048 EK, reused connections, devices/s",
            rsa.median("/devices_per_second")?,
        ),
        at_least(
            300.0,
            "P-256 EK, a TLS connection each, devices/s",
            own.median("/devices_per_second")?,
        ),
        at_most(
            20.0,
            "p99 of a device at half of the first rate, ms",
            half.median("/latency_ms/device/p99")?,
        ),
        at_least(0.8, "goodput at three times that rate, share of it", goodput / capacity),
        at_most(0.0, "devices that failed then or afterwards", over.median("/devices/failed")?),
        at_most(64.0, "resident memory of `assay serve` at most, MiB", memory),
        at_most(256.0, "the same with all devices of the last load connected", connected),
    ];

    print_outcomes(&results);
    println!(
        "{:<50}{:>10}",
        "`busy` replies at three times that rate",
        over.median("/problems/busy").unwrap_or(0.0)
    );
    println!("\n{:<34}{:>10}{:>10}{:>10}", "processor time, µs a device", "CA", "broker", "fleet");
    for load in &loads {
        let [ca, broker, fleet] = ["ca", "broker", "fleet"]
            .map(|part| load.median(&format!("/cpu_us_per_device/{part}")));
        println!("{:<34}{:>10.0}{:>10.0}{:>10.0}", load.name, ca?, broker?, fleet?);
    }
    write(arguments, "fleet-bench.json", &loads, &results)
}

/// How many devices, and for how long.
struct Scale {
    p256: usize,
    rsa: usize,
    own: usize,
    half_seconds: f64,
    overload_seconds: f64,
    held: usize,
}

/// Ten seconds of the slowest load, a minute of overload, and ten thousand connections.
const FULL: Scale = Scale {
    p256: 15_000,
    rsa: 5_000,
    own: 5_000,
    half_seconds: 20.0,
    overload_seconds: 60.0,
    held: 10_000,
};
const QUICK: Scale =
    Scale { p256: 60, rsa: 20, own: 40, half_seconds: 0.5, overload_seconds: 0.5, held: 50 };
/// With 16 devices at once on each connection, this is more than the CA's queue holds.
const OVERLOAD_CONNECTIONS: &str = "--connections=74";

pub(super) struct Bench {
    bin: PathBuf,
    pub(super) runs: usize,
    /// Variables in the environment of `assay-fleet` and its CA.
    environment: Vec<(String, OsString)>,
}

/// A load and the reports of its runs.
pub(super) struct Load {
    pub(super) name: &'static str,
    reports: Vec<Value>,
}

impl Bench {
    pub(super) fn of(arguments: &Arguments) -> Result<Self> {
        let runs = if arguments.quick { 1 } else { arguments.runs.max(1) };
        Self::new(runs, Vec::new())
    }

    pub(super) fn new(runs: usize, environment: Vec<(String, OsString)>) -> Result<Self> {
        Ok(Self { bin: binaries()?, runs, environment })
    }

    /// Runs two loads in turn, so that both see the same machine.
    pub(super) fn in_turn(
        &self,
        loads: [(&'static str, &[&str]); 2],
        devices: usize,
    ) -> Result<[Load; 2]> {
        let mut done = loads.map(|(name, _)| Load { name, reports: Vec::new() });
        for _ in 0..self.runs {
            for (load, (name, arguments)) in done.iter_mut().zip(loads) {
                load.reports.extend(self.load(name, 1, arguments, devices)?.reports);
            }
        }
        Ok(done)
    }

    pub(super) fn load(
        &self,
        name: &'static str,
        runs: usize,
        arguments: &[&str],
        devices: usize,
    ) -> Result<Load> {
        let mut reports = Vec::new();
        for run in 1..=runs {
            print!("{name}, run {run} of {runs}: ");
            let report = self.fleet(arguments, devices.max(1))?;
            println!("{} devices/s", report["devices_per_second"]);
            reports.push(report);
        }
        Ok(Load { name, reports })
    }

    /// Runs `assay-fleet` once. The user sees its progress and its errors.
    fn fleet(&self, arguments: &[&str], devices: usize) -> Result<Value> {
        let mut fleet = Command::new(self.bin.join("assay-fleet"));
        fleet
            .args(arguments)
            .args(["--json", "--devices", &devices.to_string()])
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(Stdio::inherit());
        let output = fleet
            .env("ASSAY_BIN_DIR", &self.bin)
            .output()
            .with_context(|| format!("cannot run {fleet:?}"))?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{fleet:?}: no report"))?;
        if !output.status.success() {
            bail!("{fleet:?}: devices failed: {:#}", report["failures"]);
        }
        Ok(report)
    }
}

impl Load {
    /// The median of a number in the reports, by its JSON pointer (RFC 6901).
    pub(super) fn median(&self, pointer: &str) -> Result<f64> {
        let numbers =
            self.reports.iter().map(|report| report.pointer(pointer).and_then(Value::as_f64));
        let numbers = numbers
            .collect::<Option<Vec<_>>>()
            .with_context(|| format!("a report has no {pointer}"))?;
        Ok(median(&numbers))
    }
}

/// The middle of some numbers.
pub(super) fn median(numbers: &[f64]) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    if numbers.len() % 2 == 1 {
        numbers[middle]
    } else {
        (numbers[middle - 1] + numbers[middle]) / 2.0
    }
}

/// A line of the table.
pub(super) struct Outcome {
    what: &'static str,
    reached: f64,
    target: String,
    met: bool,
}

pub(super) fn print_outcomes(results: &[Outcome]) {
    println!("\n{:<50}{:>10}{:>12}", "median", "reached", "target");
    for Outcome { what, reached, target, met } in results {
        println!("{what:<50}{reached:>10.2}{target:>12}{}", if *met { "" } else { "  MISSED" });
    }
}

pub(super) fn at_least(target: f64, what: &'static str, reached: f64) -> Outcome {
    Outcome { what, reached, target: format!("≥ {target}"), met: reached >= target }
}

pub(super) fn at_most(target: f64, what: &'static str, reached: f64) -> Outcome {
    Outcome { what, reached, target: format!("≤ {target}"), met: reached <= target }
}

/// The directory of `assay`, `assay-fleet` and `examples/populate`: the environment's ASSAY_BIN_DIR
/// if it is set. Otherwise cargo builds them now, with optimisation.
pub(super) fn binaries() -> Result<PathBuf> {
    if let Some(dir) = env::var_os("ASSAY_BIN_DIR") {
        return Ok(dir.into());
    }
    show(&mut cargo(&[
        "build",
        "--release",
        "--package",
        "assay-server",
        "--package",
        "assay-fleet",
        "--bins",
        "--example",
        "populate",
    ]))?;
    Ok(bin_dir()?.parent().context("cargo's directory of a profile has a parent")?.join("release"))
}

/// Writes all reports to the file that was asked for, or to `name` in cargo's target directory.
pub(super) fn write(
    arguments: &Arguments,
    name: &str,
    loads: &[Load],
    results: &[Outcome],
) -> Result<()> {
    let file = match &arguments.out {
        Some(file) => file.clone(),
        None => bin_dir()?.join("..").join(name),
    };
    let results = results.iter().map(|Outcome { what, reached, target, met }| {
        json!({ "what": what, "reached": reached, "target": target, "met": met })
    });
    let loads =
        loads.iter().map(|Load { name, reports }| json!({ "name": name, "reports": reports }));
    let all = json!({
        "processors": std::thread::available_parallelism()?.get(),
        "results": results.collect::<Vec<_>>(),
        "loads": loads.collect::<Vec<_>>(),
    });
    fs::write(&file, format!("{all:#}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    println!("\nAll reports: {}", file.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_number_of_runs_lies_between_the_middle_two() {
        let load = |numbers: &[u64]| Load {
            name: "",
            reports: numbers.iter().map(|n| json!({ "a": { "b": n } })).collect(),
        };
        assert_eq!(load(&[5, 1, 9]).median("/a/b").unwrap(), 5.0);
        assert_eq!(load(&[5, 1, 9, 7]).median("/a/b").unwrap(), 6.0);
        assert!(load(&[5]).median("/a/c").is_err());
    }
}
