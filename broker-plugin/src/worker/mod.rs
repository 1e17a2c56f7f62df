//! The CA worker: requests in from any MQTT 5 broker, decisions, replies out.
//!
//! ```text
//! broker → intake (async) → queues → examiners (threads) → writer (thread, one transaction a batch) → outbox → broker
//! ```
//! The intake never blocks: when a queue is full it answers *busy* at once. What was begun goes before what begins.
//! Examiners check evidence and make challenges. The writer certifies; a certificate leaves it only after the commit. A request is acknowledged to the broker once its reply
//! was handed over, but no broker gives a dead worker's messages to a living one: devices repeat what stays unanswered, and a
//! repeat is answered with what was already issued.

mod checkpointer;
mod examiner;
mod herald;
mod intake;
mod pressure;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::Publish;
use assay_mqtt::rumqttc::v5::{AsyncClient, ClientError};
use assay_mqtt::{Backoff, BrokerUrl, Client};
use assay_wire::{ClientId, Problem, ProblemCode, Reply, ReplyBody, Request, RequestId, Scope, Topic};
use bytes::Bytes;
use crossbeam_channel as channel;
use rustls::ClientConfig;
use tokio::sync::{Notify, mpsc};
use tracing::warn;

use crate::access::WORKER_PREFIX;
use crate::ca::{Ca, Examiner};
use crate::store::{Store, StoreError};
use intake::Intake;

/// Where a worker finds its broker and its store.
pub struct WorkerConfig {
    /// Any MQTT 5 broker.
    pub broker: BrokerUrl,
    /// Used if the URL asks for TLS.
    pub tls: Arc<ClientConfig>,
    /// The SQLite file.
    pub database: PathBuf,
}

/// Serves requests until the future is dropped; calls `ready` each time a broker has granted the subscription.
///
/// # Errors
/// The store cannot be opened, or a thread ended, which is a bug. A broker that cannot be reached is tried again for ever.
pub async fn run(ca: Arc<Ca>, config: WorkerConfig, ready: impl Fn()) -> Result<(), WorkerError> {
    let (queues, jobs) = Queues::new();
    let (writes, written) = channel::bounded(QUEUE);
    let (outbox, mut letters) = mpsc::channel(OUTBOX);
    let outbox = Outbox { scope: ca.scope.clone(), letters: outbox };
    let ended = Arc::new(Notify::new());

    for n in 0..thread::available_parallelism().map_or(1, usize::from) {
        let examiner = Examiner::new(Store::open(&config.database)?)?;
        let (ca, jobs, writes, outbox) = (Arc::clone(&ca), jobs.clone(), writes.clone(), outbox.clone());
        spawn(format!("examiner-{n}"), &ended, move || examiner::run(&ca, examiner, &jobs, &writes, &outbox));
    }
    drop((jobs, writes));
    let (store, writer_ca, writer_outbox) = (Store::open(&config.database)?, Arc::clone(&ca), outbox.clone());
    spawn("writer".into(), &ended, move || writer::run(&writer_ca, store, &written, &writer_outbox));
    let (arrivals, arrived) = channel::bounded(1);
    let (store, herald_ca, herald_outbox) = (Store::open(&config.database)?, Arc::clone(&ca), outbox.clone());
    spawn("herald".into(), &ended, move || herald::run(&herald_ca, store, &arrived, &herald_outbox));
    let (_running, stop) = channel::bounded(0);
    let store = Store::open(&config.database)?;
    spawn("checkpointer".into(), &ended, move || checkpointer::run(&store, &stop));

    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    for connection in 0.. {
        let (client, mut events) = assay_mqtt::connect(&config.broker, &config.tls, mqtt_client());
        let intake = Intake { scope: &ca.scope, connection, queues: &queues, outbox: &outbox };
        let error = tokio::select! {
            error = intake.run(&client, &mut events, || {
                backoff.reset();
                // One that waits there already says the same.
                _ = arrivals.try_send(());
                ready();
            }) => error,
            error = deliver(&client, connection, &mut letters) => error,
            () = ended.notified() => return Err(WorkerError::ThreadEnded),
        };
        let delay = backoff.next(Duration::ZERO, crate::random_u32());
        warn!(broker = %config.broker, error = %format!("{error:#}"), retry_in = ?delay, "no connection to the broker");
        tokio::time::sleep(delay).await;
    }
    Ok(())
}

/// Why a worker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// At start-up.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Requests would go unanswered from now on.
    #[error("a thread of the worker ended; its log says why")]
    ThreadEnded,
}

/// A request on its way through the worker.
struct Job {
    client: ClientId,
    message: Bytes,
    /// Where the client wants the reply; [`Topic::Reply`] is where it goes.
    response_topic: Option<String>,
    receipt: Receipt,
}

