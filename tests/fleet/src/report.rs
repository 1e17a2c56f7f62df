//! What a run has shown, as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::device::Device;
use crate::options::{Options, Reuse};
use crate::server::{Memory, ServerUsage};
use crate::tally::Counts;

/// The report of one run.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) setup: Setup,
    pub(crate) devices: Devices,
    /// From the start to the end of the last device.
    pub(crate) seconds: f64,
    /// Devices that got what they asked for, divided by `seconds`.
    pub(crate) devices_per_second: f64,
    /// The same for the time in which devices arrived; open loop only.
    pub(crate) while_arriving: Option<Arriving>,
    /// `device`, `connect`, and each kind of request.
    pub(crate) latency_ms: BTreeMap<&'static str, Latency>,
    /// Problems in replies, by code, including those that are due for bad requests.
    pub(crate) problems: BTreeMap<&'static str, usize>,
    /// Bad devices that were refused with the problem that is due.
    pub(crate) refused: BTreeMap<&'static str, usize>,
    /// Connections lost and requests not answered, after which devices tried again.
    pub(crate) lost: BTreeMap<String, usize>,
    /// Why devices did not get what was due to them.
    pub(crate) failures: BTreeMap<String, usize>,
    /// Connections that were made.
    pub(crate) connections: usize,
    /// Processor time divided by all devices. The server's time is there only if this program
    /// started it.
    pub(crate) cpu_us_per_device: Cpu,
    /// The server's memory, if this program started it.
    pub(crate) server_memory_kib: Option<Memory>,
    /// Devices that connected afterwards and stayed connected.
    pub(crate) held: Option<Held>,
}

/// What was asked for.
#[derive(Serialize)]
pub(crate) struct Setup {
    flow: &'static str,
    ek: Vec<&'static str>,
    ik: Vec<&'static str>,
    connection: &'static str,
    connections: usize,
    /// Closed loop.
    concurrency: Option<u32>,
    /// Open loop, devices a second.
    rate: Option<f64>,
    ramp_seconds: f64,
}

#[derive(Serialize)]
pub(crate) struct Held {
    connections: usize,
    /// Until all were connected.
    seconds: f64,
    /// With all of them connected, if this program started the server.
    server_memory_kib: Option<Memory>,
}

impl Held {
    pub(crate) fn new(
        connections: usize,
        took: Duration,
        server_memory_kib: Option<Memory>,
    ) -> Self {
        Self { connections, seconds: round(took.as_secs_f64(), 3), server_memory_kib }
    }
}

#[derive(Serialize)]
pub(crate) struct Devices {
    pub(crate) all: usize,
    pub(crate) done: usize,
    pub(crate) refused: usize,
    pub(crate) failed: usize,
    pub(crate) churned: usize,
    /// Devices that could not renew what they had, and proved their TPMs anew.
    pub(crate) came_back: usize,
    pub(crate) asleep: usize,
}

#[derive(Serialize)]
pub(crate) struct Arriving {
    seconds: f64,
    done: usize,
    devices_per_second: f64,
}

#[derive(Serialize)]
pub(crate) struct Latency {
    count: u64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[derive(Serialize)]
pub(crate) struct Cpu {
    ca: Option<f64>,
    broker: Option<f64>,
    /// PostgreSQL, if that is the store.
    store: Option<f64>,
    fleet: f64,
}

/// How long a run took and what it used.
pub(crate) struct Usage {
    pub(crate) took: Duration,
    /// From the first arrival to the last, and how many devices were done by then.
    pub(crate) arriving: Option<(Duration, usize)>,
    pub(crate) server: Option<ServerUsage>,
    /// Seconds of this process.
    pub(crate) own: f64,
}

impl Report {
    pub(crate) fn new(
        options: &Options,
        connections: usize,
        devices: &[Device],
        counts: &Counts,
        usage: &Usage,
        held: Option<Held>,
    ) -> Self {
        let [refused, failed] = [counts.refused.values().sum(), counts.failed.values().sum()];
        let asleep = devices.iter().filter(|device| device.sleeps).count();
        let awake = (devices.len() - asleep).max(1) as f64;
        let per_device = |seconds: f64| round(seconds * 1e6 / awake, 1);
        let rate = |done: usize, time: Duration| round(done as f64 / time.as_secs_f64(), 1);
        let server = usage.server.as_ref();
        Self {
            setup: Setup {
                flow: options.flow.name(),
                ek: options.ek.iter().map(|kind| kind.name()).collect(),
                ik: options.ik.iter().map(|kind| kind.name()).collect(),
                connection: match options.connection {
                    Reuse::Reused => "reused",
                    Reuse::PerDevice => "per-device",
                },
                connections,
                concurrency: options.rate.is_none().then_some(options.concurrency),
                rate: options.rate,
                ramp_seconds: options.ramp,
            },
            devices: Devices {
                all: devices.len(),
                done: counts.done,
                refused,
                failed,
                churned: counts.churned,
                came_back: counts.came_back,
                asleep,
            },
            seconds: round(usage.took.as_secs_f64(), 3),
            devices_per_second: rate(counts.done, usage.took),
            while_arriving: usage.arriving.map(|(time, done)| Arriving {
                seconds: round(time.as_secs_f64(), 3),
                done,
                devices_per_second: rate(done, time),
            }),
            latency_ms: latencies(counts)
                .map(|(name, histogram)| (name, Latency::of(histogram)))
                .collect(),
            problems: counts.problems.clone(),
            refused: counts.refused.clone(),
            lost: counts.lost.clone(),
            failures: counts.failed.clone(),
            connections: counts.connections,
            cpu_us_per_device: Cpu {
                ca: server.map(|used| per_device(used.ca)),
                broker: server.map(|used| per_device(used.broker)),
                store: server.and_then(|used| used.store).map(per_device),
                fleet: per_device(usage.own),
            },
            server_memory_kib: server.map(|used| used.memory),
            held,
        }
    }

