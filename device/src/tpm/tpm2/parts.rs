//! The parts of commands to a TPM: errors, hierarchies, NV indices, and sized buffers.

use tpm2_protocol::basic::TpmHandle;
use tpm2_protocol::data::{TpmRcBase, TpmRh};

use super::response_code::ResponseCode;
use crate::der;
use crate::tpm::password::HierarchyPasswords;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The TPM cannot be reached, or no longer.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The TPM sent something that is not a response to the command.
    #[error("{0}")]
    BadResponse(String),
    /// An argument fits into no command.
    #[error("{0}")]
    BadArgument(String),
    /// The TPM refused.
    #[error("{0}")]
    Refused(ResponseCode),
}

impl CommandError {
    pub(super) fn code(&self) -> Option<TpmRcBase> {
        match self {
            Self::Refused(code) => code.base(),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, CommandError>;

/// The size of an NV index, and who may read it.
pub(super) struct NvIndex {
    /// In bytes.
    pub(super) size: u16,
    /// Its Name from the TPM; empty if the library keeps it (TPM 2.0 Part 1, 16).
    pub(super) name: Vec<u8>,
    pub(super) takes_own_password: bool,
    pub(super) takes_owner_password: bool,
}

/// Who authorises reading an NV index.
#[derive(Clone, Copy)]
pub(super) enum Reader {
    /// By the index's own, empty password.
    Index,
    /// By the owner's password, if there is one, which the session carries.
    Owner { session: Option<u32> },
}

/// The hierarchy that a primary key comes from, and that decides who may keep keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hierarchy {
    Owner,
    Endorsement,
    /// Anybody may use it. Its keys are lost when the TPM is reset.
    Null,
}

impl Hierarchy {
    pub(super) fn handle(self) -> TpmHandle {
        let handle = match self {
            Self::Owner => TpmRh::Owner,
            Self::Endorsement => TpmRh::Endorsement,
            Self::Null => TpmRh::Null,
        };
        handle.value().into()
    }

    /// The Name of a permanent handle is the handle (TPM 2.0 Part 1, 16).
    pub(super) fn name(self) -> Vec<u8> {
        self.handle().value().to_be_bytes().to_vec()
    }

    pub(super) fn password(self, passwords: &HierarchyPasswords) -> &[u8] {
        match self {
            Self::Owner => passwords.owner.without_zeros(),
            Self::Endorsement => passwords.endorsement.without_zeros(),
            Self::Null => &[],
        }
    }

    /// Its name in errors.
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Endorsement => "endorsement",
            Self::Null => "null",
        }
    }
}

/// ECDSA-Sig-Value (RFC 3279 §2.2.3).
pub(super) fn signed_by_ecdsa(r: &[u8], s: &[u8]) -> Vec<u8> {
    der::sequence(&[&der::unsigned_integer(r), &der::unsigned_integer(s)])
}

/// A TPM2B with this content.
pub(super) fn sized<'a, T: TryFrom<&'a [u8]>>(bytes: &'a [u8], what: &str) -> Result<T> {
    T::try_from(bytes).map_err(|_| {
        CommandError::BadArgument(format!("{} bytes are too many for {what}", bytes.len()))
    })
}

/// `None` if the TPM says that there is nothing at the command's only handle (TPM 2.0 Part 3, 5.4).
pub(super) fn there<R>(outcome: Result<R>) -> Result<Option<R>> {
    match outcome {
        Err(CommandError::Refused(code))
            if code.base() == Some(TpmRcBase::Handle) && code.is_about_first_handle() =>
        {
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}

/// The most that the library can read from one answer (TpmlHandle). TPMs give 254 at most (TPM 2.0
/// Part 2, 10.9.3: MAX_CAP_HANDLES).
pub(super) const MAX_HANDLES_AT_ONCE: u32 = 128;
/// Far more than any TPM has of one type. Chips have room for a few dozen.
pub(super) const MAX_HANDLES: usize = 4096;
