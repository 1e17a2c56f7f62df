//! The embedded MQTT broker: two TLS listeners in front of one router, for one machine without a
//! broker of its own.
//!
//! The *bootstrap* listener asks for no client certificate and lets each client speak on two
//! topics; the *operational* listener admits certificates of our CA and, if so configured, devices
//! that log in with user name and password. The bytes are the `rmqtt-codec` crate's; all else is
//! ours, and small because we need little: QoS 0 and 1, sessions that end with their connection,
//! nothing on disk. Devices retry, and workers publish what is retained anew.
//!
//! | file | knows |
//! |---|---|
//! | `packet` | what MQTT 5 and 3.1.1 allow in a packet |
//! | `filters`, `lane`, `router` | who listens to what, and what waits for whom; nothing in there waits for anybody |
//! | `session` | what a connected client may do; no I/O |
//! | `admission`, `login` | who a client is, and whether it is welcome |
//! | `places`, and `meter` of this crate | how much each may take |
//! | `connection`, `listener`, `tls` | bytes and clocks |

mod admission;
mod connection;
mod filters;
#[cfg(test)]
mod fuzz;
mod lane;
mod listener;
mod login;
mod packet;
mod places;
mod router;
mod session;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use assay_wire::Scope;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, SetOnce, broadcast, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::access::Identity;
use crate::certificate::ClientCertificate;
use crate::meter::{Meter, Rate};
use listener::{Audience, Core, Listener, Seats};
use login::LoginDesk;
pub use login::{LoggedIn, Login};
use places::Lobby;
use router::Router;
use session::PUBLISHES;
pub use tls::{ClientCertificates, bootstrap_tls, operational_tls};

/// Asks whether a certificate is still good, and whose it is. Called on a thread that may block,
/// once per CONNECT with a client certificate, and again at each recheck.
pub type Admit = dyn Fn(&Identity, &ClientCertificate) -> Result<(), Denial> + Send + Sync;

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

/// How many connections there may be, and how long they may take and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of each listener: connections that have not been let in yet. When there are more, those of
    /// the network that has most are closed to make room, the oldest first. A network is an IPv4
    /// address, or an IPv6 /64 (what one subscriber is given, RFC 6177).
    pub waiting: usize,
    /// Clients without a certificate. When there are more, room is made in the same way.
    pub bootstrap: usize,
    /// Devices and operators; workers are let in besides.
    pub operational: usize,
    /// Connections to each listener that may come from one network in a second, and five times as
    /// many at once.
    pub arrivals_per_network: u32,
    /// From TCP accept to the end of the TLS handshake and the arrival of the whole CONNECT packet.
    pub introduction: Duration,
    /// How long a client without a certificate may stay.
    pub bootstrapping: Duration,
}

impl Default for Limits {
    /// 4096 clients without a certificate, which need a second or two each, and 12288 with one,
    /// which stay: 10,000 devices and room for those that come back before their old connection is
    /// given up. Each of these has one place by its client id, so their networks are not counted:
    /// thousands of devices behind one NAT gateway are normal, and may all come back at once. 10 s
    /// let a device sign its part of the TLS handshake on a slow TPM. A device may want its
    /// connection as long as its claim is good, which is five minutes, and a minute for the rest.
    fn default() -> Self {
        Self {
            waiting: 1024,
            bootstrap: 4096,
            operational: 12288,
            arrivals_per_network: 1000,
            introduction: Duration::from_secs(10),
            bootstrapping: Duration::from_secs(360),
        }
    }
}

/// So many seconds' worth of connections may come from one network at once.
const BURST: u32 = 5;

/// A silent client is given up after one and a half times this (MQTT 5 §3.1.2.10); so is one that
/// does not read.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Requests of one client id: so many at once, and one more after each interval.
const REQUESTS: Rate = Rate { interval: Duration::from_secs(10), burst: PUBLISHES };

/// Clients that are asked about again at the same time: few beside the 512 threads that tokio has
/// for what blocks.
const RECHECKS: usize = 32;

/// Packets of all bootstrapping clients of one network, and of one other client over all its
/// connections.
const NETWORK_PACE: Rate = Rate::per_second(16_384, 65_536);
const CLIENT_PACE: Rate = Rate::per_second(128, 1024);

/// Connections that one device's certificate is shown on, let in or not: each is a TLS handshake.
const SHOWN: Rate = Rate::per_second(8, 64);

/// Packets of all clients of a listener that send more than [`connection::CALM`], by the threads
/// that serve connections: an eighth of what each can.
fn rush(threads: usize) -> Rate {
    let packets = 16_384 * u32::try_from(threads).unwrap_or(1).clamp(1, 1024);
    Rate::per_second(packets, packets)
}

/// File descriptors for everything but the listeners' connections: the store, the worker's own
/// connection, the runtime.
const RESERVE: usize = 256;