/// Requests on their way to an examiner.
#[derive(Clone)]
struct Queues<End> {
    /// That begin something.
    first: End,
    /// That finish what another began. They go first, for it would be begun again if they found no place.
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
    /// The next job; `None` when nobody is left to put one there. `taken` counts those before it: now and then it is the turn of one that
    /// begins, so that nobody can keep new devices out by repeating a good last request without end.
    fn take(&self, taken: usize) -> Option<Job> {
        if taken % LASTS_PER_FIRST == LASTS_PER_FIRST - 1
            && let Ok(job) = self.first.try_recv()
        {
            return Some(job);
        }
        channel::select_biased! {
            recv(self.last) -> job => job.ok(),
            recv(self.first) -> job => job.ok(),
        }
    }
}

/// What is owed to the broker for a request, and since when.
struct Receipt {
    packet_id: u16,
    connection: u64,
    received: Instant,
}

/// Hands messages to whichever connection is up.
#[derive(Clone)]
struct Outbox {
    scope: Scope,
    letters: mpsc::Sender<Letter>,
}

struct Letter {
    topic: Topic,
    payload: Vec<u8>,
    retain: bool,
    receipt: Option<Receipt>,
}

impl Outbox {
    fn reply(&self, job: Job, id: RequestId, body: ReplyBody) {
        let topic = Topic::Reply(self.scope.clone(), job.client);
        let payload = Reply { id, body }.encode();
        self.post(Letter { topic, payload, retain: false, receipt: Some(job.receipt) });
    }

    fn event(&self, topic: Topic, payload: Vec<u8>) {
        self.post(Letter { topic, payload, retain: false, receipt: None });
    }

    /// For everybody, and for those who come later.
    fn proclaim(&self, topic: Topic, payload: Vec<u8>) {
        self.post(Letter { topic, payload, retain: true, receipt: None });
    }

    /// Never waits: the intake must not, and the others should not wait for a broker that is gone.
    fn post(&self, letter: Letter) {
        if let Err(error) = self.letters.try_send(letter) {
            warn!(%error, "a message to the broker is dropped; its device will ask again");
        }
    }
}

/// Publishes letters and acknowledges the requests they answer, until the connection fails.
async fn deliver(client: &AsyncClient, connection: u64, letters: &mut mpsc::Receiver<Letter>) -> anyhow::Error {
    while let Some(letter) = letters.recv().await {
        if let Err(error) = publish(client, connection, letter).await {
            return error.into();
        }
    }
    anyhow::anyhow!("the worker is stopping")
}

async fn publish(client: &AsyncClient, connection: u64, letter: Letter) -> Result<(), ClientError> {
    client.publish(letter.topic.to_string(), QoS::AtLeastOnce, letter.retain, letter.payload).await?;
    match letter.receipt {
        Some(receipt) if receipt.connection == connection => {
            let mut request = Publish::new("", QoS::AtLeastOnce, Bytes::new(), None);
            request.pkid = receipt.packet_id;
            client.ack(&request).await
        }
        _ => Ok(()),
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

/// Starts a thread that tells when it ends, by a panic or otherwise.
fn spawn(name: String, ended: &Arc<Notify>, work: impl FnOnce() + Send + 'static) {
    struct Obituary(Arc<Notify>);
    impl Drop for Obituary {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    let obituary = Obituary(Arc::clone(ended));
    let work = move || {
        let _obituary = obituary;
        work();
    };
    // Unwrap safety: at start-up only; without its threads the worker is of no use.
    thread::Builder::new().name(name).spawn(work).unwrap();
}

/// Requests that wait in either queue: at some thousands a second, a tenth of a second's work.
const QUEUE: usize = 256;
/// Of as many jobs one may begin something while there is something to finish. Without anybody's doing both are as many.
const LASTS_PER_FIRST: usize = 8;
/// Requests that the broker may send unacknowledged; more than both queues hold, so that a full queue is answered with *busy*.
const RECEIVE_MAXIMUM: u16 = 1024;
/// Replies on their way to the broker.
const WINDOW: u16 = 256;
/// Messages that wait for a connection: all that the broker may have sent unacknowledged before and after a reconnect, and as
/// many events.
const OUTBOX: usize = 4 * RECEIVE_MAXIMUM as usize;
/// A full disk or a stopped signer does not mend itself faster.
const RETRY_AFTER_INTERNAL_S: u32 = 10;

#[cfg(test)]
mod tests {
    use assay_wire::{Proof, RequestBody};

    use super::*;

    fn job(message: Vec<u8>) -> Job {
        let receipt = Receipt { packet_id: 1, connection: 0, received: Instant::now() };
        Job { client: ClientId::bootstrap([0; 16]), message: message.into(), response_topic: None, receipt }
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
        let taken: Vec<_> = (0..24).map(|taken| jobs.take(taken).unwrap().message == last).collect();
        assert_eq!(taken[..7], [true; 7]);
        assert_eq!(taken.iter().filter(|is_last| !**is_last).count(), 3);
    }
}
