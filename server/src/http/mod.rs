//! The CA by HTTP: what supervisors, Prometheus, relying parties and operators ask.
//!
//! | file | knows |
//! |---|---|
//! | `listener` | connections: how many, how long, by TLS or not |
//! | `caller` | who asks: an operator, a service, a stranger |
//! | `records` | the store, off the async threads |
//! | `health` | whether the CA serves, and its metrics |
//! | `api/` | what operators read and do |
//! | `public` | what everybody may have: certificates and revocation lists |
//! | `problem` | why there is no answer (RFC 9457) |
//!
//! This is a face, as `cli/` is: what it does is in [`operations`](crate::operations).

mod api;
mod caller;
mod health;
mod listener;
mod problem;
mod public;
mod records;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use assay_broker_plugin::doorkeeper::Register;
use assay_store::Database;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::get;
use rustls::ServerConfig;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::clock::Gate;
use crate::directory::Directory;
use crate::pipeline::{Bulletin, Metrics, Outfit};
use health::Health;
use listener::Listener;
use problem::Problem;
use records::Records;

pub use health::Subscription;

/// What is asked about a CA.
pub struct HttpConfig {
    /// Where to listen. Port 0 takes a free one.
    pub address: SocketAddr,
    /// The certificate that is shown; it may be replaced. `None` is without TLS, which
    /// [`HttpAddress`](crate::directory::HttpAddress) allows on the loopback interface alone.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// Whose certificates end.
    pub directory: Directory,
    /// The record.
    pub database: Database,
    /// Says whether a caller's certificate is good.
    pub register: Arc<dyn Register>,
    /// What the worker serves with.
    pub outfit: watch::Receiver<Outfit>,
    /// Closed while nothing may be answered.
    pub gate: Arc<Gate>,
    /// What the worker counts.
    pub metrics: Metrics,
    /// The lists that it signs.
    pub bulletin: Bulletin,
    /// Whether it has a broker.
    pub subscription: Subscription,
}

/// A listener that is bound.
pub struct Http {
    listener: Listener,
    router: Router,
    health: Arc<Health>,
}

impl Http {
    /// Binds the listener.
    ///
    /// # Errors
    /// The address is taken, or is not this machine's.
    pub fn bind(config: HttpConfig) -> io::Result<Self> {
        let is_open = config.tls.is_none();
        let listener = Listener::bind(config.address, config.tls)?;
        let records = Records::new(config.database);
        let health = Arc::new(Health::new(
            config.directory.clone(),
            config.gate,
            config.metrics,
            config.subscription,
            Arc::clone(&records),
        ));
        let face = Face {
            is_open,
            directory: config.directory,
            records,
            register: config.register,
            health: Arc::clone(&health),
            outfit: config.outfit,
            bulletin: config.bulletin,
        };
        Ok(Self { listener, router: router(face), health })
    }

    /// Where it listens, as a URL.
    ///
    /// # Errors
    /// The system does not say.
    pub fn url(&self) -> io::Result<String> {
        self.listener.url()
    }

    /// Answers until this is dropped.
    pub async fn serve(self) {
        let Self { listener, router, health } = self;
        tokio::join!(listener.serve(router), health.watch());
    }
}

/// What handlers need.
#[derive(Clone)]
struct Face {
    /// There is no TLS: whoever is on this machine may read the metrics, and nothing more.
    is_open: bool,
    directory: Directory,
    records: Arc<Records>,
    register: Arc<dyn Register>,
    health: Arc<Health>,
    outfit: watch::Receiver<Outfit>,
    bulletin: Bulletin,
}

fn router(face: Face) -> Router {
    Router::new()
        .route("/healthz", get(health::alive))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(health::metrics))
        .route("/ca", get(public::certificates))
        .route("/crl", get(public::lists))
        .route("/crl/{key}", get(public::list))
        .nest("/api/v1", api::router())
        .fallback(async || Problem::of(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async || {
            Problem::of(StatusCode::METHOD_NOT_ALLOWED, "not by this method")
        })
        .layer(from_fn(in_time))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(face)
}

/// Answers in limited time. A body that is too long is refused before it is read, also where none
/// is wanted.
async fn in_time(request: Request, next: Next) -> Result<Response, Problem> {
    use axum::body::HttpBody;
    if request.body().size_hint().lower() > MAX_BODY as u64 {
        return Err(Problem::of(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than 64 KiB"));
    }
    timeout(listener::REQUEST, next.run(request)).await.map_err(|_| {
        Problem::of(StatusCode::SERVICE_UNAVAILABLE, "no answer in time; try again later")
    })
}

/// Bytes of a request's body: a thousand EK ids.
const MAX_BODY: usize = 64 * 1024;
