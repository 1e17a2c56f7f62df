//! `assay-brokers`: round trips and memory of the built-in broker beside Mosquitto, and what hostile clients cost honest devices.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, AssayServer, Mosquitto};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use procfs::process::Process;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Measures brokers on this machine: `assay serve` beside Mosquitto, each with mutual TLS, and `assay serve` under attack.
#[derive(Parser)]
struct Options {
    /// Run only these; all by default
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Few clients and short runs: whether it works
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A request of 1.5 KB and a reply of 1 KB at QoS 1 over two clients of the broker
    Roundtrip,
    /// Connected clients with one subscription each
    Memory,
    /// Clients that come back under load before their old connection is given up, and what they miss
    Takeover,
    /// Provisioning while a thousand strangers of each kind do their worst
    Hostile,
}

fn main() -> Result<()> {
    let options = Options::parse();
    rlimit::increase_nofile_limit(u64::MAX)?;
    // One thread, so that the broker has a processor of two to itself.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
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
        report.insert("hostile".into(), hostile(&runtime, options.quick)?);
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
        // All clients are on this machine.
        let text =
            fs::read_to_string(&settings)?.replace("arrivals_per_network = 1000", "arrivals_per_network = 100000");
        fs::write(&settings, text)?;
        let file = |name: &str| dir.path().join(name).display().to_string();
        let listener = format!(
            "certfile {}\nkeyfile {}\ncafile {}\nrequire_certificate true\nallow_anonymous true\nset_tcp_nodelay true",
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

/// Median of the runs, brokers in turn.
fn roundtrips(runtime: &Runtime, quick: bool) -> Result<Value> {
    let brokers = Brokers::start()?;
    let tls = operator_tls(&brokers.dir)?;
    let (runs, time) = if quick { (1, Duration::from_millis(300)) } else { (5, Duration::from_secs(4)) };
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
            eprintln!("{name:<10} {clients:>3} clients: {rate:>8.0} requests/s, p50 {p50:.2} ms, p99 {p99:.2} ms");
            rows.push(json!({"broker": name, "clients": clients, "per_second": rate, "p50_ms": p50, "p99_ms": p99}));
        }
    }
    Ok(rows.into())
}

/// Requests a second; median and 99th percentile of their times in milliseconds.
async fn roundtrip(address: SocketAddr, tls: Arc<ClientConfig>, clients: usize, time: Duration) -> Result<[f64; 3]> {
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
            eprintln!("{name:<10} {count:>6} clients: {each:.1} KiB each, {} MiB in all", after / 1024);
            rows.push(json!({"broker": name, "clients": count, "kib_each": each, "mib": after / 1024}));
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
            // One address has ports for so many connections.
            let home = u8::try_from(1 + number / 5000)?;
            let mut client = Client::connect(address, &tls, &format!("operator@{number}"), home).await?;
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

/// Takeovers under load: the old connection stays open, as after a network drop, and the first message after the SUBACK must come.
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

async fn take_over(address: SocketAddr, tls: Arc<ClientConfig>, id: usize, rounds: usize) -> Result<usize> {
    let topic = format!("device/v1/default/taken-{id}/command");
    let mut speaker = Client::connect(address, &tls, &format!("operator@speaks-{id}"), 0).await?;
    let (mut old, mut lost) = (None, 0);
    for _ in 0..rounds {
        let mut client = Client::connect(address, &tls, &format!("operator@taken-{id}"), 0).await?;
        client.subscribe(&topic).await?;
        speaker.publish(&topic, b"first").await?;
        lost += usize::from(tokio::time::timeout(Duration::from_secs(5), client.message()).await.is_err());
        // What came before is dropped only now.
        drop(old.replace(client));
    }
    Ok(lost)
}

/// A kind of hostile client; each is a stranger on the bootstrap listener, or does not get as far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    None,
    SilentTcp,
    SilentTls,
    HalfConnect,
    NeverReads,
    SameClientId,
    InvalidFilters,
    ForeignTopics,
    Pings,
    Pubacks,
    Retained,
}

