//! The one MQTT client of Assay: rumqttc's MQTT 5 client, configured in one place.
//!
//! Device, worker and operator tools all connect through [`connect`]. It sets what rumqttc leaves
//! to its user: no Nagle delay, packets as long as our longest message, a small bookkeeping window
//! (the default reserves 14 MB for each client), a clean session, and no topic aliases. It does not
//! wait before it reconnects, and it does not subscribe again; the callers do both, with
//! [`Backoff`].
#![warn(missing_docs)]

mod backoff;
pub use backoff::Backoff;

mod url;
pub use url::{BrokerUrl, BrokerUrlError};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use rumqttc;
use rumqttc::v5::{AsyncClient, EventLoop, MqttOptions};
use rumqttc::{NetworkOptions, TlsConfiguration, Transport};
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};

/// The longest packet accepted from a broker, in bytes: a message, its topic and its properties.
pub const MAX_PACKET: u32 = assay_wire::MAX_MESSAGE as u32 + 4096;

/// How one client behaves.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its MQTT client id.
    pub id: String,
    /// How many of its QoS 1 messages may wait for their acknowledgement. Also how many requests
    /// are queued before the sender has to wait.
    pub window: u16,
    /// How many QoS 1 messages the broker may send before the first is acknowledged.
    pub receive_maximum: u16,
    /// Whether the user acknowledges each incoming message itself, with `client.ack`.
    pub manual_acks: bool,
}

/// User name and password, for a broker that identifies its clients by them. Its `Debug` does not
/// show the password.
#[derive(Clone)]
pub struct Login {
    /// The user name.
    pub user_name: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, ..)", self.user_name)
    }
}

/// Prepares a connection; the first poll of the event loop opens it.
///
/// `tls` is used if the URL asks for TLS. Never await a method of the client inside the loop that
/// polls: once the window is full, method and loop wait for each other. Use `try_…` there, or
/// another task.
pub fn connect(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    client: Client,
) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(client.id, broker.host(), broker.port());
    options
        .set_clean_start(true)
        .set_keep_alive(KEEP_ALIVE)
        .set_connection_timeout(CONNECT_TIMEOUT.as_secs())
        .set_max_packet_size(Some(MAX_PACKET))
        .set_receive_maximum(Some(client.receive_maximum))
        .set_outgoing_inflight_upper_limit(client.window)
        .set_manual_acks(client.manual_acks);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    if broker.is_tls() {
        options
            .set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::clone(tls))));
    }
    AsyncClient::new(options, usize::from(client.window))
}

/// Like [`connect`], with user name and password. Use it with TLS, because anybody who reads the
/// connection can use them.
pub fn connect_with_login(
    broker: &BrokerUrl,
    tls: &Arc<ClientConfig>,
    client: Client,
    login: Login,
) -> (AsyncClient, EventLoop) {
    let (client, mut events) = connect(broker, tls, client);
    events.options.set_credentials(login.user_name, login.password);
    (client, events)
}

/// A TLS configuration that trusts `roots` alone. It presents a client certificate if there is one.
///
/// # Errors
/// The provider supports none of TLS 1.2 and 1.3.
pub fn tls_config(
    provider: Arc<CryptoProvider>,
    roots: RootCertStore,
    client_certificate: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match client_certificate {
        Some(resolver) => config.with_client_cert_resolver(resolver),
        None => config.with_no_client_auth(),
    })
}

/// Keeps a NAT's mapping alive (RFC 4787 asks for at least two minutes) and finds a dead peer in
/// about one minute.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// For TCP, TLS (with the signature of a slow TPM) and CONNECT together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        let login = Login { user_name: "pump-17".into(), password: "hunter2".into() };
        assert_eq!(format!("{login:?}"), "Login(pump-17, ..)");
    }
}
