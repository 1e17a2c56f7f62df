//! Decides who may connect as what, and when a connection must end.
//!
//! | value | made by | says of the client |
//! |---|---|---|
//! | [`Shown`] | the broker, from TLS and CONNECT | what it has shown |
//! | [`Visitor`] | [`Doorkeeper::receive`] | it keeps all rules that need no register |
//! | [`Admission`] | [`Visitor::decide`] | it may connect, with this access, until then |
//!
//! A broker lets in nobody without an [`Admission`], ends the connection when its time is up
//! ([`Admission::until`]), and has it [decided again](Admission::decide_again) whenever a
//! certificate or a key may have been revoked, or a backend's rights may have changed.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use assay_wire::{Identity, Rights, Scope};
use zeroize::Zeroizing;

use crate::access::{Access, AccessDenied};
use crate::certificate::ClientCertificate;

/// User name and password together, in bytes. A shared access signature for the longest scope and
/// device id has 330 bytes at most with every octet percent-encoded, and its other fields have 200.
/// The broker keeps this much for each client that has logged in.
const MAX_CREDENTIALS: usize = 1024;

/// What the doorkeeper asks of the CA's record. Both calls may block.
///
/// A wrong `Ok` lets a stranger speak for a device, an operator, a worker or a backend.
pub trait Register: Send + Sync {
    /// Whether this very certificate is good now for whom it names: the CA issued it and has not
    /// revoked it.
    ///
    /// # Errors
    /// It is not good, or that cannot be found out.
    fn certificate(&self, certificate: &ClientCertificate) -> Result<Good, NotGood>;

    /// Whose user name and password (MQTT 5 §3.1.3.5, §3.1.3.6) these are.
    ///
    /// # Errors
    /// They are nobody's, or that cannot be found out.
    fn login(&self, user_name: &str, password: &[u8]) -> Result<LoggedIn, NotGood>;
}

/// The register's word that a certificate is good now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Good {
    /// What its holder may do now, if it is a backend. The doorkeeper ignores it of all others.
    pub rights: Rights,
}

/// The register's word whose user name and password these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    /// The doorkeeper admits it only if it is a device.
    pub identity: Identity,
    /// For how long, from when the register was asked.
    pub expires_in: Duration,
}

/// Why the register does not vouch for a client. The texts are for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotGood {
    /// The same certificate or password will not be good later either.
    Refused(String),
    /// The register could not find it out.
    Unknown(String),
}

/// Why a client is not admitted. The texts are for the log: the client is told no more than which
/// variant it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denial {
    /// Its client id, scope or role does not permit it.
    #[error(transparent)]
    Access(#[from] AccessDenied),
    /// Its certificate is not good.
    #[error("{0}")]
    Certificate(String),
    /// Its user name and password are not good.
    #[error("{0}")]
    Login(String),
    /// It could not be found out. The client may try again. A connected client may stay while the
    /// broker asks again a few times.
    #[error("{0}")]
    Unknown(String),
}

/// What a client shows when it connects.
pub enum Shown<'a> {
    /// Nothing, at a listener for clients that have no certificate yet. A user name and a password
    /// do not matter there.
    Nothing,
    /// A certificate that TLS has verified. A user name and a password beside it do not matter.
    Certificate(ClientCertificate),
    /// No certificate, at a listener for clients that have one. A device may log in there instead.
    Login {
        /// Of its CONNECT.
        user_name: Option<&'a str>,
        /// Of its CONNECT.
        password: Option<&'a [u8]>,
    },
}

/// Decides by one CA's rules, in one scope.
pub struct Doorkeeper {
    scope: Scope,
    register: Arc<dyn Register>,
    bootstrapping: Duration,
}

/// A client that keeps every rule that can be checked without the register.
pub struct Visitor {
    doorkeeper: Arc<Doorkeeper>,
    papers: Papers,
}

/// What the admission of a visitor is based on. The password is wiped when it is dropped.
enum Papers {
    None { access: Access, until: Option<Instant> },
    Certificate { access: Access, certificate: ClientCertificate, until: Option<Instant> },
    Login { client: String, user_name: String, password: Zeroizing<Vec<u8>> },
}

/// What [`Visitor::decide`] asks the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Nothing, so that it does not block.
    None,
    /// About a certificate.
    Certificate,
    /// About a user name and a password.
    Login,
}

/// A client may connect, with this access and until this time. Only a doorkeeper makes one.
#[derive(Clone)]
pub struct Admission {
    access: Access,
    until: Option<Instant>,
    visitor: Arc<Visitor>,
}

