//! `cargo xtask compose-test`: the stacks of docker-compose.yml, and what they must survive.

mod faults;
mod record;
mod stack;

use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::tool;
use clap::Args;

use self::stack::{Moment, Profile, Stack};
use crate::images::{Built, Images};
use crate::screen::Screen;
use crate::{cargo, show};

#[derive(Args, Default)]
#[command(after_help = "Examples:
  cargo xtask compose-test
  cargo xtask compose-test --only kill-ca --seed 7    one fault, at the moments of an earlier run")]
pub(crate) struct Arguments {
    /// Only the fault of this name, as the table shows it; may be repeated
    #[arg(long, value_name = "FAULT")]
    only: Vec<String>,
    /// Where the random moments come from [default: the time; it is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

/// Builds what is needed, and runs all stacks side by side; an error unless everything held.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let known = LANES
        .iter()
        .flat_map(|lane| lane.iter())
        .flat_map(|trial| trial.faults)
        .map(|fault| fault.name);
    for name in &arguments.only {
        let names = known.clone().collect::<Vec<_>>().join(", ");
        ensure!(
            known.clone().any(|known| known == name),
            "no fault is named {name}; there are: {names}"
        );
    }
    let built = Images::quick().run()?;
    show(&mut cargo(&["build", "--package", "assay-fleet"]))?;
    let began = Instant::now();
    let seed = arguments.seed.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
    });
    let screen = Screen::new();
    screen.chapter(&format!(
        "Faults; the same moments again: cargo xtask compose-test --seed {seed}"
    ));

    let test = Test { built, seed, only: arguments.only.clone(), screen };
    let lanes: Vec<_> = thread::scope(|scope| {
        let lanes: Vec<_> = LANES.iter().map(|lane| scope.spawn(|| test.lane(lane))).collect();
        lanes.into_iter().map(|lane| lane.join().expect("no panic in a lane")).collect()
    });
    let (rows, held): (Vec<_>, Vec<_>) = lanes.into_iter().unzip();
    test.screen.chapter(&format!("What it survived, in {} s", began.elapsed().as_secs()));
    test.screen.table(
        [
            "FAULT",
            "TIMES",
            "DEVICES STRUCK UNDER WAY",
            "LOST OF WHAT WAS ON RECORD",
            "LONGEST RECOVERY",
        ],
        &rows.concat(),
    );
    match held.iter().filter(|held| !**held).count() {
        0 => Ok(()),
        failures => bail!("{failures} of the stacks did not hold; what happened is above"),
    }
}

/// Faults that are tried on one stack.
struct Trial {
    name: &'static str,
    profile: Profile,
    /// A file below tests/compose that changes the profile.
    changes: Option<&'static str>,
    faults: &'static [Fault],
}

/// Something that happens to a stack.
struct Fault {
    name: &'static str,
    strike: fn(&mut Scene<'_>) -> Result<Outcome>,
}

/// What a fault acts on.
struct Scene<'a> {
    stack: &'a Stack,
    rng: fastrand::Rng,
    name: &'static str,
    screen: &'a Screen,
}

impl Scene<'_> {
    fn say(&self, text: &str) {
        self.screen.say(&format!("{:16} {text}", self.name));
    }
}

/// The result of a fault.
#[derive(Default)]
struct Outcome {
    times: usize,
    /// Devices that were not provisioned yet when the fault struck, summed over all times; `None`
    /// if the fault is not about those.
    struck: Option<usize>,
    /// Devices, certificates and enrolments that were on record before the fault and after it.
    kept: usize,
    /// From the end of the fault until each device was heard.
    longest: Duration,
}

struct Test {
    built: Built,
    seed: u64,
    only: Vec<String>,
    screen: Screen,
}

