//! Devices with software TPMs and the real agent.

use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{Agent, Device, EkKind, Swtpm, json, trusted_vendor};
use serde_json::Value;

use super::world::World;

/// Who there is: a name, how it lives, the arguments of its first `provision`, and the months in
/// which it sleeps.
type Part = (&'static str, Way, &'static [&'static str], RangeInclusive<u32>);

/// How a device lives.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `assay-device run`, all year.
    Resident,
    /// `assay-device provision` and `publish`, from a timer.
    Timer,
}

#[expect(clippy::reversed_empty_ranges, reason = "most devices never sleep")]
const NEVER: RangeInclusive<u32> = 1..=0;

const CAST: [Part; 11] = [
    ("pump", Way::Resident, &[], NEVER),
    ("valve", Way::Resident, &["--flow", "sealed"], NEVER),
    ("gauge", Way::Resident, &["--ik", "rsa-2048"], NEVER),
    // This one sleeps while the issuing CA is replaced.
    ("meter", Way::Resident, &[], 3..=3),
    ("fan", Way::Timer, &[], NEVER),
    ("lamp", Way::Timer, &["--flow", "sealed", "--ik", "p-384"], NEVER),
    ("lock", Way::Timer, &["--ik", "rsa-2048"], NEVER),
    ("door", Way::Timer, &[], NEVER),
    ("bell", Way::Timer, &[], 7..=7),
    // This one sleeps for longer than its certificate is good.
    ("siren", Way::Timer, &[], 6..=7),
    ("relay", Way::Timer, &["--flow", "shared-key"], NEVER),
];

/// Who rekeys, and when.
const REKEY: (&str, u32) = ("door", 9);

pub(super) struct RealDevice {
    pub(super) name: &'static str,
    way: Way,
    asleep: RangeInclusive<u32>,
    tpm: Swtpm,
    device: Device,
    agent: Option<Agent>,
    /// The number of its certificate; a device with a shared key has none.
    pub(super) serial: Option<String>,
    pub(super) id: String,
    /// How often its agent was online before trouble.
    times_online: usize,
}

impl RealDevice {
    /// The whole cast, provisioned.
    pub(super) fn all(world: &World) -> Result<Vec<Self>> {
        let tpms = trusted_vendor()?.devices(EkKind::P256, CAST.len())?;
        let mut all = Vec::new();
        for (tpm, (name, way, arguments, asleep)) in tpms.into_iter().zip(CAST) {
            let device = Device::new(&tpm)?;
            let agent = None;
            let mut new = Self {
                name,
                way,
                asleep,
                tpm,
                device,
                agent,
                serial: None,
                id: String::new(),
                times_online: 0,
            };
            let provisioned = new.provision(world, arguments)?;
            new.id = provisioned["device_id"].as_str().context("a device id")?.to_owned();
            new.serial = provisioned["serial"].as_str().map(str::to_owned);
            all.push(new);
        }
        Ok(all)
    }

    pub(super) fn has_certificate(&self) -> bool {
        self.serial.is_some()
    }

    pub(super) fn is_asleep(&self, month: u32) -> bool {
        self.asleep.contains(&month)
    }

    /// What the device does in a month: by itself, with what it has.
    pub(super) fn live(&mut self, world: &World) -> Result<()> {
        let month = world.month;
        if self.is_asleep(month) {
            return Ok(());
        }
        let lived = self.wake().and_then(|()| match self.way {
            Way::Resident => self.reside(world),
            Way::Timer => self.come(world),
        });
        lived.with_context(|| format!("month {month}, device {}", self.name))
    }

    /// Loses power if it sleeps in this month, which has not begun.
    pub(super) fn sleep(&mut self, month: u32) -> Result<()> {
        if self.is_asleep(month) {
            self.agent = None;
            self.tpm.kill()?;
        }
        Ok(())
    }

    fn wake(&mut self) -> Result<()> {
        if self.tpm.is_off() { self.tpm.start() } else { Ok(()) }
    }

    /// Waits until the agent has renewed its certificate, and is online with the new one.
    fn reside(&mut self, world: &World) -> Result<()> {
        // The delays of an agent grow as long as no connection lasts for a minute, and here none
        // does. So the device is restarted now and then.
        if world.month.is_multiple_of(2) {
            self.agent = None;
        }
        if self.agent.is_none() {
            let (bootstrap, operational) =
                (&world.lab.server.bootstrap, &world.lab.server.operational);
            let run = self.device.run_at(bootstrap, operational, &world.root)?;
            self.agent = Some(Agent::start(world.clock.give_to(run))?);
        }
        let old = self.serial.clone();
        self.is_online(world, |agent, serial, said| {
            let is_new = old.as_deref() != Some(serial);
            is_new && agent.count(&format!("{said}, by certificate {serial}")) > 0
        })
    }

    /// Waits until what the agent has said, and the serial number of what it has, are as they
    /// should be. Keeps that serial number.
    fn is_online(
        &mut self,
        world: &World,
        as_it_should: impl Fn(&Agent, &str, &str) -> bool,
    ) -> Result<()> {
        let agent = self.agent.as_mut().context("it is no resident agent")?;
        let said = format!("online as {} at {}", self.id, world.lab.server.operational);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = world.clock.give_to(self.device.status()?).output()?;
            let status: Value = serde_json::from_slice(&output.stdout)?;
            if let Some(serial) = status["serial"].as_str()
                && as_it_should(agent, serial, &said)
            {
                self.serial = Some(serial.to_owned());
                return Ok(());
            }
            ensure!(agent.runs()?, "the agent has ended: {}", agent.log());
            if Instant::now() > deadline {
                bail!("not online by a new certificate: {status:#}\n{}", agent.log());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// Runs `provision` as a timer does, and publishes before and after.
    fn come(&mut self, world: &World) -> Result<()> {
        let (before, is_good) = (self.publish(world)?, !self.has_overslept(world.month));
        ensure!((before == 0) == is_good, "publish ends with {before} before it renews");
        let provisioned = if (self.name, world.month) == REKEY {
            self.rekey(world)
        } else {
            self.provision(world, &[])
        }?;
        let serial = provisioned["serial"].as_str().map(str::to_owned);
        let is_new = !self.has_certificate() || serial != self.serial;
        ensure!(is_new, "provision has got nothing new: {provisioned}");
        self.serial = serial;
        let after = self.publish(world)?;
        ensure!(after == 0, "publish ends with {after} after {provisioned}");
        Ok(())
    }

    /// Whether its certificate ended while it slept.
    pub(super) fn has_overslept(&self, month: u32) -> bool {
        *self.asleep.end() + 1 == month && self.asleep.clone().count() > 1
    }

    /// The CA goes away now.
    pub(super) fn expect_trouble(&mut self) {
        self.times_online = self.agent.as_ref().map_or(0, |agent| agent.count("online as"));
    }

    /// Comes back by itself to a CA that was restored, and does not know what it has.
    pub(super) fn come_back(&mut self, world: &World) -> Result<()> {
        let before = self.times_online;
        match self.way {
            Way::Resident => self.is_online(world, |agent, _, said| agent.count(said) > before),
            Way::Timer => {
                let refused = self.publish(world)?;
                ensure!(refused != 0, "the restored CA lets it in with what it does not know");
                self.serial = self.provision(world, &[])?["serial"].as_str().map(str::to_owned);
                let after = self.publish(world)?;
                ensure!(after == 0, "publish ends with {after}");
                Ok(())
            }
        }
        .with_context(|| format!("month {}, device {}", world.month, self.name))
    }

    fn provision(&self, world: &World, arguments: &[&str]) -> Result<Value> {
        let mut provision = self.device.provision_at(&world.lab.server.bootstrap, &world.root)?;
        provision.args(arguments);
        json(&mut world.clock.give_to(provision))
    }

    /// Gets another identity key, and a certificate for it.
    fn rekey(&self, world: &World) -> Result<Value> {
        let mut rekey = self.device.rekey_at(&world.lab.server.bootstrap, &world.root)?;
        rekey.args(["--ik", "p-384"]);
        let rekeyed = json(&mut world.clock.give_to(rekey))?;
        ensure!(rekeyed["renewal"] == "rekeyed" && rekeyed["ik"] == "p-384", "{rekeyed}");
        Ok(rekeyed)
    }

    /// The exit status of `publish`.
    fn publish(&self, world: &World) -> Result<i32> {
        let (operational, root) = (&world.lab.server.operational, &world.root);
        let publish = self.device.publish_at(operational, root, "telemetry", "21.5")?;
        world.clock.give_to(publish).output()?.status.code().context("it was killed")
    }
}

/// A device is online in some seconds. The rest is for delays that grow, and for a machine under
/// load.
const PATIENCE: Duration = Duration::from_secs(60);
