//! What a TPM's response code means, in words.

use std::fmt;

use tpm2_protocol::data::{TpmRc, TpmRcBase, TpmRcFmt1, TpmRcIndex};

/// A TPM_RC other than success (TPM 2.0 Part 2, 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResponseCode(pub(super) u32);

impl ResponseCode {
    /// The code without the number of its handle or parameter; `None` for codes of vendors, and of
    /// specifications newer than this program.
    pub(super) fn base(self) -> Option<TpmRcBase> {
        self.parse().map(|code| code.base())
    }

    /// Whether the same command may succeed a moment later (TPM 2.0 Part 2, 6.6.3). The TPM has not
    /// done any part of it.
    pub(super) fn asks_to_retry(self) -> bool {
        matches!(self.base(), Some(TpmRcBase::Retry | TpmRcBase::Yielded | TpmRcBase::Testing))
    }

    /// Whether it is about the first handle of the command.
    pub(super) fn is_about_first_handle(self) -> bool {
        matches!(
            self.parse(),
            Some(TpmRc::Fmt1(TpmRcFmt1 { index: Some(TpmRcIndex::Handle(1)), .. }))
        )
    }

    fn parse(self) -> Option<TpmRc> {
        let code = if self.is_of_resource_manager() { self.0 & 0xFFFF } else { self.0 };
        TpmRc::try_from(code).ok()
    }

    /// The kernel's resource manager answers some commands itself, and says so in the layer of the
    /// code (TCG TSS 2.0 Overview, 2.3: TSS2_RESMGR_RC_LAYER and TSS2_RESMGR_TPM_RC_LAYER).
    fn is_of_resource_manager(self) -> bool {
        matches!(self.0 >> 16, 11 | 12)
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(code) = self.parse() else {
            return f.write_str("a code of its vendor, or a new one");
        };
        write!(f, "{}", code.base())?;
        if let TpmRc::Fmt1(TpmRcFmt1 { index: Some(index), .. }) = code {
            match index {
                TpmRcIndex::Parameter(number) => write!(f, " for parameter {number}")?,
                TpmRcIndex::Handle(number) => write!(f, " for handle {number}")?,
                TpmRcIndex::Session(number) => write!(f, " for session {number}")?,
            }
        }
        if self.is_of_resource_manager() {
            f.write_str(" from the resource manager")?;
        }
        meaning(code.base()).map_or(Ok(()), |meaning| write!(f, ": {meaning}"))
    }
}

/// The codes that are likely while a device is provisioned. The others show their names.
fn meaning(code: TpmRcBase) -> Option<&'static str> {
    Some(match code {
        TpmRcBase::Asymmetric
        | TpmRcBase::Curve
        | TpmRcBase::Hash
        | TpmRcBase::KeySize
        | TpmRcBase::Symmetric => "this TPM has no such algorithm",
        TpmRcBase::AuthFail => {
            "the password or the policy does not authorise this, and the failure counts"
        }
        TpmRcBase::BadAuth => "the password is wrong",
        TpmRcBase::CommandCode => "this TPM does not have the command, or it is disabled",
        TpmRcBase::Disabled => "the command is disabled",
        TpmRcBase::Failure => "the TPM has failed its self-test; it needs a reset",
        TpmRcBase::Handle => "there is nothing at this handle",
        TpmRcBase::Hierarchy => "the hierarchy is disabled",
        TpmRcBase::Initialize => "the TPM has not been started (TPM2_Startup)",
        TpmRcBase::Integrity => "what was sent was made for another key, or altered",
        TpmRcBase::Lockout => {
            "too many wrong passwords; the TPM refuses for a while (tpm2_dictionarylockout)"
        }
        TpmRcBase::NvSpace => "the TPM has no room for another persistent object",
        TpmRcBase::ObjectMemory => {
            "the TPM has no room for another object; other programs' objects are loaded \
             (tpm2_flushcontext -t)"
        }
        TpmRcBase::SessionMemory => {
            "the TPM has no room for another session; other programs' sessions are loaded \
             (tpm2_flushcontext -l)"
        }
        TpmRcBase::PolicyFail => "the policy of the key is not fulfilled",
        TpmRcBase::Retry | TpmRcBase::Yielded => "the TPM is busy",
        TpmRcBase::Testing => "the TPM is testing itself",
        TpmRcBase::Size => "the wrong number of bytes",
        TpmRcBase::Value => "a value out of range",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_explained_by_name_position_and_meaning() {
        for (code, text) in [
            (
                0x1DF,
                "TPM_RC_INTEGRITY for parameter 1: what was sent was made for another key, or \
                 altered",
            ),
            (0x9A2, "TPM_RC_BAD_AUTH for session 1: the password is wrong"),
            (0x18B, "TPM_RC_HANDLE for handle 1: there is nothing at this handle"),
            (0x922, "TPM_RC_RETRY: the TPM is busy"),
            (0x125, "TPM_RC_AUTH_MISSING"),
            (
                0xB_0143,
                "TPM_RC_COMMAND_CODE from the resource manager: this TPM does not have the \
                 command, or it is disabled",
            ),
            (0x57F, "a code of its vendor, or a new one"),
            (0x7_0007, "a code of its vendor, or a new one"),
        ] {
            assert_eq!(ResponseCode(code).to_string(), text, "{code:#x}");
        }
    }

    #[test]
    fn only_warnings_that_say_so_are_tried_again() {
        for (code, is_retried) in
            [(0x922, true), (0x908, true), (0x90A, true), (0x902, false), (0x101, false)]
        {
            assert_eq!(ResponseCode(code).asks_to_retry(), is_retried, "{code:#x}");
        }
    }
}
