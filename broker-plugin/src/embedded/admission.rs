//! Asks the doorkeeper, off the async threads: when a client connects, and again at each recheck.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use assay_wire::Scope;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::lane::properties_size;
use super::limits::{CERTIFICATES, LOGINS, RECHECKS};
use super::packet::{Connect, End, Reason, Version};
use super::session::RETAINED_MESSAGE;
use crate::access::{AccessDenied, may_leave_will};
use crate::doorkeeper::{Admission, Denial, Doorkeeper, Question, Shown};

/// How often the broker asks at a recheck while the answer is [`Denial::Unknown`], and how long it
/// waits in between. A busy or restored database is back within that time. A revoked device stays
/// connected meanwhile.
const RECHECK_TRIES: u32 = 5;
const RECHECK_RETRY: Duration = Duration::from_secs(1);

/// How long the recheck of one connection may take, including the wait for its turn. If there is no
/// answer then, the connection ends. Ten thousand rechecks take some ten seconds.
const RECHECK_LIMIT: Duration = Duration::from_secs(60);

/// How long an answer may take, including the wait for a turn. The record may be on another
/// machine, and somebody may hold up the connection to it.
const ANSWER: Duration = Duration::from_secs(10);

/// The time between two warnings that the register cannot find something out.
const WARNING: Duration = Duration::from_secs(60);

/// Where all connections ask the one doorkeeper, a limited number at a time.
pub(super) struct Desk {
    doorkeeper: Arc<Doorkeeper>,
    certificates: Arc<Semaphore>,
    logins: Arc<Semaphore>,
    rechecks: Semaphore,
}

impl Desk {
    pub(super) fn new(doorkeeper: Doorkeeper) -> Self {
        Self {
            doorkeeper: doorkeeper.into(),
            certificates: Semaphore::new(CERTIFICATES).into(),
            logins: Semaphore::new(LOGINS).into(),
            rechecks: Semaphore::new(RECHECKS),
        }
    }

    /// Admits a client by what it has shown and by its CONNECT.
    ///
    /// # Errors
    /// Why it is not admitted.
    pub(super) async fn admit(
        &self,
        shown: Shown<'_>,
        connect: &Connect,
        longest_keep_alive: u16,
    ) -> Result<Admission, End> {
        check_offer(self.doorkeeper.scope(), connect, longest_keep_alive)?;
        let visitor = self.doorkeeper.receive(shown, &connect.client)?;
        Ok(self.ask(visitor.question(), move || visitor.decide()).await?)
    }

    /// Returns when a client's connection must end, and why: its time is up, or the doorkeeper,
    /// asked again at each `recheck`, no longer admits it, or with another access. The client may
    /// connect again then; so nothing that it may no longer hear is left over.
    pub(super) async fn unwelcome(
        &self,
        admission: &mut Admission,
        recheck: &mut watch::Receiver<()>,
    ) -> End {
        loop {
            tokio::select! {
                () = passed(admission.until()) => {
                    return End::new(Reason::MaximumConnectTime, admission.expiry());
                }
                again = self.decide_again(admission, recheck) => match again {
                    Ok(again) if again.access() != admission.access() => {
                        return End::new(Reason::AdministrativeAction, "its rights changed");
                    }
                    Ok(again) => *admission = again,
                    Err(denial) => return denial.into(),
                }
            }
        }
    }

    /// Waits for a recheck, and asks until there is an answer or too much time has passed.
    ///
    /// All connections ask at the same time. They take turns, so that new clients are served in
    /// between.
    async fn decide_again(
        &self,
        admission: &Admission,
        recheck: &mut watch::Receiver<()>,
    ) -> Result<Admission, Denial> {
        if recheck.changed().await.is_err() {
            // The broker was dropped, which ends this connection too.
            return std::future::pending().await;
        }
        let asked = timeout(RECHECK_LIMIT, self.insist(admission)).await;
        asked.unwrap_or_else(|_| Err(Denial::Unknown("no answer in time".into())))
    }

