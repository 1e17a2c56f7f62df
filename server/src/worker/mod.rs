//! The CA worker: requests in from any MQTT 5 broker, decisions, replies out.
//!
//! ```text
//! broker → intake (async) → queues → examiners (threads) → writer (thread, one transaction a batch) → outbox → broker
//! ```
//! The intake never blocks: when a queue is full it answers *busy* at once. What was begun goes
//! before what begins. Examiners check evidence and make challenges. The writer certifies; a
//! certificate leaves it only after the commit. A request is acknowledged to the broker once its
//! reply was handed over, but no broker gives a dead worker's messages to a living one: devices
//! repeat what stays unanswered, and a repeat is answered with what was already issued.

mod checkpointer;
mod decision_log;
mod examiner;
mod herald;
mod intake;
mod ledger;
mod pressure;
mod pulse;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::Publish;
use assay_mqtt::rumqttc::v5::{AsyncClient, ClientError};
use assay_mqtt::{Backoff, BrokerUrl, Client};
use assay_wire::{
    ClientId, Problem, ProblemCode, Reply, ReplyBody, Request, RequestId, Scope, Topic,
};
use bytes::Bytes;
use crossbeam_channel as channel;
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::warn;

use crate::ca::{Ca, Examiner};
use assay_broker_plugin::access::WORKER_PREFIX;
use assay_store::{Store, StoreError};
use decision_log::DecisionLog;
pub use herald::MAX_LIST;
use intake::Intake;
use ledger::{Debt, Ledger};
use pulse::{Heart, Pulse};

/// Where a worker finds its broker and its store, and what it serves with.
pub struct WorkerConfig {
    /// Any MQTT 5 broker.
    pub broker: BrokerUrl,
    /// May be replaced while the worker runs, by one of the same scope.
    pub outfit: watch::Receiver<Outfit>,
    /// The SQLite file.
    pub database: PathBuf,
    /// How often an [`Event::Pulse`] is wanted, if at all.
    pub pulse: Option<Duration>,
}

/// What a worker decides and connects with.
#[derive(Clone)]
pub struct Outfit {
    /// For each request that an examiner begins with, until it is answered.
    pub ca: Arc<Ca>,
    /// For the next connection, if the URL asks for TLS.
    pub tls: Arc<ClientConfig>,
}

/// What a worker tells of itself.
#[derive(Debug)]
pub enum Event<'a> {
    /// A broker has granted the subscription.
    Subscribed,
    /// There is no connection to the broker; the worker tries again for ever.
    Disconnected(&'a anyhow::Error),
    /// A pulse has passed every thread that a request passes. It needs no broker.
    Pulse,
}

/// Serves requests until `stop` says by when to end; then it takes no more, finishes what it was
/// given, and returns.
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
    let outbox = Outbox { scope, letters, ledger: Ledger::default() };
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
                // One that waits there already says the same.
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

/// Tells of pulses, for ever.
async fn beat(heart: &Heart, period: Option<Duration>, tell: &impl Fn(Event<'_>)) {
    let Some(period) = period else { return std::future::pending().await };
    loop {
        heart.beat().await;
        tell(Event::Pulse);
        sleep(period).await;
    }
}

/// Returns when a worker is to end, and by when; never, if nobody is left who could ask for it.
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
    /// At start-up.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Requests would go unanswered from now on.
    #[error("a thread of the worker ended; its log says why")]
    ThreadEnded,
    /// There was no time left.
    #[error(
        "not finished in time: {owed} requests and messages are left; their devices will ask again"
    )]
    Unfinished {
        /// Requests and messages.
        owed: usize,
    },
}

/// The threads, and what each waits at.
struct Threads {
    queues: Queues<channel::Sender<Job>>,
    heart: Heart,
    /// Tells the herald of each connection.
    arrivals: channel::Sender<()>,
    /// Keeps the checkpointer going.
    running: channel::Sender<()>,
    /// Told when any of them ends.
    ended: Arc<Notify>,
    handles: Vec<thread::JoinHandle<()>>,
}

impl Threads {
    fn start(config: &WorkerConfig, outbox: &Outbox) -> Result<Self, WorkerError> {
        let (queues, jobs) = Queues::new();
        let (writes, written) = channel::bounded(QUEUE);
        let (arrivals, arrived) = channel::bounded(1);
        let (running, stopped) = channel::bounded(0);
        let (heart, pulses) = Heart::new(thread::available_parallelism().map_or(1, usize::from));
        let mut threads = Self {
            queues,
            heart,
            arrivals,
            running,
            ended: Arc::new(Notify::new()),
            handles: Vec::new(),
        };
        let store = || Store::open(&config.database);
        let log = DecisionLog::new();

        for (n, pulses) in pulses.into_iter().enumerate() {
            let examiner = Examiner::new(store()?)?;
            let (jobs, writes, outbox) = (jobs.clone(), writes.clone(), outbox.clone());
            let (outfit, log) = (config.outfit.clone(), log.clone());
            threads.spawn(format!("examiner-{n}"), move || {
                examiner::run(&outfit, examiner, &jobs, &pulses, &writes, &outbox, &log);
            });
        }
        let (writer_store, writer_outbox) = (store()?, outbox.clone());
        threads.spawn("writer".into(), move || {
            writer::run(writer_store, &written, &writer_outbox, &log)
        });
        let (herald_store, outfit, herald_outbox) =
            (store()?, config.outfit.clone(), outbox.clone());
        threads.spawn("herald".into(), move || {
            herald::run(&outfit, herald_store, &arrived, &herald_outbox)
        });
        let store = store()?;
        threads.spawn("checkpointer".into(), move || checkpointer::run(&store, &stopped));
        Ok(threads)
    }

