//! A process with a vendor's library, and requests to it from several threads.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::{Cause, Failure};
use crate::message::{Answer, Request, receive, send};
use crate::module::MODULE_COMMAND;
use crate::pin;

/// A process that answers, until it is broken.
pub(crate) struct Connection {
    requests: Mutex<UnixStream>,
    waiting: Mutex<Waiting>,
    number: AtomicU32,
    process: Mutex<Child>,
    broke: Condvar,
}

#[derive(Default)]
struct Waiting {
    answers: HashMap<u32, SyncSender<Answer>>,
    /// When the process last said something.
    heard: Option<Instant>,
    broken: Option<Failure>,
}

impl Connection {
    /// Starts a process.
    pub(crate) fn start() -> Result<Arc<Self>, Failure> {
        let cannot = |error: io::Error| Failure::new(Cause::Ended, error);
        let (ours, theirs) = UnixStream::pair().map_err(cannot)?;
        ours.set_write_timeout(Some(STUCK)).map_err(cannot)?;
        let answers = ours.try_clone().map_err(cannot)?;
        // The same program, even if its file was replaced meanwhile.
        let process = Command::new("/proc/self/exe")
            .arg(MODULE_COMMAND)
            .env_remove(pin::VARIABLE)
            // What is said there is not for it to say.
            .env_remove("NOTIFY_SOCKET")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(cannot)?;
        let connection = Arc::new(Self {
            requests: Mutex::new(ours),
            waiting: Mutex::default(),
            number: AtomicU32::new(0),
            process: Mutex::new(process),
            broke: Condvar::new(),
        });
        let reader = Arc::clone(&connection);
        let name = "pkcs11-answers".to_owned();
        thread::Builder::new().name(name).spawn(move || reader.read(answers)).map_err(cannot)?;
        Ok(connection)
    }

    /// Asks, and waits until the deadline.
    pub(crate) fn ask(&self, request: &Request, deadline: Instant) -> Result<Answer, Failure> {
        let (answer, answered) = mpsc::sync_channel(1);
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        {
            let mut waiting = self.waiting();
            if let Some(failure) = &waiting.broken {
                return Err(failure.clone());
            }
            waiting.answers.insert(number, answer);
        }
        let sent = send(&mut *locked(&self.requests), number, request);
        if let Err(error) = sent {
            self.end(Failure::new(Cause::Ended, error));
        }
        let asked = Instant::now();
        let stuck = match request {
            Request::Find(_) | Request::Sign(..) | Request::Mac(..) => STUCK,
            // A library may look for its token in a network, and a card for primes.
            Request::Open(..)
            | Request::Login(_)
            | Request::Generate(..)
            | Request::GenerateSecret(_) => deadline.saturating_duration_since(asked),
        };
        loop {
            let heard = self.waiting().heard.unwrap_or(asked).max(asked);
            let until = deadline.min(heard + stuck);
            match answered.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Answer::Failed(failure)) => return Err(failure.sanitized()),
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Disconnected) => return Err(self.failure()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            let heard = self.waiting().heard.unwrap_or(asked).max(asked);
            if now >= heard + stuck {
                self.end(Failure::new(Cause::Slow, format_args!("nothing for {stuck:?}")));
            } else if now >= deadline {
                self.waiting().answers.remove(&number);
                return Err(Failure::new(Cause::Slow, "other requests come first"));
            }
        }
    }

    /// Ends the process, and tells everybody who waits.
    pub(crate) fn end(&self, failure: Failure) {
        let mut waiting = self.waiting();
        if waiting.broken.is_none() {
            waiting.broken = Some(failure);
            waiting.answers.clear();
            // It may be stopped, or deep in its library.
            _ = locked(&self.process).kill();
        }
        drop(waiting);
        self.broke.notify_all();
    }

    /// Waits until the process has to be replaced, and says why.
    pub(crate) fn wait(&self) -> Failure {
        let waiting = self.waiting();
        let broken = self.broke.wait_while(waiting, |it| it.broken.is_none());
        drop(broken.unwrap_or_else(PoisonError::into_inner));
        _ = locked(&self.process).wait();
        self.failure()
    }

    /// The process, to look at it.
    pub(crate) fn process_id(&self) -> u32 {
        locked(&self.process).id()
    }

    fn failure(&self) -> Failure {
        let ended = || Failure::new(Cause::Ended, "");
        self.waiting().broken.clone().unwrap_or_else(ended)
    }

    fn read(&self, mut answers: UnixStream) {
        loop {
            match receive(&mut answers) {
                Ok((number, answer)) => {
                    let mut waiting = self.waiting();
                    waiting.heard = Some(Instant::now());
                    if let Some(asker) = waiting.answers.remove(&number) {
                        // Whoever does not wait any more needs no answer.
                        _ = asker.try_send(answer);
                    }
                }
                Err(error) => {
                    let mut process = locked(&self.process);
                    // One that has ended already keeps its status.
                    let ended = process.kill().and_then(|()| process.wait());
                    drop(process);
                    let status = ended.map_or_else(|error| error.to_string(), |it| it.to_string());
                    let text = match error.kind() {
                        io::ErrorKind::UnexpectedEof => status,
                        _ => error.to_string(),
                    };
                    return self.end(Failure::new(Cause::Ended, text));
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        locked(&self.waiting)
    }
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For so long a process may answer nothing while somebody waits: the slowest smart cards take a
/// second or two for an RSA signature, and devices wait 20 s.
const STUCK: Duration = Duration::from_secs(5);
