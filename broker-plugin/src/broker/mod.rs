//! The embedded MQTT broker: two TLS listeners in front of one router, for one machine without a broker of its own.
//!
//! The *bootstrap* listener asks for no client certificate and lets each client speak on two topics; the *operational*
//! listener admits certificates of our CA and, if so configured, devices that log in with user name and password. Routing and the MQTT state machine are the `mqtt5` crate's; accepting
//! connections, TLS, identities and access ([`crate::access`]) are ours, because its own TLS listener awaits each handshake
//! in the accept loop and tells its policy neither the certificate nor the retain flag.
//!
//! Sessions end with their connection and nothing is written to disk: devices retry, and workers publish what is retained anew.

mod guard;
mod listener;
mod login;
mod slots;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use assay_ca_core::CLAIM_LIFETIME;
use assay_wire::Scope;
use mqtt5::broker::router::MessageRouter;
use mqtt5::broker::storage::QueueLimits;
use mqtt5::broker::sys_topics::BrokerStats;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{SetOnce, broadcast, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::access::Identity;
use listener::{Audience, Core, Listener};
use login::LoginDesk;
pub use login::{LoggedIn, Login};
pub use tls::{ClientCertificates, bootstrap_tls, operational_tls};

/// Asks whether a certificate is still good: its serial number's content octets, and whom it names.
/// Called on a thread that may block, once per CONNECT with a client certificate, and for devices again at each recheck.
pub type Admit = dyn Fn(&Identity, &[u8]) -> Result<(), Denial> + Send + Sync;

/// Why somebody is not let in; the text is for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Nor will be with the same certificate or password.
    Refused(String),
    /// It could not be found out; the client may ask again, and one that is in may stay for now.
    Unknown(String),
}

/// What the broker is started with.
pub struct EmbeddedBrokerConfig {
    /// Where clients without a certificate connect; port 0 takes a free one.
    pub bootstrap: SocketAddr,
    /// Where devices, workers and operators connect.
    pub operational: SocketAddr,
    /// May be replaced while the broker runs.
    pub tls: Tls,
    /// The one scope that is served.
    pub scope: Scope,
    /// Consulted at each CONNECT with a client certificate on the operational listener.
    pub admit: Arc<Admit>,
    /// Consulted at each CONNECT without one, which takes [`ClientCertificates::Optional`] in
    /// `tls.operational`; `None` lets in nobody without a certificate.
    pub login: Option<Arc<Login>>,
    /// How much is held at once.
    pub limits: Limits,
}

/// How the listeners shake hands.
#[derive(Clone)]
pub struct Tls {
    /// For the bootstrap listener; see [`bootstrap_tls`].
    pub bootstrap: Arc<ServerConfig>,
    /// For the operational listener; see [`operational_tls`].
    pub operational: Arc<ServerConfig>,
}

/// How many connections each listener holds, and how long they may take and stay.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of the bootstrap listener.
    pub bootstrap: Places,
    /// Of the operational listener.
    pub operational: Places,
    /// From TCP accept to the end of the TLS handshake and the arrival of the whole CONNECT packet.
    pub introduction: Duration,
    /// How long a client without a certificate may stay.
    pub bootstrapping: Duration,
}

/// How many connections one listener holds, including those still in the TLS handshake. Beyond it, new ones are closed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// From all addresses together.
    pub total: usize,
    /// Per IPv4 address or IPv6 /64 network (what one subscriber is given, RFC 6177).
    pub per_address: usize,
}

impl Default for Limits {
    /// 4096 connections without a certificate, which need a second or two each, and 12288 with one, which stay: 10,000 devices and
    /// room for those that come back before their old connection is given up. From one address (a factory behind one NAT gateway)
    /// 256 and 1024. 10 s let a device sign its part of the TLS handshake on a slow TPM, and are what the broker core allows a
    /// CONNECT. A device may want its connection as long as its claim is good, and a minute for the rest.
    fn default() -> Self {
        Self {
            bootstrap: Places { total: 4096, per_address: 256 },
            operational: Places { total: 12288, per_address: 1024 },
            introduction: Duration::from_secs(10),
            bootstrapping: CLAIM_LIFETIME.unsigned_abs() + Duration::from_secs(60),
        }
    }
}

/// File descriptors for everything but the listeners' connections: the store, the worker's own connection, the runtime.
const RESERVE: usize = 256;

impl Limits {
    /// What `descriptors` suffice for, one per connection. Bootstrapping clients come off worse, but keep a quarter.
    fn within(self, descriptors: usize) -> Self {
        let available = descriptors.saturating_sub(RESERVE);
        let operational = self.operational.total.min(available - available / 4);
        let bootstrap = self.bootstrap.total.min(available - operational);
        Self {
            bootstrap: Places { total: bootstrap, ..self.bootstrap },
            operational: Places { total: operational, ..self.operational },
            ..self
        }
    }

    /// The same for as many descriptors as the system lets this process have.
    fn within_system(self) -> io::Result<Self> {
        let descriptors = rlimit::increase_nofile_limit(u64::MAX)?;
        let limits = self.within(usize::try_from(descriptors).unwrap_or(usize::MAX));
        let (bootstrap, operational) = (limits.bootstrap.total, limits.operational.total);
        if (bootstrap, operational) != (self.bootstrap.total, self.operational.total) {
            warn!(descriptors, bootstrap, operational, "fewer connections than planned, for want of file descriptors");
        }
        Ok(limits)
    }
}

