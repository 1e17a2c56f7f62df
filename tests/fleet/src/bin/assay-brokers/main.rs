//! `assay-brokers`: round trips and memory of the built-in broker beside Mosquitto, and what
//! hostile clients cost honest devices.

mod client;
mod hostile;

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use assay_tests::{AssayDir, AssayServer, Mosquitto};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use procfs::process::Process;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use client::{Client, operator_tls};

/// Measures brokers on this machine: `assay serve` beside Mosquitto, each with mutual TLS, and
/// `assay serve` under attack.
#[derive(Parser)]
struct Options {
    /// Run only these; all by default
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Only this kind of hostile client, beside a run without any; may be repeated
    #[arg(long, value_enum, value_name = "KIND")]
    kind: Vec<hostile::Kind>,
    /// Few clients and short runs, to see whether it works
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A request of 1.5 KB and a reply of 1 KB at QoS 1 over two clients of the broker
    Roundtrip,
    /// Connected clients with one subscription each
    Memory,
    /// Clients that come back under load before their old connection is given up, and what they
    /// miss
    Takeover,
    /// Provisioning while a thousand clients of each kind attack
    Hostile,
}

fn main() -> Result<()> {
    let options = Options::parse();
    rlimit::increase_nofile_limit(u64::MAX)?;
    // One thread, so that the broker has one of two processors to itself.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let is_wanted = |part| options.parts.is_empty() || options.parts.contains(&part);
    let mut report = serde_json::Map::new();
    if is_wanted(Part::Roundtrip) {
        report.insert("roundtrip".into(), roundtrips(&runtime, options.quick)?);
    }
    if is_wanted(Part::Memory) {
        report.insert("memory".into(), memory(&runtime, options.quick)?);
    }
    if is_wanted(Part::Takeover) {
        report.insert("takeover".into(), takeovers(&runtime, options.quick)?);
    }
    if is_wanted(Part::Hostile) {
        report.insert("hostile".into(), hostile::hostile(&runtime, &options.kind, options.quick)?);
    }
    println!("{:#}", Value::Object(report));
    Ok(())
}

/// Both brokers, with the same certificates.
struct Brokers {
    dir: AssayDir,
    assay: AssayServer,
    mosquitto: Mosquitto,
}

impl Brokers {
    fn start() -> Result<Self> {
        let dir = AssayDir::init()?;
        let settings = dir.path().join("assay.toml");
        // All clients are on this machine, which is one network.
        let text = fs::read_to_string(&settings)?
            .replace("arrivals_per_network = 1000", "arrivals_per_network = 100000");
        fs::write(&settings, text)?;
        let file = |name: &str| dir.path().join(name).display().to_string();
        let listener = format!(
            "certfile {}\nkeyfile {}\ncafile {}\nrequire_certificate true\nallow_anonymous \
             true\nset_tcp_nodelay true",
            file("server.pem"),
            file("server.key"),
            file("root.pem")
        );
        let mosquitto = Mosquitto::start(&[&listener])?;
        Ok(Self { assay: AssayServer::start(&dir)?, mosquitto, dir })
    }

    fn address(&self, name: &str) -> Result<SocketAddr> {
        match name {
            "assay" => address(&self.assay.operational),
            _ => Ok((Ipv4Addr::LOCALHOST, self.mosquitto.port(0)).into()),
        }
    }

    fn memory(&self, name: &str) -> Result<u64> {
        match name {
            "assay" => self.assay.rss_kib(),
            _ => {
                let status = Process::new(i32::try_from(self.mosquitto.pid())?)?.status()?;
                status.vmrss.context("no VmRSS")
            }
        }
    }
}

fn address(url: &str) -> Result<SocketAddr> {
    Ok(url.rsplit_once('/').context("a URL")?.1.parse()?)
}

const NAMES: [&str; 2] = ["assay", "mosquitto"];

/// The medians of several runs, with the brokers in turn.
fn roundtrips(runtime: &Runtime, quick: bool) -> Result<Value> {
    let brokers = Brokers::start()?;
    let tls = operator_tls(&brokers.dir)?;
    let (runs, time) =
        if quick { (1, Duration::from_millis(300)) } else { (5, Duration::from_secs(4)) };
    let mut rows = Vec::new();
    for clients in [1, 16, 64] {
        let mut results: BTreeMap<&str, Vec<[f64; 3]>> = BTreeMap::new();
        for _ in 0..runs {
            for name in NAMES {
                let address = brokers.address(name)?;
                let result = runtime.block_on(roundtrip(address, tls.clone(), clients, time))?;
                results.entry(name).or_default().push(result);
            }
        }
        for name in NAMES {
            let column = |at: usize| median(results[name].iter().map(|run| run[at]).collect());
            let (rate, p50, p99) = (column(0), column(1), column(2));
            eprintln!(
                "{name:<10} {clients:>3} clients: {rate:>8.0} requests/s, p50 {p50:.2} ms, p99 \
                 {p99:.2} ms"
            );
            rows.push(json!({"broker": name, "clients": clients, "per_second": rate, "p50_ms": p50, "p99_ms": p99}));
        }
    }
    Ok(rows.into())
}

