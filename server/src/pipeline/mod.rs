//! The CA worker: requests in from any MQTT 5 broker, decisions, replies out.
//!
//! ```text
//! broker → intake → queues → examine → plan → sign → record → outbox → broker
//!          async    bounded  └── planner threads ──┘  └ one thread, one transaction a batch
//!                                        ├▶ authorise: asker threads, if the operator has a hook
//!                                        └▶ sign: signer threads, if the issuing key is elsewhere
//! ```
//!
//! | stage | file | what it may wait for |
//! |---|---|---|
//! | intake | `intake.rs` | nothing: a full queue is answered with *busy* |
//! | examine | `examine.rs` | nothing: the request and the CA's keys are all it needs |
//! | plan | `plan.rs` | a snapshot of the record |
//! | authorise | `authorise.rs` | the operator's own service, if there is one, on threads that nothing else waits for |
//! | sign | `sign.rs` | the signer, outside of every lock; if the issuing key is elsewhere, on threads that nothing else waits for |
//! | record | `record.rs` | the record's transaction; what is stale by then is planned again |
//! | outbox | `outbox.rs` | the broker |
//!
//! What can become of a request is a closed enum, in `decide.rs`. A request is acknowledged to the
//! broker once its reply was handed over. No broker gives a dead worker's messages to a living one:
//! devices repeat what stays unanswered, and a repeat is answered with what is on record.

mod authorise;
mod bulletin;
mod checkpointer;
mod decide;
mod decision_log;
mod events;
mod examine;
mod herald;
mod intake;
mod job;
mod key_watch;
mod ledger;
mod metrics;
mod outbox;
mod outcome;
mod plan;
mod planned;
mod pressure;
mod process;
mod pulse;
mod queues;
mod record;
mod sign;
mod signatures;
mod teller;
mod threads;

use std::sync::Arc;
use std::time::Duration;

use assay_broker_plugin::access::WORKER_PREFIX;
use assay_mqtt::{Backoff, BrokerUrl, Client};
use assay_store::{Database, Retention, StoreError};
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::warn;

pub use bulletin::{Bulletin, Posted};
pub use decide::{Examination, Outcome, decide};
pub use decision_log::DecisionLog;
pub use herald::MAX_LIST;
pub use job::Received;
pub use metrics::Metrics;
pub use outcome::{A_KEY_IS_AWAY, About, Issued};
pub use plan::Planner;

use crate::ca::Ca;
use crate::clock::Gate;
use intake::Intake;
use outbox::{Letter, Outbox, deliver};
use pulse::Heart;
use threads::Threads;

/// Where a worker finds its broker and its store, and what it serves with.
pub struct WorkerConfig {
    /// Any MQTT 5 broker.
    pub broker: BrokerUrl,
    /// May be replaced while the worker runs, by an outfit of the same scope.
    pub outfit: watch::Receiver<Outfit>,
    /// The database with the CA's record.
    pub database: Database,
    /// How long rows that nobody needs any more are kept.
    pub retention: Retention,
    /// Closed as long as nothing may be answered; the worker looks at the clock and opens it.
    pub gate: Arc<Gate>,
    /// Counts what the worker does.
    pub metrics: Metrics,
    /// Shows the revocation lists that the worker signs.
    pub bulletin: Bulletin,
    /// How often an [`Event::Pulse`] is wanted, if at all.
    pub pulse: Option<Duration>,
}

/// What a worker decides and connects with.
#[derive(Clone)]
pub struct Outfit {
    /// Decides each request whose examination begins from now on, to its end.
    pub ca: Arc<Ca>,
    /// For the next connection, if the URL asks for TLS.
    pub tls: Arc<ClientConfig>,
}

/// What a worker reports.
#[derive(Debug)]
pub enum Event<'a> {
    /// A broker has granted the subscription.
    Subscribed,
    /// There is no connection to the broker; the worker tries again for ever.
    Disconnected(&'a anyhow::Error),
    /// A pulse has passed every thread that a request passes. It needs no broker.
    Pulse,
}

