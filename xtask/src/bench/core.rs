//! `cargo xtask bench core`: what one device costs the CA, as a multiple of the cryptography that
//! no CA could leave out.

use std::collections::BTreeMap;
use std::fs;
use std::io::stderr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{cargo, show};

#[derive(clap::Args)]
#[command(after_help = "The whole is what the CA does for one device in a flow, from each \
                        message's bytes to its reply's, without MQTT, store and TPM. Its \
                        primitives are what no CA can leave out, by the same library: the \
                        signatures of the EK certificate's path that only this device can show, \
                        the CSR's signature, OAEP or ECDH with a fresh key for each secret, and \
                        the certificate's signature.

Examples:
  cargo xtask bench core                  # times, in six minutes
  cargo xtask bench core --quick          # the same in two, for direction
  cargo xtask bench core --filter ticket  # one flow only
  cargo xtask bench core --hostile        # what strangers can make a CA compute, in a minute
  cargo xtask bench core --instructions   # instructions, not changed by other load; needs valgrind
  cargo xtask bench core --json > core.json")]
pub(crate) struct Arguments {
    /// Measure less often
    #[arg(long)]
    quick: bool,
    /// Count instructions and allocations under valgrind instead of time
    #[arg(long, conflicts_with = "quick")]
    instructions: bool,
    /// Time hostile certificates instead, beside honest ones; fails if they cost more than twice as
    /// much
    #[arg(long, conflicts_with = "instructions")]
    hostile: bool,
    /// Print JSON instead of tables: times in nanoseconds
    #[arg(long)]
    json: bool,
    /// Only cases whose name contains this, e.g. "ticket, EK RSA-2048 by root, IK P-256"
    #[arg(long, default_value = "")]
    filter: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.instructions {
        let counts = count(&arguments.filter)?;
        if arguments.json {
            println!("{:#}", Value::from_iter(counts.iter().map(Counts::to_json)));
        } else {
            print_counts(&counts);
        }
    } else {
        if arguments.hostile {
            return hostile(arguments);
        }
        let times = measure(arguments)?;
        if arguments.json {
            println!("{:#}", Value::from_iter(times.iter().map(Times::to_json)));
        } else {
            print_times(&times);
        }
    }
    Ok(())
}

/// Times hostile requests beside honest ones with the same number of certificates.
fn hostile(arguments: &Arguments) -> Result<()> {
    let rounds = if arguments.quick { QUICK_PAIRS / 10 } else { QUICK_PAIRS };
    eprintln!("Timing {rounds} requests of each kind, and honest ones in turn with them ...");
    let lines = output_of(Command::new(executable()?).args(["hostile", &rounds.to_string()]))?;
    let (mut rows, mut worst) = (Vec::new(), 0.0_f64);
    for line in lines.lines() {
        let [keys, certificates, tried, hostile, honest] = line.split('\t').collect::<Vec<_>>()[..]
        else {
            bail!("unexpected: {line:?}")
        };
        let (hostile, honest): (f64, f64) = (hostile.parse()?, honest.parse()?);
        worst = worst.max(hostile / honest);
        rows.push((keys, certificates, tried, hostile, honest));
    }
    if arguments.json {
        let rows = rows.iter().map(|(keys, certificates, tried, hostile, honest)| {
            json!({ "keys": keys, "certificates": certificates, "tried": tried, "hostile": hostile, "honest": honest })
        });
        println!("{:#}", Value::from_iter(rows));
    } else {
        println!(
            "{:<8}  {:>5}  {:<34}  {:>10}  {:>10}  ratio",
            "keys", "certs", "hostile", "hostile µs", "honest µs"
        );
        for (keys, certificates, tried, hostile, honest) in rows {
            let (in_us, honest_us) = (hostile / 1000.0, honest / 1000.0);
            println!(
                "{keys:<8}  {certificates:>5}  {tried:<34}  {in_us:>10.1}  {honest_us:>10.1}  \
                 {:.2}",
                hostile / honest
            );
        }
    }
    eprintln!(
        "worst: {worst:.2} times an honest request with as many certificates; target: at most \
         {HOSTILE_TARGET}"
    );
    if worst > HOSTILE_TARGET {
        bail!("a stranger can make the CA compute more than that");
    }
    Ok(())
}

/// What a device costs in time, in nanoseconds; medians.
struct Times {
    case: String,
    whole: f64,
    primitives: f64,
    /// Quartiles of `whole` divided by `primitives`. The benchmark measures both in turn for each
    /// device.
    ratio: [f64; 3],
    parts: Parts,
}

/// The key is `primitive, ` or `step, ` and the part's name.
type Parts = BTreeMap<String, f64>;

