//! A thread for the TPM, so that no call can block for longer than a deadline.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::error::TpmError;
use super::interface::Tpm;

/// A TPM on its own thread. Clones share it; calls are made one after the other.
///
/// A call that takes longer than the limit fails with [`TpmError::TimedOut`]. Every later call
/// fails with [`TpmError::Abandoned`]: nobody can take a command back, so its thread may wait for
/// ever.
#[derive(Clone)]
pub struct TpmThread {
    worker: Arc<Mutex<Worker>>,
}

struct Worker {
    /// `None` after a call timed out.
    jobs: Option<Sender<Job>>,
    limit: Duration,
    spent: Duration,
}

type Job = Box<dyn FnOnce(&mut dyn Tpm) + Send>;

impl TpmThread {
    /// Starts the thread, which owns the TPM. One call may take `limit` at most.
    pub fn start(mut tpm: impl Tpm + Send + 'static, limit: Duration) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for job in queue {
                job(&mut tpm);
            }
        });
        let worker = Worker { jobs: Some(jobs), limit, spent: Duration::ZERO };
        Self { worker: Arc::new(Mutex::new(worker)) }
    }

    /// Runs a call on the TPM's thread and waits for its result.
    ///
    /// `operation` says in an error message what the TPM was doing, e.g. `signing`.
    pub fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        call: impl FnOnce(&mut dyn Tpm) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let started = Instant::now();
        let (reply, result) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |tpm| _ = reply.send(call(tpm)));
        let sent = worker.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(TpmError::Abandoned);
        }
        let result = match result.recv_timeout(worker.limit) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => {
                worker.jobs = None;
                Err(TpmError::TimedOut { operation, limit: worker.limit })
            }
            Err(RecvTimeoutError::Disconnected) => Err(TpmError::Abandoned),
        };
        worker.spent += started.elapsed();
        result
    }

    /// How long all calls took together.
    pub fn spent(&self) -> Duration {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner).spent
    }
}
