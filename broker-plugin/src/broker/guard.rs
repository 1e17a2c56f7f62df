//! Applies the access rules to one connection: the broker core asks it about the CONNECT and about each topic.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use assay_wire::{Scope, Topic};
use mqtt5::QoS;
use mqtt5::broker::auth::{AuthProvider, AuthResult};
use mqtt5::broker::events::{BrokerEventHandler, ClientConnectEvent, ClientPublishEvent, PublishAction};
use mqtt5::packet::connect::ConnectPacket;
use mqtt5::packet::publish::PublishPacket;
use mqtt5::types::ReasonCode;
use tokio::sync::{Notify, SetOnce, watch};
use tokio::time::sleep;
use tracing::{debug, warn};

use super::listener::{Core, KEEP_ALIVE, REQUEST_PACKET};
use super::login::{Credentials, LoginDesk};
use super::{Admit, Denial, LoggedIn};
use crate::access::{Access, Identity, Refusal};

/// What a bootstrapping client may publish, and a device request, over one connection before it is cut. The ticket flow
/// needs 2; the rest is for retries. It is below [`super::listener::BOOTSTRAP_LANE`], so a client that never reads its
/// replies can neither fill its delivery lane, at which the worker would have to wait, nor hold more than this many
/// replies in memory.
const PUBLISHES: usize = 32;

/// How often a recheck is tried that finds nothing out, and how long after the last time. A database that is busy or restored is back
/// within that; a device that was revoked is heard for as long at most.
const RECHECK_TRIES: u32 = 5;
const RECHECK_RETRY: Duration = Duration::from_secs(1);

/// Who is at the other end, as far as TLS has established it.
pub(super) enum Peer {
    Anonymous {
        /// How long it may stay.
        lifetime: Duration,
    },
    Certified {
        identity: Identity,
        /// The content octets of the certificate's serial number (RFC 5280 §4.1.2.2), big-endian.
        serial: Vec<u8>,
        /// When it expires; TLS has seen to its being valid now.
        expires_in: Duration,
        admit: Arc<Admit>,
    },
    /// Nobody until the desk has accepted user name and password of its CONNECT.
    Claimant(Arc<LoginDesk>),
}

impl Peer {
    pub(super) fn is_worker(&self) -> bool {
        matches!(self, Self::Certified { identity: Identity::Worker, .. })
    }
}

/// The policy of one connection.
pub(super) struct Guard {
    scope: Scope,
    peer: Peer,
    core: Core,
    introduced: Notify,
    access: OnceLock<Access>,
    login: SetOnce<Admission>,
    connected: Notify,
    published: AtomicUsize,
}

/// What a claimant was let in with.
struct Admission {
    credentials: Arc<Credentials>,
    expires_in: Duration,
}

