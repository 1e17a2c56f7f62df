//! What a server and a worker run with, read from the CA's directory: all of it, or nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use assay_broker_plugin::access::Identity;
use assay_broker_plugin::certificate;
use assay_broker_plugin::embedded::{ClientCertificates, Tls, bootstrap_tls, operational_tls};
use assay_mqtt::BrokerUrl;
use assay_server::directory::{Credentials, Directory};
use assay_server::pipeline::Outfit;
use assay_wire::Flow;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

/// What `assay serve` runs with.
pub(super) struct ServerOutfit {
    pub(super) worker: Outfit,
    pub(super) tls: Tls,
}

impl ServerOutfit {
    /// Reads it for listeners at these addresses.
    pub(super) fn read(directory: &Directory, listeners: [SocketAddr; 2]) -> Result<Self> {
        warn_of_exposed(directory);
        let server = ServerCredentials::check(directory, listeners)?;
        let worker = WorkerCredentials::check(directory)?;
        let ca = directory.ca()?;
        directory.store()?.record_scope(&ca.scope)?;
        let certificates = match ca.profile.offers(Flow::SharedKey) {
            true => ClientCertificates::Optional,
            false => ClientCertificates::Mandatory,
        };
        let tls =
            server.tls(directory.roots()?, certificates).context("server.pem and server.key")?;
        let worker =
            Outfit { ca: Arc::new(ca), tls: client_tls(worker.0, directory.roots()?, "worker")? };
        Ok(Self { worker, tls })
    }
}

/// What a worker runs with; `broker_ca` is the root of its broker, if that is not the CA's.
pub(super) fn worker_outfit(directory: &Directory, broker_ca: Option<&Path>) -> Result<Outfit> {
    warn_of_exposed(directory);
    let roots = broker_roots(directory, broker_ca)?;
    // Whether they are good is for the broker to say, which may know another CA.
    let credentials = directory.credentials("worker")?;
    let ca = directory.ca()?;
    directory.store()?.record_scope(&ca.scope)?;
    Ok(Outfit { ca: Arc::new(ca), tls: client_tls(credentials, roots, "worker")? })
}

/// What vouches for a broker: `broker_ca`, or else the CA's own root.
pub(super) fn broker_roots(
    directory: &Directory,
    broker_ca: Option<&Path>,
) -> Result<RootCertStore> {
    match broker_ca {
        Some(file) => read_roots(file),
        None => directory.roots(),
    }
}

/// The directory as it is now, but with the scope that is served, and the settings that were
/// changed and have to wait for a restart.
pub(super) fn reread(directory: &Directory) -> Result<(Directory, Vec<&'static str>)> {
    let fresh = directory.reopen()?;
    let (was, is) = (directory.config(), fresh.config());
    // Else a restart would be advised that fails.
    fresh.store()?.may_serve(&is.scope)?;
    let changed = [
        ("scope", was.scope != is.scope),
        ("broker.bootstrap", was.bootstrap != is.bootstrap),
        ("broker.operational", was.operational != is.operational),
        ("broker.balancers", was.balancers != is.balancers),
        ("broker.limits", was.limits != is.limits),
    ];
    let waiting =
        changed.into_iter().filter_map(|(setting, changed)| changed.then_some(setting)).collect();
    let scope = was.scope.clone();
    Ok((fresh.with_scope(scope), waiting))
}

fn warn_of_exposed(directory: &Directory) {
    for file in directory.exposed() {
        let file = file.display();
        warn!(%file, "every user of this machine can read a secret: chmod o= {file}; if another user has read it, replace it");
    }
}

/// The TLS configuration of a client of ours; `holder` says which in an error.
pub(super) fn client_tls(
    credentials: Credentials,
    roots: RootCertStore,
    holder: &str,
) -> Result<Arc<ClientConfig>> {
    let certified = CertifiedKey::from_der(credentials.chain, credentials.key, &provider())
        .with_context(|| format!("{holder}.pem and {holder}.key"))?;
    let resolver = Arc::new(SingleCertAndKey::from(certified));
    Ok(Arc::new(assay_mqtt::tls_config(provider(), roots, Some(resolver))?))
}

/// That of one who shows no certificate.
pub(super) fn nobodys_tls(roots: RootCertStore) -> Result<Arc<ClientConfig>> {
    Ok(Arc::new(assay_mqtt::tls_config(provider(), roots, None)?))
}

fn read_roots(file: &Path) -> Result<RootCertStore> {
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
    ensure!(
        listener.port() != 0,
        "assay.toml leaves the port of {listener} open; say --broker URL"
    );
    Ok(format!("mqtts://{}:{}", local_address(listener)?, listener.port()).parse()?)
}

fn local_address(listener: SocketAddr) -> Result<Ipv4Addr> {
    match listener.ip() {
        ip if ip.is_unspecified() => Ok(Ipv4Addr::LOCALHOST),
        IpAddr::V4(ip) => Ok(ip),
        // rumqttc takes no IPv6 address.
        IpAddr::V6(_) => bail!("{listener}: listen on an IPv4 address, or on [::] for both"),
    }
}

/// The built-in broker's certificate: it leads to the root, is valid now, and names each address at
/// which this machine reaches a listener (RFC 5280 §6.1, RFC 9525 §6.5), as the worker does.
struct ServerCredentials(Credentials);

impl ServerCredentials {
    fn check(directory: &Directory, listeners: [SocketAddr; 2]) -> Result<Self> {
        let server = directory.credentials("server")?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(directory.roots()?.into(), provider())
                .build()?;
        for listener in listeners {
            let address = local_address(listener)?;
            let name = ServerName::from(IpAddr::from(address));
            let (leaf, issuers) =
                server.chain.split_first().context("server.pem holds no certificate")?;
            verifier.verify_server_cert(leaf, issuers, &name, &[], UnixTime::now()).with_context(
                || {
                    format!(
                        "server.pem is not a certificate for {address} that leads to root.pem; \
                         listen elsewhere, or run assay identity renew server --server-name \
                         {address}"
                    )
                },
            )?;
        }
        Ok(Self(server))
    }

    fn tls(
        self,
        roots: RootCertStore,
        certificates: ClientCertificates,
    ) -> Result<Tls, rustls::Error> {
        let Credentials { chain, key } = self.0;
        let bootstrap = bootstrap_tls(chain.clone(), key.clone_key())?.into();
        let operational = operational_tls(chain, key, roots, certificates)?.into();
        Ok(Tls { bootstrap, operational })
    }
}

/// A worker's certificate that the built-in broker will take: it leads to the root, is valid now,
/// and names a worker.
struct WorkerCredentials(Credentials);

impl WorkerCredentials {
    fn check(directory: &Directory) -> Result<Self> {
        let worker = directory.credentials("worker")?;
        let verifier =
            WebPkiClientVerifier::builder_with_provider(directory.roots()?.into(), provider())
                .build()?;
        let (leaf, issuers) =
            worker.chain.split_first().context("worker.pem holds no certificate")?;
        let verified = verifier.verify_client_cert(leaf, issuers, UnixTime::now());
        verified.context("worker.pem is not a client certificate that leads to root.pem")?;
        let identity = certificate::identity(leaf);
        ensure!(
            matches!(identity, Ok(Identity::Worker)),
            "worker.pem is not a worker's certificate: {identity:?}"
        );
        Ok(Self(worker))
    }
}

fn provider() -> Arc<CryptoProvider> {
    rustls::crypto::aws_lc_rs::default_provider().into()
}
