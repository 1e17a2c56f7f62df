//! Who a connection's client is, whether it is let in, and when it is shown out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use assay_wire::Scope;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::lane::properties_size;
use super::login::{Credentials, LoginDesk};
use super::packet::{Connect, End, Reason, Version};
use super::session::RETAINED_MESSAGE;
use super::{Admit, Denial, KEEP_ALIVE, LoggedIn};
use crate::access::{Access, AccessDenied, Identity, may_leave_will};
use crate::certificate::ClientCertificate;

/// How often a recheck is tried that finds nothing out, and how long after the last time. A
/// database that is busy or restored is back within that; a device that was revoked is heard for as
/// long at most.
const RECHECK_TRIES: u32 = 5;
const RECHECK_RETRY: Duration = Duration::from_secs(1);

/// Warnings about clients that cannot be asked about are this far apart.
const WARNING: Duration = Duration::from_secs(60);

/// Who is at the other end, as far as TLS has established it.
pub(super) enum Peer {
    Anonymous {
        /// How long it may stay.
        lifetime: Duration,
    },
    Certified {
        identity: Identity,
        certificate: ClientCertificate,
        /// When it expires; TLS has seen to its being valid now.
        expires_in: Duration,
        admit: Arc<Admit>,
    },
    /// Nobody until the desk has accepted user name and password of its CONNECT.
    Claimant(Arc<LoginDesk>),
}

/// A client that was let in, and by what.
pub(super) struct Admitted {
    pub(super) access: Access,
    peer: Peer,
    scope: Scope,
    login: Option<(Arc<Credentials>, Duration)>,
}

impl Peer {
    /// The digest of a device's certificate. Not its name: whoever stole the issuing key could use
    /// up what is another's.
    pub(super) fn shown_by_a_device(&self) -> Option<[u8; 32]> {
        match self {
            Self::Certified { identity: Identity::Device { .. }, certificate, .. } => {
                Some(certificate.sha256)
            }
            _ => None,
        }
    }

    /// Lets a client in by its CONNECT, or does not.
    ///
    /// # Errors
    /// It is told why.
    pub(super) async fn admit(
        self,
        scope: Scope,
        connect: &Connect,
    ) -> Result<Admitted, NotAdmitted> {
        check_offer(&scope, connect)?;
        let client = &*connect.client;
        let (access, login) = match &self {
            Self::Anonymous { .. } => (Access::bootstrapping(&scope, client)?, None),
            Self::Certified { identity, .. } => {
                let access = Access::identified(&scope, identity, client)?;
                self.check_certificate().await?;
                (access, None)
            }
            Self::Claimant(desk) => {
                let credentials = Arc::new(Credentials::from_connect(connect)?);
                let (access, expires_in) = log_in(&scope, desk, &credentials).await?;
                (access, Some((credentials, expires_in)))
            }
        };
        Ok(Admitted { access, peer: self, scope, login })
    }

    /// Asks, off the async threads, whether the certificate is good now.
    async fn check_certificate(&self) -> Result<(), NotAdmitted> {
        let Self::Certified { identity, certificate, admit, .. } = self else { return Ok(()) };
        let (identity, certificate, admit) = (identity.clone(), certificate.clone(), admit.clone());
        match tokio::task::spawn_blocking(move || admit(&identity, &certificate)).await {
            Ok(answer) => answer.map_err(|denial| NotAdmitted::new(denial, Reason::NotAuthorized)),
            Err(panic) => Err(NotAdmitted::unknown(panic.to_string())),
        }
    }
}

impl Admitted {
    /// Returns when the client is to leave: its time is up, its certificate or login has expired,
    /// or, asked again at each `recheck`, it is no longer admitted.
    pub(super) async fn unwelcome(
        &self,
        recheck: &mut watch::Receiver<()>,
        rechecks: &Semaphore,
    ) -> End {
        tokio::select! {
            end = self.overstayed() => end,
            refused = self.refused(recheck, rechecks) => End::new(refused.code, refused.reason),
        }
    }

    async fn overstayed(&self) -> End {
        let (time, text) = match (&self.peer, &self.login) {
            (Peer::Anonymous { lifetime }, _) => {
                (*lifetime, "connected for too long without a certificate")
            }
            (Peer::Certified { expires_in, .. }, _) => (*expires_in, "certificate expired"),
            (_, Some((_, expires_in))) => (*expires_in, "login expired"),
            (Peer::Claimant(_), None) => return std::future::pending().await,
        };
        sleep(time).await;
        End::new(Reason::MaximumConnectTime, text)
    }