fn hostile(runtime: &Runtime, quick: bool) -> Result<Value> {
    let bin = std::env::current_exe()?.parent().context("a program is in a directory")?.to_path_buf();
    let fleet = bin.join("assay-fleet");
    let (clients, devices) = if quick { (20, 60) } else { (1000, 10_000) };
    let mut rows = Vec::new();
    let mut best = 0.0;
    for kind in Kind::value_variants() {
        let dir = AssayDir::init()?;
        for file in String::from_utf8(Command::new(&fleet).arg("--vendor").output()?.stdout)?.lines() {
            ensure!(dir.assay(&["trust", "add", file])?.output()?.status.success(), "{file}");
        }
        let server = AssayServer::start(&dir)?;
        let address = address(&server.bootstrap)?;
        let stranger = tls(&dir, None)?;
        let told = Arc::new(Told::default());
        let attack = runtime.spawn(attack(*kind, clients, address, stranger, told.clone()));
        std::thread::sleep(Duration::from_secs(if quick { 1 } else { 5 }));
        let report = honest(&fleet, &server, dir.root_pem(), devices)?;
        attack.abort();
        let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64).context("a number in the report");
        let (rate, p99) = (number("/devices_per_second")?, number("/latency_ms/device/p99")?);
        if *kind == Kind::None {
            best = rate;
        }
        let (packets, codes) = told.summary();
        let mib = server.rss_kib()? / 1024;
        eprintln!(
            "{kind:?}: {rate:.0} devices/s ({:.2}), p99 {p99:.0} ms, {mib} MiB; sent {packets}; {codes}",
            rate / best
        );
        rows.push(json!({
            "kind": format!("{kind:?}"), "devices_per_second": rate, "of_unharmed": rate / best, "p99_ms": p99,
            "failed": report.pointer("/devices/failed"), "mib": mib, "packets": packets, "told": codes,
        }));
    }
    Ok(rows.into())
}

/// Provisions devices beside the attack.
fn honest(fleet: &PathBuf, server: &AssayServer, root: PathBuf, devices: usize) -> Result<Value> {
    let mut command = Command::new(fleet);
    command.args(["--json", "--devices", &devices.to_string(), "--broker", &server.bootstrap, "--ca-root"]).arg(root);
    let output = command.stderr(Stdio::null()).output()?;
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What hostile clients sent and heard.
#[derive(Default)]
struct Told {
    packets: AtomicU64,
    refused: AtomicU64,
    closed: AtomicU64,
    codes: std::sync::Mutex<BTreeMap<String, u64>>,
}

impl Told {
    fn heard(&self, packet: &[u8]) {
        let code = match packet {
            [0x20, _, _, code, ..] if *code != 0 => format!("CONNACK {code:#04x}"),
            [0xe0, 0 | 1, ..] => "DISCONNECT".into(),
            [0xe0, _, code, ..] => format!("DISCONNECT {code:#04x}"),
            [0x90, .., code] if *code > 2 => format!("SUBACK {code:#04x}"),
            [0x40, _, _, _, code, ..] if *code != 0 => format!("PUBACK {code:#04x}"),
            _ => return,
        };
        *self.codes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).entry(code).or_default() += 1;
    }

    fn summary(&self) -> (u64, String) {
        let codes = self.codes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut texts: Vec<_> = codes.into_iter().map(|(code, count)| format!("{code} ×{count}")).collect();
        texts.push(format!("closed ×{}", self.closed.load(Ordering::Relaxed)));
        texts.push(format!("not let in ×{}", self.refused.load(Ordering::Relaxed)));
        (self.packets.load(Ordering::Relaxed), texts.join(", "))
    }
}

