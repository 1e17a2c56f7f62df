//! `cargo xtask fuzz`: every fuzz target for some seconds, with the installed toolchain.
//!
//! libFuzzer needs code that counts the edges that it passes. Every rustc has LLVM's pass that adds
//! such counters, and only our own crates need them. So this program is cargo's wrapper of rustc
//! for the crates of the workspace, and adds the pass. All other crates stay as built before.
//! Unlike `cargo fuzz`, this is without AddressSanitizer, which needs nightly and is of little use
//! for code without `unsafe`.

use std::env;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{bin_dir, cargo, show, workspace};

#[derive(Args)]
pub(crate) struct Fuzz {
    /// How long each target runs
    #[arg(default_value_t = Self::default().seconds)]
    seconds: u32,
    /// One target alone: wire, ek_certificate, ek_file, public_area, ek_list, token, sequences
    #[arg(long)]
    target: Option<String>,
}

impl Default for Fuzz {
    fn default() -> Self {
        Self { seconds: 10, target: None }
    }
}

impl Fuzz {
    pub(crate) fn run(&self) -> Result<()> {
        let targets: Vec<_> = TARGETS
            .iter()
            .filter(|target| self.target.as_ref().is_none_or(|wanted| wanted == target.name))
            .collect();
        if targets.is_empty() {
            bail!("there is no such target; see cargo xtask fuzz --help");
        }
        build()?;
        targets.into_iter().try_for_each(|target| self.run_target(target))
    }

    fn run_target(&self, target: &Target) -> Result<()> {
        let found = workspace().join("target/fuzz").join(target.name);
        let (corpus, artifacts) = (found.join("corpus"), found.join("artifacts"));
        for directory in [&corpus, &artifacts] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        println!("\n{}: {} s", target.name, self.seconds);
        let seeds = Path::new("tests/fuzz/seeds").join(target.name);
        let binary = bin_dir()?.join(target.name);
        let fuzzed = show(
            Command::new(&binary)
                .arg(&corpus)
                .arg(seeds)
                .args(target.more_seeds)
                .arg(format!("-max_total_time={}", self.seconds))
                .arg(format!("-max_len={}", target.max_len))
                .arg(format!("-artifact_prefix={}/", artifacts.display()))
                .args([
                    "-timeout=10",
                    "-rss_limit_mb=2048",
                    "-verbosity=0",
                    "-print_funcs=0",
                    "-print_final_stats=1",
                ])
                .current_dir(workspace()),
        );
        fuzzed.with_context(|| {
            format!(
                "{} failed; what it failed at is in {}; to see it again: {} FILE",
                target.name,
                artifacts.display(),
                binary.display()
            )
        })
    }
}

struct Target {
    name: &'static str,
    /// In bytes: a little more than the longest input that is accepted.
    max_len: u32,
    /// Besides those in `tests/fuzz/seeds`.
    more_seeds: &'static [&'static str],
}

const TARGETS: [Target; 7] = [
    Target { name: "wire", max_len: 16 * 1024, more_seeds: &[] },
    Target { name: "ek_certificate", max_len: 8 * 1024, more_seeds: GOLDEN },
    Target { name: "ek_file", max_len: 8 * 1024, more_seeds: GOLDEN },
    Target { name: "public_area", max_len: 700, more_seeds: GOLDEN },
    Target { name: "ek_list", max_len: 8 * 1024, more_seeds: &[] },
    Target { name: "token", max_len: 600, more_seeds: &[] },
    Target { name: "sequences", max_len: 160, more_seeds: &[] },
];

const GOLDEN: &[&str] = &["ca-core/tests/golden"];

/// Builds every target, with this program as the wrapper of rustc.
fn build() -> Result<()> {
    // The whole workspace and its tests, so that crates of others keep their features and only our
    // own are built again.
    let mut build = cargo(&["build", "--workspace", "--test", "seeds"]);
    for target in &TARGETS {
        build.args(["--bin", target.name]);
    }
    // By name, because an earlier step of `cargo xtask ci` built this program again at its place.
    let this = bin_dir()?.join(env!("CARGO_BIN_NAME"));
    show(build.env("RUSTC_WORKSPACE_WRAPPER", this).env(AS_RUSTC, "1"))
}

/// Runs rustc, if cargo started this program as its wrapper of rustc.
pub(crate) fn as_rustc() -> Option<Result<()>> {
    env::var_os(AS_RUSTC)?;
    let mut arguments = env::args_os().skip(1);
    let rustc = arguments.next()?;
    let arguments: Vec<OsString> = arguments.collect();
    let mut command = Command::new(rustc);
    // Build scripts do not link libFuzzer.
    let is_script = |it: &OsString| it.to_string_lossy().starts_with("build_script_");
    let is_code = !arguments.iter().any(|it| is_script(it) || it == "-vV");
    command.args(arguments).env_remove(AS_RUSTC);
    if is_code {
        command.args(COVERAGE);
    }
    Some(show(&mut command))
}

/// The flags of `cargo fuzz`: a counter for each edge, the table of edges, and the values that are
/// compared.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];
const AS_RUSTC: &str = "ASSAY_XTASK_AS_RUSTC";
