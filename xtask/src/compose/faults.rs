//! The faults, and what must hold after each.

use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::run;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::record::Record;
use super::stack::{Moment, Stack};
use super::{Outcome, Scene};
use crate::bin_dir;
use crate::docker::output;

/// Which devices were struck, and when.
type Struck = Vec<(&'static str, Moment)>;

/// No fault: every device is provisioned in each flow, and heard.
pub(super) fn each_flow(scene: &mut Scene<'_>) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut flows = ["ticket", "sealed", "shared-key"];
    for _ in 0..flows.len() {
        let before = scene.stack.record()?;
        scene.stack.replace(&scene.stack.profile.devices())?;
        let began = Moment::now();
        scene.stack.start_with(flows)?;
        let took = scene.stack.wait_for_devices(&began)?;
        let kept = holds(scene.stack, &before)?;
        for (device, flow) in scene.stack.profile.devices().into_iter().zip(flows) {
            let status = scene.stack.status(device)?;
            ensure!(status["flow"] == flow, "{device} is to use {flow}: {status}");
        }
        scene.say(&format!("{flows:?}: all heard after {}", seconds(took)));
        outcome.count(None, kept, took);
        flows.rotate_left(1);
    }
    Ok(outcome)
}

/// SIGKILL for the process that is both broker and CA, at any moment of a provisioning.
pub(super) fn kill_ca(scene: &mut Scene<'_>) -> Result<Outcome> {
    kill(scene, |_| "ca")
}

/// SIGKILL for one of two workers; the other goes on.
pub(super) fn kill_worker(scene: &mut Scene<'_>) -> Result<Outcome> {
    kill(scene, |scene| scene.any_worker())
}

fn kill(scene: &mut Scene<'_>, victim: impl Fn(&mut Scene<'_>) -> &'static str) -> Result<Outcome> {
    while_provisioning(scene, KILLS, |scene, window| {
        let victim = victim(scene);
        thread::sleep(window.mul_f64(scene.rng.f64()));
        scene.stack.kill(&[victim])?;
        let struck = scene.all_struck();
        thread::sleep(LONGEST_OUTAGE.mul_f64(scene.rng.f64()));
        scene.stack.start(&[victim])?;
        Ok(struck)
    })
}

/// SIGKILL for agent and TPM of each device, at a moment of its own.
pub(super) fn kill_device(scene: &mut Scene<'_>) -> Result<Outcome> {
    while_provisioning(scene, KILLS, |scene, window| {
        let devices = scene.stack.profile.devices();
        let mut moments = devices.map(|device| (window.mul_f64(scene.rng.f64()), device));
        moments.sort();
        let (began, mut struck) = (Instant::now(), Vec::new());
        for (moment, device) in moments {
            thread::sleep(moment.saturating_sub(began.elapsed()));
            // A container that is still starting cannot be killed. It is killed as soon as it runs.
            while scene.stack.kill(&[device]).is_err() {
                ensure!(began.elapsed() < Duration::from_secs(30), "{device} cannot be killed");
            }
            struck.push((device, Moment::now()));
        }
        scene.stack.start(&devices)?;
        Ok(struck)
    })
}

/// The network between devices and broker is cut, at any moment of a provisioning.
pub(super) fn cut_device(scene: &mut Scene<'_>) -> Result<Outcome> {
    cut(scene, |scene| scene.stack.profile.devices().into())
}

/// The network between a worker and the broker is cut; the other worker goes on.
pub(super) fn cut_worker(scene: &mut Scene<'_>) -> Result<Outcome> {
    cut(scene, |scene| vec![scene.any_worker()])
}

