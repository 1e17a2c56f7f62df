//! Connections to the operational listener, each signed in with what the state directory has then.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use assay_mqtt::BrokerUrl;
use assay_wire::DeviceId;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connack::Refusal;
use crate::clock::Clock;
use crate::credentials::{Credentials, SignIn};
use crate::error::Error;
use crate::token::DEFAULT_LIFETIME;
use crate::tpm::TpmThread;
use crate::trouble::{Purpose, Trouble};

/// Opens connections, one at a time: the TPM signs for each of them.
pub(super) struct Upstream {
    pub(super) broker: BrokerUrl,
    pub(super) tpm: TpmThread,
    pub(super) state: PathBuf,
    /// Those that the device was given.
    pub(super) roots: Vec<CertificateDer<'static>>,
    pub(super) clock: Clock,
    turn: Arc<Semaphore>,
}

/// A connection that TLS let in. CONNECT comes next.
pub(super) struct Opened {
    pub(super) stream: TlsStream<TcpStream>,
    pub(super) device: DeviceId,
    pub(super) password: Option<String>,
}

/// Why there is no connection: what the local client is told, and what people are told.
pub(super) struct Away {
    pub(super) refusal: Refusal,
    pub(super) reason: String,
}

impl Upstream {
    pub(super) fn new(
        broker: BrokerUrl,
        tpm: TpmThread,
        state: PathBuf,
        roots: Vec<CertificateDer<'static>>,
        clock: Clock,
    ) -> Self {
        Self { broker, tpm, state, roots, clock, turn: Semaphore::new(1).into() }
    }

    /// Opens a connection, within the time that a local client waits for it.
    pub(super) async fn open(self: &Arc<Self>) -> Result<Opened, Away> {
        let opened = timeout(LIMIT, async {
            // Unwrap safety: nobody closes this semaphore.
            let turn = self.turn.clone().acquire_owned().await.unwrap();
            let this = self.clone();
            let runtime = Handle::current();
            // A thread of its own, because the TPM may take long, and others are served meanwhile.
            let opened = spawn_blocking(move || {
                let _turn = turn;
                this.sign_in_and_open(&runtime)
            });
            opened.await.unwrap_or_else(|panic| Err(Away::unavailable(panic.to_string())))
        });
        let late = || Away::unavailable(format!("{} did not answer", self.broker));
        opened.await.unwrap_or_else(|_| Err(late()))
    }

    fn sign_in_and_open(&self, runtime: &Handle) -> Result<Opened, Away> {
        let Self { tpm, state, roots, clock, broker, .. } = self;
        let sign_in = Credentials { tpm, state, roots, clock }.sign_in(DEFAULT_LIFETIME)?;
        let SignIn { device_id, tls, password, .. } = sign_in;
        let host = broker.host();
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| Away::unavailable(format!("{broker}: {error}")))?;
        let opened = runtime.block_on(timeout(LIMIT, async {
            let tcp = TcpStream::connect((host, broker.port())).await?;
            tcp.set_nodelay(true)?;
            TlsConnector::from(Arc::new(tls)).connect(name, tcp).await
        }));
        let stream = opened
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| self.away(&error))?;
        Ok(Opened { stream, device: device_id, password })
    }

    /// Why a connection ended before there was an answer.
    pub(super) fn away(&self, error: &io::Error) -> Away {
        match Trouble::of_stream(error, &self.broker, Purpose::Operation).examined(|| None) {
            Ok(reason) => Away::unavailable(reason),
            Err(error) => error.into(),
        }
    }
}

impl Away {
    pub(super) fn unavailable(reason: String) -> Self {
        Self { refusal: Refusal::Unavailable, reason }
    }
}

/// A client need not try again soon if the device has nothing that the broker accepts.
impl From<Error> for Away {
    fn from(error: Error) -> Self {
        let refusal = match error {
            Error::NotProvisioned(_)
            | Error::NoCertificate
            | Error::NoSharedKey
            | Error::KeyGone { .. }
            | Error::Expired { .. }
            | Error::Clock { .. }
            | Error::LoginRefused { .. } => Refusal::NotAuthorized,
            _ => Refusal::Unavailable,
        };
        Self { refusal, reason: error.to_string() }
    }
}

/// For the turn, the TPM, TCP and TLS together. Many clients give up after 30 s.
const LIMIT: Duration = Duration::from_secs(20);
