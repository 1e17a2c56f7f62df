//! Conversations with the CA, repeated until they succeed, are refused, or time is up. Each flow
//! has its own.

mod certificate;
mod shared_key;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use assay_mqtt::{Backoff, BrokerUrl};
use assay_wire::{MAX_SHOWN, Problem, ProblemCode, ReplyBody, Scope, printable};
use rustls::ClientConfig;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout_at};

use crate::error::Error;
use crate::probe;
use crate::transport::{Bootstrap, Traffic, random};
use crate::trouble::Trouble;
use crate::verify::AnswerError;

pub(crate) use certificate::Applicant;
pub(crate) use shared_key::{Registrant, Registration};

/// Hears of each step when it is done, and how long it took.
pub type Progress<'a> = &'a mut dyn FnMut(&str, Duration);

/// The way to the CA, and how long it may be tried.
pub(crate) struct Line<'a> {
    pub(crate) broker: &'a BrokerUrl,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) scope: &'a Scope,
    pub(crate) started: Instant,
    pub(crate) deadline: Duration,
    pub(crate) runtime: Runtime,
    /// The connection for the first attempt, or why there is none.
    pub(crate) first: Cell<Option<Result<Bootstrap, Trouble>>>,
    /// How long the first connection took beyond the work beside it.
    pub(crate) waited: Cell<Duration>,
    /// What all attempts said.
    pub(crate) traffic: Cell<Traffic>,
}

impl Line<'_> {
    /// Connects while `work` is done, which is to be short: a broker has not many places for
    /// strangers.
    ///
    /// If the work fails, nobody waits for the connection.
    pub(crate) fn connect_during<T>(
        &self,
        work: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let (runtime, end) = (&self.runtime, self.end());
        let (broker, tls, scope) = (self.broker, &self.tls, self.scope);
        let (cancel, mut cancelled) = oneshot::channel::<()>();
        let mut cancel = Some(cancel);
        let (done, first) = thread::scope(|threads| {
            let connecting = threads.spawn(move || {
                runtime.block_on(async {
                    let mut connecting =
                        pin!(timeout_at(end, Bootstrap::connect(broker, tls, scope)));
                    poll_fn(|context| match Pin::new(&mut cancelled).poll(context) {
                        Poll::Ready(_) => Poll::Ready(None),
                        Poll::Pending => connecting.as_mut().poll(context).map(Result::ok),
                    })
                    .await
                })
            });
            let done = work();
            if done.is_err() {
                _ = cancel.take().map(|cancel| cancel.send(()));
            }
            let working_until = Instant::now();
            let first = connecting.join();
            self.waited.set(working_until.elapsed());
            (done, first)
        });
        self.first.set(first.ok().flatten());
        done
    }

    fn end(&self) -> tokio::time::Instant {
        tokio::time::Instant::from_std(self.started + self.deadline)
    }

    /// Connects and makes an attempt, until one succeeds or finds that none can.
    ///
    /// An attempt that failed for want of a connection, or that the CA was too busy for, is
    /// repeated with growing, random delays; one that failed because something is set wrongly is
    /// not. Every attempt asks anew: nothing is lost by it, for the CA answers a repeated request
    /// for the same key with what it gave before.
    async fn insist<T>(
        &self,
        progress: Progress<'_>,
        mut attempt: impl AsyncFnMut(&mut Bootstrap, &mut Step<'_>) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let (started, deadline, end) = (self.started, self.deadline, self.end());
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut restarts_left = MAX_RESTARTS;
        let mut is_probed = false;
        let mut last = String::from("no attempt was finished");
        loop {
            let connected_attempt = async {
                let mut step = Step { started: Instant::now(), progress: &mut *progress };
                let mut ca = match self.first.take() {
                    Some(first) => first?,
                    None => Bootstrap::connect(self.broker, &self.tls, self.scope).await?,
                };
                step.done(&format!("connected to {}", self.broker));
                let outcome = attempt(&mut ca, &mut step).await;
                self.traffic.set(self.traffic.get() + ca.traffic());
                let value = outcome?;
                ca.close().await;
                Ok(value)
            };
            let Ok(outcome) = timeout_at(end, connected_attempt).await else {
                return Err(Error::NotReached { deadline, reason: last });
            };
            let advised = match outcome {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Trouble(trouble)) => {
                    // Once: a broker that is full closes connections too, and need not be asked
                    // twice.
                    let is_first = !std::mem::replace(&mut is_probed, true);
                    let probe = || {
                        if is_first { probe::other_protocol(self.broker, &self.tls) } else { None }
                    };
                    last = trouble.examined(probe)?;
                    Duration::ZERO
                }
                Err(Failure::Problem(problem)) => match problem.code {
                    ProblemCode::Busy | ProblemCode::Internal => {
                        last = problem.to_string();
                        Duration::from_secs(problem.retry_after.unwrap_or_default().into())
                    }
                    code if is_lost_claim(code) && restarts_left > 0 => {
                        restarts_left -= 1;
                        last = problem.to_string();
                        Duration::ZERO
                    }
                    _ => return Err(Error::Refused { problem }),
                },
            };
            let delay = backoff.next(advised, u32::from_be_bytes(random()));
            if tokio::time::Instant::now() + delay >= end {
                return Err(Error::NotReached { deadline, reason: last });
            }
            progress(
                &format!("trying again in {:.1} s: {last}", delay.as_secs_f64()),
                started.elapsed(),
            );
            sleep(delay).await;
        }
    }
}

