//! The ticket flow: one conversation with the CA, repeated until it succeeds, is refused, or time is up.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_mqtt::{Backoff, BrokerUrl};
use assay_wire::{Bundle, Problem, ProblemCode, Proof, ReplyBody, RequestBody, Scope, Ticket};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{sleep, timeout_at};

use crate::error::Error;
use crate::key::IdentityKey;
use crate::tpm::{EkKind, TpmError};
use crate::transport::{Bootstrap, Lost, random};
use crate::verify::{self, AnswerError, DeviceCertificate};

/// Hears of each step when it is done, and how long it took.
pub type Progress<'a> = &'a mut dyn FnMut(&str, Duration);

/// A device with its keys made and its case written, about to talk to the CA.
pub(crate) struct Applicant<'a> {
    pub(crate) broker: &'a BrokerUrl,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) roots: &'a RootCertStore,
    pub(crate) scope: &'a Scope,
    pub(crate) challenge: Bundle,
    pub(crate) ek: EkKind,
    pub(crate) ik: &'a IdentityKey,
}

impl Applicant<'_> {
    /// Talks to the CA until it grants a certificate that passes our checks.
    ///
    /// An attempt that failed for want of a connection, or that the CA was too busy for, is repeated with growing, random
    /// delays. Every attempt begins with a new challenge: nothing is lost by it, for the CA answers a repeated request for the
    /// same key with the certificate it issued.
    pub(crate) async fn obtain(
        &self,
        started: Instant,
        deadline: Duration,
        progress: Progress<'_>,
    ) -> Result<DeviceCertificate, Error> {
        let end = tokio::time::Instant::from_std(started + deadline);
        let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
        let mut restarts_left = MAX_RESTARTS;
        let mut last = String::from("no attempt was finished");
        loop {
            let Ok(outcome) = timeout_at(end, self.attempt(progress)).await else {
                return Err(Error::NotReached { deadline, reason: last });
            };
            let advised = match outcome {
                Ok(certificate) => return Ok(certificate),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Lost(Lost(reason))) => {
                    last = reason;
                    Duration::ZERO
                }
                Err(Failure::Problem(problem)) => match problem.code {
                    ProblemCode::Busy | ProblemCode::Internal => {
                        last = problem.to_string();
                        Duration::from_secs(problem.retry_after.unwrap_or_default().into())
                    }
                    ProblemCode::ClaimExpired | ProblemCode::TicketRefused if restarts_left > 0 => {
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
            progress(&format!("trying again in {:.1} s: {last}", delay.as_secs_f64()), started.elapsed());
            sleep(delay).await;
        }
    }

    async fn attempt(&self, progress: Progress<'_>) -> Result<DeviceCertificate, Failure> {
        let mut step = Step { started: Instant::now(), progress };
        let mut ca = Bootstrap::connect(self.broker, &self.tls, self.scope).await?;
        step.done(&format!("connected to {}", self.broker));

        let challenge = match ca.ask(RequestBody::Challenge(self.challenge.clone())).await? {
            ReplyBody::Challenge(challenge) => challenge,
            other => return Err(Failure::out_of_turn("challenge", other)),
        };
        step.done("challenge received: the CA accepts the EK and the identity key");

        let (ek, ik) = (self.ek, self.ik.handle);
        let (blob, seed) = (challenge.credential_blob.into_vec(), challenge.encrypted_seed.into_vec());
        let secret = self.ik.tpm.call("activating the credential", move |tpm| tpm.activate(ek, ik, &blob, &seed));
        let secret = secret.map_err(|error| match error {
            TpmError::Refused { .. } | TpmError::Library { .. } => AnswerError::Challenge(error).into(),
            error => Error::from(error),
        })?;
        let ticket = ticket(&secret).map_err(Error::from)?;
        step.done("credential activated by the TPM");

        let certify = Proof { claim: challenge.claim, ticket };
        let granted = match ca.ask(RequestBody::Certify(certify)).await? {
            ReplyBody::Certificate(granted) => granted,
            other => return Err(Failure::out_of_turn("certificate", other)),
        };
        let chain = granted.chain.iter().map(|certificate| CertificateDer::from(certificate.to_vec())).collect();
        let certificate = verify::device_certificate(chain, self.roots, &self.ik.public, self.scope, UnixTime::now())
            .map_err(Error::from)?;
        for due in self.challenge.device_id.iter().chain([&granted.device_id]) {
            if *due != certificate.device_id {
                let (wanted, found) = (due.to_string(), certificate.device_id.to_string());
                return Err(Error::from(AnswerError::OtherDevice { wanted, found }).into());
            }
        }
        step.done(&format!("certificate {} received and verified", certificate.serial));
        ca.close().await;
        Ok(certificate)
    }
}

fn ticket(secret: &[u8]) -> Result<Ticket, AnswerError> {
    let ticket = <[u8; Ticket::LEN]>::try_from(secret).map_err(|_| AnswerError::TicketLength(secret.len()))?;
    Ok(ticket.into())
}

/// Whoever answers may say anything, but not to the terminal it is shown on: control characters are escaped.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.into() }).collect()
}