impl Doorkeeper {
    /// A client without a certificate may stay for `bootstrapping`.
    pub fn new(scope: Scope, register: Arc<dyn Register>, bootstrapping: Duration) -> Self {
        Self { scope, register, bootstrapping }
    }

    /// The scope whose devices may connect.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Checks what can be checked without the register. Never blocks.
    ///
    /// # Errors
    /// The client will not be admitted.
    pub fn receive(
        self: &Arc<Self>,
        shown: Shown<'_>,
        client: &str,
    ) -> Result<Arc<Visitor>, Denial> {
        let papers = match shown {
            Shown::Nothing => Papers::None {
                access: Access::bootstrapping(&self.scope, client)?,
                until: Instant::now().checked_add(self.bootstrapping),
            },
            Shown::Certificate(certificate) => {
                let left = certificate.not_after.duration_since(SystemTime::now());
                let left =
                    left.map_err(|_| Denial::Certificate("its certificate expired".into()))?;
                Papers::Certificate {
                    access: Access::identified(&self.scope, &certificate.identity, client)?,
                    certificate,
                    until: Instant::now().checked_add(left),
                }
            }
            Shown::Login { user_name: Some(user_name), password: Some(password) } => {
                if user_name.len() + password.len() > MAX_CREDENTIALS {
                    return Err(Denial::Login("its user name and password are too long".into()));
                }
                Papers::Login {
                    client: client.to_owned(),
                    user_name: user_name.to_owned(),
                    password: password.to_vec().into(),
                }
            }
            Shown::Login { .. } => {
                let text = "it shows no certificate, and no user name with a password";
                return Err(Denial::Login(text.into()));
            }
        };
        Ok(Arc::new(Visitor { doorkeeper: self.clone(), papers }))
    }
}

impl Visitor {
    /// What [`decide`](Self::decide) asks the register.
    pub fn question(&self) -> Question {
        match self.papers {
            Papers::None { .. } => Question::None,
            Papers::Certificate { .. } => Question::Certificate,
            Papers::Login { .. } => Question::Login,
        }
    }

    /// Asks the register, if it has a [question](Self::question), and decides by its answer.
    /// Blocks as long as the register does.
    ///
    /// # Errors
    /// The client is not admitted.
    pub fn decide(self: &Arc<Self>) -> Result<Admission, Denial> {
        let Doorkeeper { scope, register, .. } = &*self.doorkeeper;
        let (access, until) = match &self.papers {
            Papers::None { access, until } => (access.clone(), *until),
            Papers::Certificate { access, certificate, until } => {
                let Good { rights } =
                    register.certificate(certificate).map_err(|no| no.of(Denial::Certificate))?;
                (access.clone().granted(&rights), *until)
            }
            Papers::Login { client, user_name, password } => {
                let asked = Instant::now();
                let LoggedIn { identity, expires_in } =
                    register.login(user_name, password).map_err(|no| no.of(Denial::Login))?;
                (Access::logged_in(scope, &identity, client)?, asked.checked_add(expires_in))
            }
        };
        Ok(Admission { access, until, visitor: self.clone() })
    }
}

impl Admission {
    /// What the client may say and hear.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// When its connection must end; never if `None`.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Why its connection must end [then](Self::until), for the log.
    pub fn expiry(&self) -> &'static str {
        match self.visitor.papers {
            Papers::None { .. } => "it was connected for too long without a certificate",
            Papers::Certificate { .. } => "its certificate expired",
            Papers::Login { .. } => "its login expired",
        }
    }

    /// What [`decide_again`](Self::decide_again) asks the register.
    pub fn question(&self) -> Question {
        self.visitor.question()
    }

    /// Decides again about a client that is connected. The new admission takes the place of this
    /// one. It may end earlier, but never later. Blocks as [`Visitor::decide`] does.
    ///
    /// # Errors
    /// The client is no longer admitted, or that could not be found out.
    pub fn decide_again(&self) -> Result<Self, Denial> {
        let again = self.visitor.decide()?;
        let until = match (self.until, again.until) {
            (Some(before), Some(now)) => Some(before.min(now)),
            (before, now) => before.or(now),
        };
        Ok(Self { until, ..again })
    }
}

impl NotGood {
    fn of(self, refused: impl FnOnce(String) -> Denial) -> Denial {
        match self {
            Self::Refused(text) => refused(text),
            Self::Unknown(text) => Denial::Unknown(text),
        }
    }
}
