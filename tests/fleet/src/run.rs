//! One run of a fleet, from the first device to the report.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_mqtt::BrokerUrl;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::connection::Broker;
use crate::device::{Bound, Device};
use crate::hold::{self, Member};
use crate::lanes::Lane;
use crate::load::{Fleet, Pace};
use crate::options::{CHURNING, Course, Options, Reuse};
use crate::own_ca::OwnCa;
use crate::report::{Held, Report, Usage};
use crate::tally::Tally;
use crate::{plot, progress, report, server};

/// Devices before a broker.
pub(crate) struct Run<'a> {
    options: &'a Options,
    pub(crate) devices: Arc<Vec<Device>>,
    broker: Arc<Broker>,
    operational: Option<BrokerUrl>,
    /// The server, if this program started it.
    ca: Option<&'a OwnCa>,
    runtime: Runtime,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        options: &'a Options,
        devices: Vec<Device>,
        broker: Broker,
        operational: Option<BrokerUrl>,
        ca: Option<&'a OwnCa>,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let (devices, broker) = (Arc::new(devices), Arc::new(broker));
        Ok(Self { options, devices, broker, operational, ca, runtime })
    }

    /// Runs all devices to their end.
    pub(crate) fn measure(&self) -> Result<Report> {
        if self.options.flow == Course::Renew {
            self.prepare_to_renew()?;
        }
        let fleet = self.fleet(self.options.flow)?;
        let pace = match self.options.rate {
            Some(rate) => Pace::Open { rate },
            None => Pace::Closed { concurrency: self.options.concurrency as usize },
        };
        let usage = || self.ca.map(OwnCa::usage).transpose();
        let (server_before, own_before) = (usage()?, server::own_time()?);
        let began = Instant::now();
        let ramp = Duration::from_secs_f64(self.options.ramp);
        let arriving = self.runtime.block_on(fleet.run(pace, ramp));
        let used = Usage {
            took: began.elapsed(),
            arriving,
            server: usage()?.zip(server_before).map(|(after, before)| after.since(&before)),
            own: server::own_time()? - own_before,
        };
        fleet.bar.finish_and_clear();
        let held = if self.options.hold { Some(self.hold(&fleet)?) } else { None };
        let counts = fleet.tally.counts();
        if let Some(file) = &self.options.plot {
            let lines: Vec<_> = report::latencies(&counts).collect();
            plot::draw(file, &self.options.title(), &lines)?;
        }
        let connections = self.options.connections()?;
        Ok(Report::new(self.options, connections, &self.devices, &counts, &used, held))
    }

    fn fleet(&self, course: Course) -> Result<Arc<Fleet>> {
        let connections = self.options.connections()?;
        let (lanes, own) = match self.options.connection {
            Reuse::Reused => (connections, CHURNING as usize),
            Reuse::PerDevice => (0, connections),
        };
        let renews = self.options.flow == Course::Renew;
        Ok(Arc::new(Fleet {
            bar: progress::bar(self.devices.len(), course.name()),
            devices: Arc::clone(&self.devices),
            course,
            broker: Arc::clone(&self.broker),
            lanes: (0..lanes).map(|_| Lane::new()).collect(),
            own: Semaphore::new(own),
            tally: Arc::new(Tally::new()),
            at_once: self.options.state.is_none(),
            keeps: renews || self.options.hold || self.options.state.is_some(),
        }))
    }

    /// Loads the devices' IKs. If no device has a certificate, gets one for each, and waits until a
    /// renewed one would end later.
    fn prepare_to_renew(&self) -> Result<()> {
        for device in self.devices.iter() {
            if let Bound::Ik(ik) = &device.bound {
                ik.load()?;
            }
        }
        if self.devices.iter().any(|device| device.granted().is_some()) {
            return Ok(());
        }
        let fleet = self.fleet(Course::Provision(Course::Renew.flow()))?;
        let pace = Pace::Closed { concurrency: self.options.concurrency as usize };
        self.runtime.block_on(fleet.run(pace, Duration::ZERO));
        fleet.bar.finish_and_clear();
        let failed = &fleet.tally.counts().failed;
        ensure!(failed.is_empty(), "not provisioned, so they cannot renew: {failed:?}");
        thread::sleep(A_SECOND);
        Ok(())
    }

    /// Connects the devices that are awake, pings each, and reads the server's memory while all are
    /// connected. Devices in a state file that the broker refuses prove their TPMs anew first.
    fn hold(&self, fleet: &Fleet) -> Result<Held> {
        let (mut held, mut took) =
            self.connect(self.devices.iter(), self.options.state.is_some())?;
        let refused: Vec<_> = self.devices.iter().filter(|device| device.is_refused()).collect();
        if !refused.is_empty() {
            let again = self.fleet(Course::Renew)?;
            self.runtime.block_on(again.run(Pace::Closed { concurrency: AT_ONCE }, Duration::ZERO));
            let back = again.tally.counts();
            ensure!(back.failed.is_empty(), "refused by the broker, and then: {:?}", back.failed);
            fleet.tally.counts().came_back += back.came_back;
            let (connected, longer) = self.connect(refused, false)?;
            held.extend(connected);
            took += longer;
        }
        self.runtime.block_on(async {
            for connection in &mut held {
                connection.ping().await?;
            }
            let memory = self.ca.map(OwnCa::usage).transpose()?.map(|usage| usage.memory);
            Ok(Held::new(held.len(), took, memory))
        })
    }

    /// Connects those devices that are awake. Notes whom the broker refuses, if they
    /// `may_come_back`.
    fn connect<'d>(
        &self,
        devices: impl IntoIterator<Item = &'d Device>,
        may_come_back: bool,
    ) -> Result<(Vec<hold::Held>, Duration)> {
        let operational = self.operational.as_ref().context("no listener for devices")?;
        let listener = SocketAddr::new(operational.host().parse()?, operational.port());
        let (who, members): (Vec<_>, Vec<_>) =
            devices.into_iter().filter_map(|device| Some((device, member(device)?))).unzip();
        let bar = progress::bar(members.len(), "connecting");
        let (roots, began) = (&self.broker.roots, Instant::now());
        let connected = self.runtime.block_on(hold::connect(members, listener, roots, &bar))?;
        bar.finish_and_clear();
        let mut held = Vec::new();
        for (device, connected) in who.into_iter().zip(connected) {
            match connected {
                Ok(connection) => held.push(connection),
                Err(_) if may_come_back => device.refuse(),
                Err(error) => return Err(error),
            }
        }
        Ok((held, began.elapsed()))
    }
}

fn member(device: &Device) -> Option<Member> {
    let Bound::Ik(ik) = &device.bound else { return None };
    let granted = device.granted().filter(|_| !device.sleeps)?;
    let (device_id, chain) = (granted.device_id, granted.chain);
    Some(Member { device_id, chain, key: ik.pkcs8.clone() })
}

/// Devices that come back at once.
const AT_ONCE: usize = 64;
/// Certificates end on whole seconds.
const A_SECOND: Duration = Duration::from_millis(1100);