impl Times {
    fn to_json(&self) -> Value {
        let Self { case, whole, primitives, ratio: [low, middle, high], parts } = self;
        json!({
            "case": case,
            "ratio": middle,
            "ratio quartiles": [low, high],
            "whole": whole,
            "primitives": primitives,
            "parts": parts,
        })
    }
}

/// Runs the benchmark twice: for the ratios, and for criterion's time of each part.
fn measure(arguments: &Arguments) -> Result<Vec<Times>> {
    let executable = executable()?;
    let pairs = if arguments.quick { QUICK_PAIRS } else { PAIRS };
    let mut all = Vec::new();
    eprintln!("Timing {pairs} devices of each kind, and the primitives in turn with them ...");
    for line in output_of(Command::new(&executable).args([
        "ratios",
        &pairs.to_string(),
        &arguments.filter,
    ]))?
    .lines()
    {
        let [case, numbers @ ..] = &line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("unexpected: {line:?}")
        };
        let numbers =
            numbers.iter().map(|number| Ok(number.parse()?)).collect::<Result<Vec<f64>>>()?;
        let [whole, primitives, low, middle, high] = numbers[..] else {
            bail!("unexpected: {line:?}")
        };
        let ratio = [low, middle, high];
        all.push(Times { case: (*case).to_owned(), whole, primitives, ratio, parts: Parts::new() });
    }
    if all.is_empty() {
        bail!("no case's name contains {:?}", arguments.filter);
    }
    let mut parts = criterion(&executable, arguments)?;
    for times in &mut all {
        times.parts = parts.remove(&times.case).unwrap_or_default();
    }
    Ok(all)
}

/// Runs criterion's benchmarks and reads what it wrote.
fn criterion(executable: &Path, arguments: &Arguments) -> Result<BTreeMap<String, Parts>> {
    let results = TempDir::new()?;
    let mut command = Command::new(executable);
    command
        .args(["--bench", "--quiet"])
        .arg(regex_of(&arguments.filter))
        .env("CRITERION_HOME", results.path());
    if arguments.quick {
        command.args([
            "--sample-size",
            "20",
            "--warm-up-time",
            "0.05",
            "--measurement-time",
            "0.1",
        ]);
    }
    // Criterion's progress is not a result, so it goes to stderr.
    show(command.stdout(stderr().as_fd().try_clone_to_owned()?))?;
    let mut parts = BTreeMap::<_, Parts>::new();
    for file in files_named("benchmark.json", results.path())? {
        let about = read_json(&file)?;
        let text = |key: &str| {
            about[key].as_str().with_context(|| format!("{} lacks {key}", file.display()))
        };
        let estimates = read_json(&file.with_file_name("estimates.json"))?;
        let time = estimates["median"]["point_estimate"]
            .as_f64()
            .context("estimates.json lacks the median")?;
        parts
            .entry(text("group_id")?.to_owned())
            .or_default()
            .insert(text("function_id")?.to_owned(), time);
    }
    Ok(parts)
}

fn print_times(all: &[Times]) {
    for times in all {
        println!("{}", times.case);
        let mut parts: Vec<_> = times.parts.iter().collect();
        parts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        for (part, time) in parts {
            println!("  {part:<32}  {:>8.1} µs", time / 1000.0);
        }
        println!();
    }
    println!(
        "{:<60}  {:>8}  {:>10}  {:>5}  quartiles",
        "time per device (µs)", "whole", "primitives", "ratio"
    );
    for Times { case, whole, primitives, ratio: [low, middle, high], .. } in all {
        let (whole, primitives) = (whole / 1000.0, primitives / 1000.0);
        println!(
            "{case:<60}  {whole:>8.1}  {primitives:>10.1}  {middle:>5.2}  {low:.2} to {high:.2}"
        );
    }
}

/// What a device costs in instructions, and in calls of the C library's allocator.
struct Counts {
    case: String,
    whole: Cost,
    primitives: Cost,
}

#[derive(Clone, Copy)]
struct Cost {
    instructions: f64,
    allocations: f64,
}

impl Counts {
    fn ratio(&self) -> f64 {
        self.whole.instructions / self.primitives.instructions
    }

    fn to_json(&self) -> Value {
        let cost = |cost: Cost| json!({ "instructions": cost.instructions, "allocations": cost.allocations });
        json!({
            "case": self.case,
            "ratio": self.ratio(),
            "whole": cost(self.whole),
            "primitives": cost(self.primitives),
        })
    }
}

