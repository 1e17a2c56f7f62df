//! Provisioning while a thousand hostile clients of one kind attack the broker.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use assay_ca_core::{Assurance, CertificateFacts, unchecked};
use assay_store::sqlite::Sqlite;
use assay_store::{Act, Entry, Recorded};
use assay_tests::{AssayDir, AssayServer};
use assay_wire::DeviceId;
use aws_lc_rs::digest::{SHA256, digest};
use clap::ValueEnum;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair,
    PublicKeyData, SanType, SerialNumber,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::address;
use super::client::{
    connect_packet, host, publish_packet, read_packet, subscribe_packet, tls, tls_builder,
};

/// A kind of hostile client: a stranger on the bootstrap listener, a client that does not get that
/// far, or a client with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
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
    CertifiedNeverReads,
    CertifiedFilters,
    CertifiedSameClientId,
    CertifiedForeignTopics,
    CertifiedPings,
}

impl Kind {
    fn is_certified(self) -> bool {
        use Kind::*;
        matches!(
            self,
            CertifiedNeverReads
                | CertifiedFilters
                | CertifiedSameClientId
                | CertifiedForeignTopics
                | CertifiedPings
        )
    }
}

/// Measures all kinds, or only `kinds`.
pub(super) fn hostile(runtime: &Runtime, kinds: &[Kind], quick: bool) -> Result<Value> {
    let bin =
        std::env::current_exe()?.parent().context("a program is in a directory")?.to_path_buf();
    let fleet = bin.join("assay-fleet");
    let (clients, devices) = if quick { (20, 60) } else { (1000, 10_000) };
    let mut rows = Vec::new();
    let mut best = 0.0;
    let is_wanted = |kind: &&Kind| kinds.is_empty() || **kind == Kind::None || kinds.contains(kind);
    for kind in Kind::value_variants().iter().filter(is_wanted) {
        let dir = AssayDir::init()?;
        for file in
            String::from_utf8(Command::new(&fleet).arg("--vendor").output()?.stdout)?.lines()
        {
            ensure!(
                dir.assay(&["trust", "add", "--admit", file])?.output()?.status.success(),
                "{file}"
            );
        }
        let server = AssayServer::start(&dir)?;
        let (listener, tls) = match kind.is_certified() {
            _ if *kind == Kind::CertifiedSameClientId => {
                (&server.operational, vec![devices_tls(&dir, 1)?.remove(0); clients])
            }
            true => (&server.operational, devices_tls(&dir, clients)?),
            false => (&server.bootstrap, vec![tls(&dir, None)?; clients]),
        };
        let told = Arc::new(Told::default());
        let attack = runtime.spawn(attack(*kind, address(listener)?, tls, told.clone()));
        std::thread::sleep(Duration::from_secs(if quick { 1 } else { 5 }));
        let report = honest(&fleet, &server, dir.root_pem(), devices)?;
        attack.abort();
        let number = |pointer: &str| {
            report.pointer(pointer).and_then(Value::as_f64).context("a number in the report")
        };
        let (rate, p99) = (number("/devices_per_second")?, number("/latency_ms/device/p99")?);
        if *kind == Kind::None {
            best = rate;
        }
        let (packets, codes) = told.summary();
        let mib = server.rss_kib()? / 1024;
        eprintln!(
            "{kind:?}: {rate:.0} devices/s ({:.2}), p99 {p99:.0} ms, {mib} MiB; sent {packets}; \
             {codes}",
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
    command
        .args([
            "--json",
            "--devices",
            &devices.to_string(),
            "--broker",
            &server.bootstrap,
            "--ca-root",
        ])
        .arg(root);
    let output = command.stderr(Stdio::null()).output()?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())
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
        *self
            .codes
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .entry(code)
            .or_default() += 1;
    }

    fn summary(&self) -> (u64, String) {
        let codes = self.codes.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut texts: Vec<_> =
            codes.into_iter().map(|(code, count)| format!("{code} ×{count}")).collect();
        texts.push(format!("closed ×{}", self.closed.load(Ordering::Relaxed)));
        texts.push(format!("not let in ×{}", self.refused.load(Ordering::Relaxed)));
        (self.packets.load(Ordering::Relaxed), texts.join(", "))
    }
}