/// Serves requests until `stop` says by when to end. Then it takes no more requests, finishes those
/// that it has, and returns.
///
/// # Errors
/// The store cannot be opened, a thread ended, which is a bug, or something was not finished in
/// time.
pub async fn run(
    config: WorkerConfig,
    mut stop: watch::Receiver<Option<Instant>>,
    tell: impl Fn(Event<'_>),
) -> Result<(), WorkerError> {
    let (letters, mut posted) = mpsc::channel(OUTBOX);
    let scope = config.outfit.borrow().ca.scope.clone();
    let outbox = Outbox::new(scope, letters, config.metrics.clone());
    let threads = Threads::start(&config, &outbox)?;
    let mut due = stop.clone();
    let overdue = async { sleep_until(asked_to_stop(&mut due).await).await };
    tokio::select! {
        () = serve(&config, &threads, &outbox, &mut posted, stop.clone(), &tell) => {}
        () = beat(&threads.heart, config.pulse, &tell) => {}
        () = threads.ended.notified() => return Err(WorkerError::ThreadEnded),
        () = overdue => return Err(WorkerError::Unfinished { owed: outbox.ledger.owed() }),
    }
    let deadline = asked_to_stop(&mut stop).await;
    let ended = timeout_at(deadline, threads.finish()).await;
    ended.map_err(|_| WorkerError::Unfinished { owed: outbox.ledger.owed() })
}

/// Connects again and again, until nothing is left to do.
async fn serve(
    config: &WorkerConfig,
    threads: &Threads,
    outbox: &Outbox,
    posted: &mut mpsc::Receiver<Letter>,
    mut stop: watch::Receiver<Option<Instant>>,
    tell: &impl Fn(Event<'_>),
) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    for connection in 0.. {
        let tls = Arc::clone(&config.outfit.borrow().tls);
        let (client, mut events) = assay_mqtt::connect(&config.broker, &tls, mqtt_client());
        let intake = Intake { connection, queues: &threads.queues, outbox };
        let error = tokio::select! {
            ended = intake.run(&client, &mut events, stop.clone(), || {
                backoff.reset();
                // If the channel is full, the message in it says the same.
                _ = threads.arrivals.try_send(());
                tell(Event::Subscribed);
            }) => match ended {
                Ok(()) => return,
                Err(error) => error,
            },
            error = deliver(&client, connection, posted) => error,
        };
        let delay = backoff.next(Duration::ZERO, crate::random_u32());
        warn!(broker = %config.broker, error = %format!("{error:#}"), retry_in = ?delay, "no connection to the broker");
        tell(Event::Disconnected(&error));
        tokio::select! {
            () = sleep(delay) => {}
            _ = asked_to_stop(&mut stop) => {}
        }
        if stop.borrow().is_some() && outbox.ledger.owed() == 0 {
            return;
        }
    }
}

/// Reports pulses, for ever.
async fn beat(heart: &Heart, period: Option<Duration>, tell: &impl Fn(Event<'_>)) {
    let Some(period) = period else { return std::future::pending().await };
    loop {
        heart.beat().await;
        tell(Event::Pulse);
        sleep(period).await;
    }
}

/// Waits until a worker is to end, and returns by when. Never returns if nobody is left who could
/// ask for it.
async fn asked_to_stop(stop: &mut watch::Receiver<Option<Instant>>) -> Instant {
    loop {
        if let Some(deadline) = *stop.borrow_and_update() {
            return deadline;
        }
        if stop.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Why a worker cannot go on, or has not ended as it should.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The store cannot be used at start-up.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A thread ended, so requests would go unanswered from now on.
    #[error("a thread of the worker ended; its log says why")]
    ThreadEnded,
    /// The deadline came first.
    #[error(
        "not finished in time: {owed} requests and messages are left; their devices will ask again"
    )]
    Unfinished {
        /// How many requests and messages are left.
        owed: usize,
    },
}

fn mqtt_client() -> Client {
    Client {
        // Nobody can guess it: another client under the same id would end the worker's connection.
        id: format!("{WORKER_PREFIX}{}", hex::encode(crate::random_bytes::<16>())),
        window: WINDOW,
        receive_maximum: RECEIVE_MAXIMUM,
        manual_acks: true,
    }
}

/// Requests that the broker may send unacknowledged; more than both queues hold, so that a full
/// queue is answered with *busy*.
const RECEIVE_MAXIMUM: u16 = 1024;
/// Replies on their way to the broker.
const WINDOW: u16 = 256;
/// Messages that wait for a connection: all that the broker may have sent unacknowledged before and
/// after a reconnect, twice.
const OUTBOX: usize = 4 * RECEIVE_MAXIMUM as usize;