/// Runs the benchmark under callgrind, which writes one file for each line that the benchmark
/// prints.
fn count(filter: &str) -> Result<Vec<Counts>> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        bail!("counting instructions needs valgrind: apt-get install valgrind");
    }
    let results = TempDir::new()?;
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--tool=callgrind"])
        // Both options name the same function. They spell it differently, because valgrind 3.19
        // forgets the first option for a pattern when it reads a second option for the same
        // pattern.
        .args(["--zero-before=*::measured", "--dump-after=pipeline::measured"])
        .arg(format!("--callgrind-out-file={}/counts", results.path().display()))
        .arg(executable()?)
        .args(["counts", filter]);
    eprintln!("Counting instructions under valgrind, for some minutes ...");
    let lines = output_of(&mut command)?;
    let mut costs = Vec::new();
    for (line, number) in lines.lines().zip(1..) {
        let [case, _, devices] = line.split('\t').collect::<Vec<_>>()[..] else {
            bail!("unexpected: {line:?}")
        };
        let profile = fs::read_to_string(results.path().join(format!("counts.{number}")))?;
        costs.push((case, cost(&profile, devices.parse()?)?));
    }
    let pairs = costs.chunks_exact(2).map(|pair| {
        let [(case, whole), (_, primitives)] = pair else { unreachable!("chunks are of two") };
        Counts { case: (*case).to_owned(), whole: *whole, primitives: *primitives }
    });
    Ok(pairs.collect())
}

/// Reads a profile in callgrind's format: `totals:`, and each `calls=` after a `cfn=` that names
/// the callee. The profile spells out a name once, together with its number. After that, it gives
/// only the number.
fn cost(profile: &str, devices: f64) -> Result<Cost> {
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    let instructions: f64 = totals.context("a profile without totals")?.trim().parse()?;
    let (mut names, mut callee, mut allocations) = (BTreeMap::new(), "", 0.0);
    for line in profile.lines() {
        if let Some(function) = line.strip_prefix("cfn=").or_else(|| line.strip_prefix("fn=")) {
            let (number, name) = function.split_once(' ').unwrap_or((function, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            callee = names.get(number).copied().unwrap_or_default();
        } else if let Some(calls) = line.strip_prefix("calls=")
            && ALLOCATORS.contains(&callee)
        {
            allocations += calls.split(' ').next().unwrap_or_default().parse::<f64>()?;
        }
    }
    Ok(Cost { instructions: instructions / devices, allocations: allocations / devices })
}

fn print_counts(counts: &[Counts]) {
    let heads = ["instructions", "primitives", "allocations", "primitives"];
    println!(
        "{:<60}  {:>12}  {:>10}  ratio  {:>11}  {:>10}",
        "per device", heads[0], heads[1], heads[2], heads[3]
    );
    for count in counts {
        let Counts { case, whole, primitives } = count;
        println!(
            "{case:<60}  {:>12.0}  {:>10.0}  {:>5.2}  {:>11.1}  {:>10.1}",
            whole.instructions,
            primitives.instructions,
            count.ratio(),
            whole.allocations,
            primitives.allocations,
        );
    }
    eprintln!(
        "Hashing counts for more than it takes: valgrind's processor has no instructions for \
         SHA-256."
    );
}

/// Builds the benchmark and asks cargo where it is.
fn executable() -> Result<PathBuf> {
    let arguments = [
        "bench",
        "--package",
        "assay-ca-core",
        "--bench",
        "pipeline",
        "--no-run",
        "--message-format=json",
    ];
    let messages = output_of(&mut cargo(&arguments))?;
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let path = messages.find_map(|message| {
        let is_ours = message["target"]["name"] == "pipeline";
        message["executable"].as_str().filter(|_| is_ours).map(PathBuf::from)
    });
    path.context("cargo names no executable")
}

/// What a command writes to standard output.
fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Escapes a text, because benchmarks take a regular expression.
fn regex_of(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_ascii_alphanumeric() { vec![c] } else { vec!['\\', c] })
        .collect()
}

fn files_named(name: &str, directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_named(name, &path)?);
        } else if path.ends_with(Path::new("new").join(name)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&fs::read_to_string(path)?)
        .with_context(|| format!("cannot read {}", path.display()))
}

/// How many devices of each kind are timed in turn with the primitives.
const PAIRS: usize = 5000;
/// Most time that a hostile request may take, as a multiple of an honest request's time.
const HOSTILE_TARGET: f64 = 2.0;
/// `PAIRS` for `--quick`.
const QUICK_PAIRS: usize = 500;
/// The C functions in which allocations of Rust and AWS-LC end.
const ALLOCATORS: [&str; 4] = ["malloc", "calloc", "realloc", "posix_memalign"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted_by_who_is_called() {
        let profile = "fn=(1) run\ncfn=(2) malloc\ncalls=3 0\n1 2\ncfn=(3) free\ncalls=3 0\n1 \
                       2\nfn=(4) other\ncfn=(2)\ncalls=5 +4\n1 2\ntotals: 100\n";
        let cost = cost(profile, 2.0).unwrap();
        assert_eq!((cost.instructions, cost.allocations), (50.0, 4.0));
    }

    #[test]
    fn filters_are_taken_literally() {
        assert_eq!(regex_of("EK P-256"), "EK\\ P\\-256");
    }
}
