//! A thread of its own for the TPM, so that no call can block for longer than a deadline.

use std::convert::Infallible;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Tpm, TpmError};

/// A TPM on its own thread. Clones share it; calls are made one after the other.
///
/// A call that takes longer than the limit fails with [`TpmError::TimedOut`], and every later one with
/// [`TpmError::Abandoned`]: the library gives no way to take a command back, so its thread may wait for ever.
#[derive(Clone)]
pub struct TpmThread {
    worker: Arc<Mutex<Worker>>,
}

struct Worker {
    /// `None` after a call timed out.
    jobs: Option<Sender<Job>>,
    /// Closed when the thread has let the TPM go.
    ended: Receiver<Infallible>,
    limit: Duration,
    spent: Duration,
}

impl Drop for Worker {
    /// Waits until the TPM is let go. If the process ended meanwhile, libtss2 would close its connection beside the exit handlers of
    /// the libraries it uses, and corrupt memory.
    fn drop(&mut self) {
        if self.jobs.take().is_some() {
            _ = self.ended.recv_timeout(self.limit);
        }
    }
}

type Job = Box<dyn FnOnce(&mut dyn Tpm) + Send>;

impl TpmThread {
    /// Starts the thread, which takes the TPM over; `limit` is the longest that one call may take.
    pub fn start(mut tpm: impl Tpm + Send + 'static, limit: Duration) -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ending, ended) = mpsc::channel();
        thread::spawn(move || {
            for job in queue {
                job(&mut tpm);
            }
            drop(tpm);
            drop(ending);
        });
        let worker = Worker { jobs: Some(jobs), ended, limit, spent: Duration::ZERO };
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

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::tpm::{EkKind, IkKind, OpenedKey, PublicArea, SignatureScheme, SrkKind, WrappedKey};

    #[test]
    fn the_tpm_is_let_go_before_its_last_owner_goes_on() {
        let (released, is_released) = mpsc::channel();
        let tpm = TpmThread::start(SlowToClose { _released: released }, Duration::from_secs(10));
        drop(tpm.clone());
        assert_eq!(is_released.try_recv(), Err(mpsc::TryRecvError::Empty));
        drop(tpm);
        assert_eq!(is_released.try_recv(), Err(mpsc::TryRecvError::Disconnected));
    }

    /// Takes a moment to close, as libtss2 does, and then says so.
    struct SlowToClose {
        _released: Sender<()>,
    }

    impl Drop for SlowToClose {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(100));
        }
    }

    impl Tpm for SlowToClose {
        fn ek_certificates(&mut self, _: EkKind) -> Result<Vec<Vec<u8>>, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn endorsement_key(&mut self, _: EkKind) -> Result<Option<PublicArea>, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn identity_key(&mut self, _: IkKind, _: u32) -> Result<Option<PublicArea>, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn create_identity_key(&mut self, _: IkKind, _: u32) -> Result<PublicArea, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn sign(&mut self, _: u32, _: SignatureScheme, _: &[u8]) -> Result<Vec<u8>, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn activate(&mut self, _: EkKind, _: u32, _: &[u8], _: &[u8]) -> Result<Zeroizing<Vec<u8>>, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn storage_root_key(&mut self, _: SrkKind) -> Result<Option<PublicArea>, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn hmac_key(&mut self, _: u32) -> Result<Option<Vec<u8>>, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn open_hmac_key(&mut self, _: EkKind, _: SrkKind, _: &WrappedKey) -> Result<OpenedKey, TpmError> {
            Err(TpmError::Abandoned)
        }

        fn keep_hmac_key(&mut self, _: SrkKind, _: u32, _: &OpenedKey, _: Option<&[u8]>) -> Result<(), TpmError> {
            Err(TpmError::Abandoned)
        }

        fn hmac(&mut self, _: u32, _: &[u8]) -> Result<Vec<u8>, TpmError> {
            Err(TpmError::Abandoned)
        }
    }
}
