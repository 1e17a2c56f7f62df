//! Accepts TCP connections, takes each through TLS and CONNECT against the clock, and hands it to the broker core.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use assay_wire::{MAX_MESSAGE, Scope};
use mqtt5::broker::client_handler::ClientHandler;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::sys_topics::BrokerStats;
use mqtt5::broker::tls_acceptor::TlsStreamWrapper;
use mqtt5::broker::transport::BrokerTransport;
use mqtt5::broker::{BrokerConfig, ResourceLimits, ResourceMonitor};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{SetOnce, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::guard::{Guard, Peer};
use super::login::LoginDesk;
use super::slots::{Slot, Slots};
use super::{Admit, DRAIN, Places, Tls};
use crate::access::Identity;

/// A silent client is given up after one and a half times this (MQTT 5 §3.1.2.10); so is one that does not read.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Messages on their way to one bootstrapping client.
pub(super) const BOOTSTRAP_LANE: usize = 64;

/// Messages on their way to one device, worker or operator.
const OPERATIONAL_LANE: usize = 256;

/// Requests that a worker may have unacknowledged, if it takes so many: ours takes as many. What is held back here instead, the worker
/// cannot answer with *busy*. Everybody else has the broker core's 64.
const WORKER_WINDOW: u16 = 1024;

/// A message of the protocol, and room for the topic and some MQTT 5 properties; for bootstrapping clients, and for
/// requests of devices. Less than [`assay_mqtt::MAX_PACKET`], what a worker takes.
pub(super) const REQUEST_PACKET: usize = MAX_MESSAGE + 1024;

/// What a device sends is its owner's business, up to this.
const OPERATIONAL_PACKET: usize = 64 * 1024;

/// Topic filters one client may hold at once.
const SUBSCRIPTIONS: usize = 64;

/// How long to wait after the system refused to accept a connection (out of file descriptors, most likely).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Failures to accept that are less than this apart are told as one.
const ACCEPT_WARNING: Duration = Duration::from_secs(60);

/// Whom a listener is for.
pub(super) enum Audience {
    /// Clients without a certificate, each for this long.
    Bootstrapping { lifetime: Duration },
    /// Clients with a certificate of our CA that is admitted at each CONNECT and, where there is a desk, devices that log in.
    Identified { admit: Arc<Admit>, desk: Option<Arc<LoginDesk>> },
}

/// One of the two listeners.
pub(super) struct Listener {
    scope: Scope,
    audience: Audience,
    tls: watch::Receiver<Tls>,
    introduction: Duration,
    slots: Arc<Slots>,
    monitor: Arc<ResourceMonitor>,
    config: BrokerConfig,
    core: Core,
}

/// What both listeners share.
#[derive(Clone)]
pub(super) struct Core {
    pub(super) router: Arc<MessageRouter>,
    pub(super) stats: Arc<BrokerStats>,
    /// Sends when the broker closes.
    pub(super) closing: broadcast::Sender<()>,
    /// Changes when every certificate and password must be admitted anew.
    pub(super) recheck: watch::Sender<()>,
    /// Set when a worker is there for requests.
    pub(super) opened: Arc<SetOnce<()>>,
}

impl Listener {
    pub(super) fn new(
        scope: Scope,
        audience: Audience,
        tls: watch::Receiver<Tls>,
        places: Places,
        introduction: Duration,
        core: Core,
    ) -> Self {
        Self {
            config: mqtt_config(&audience),
            // Rates are not limited here: bootstrapping clients have a budget, a worker must answer them all.
            monitor: Arc::new(ResourceMonitor::new(ResourceLimits {
                max_message_rate_per_client: 0,
                max_bandwidth_per_client: 0,
                ..ResourceLimits::default()
            })),
            scope,
            audience,
            tls,
            introduction,
            slots: Slots::new(places),
            core,
        }
    }

    /// Accepts connections, strangers' once the broker is open, until it closes; then lets those
    /// there are end.
    pub(super) async fn serve(self, tcp: TcpListener, mut closing: broadcast::Receiver<()>) {
        let listener = Arc::new(self);
        if let Audience::Bootstrapping { .. } = listener.audience {
            tokio::select! {
                // The kernel keeps whoever comes before.
                _ = listener.core.opened.wait() => {}
                _ = closing.recv() => return,
            }
        }
        let mut connections = JoinSet::new();
        let mut failed: Option<Instant> = None;
        loop {
            tokio::select! {
                accepted = tcp.accept() => match accepted {
                    Ok((stream, peer)) => match listener.slots.take(peer.ip()) {
                        Some(slot) => {
                            connections.spawn(listener.clone().attend(stream, peer, slot));
                        }
                        None => debug!(%peer, "closed: connections exhausted"),
                    },
                    Err(error) => {
                        if failed.replace(Instant::now()).is_none_or(|last| last.elapsed() > ACCEPT_WARNING) {
                            warn!(%error, "cannot accept connections");
                        }
                        sleep(ACCEPT_RETRY).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        error!(%error, "a connection ended abnormally");
                    }
                }
                _ = closing.recv() => break,
            }
        }
        drop(tcp);
        let all_ended = async { while connections.join_next().await.is_some() {} };
        // What has not ended by then is aborted when `connections` is dropped.
        let _ = timeout(DRAIN, all_ended).await;
    }

    /// One connection, from accept to end.
    async fn attend(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, _slot: Slot) {
        let deadline = Instant::now() + self.introduction;
        let closing = self.core.closing.subscribe();
        // From before the first admission, so that no revocation falls between the two.
        let recheck = self.core.recheck.subscribe();
        let stream = match timeout_at(deadline, self.secure(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return debug!(%peer, "TLS handshake took too long"),
        };
        let Some(client) = self.identify(&stream) else {
            return debug!(%peer, "closed: no usable client certificate");
        };
        let mut config = self.config.clone();
        if client.is_worker() {
            config.max_outbound_inflight = WORKER_WINDOW;
        }
        let guard = Arc::new(Guard::new(self.scope.clone(), client, self.core.clone()));
        let config = config.with_event_handler(guard.clone());
        let handler = ClientHandler::new(
            BrokerTransport::tls(TlsStreamWrapper::new(stream)),
            peer,
            config.into(),
            self.core.router.clone(),
            guard.clone(),
            None,
            self.core.stats.clone(),
            self.monitor.clone(),
            closing,
        );
        let overdue = async {
            tokio::select! {
                () = guard.introduced() => std::future::pending().await,
                () = sleep_until(deadline) => {}
            }
        };
        // The handler ends by itself once its client is cut.
        let unwelcome = async {
            guard.end_when_unwelcome(recheck).await;
            std::future::pending().await
        };
        tokio::select! {
            ended = handler.run() => if let Err(error) = ended {
                debug!(%peer, %error, "connection ended");
            },
            // Nothing is registered in the router before the CONNECT, so the handler may be dropped.
            () = overdue => debug!(%peer, "no CONNECT in time"),
            () = unwelcome => {}
        }
    }

    async fn secure(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        // Without it each reply waits for the peer's delayed acknowledgement: 44 ms instead of 0.2 on loopback.
        stream.set_nodelay(true)?;
        let tls = self.tls.borrow().clone();
        let config = match self.audience {
            Audience::Bootstrapping { .. } => tls.bootstrap,
            Audience::Identified { .. } => tls.operational,
        };
        TlsAcceptor::from(config).accept(stream).await
    }

    /// Who is there; nobody if the listener is for identified clients and this one has shown no certificate, even though TLS
    /// should have seen to that, unless it may log in. A certificate that does not name its holder properly opens no other way.
    fn identify(&self, stream: &TlsStream<TcpStream>) -> Option<Peer> {
        let (admit, desk) = match &self.audience {
            Audience::Bootstrapping { lifetime } => return Some(Peer::Anonymous { lifetime: *lifetime }),
            Audience::Identified { admit, desk } => (admit, desk),
        };
        let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
            return desk.clone().map(Peer::Claimant);
        };
        let identity = Identity::from_certificate(leaf);
        let identity = identity.inspect_err(|error| debug!(%error, "client certificate refused")).ok()?;
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        Some(Peer::Certified {
            identity,
            serial: certificate.raw_serial().to_vec(),
            expires_in: certificate.validity().time_to_expiration()?.unsigned_abs(),
            admit: admit.clone(),
        })
    }
}

/// What the broker core enforces and tells clients in the CONNACK.
fn mqtt_config(audience: &Audience) -> BrokerConfig {
    let common = BrokerConfig {
        maximum_qos: 1,
        max_subscriptions_per_client: SUBSCRIPTIONS,
        server_keep_alive: Some(KEEP_ALIVE),
        session_expiry_interval: Duration::ZERO,
        subscription_identifier_available: false,
        sys_topics_enabled: false,
        topic_alias_maximum: 0,
        ..BrokerConfig::default()
    };
    match audience {
        Audience::Bootstrapping { .. } => BrokerConfig {
            client_channel_capacity: BOOTSTRAP_LANE,
            max_packet_size: REQUEST_PACKET,
            retain_available: false,
            shared_subscription_available: false,
            wildcard_subscription_available: false,
            ..common
        },
        Audience::Identified { .. } => {
            BrokerConfig { client_channel_capacity: OPERATIONAL_LANE, max_packet_size: OPERATIONAL_PACKET, ..common }
        }
    }
}
