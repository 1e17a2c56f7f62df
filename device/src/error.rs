//! What can go wrong, by whose doing, and the exit code that says so.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use assay_wire::{Problem, ProblemCode};

use crate::clock::{self, is_more_than_a_day, rfc3339};
use crate::tpm::TpmError;
use crate::verify::AnswerError;

/// Why a device could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller asked for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The CA refused, for good.
    #[error("the CA refused: {problem}\n  {title}.\n  What to do: {advice}", title = problem.title, advice = advice(problem.code))]
    Refused {
        /// What the CA said.
        problem: Problem,
    },
    /// The broker does not let the device in.
    #[error(
        "the broker refused the login: {reason}\n  What to do: check this device's clock, then \
         run `assay-device provision --again`, whose answer says whether the CA still knows this \
         device; a key or certificate may be superseded, revoked or disabled. Tokens of a shared \
         key are for the CA's built-in broker alone."
    )]
    LoginRefused {
        /// MQTT's reason.
        reason: String,
    },
    /// Something is set wrongly, here or at the broker. Trying again would end in the same.
    #[error("{found}\n  What to do: {advice}")]
    Misconfigured {
        /// What was found.
        found: String,
        /// What people can change.
        advice: String,
    },
    /// This device's clock is more than a day from what something else says.
    #[error(
        "this device's clock is wrong: it says {clock}, but {evidence}\n  What to do: set the \
         clock; a device that has none starts from the date of its CA's root with --no-clock."
    )]
    Clock {
        /// What the clock says.
        clock: String,
        /// What says otherwise, and what it says.
        evidence: String,
    },
    /// The device has nothing to sign in with.
    #[error("{0}")]
    NotProvisioned(String),
    /// The device's certificate has ended.
    #[error(
        "{}: the certificate ended on {not_after}; this device's clock says {clock}\n  What to do: run `assay-device \
         provision`, which gets another one; if that is not the time, set the clock.",
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
    /// The doctor found something that provisioning cannot work with.
    #[error("{failed} of the checks failed; the lines above say what to do")]
    Unwell {
        /// How many checks failed.
        failed: usize,
    },
    /// Broker or CA did not answer, or not with what is needed, before the deadline.
    #[error("gave up (at most {} s are allowed): {reason}", deadline.as_secs())]
    NotReached {
        /// The time there was.
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
    /// What the CA answered failed our checks. Nothing of it was stored.
    #[error("the CA's answer failed verification: {0}")]
    Answer(AnswerError),
    /// A fault of this program or of the TLS library.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    /// The exit code of `assay-device`: 1 unexpected, 2 usage, 3 refused by the CA or the broker,
    /// or set wrongly, 4 broker or CA not reached, 5 TPM, 6 state directory, 7 answer of the CA
    /// failed verification, 8 not provisioned, 9 expired, 10 the doctor found a fault.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Internal(_) => 1,
            Self::Usage(_) => 2,
            Self::Refused { .. }
            | Self::LoginRefused { .. }
            | Self::Misconfigured { .. }
            | Self::Clock { .. } => 3,
            Self::NotReached { .. } => 4,
            Self::Tpm(_) => 5,
            Self::State { .. } => 6,
            Self::Answer(_) => 7,
            Self::NotProvisioned(_) => 8,
            Self::Expired { .. } => 9,
            Self::Unwell { .. } => 10,
        }
    }

    pub(crate) fn state(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        |error| Self::State { path: path.into(), reason: error.to_string() }
    }
}

/// A CA certifies from now on, so a certificate that is not valid yet, or no longer, tells what the
/// time is.
impl From<AnswerError> for Error {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::NotYetValid { clock, not_before }
                if is_more_than_a_day(clock, not_before) =>
            {
                clock::wrong(
                    clock,
                    &format!("what the CA answered is valid only from {}", rfc3339(not_before)),
                )
            }
            AnswerError::Expired { clock, not_after } if is_more_than_a_day(not_after, clock) => {
                clock::wrong(
                    clock,
                    &format!("what the CA answered ended on {}", rfc3339(not_after)),
                )
            }
            _ => Self::Answer(error),
        }
    }
}

/// What the people at the device or at the CA can do about a refusal.
fn advice(code: ProblemCode) -> &'static str {
    match code {
        ProblemCode::Malformed | ProblemCode::Oversize | ProblemCode::Unsupported => {
            "device and CA speak different versions of the protocol; update the older one."
        }
        ProblemCode::Busy | ProblemCode::Internal => "try again later.",
        ProblemCode::FlowNotOffered => {
            "choose another flow (--flow), or ask the operator to offer this one: flows in \
             assay.toml."
        }
        ProblemCode::EkOffTemplate => {
            "report this TPM's model: its EK has a shape that the CA does not know."
        }
        ProblemCode::EkWeak => {
            "this TPM's EK must not be trusted; update its firmware or replace it."
        }
        ProblemCode::EkNotEnrolled => {
            "give the EK certificate in a file (--ek-certificate), or ask the operator to enrol \
             the EK: assay enroll add."
        }
        ProblemCode::EkCertificateInvalid => {
            "check that the file is the EK certificate of this TPM (--ek-certificate)."
        }
        ProblemCode::EkCertificateUntrusted => {
            "ask the operator to trust the TPM's vendor (assay trust add), and give missing \
             issuers with --ek-certificate."
        }
        ProblemCode::EkCertificateExpired => {
            "check the clocks; else ask the operator to enrol the EK itself: assay enroll add."
        }
        ProblemCode::EkCertificateMismatch => {
            "the EK certificate belongs to another TPM or another of its keys; choose the right \
             one (--ek, --ek-certificate)."
        }
        ProblemCode::OtherEkOnRecord => {
            "show the EK that the operator knows; `assay-device ek` prints all with their ids. To \
             be another device with this one, name it: --ek."
        }
        ProblemCode::IkOffTemplate | ProblemCode::IkWeak => {
            "use another kind of identity key (--ik, --ik-handle)."
        }
        ProblemCode::CsrInvalid
        | ProblemCode::CsrSignatureInvalid
        | ProblemCode::CsrKeyMismatch => "report this as a fault of the device's software.",
        ProblemCode::ParentOffTemplate | ProblemCode::ParentWeak => {
            "use another kind of parent (--parent)."
        }
        ProblemCode::PlainSrk => {
            "leave out --parent srk-…; if this device needs it, have the operator allow it, as \
             said above."
        }
        ProblemCode::ReprovisionRefused => {
            "ask the operator to permit it: assay enroll update --reprovision reissue."
        }
        ProblemCode::DeviceDisabled => {
            "ask the operator why; assay enroll enable lets the device in again."
        }
        ProblemCode::DeviceIdTaken | ProblemCode::DeviceIdNotEnrolled => {
            "ask for no device id, or have the operator enrol this EK with it: assay enroll add \
             --device-id."
        }
        ProblemCode::EkRegistered => {
            "ask for the device id that this TPM is registered under, or for none."
        }
        ProblemCode::ClaimExpired | ProblemCode::TicketRefused => {
            "try again; if it stays so, check the CA's clock, and that all its workers share one \
             ticket key."
        }
        ProblemCode::QuotaExceeded => {
            "find out why this device makes new identity keys so often; it may try again later."
        }
        ProblemCode::Other(_) => "update this device's software: the CA is newer.",
    }
}
