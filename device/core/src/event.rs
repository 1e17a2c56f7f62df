//! What passes between a machine and the shell around it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use assay_wire::{ClientId, DeviceId, Scope};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::answer::AnswerError;
use crate::certificate::VerifiedPath;
use crate::memory::Memory;
use crate::step::Step;
use crate::tpm::{TpmAnswer, TpmFailure, TpmOperation};

/// What the shell has to do. Each action names the [`Event`] that answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Have the TPM do this. Answer: [`Event::Tpm`].
    Tpm(TpmOperation),
    /// Store this in place of what was stored before, so that it survives a loss of power. Answer:
    /// [`Event::Stored`]. A shell that cannot store it drops the machine: before the answer, the
    /// machine sends nothing that depends on it.
    Store(Box<Memory>),
    /// Verify that a chain, leaf first, leads to a pinned root. Answer: [`Event::PathVerified`].
    VerifyPath(Vec<CertificateDer<'static>>),
    /// Pin this root beside those that are pinned, so that it survives a loss of power, if one of
    /// them certified it as a new root. Answer: [`Event::Pinned`].
    Pin(CertificateDer<'static>),
    /// Decrypt with AES-256-GCM. Answer: [`Event::Unsealed`].
    Unseal(SealedBox),
    /// Compute the SHA-256 of these bytes. Answer: [`Event::Digest`].
    Digest(Vec<u8>),
    /// Verify this, and keep it if it is newer than what was kept before. Answer:
    /// [`Event::Configuration`].
    Configuration(Box<ReceivedConfiguration>),
    /// Draw bytes that nobody can guess. Answer: [`Event::Random`].
    Draw,
    /// Read the device's clock. Answer: [`Event::Clock`].
    Clock,
    /// Begin to connect to the bootstrap listener and to subscribe to the reply topic, in place of
    /// an earlier connection. Do not wait for the connection: other actions follow. Answer, at any
    /// time later: [`Event::Connected`] or [`Event::Lost`].
    Connect(Connection),
    /// Publish this on the request topic of the connection, QoS 1. Answer, at any time later:
    /// [`Event::Reply`] or [`Event::Lost`]; perhaps none, or several.
    Send(Vec<u8>),
    /// Disconnect, if there is a connection. Give no more events of it. No answer.
    Disconnect,
    /// Show this step to people. No answer.
    Progress(Step),
    /// Do nothing until an event comes, or the time is `until`. Answer: any event; [`Event::Time`]
    /// if none comes.
    Wait {
        /// In the machine's time. [`Duration::MAX`] if the machine can go on only with an answer.
        until: Duration,
    },
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The TPM answered.
    Tpm(Result<TpmAnswer, TpmFailure>),
    /// The memory is stored.
    Stored,
    /// The path is verified, or why it is not valid: [`AnswerError::Path`],
    /// [`Unreadable`](AnswerError::Unreadable), [`NotYetValid`](AnswerError::NotYetValid) or
    /// [`Expired`](AnswerError::Expired).
    PathVerified(Result<VerifiedPath, AnswerError>),
    /// What became of the root.
    Pinned(Pinning),
    /// The contents of the box; `None` if its tag does not match.
    Unsealed(Option<Zeroizing<Vec<u8>>>),
    /// The digest.
    Digest([u8; 32]),
    /// The configuration is kept, and has this revision; `None` if the same one was kept before.
    /// Or why it is not kept; the text is for people.
    Configuration(Result<Option<u64>, String>),
    /// Random bytes.
    Random([u8; 16]),
    /// What the device's clock says, in seconds since 1970.
    Clock(u64),
    /// The connection is there, and the broker granted the subscription.
    Connected,
    /// The connection failed, or the broker does not do its part.
    Lost(Trouble),
    /// A message on the reply topic. Anybody may have written it.
    Reply(Vec<u8>),
    /// Only time has passed.
    Time,
}

/// What became of a root that the CA sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pinning {
    /// It is pinned from now on. Its name.
    New(String),
    /// It was pinned before.
    Known,
    /// It is not pinned, for this reason. Nothing changed.
    Refused(String),
}

/// A connection to the bootstrap listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The MQTT client id: fresh, and nobody can guess it.
    pub client: ClientId,
    /// Where requests are published.
    pub request_topic: String,
    /// Where replies come.
    pub reply_topic: String,
}

/// A document of the operator's, as it came with a certificate. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedConfiguration {
    /// A [`SignedConfiguration`](assay_wire::SignedConfiguration), if it can be read.
    pub signed: Vec<u8>,
    /// The scope that it must be for.
    pub scope: Scope,
    /// The device that it must be for.
    pub device_id: DeviceId,
    /// When the device's certificate ends, in seconds since 1970: a device without a clock knows no
    /// better how late it can be.
    pub not_after: u64,
}

/// What was encrypted with AES-256-GCM (SP 800-38D).
#[derive(Clone, PartialEq, Eq)]
pub struct SealedBox {
    /// The key.
    pub key: Zeroizing<[u8; 32]>,
    /// The nonce.
    pub nonce: [u8; 12],
    /// The associated data.
    pub associated_data: Vec<u8>,
    /// The ciphertext, then the tag of 16 bytes.
    pub sealed: Vec<u8>,
}

impl core::fmt::Debug for SealedBox {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("SealedBox(..)")
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It may pass: another attempt may succeed. The text is for people.
    Passing(String),
    /// It stays until somebody changes a setting. The run ends with
    /// [`Failure::Lasting`](crate::Failure::Lasting).
    Lasting,
}

/// How much the device and the CA sent each other, counted as MQTT payloads: without topics, TLS
/// and TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many requests were sent.
    pub requests: u32,
    /// The total length of the requests, in bytes.
    pub bytes_sent: usize,
    /// The total length of the replies, in bytes.
    pub bytes_received: usize,
}
