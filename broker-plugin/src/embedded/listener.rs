//! Accepts TCP connections and takes each through TLS against the clock.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use assay_wire::Scope;
use bytestring::ByteString;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, SetOnce, broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, warn};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::admission::Peer;
use super::connection::Guest;
use super::lane::Backlog;
use super::login::LoginDesk;
use super::packet::{End, Reason};
use super::places::{Lobby, Place, network};
use super::router::Router;
use super::session::Requests;
use super::{Admit, BURST, DRAIN, Limits, SHOWN, Tls, rush};
use crate::certificate::{self, ClientCertificate};
use crate::meter::{Meter, Rate};

/// How long to wait after the system refused to accept a connection (out of file descriptors, most
/// likely).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Failures to accept that are less than this apart are told as one.
const ACCEPT_WARNING: Duration = Duration::from_secs(60);

/// What an offence costs its network, in arrivals: who is cut for what it does, and comes back at
/// once, would otherwise have a TLS handshake each time.
const OFFENCE: u32 = 100;

/// Whom a listener is for.
pub(super) enum Audience {
    /// Clients without a certificate, each for this long.
    Bootstrapping { lifetime: Duration },
    /// Clients with a certificate of our CA that is admitted at each CONNECT and, where there is a
    /// desk, devices that log in.
    Identified { admit: Arc<Admit>, desk: Option<Arc<LoginDesk>> },
}

/// One of the two listeners.
pub(super) struct Listener {
    pub(super) scope: Scope,
    audience: Audience,
    tls: watch::Receiver<Tls>,
    introduction: Duration,
    /// Connections that come from each network.
    arrivals: Meter<IpAddr>,
    waiting: Arc<Lobby>,
    pub(super) seats: Seats,
    /// What clients do in haste.
    pub(super) rush: Meter<()>,
    /// Connections that each device's certificate was shown on.
    pub(super) shown: Meter<[u8; 32]>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) core: Core,
}

/// Where clients that are let in have their place.
pub(super) enum Seats {
    /// Strangers, of whom one network must not keep out the others.
    Strangers(Arc<Lobby>),
    /// Clients that have one place each, by their client id.
    Identified(Arc<Semaphore>),
}

/// What both listeners share.
#[derive(Clone)]
pub(super) struct Core {
    pub(super) router: Arc<Router>,
    /// Requests of each device.
    pub(super) requests: Arc<Requests>,
    /// Client ids that bootstrapping clients used.
    pub(super) used_ids: Arc<Meter<ByteString>>,
    /// Work that each network's bootstrapping clients make.
    pub(super) networks: Arc<Meter<IpAddr>>,
    /// Work that each other client makes.
    pub(super) clients: Arc<Meter<String>>,
    /// What each of these is heard with however many others are in haste.
    pub(super) calm: Arc<Meter<String>>,
    /// Sends when the broker closes.
    pub(super) closing: broadcast::Sender<()>,
    /// Changes when every certificate and password must be admitted anew.
    pub(super) recheck: watch::Sender<()>,
    /// How many are asked about at once then.
    pub(super) rechecks: Arc<Semaphore>,
    /// Set when a worker is there for requests.
    pub(super) opened: Arc<SetOnce<()>>,
}

impl Listener {
    pub(super) fn new(
        scope: Scope,
        audience: Audience,
        tls: watch::Receiver<Tls>,
        limits: &Limits,
        seats: Seats,
        core: Core,
    ) -> Self {
        let arrivals = limits.arrivals_per_network.max(1);
        Self {
            scope,
            audience,
            tls,
            introduction: limits.introduction,
            arrivals: Meter::new(Rate::per_second(arrivals, arrivals.saturating_mul(BURST))),
            waiting: Lobby::new(limits.waiting),
            seats,
            rush: Meter::new(rush(tokio::runtime::Handle::current().metrics().num_workers())),
            shown: Meter::new(SHOWN),
            backlog: Arc::default(),
            core,
        }
    }

