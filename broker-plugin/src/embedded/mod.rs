//! The embedded MQTT broker: two TLS listeners in front of one router, for one machine without a
//! broker of its own.
//!
//! The *bootstrap* listener asks for no client certificate and lets each client speak on two
//! topics. The *operational* listener admits clients with a certificate of our CA, and devices that
//! log in with user name and password, as the [doorkeeper](crate::doorkeeper) decides.
//!
//! The crate `rmqtt-codec` reads and writes the bytes. All else is ours, and small because we need
//! little: QoS 0 and 1, sessions that end with their connection, nothing on disk. Devices retry,
//! and workers publish again what is retained.
//!
//! | file | knows |
//! |---|---|
//! | `limits` | how many connections there may be, and how much each client may do |
//! | `packet` | what MQTT 5 and 3.1.1 allow in a packet |
//! | `filters`, `lane`, `router` | who subscribes to what, and what waits for whom |
//! | `session` | what a connected client may do; no I/O |
//! | `admission` | when and on which thread the doorkeeper is asked |
//! | `places` | which connections are closed when there are too many |
//! | `shared` | what connections share |
//! | `pace` | who pays for the work that a client makes |
//! | `listener`, `balancer`, `tls`, `wire`, `connection` | bytes and clocks |

mod admission;
mod balancer;
mod connection;
mod counted;
mod filters;
#[cfg(test)]
mod fuzz;
mod lane;
mod limits;
mod listener;
mod pace;
mod packet;
mod places;
mod router;
mod session;
mod shared;
mod tls;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use assay_wire::Scope;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tracing::warn;

use crate::doorkeeper::{Doorkeeper, Register};
pub use balancer::Balancers;
pub use limits::{DRAIN, Limits};
use listener::Listener;
use places::Lobby;
use shared::{Core, Entrance, Seats};
pub use tls::{ClientCertificates, Tls, bootstrap_tls, operational_tls};

/// What the broker is started with.
pub struct EmbeddedBrokerConfig {
    /// Where clients without a certificate connect. Port 0 takes a free one.
    pub bootstrap: SocketAddr,
    /// Where devices, workers, operators and backends connect. Port 0 takes a free one.
    pub operational: SocketAddr,
    /// The certificates that the listeners show. They may be replaced while the broker runs.
    pub tls: Tls,
    /// The one scope that is served.
    pub scope: Scope,
    /// Asked at each CONNECT on the operational listener, and again at each
    /// [recheck](EmbeddedBroker::recheck), on a thread that may block. It is asked about logins
    /// only if `tls.operational` has [`ClientCertificates::Optional`].
    pub register: Arc<dyn Register>,
    /// How many connections there may be, and how long they may take and stay.
    pub limits: Limits,
    /// Who says where the connections come from that it passes on. The worker of this process must
    /// not be among them: it sends no header.
    pub balancers: Balancers,
}

/// A running broker. If it is dropped, both listeners and all connections end at once.
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
        let EmbeddedBrokerConfig { bootstrap, operational, tls, scope, register, .. } = config;
        let (limits, balancers) = (config.limits, Arc::new(config.balancers));
        let limits = limits.within_system()?;
        let doorkeeper = Doorkeeper::new(scope, register, limits.bootstrapping);
        let core = Core::new(doorkeeper, &limits);
        let tls = watch::Sender::new(tls);
        let mut listeners = JoinSet::new();
        let mut listen = |tcp: TcpListener, seats| {
            let address = tcp.local_addr()?;
            let entrance = Entrance::new(seats, core.clone());
            let listener = Listener::new(entrance, tls.subscribe(), &limits, balancers.clone());
            listeners.spawn(listener.serve(tcp, core.closing.subscribe()));
            io::Result::Ok(address)
        };
        let (bootstrap, operational) = (bind(bootstrap)?, bind(operational)?);
        let strangers = Seats::Strangers(Lobby::new(limits.bootstrap));
        let bootstrap = listen(bootstrap, strangers)?;
        let identified = Seats::Identified(Semaphore::new(limits.operational).into());
        let operational = listen(operational, identified)?;
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

    /// Says that there is a worker: from now on, the bootstrap listener accepts connections, and
    /// the broker reads what devices with a certificate send. Before, it would acknowledge requests
    /// and lose them.
    pub fn open(&self) {
        // It may be open already.
        _ = self.core.opened.set(());
    }

    /// Uses these TLS configurations for new connections. Existing connections stay.
    pub fn replace_tls(&self, tls: Tls) {
        self.tls.send_replace(tls);
    }

    /// Has the doorkeeper decide about every connection again, and ends those that it no longer
    /// admits. Returns at once.
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
                warn!(%error, "a listener ended abnormally");
            }
        }
    }
}

/// As `TcpListener::bind`, but limits what the kernel keeps of a client's bytes until they are
/// read. Its default is up to 6 MiB for each client.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.set_recv_buffer_size(UNREAD)?;
    socket.bind(address)?;
    socket.listen(UNACCEPTED)
}

/// Bytes of a client that the kernel keeps until they are read: twice the longest packet.
const UNREAD: u32 = 128 * 1024;

/// Connections that the kernel keeps until they are accepted.
const UNACCEPTED: u32 = 1024;