fn cut(
    scene: &mut Scene<'_>,
    victims: impl Fn(&mut Scene<'_>) -> Vec<&'static str>,
) -> Result<Outcome> {
    let mut lengths = CUTS.into_iter();
    while_provisioning(scene, CUTS.len(), |scene, window| {
        let victims = victims(scene);
        thread::sleep(window.mul_f64(scene.rng.f64()));
        victims.iter().try_for_each(|victim| scene.stack.cut(victim))?;
        let struck = scene.all_struck();
        thread::sleep(lengths.next().unwrap_or_default());
        victims.iter().try_for_each(|victim| scene.stack.join(victim))?;
        Ok(struck)
    })
}

/// Repeats this `times` times: start new devices, call `strike`, wait until the devices are heard.
/// `strike` gets the time that an undisturbed provisioning takes. It must strike within that time,
/// and end the fault.
fn while_provisioning(
    scene: &mut Scene<'_>,
    times: usize,
    mut strike: impl FnMut(&mut Scene<'_>, Duration) -> Result<Struck>,
) -> Result<Outcome> {
    let (stack, devices) = (scene.stack, scene.stack.profile.devices());
    let window = undisturbed(stack)?;
    scene.say(&format!("undisturbed, the devices are provisioned after {}", seconds(window)));
    let mut outcome = Outcome::default();
    for time in 1..=times {
        let before = stack.record()?;
        stack.replace(&devices)?;
        let began = Moment::now();
        let starting = stack.starting(&devices)?;
        let struck = strike(scene, window)?;
        let over = Moment::now();
        finish(starting)?;
        let took = stack.wait_for_devices(&over)?;
        let mut under_way = 0;
        for (device, then) in &struck {
            under_way += usize::from(stack.was_provisioning(device, &began, then)?);
        }
        let kept = holds(stack, &before)?;
        scene.say(&format!(
            "{time}/{times}: {under_way} of {} under way, all heard again after {}",
            struck.len(),
            seconds(took)
        ));
        outcome.count(Some(under_way), kept, took);
    }
    Ok(outcome)
}

/// How long it takes new devices to be provisioned.
fn undisturbed(stack: &Stack) -> Result<Duration> {
    let devices = stack.profile.devices();
    stack.replace(&devices)?;
    let (began, since) = (Instant::now(), Moment::now());
    finish(stack.starting(&devices)?)?;
    for device in devices {
        while stack.was_provisioning(device, &since, &Moment::now())? {
            ensure!(began.elapsed() < Duration::from_secs(60), "{device} is not provisioned");
        }
    }
    Ok(began.elapsed())
}

fn finish(starting: Vec<Child>) -> Result<()> {
    for mut child in starting {
        ensure!(child.wait()?.success(), "a container could not be started");
    }
    Ok(())
}

/// Checks what must hold after every fault. Returns how many entries of `before` are still on
/// record.
fn holds(stack: &Stack, before: &Record) -> Result<usize> {
    let record = stack.record()?;
    let kept = record.keeps(before)?;
    record.each_has_one()?;
    for device in stack.profile.devices() {
        let id = stack.device_id(device).context("it is provisioned")?;
        ensure!(record.knows(&id), "{device} calls itself {id}, which is not on record");
    }
    Ok(kept)
}

/// The devices' clocks are a year ahead: certificates seem expired, and tokens come from the
/// future.
pub(super) fn clock_ahead(scene: &mut Scene<'_>) -> Result<Outcome> {
    wrong_clock(scene, "+365d")
}

/// The devices' clocks are a year behind: the CA's certificates seem to come from the future.
pub(super) fn clock_behind(scene: &mut Scene<'_>) -> Result<Outcome> {
    wrong_clock(scene, "-365d")
}

/// Sets the clocks wrong by `offset`: first before devices are provisioned, then afterwards. No
/// device is heard meanwhile, and each says that its clock is the cause. Once the clocks are right,
/// all devices are heard. In the second case, they still have the certificates that they had.
fn wrong_clock(scene: &mut Scene<'_>, offset: &str) -> Result<Outcome> {
    let (stack, devices) = (scene.stack, scene.stack.profile.devices());
    let mut outcome = Outcome::default();

    let before = stack.record()?;
    let set_all = format!("for state in /var/lib/state-*; do echo {offset} > $state/clock; done");
    stack.replace_and(&devices, &set_all)?;
    let began = Moment::now();
    finish(stack.starting(&devices)?)?;
    let took = until_right(scene, &began)?;
    outcome.count(Some(devices.len()), holds(stack, &before)?, took);

    let before = stack.record()?;
    let began = Moment::now();
    for device in devices {
        stack.exec(device, &["sh", "-c", &format!("echo {offset} > {CLOCK}")])?;
    }
    let took = until_right(scene, &began)?;
    let kept = holds(stack, &before)?;
    let now = stack.record()?;
    for device in devices {
        let id = stack.device_id(device).context("it is provisioned")?;
        ensure!(
            now.active(&id) == before.active(&id),
            "{device} has another certificate than before"
        );
    }
    outcome.count(Some(0), kept, took);
    Ok(outcome)
}

/// Waits until each device blames its clock, sets the clocks right, and waits until all are heard.
fn until_right(scene: &Scene<'_>, began: &Moment) -> Result<Duration> {
    let (stack, devices) = (scene.stack, scene.stack.profile.devices());
    for device in devices {
        stack.wait_for_log(device, began, CLOCK_IS_BLAMED)?;
    }
    let wrong = Moment::now();
    thread::sleep(WRONG);
    let heard = stack.log("watch", &wrong)?;
    for device in devices {
        let id = stack.device_id(device);
        ensure!(
            id.is_none_or(|id| !heard.contains(&id)),
            "{device} is heard although its clock is wrong"
        );
    }
    for device in devices {
        stack.exec(device, &["rm", CLOCK])?;
    }
    let took = stack.wait_for_devices(&Moment::now())?;
    scene.say(&format!(
        "each device blames its clock; once it is right, all heard after {}",
        seconds(took)
    ));
    Ok(took)
}

/// The CA's disk is full, also while the CA starts. A device with a certificate is heard. A device
/// that asks for one is told to try again, and gets it when there is room.
pub(super) fn full_disk(scene: &mut Scene<'_>) -> Result<Outcome> {
    let stack = scene.stack;
    let [first, old, third] = stack.profile.devices();
    let new = [first, third];
    let before = stack.record()?;
    Fleet::have_trusted(stack)?;
    let (full, began) = (Moment::now(), Instant::now());
    // dd does not write part of a block, so ever smaller blocks fill what is left.
    let fill = "for size in 64k 512 1; do dd if=/dev/zero bs=$size \
                of=/var/lib/assay/ballast-$size 2> /dev/null || true; done";
    stack.exec("keeper", &["sh", "-c", fill])?;
    // The database's log still has room inside its file. Many devices soon use it up.
    let fleet = Fleet::arrive(stack, "ca")?;
    stack.wait_for_log("ca", &full, "decisions could not be written")?;
    // A batch did not fit. Single decisions fit for a while longer.
    thread::sleep(WRONG);
    stack.replace(&new)?;
    stack.start(&new)?;
    for device in new {
        // A shared key may still have found room. Then its first use is what cannot be recorded.
        stack.wait_for_any(device, &full, &["internal", "refuses the connection for now"])?;
    }
    let id = stack.device_id(old).context("it is provisioned")?;
    stack.wait_for_log("watch", &Moment::now(), &id)?;
    stack.kill(&["ca"])?;
    stack.start(&["ca"])?;
    thread::sleep(WRONG);
    stack.exec("keeper", &["sh", "-c", "rm /var/lib/assay/ballast-*"])?;
    let was_full = began.elapsed();
    let took = stack.wait_for_devices(&Moment::now())?;
    let report = fleet.finish()?;
    let kept = holds(stack, &before)?;
    scene.say(&format!(
        "full for {}: then all heard after {}, and {} others got what they came for",
        seconds(was_full),
        seconds(took),
        report["devices"]["done"]
    ));
    let mut outcome = Outcome::default();
    outcome.count(Some(new.len()), kept, took);
    Ok(outcome)
}

/// Both workers are restarted in turn, again and again, while devices keep coming.
pub(super) fn rolling_restart(scene: &mut Scene<'_>) -> Result<Outcome> {
    let stack = scene.stack;
    let before = stack.record()?;
    let mut fleet = Fleet::start(stack, "mosquitto")?;
    let (mut restarts, mut longest) = (0, Duration::ZERO);
    while fleet.is_running()? {
        for worker in WORKERS {
            let (since, began) = (Moment::now(), Instant::now());
            stack.restart(worker)?;
            stack.wait_for_log(worker, &since, "ready")?;
            longest = longest.max(began.elapsed());
            restarts += 1;
        }
    }
    ensure!(restarts > WORKERS.len(), "the load ended before each worker was restarted");
    let report = fleet.finish()?;
    let (done, lost) = (&report["devices"]["done"], &report["lost"]);
    scene.say(&format!(
        "{restarts} restarts while {done} devices were provisioned; repeated: {lost}"
    ));
    Ok(Outcome { times: restarts, struck: None, kept: holds(stack, &before)?, longest })
}

/// Simulated devices outside the stack that keep coming.
struct Fleet {
    process: Child,
    _ca_root: NamedTempFile,
}

impl Fleet {
    /// `broker` is the service that publishes the broker's ports.
    fn start(stack: &Stack, broker: &str) -> Result<Self> {
        Self::have_trusted(stack)?;
        Self::arrive(stack, broker)
    }

    fn have_trusted(stack: &Stack) -> Result<()> {
        let program = bin_dir()?.join("assay-fleet");
        let vendor = String::from_utf8(run(Command::new(&program).arg("--vendor"))?.stdout)?;
        for file in vendor.lines() {
            let trust = ["assay", "trust", "add", "--admit", "/dev/stdin"];
            stack.exec_with(stack.profile.ca(), &trust, File::open(file)?.into())?;
        }
        Ok(())
    }

    fn arrive(stack: &Stack, broker: &str) -> Result<Self> {
        let program = bin_dir()?.join("assay-fleet");
        let mut ca_root = NamedTempFile::new()?;
        ca_root.write_all(
            stack.exec(stack.profile.ca(), &["cat", "/var/lib/assay-public/root.pem"])?.as_bytes(),
        )?;
        let broker = format!("mqtts://{}", output(["port", &stack.container(broker)?, "8883"])?);
        let mut command = Command::new(program);
        command.args(["--broker", &broker, "--ca-root"]).arg(ca_root.path());
        command.args(["--devices", FLEET, "--rate", FLEET_RATE, "--json"]);
        let process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        Ok(Self { process, _ca_root: ca_root })
    }

    fn is_running(&mut self) -> Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// The report of the fleet, once all devices are done; an error if one of them failed.
    fn finish(mut self) -> Result<Value> {
        let stdout = self.process.stdout.take().context("its stdout is a pipe")?;
        let report: Value = serde_json::from_reader(stdout).context("the report of assay-fleet")?;
        ensure!(self.process.wait()?.success(), "devices failed: {}", report["failures"]);
        Ok(report)
    }
}

/// A fleet whose CA is gone would try for ever, and keep others from starting one.
impl Drop for Fleet {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

impl Outcome {
    fn count(&mut self, struck: Option<usize>, kept: usize, took: Duration) {
        self.times += 1;
        self.kept = self.kept.max(kept);
        if let Some(struck) = struck {
            *self.struck.get_or_insert(0) += struck;
        }
        self.longest = self.longest.max(took);
    }
}

impl Scene<'_> {
    fn all_struck(&self) -> Struck {
        self.stack.profile.devices().map(|device| (device, Moment::now())).into()
    }

    fn any_worker(&mut self) -> &'static str {
        WORKERS[self.rng.usize(..WORKERS.len())]
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

const WORKERS: [&str; 2] = ["worker-1", "worker-2"];
/// How often each of these faults kills.
const KILLS: usize = 10;
/// Below and above the 20 s after which a device gives up waiting for an answer.
const CUTS: [Duration; 3] =
    [Duration::from_secs(2), Duration::from_secs(8), Duration::from_secs(25)];
/// Half a minute of new devices, as fast as a machine can simulate them beside the rest.
const FLEET: &str = "600";
const FLEET_RATE: &str = "20";
/// Long enough that devices are refused more than once.
const LONGEST_OUTAGE: Duration = Duration::from_secs(3);
/// Twice the time between two attempts of a device.
const WRONG: Duration = Duration::from_secs(10);
/// The file that tests/compose/clock.yml names.
const CLOCK: &str = "/var/lib/assay/clock";
/// A part of every message in which `assay-device` blames its clock, for certificates, logins and
/// its own time.
const CLOCK_IS_BLAMED: &str = "this device's clock";