    /// Returns when a client, asked about again, is no longer admitted, or when that cannot be
    /// found out for long.
    ///
    /// All are asked about at once; `rechecks` lets those who come be asked about in between.
    async fn refused(
        &self,
        recheck: &mut watch::Receiver<()>,
        rechecks: &Semaphore,
    ) -> NotAdmitted {
        while recheck.changed().await.is_ok() {
            let mut tries = 1;
            while let Err(refusal) = self.check_again(rechecks).await {
                if !refusal.is_unknown() || tries == RECHECK_TRIES {
                    return refusal;
                }
                tries += 1;
                sleep(RECHECK_RETRY).await;
            }
        }
        std::future::pending().await
    }

    async fn check_again(&self, rechecks: &Semaphore) -> Result<(), NotAdmitted> {
        // Nobody closes this semaphore.
        let _turn = rechecks.acquire().await;
        match (&self.peer, &self.login) {
            (Peer::Certified { .. }, _) => self.peer.check_certificate().await,
            (Peer::Claimant(desk), Some((credentials, _))) => {
                log_in(&self.scope, desk, credentials).await.map(|_| ())
            }
            _ => Ok(()),
        }
    }
}

/// What `credentials` are good for now, and how long.
async fn log_in(
    scope: &Scope,
    desk: &LoginDesk,
    credentials: &Arc<Credentials>,
) -> Result<(Access, Duration), NotAdmitted> {
    let LoggedIn { identity, expires_in } = desk.ask(credentials).await?;
    Ok((Access::logged_in(scope, &identity, credentials.client())?, expires_in))
}

/// Refuses what nobody may ask for, whoever it is.
fn check_offer(scope: &Scope, connect: &Connect) -> Result<(), NotAdmitted> {
    if connect.has_authentication_method {
        return Err(NotAdmitted::refused(
            Reason::BadAuthenticationMethod,
            "no authentication method is known",
        ));
    }
    // MQTT 5 clients are told the broker's keep-alive; for MQTT 3.1.1 there is only this way to
    // bound it. 0 stands for no keep-alive at all (MQTT 3.1.1 §3.1.2.10).
    if connect.version == Version::V3
        && !(1..=KEEP_ALIVE.as_secs()).contains(&connect.keep_alive.into())
    {
        let reason = format!("its keep-alive of {} s is too long", connect.keep_alive);
        return Err(NotAdmitted::refused(Reason::NotAuthorized, reason));
    }
    let Some(will) = &connect.will else { return Ok(()) };
    if !may_leave_will(scope, &connect.client, &will.topic) {
        return Err(NotAdmitted::refused(
            Reason::NotAuthorized,
            "its Will is for a topic that it may not leave one on",
        ));
    }
    if will.payload.len() + will.properties.as_ref().map_or(0, properties_size) > RETAINED_MESSAGE {
        return Err(NotAdmitted::refused(Reason::QuotaExceeded, "its Will is too long"));
    }
    Ok(())
}

/// Why a client is not let in.
#[derive(Debug)]
pub(super) struct NotAdmitted {
    /// For the client.
    pub(super) code: Reason,
    /// For the log.
    pub(super) reason: String,
}

impl NotAdmitted {
    /// A refusal is told by `code`.
    pub(super) fn new(denial: Denial, code: Reason) -> Self {
        match denial {
            Denial::Refused(reason) => Self { code, reason },
            Denial::Unknown(reason) => Self::unknown(reason),
        }
    }

    pub(super) fn refused(code: Reason, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }

    /// It could not be found out; that is for the operator to know, once a minute, and for the
    /// client to try again.
    pub(super) fn unknown(reason: String) -> Self {
        static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= WARNING) {
            *told = Some(Instant::now());
            warn!(reason, "cannot find out whether a client may be let in");
        } else {
            debug!(reason, "cannot find out whether a client may be let in");
        }
        Self { code: Reason::ServerUnavailable, reason }
    }

    fn is_unknown(&self) -> bool {
        self.code == Reason::ServerUnavailable
    }
}

impl From<AccessDenied> for NotAdmitted {
    fn from(refusal: AccessDenied) -> Self {
        let code = match refusal {
            AccessDenied::ClientId { .. } => Reason::ClientIdentifierNotValid,
            _ => Reason::NotAuthorized,
        };
        Self { code, reason: refusal.to_string() }
    }
}
