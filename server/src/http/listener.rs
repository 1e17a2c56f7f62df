//! Accepts connections, with TLS or without, and passes requests on. A stranger can take no more
//! than a few places, each for a limited time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use assay_broker_plugin::certificate::ClientCertificate;
use assay_broker_plugin::meter::{Meter, Rate};
use assay_broker_plugin::places::{Lobby, Place, network};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::caller::Shown;

/// The listener, bound.
pub(super) struct Listener {
    tcp: std::net::TcpListener,
    tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

impl Listener {
    pub(super) fn bind(
        address: SocketAddr,
        tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    ) -> io::Result<Self> {
        let tcp = std::net::TcpListener::bind(address)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { tcp, tls })
    }

    pub(super) fn url(&self) -> io::Result<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        Ok(format!("{scheme}://{}", self.tcp.local_addr()?))
    }

    /// Never returns. All connections end when it is dropped.
    pub(super) async fn serve(self, router: Router) {
        let Self { tcp, tls } = self;
        let tcp = match TcpListener::from_std(tcp) {
            Ok(tcp) => tcp,
            Err(error) => {
                warn!(%error, "HTTP is not answered");
                return std::future::pending().await;
            }
        };
        let arrivals: Meter<IpAddr> = Meter::new(ARRIVALS);
        let places = Lobby::new(PLACES);
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = tcp.accept() => match accepted {
                    Ok((stream, peer)) => {
                        let network = network(peer.ip());
                        if arrivals.allows(network, 1, std::time::Instant::now())
                            && let Some(place) = places.enter(network)
                        {
                            let tls = tls.as_ref().map(|tls| Arc::clone(&tls.borrow()));
                            connections.spawn(attend(stream, peer, tls, place, router.clone()));
                        }
                    }
                    Err(error) => {
                        debug!(%error, "cannot accept a connection by HTTP");
                        sleep(ACCEPT_RETRY).await;
                    }
                },
                // A panic is in the log already.
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

/// One connection, until it has been there for long enough or another needs its place.
async fn attend(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    place: Place,
    router: Router,
) {
    let served = async {
        let Some(tls) = tls else { return answer(stream, Shown(None), router).await };
        let secured = timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await;
        let Ok(Ok(stream)) = secured else { return };
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Ok(shown) = leaf.map(|leaf| ClientCertificate::new(leaf)).transpose() else {
            // It leads to a root of ours and speaks for nobody.
            return;
        };
        answer(stream, Shown(shown.map(Arc::new)), router).await;
    };
    tokio::select! {
        _ = timeout(CONNECTION, served) => {}
        () = place.turned_out() => {}
    }
    debug!(%peer, "connection by HTTP ended");
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    shown: Shown,
    router: Router,
) {
    let service = TowerToHyperService::new(router.layer(Extension(shown)));
    // An error is the client's.
    _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// Connections at once: for some operators, Prometheus, a load balancer that asks for the health,
/// and relying parties that fetch a list. Above, the oldest of the network that has most is closed.
const PLACES: usize = 64;
/// Connections of one network, most of them with a TLS handshake.
const ARRIVALS: Rate = Rate::per_second(32, 128);
/// For the TLS handshake. A key in a TPM needs some seconds.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Until the head of the next request is there.
const IDLE: Duration = Duration::from_secs(30);
/// For the answer to a request.
pub(super) const REQUEST: Duration = Duration::from_secs(20);
/// How long a connection may stay: whoever reads slowly holds the answer in memory.
const CONNECTION: Duration = Duration::from_secs(300);
/// Lines in the head of a request: browsers and proxies send two dozen.
const MAX_HEADERS: usize = 64;
/// Bytes of the head of a request, and of what is read of it at once.
const MAX_HEAD: usize = 16 * 1024;
/// The process has no file descriptors left, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