impl Test {
    /// Tries one stack after the other, and stops at the first that does not hold. Returns a row
    /// for each fault, and whether all held.
    fn lane(&self, trials: &[Trial]) -> (Vec<[String; 5]>, bool) {
        let mut rows = Vec::new();
        for trial in trials {
            let wanted = |fault: &&Fault| {
                self.only.is_empty() || self.only.iter().any(|name| name == fault.name)
            };
            let faults: Vec<_> = trial.faults.iter().filter(wanted).collect();
            if faults.is_empty() {
                continue;
            }
            let tried = Stack::with(&self.built, trial, |stack| {
                settle(stack)?;
                faults.iter().try_for_each(|fault| {
                    rows.push(self.strike(stack, fault).context(fault.name)?);
                    Ok(())
                })
            });
            if let Err(error) = tried {
                println!("\nFAILED: {error:#}");
                return (rows, false);
            }
        }
        (rows, true)
    }

    fn strike(&self, stack: &Stack, fault: &Fault) -> Result<[String; 5]> {
        let name = fault.name;
        // Each fault has its own seed, so that a fault that runs alone strikes at the same moments.
        let seed = name
            .bytes()
            .fold(self.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
        let rng = fastrand::Rng::with_seed(seed);
        let outcome = (fault.strike)(&mut Scene { stack, rng, name, screen: &self.screen })?;
        let Outcome { times, struck, kept, longest } = outcome;
        let struck = struck.map_or_else(|| "-".into(), |struck| struck.to_string());
        // Any loss is an error, so nothing is lost here.
        let lost = format!("0 of {kept}");
        Ok([
            name.into(),
            times.to_string(),
            struck,
            lost,
            format!("{:.1} s", longest.as_secs_f64()),
        ])
    }
}

/// Waits until a new stack is ready. Then enrols an EK, so that the record has an entry that no
/// device made.
fn settle(stack: &Stack) -> Result<()> {
    stack.wait_for_devices(&Moment::long_ago())?;
    stack.wait_for_health()?;
    // An EK that nobody has.
    let mut key = tool("openssl")?;
    key.args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]);
    let mut public = tool("openssl")?
        .args(["pkey", "-pubout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let key = assay_tests::run(&mut key)?.stdout;
    public.stdin.take().context("standard input is a pipe")?.write_all(&key)?;
    let pem = public.stdout.take().context("standard output is a pipe")?;
    let enroll = ["assay", "enroll", "add", "/dev/stdin", "--device-id", "pump-17"];
    stack.exec_with(stack.profile.ca(), &enroll, pem.into())?;
    public.wait()?;
    stack.record()?.each_has_one()
}

/// Lanes run side by side, because each waits most of the time. There is one lane for each broker,
/// and one for faults that need a stack of their own.
const LANES: [&[Trial]; 3] = [
    &[Trial {
        name: "default",
        profile: Profile::Default,
        changes: None,
        faults: &[
            Fault { name: "each-flow", strike: faults::each_flow },
            Fault { name: "kill-ca", strike: faults::kill_ca },
            Fault { name: "kill-device", strike: faults::kill_device },
            Fault { name: "cut-device", strike: faults::cut_device },
        ],
    }],
    &[Trial {
        name: "external",
        profile: Profile::External,
        changes: None,
        faults: &[
            Fault { name: "kill-worker", strike: faults::kill_worker },
            Fault { name: "cut-worker", strike: faults::cut_worker },
            Fault { name: "rolling-restart", strike: faults::rolling_restart },
        ],
    }],
    &[
        Trial {
            name: "clock",
            profile: Profile::Default,
            changes: Some("clock.yml"),
            faults: &[
                Fault { name: "clock-ahead", strike: faults::clock_ahead },
                Fault { name: "clock-behind", strike: faults::clock_behind },
            ],
        },
        Trial {
            name: "small-disk",
            profile: Profile::Default,
            changes: Some("small-disk.yml"),
            faults: &[Fault { name: "full-disk", strike: faults::full_disk }],
        },
    ],
];