    /// Starts a thread that tells when it ends, by a panic or otherwise.
    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) {
        struct Obituary(Arc<Notify>);
        impl Drop for Obituary {
            fn drop(&mut self) {
                self.0.notify_one();
            }
        }
        let obituary = Obituary(Arc::clone(&self.ended));
        let work = move || {
            let _obituary = obituary;
            work();
        };
        // Unwrap safety: at start-up only; without its threads the worker is of no use.
        self.handles.push(thread::Builder::new().name(name).spawn(work).unwrap());
    }

    /// Takes away what they wait at, and returns when they have done what was there, e.g. written
    /// the last of the audit.
    async fn finish(self) {
        let Self { queues, heart, arrivals, running, handles, .. } = self;
        drop((queues, heart, arrivals, running));
        let joined = tokio::task::spawn_blocking(|| {
            handles.into_iter().for_each(|thread| _ = thread.join())
        });
        _ = joined.await;
    }
}

/// A request on its way through the worker.
struct Job {
    client: ClientId,
    message: Bytes,
    /// Where the client wants the reply; [`Topic::Reply`] is where it goes.
    response_topic: Option<String>,
    receipt: Receipt,
}

/// What an examiner takes.
enum Work {
    Job(Job),
    Pulse(Pulse),
}

/// Requests on their way to an examiner.
#[derive(Clone)]
struct Queues<End> {
    /// That begin something.
    first: End,
    /// That finish what another began. They go first, for it would be begun again if they found no
    /// place.
    last: End,
}

impl Queues<channel::Sender<Job>> {
    fn new() -> (Self, Queues<channel::Receiver<Job>>) {
        let ((first, firsts), (last, lasts)) = (channel::bounded(QUEUE), channel::bounded(QUEUE));
        (Self { first, last }, Queues { first: firsts, last: lasts })
    }

    /// Gives the job back if its queue is full.
    fn put(&self, job: Job) -> Result<(), channel::TrySendError<Job>> {
        let queue = if Request::is_last(&job.message) { &self.last } else { &self.first };
        queue.try_send(job)
    }
}

impl Queues<channel::Receiver<Job>> {
    /// The next job, or a pulse from `pulses`; `None` when nobody is left to put one there. `taken`
    /// counts those before it: now and then it is the turn of one that begins, so that nobody can
    /// keep new devices out by repeating a good last request without end.
    fn take(&self, taken: usize, pulses: &channel::Receiver<Pulse>) -> Option<Work> {
        if taken % LASTS_PER_FIRST == LASTS_PER_FIRST - 1
            && let Ok(job) = self.first.try_recv()
        {
            return Some(Work::Job(job));
        }
        channel::select_biased! {
            recv(pulses) -> pulse => pulse.ok().map(Work::Pulse),
            recv(self.last) -> job => job.ok().map(Work::Job),
            recv(self.first) -> job => job.ok().map(Work::Job),
        }
    }
}

/// What is owed to the broker for a request, and since when.
struct Receipt {
    packet_id: u16,
    connection: u32,
    received: std::time::Instant,
    _debt: Debt,
}

/// Hands messages to whichever connection is up.
#[derive(Clone)]
struct Outbox {
    scope: Scope,
    letters: mpsc::Sender<Letter>,
    ledger: Ledger,
}

struct Letter {
    /// None if nothing is to be said, only acknowledged.
    message: Option<Message>,
    cause: Cause,
}

struct Message {
    topic: Topic,
    payload: Vec<u8>,
    retain: bool,
}

/// Why a letter is sent.
enum Cause {
    /// A request came.
    Request(Receipt),
    /// Of our own accord.
    Own { _debt: Debt },
}

impl Outbox {
    fn reply(&self, job: Job, id: RequestId, body: ReplyBody) {
        let topic = Topic::Reply(self.scope.clone(), job.client);
        let payload = Reply { id, body }.encode();
        self.post(Letter {
            message: Some(Message { topic, payload, retain: false }),
            cause: Cause::Request(job.receipt),
        });
    }