    /// Whether every device got what was due to it.
    pub(crate) fn is_good(&self) -> bool {
        self.devices.failed == 0
    }

    /// The report as a table for people.
    pub(crate) fn table(&self) -> String {
        let Devices { all, done, refused, failed, churned, came_back, asleep } = self.devices;
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            // Writing to a String cannot fail.
            _ = writeln!(text, "{label:<22}{value}");
        };
        line(
            "devices",
            format!("{all}: {done} done, {refused} refused, {failed} failed; {churned} churned"),
        );
        if came_back + asleep > 0 {
            line("", format!("{came_back} proved their TPMs anew, {asleep} slept"));
        }
        line("time", format!("{:.1} s", self.seconds));
        line("throughput", format!("{:.0} devices/s", self.devices_per_second));
        if let Some(Arriving { seconds, done, devices_per_second }) = &self.while_arriving {
            line(
                "  while arriving",
                format!("{devices_per_second:.0} devices/s ({done} in {seconds:.1} s)"),
            );
        }
        line("connections", self.connections.to_string());
        let Cpu { ca, broker, store, fleet } = &self.cpu_us_per_device;
        let micros = |time: &Option<f64>| time.map_or("?".into(), |time| format!("{time:.0}"));
        line(
            "processor, µs/device",
            format!("CA {}, broker {}, fleet {fleet:.0}", micros(ca), micros(broker)),
        );
        if let Some(store) = store {
            line("  PostgreSQL", format!("{store:.0}"));
        }
        if let Some(Memory { now, peak }) = self.server_memory_kib {
            line(
                "server memory",
                format!("{:.1} MiB, {:.1} MiB at most", now as f64 / 1024.0, peak as f64 / 1024.0),
            );
        }
        if let Some(Held { connections, seconds, server_memory_kib }) = &self.held {
            let memory = server_memory_kib.map_or_else(String::new, |Memory { now, .. }| {
                format!("; server memory {:.1} MiB", now as f64 / 1024.0)
            });
            line("connected afterwards", format!("{connections} in {seconds:.1} s{memory}"));
        }
        let columns = |cells: [&str; 6]| cells.map(|cell| format!("{cell:>9}")).concat();
        line(
            "\nlatency, ms",
            columns(["p50", "p90", "p99", "p99.9", "max", "count"])[1..].to_owned(),
        );
        for (name, latency) in &self.latency_ms {
            let Latency { count, p50, p90, p99, p999, max, .. } = latency;
            let cells = [p50, p90, p99, p999, max].map(|value| format!("{value:>9.2}")).concat();
            line(&format!("  {name}"), format!("{cells}{count:>9}"));
        }
        for (title, counts) in
            [("problems", &self.problems), ("bad requests refused", &self.refused)]
        {
            counts.iter().for_each(|(name, count)| line(title, format!("{count:>9}  {name}")));
        }
        for (title, counts) in [("lost, tried again", &self.lost), ("FAILED", &self.failures)] {
            counts.iter().for_each(|(reason, count)| line(title, format!("{count:>9}  {reason}")));
        }
        text
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| millis(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            mean: round(histogram.mean() / 1e3, 3),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: millis(histogram.max()),
        }
    }
}

/// Every histogram that has something in it, by its name.
pub(crate) fn latencies(counts: &Counts) -> impl Iterator<Item = (&'static str, &Histogram<u64>)> {
    let requests = counts.requests.iter().map(|(name, histogram)| (*name, histogram));
    let all =
        [("device", &counts.device), ("connect", &counts.connect)].into_iter().chain(requests);
    all.filter(|(_, histogram)| !histogram.is_empty())
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
