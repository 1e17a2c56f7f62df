//! Why a run ended without a result.

use alloc::string::String;

use assay_wire::{Limit, Problem};

use crate::answer::AnswerError;
use crate::tpm::TpmFailure;

/// Why a run ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A TPM operation failed: the last one that the core asked for.
    #[error("the TPM failed: {0}")]
    Tpm(TpmFailure),
    /// This TPM cannot have such keys.
    #[error("this TPM has no {0} keys")]
    Unsupported(String),
    /// The request has a certificate for an EK that no manufacturer certifies.
    #[error("no manufacturer certifies an EK of kind legacy-dps; leave the certificate out")]
    CertificateForLegacyEk,
    /// The request does not name a kind of EK, and the kind does not follow from its EK
    /// certificate.
    #[error("the EK certificate given does not tell the kind of EK")]
    UnknownKindOfEk,
    /// What the TPM gave does not fit into a request.
    #[error("this does not fit into a request: {0}")]
    TooLong(Limit),
    /// There can be no connection before somebody changes a setting. The shell knows which setting:
    /// it said [`Trouble::Lasting`](crate::Trouble::Lasting).
    #[error("the broker cannot be reached with these settings")]
    Lasting,
    /// The CA refused, for good.
    #[error("the CA refused: {0}")]
    Refused(Problem),
    /// The deadline came while the CA still waited for its operator to admit the device.
    #[error("not admitted yet: {0}")]
    Pending(Problem),
    /// The CA's answer failed a check. Nothing of it was stored.
    #[error("the CA's answer failed verification: {0}")]
    Answer(AnswerError),
    /// The deadline came before the run succeeded.
    #[error("gave up at the deadline: {reason}")]
    NotReached {
        /// Why the last attempt failed.
        reason: String,
    },
    /// The machine was asked for its result before it had one.
    #[error("not finished")]
    Unfinished,
}

impl From<AnswerError> for Failure {
    fn from(error: AnswerError) -> Self {
        Self::Answer(error)
    }
}

impl From<TpmFailure> for Failure {
    fn from(failure: TpmFailure) -> Self {
        Self::Tpm(failure)
    }
}

impl From<Limit> for Failure {
    fn from(limit: Limit) -> Self {
        Self::TooLong(limit)
    }
}