type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Guard {
    pub(super) fn new(scope: Scope, peer: Peer, core: Core) -> Self {
        Self {
            scope,
            peer,
            core,
            introduced: Notify::new(),
            access: OnceLock::new(),
            login: SetOnce::new(),
            connected: Notify::new(),
            published: AtomicUsize::new(0),
        }
    }

    /// Returns once the CONNECT packet has arrived.
    pub(super) async fn introduced(&self) {
        self.introduced.notified().await;
    }

    async fn check_connect(&self, connect: &ConnectPacket) -> Result<Access, NotAdmitted> {
        check_offer(connect)?;
        let client = &connect.client_id;
        match &self.peer {
            Peer::Anonymous { .. } => Ok(Access::bootstrapping(&self.scope, client)?),
            Peer::Certified { identity, .. } => {
                let access = Access::identified(&self.scope, identity, client)?;
                self.check_certificate().await?;
                Ok(access)
            }
            Peer::Claimant(desk) => {
                let credentials = Arc::new(Credentials::from_connect(connect)?);
                let (access, expires_in) = self.log_in(desk, &credentials).await?;
                // A connection has one CONNECT.
                let _ = self.login.set(Admission { credentials, expires_in });
                Ok(access)
            }
        }
    }

    /// What `credentials` are good for now, and how long.
    async fn log_in(
        &self,
        desk: &LoginDesk,
        credentials: &Arc<Credentials>,
    ) -> Result<(Access, Duration), NotAdmitted> {
        let LoggedIn { identity, expires_in } = desk.ask(credentials).await?;
        Ok((Access::logged_in(&self.scope, &identity, credentials.client())?, expires_in))
    }

    /// Asks, off the async threads, whether the certificate is good now.
    async fn check_certificate(&self) -> Result<(), NotAdmitted> {
        let Peer::Certified { identity, serial, admit, .. } = &self.peer else { return Ok(()) };
        let (identity, serial, admit) = (identity.clone(), serial.clone(), admit.clone());
        match tokio::task::spawn_blocking(move || admit(&identity, &serial)).await {
            Ok(answer) => answer.map_err(|denial| NotAdmitted::new(denial, ReasonCode::NotAuthorized)),
            Err(panic) => Err(NotAdmitted::unknown(panic.to_string())),
        }
    }

    /// Ends the connection of a bootstrapping client whose time is up, or of a device whose certificate or login has expired
    /// or, asked again at each `recheck`, is no longer admitted.
    pub(super) async fn end_when_unwelcome(&self, recheck: watch::Receiver<()>) {
        let reason = tokio::select! {
            overstayed = self.overstayed() => overstayed.to_owned(),
            refused = self.refused(recheck) => refused.reason,
        };
        // Until the broker core has registered the client, it would find nobody to cut.
        self.connected.notified().await;
        if let Some(client) = self.access.get().and_then(Access::client) {
            self.cut(client, &reason).await;
        }
    }

    /// Returns when the client's time is up.
    async fn overstayed(&self) -> &'static str {
        match &self.peer {
            Peer::Anonymous { lifetime } => {
                sleep(*lifetime).await;
                "connected for too long without a certificate"
            }
            Peer::Certified { identity: Identity::Device { .. }, expires_in, .. } => {
                sleep(*expires_in).await;
                "certificate expired"
            }
            Peer::Certified { .. } => std::future::pending().await,
            Peer::Claimant(_) => {
                sleep(self.login.wait().await.expires_in).await;
                "login expired"
            }
        }
    }

    /// Returns when a device, asked about again, is no longer admitted, or when that cannot be found out for long.
    async fn refused(&self, mut recheck: watch::Receiver<()>) -> NotAdmitted {
        while recheck.changed().await.is_ok() {
            let mut tries = 1;
            while let Err(refusal) = self.check_again().await {
                if !refusal.is_unknown() || tries == RECHECK_TRIES {
                    return refusal;
                }
                tries += 1;
                sleep(RECHECK_RETRY).await;
            }
        }
        std::future::pending().await
    }

    async fn check_again(&self) -> Result<(), NotAdmitted> {
        match &self.peer {
            Peer::Certified { identity: Identity::Device { .. }, .. } => self.check_certificate().await,
            Peer::Anonymous { .. } | Peer::Certified { .. } => Ok(()),
            Peer::Claimant(desk) => {
                let credentials = &self.login.wait().await.credentials;
                self.log_in(desk, credentials).await.map(|_| ())
            }
        }
    }

    /// What about this message costs its sender the connection.
    fn offence(&self, event: &ClientPublishEvent) -> Option<&'static str> {
        let retainable = self.access.get().is_some_and(|access| access.may_retain(&event.topic));
        let size = event.payload.len() + event.response_topic.as_ref().map_or(0, |topic| topic.len());
        if event.retain && !retainable {
            Some("retained message")
        } else if !is_request(&event.topic) {
            None
        } else if event.qos == QoS::AtMostOnce {
            // Receive Maximum (MQTT 5 §3.3.4) slows down only what is acknowledged.
            Some("request at QoS 0")
        } else if size > REQUEST_PACKET {
            Some("request too large")
        } else {
            None
        }
    }

    /// Ends the connection as soon as the packet at hand is dealt with.
    async fn cut(&self, client_id: &str, reason: &str) {
        debug!(client = client_id, reason, "cutting the connection");
        self.core.router.unregister_client(client_id).await;
    }
}

/// Why a client is not let in.
pub(super) struct NotAdmitted {
    /// For the client.
    pub(super) code: ReasonCode,
    /// For the log.
    pub(super) reason: String,
}

impl NotAdmitted {
    /// A refusal is told by `code`.
    pub(super) fn new(denial: Denial, code: ReasonCode) -> Self {
        match denial {
            Denial::Refused(reason) => Self { code, reason },
            Denial::Unknown(reason) => Self::unknown(reason),
        }
    }

    /// It could not be found out; that is for the operator to know, and for the client to try again.
    pub(super) fn unknown(reason: String) -> Self {
        warn!(reason, "cannot find out whether a client may be let in");
        Self { code: ReasonCode::ServerUnavailable, reason }
    }

