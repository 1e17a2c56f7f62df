//! A conversation with the CA, repeated until it succeeds, is refused, or time is up.

use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use assay_wire::{
    ClientId, MAX_SHOWN, Problem, ProblemCode, ReplyBody, RequestBody, RequestId, Scope, Topic,
    printable,
};

use crate::answer::AnswerError;
use crate::desk::Desk;
use crate::event::{Connection, Trouble};
use crate::failure::Failure;
use crate::policy::{Backoff, CONNECT_LIMIT, MAX_RESTARTS, REPLY_LIMIT, is_lost_claim};
use crate::step::Step;

/// The way to the CA, and how long it may be tried.
pub(crate) struct Line {
    pub(crate) desk: Desk,
    pub(crate) scope: Scope,
    /// The deadline, in the machine's time.
    pub(crate) end: Duration,
}

impl Line {
    /// Begins to connect, under a client id that nobody can guess. Work that is done meanwhile must
    /// be short, because a broker has few places for clients that it does not know.
    pub(crate) async fn begin_to_connect(&self) {
        let client = ClientId::bootstrap(self.desk.draw().await);
        self.desk.connect(Connection {
            request_topic: Topic::Request(self.scope.clone(), client.clone()).to_string(),
            reply_topic: Topic::Reply(self.scope.clone(), client.clone()).to_string(),
            client,
        });
    }

    /// Makes attempts, each on a connection of its own, until one succeeds or shows that no other
    /// can succeed. The first attempt uses the connection that was begun, if there is one.
    ///
    /// After an attempt that found no connection, or a CA that was too busy or has to ask its
    /// operator first, it waits for a random delay and makes another. The delays grow. It makes no
    /// other attempt if a setting is wrong. Every attempt asks anew. This loses nothing, because
    /// the CA answers a repeated request for the same key with what it gave before.
    pub(crate) async fn insist<T>(
        &self,
        mut attempt: impl AsyncFnMut() -> Result<T, Ended>,
    ) -> Result<T, Failure> {
        let mut backoff = Backoff::new();
        let mut restarts_left = MAX_RESTARTS;
        let mut last = String::from(NOT_FINISHED);
        let mut pending = None;
        let gave_up = |pending: Option<Problem>, reason| match pending {
            Some(problem) => Failure::Pending(problem),
            None => Failure::NotReached { reason },
        };
        loop {
            let outcome = match self.connected().await {
                Ok(()) => attempt().await,
                Err(ended) => Err(ended),
            };
            self.desk.disconnect();
            let advice = match outcome {
                Ok(value) => return Ok(value),
                Err(Ended::Failed(failure)) => return Err(failure),
                Err(Ended::Trouble(Trouble::Lasting)) => return Err(Failure::Lasting),
                Err(Ended::Late) => return Err(gave_up(pending, last)),
                Err(Ended::Trouble(Trouble::Passing(reason))) => {
                    last = reason;
                    Duration::ZERO
                }
                Err(Ended::Problem(problem)) => match problem.code {
                    ProblemCode::Busy | ProblemCode::Internal => {
                        last = problem.to_string();
                        Duration::from_secs(problem.retry_after.unwrap_or_default().into())
                    }
                    ProblemCode::Pending => {
                        last = problem.to_string();
                        let advice = problem.retry_after.unwrap_or_default();
                        pending = Some(problem);
                        Duration::from_secs(advice.into())
                    }
                    code if is_lost_claim(code) && restarts_left > 0 => {
                        restarts_left -= 1;
                        last = problem.to_string();
                        Duration::ZERO
                    }
                    _ => return Err(Failure::Refused(problem)),
                },
            };
            let [a, b, c, d, ..] = self.desk.draw().await;
            let delay = backoff.next(advice, u32::from_be_bytes([a, b, c, d]));
            let next = self.desk.now().saturating_add(delay);
            if next >= self.end {
                return Err(gave_up(pending, last));
            }
            self.desk.progress(Step::Retry { delay, reason: last.clone() });
            self.desk.sleep(next).await;
        }
    }

    /// Makes one attempt.
    pub(crate) async fn once<T>(
        &self,
        attempt: impl AsyncFnOnce() -> Result<T, Ended>,
    ) -> Result<T, Failure> {
        let outcome = match self.connected().await {
            Ok(()) => attempt().await,
            Err(ended) => Err(ended),
        };
        self.desk.disconnect();
        outcome.map_err(|ended| match ended {
            Ended::Failed(failure) => failure,
            Ended::Problem(problem) => Failure::Refused(problem),
            Ended::Trouble(Trouble::Lasting) => Failure::Lasting,
            Ended::Trouble(Trouble::Passing(reason)) => Failure::NotReached { reason },
            Ended::Late => Failure::NotReached { reason: NOT_FINISHED.into() },
        })
    }