/// What waits for one client whose delivery lane is full: some seconds of requests for a worker that has fallen behind.
/// Beyond it the oldest is dropped, and its sender tries again.
const BACKLOG: QueueLimits = QueueLimits { max_messages: 4096, max_bytes: 16 * 1024 * 1024 };

/// How often the router forgets the queues of clients that left. It keeps about 0.5 kB for each until then.
const SWEEP: Duration = Duration::from_secs(5);

/// How long connections may take to end by themselves at shutdown.
pub const DRAIN: Duration = Duration::from_secs(2);

/// A running broker. Dropping it ends both listeners and all connections at once.
pub struct EmbeddedBroker {
    bootstrap: SocketAddr,
    operational: SocketAddr,
    core: Core,
    tls: watch::Sender<Tls>,
    listeners: JoinSet<()>,
    sweeper: JoinSet<()>,
}

impl EmbeddedBroker {
    /// Binds both listeners and serves them on the current tokio runtime until shutdown; the
    /// bootstrap listener only once it is [opened](Self::open). Raises the process's limit of file
    /// descriptors as far as the system allows, and holds fewer connections than configured if that
    /// is not enough.
    pub async fn start(config: EmbeddedBrokerConfig) -> io::Result<Self> {
        let router = Arc::new(MessageRouter::new().with_fallback_queue_limits(BACKLOG));
        let core = Core {
            router: router.clone(),
            stats: Arc::new(BrokerStats::new()),
            closing: broadcast::Sender::new(1),
            recheck: watch::Sender::new(()),
            opened: Arc::new(SetOnce::new()),
        };
        let tls = watch::Sender::new(config.tls);
        let mut listeners = JoinSet::new();
        let limits = config.limits.within_system()?;
        let mut listen = |tcp: TcpListener, audience, places| {
            let address = tcp.local_addr()?;
            let scope = config.scope.clone();
            let listener = Listener::new(scope, audience, tls.subscribe(), places, limits.introduction, core.clone());
            listeners.spawn(listener.serve(tcp, core.closing.subscribe()));
            io::Result::Ok(address)
        };
        let bootstrap = TcpListener::bind(config.bootstrap).await?;
        let operational = TcpListener::bind(config.operational).await?;
        let strangers = Audience::Bootstrapping { lifetime: limits.bootstrapping };
        let bootstrap = listen(bootstrap, strangers, limits.bootstrap)?;
        let known = Audience::Identified { admit: config.admit, desk: config.login.map(LoginDesk::new).map(Arc::new) };
        let operational = listen(operational, known, limits.operational)?;

        let mut sweeper = JoinSet::new();
        sweeper.spawn(sweep(router));
        Ok(Self { bootstrap, operational, core, tls, listeners, sweeper })
    }

    /// Where the bootstrap listener accepts connections.
    pub fn bootstrap_addr(&self) -> SocketAddr {
        self.bootstrap
    }

    /// Where the operational listener accepts connections.
    pub fn operational_addr(&self) -> SocketAddr {
        self.operational
    }

    /// Lets the bootstrap listener accept connections: those that wait, and all that come. Until
    /// then a request would find no worker and be lost, though it was acknowledged; for the same
    /// reason those of devices with a certificate wait until then.
    pub fn open(&self) {
        // It may be open already.
        _ = self.core.opened.set(());
    }

    /// Has later connections shake hands in this way; those that are there stay.
    pub fn replace_tls(&self, tls: Tls) {
        self.tls.send_replace(tls);
    }

    /// Asks `admit` or `login` about every connected device again, and cuts those that it no longer lets in. Returns at once.
    pub fn recheck(&self) {
        self.core.recheck.send_replace(());
    }

    /// Stops accepting, tells MQTT 5 clients that the server is shutting down, and returns when every connection has ended.
    pub async fn shutdown(mut self) {
        self.sweeper.abort_all();
        // No receiver is left when both listeners have ended already.
        let _ = self.core.closing.send(());
        while let Some(ended) = self.listeners.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "listener ended abnormally");
            }
        }
    }
}

/// Forgets the queues of clients that left, for ever.
async fn sweep(router: Arc<MessageRouter>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        router.sweep_sessions().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scarce_descriptors_are_missing_from_the_bootstrap_listener_first() {
        for (descriptors, bootstrap, operational) in [
            (usize::MAX, 4096, 12288),
            (16640, 4096, 12288),
            (16639, 4095, 12288),
            (6000, 1436, 4308),
            (4096, 960, 2880),
            (1024, 192, 576),
            (256, 0, 0),
            (0, 0, 0),
        ] {
            let limits = Limits::default().within(descriptors);
            assert_eq!((limits.bootstrap.total, limits.operational.total), (bootstrap, operational), "{descriptors}");
        }
    }

    #[tokio::test]
    async fn queue_of_a_client_that_left_is_forgotten() {
        let router = Arc::new(MessageRouter::new());
        let queue = Arc::downgrade(&router.queue_handle("left"));
        assert_eq!(queue.strong_count(), 1, "the router keeps it for now");
        let sweeper = tokio::spawn(sweep(router));
        tokio::time::sleep(SWEEP + Duration::from_secs(1)).await;
        assert_eq!(queue.strong_count(), 0);
        sweeper.abort();
    }
}
