//! Accepts TCP connections, takes each through its TLS handshake in limited time, and serves it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, warn};

use super::balancer::{Balancers, read_source};
use super::connection::Connection;
use super::limits::{BURST, DRAIN, Limits};
use super::packet::{End, Reason};
use super::places::{Lobby, Place, network};
use super::shared::Entrance;
use super::tls::Tls;
use crate::certificate::ClientCertificate;
use crate::meter::{Meter, Rate};

/// How long to wait after the system refused to accept a connection. Most likely the process has no
/// file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The time between two warnings that connections cannot be accepted.
const ACCEPT_WARNING: Duration = Duration::from_secs(60);

/// What an offence costs its network, in arrivals. Otherwise a client that is cut and comes back at
/// once would get a TLS handshake each time.
const OFFENCE: u32 = 100;

/// One of the two listeners.
pub(super) struct Listener {
    entrance: Entrance,
    tls: watch::Receiver<Tls>,
    introduction: Duration,
    /// Connections that come from each network.
    arrivals: Meter<IpAddr>,
    /// Connections that have not been let in yet.
    waiting: Arc<Lobby>,
    balancers: Arc<Balancers>,
    /// Connections of balancers that have not said yet where they come from.
    passed_on: Arc<Lobby>,
    /// Warnings of each balancer.
    warnings: Meter<IpAddr>,
}

impl Listener {
    pub(super) fn new(
        entrance: Entrance,
        tls: watch::Receiver<Tls>,
        limits: &Limits,
        balancers: Arc<Balancers>,
    ) -> Self {
        let arrivals = limits.arrivals_per_network.max(1);
        Self {
            entrance,
            tls,
            introduction: limits.introduction,
            arrivals: Meter::new(Rate::per_second(arrivals, arrivals.saturating_mul(BURST))),
            waiting: Lobby::new(limits.waiting),
            balancers,
            passed_on: Lobby::new(limits.waiting),
            warnings: Meter::new(Rate { interval: ACCEPT_WARNING, burst: 1 }),
        }
    }

    /// Accepts connections until the broker closes, and then waits for their end. The listener for
    /// strangers begins when the broker is opened.
    pub(super) async fn serve(self, tcp: TcpListener, mut closing: broadcast::Receiver<()>) {
        let listener = Arc::new(self);
        if listener.entrance.is_for_strangers() {
            tokio::select! {
                // The kernel keeps the connections that come before.
                _ = listener.entrance.core.opened.wait() => {}
                _ = closing.recv() => return,
            }
        }
        let mut connections = JoinSet::new();
        let mut failed: Option<Instant> = None;
        loop {
            tokio::select! {
                accepted = tcp.accept() => match accepted {
                    Ok((stream, peer)) if listener.balancers.are_at(peer.ip()) => {
                        connections.spawn(listener.clone().attend_behind(stream, peer));
                    }
                    Ok((stream, peer)) => match listener.let_wait(peer) {
                        Some(wait) => {
                            connections.spawn(listener.clone().attend(stream, peer, wait));
                        }
                        None => debug!(%peer, "closed: too many connections from its network"),
                    },
                    // The client has given up.
                    Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                    Err(error) => {
                        let last = failed.replace(Instant::now());
                        if last.is_none_or(|last| last.elapsed() > ACCEPT_WARNING) {
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

    /// A place to wait in, unless too many connections come from that network.
    fn let_wait(&self, peer: SocketAddr) -> Option<Place> {
        let network = network(peer.ip());
        if self.arrivals.allows(network, 1, std::time::Instant::now()) {
            self.waiting.enter(network)
        } else {
            None
        }
    }

    /// One connection that a balancer passes on, from accept to end.
    async fn attend_behind(self: Arc<Self>, mut stream: TcpStream, balancer: SocketAddr) {
        let Some(place) = self.passed_on.enter(network(balancer.ip())) else {
            return debug!(%balancer, "closed: too many connections that it passes on begin");
        };
        let mut closing = self.entrance.core.closing.subscribe();
        let read = tokio::select! {
            read = timeout(self.introduction, read_source(&mut stream, balancer)) => read,
            () = place.turned_out() => return,
            _ = closing.recv() => return,
        };
        drop(place);
        match read {
            Ok(Ok(source)) => match self.let_wait(source) {
                Some(wait) => self.attend(stream, source, wait).await,
                None => debug!(%source, "closed: too many connections from its network"),
            },
            // Nobody else connects from there, so the balancer is not set up as it should be.
            Ok(Err(error)) => {
                if self.warnings.allows(balancer.ip(), 1, std::time::Instant::now()) {
                    warn!(%balancer, %error, "no header of PROXY protocol 2 from a balancer: let it send one (HAProxy: send-proxy-v2), or take it out of broker.balancers");
                }
            }
            Err(_) => debug!(%balancer, "closed: no header came in time"),
        }
    }

    /// One connection, from accept to end.
    async fn attend(self: Arc<Self>, stream: TcpStream, address: SocketAddr, wait: Place) {
        // In a box, so that its memory is free before the long life of the connection begins.
        let opened = Box::pin(self.receive(stream, address, wait)).await;
        let ended = match opened {
            Ok(connection) => connection.serve(&self.entrance).await,
            Err(end) => end,
        };
        // A stranger's offence costs its network. A device's does not, because many devices may be
        // behind one address. But if a device connects too often, its network pays for the
        // handshake.
        let cost = match self.entrance.is_for_strangers() {
            true if ended.is_offence() => OFFENCE,
            false if ended.reason == Reason::ConnectionRateExceeded => OFFENCE / 2,
            _ => 0,
        };
        if cost > 0 {
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
    ) -> Result<Box<Connection>, End> {
        let deadline = Instant::now() + self.introduction;
        let mut closing = self.entrance.core.closing.subscribe();
        let secured = tokio::select! {
            secured = timeout_at(deadline, self.secure(stream)) => secured,
            () = wait.turned_out() => return Err(End::turned_out()),
            _ = closing.recv() => return Err(End::shutting_down()),
        };
        let stream = match secured {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(End::silent(format!("TLS handshake failed: {error}"))),
            Err(_) => return Err(End::silent("the TLS handshake took too long")),
        };
        let certificate = certificate_of(&stream)?;
        let network = network(address.ip());
        let entrance = &self.entrance;
        Connection::open(entrance, stream, certificate, network, wait, deadline, closing).await
    }

    async fn secure(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        // Without it each reply waits for the peer's delayed acknowledgement: 44 ms instead of 0.2
        // on loopback.
        stream.set_nodelay(true)?;
        let Tls { bootstrap, operational } = self.tls.borrow().clone();
        let config = if self.entrance.is_for_strangers() { bootstrap } else { operational };
        TlsAcceptor::from(config).accept(stream).await
    }
}

/// The certificate that the client has shown in the handshake, if it has shown one.
///
/// # Errors
/// The certificate speaks for nobody. Then it does not help to have a password as well.
fn certificate_of(stream: &TlsStream<TcpStream>) -> Result<Option<ClientCertificate>, End> {
    let Some(leaf) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
        return Ok(None);
    };
    ClientCertificate::new(leaf).map(Some).map_err(|error| End::silent(error.to_string()))
}