async fn attack(kind: Kind, address: SocketAddr, tls: Vec<Arc<ClientConfig>>, told: Arc<Told>) {
    if kind == Kind::None {
        return std::future::pending().await;
    }
    let mut all = JoinSet::new();
    for (number, tls) in tls.into_iter().enumerate() {
        let told = told.clone();
        all.spawn(async move {
            // The clients are in sixteen networks. The honest devices are in another.
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

/// The device id of a client. Each certificate is good for one device id.
fn device_name(kind: Kind, number: usize) -> String {
    format!("hostile-{}", if kind == Kind::CertifiedSameClientId { 0 } else { number })
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
        kind if kind.is_certified() => device_name(kind, number),
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
        Kind::InvalidFilters => {
            (0..64).flat_map(|_| subscribe_packet("a\u{1b}[2J\nforged/#/x")).collect()
        }
        Kind::ForeignTopics | Kind::CertifiedForeignTopics => (0..8)
            .flat_map(|_| publish_packet("device/v1/default/pump/x", &[7; 1000], 0x32))
            .collect(),
        Kind::Pings | Kind::CertifiedPings => [0xc0, 0].repeat(512),
        Kind::Pubacks => [0x40, 2, 0, 1].repeat(512),
        Kind::Retained => publish_packet(&request, b"retained", 0x33),
        Kind::NeverReads => {
            let requests =
                (0..32).flat_map(|_| publish_packet(&request, &[number as u8; 1000], 0x32));
            [subscribe_packet(&reply), requests.collect()].concat()
        }
        Kind::CertifiedNeverReads => {
            let own = format!("device/v1/default/{id}/x");
            let to_itself =
                (0..512).flat_map(|_| publish_packet(&own, &[number as u8; 1000], 0x32));
            [subscribe_packet(&own), to_itself.collect()].concat()
        }
        Kind::CertifiedFilters => (0..64)
            .flat_map(|filter| subscribe_packet(&format!("device/v1/default/{id}/+/{filter}/#")))
            .collect(),
        _ => [0xc0, 0].to_vec(),
    };
    if kind == Kind::CertifiedFilters {
        stream.write_all(&burst).await?;
        told.packets.fetch_add(64, Ordering::Relaxed);
        loop {
            told.heard(&read_packet(&mut stream).await?);
        }
    }
    if kind == Kind::CertifiedNeverReads {
        stream.write_all(&burst).await?;
        stream.flush().await?;
        told.packets.fetch_add(513, Ordering::Relaxed);
        // The broker cuts the connection meanwhile. Its last packets are read after that.
        tokio::time::sleep(Duration::from_secs(1)).await;
        loop {
            told.heard(&read_packet(&mut stream).await?);
        }
    }
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
        Kind::Pings | Kind::Pubacks | Kind::CertifiedPings => 512,
        Kind::InvalidFilters => 64,
        Kind::ForeignTopics | Kind::CertifiedForeignTopics => 8,
        _ => 1,
    };
    let writing = async {
        loop {
            to.write_all(&burst).await?;
            to.flush().await?;
            told.packets.fetch_add(count, Ordering::Relaxed);
            if matches!(kind, Kind::SameClientId | Kind::CertifiedSameClientId) {
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

/// Devices with certificates that are on record.
fn devices_tls(dir: &AssayDir, count: usize) -> Result<Vec<Arc<ClientConfig>>> {
    let file = |name: &str| fs::read_to_string(dir.path().join(name));
    let issuer =
        Issuer::from_ca_cert_pem(&file("issuing.pem")?, KeyPair::from_pem(&file("issuing.key")?)?)?;
    let issuing = CertificateDer::from_pem_slice(file("issuing.pem")?.as_bytes())?;
    let mut store = Sqlite::open(&dir.path().join("assay.db"))?;
    let (key, now) = (KeyPair::generate()?, OffsetDateTime::now_utc());
    let mut devices = Vec::new();
    for number in 0..count {
        let device_id: DeviceId = format!("hostile-{number}").parse()?;
        let (mut serial, mut ek_id) = ([0x40; 16], [0; 32]);
        serial[12..].copy_from_slice(&u32::try_from(number)?.to_be_bytes());
        ek_id[..16].copy_from_slice(&serial);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device_id.as_str());
        params.subject_alt_names =
            vec![SanType::URI(format!("urn:assay:device:default:{device_id}").try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let der = params.signed_by(&key, &issuer)?.der().clone();
        let facts = CertificateFacts {
            serial,
            not_before: now,
            not_after: now + time::Duration::DAY,
            ek_id: ek_id.into(),
            device_id,
            ik_id: digest(&SHA256, &key.subject_public_key_info()).as_ref().try_into()?,
            assurance: Assurance::EnrolmentList,
            issued_at: now,
            confirm_by: None,
        };
        let act = Act::Certify(unchecked::issued(facts, der.to_vec()));
        let entry = Entry { act, basis: None, audit: None };
        let recorded = store.record(&"default".parse()?, &[entry])?;
        ensure!(recorded == [Recorded::Done]);
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        devices
            .push(tls_builder(dir)?.with_client_auth_cert(vec![der, issuing.clone()], key)?.into());
    }
    Ok(devices)
}
