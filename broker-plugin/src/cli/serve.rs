//! `assay serve` and `assay worker`: the processes that stay.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use assay_broker_plugin::broker::{self, ClientCertificates, EmbeddedBroker, EmbeddedBrokerConfig, Limits};
use assay_broker_plugin::directory::Directory;
use assay_broker_plugin::worker::{self, WorkerConfig};
use assay_mqtt::BrokerUrl;
use assay_wire::Flow;
use clap::Args;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::gate;

#[derive(Args)]
pub(crate) struct Serve {
    /// Listen here for unprovisioned devices, instead of what assay.toml says; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    bootstrap: Option<SocketAddr>,
    /// Listen here for certificates of this CA, instead of what assay.toml says; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    operational: Option<SocketAddr>,
}

#[derive(Args)]
pub(crate) struct Worker {
    /// Any MQTT 5 broker: `mqtts://HOST:PORT`, or `mqtt://HOST:PORT` without TLS
    #[arg(long)]
    broker: BrokerUrl,
    /// Root certificate of the broker, if it is not this CA's
    #[arg(long, value_name = "FILE")]
    broker_ca: Option<PathBuf>,
}

impl Serve {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        start(async {
            let config = directory.config();
            let server = directory.credentials("server")?;
            let ca = Arc::new(directory.ca()?);
            let (certificates, login) = if ca.profile.offers(Flow::SharedKey) {
                (
                    ClientCertificates::Optional,
                    Some(gate::login(ca.clone(), gate::Records::open(&directory.database())?)),
                )
            } else {
                (ClientCertificates::Mandatory, None)
            };
            let (server_key, certificate) = (server.key.clone_key(), server.chain[0].clone());
            let broker = EmbeddedBroker::start(EmbeddedBrokerConfig {
                bootstrap: self.bootstrap.unwrap_or(config.bootstrap),
                operational: self.operational.unwrap_or(config.operational),
                bootstrap_tls: broker::bootstrap_tls(server.chain.clone(), server_key)?.into(),
                operational_tls: broker::operational_tls(server.chain, server.key, directory.root()?, certificates)?
                    .into(),
                scope: config.scope.clone(),
                admit: gate::admit(gate::Records::open(&directory.database())?),
                login,
                limits: Limits::default(),
            })
            .await
            .context("cannot listen; another process may hold the port, see --bootstrap and --operational")?;

            let bootstrap = reachable(broker.bootstrap_addr(), &certificate)?;
            let operational = reachable(broker.operational_addr(), &certificate)?;
            let worker_config = WorkerConfig {
                broker: operational.clone(),
                tls: client_tls(directory, directory.roots()?, "worker")?,
                database: directory.database(),
            };
            let ready = once(move || println!("bootstrap {bootstrap}\noperational {operational}"));
            tokio::select! {
                stopped = worker::run(ca, worker_config, ready) => stopped?,
                () = gate::cut_revoked(directory.store()?, || broker.recheck()) => {}
                () = interrupted() => info!("stopping"),
            }
            broker.shutdown().await;
            Ok(())
        })
    }
}

impl Worker {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        start(async {
            let roots = match &self.broker_ca {
                Some(file) => read_roots(file)?,
                None => directory.roots()?,
            };
            let config = WorkerConfig {
                broker: self.broker,
                tls: client_tls(directory, roots, "worker")?,
                database: directory.database(),
            };
            let ready = once(|| println!("ready"));
            tokio::select! {
                stopped = worker::run(Arc::new(directory.ca()?), config, ready) => stopped?,
                () = interrupted() => info!("stopping"),
            }
            Ok(())
        })
    }
}

/// Runs a process that stays, with its log on stderr (`ASSAY_LOG` sets the level).
fn start(work: impl Future<Output = Result<()>>) -> Result<()> {
    let filter = EnvFilter::builder().with_env_var("ASSAY_LOG").try_from_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new("info,mqtt5=warn")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// The TLS configuration of a client of ours, with its certificate from the CA's directory.
pub(super) fn client_tls(directory: &Directory, roots: RootCertStore, holder: &str) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let credentials = directory.credentials(holder)?;
    let certified = CertifiedKey::from_der(credentials.chain, credentials.key, &provider)?;
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    Ok(Arc::new(assay_mqtt::tls_config(provider, roots, Some(resolver))?))
}

pub(super) fn read_roots(file: &PathBuf) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read certificates in PEM from {}", file.display()))?;
    for certificate in certificates {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// How this machine reaches a listener of its own.
pub(super) fn local_url(listener: SocketAddr) -> Result<BrokerUrl> {
    Ok(format!("mqtts://{}:{}", local_address(listener)?, listener.port()).parse()?)
}

fn local_address(listener: SocketAddr) -> Result<Ipv4Addr> {
    ensure!(listener.port() != 0, "assay.toml leaves the port of {listener} open; say --broker URL");
    match listener.ip() {
        ip if ip.is_unspecified() => Ok(Ipv4Addr::LOCALHOST),
        IpAddr::V4(ip) => Ok(ip),
        // rumqttc takes no IPv6 address.
        IpAddr::V6(_) => bail!("{listener}: listen on an IPv4 address, or on [::] for both"),
    }
}

/// The same, by an address that the broker's certificate names: the worker connects there, too.
fn reachable(listener: SocketAddr, certificate: &CertificateDer<'_>) -> Result<BrokerUrl> {
    let ip = local_address(listener)?;
    let (_, certificate) = X509Certificate::from_der(certificate)?;
    let names = certificate.subject_alternative_name()?.context("server.pem names no host")?;
    let named = names.value.general_names.iter().any(|name| *name == GeneralName::IPAddress(&ip.octets()));
    ensure!(named, "server.pem does not name {ip}; listen elsewhere, or make the CA with --server-name {ip}");
    local_url(listener)
}

/// Makes every call but the first do nothing.
fn once(work: impl Fn()) -> impl Fn() {
    let done = std::sync::Once::new();
    move || done.call_once(&work)
}

async fn interrupted() {
    // Unwrap safety: these signals can always be listened for on Unix.
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