/// Why one attempt did not succeed.
enum Failure {
    /// Another attempt may.
    Lost(Lost),
    /// The CA says.
    Problem(Problem),
    /// No other attempt can.
    Final(Error),
}

impl Failure {
    fn out_of_turn(wanted: &'static str, reply: ReplyBody) -> Self {
        let found = match reply {
            ReplyBody::Problem(problem) => {
                let (title, detail) = (printable(&problem.title), printable(&problem.detail));
                return Self::Problem(Problem { title, detail, ..problem });
            }
            ReplyBody::Challenge(_) => "challenge",
            ReplyBody::Certificate(_) => "certificate",
            ReplyBody::Sealed(_) => "sealed certificate",
            ReplyBody::Confirmed => "confirmation",
            ReplyBody::Activation(_) => "shared key",
        };
        Self::Final(AnswerError::OutOfTurn { wanted, found }.into())
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
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

/// Delays grow from one second, so that a CA that restarts is met soon, to one minute, so that one that is down for hours is not
/// drowned when it comes back.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How often a ticket may be refused or come too late. Between two honest sides it happens when the CA's ticket key changes.
const MAX_RESTARTS: u32 = 3;

#[cfg(test)]
mod tests {
    use assay_wire::{CertificateReply, ChallengeReply};

    use super::*;

    #[test]
    fn secret_of_another_length_than_a_ticket_is_refused() {
        assert!(ticket(&[7; 32]).is_ok());
        for length in [0, 31, 33] {
            assert_eq!(ticket(&vec![7; length]).err(), Some(AnswerError::TicketLength(length)));
        }
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
            device_id: "pump-17".parse().unwrap(),
        });
        for (wanted, reply, came) in
            [("certificate", challenge, "challenge"), ("challenge", certificate, "certificate")]
        {
            let Failure::Final(Error::Answer(error)) = Failure::out_of_turn(wanted, reply) else { panic!("{wanted}") };
            assert_eq!(error, AnswerError::OutOfTurn { wanted, found: came });
        }
    }

    #[test]
    fn control_characters_in_a_problem_do_not_reach_the_terminal() {
        let (title, detail) = ("\x1b[2Jx\nWhat to do: é".into(), "\r\u{9b}31m".into());
        let problem = Problem { code: ProblemCode::Internal, retry_after: None, title, detail };
        let Failure::Problem(problem) = Failure::out_of_turn("challenge", ReplyBody::Problem(problem)) else {
            panic!()
        };
        assert_eq!((problem.title.as_str(), problem.detail.as_str()), ("\\u{1b}[2Jx\\nWhat to do: é", "\\r\\u{9b}31m"));
    }
}