    /// Tells the broker that something is dealt with which nobody answers. Unacknowledged, it would
    /// hold a place among those that the broker may send.
    fn acknowledge(&self, receipt: Receipt) {
        self.post(Letter { message: None, cause: Cause::Request(receipt) });
    }

    fn event(&self, topic: Topic, payload: Vec<u8>) {
        self.post(Letter {
            message: Some(Message { topic, payload, retain: false }),
            cause: self.own(),
        });
    }

    /// For everybody, and for those who come later.
    fn proclaim(&self, topic: Topic, payload: Vec<u8>) {
        self.post(Letter {
            message: Some(Message { topic, payload, retain: true }),
            cause: self.own(),
        });
    }

    fn own(&self) -> Cause {
        Cause::Own { _debt: self.ledger.owe() }
    }

    /// Never waits: the intake must not, and the others should not wait for a broker that is gone.
    fn post(&self, letter: Letter) {
        if let Err(error) = self.letters.try_send(letter) {
            warn!(%error, "a message to the broker is dropped; its device will ask again");
        }
    }
}

/// Publishes letters and acknowledges the requests they answer, until the connection fails.
async fn deliver(
    client: &AsyncClient,
    connection: u32,
    posted: &mut mpsc::Receiver<Letter>,
) -> anyhow::Error {
    while let Some(letter) = posted.recv().await {
        if let Err(error) = publish(client, connection, letter).await {
            return error.into();
        }
    }
    anyhow::anyhow!("the worker is stopping")
}

async fn publish(client: &AsyncClient, connection: u32, letter: Letter) -> Result<(), ClientError> {
    if let Some(Message { topic, payload, retain }) = letter.message {
        client.publish(topic.to_string(), QoS::AtLeastOnce, retain, payload).await?;
    }
    match letter.cause {
        Cause::Request(receipt) if receipt.connection == connection => {
            let mut request = Publish::new("", QoS::AtLeastOnce, Bytes::new(), None);
            request.pkid = receipt.packet_id;
            client.ack(&request).await
        }
        Cause::Request(_) | Cause::Own { .. } => Ok(()),
    }
}

fn busy(retry_after: u32) -> Problem {
    Problem::new(ProblemCode::Busy, "the request queue is full".into()).retry_after(retry_after)
}

fn internal() -> Problem {
    Problem::new(ProblemCode::Internal, "the CA could not decide; its log says why".into())
        .retry_after(RETRY_AFTER_INTERNAL_S)
}

fn mqtt_client() -> Client {
    Client {
        // Unguessable: another client under the same id would end the worker's connection.
        id: format!("{WORKER_PREFIX}{}", hex::encode(crate::random_bytes::<16>())),
        window: WINDOW,
        receive_maximum: RECEIVE_MAXIMUM,
        manual_acks: true,
    }
}

/// Requests that wait in either queue: at some thousands a second, a tenth of a second's work.
const QUEUE: usize = 256;
/// Of as many jobs one may begin something while there is something to finish. Without anybody's
/// doing both are as many.
const LASTS_PER_FIRST: usize = 8;
/// Requests that the broker may send unacknowledged; more than both queues hold, so that a full
/// queue is answered with *busy*.
const RECEIVE_MAXIMUM: u16 = 1024;
/// Replies on their way to the broker.
const WINDOW: u16 = 256;
/// Messages that wait for a connection: all that the broker may have sent unacknowledged before and
/// after a reconnect, and as many events.
const OUTBOX: usize = 4 * RECEIVE_MAXIMUM as usize;
/// A full disk or a stopped signer does not mend itself faster.
const RETRY_AFTER_INTERNAL_S: u32 = 10;

#[cfg(test)]
mod tests {
    use assay_wire::{Proof, RequestBody};

    use super::*;

    fn job(message: Vec<u8>) -> Job {
        let _debt = Ledger::default().owe();
        let receipt =
            Receipt { packet_id: 1, connection: 0, received: std::time::Instant::now(), _debt };
        Job {
            client: ClientId::bootstrap([0; 16]),
            message: message.into(),
            response_topic: None,
            receipt,
        }
    }

    #[test]
    fn what_was_begun_goes_first_and_what_begins_has_its_turn_all_the_same() {
        let (queues, jobs) = Queues::new();
        let proof = Proof { claim: b"claim".to_vec().try_into().unwrap(), ticket: [0; 32].into() };
        let last = Request { id: RequestId::NIL, body: RequestBody::Certify(proof) }.encode();
        for _ in 0..3 {
            queues.put(job(b"first".to_vec())).unwrap();
        }
        for _ in 0..100 {
            queues.put(job(last.clone())).unwrap();
        }
        let nothing = channel::never();
        let is_last = |work| matches!(work, Some(Work::Job(job)) if job.message == last);
        let taken: Vec<_> = (0..24).map(|taken| is_last(jobs.take(taken, &nothing))).collect();
        assert_eq!(taken[..7], [true; 7]);
        assert_eq!(taken.iter().filter(|is_last| !**is_last).count(), 3);
    }
}