    async fn insist(&self, admission: &Admission) -> Result<Admission, Denial> {
        let mut tries = 1;
        loop {
            let again = {
                // Nobody closes this semaphore.
                let _turn = self.rechecks.acquire().await;
                let admission = admission.clone();
                self.ask(admission.question(), move || admission.decide_again()).await
            };
            match again {
                Err(Denial::Unknown(_)) if tries < RECHECK_TRIES => tries += 1,
                decided => return decided,
            }
            sleep(RECHECK_RETRY).await;
        }
    }

    /// Has the doorkeeper `decide` on a thread that may block, if the `question` may take long.
    async fn ask(
        &self,
        question: Question,
        decide: impl FnOnce() -> Result<Admission, Denial> + Send + 'static,
    ) -> Result<Admission, Denial> {
        let turns = match question {
            Question::None => return decide(),
            Question::Certificate => &self.certificates,
            Question::Login => &self.logins,
        };
        let asked = async {
            // Unwrap safety: nobody closes these semaphores.
            let turn = turns.clone().acquire_owned().await.unwrap();
            let decided = tokio::task::spawn_blocking(move || {
                // Held until the answer is there, even if the connection ended long before.
                let _turn = turn;
                decide()
            });
            decided.await.unwrap_or_else(|panic| Err(Denial::Unknown(panic.to_string())))
        };
        let silence = |_| Err(Denial::Unknown(format!("no answer within {} s", ANSWER.as_secs())));
        let decided = timeout(ANSWER, asked).await.unwrap_or_else(silence);
        if let Err(Denial::Unknown(reason)) = &decided {
            warn_now_and_then(reason);
        }
        decided
    }
}

/// Returns when a time has come; never if there is none.
async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until.into()).await,
        None => std::future::pending().await,
    }
}

/// Tells the operator, at most once a minute, that the register cannot find out who may connect.
fn warn_now_and_then(reason: &str) {
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.is_none_or(|told| told.elapsed() >= WARNING) {
        *told = Some(Instant::now());
        warn!(reason, "cannot find out whether a client may connect");
    } else {
        debug!(reason, "cannot find out whether a client may connect");
    }
}

/// Refuses a CONNECT that no client may send.
fn check_offer(scope: &Scope, connect: &Connect, longest_keep_alive: u16) -> Result<(), End> {
    if connect.has_authentication_method {
        let text = "this broker knows no authentication method";
        return Err(End::new(Reason::BadAuthenticationMethod, text));
    }
    // An MQTT 5 client is told the broker's keep-alive. For MQTT 3.1.1 there is only this way to
    // limit it. 0 stands for no keep-alive at all (MQTT 3.1.1 §3.1.2.10).
    if connect.version == Version::V3 && !(1..=longest_keep_alive).contains(&connect.keep_alive) {
        let text = format!(
            "its keep-alive is {} s; it must be 1 to {longest_keep_alive} s",
            connect.keep_alive
        );
        return Err(End::new(Reason::NotAuthorized, text));
    }
    let Some(will) = &connect.will else { return Ok(()) };
    if !may_leave_will(scope, &connect.client, &will.topic) {
        let text = "it may not leave a Will on this topic";
        return Err(End::new(Reason::NotAuthorized, text));
    }
    if will.payload.len() + will.properties.as_ref().map_or(0, properties_size) > RETAINED_MESSAGE {
        return Err(End::new(Reason::QuotaExceeded, "its Will is too long"));
    }
    Ok(())
}

impl From<Denial> for End {
    fn from(denial: Denial) -> Self {
        let reason = match denial {
            Denial::Access(AccessDenied::ClientId { .. }) => Reason::ClientIdentifierNotValid,
            Denial::Access(_) | Denial::Certificate(_) => Reason::NotAuthorized,
            Denial::Login(_) => Reason::BadUserNameOrPassword,
            Denial::Unknown(_) => Reason::ServerUnavailable,
        };
        Self::new(reason, denial.to_string())
    }
}
