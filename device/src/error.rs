//! What can go wrong, and whose fault it is.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use assay_device_core::{AnswerError, rfc3339};
use assay_wire::Problem;

use crate::times::is_more_than_a_day;
use crate::tpm::TpmError;

/// Why a device could not do what was asked.
///
/// The texts say what was found. What people can do about it depends on the program they use; the
/// binary `assay-device` adds it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked for something that is not possible.
    #[error("{0}")]
    Usage(String),
    /// The EK certificate that the caller gave does not tell the kind of EK.
    #[error("the EK certificate given {0}")]
    UnknownKindOfEk(String),
    /// The device signs in with a shared key, and has no certificate.
    #[error("this device has a shared key and no certificate")]
    NoCertificate,
    /// The device's key is no longer in the TPM.
    #[error(
        "the TPM no longer holds {key} at {handle:#010x}: the TPM was cleared, or it is another TPM"
    )]
    KeyGone {
        /// The key, e.g. `this device's HMAC key`.
        key: &'static str,
        /// Its persistent handle.
        handle: u32,
    },
    /// The identity key cannot be written to a file.
    #[error(
        "the state directory does not have what a file needs of the identity key at {handle:#010x}: \
         an earlier version made the key, or the state directory was lost since"
    )]
    KeyNotKept {
        /// Its persistent handle.
        handle: u32,
    },
    /// The CA refused, for good.
    #[error("the CA refused: {problem}\n  {title}.", title = problem.title)]
    Refused {
        /// What the CA said.
        problem: Problem,
    },
    /// An operator of the CA had not admitted the device when the deadline came.
    #[error(
        "not admitted yet (waited at most {} s): {problem}\n  {title}.",
        deadline.as_secs(), title = problem.title
    )]
    Pending {
        /// How long the device waited.
        deadline: Duration,
        /// What the CA said.
        problem: Problem,
    },
    /// The broker does not let the device in.
    #[error("the broker refused the login: {reason}")]
    LoginRefused {
        /// MQTT's reason.
        reason: String,
    },
    /// A setting is wrong, here or at the broker. Another attempt would end in the same way.
    #[error("{found}")]
    Misconfigured {
        /// What was found.
        found: String,
        /// What people can change.
        setting: Setting,
    },
    /// This device's clock is more than a day from what something else says.
    #[error("this device's clock is wrong: it says {clock}, but {evidence}")]
    Clock {
        /// What the clock says.
        clock: String,
        /// What contradicts the clock, and how.
        evidence: String,
    },
    /// The device has nothing to sign in with.
    #[error("{0}")]
    NotProvisioned(String),
    /// The device has no shared key.
    #[error("this device has no shared key")]
    NoSharedKey,
    /// The device's certificate has ended.
    #[error(
        "{}: the certificate ended on {not_after}; this device's clock says {clock}",
        path.display()
    )]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// Its last moment.
        not_after: String,
        /// What the clock says.
        clock: String,
    },
    /// The doctor found something that keeps the device from being provisioned.
    #[error("{failed} of the checks failed; the lines above say what to do")]
    Unwell {
        /// How many checks failed.
        failed: usize,
    },
    /// The broker or the CA did not answer properly before the deadline.
    #[error("gave up (at most {} s are allowed): {reason}", deadline.as_secs())]
    NotReached {
        /// How long the device tried.
        deadline: Duration,
        /// How the last attempt failed.
        reason: String,
    },
    /// The TPM failed.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The state directory, or a file in it, cannot be used.
    #[error("{}: {reason}", path.display())]
    State {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the state is broken. The next [`provision`](crate::Device::provision) keeps a copy
    /// of the file, and begins anew.
    #[error("{}: {reason}", path.display())]
    BrokenState {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The CA's answer failed a check. Nothing of it was stored.
    #[error("the CA's answer failed verification: {0}")]
    Answer(AnswerError),
    /// A fault of this program or of the TLS library.
    #[error("{0}")]
    Internal(String),
}

/// A setting that people can change, here or at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The broker's address: host and port.
    Address,
    /// The broker's port: devices are provisioned at the bootstrap listener, which asks for no
    /// certificate.
    BootstrapListener,
    /// The broker's port: provisioned devices connect to the operational listener.
    OperationalListener,
    /// The scheme of the broker's URL: what listens there speaks TLS, and the URL says otherwise.
    SchemeWithTls {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// The broker's port: what listens there speaks MQTT without TLS. Do not change the URL to one
    /// without TLS: anybody on the way can answer like this.
    PortWithoutTls,
    /// The TLS versions and cipher suites of the broker.
    TlsVersions,
    /// The broker, which does not speak MQTT 5.
    MqttVersion,
    /// The scope, or the access list of the broker.
    Scope,
    /// The CA's root that this device trusts.
    CaRoot,
    /// The name by which the broker is called, or the names in its certificate.
    BrokerName,
    /// The broker's certificate, which has ended by this device's clock.
    BrokerCertificateOrClock,
    /// The broker's certificate.
    BrokerCertificate,
}

impl Error {
    /// The exit code of `assay-device`: 1 unexpected, 2 usage, 3 refused by the CA or the broker,
    /// or a wrong setting, 4 broker or CA not reached, 5 TPM, 6 state directory, 7 answer of the CA
    /// failed verification, 8 not provisioned, 9 expired, 10 the doctor found a fault, 11 an
    /// operator of the CA has not admitted the device yet.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Internal(_) => 1,
            Self::Usage(_)
            | Self::UnknownKindOfEk(_)
            | Self::NoCertificate
            | Self::KeyGone { .. }
            | Self::KeyNotKept { .. } => 2,
            Self::Refused { .. }
            | Self::LoginRefused { .. }
            | Self::Misconfigured { .. }
            | Self::Clock { .. } => 3,
            Self::NotReached { .. } => 4,
            Self::Tpm(_) => 5,
            Self::State { .. } | Self::BrokenState { .. } => 6,
            Self::Answer(_) => 7,
            Self::NotProvisioned(_) | Self::NoSharedKey => 8,
            Self::Expired { .. } => 9,
            Self::Unwell { .. } => 10,
            Self::Pending { .. } => 11,
        }
    }

    pub(crate) fn state(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        |error| Self::State { path: path.into(), reason: error.to_string() }
    }

    /// The error that the clock says `now`, in seconds since 1970, and `evidence` contradicts it.
    pub(crate) fn wrong_clock(now: u64, evidence: &str) -> Self {
        Self::Clock { clock: rfc3339(now), evidence: evidence.into() }
    }
}

/// A CA issues certificates that are valid from now on. So a certificate that is not valid yet, or
/// no longer, shows that the clock is wrong.
impl From<AnswerError> for Error {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::NotYetValid { clock, not_before }
                if is_more_than_a_day(clock, not_before) =>
            {
                let from = rfc3339(not_before);
                let evidence = format!("what the CA answered is valid only from {from}");
                Self::wrong_clock(clock, &evidence)
            }
            AnswerError::Expired { clock, not_after } if is_more_than_a_day(not_after, clock) => {
                let evidence = format!("what the CA answered ended on {}", rfc3339(not_after));
                Self::wrong_clock(clock, &evidence)
            }
            _ => Self::Answer(error),
        }
    }
}
