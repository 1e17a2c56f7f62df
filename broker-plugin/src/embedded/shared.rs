//! What connections share: with all others, and with those of the same listener.

use std::net::IpAddr;
use std::sync::Arc;

use bytestring::ByteString;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SetOnce, broadcast, watch};

use super::admission::Desk;
use super::counted::CountedConnections;
use super::lane::Backlog;
use super::limits::{CALM, CLIENT_PACE, Limits, NETWORK_PACE, REQUESTS, SHOWN, rush};
use super::router::Router;
use super::session::Requests;
use crate::doorkeeper::Doorkeeper;
use crate::meter::{Meter, Rate};
use crate::places::Lobby;

/// What all connections of the broker share.
#[derive(Clone)]
pub(super) struct Core {
    pub(super) router: Arc<Router>,
    pub(super) desk: Arc<Desk>,
    /// Requests of each device.
    pub(super) requests: Arc<Requests>,
    /// Client ids that bootstrapping clients have used.
    pub(super) used_ids: Arc<Meter<ByteString>>,
    /// Packets of each network's bootstrapping clients.
    pub(super) networks: Arc<Meter<IpAddr>>,
    /// Packets of each device.
    pub(super) clients: Arc<Meter<String>>,
    /// Packets with which a device is heard even when all others are busy.
    pub(super) calm: Arc<Meter<String>>,
    /// Named connections of each device, and all of each backend.
    pub(super) counted: Arc<CountedConnections>,
    /// Sends when the broker closes.
    pub(super) closing: broadcast::Sender<()>,
    /// Changes when every admission must be decided again.
    pub(super) recheck: watch::Sender<()>,
    /// Set when there is a worker for requests.
    pub(super) opened: Arc<SetOnce<()>>,
}

impl Core {
    pub(super) fn new(doorkeeper: Doorkeeper, limits: &Limits) -> Self {
        let once = Rate { interval: limits.bootstrapping, burst: 1 };
        Self {
            router: Arc::default(),
            desk: Desk::new(doorkeeper).into(),
            requests: Meter::new(REQUESTS).into(),
            used_ids: Meter::new(once).into(),
            networks: Meter::new(NETWORK_PACE).into(),
            clients: Meter::new(CLIENT_PACE).into(),
            calm: Meter::new(CALM).into(),
            counted: Arc::default(),
            closing: broadcast::Sender::new(1),
            recheck: watch::Sender::new(()),
            opened: Arc::default(),
        }
    }
}

/// What all connections of one listener share.
pub(super) struct Entrance {
    pub(super) seats: Seats,
    /// Packets above the calm pace.
    pub(super) rush: Meter<()>,
    /// Connections on which each device's certificate was shown.
    pub(super) shown: Meter<[u8; 32]>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) core: Core,
}

/// For whom a listener is, and the places for those that are let in.
pub(super) enum Seats {
    /// For clients without a certificate. One network must not keep out the others.
    Strangers(Arc<Lobby>),
    /// For clients with a certificate of our CA, and for devices that log in. Each client id has
    /// one place.
    Identified(Arc<Semaphore>),
}

impl Entrance {
    /// Call it on a tokio runtime.
    pub(super) fn new(seats: Seats, core: Core) -> Self {
        Self {
            seats,
            rush: Meter::new(rush(Handle::current().metrics().num_workers())),
            shown: Meter::new(SHOWN),
            backlog: Arc::default(),
            core,
        }
    }

    pub(super) fn is_for_strangers(&self) -> bool {
        matches!(self.seats, Seats::Strangers(_))
    }
}