async fn attack(kind: Kind, clients: usize, address: SocketAddr, tls: Arc<ClientConfig>, told: Arc<Told>) {
    if kind == Kind::None {
        return std::future::pending().await;
    }
    let mut all = JoinSet::new();
    for number in 0..clients {
        let (tls, told) = (tls.clone(), told.clone());
        all.spawn(async move {
            // From sixteen networks, none of them that of the honest devices.
            let home = u8::try_from(10 + number % 16).unwrap_or_default();
            loop {
                if let Err(Refused) = harm(kind, number, address, &tls, home, &told).await {
                    told.refused.fetch_add(1, Ordering::Relaxed);
                }
                told.closed.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
    while all.join_next().await.is_some() {}
}

struct Refused;

impl<E: std::error::Error> From<E> for Refused {
    fn from(_: E) -> Self {
        Self
    }
}

/// One hostile connection, until it is cut.
async fn harm(
    kind: Kind,
    number: usize,
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
    home: u8,
    told: &Told,
) -> Result<(), Refused> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, home), 0).into())?;
    let mut tcp = socket.connect(address).await?;
    if kind == Kind::SilentTcp {
        _ = tcp.read(&mut [0]).await?;
        return Ok(());
    }
    let mut stream = TlsConnector::from(tls.clone()).connect(host(address), tcp).await?;
    let id = match kind {
        Kind::SameClientId => "0123456789abcdef0123456789abcdef".to_owned(),
        _ => {
            static NEXT: AtomicU64 = AtomicU64::new(1);
            format!("{:016x}{:016x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
        }
    };
    let connect = connect_packet(&id);
    match kind {
        Kind::SilentTls => {
            _ = stream.read(&mut [0]).await?;
            return Ok(());
        }
        Kind::HalfConnect => {
            stream.write_all(&connect[..connect.len() / 2]).await?;
            _ = stream.read(&mut [0]).await?;
            return Ok(());
        }
        _ => stream.write_all(&connect).await?,
    }
    let connack = read_packet(&mut stream).await?;
    told.heard(&connack);
    if connack.get(3) != Some(&0) {
        return Err(Refused);
    }
    let request = format!("provision/v1/default/{id}/request");
    let reply = format!("provision/v1/default/{id}/reply");
    let burst: Vec<u8> = match kind {
        Kind::InvalidFilters => (0..64).flat_map(|_| subscribe_packet("a\u{1b}[2J\nforged/#/x")).collect(),
        Kind::ForeignTopics => {
            (0..8).flat_map(|_| publish_packet("device/v1/default/pump/x", &[7; 1000], 0x32)).collect()
        }
        Kind::Pings => [0xc0, 0].repeat(512),
        Kind::Pubacks => [0x40, 2, 0, 1].repeat(512),
        Kind::Retained => publish_packet(&request, b"retained", 0x33),
        Kind::NeverReads => {
            let requests = (0..32).flat_map(|_| publish_packet(&request, &[number as u8; 1000], 0x32));
            [subscribe_packet(&reply), requests.collect()].concat()
        }
        _ => [0xc0, 0].to_vec(),
    };
    if kind == Kind::NeverReads {
        stream.write_all(&burst).await?;
        told.packets.fetch_add(33, Ordering::Relaxed);
        return std::future::pending().await;
    }
    let (mut from, mut to) = tokio::io::split(stream);
    let reading = async {
        loop {
            match read_packet(&mut from).await {
                Ok(packet) => told.heard(&packet),
                Err(error) => return Err::<(), _>(error),
            }
        }
    };
    let count = match kind {
        Kind::Pings | Kind::Pubacks => 512,
        Kind::InvalidFilters => 64,
        Kind::ForeignTopics => 8,
        _ => 1,
    };
    let writing = async {
        loop {
            to.write_all(&burst).await?;
            to.flush().await?;
            told.packets.fetch_add(count, Ordering::Relaxed);
            if matches!(kind, Kind::SameClientId) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        #[allow(unreachable_code, reason = "gives the block its type")]
        std::io::Result::Ok(())
    };
    tokio::select! {
        ended = reading => ended?,
        ended = writing => ended?,
    }
    Ok(())
}

/// As little of an MQTT 5 client as measures a broker and not itself.
struct Client {
    stream: TlsStream<TcpStream>,
}

impl Client {
    async fn connect(address: SocketAddr, tls: &Arc<ClientConfig>, id: &str, home: u8) -> Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if home > 0 {
            socket.bind((Ipv4Addr::new(127, 0, 0, home), 0).into())?;
        }
        let tcp = socket.connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut stream = TlsConnector::from(tls.clone()).connect(host(address), tcp).await?;
        stream.write_all(&connect_packet(id)).await?;
        let connack = read_packet(&mut stream).await?;
        ensure!(connack.get(3) == Some(&0), "CONNACK {connack:02x?}");
        Ok(Self { stream })
    }

    async fn subscribe(&mut self, filter: &str) -> Result<()> {
        self.stream.write_all(&subscribe_packet(filter)).await?;
        let suback = read_packet(&mut self.stream).await?;
        ensure!(suback[0] == 0x90 && suback.last() == Some(&1), "SUBACK {suback:02x?}");
        Ok(())
    }

    /// Returns without waiting for the PUBACK.
    async fn publish(&mut self, topic: &str, payload: &[u8]) -> Result<()> {
        self.stream.write_all(&publish_packet(topic, payload, 0x32)).await?;
        Ok(self.stream.flush().await?)
    }

    /// The topic of the next message, which is acknowledged.
    async fn message(&mut self) -> Result<String> {
        loop {
            let packet = read_packet(&mut self.stream).await?;
            if packet[0] >> 4 != 3 {
                ensure!(packet[0] == 0x40, "{packet:02x?}");
                continue;
            }
            let body = &packet[1 + packet[1..].iter().position(|byte| byte & 0x80 == 0).context("a length")? + 1..];
            let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
            let topic = std::str::from_utf8(&body[2..2 + length])?.to_owned();
            let id = &body[2 + length..4 + length];
            self.stream.write_all(&[0x40, 2, id[0], id[1]]).await?;
            return Ok(topic);
        }
    }
}

fn connect_packet(id: &str) -> Vec<u8> {
    // Receive Maximum 1024, as our worker has it.
    let head = b"\0\x04MQTT\x05\x02\0\x3c\x03\x21\x04\0";
    packet(0x10, &[head, &string(id)[..]].concat())
}

fn subscribe_packet(filter: &str) -> Vec<u8> {
    packet(0x82, &[b"\0\x01\0", &string(filter)[..], b"\x01"].concat())
}

fn publish_packet(topic: &str, payload: &[u8], first: u8) -> Vec<u8> {
    packet(first, &[&string(topic)[..], b"\0\x01\0", payload].concat())
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    while length >= 128 {
        packet.push((length % 128) as u8 | 0x80);
        length /= 128;
    }
    packet.push(length as u8);
    packet.extend(body);
    packet
}

async fn read_packet(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<Vec<u8>> {
    let mut packet = vec![stream.read_u8().await?];
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await?;
        packet.push(byte);
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let head = packet.len();
    packet.resize(head + length, 0);
    stream.read_exact(&mut packet[head..]).await?;
    Ok(packet)
}

fn host(address: SocketAddr) -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::from(address.ip()))
}

fn operator_tls(dir: &AssayDir) -> Result<Arc<ClientConfig>> {
    tls(dir, Some("operator"))
}

fn tls(dir: &AssayDir, who: Option<&str>) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.root_pem())?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let config = config.with_root_certificates(roots);
    let Some(who) = who else { return Ok(config.with_no_client_auth().into()) };
    let chain = CertificateDer::pem_file_iter(dir.path().join(format!("{who}.pem")))?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(dir.path().join(format!("{who}.key")))?;
    Ok(config.with_client_auth_cert(chain, key)?.into())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}