    pub(super) fn is_for_strangers(&self) -> bool {
        matches!(self.audience, Audience::Bootstrapping { .. })
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
                    Ok((stream, peer)) => match listener.let_wait(peer) {
                        Some(wait) => {
                            connections.spawn(listener.clone().attend(stream, peer, wait));
                        }
                        None => debug!(%peer, "closed: too many connections"),
                    },
                    // The one that waited has given up.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
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

    /// A place to wait in, unless too many come from that network.
    fn let_wait(&self, peer: SocketAddr) -> Option<Place> {
        let network = network(peer.ip());
        if self.arrivals.allows(network, 1, std::time::Instant::now()) {
            self.waiting.enter(network)
        } else {
            None
        }
    }

    /// One connection, from accept to end.
    async fn attend(self: Arc<Self>, stream: TcpStream, address: SocketAddr, wait: Place) {
        // In a box, for what it needs is given back before the connection's long life begins.
        let guest = Box::pin(self.receive(stream, address, wait)).await;
        let ended = match guest {
            Ok(guest) => self.entertain(guest).await,
            Err(end) => end,
        };
        // Many devices may be behind one address, so what else one of them does is not the others'
        // fault. Of this one the handshake was paid for by everybody.
        let is_offence = if self.is_for_strangers() {
            ended.is_offence()
        } else {
            ended.reason == Reason::ConnectionRateExceeded
        };
        if is_offence {
            let cost = if self.is_for_strangers() { OFFENCE } else { OFFENCE / 2 };
            self.arrivals.spend(network(address.ip()), cost, std::time::Instant::now());
        }
        debug!(%address, reason = ?ended.reason, text = &*ended.text, "connection ended");
    }

    /// TLS, CONNECT and admission.
    async fn receive(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        wait: Place,
    ) -> Result<Box<Guest>, End> {
        let deadline = Instant::now() + self.introduction;
        let mut closing = self.core.closing.subscribe();
        let secured = tokio::select! {
            secured = timeout_at(deadline, self.secure(stream)) => secured,
            () = wait.turned_out() => return Err(End::turned_out()),
            _ = closing.recv() => return Err(End::shutting_down()),
        };
        let stream = match secured {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(End::silent(format!("TLS handshake failed: {error}"))),
            Err(_) => return Err(End::silent("TLS handshake took too long")),
        };
        let Some(peer) = self.identify(&stream) else {
            return Err(End::silent("no usable client certificate"));
        };
        self.welcome(stream, peer, network(address.ip()), wait, deadline, closing).await
    }

    async fn secure(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        // Without it each reply waits for the peer's delayed acknowledgement: 44 ms instead of 0.2
        // on loopback.
        stream.set_nodelay(true)?;
        let tls = self.tls.borrow().clone();
        let config = match self.audience {
            Audience::Bootstrapping { .. } => tls.bootstrap,
            Audience::Identified { .. } => tls.operational,
        };
        TlsAcceptor::from(config).accept(stream).await
    }

    /// Who is there; nobody if the listener is for identified clients and this one has shown no
    /// certificate, even though TLS should have seen to that, unless it may log in. A certificate
    /// that does not name its holder properly opens no other way.
    fn identify(&self, stream: &TlsStream<TcpStream>) -> Option<Peer> {
        let (admit, desk) = match &self.audience {
            Audience::Bootstrapping { lifetime } => {
                return Some(Peer::Anonymous { lifetime: *lifetime });
            }
            Audience::Identified { admit, desk } => (admit, desk),
        };
        let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
            return desk.clone().map(Peer::Claimant);
        };
        let identity = certificate::identity(leaf);
        let identity =
            identity.inspect_err(|error| debug!(%error, "client certificate refused")).ok()?;
        let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
        Some(Peer::Certified {
            identity,
            certificate: ClientCertificate::new(leaf)?,
            expires_in: certificate.validity().time_to_expiration()?.unsigned_abs(),
            admit: admit.clone(),
        })
    }
}