    fn is_unknown(&self) -> bool {
        self.code == ReasonCode::ServerUnavailable
    }
}

impl From<Refusal> for NotAdmitted {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::ClientId { .. } => ReasonCode::ClientIdentifierNotValid,
            _ => ReasonCode::NotAuthorized,
        };
        Self { code, reason: refusal.to_string() }
    }
}

/// Refuses what nobody may ask for, whoever it is.
fn check_offer(connect: &ConnectPacket) -> Result<(), NotAdmitted> {
    let refused = |reason: &str| Err(NotAdmitted { code: ReasonCode::NotAuthorized, reason: reason.into() });
    // The broker core would publish it without asking, with whatever properties it carries.
    if connect.will.is_some() {
        return refused("it has a Will");
    }
    // MQTT 5 clients are told the broker's keep-alive; for MQTT 3.1.1 there is only this way to bound it.
    // 0 stands for no keep-alive at all (MQTT 3.1.1 §3.1.2.10).
    let bounded = 1..=KEEP_ALIVE.as_secs();
    if connect.protocol_version < 5 && !bounded.contains(&connect.keep_alive.into()) {
        return refused(&format!("its keep-alive of {} s is too long", connect.keep_alive));
    }
    Ok(())
}

impl AuthProvider for Guard {
    fn authenticate<'a>(
        &'a self,
        connect: &'a ConnectPacket,
        _client_addr: SocketAddr,
    ) -> Answer<'a, mqtt5::Result<AuthResult>> {
        Box::pin(async move {
            self.introduced.notify_one();
            Ok(match self.check_connect(connect).await {
                Ok(access) => {
                    self.access.get_or_init(|| access);
                    AuthResult::success()
                }
                Err(NotAdmitted { code, reason }) => {
                    debug!(client = connect.client_id, reason, "CONNECT refused");
                    AuthResult::fail(code)
                }
            })
        })
    }

    fn authorize_publish<'a>(&'a self, client_id: &str, _user_id: Option<&'a str>, topic: &'a str) -> Answer<'a, bool> {
        let client_id = client_id.to_owned();
        Box::pin(async move {
            let Some(access) = self.access.get() else {
                return false;
            };
            let metered = access.is_bootstrapping() || is_request(topic);
            if metered && self.published.fetch_add(1, Ordering::Relaxed) >= PUBLISHES {
                self.cut(&client_id, "too many publishes on one connection").await;
                return false;
            }
            let may = access.may_publish(topic);
            if may && is_request(topic) {
                // A moment after the start at most; before, nobody would hear it.
                self.core.opened.wait().await;
            }
            may
        })
    }

    fn authorize_subscribe<'a>(
        &'a self,
        _client_id: &str,
        _user_id: Option<&'a str>,
        filter: &'a str,
    ) -> Answer<'a, bool> {
        Box::pin(async move { self.access.get().is_some_and(|access| access.may_subscribe(filter)) })
    }
}

impl BrokerEventHandler for Guard {
    fn on_client_connect<'a>(&'a self, _event: ClientConnectEvent) -> Answer<'a, ()> {
        self.connected.notify_one();
        Box::pin(async {})
    }

    /// Routes a packet made anew instead of the one that came: the broker core hands on properties that MQTT 5 §3.3.2.3 does
    /// not know in a PUBLISH, and a subscriber that meets one ends its connection. It also tells clients whether retaining is
    /// available (§3.2.2.3.5) but does not hold them to it.
    fn on_client_publish<'a>(&'a self, event: ClientPublishEvent) -> Answer<'a, PublishAction> {
        Box::pin(async move {
            if let Some(offence) = self.offence(&event) {
                self.cut(&event.client_id, offence).await;
                return PublishAction::Handled;
            }
            PublishAction::Transform(plain(event))
        })
    }
}

fn is_request(topic: &str) -> bool {
    matches!(Topic::parse(topic), Some(Topic::Request(..)))
}

/// The message with the Response Topic, which the worker examines, as its only property.
fn plain(event: ClientPublishEvent) -> PublishPacket {
    let mut packet = PublishPacket::new(event.topic.as_ref(), event.payload, event.qos).with_retain(event.retain);
    packet.packet_id = event.packet_id;
    if let Some(topic) = event.response_topic {
        packet.properties.set_response_topic(topic.as_ref().into());
    }
    packet
}