impl Limits {
    /// What `descriptors` suffice for, one per connection. Bootstrapping clients come off worse,
    /// but keep a quarter; an eighth is for those that have yet to be let in.
    fn within(self, descriptors: usize) -> Self {
        let available = descriptors.saturating_sub(RESERVE);
        let waiting = self.waiting.min(available / 16);
        let available = available - 2 * waiting;
        let operational = self.operational.min(available - available / 4);
        Self {
            waiting,
            operational,
            bootstrap: self.bootstrap.min(available - operational),
            ..self
        }
    }

    /// The same for as many descriptors as the system lets this process have.
    fn within_system(self) -> io::Result<Self> {
        let descriptors = rlimit::increase_nofile_limit(u64::MAX)?;
        let limits = self.within(usize::try_from(descriptors).unwrap_or(usize::MAX));
        let Self { bootstrap, operational, .. } = limits;
        if (bootstrap, operational) != (self.bootstrap, self.operational) {
            warn!(
                descriptors,
                bootstrap,
                operational,
                "fewer connections than planned, for want of file descriptors"
            );
        }
        Ok(limits)
    }
}

/// How long connections may take to end by themselves at shutdown.
pub const DRAIN: Duration = Duration::from_secs(2);

/// A running broker. Dropping it ends both listeners and all connections at once.
pub struct EmbeddedBroker {
    bootstrap: SocketAddr,
    operational: SocketAddr,
    core: Core,
    tls: watch::Sender<Tls>,
    listeners: JoinSet<()>,
}

impl EmbeddedBroker {
    /// Binds both listeners and serves them on the current tokio runtime until shutdown; the
    /// bootstrap listener only once it is [opened](Self::open). Raises the process's limit of file
    /// descriptors as far as the system allows, and holds fewer connections than configured if that
    /// is not enough.
    pub async fn start(config: EmbeddedBrokerConfig) -> io::Result<Self> {
        let limits = config.limits.within_system()?;
        let once = Rate { interval: limits.bootstrapping, burst: 1 };
        let core = Core {
            router: Arc::new(Router::default()),
            requests: Meter::new(REQUESTS).into(),
            used_ids: Meter::new(once).into(),
            networks: Meter::new(NETWORK_PACE).into(),
            clients: Meter::new(CLIENT_PACE).into(),
            calm: Meter::new(connection::CALM).into(),
            closing: broadcast::Sender::new(1),
            recheck: watch::Sender::new(()),
            rechecks: Semaphore::new(RECHECKS).into(),
            opened: Arc::new(SetOnce::new()),
        };
        let tls = watch::Sender::new(config.tls);
        let mut listeners = JoinSet::new();
        let mut listen = |tcp: TcpListener, audience, seats| {
            let address = tcp.local_addr()?;
            let (scope, tls, core) = (config.scope.clone(), tls.subscribe(), core.clone());
            let closing = core.closing.subscribe();
            let listener = Listener::new(scope, audience, tls, &limits, seats, core);
            listeners.spawn(listener.serve(tcp, closing));
            io::Result::Ok(address)
        };
        let (bootstrap, operational) = (bind(config.bootstrap)?, bind(config.operational)?);
        let strangers = Audience::Bootstrapping { lifetime: limits.bootstrapping };
        let bootstrap =
            listen(bootstrap, strangers, Seats::Strangers(Lobby::new(limits.bootstrap)))?;
        let known = Audience::Identified {
            admit: config.admit,
            desk: config.login.map(LoginDesk::new).map(Arc::new),
        };
        let operational = listen(
            operational,
            known,
            Seats::Identified(Semaphore::new(limits.operational).into()),
        )?;
        Ok(Self { bootstrap, operational, core, tls, listeners })
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

    /// Asks `admit` or `login` about every connected device again, and cuts those that it no longer
    /// lets in. Returns at once.
    pub fn recheck(&self) {
        self.core.recheck.send_replace(());
    }

    /// Stops accepting, tells MQTT 5 clients that the server is shutting down, and returns when
    /// every connection has ended.
    pub async fn shutdown(mut self) {
        // No receiver is left when both listeners have ended already.
        let _ = self.core.closing.send(());
        while let Some(ended) = self.listeners.join_next().await {
            if let Err(error) = ended {
                warn!(%error, "listener ended abnormally");
            }
        }
    }
}

/// As `TcpListener::bind`, but with bounded memory for what a client sends before it is heard: the
/// kernel would lend each up to 6 MiB.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(UNHEARD)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Bytes of a client that the kernel keeps until they are read: twice the longest packet.
const UNHEARD: u32 = 128 * 1024;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scarce_descriptors_are_missing_from_the_bootstrap_listener_first() {
        for (descriptors, bootstrap, operational) in [
            (usize::MAX, 4096, 12288),
            (18688, 4096, 12288),
            (18687, 4095, 12288),
            (4096, 840, 2520),
            (1024, 168, 504),
            (256, 0, 0),
            (0, 0, 0),
        ] {
            let limits = Limits::default().within(descriptors);
            assert_eq!(
                (limits.bootstrap, limits.operational),
                (bootstrap, operational),
                "{descriptors}"
            );
        }
    }
}
