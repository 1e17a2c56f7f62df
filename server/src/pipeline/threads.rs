//! The worker's threads.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{self as channel, RecvTimeoutError};
use tokio::sync::Notify;

use super::authorise::{BeingAsked, QUESTIONS};
use super::decision_log::DecisionLog;
use super::job::Job;
use super::key_watch::KeyWatch;
use super::metrics::Waiting;
use super::outbox::Outbox;
use super::plan::Planner;
use super::process::{self, Decided, Ends};
use super::pulse::Heart;
use super::queues::{QUEUE, Queues};
use super::record::Pruning;
use super::signatures::Signatures;
use super::teller::Teller;
use super::{WorkerConfig, WorkerError, authorise, checkpointer, herald, record, teller};
use crate::clock::Look;
use crate::hook::ASKERS;

/// The threads, and the sending ends of the channels that they wait at.
pub(super) struct Threads {
    pub(super) queues: Queues<channel::Sender<Box<Job>>>,
    pub(super) heart: Heart,
    /// Tells the herald of each connection.
    pub(super) arrivals: channel::Sender<()>,
    /// The checkpointer runs until this is dropped.
    running: channel::Sender<()>,
    /// Notified when any thread ends.
    pub(super) ended: Arc<Notify>,
    handles: Vec<thread::JoinHandle<()>>,
}

impl Threads {
    pub(super) fn start(config: &WorkerConfig, outbox: &Outbox) -> Result<Self, WorkerError> {
        let (queues, jobs) = Queues::new();
        let (writes, written) = channel::bounded(QUEUE);
        let (again, stale) = channel::bounded(QUEUE);
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
        let store = || config.database.open();
        // Before anything can be answered.
        let (gate, clock_stopped, clock_store) =
            (Arc::clone(&config.gate), stopped.clone(), store()?);
        let mut look = Look::new(clock_store, gate);
        look.once();
        threads.spawn("clock".into(), move || {
            while clock_stopped.recv_timeout(CLOCK_POLL) == Err(RecvTimeoutError::Timeout) {
                look.once();
            }
        });
        let log = DecisionLog::default();
        let keys = KeyWatch::default();
        let decided =
            Decided { writes, outbox: outbox.clone(), log: log.clone(), keys: keys.clone() };
        let (signers, to_sign) = Signatures::new();
        outbox.metrics.watch(Waiting {
            jobs: jobs.clone(),
            writes: written.clone(),
            unsigned: to_sign.clone(),
        });
        let (doubtful, to_authorise) = channel::bounded(QUESTIONS);
        let being_asked = BeingAsked::default();

        for (n, pulses) in pulses.into_iter().enumerate() {
            let planner = Planner::open(store()?)?;
            let ends = Ends {
                outfit: config.outfit.clone(),
                jobs: jobs.clone(),
                again: stale.clone(),
                pulses,
                doubtful: doubtful.clone(),
                being_asked: being_asked.clone(),
                signers: signers.clone(),
                decided: decided.clone(),
                gate: Arc::clone(&config.gate),
            };
            threads.spawn(format!("planner-{n}"), move || process::run(planner, &ends));
        }
        // A hook may be configured while the worker runs.
        for n in 0..ASKERS {
            let (database, to_authorise) = (config.database.clone(), to_authorise.clone());
            let (decided, signers) = (decided.clone(), signers.clone());
            threads.spawn(format!("asker-{n}"), move || {
                authorise::run(&database, &to_authorise, &decided, &signers)
            });
        }
        drop(signers);
        let (to_sign, taken) = (Arc::new(to_sign), Arc::new(AtomicUsize::new(0)));
        for n in 0..SIGNERS {
            let (to_sign, taken) = (Arc::clone(&to_sign), Arc::clone(&taken));
            let decided = decided.clone();
            threads.spawn(format!("signer-{n}"), move || process::sign(&to_sign, &taken, &decided));
        }
        let (record_store, record_outbox) = (store()?, outbox.clone());
        let pruning = Pruning { retention: config.retention, gate: Arc::clone(&config.gate) };
        threads.spawn("recorder".into(), move || {
            record::run(record_store, &pruning, &written, &again, &record_outbox, &log)
        });
        let (herald_store, outfit, herald_outbox) =
            (store()?, config.outfit.clone(), outbox.clone());
        let (gate, bulletin) = (Arc::clone(&config.gate), config.bulletin.clone());
        threads.spawn("herald".into(), move || {
            herald::run(&outfit, herald_store, &gate, &arrived, &herald_outbox, &bulletin)
        });
        let (outfit, gate, keys_stopped) =
            (config.outfit.clone(), Arc::clone(&config.gate), stopped.clone());
        // Nobody waits for its end: a token may not answer, and leaves nothing undone.
        _ = threads.run("key-watch".into(), move || keys.run(outfit, &gate, &keys_stopped));
        let teller = Teller {
            broker: config.broker.clone(),
            outfit: config.outfit.clone(),
            store: store()?,
        };
        let teller_stopped = stopped.clone();
        threads.spawn("teller".into(), move || teller::run(teller, &teller_stopped));
        let mut store = store()?;
        threads.spawn("checkpointer".into(), move || checkpointer::run(&mut *store, &stopped));
        Ok(threads)
    }

    /// Starts a thread that [`finish`](Self::finish) waits for.
    fn spawn(&mut self, name: String, work: impl FnOnce() + Send + 'static) {
        let handle = self.run(name, work);
        self.handles.push(handle);
    }

    /// Starts a thread that notifies `ended` when it ends, by a panic or otherwise.
    fn run(&self, name: String, work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
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
        thread::Builder::new().name(name).spawn(work).unwrap()
    }

    /// Closes the channels that the threads wait at. Returns when the threads have done what was
    /// left, e.g. written the last audit entries.
    pub(super) async fn finish(self) {
        let Self { queues, heart, arrivals, running, handles, .. } = self;
        drop((queues, heart, arrivals, running));
        let joined = tokio::task::spawn_blocking(|| {
            handles.into_iter().for_each(|thread| _ = thread.join())
        });
        _ = joined.await;
    }
}

/// Threads that wait for keys elsewhere: as many as such a key is asked at once.
const SIGNERS: usize = 8;
/// How late a clock is found that was set.
const CLOCK_POLL: Duration = Duration::from_secs(1);
