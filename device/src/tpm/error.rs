//! Why a TPM did not do what was asked.

use std::time::Duration;

use assay_device_core::{KeyPurpose, TpmFailureKind};

use super::tcti::Tcti;

/// Why the TPM did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// The TPM, or the way to it, is not there.
    #[error("no TPM at {tcti} ({operation} failed: {reason})")]
    Unreachable {
        /// What was being done.
        operation: &'static str,
        /// Where the TPM was looked for.
        tcti: Tcti,
        /// What the system says.
        reason: String,
    },
    /// The TPM did not answer in time. It is not asked again, because a second command would only
    /// wait behind the first.
    #[error("the TPM was still {operation} after {} s", limit.as_secs())]
    TimedOut {
        /// What was being done.
        operation: &'static str,
        /// How long it was allowed to take.
        limit: Duration,
    },
    /// An earlier call timed out, so the TPM is no longer used.
    #[error("a call to the TPM timed out, so the TPM is not used again; open it again")]
    Abandoned,
    /// A hierarchy has another password than the one that was given.
    #[error("{operation}: the TPM refused the {hierarchy} password")]
    WrongPassword {
        /// What was being done.
        operation: &'static str,
        /// `owner` or `endorsement`.
        hierarchy: &'static str,
    },
    /// The handle of the IK or of the HMAC key holds another object, which stays as it is.
    #[error("persistent handle {handle:#010x} holds {found}, not {wanted}")]
    HandleOccupied {
        /// The handle.
        handle: u32,
        /// What was looked for, e.g. `an identity key of kind p-256`.
        wanted: String,
        /// What is there.
        found: String,
        /// The key that was looked for there.
        key: KeyPurpose,
    },
    /// A key has a password, so this program did not make it.
    #[error(
        "{operation}: the key at persistent handle {handle:#010x} has a password, so it is not \
         this device's"
    )]
    KeyWithPassword {
        /// What was being done.
        operation: &'static str,
        /// The handle of the key.
        handle: u32,
        /// What the key is for.
        key: KeyPurpose,
    },
    /// The TPM cannot open a key that was sent to it.
    #[error("{operation}: not made for this TPM's EK and parent: {reason}")]
    NotForThisTpm {
        /// What was being done.
        operation: &'static str,
        /// What the TPM says, or what was wrong before it was asked.
        reason: String,
    },
    /// The TPM shows another EK than before, or than the CA knows this device by.
    #[error(
        "{operation}: the TPM does not show the EK by which the CA knows this device: it is \
         another TPM, or somebody changes the data on its bus. The TPM was given no password"
    )]
    OtherEk {
        /// What was being done.
        operation: &'static str,
    },
    /// An EK certificate cannot be read with any password that is known.
    #[error(
        "the TPM does not let this device read NV index {index:#010x}, where an EK certificate is"
    )]
    Unreadable {
        /// The NV index.
        index: u32,
    },
    /// This TPM cannot have such keys.
    #[error("this TPM has no {0} keys")]
    Unsupported(String),
    /// The TPM refused a command.
    #[error("{operation}: the TPM answered {code:#x}: {reason}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// The TPM_RC (TPM 2.0 Part 2, 6.6).
        code: u32,
        /// What the code means.
        reason: String,
    },
    /// An argument fits into no command.
    #[error("{operation}: {reason}")]
    BadArgument {
        /// What was being done.
        operation: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// What came back is no response to the command.
    #[error("{operation}: the TPM's response is malformed: {reason}")]
    BadResponse {
        /// What was being done.
        operation: &'static str,
        /// What is wrong with the response.
        reason: String,
    },
    /// Anything else. [`Tpm2`](super::Tpm2) does not use it; it is for other implementations, and
    /// for a TPM without a free handle.
    #[error("{operation}: {reason}")]
    Other {
        /// What was being done.
        operation: &'static str,
        /// What happened.
        reason: String,
    },
}

impl TpmError {
    /// The kind of failure, by which the core decides.
    pub(crate) fn kind(&self) -> TpmFailureKind {
        match self {
            Self::Refused { .. } | Self::BadArgument { .. } => TpmFailureKind::Refused,
            Self::NotForThisTpm { .. } => TpmFailureKind::NotForThisTpm,
            Self::Unsupported(_) => TpmFailureKind::Unsupported,
            Self::Unreadable { .. } => TpmFailureKind::Unreadable,
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Abandoned
            | Self::WrongPassword { .. }
            | Self::HandleOccupied { .. }
            | Self::KeyWithPassword { .. }
            | Self::OtherEk { .. }
            | Self::BadResponse { .. }
            | Self::Other { .. } => TpmFailureKind::Other,
        }
    }
}