/// Requests a second, and the median and 99th percentile of their times in milliseconds.
async fn roundtrip(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    clients: usize,
    time: Duration,
) -> Result<[f64; 3]> {
    let mut answerer = Client::connect(address, &tls, "operator@answers", 0).await?;
    answerer.subscribe("device/v1/default/+/command/ask").await?;
    let mut tasks = JoinSet::new();
    let stop = Arc::new(AtomicBool::new(false));
    for number in 0..clients {
        let mut asker = Client::connect(address, &tls, &format!("operator@{number}"), 0).await?;
        asker.subscribe(&format!("device/v1/default/{number}/command/answer")).await?;
        let stop = stop.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            let topic = format!("device/v1/default/{number}/command/ask");
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                asker.publish(&topic, &[7; 1500]).await?;
                asker.message().await?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let answering = tokio::spawn(async move {
        loop {
            let topic = answerer.message().await?;
            answerer.publish(&topic.replace("/ask", "/answer"), &[7; 1000]).await?;
        }
        #[allow(unreachable_code, reason = "gives the block its type")]
        anyhow::Ok(())
    });
    tokio::time::sleep(time).await;
    stop.store(true, Ordering::Relaxed);
    let mut histogram = Histogram::<u64>::new(3)?;
    while let Some(times) = tasks.join_next().await {
        for time in times?? {
            histogram.record(time.as_micros().try_into()?)?;
        }
    }
    answering.abort();
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    Ok([histogram.len() as f64 / time.as_secs_f64(), ms(0.5), ms(0.99)])
}

fn memory(runtime: &Runtime, quick: bool) -> Result<Value> {
    let mut rows = Vec::new();
    for count in if quick { vec![50] } else { vec![2_000, 10_000] } {
        let brokers = Brokers::start()?;
        let tls = operator_tls(&brokers.dir)?;
        for name in NAMES {
            let before = brokers.memory(name)?;
            let address = brokers.address(name)?;
            let held = runtime.block_on(hold(address, &tls, count))?;
            std::thread::sleep(Duration::from_secs(1));
            let after = brokers.memory(name)?;
            drop(held);
            let each = (after.saturating_sub(before)) as f64 / count as f64;
            eprintln!(
                "{name:<10} {count:>6} clients: {each:.1} KiB each, {} MiB in all",
                after / 1024
            );
            rows.push(
                json!({"broker": name, "clients": count, "kib_each": each, "mib": after / 1024}),
            );
        }
    }
    Ok(rows.into())
}

async fn hold(address: SocketAddr, tls: &Arc<ClientConfig>, count: usize) -> Result<Vec<Client>> {
    let mut held = Vec::new();
    let mut connecting = JoinSet::new();
    for number in 0..count {
        let tls = tls.clone();
        connecting.spawn(async move {
            // One client address has too few ports for all connections.
            let home = u8::try_from(1 + number / 5000)?;
            let mut client =
                Client::connect(address, &tls, &format!("operator@{number}"), home).await?;
            client.subscribe(&format!("device/v1/default/{number}/telemetry")).await?;
            anyhow::Ok(client)
        });
        if connecting.len() >= 32 {
            held.push(connecting.join_next().await.context("it has tasks")???);
        }
    }
    while let Some(client) = connecting.join_next().await {
        held.push(client??);
    }
    Ok(held)
}

/// Takeovers under load: the old connection stays open, as after a network drop. The first message
/// after the SUBACK must arrive.
fn takeovers(runtime: &Runtime, quick: bool) -> Result<Value> {
    let brokers = Brokers::start()?;
    let tls = operator_tls(&brokers.dir)?;
    let rounds = if quick { 40 } else { 10_000 };
    let address = brokers.address("assay")?;
    let lost = runtime.block_on(async {
        let load = tokio::spawn(roundtrip(address, tls.clone(), 16, Duration::from_secs(600)));
        let mut tasks = JoinSet::new();
        for id in 0..TAKEN_OVER {
            tasks.spawn(take_over(address, tls.clone(), id, rounds / TAKEN_OVER));
        }
        let mut lost = 0;
        while let Some(task) = tasks.join_next().await {
            lost += task??;
        }
        load.abort();
        anyhow::Ok(lost)
    })?;
    eprintln!("{rounds} takeovers, {lost} messages lost");
    Ok(json!({"takeovers": rounds, "lost": lost}))
}

/// Client ids that are taken over at the same time.
const TAKEN_OVER: usize = 8;

async fn take_over(
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    id: usize,
    rounds: usize,
) -> Result<usize> {
    let topic = format!("device/v1/default/taken-{id}/command");
    let mut speaker = Client::connect(address, &tls, &format!("operator@speaks-{id}"), 0).await?;
    let (mut old, mut lost) = (None, 0);
    for _ in 0..rounds {
        let mut client = Client::connect(address, &tls, &format!("operator@taken-{id}"), 0).await?;
        client.subscribe(&topic).await?;
        speaker.publish(&topic, b"first").await?;
        lost += usize::from(
            tokio::time::timeout(Duration::from_secs(5), client.message()).await.is_err(),
        );
        // The old connection is dropped only now.
        drop(old.replace(client));
    }
    Ok(lost)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}