/// Why one attempt did not succeed.
enum Failure {
    /// The broker was not reached, or did not do its part.
    Trouble(Trouble),
    /// The CA says.
    Problem(Problem),
    /// No other attempt can.
    Final(Error),
}

impl Failure {
    /// Whether the claim came to nothing, so that another has to be asked for.
    fn is_lost_claim(&self) -> bool {
        matches!(self, Self::Problem(problem) if is_lost_claim(problem.code))
    }

    fn out_of_turn(wanted: &'static str, reply: ReplyBody) -> Self {
        let found = match reply {
            ReplyBody::Problem(problem) => {
                let (title, detail) =
                    (printable(&problem.title, MAX_SHOWN), printable(&problem.detail, MAX_SHOWN));
                return Self::Problem(Problem { title, detail, ..problem });
            }
            ReplyBody::Challenge(_) => "challenge",
            ReplyBody::Certificate(_) => "certificate",
            ReplyBody::Sealed(_) => "sealed certificate",
            ReplyBody::Confirmed(_) => "confirmation",
            ReplyBody::Activation(_) => "shared key",
            ReplyBody::Pong => "pong",
        };
        Self::Final(AnswerError::OutOfTurn { wanted, found }.into())
    }
}

fn is_lost_claim(code: ProblemCode) -> bool {
    matches!(code, ProblemCode::ClaimExpired | ProblemCode::TicketRefused)
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<AnswerError> for Failure {
    fn from(error: AnswerError) -> Self {
        Self::Final(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

/// Tells how long each step took.
pub(crate) struct Step<'a> {
    pub(crate) started: Instant,
    pub(crate) progress: Progress<'a>,
}

impl Step<'_> {
    pub(crate) fn done(&mut self, what: &str) {
        (self.progress)(what, self.started.elapsed());
        self.started = Instant::now();
    }
}

/// Delays grow from one second, so that a CA that restarts is met soon, to one minute, so that one
/// that is down for hours is not drowned when it comes back.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How often a ticket may be refused or come too late. Between two honest sides it happens when the
/// CA's ticket key changes.
const MAX_RESTARTS: u32 = 3;

#[cfg(test)]
mod tests {
    use assay_wire::{CertificateReply, ChallengeReply};

    use super::*;

    /// A broker that accepts connections and says nothing.
    fn at_a_silent_broker<T>(deadline: Duration, test: impl FnOnce(&Line<'_>) -> T) -> T {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let broker =
            format!("mqtt://127.0.0.1:{}", listener.local_addr().unwrap().port()).parse().unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = assay_mqtt::tls_config(provider, rustls::RootCertStore::empty(), None).unwrap();
        test(&Line {
            broker: &broker,
            tls: Arc::new(tls),
            scope: &"default".parse().unwrap(),
            started: Instant::now(),
            deadline,
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
            first: Cell::default(),
            waited: Cell::default(),
            traffic: Cell::default(),
        })
    }

    #[test]
    fn work_that_fails_does_not_wait_for_the_connection() {
        at_a_silent_broker(Duration::from_secs(600), |line| {
            let done = line.connect_during(|| Err::<(), _>(Error::Internal("test".into())));
            assert!(matches!(done, Err(Error::Internal(_))));
            assert!(line.started.elapsed() < Duration::from_secs(10));
        });
    }

    #[test]
    fn work_is_not_lost_if_the_broker_does_not_answer_before_the_deadline() {
        at_a_silent_broker(Duration::from_millis(200), |line| {
            assert_eq!(line.connect_during(|| Ok(7)).unwrap(), 7);
            assert!(line.first.take().is_none());
        });
    }

    #[test]
    fn reply_out_of_turn_is_final() {
        let challenge = ReplyBody::Challenge(ChallengeReply {
            claim: vec![1].try_into().unwrap(),
            credential_blob: vec![2].try_into().unwrap(),
            encrypted_seed: vec![3].try_into().unwrap(),
        });
        let certificate = ReplyBody::Certificate(CertificateReply {
            chain: vec![vec![1].try_into().unwrap()].try_into().unwrap(),
        });
        for (wanted, reply, came) in
            [("certificate", challenge, "challenge"), ("challenge", certificate, "certificate")]
        {
            let Failure::Final(Error::Answer(error)) = Failure::out_of_turn(wanted, reply) else {
                panic!("{wanted}")
            };
            assert_eq!(error, AnswerError::OutOfTurn { wanted, found: came });
        }
    }

    #[test]
    fn control_characters_in_a_problem_do_not_reach_the_terminal() {
        let (title, detail) = ("\x1b[2Jx\nWhat to do: é".into(), "\r\u{9b}31m".into());
        let problem = Problem { code: ProblemCode::Internal, retry_after: None, title, detail };
        let Failure::Problem(problem) =
            Failure::out_of_turn("challenge", ReplyBody::Problem(problem))
        else {
            panic!()
        };
        assert_eq!(
            (problem.title.as_str(), problem.detail.as_str()),
            ("\\u{1b}[2Jx\\nWhat to do: é", "\\r\\u{9b}31m")
        );
    }
}
