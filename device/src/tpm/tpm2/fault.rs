//! What went wrong in a TPM operation, and the error for it.

use assay_device_core::KeyPurpose;
use tpm2_protocol::data::TpmRcBase;

use super::parts::{CommandError, Hierarchy};
use crate::tpm::error::TpmError;
use crate::tpm::tcti::Tcti;

/// What went wrong, without the operation that it belongs to.
pub(super) enum Fault {
    Command(CommandError),
    WrongPassword { hierarchy: &'static str },
    KeyWithPassword { handle: u32, key: KeyPurpose },
    Occupied { handle: u32, wanted: String, found: String, key: KeyPurpose },
    NotForThisTpm { reason: String },
    OtherEk,
    Unreadable { index: u32 },
    Unsupported(String),
}

impl From<CommandError> for Fault {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

impl Fault {
    pub(super) fn explain(self, operation: &'static str, tcti: &Tcti) -> TpmError {
        match self {
            Self::Command(CommandError::Io(error)) => {
                TpmError::Unreachable { operation, tcti: tcti.clone(), reason: error.to_string() }
            }
            Self::Command(CommandError::BadResponse(reason)) => {
                TpmError::BadResponse { operation, reason }
            }
            Self::Command(CommandError::BadArgument(reason)) => {
                TpmError::BadArgument { operation, reason }
            }
            Self::Command(CommandError::Refused(code)) => {
                TpmError::Refused { operation, code: code.0, reason: code.to_string() }
            }
            Self::WrongPassword { hierarchy } => TpmError::WrongPassword { operation, hierarchy },
            Self::KeyWithPassword { handle, key } => {
                TpmError::KeyWithPassword { operation, handle, key }
            }
            Self::Occupied { handle, wanted, found, key } => {
                TpmError::HandleOccupied { handle, wanted, found, key }
            }
            Self::NotForThisTpm { reason } => TpmError::NotForThisTpm { operation, reason },
            Self::OtherEk => TpmError::OtherEk { operation },
            Self::Unreadable { index } => TpmError::Unreadable { index },
            Self::Unsupported(what) => TpmError::Unsupported(what),
        }
    }
}

pub(super) fn authorised(hierarchy: Hierarchy, error: CommandError) -> Fault {
    if is_wrong_password(&error) {
        Fault::WrongPassword { hierarchy: hierarchy.title() }
    } else {
        error.into()
    }
}

pub(super) fn used(handle: u32, key: KeyPurpose, error: CommandError) -> Fault {
    if is_wrong_password(&error) { Fault::KeyWithPassword { handle, key } } else { error.into() }
}

/// Makes [`Fault::NotForThisTpm`] of the errors that mean that the key was not made for this TPM,
/// or that somebody altered it. An unreachable TPM is not one of them.
pub(super) fn not_opened(fault: Fault) -> Fault {
    match fault {
        Fault::Command(error @ (CommandError::Refused(_) | CommandError::BadArgument(_))) => {
            Fault::NotForThisTpm { reason: error.to_string() }
        }
        fault => fault,
    }
}

pub(super) fn is_wrong_password(error: &CommandError) -> bool {
    matches!(error.code(), Some(TpmRcBase::AuthFail | TpmRcBase::BadAuth))
}

pub(super) fn unsupported(error: CommandError, kind: &str) -> Fault {
    use TpmRcBase::{Asymmetric, Curve, Hash, KeySize, Symmetric, Value};
    match error.code() {
        Some(Asymmetric | Curve | Hash | KeySize | Symmetric | Value) => {
            Fault::Unsupported(kind.into())
        }
        _ => error.into(),
    }
}
