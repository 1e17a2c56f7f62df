//! The TLS configurations of the two listeners.
//!
//! Neither resumes sessions. So each connection shows its certificate again, and an expired one is
//! noticed at the next connection. There is no early data that could be replayed. Clients without a
//! certificate leave nothing behind in a session cache.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, ConfigBuilder, Error, RootCertStore, ServerConfig, WantsVerifier};

/// The TLS configurations of both listeners.
#[derive(Clone)]
pub struct Tls {
    /// For the bootstrap listener; see [`bootstrap_tls`].
    pub bootstrap: Arc<ServerConfig>,
    /// For the operational listener; see [`operational_tls`].
    pub operational: Arc<ServerConfig>,
}

/// For the bootstrap listener: the server shows `chain` (leaf first), clients show nothing.
pub fn bootstrap_tls(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, Error> {
    let config = builder(provider())?.with_no_client_auth().with_single_cert(chain, key)?;
    Ok(without_resumption(config))
}

/// Whether a client may do without a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// The TLS handshake fails without one.
    Mandatory,
    /// A client that shows none may log in with user name and password. If a certificate is shown,
    /// it is verified.
    Optional,
}

/// For the operational listener: clients show a certificate for client authentication, with a path
/// to one of `roots`, that is valid now. TLS does not check whether it was revoked; the
/// [doorkeeper](crate::doorkeeper) does, at each CONNECT.
pub fn operational_tls(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
    certificates: ClientCertificates,
) -> Result<ServerConfig, Error> {
    let provider = provider();
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let clients = match certificates {
        ClientCertificates::Mandatory => clients,
        ClientCertificates::Optional => clients.allow_unauthenticated(),
    };
    let clients = clients.build().map_err(|error| Error::General(error.to_string()))?;
    let config =
        builder(provider)?.with_client_cert_verifier(clients).with_single_cert(chain, key)?;
    Ok(without_resumption(config))
}

/// AES-128-GCM with SHA-256 first: most processors have instructions for SHA-256, and none for
/// SHA-384 (docs/performance.md).
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider.into()
}

/// TLS 1.3 and 1.2; nothing older exists in rustls.
fn builder(
    provider: Arc<CryptoProvider>,
) -> Result<ConfigBuilder<ServerConfig, WantsVerifier>, Error> {
    ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    // Without a storage, rustls sends no session tickets either.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ignore_client_order = true;
    config
}