    async fn connected(&self) -> Result<(), Ended> {
        if !self.desk.has_link() {
            self.begin_to_connect().await;
        }
        match self.desk.connected(self.at_most(CONNECT_LIMIT)).await {
            Some(connected) => connected.map_err(Ended::Trouble)?,
            None => return Err(self.no_answer("the broker", CONNECT_LIMIT)),
        }
        self.desk.progress(Step::Connected);
        Ok(())
    }

    /// Sends a request on the connection, and waits for the reply to it.
    pub(crate) async fn ask(&self, body: RequestBody) -> Result<ReplyBody, Ended> {
        let id = RequestId::from(self.desk.draw().await);
        // Nothing is sent on a connection that is known to be lost.
        if let Some(Err(trouble)) = self.desk.connected(self.desk.now()).await {
            return Err(Ended::Trouble(trouble));
        }
        self.desk.send(id, body);
        match self.desk.reply(self.at_most(REPLY_LIMIT)).await {
            Some(reply) => reply.map_err(Ended::Trouble),
            None => Err(self.no_answer("the CA", REPLY_LIMIT)),
        }
    }

    fn at_most(&self, limit: Duration) -> Duration {
        self.desk.now().saturating_add(limit).min(self.end)
    }

    fn no_answer(&self, who: &str, limit: Duration) -> Ended {
        if self.desk.now() >= self.end {
            return Ended::Late;
        }
        let reason = format!("{who} did not answer within {} s", limit.as_secs());
        Ended::Trouble(Trouble::Passing(reason))
    }
}

/// Why one attempt did not succeed.
pub(crate) enum Ended {
    /// The broker was not reached, or did not do its part.
    Trouble(Trouble),
    /// The CA answered with a problem.
    Problem(Problem),
    /// No other attempt can succeed.
    Failed(Failure),
    /// The deadline has come.
    Late,
}

impl Ended {
    /// Whether the claim is lost, so that the device has to ask for another one.
    pub(crate) fn is_lost_claim(&self) -> bool {
        matches!(self, Self::Problem(problem) if is_lost_claim(problem.code))
    }

    /// Makes the error for a reply that is a problem, or that is of another kind than `wanted`.
    pub(crate) fn out_of_turn(wanted: &'static str, reply: ReplyBody) -> Self {
        let found = match reply {
            ReplyBody::Problem(problem) => {
                let title = printable(&problem.title, MAX_SHOWN);
                let detail = printable(&problem.detail, MAX_SHOWN);
                return Self::Problem(Problem { title, detail, ..problem });
            }
            ReplyBody::Challenge(_) => "challenge",
            ReplyBody::Certificate(_) => "certificate",
            ReplyBody::Sealed(_) => "sealed certificate",
            ReplyBody::Confirmed(_) => "confirmation",
            ReplyBody::Activation(_) => "shared key",
            ReplyBody::Pong => "pong",
            ReplyBody::Adopted => "adoption",
        };
        Self::Failed(AnswerError::OutOfTurn { wanted, found }.into())
    }
}

impl<F: Into<Failure>> From<F> for Ended {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

const NOT_FINISHED: &str = "no attempt was finished";

#[cfg(test)]
mod tests {
    use alloc::vec;

    use assay_wire::{CertificateReply, ChallengeReply};

    use super::*;

    #[test]
    fn reply_out_of_turn_is_final() {
        let challenge = ReplyBody::Challenge(ChallengeReply {
            claim: vec![1].try_into().unwrap(),
            credential_blob: vec![2].try_into().unwrap(),
            encrypted_seed: vec![3].try_into().unwrap(),
        });
        let certificate = ReplyBody::Certificate(CertificateReply {
            chain: vec![vec![1].try_into().unwrap()].try_into().unwrap(),
            renew_at: None,
            configuration: None,
            new_root: None,
        });
        for (wanted, reply, found) in
            [("certificate", challenge, "challenge"), ("challenge", certificate, "certificate")]
        {
            let Ended::Failed(failure) = Ended::out_of_turn(wanted, reply) else {
                panic!("{wanted}")
            };
            assert_eq!(failure, AnswerError::OutOfTurn { wanted, found }.into());
        }
    }

    #[test]
    fn control_characters_in_a_problem_do_not_reach_the_terminal() {
        let (title, detail) = ("\x1b[2Jx\nWhat to do: é".into(), "\r\u{9b}31m".into());
        let problem = Problem { code: ProblemCode::Internal, retry_after: None, title, detail };
        let Ended::Problem(problem) = Ended::out_of_turn("challenge", ReplyBody::Problem(problem))
        else {
            panic!()
        };
        assert_eq!(
            (problem.title.as_str(), problem.detail.as_str()),
            ("\\u{1b}[2Jx\\nWhat to do: é", "\\r\\u{9b}31m")
        );
    }
}
