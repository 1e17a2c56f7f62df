//! What the state directory and errors mean to the plan.

use std::path::Path;
use std::time::Duration;

use assay_device_core::{Attempt, Grant, HmacPublic};

use super::plan::{Obstacle, Stored};
use crate::error::Error;
use crate::state;
use crate::tpm::TpmError;
use crate::verify::{self, Period};

/// What the state directory says. What cannot be read counts as nothing: the conversation with the
/// CA that follows says why.
pub(super) fn stored(state: &Path) -> Stored {
    let Ok(memory) = state::memory(state) else { return Stored::Nothing };
    let is_renewed = matches!(memory.attempt, Some(Attempt::Renewed(_)));
    let is_rotated = matches!(memory.attempt, Some(Attempt::Rotated(_)));
    match memory.credentials().next() {
        None => Stored::Nothing,
        Some(Grant::SharedKey(grant)) => Stored::SharedKey {
            key: grant
                .record
                .keys
                .into_iter()
                .next()
                .map(|HmacPublic(key)| key)
                .unwrap_or_default(),
            rotation: grant.rotation,
            is_settled: !is_rotated,
        },
        Some(Grant::Certificate(grant)) => {
            let leaf = grant.chain.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
            let Ok(period) = verify::period(leaf, grant.renew_at) else { return Stored::Nothing };
            let Period { serial, not_before, not_after, renew_at } = period;
            let is_finished = !is_renewed && grant.unconfirmed.is_none();
            Stored::Certificate { serial, not_before, not_after, renew_at, is_finished }
        }
    }
}

pub(super) fn obstacle(error: &Error) -> Obstacle {
    match error {
        Error::LoginRefused { .. } => Obstacle::Refused,
        Error::KeyGone { .. }
        | Error::NotProvisioned(_)
        | Error::BrokenState { .. }
        | Error::Expired { .. }
        | Error::NoSharedKey
        | Error::NoCertificate => Obstacle::Gone,
        Error::NotReached { .. } | Error::Tpm(_) | Error::State { .. } => Obstacle::Passing,
        Error::Refused { problem } | Error::Pending { problem, .. } => {
            let seconds = problem.retry_after.unwrap_or_default();
            Obstacle::Lasting { retry_after: Duration::from_secs(seconds.into()) }
        }
        Error::Misconfigured { .. }
        | Error::Clock { .. }
        | Error::KeyNotKept { .. }
        | Error::Answer(_)
        | Error::Usage(_)
        | Error::UnknownKindOfEk(_)
        | Error::Unwell { .. }
        | Error::Internal(_) => Obstacle::Lasting { retry_after: Duration::ZERO },
    }
}

pub(super) fn refuse_what_nobody_can_mend(error: &Error) -> Result<(), Error> {
    match error {
        Error::Usage(_)
        | Error::UnknownKindOfEk(_)
        | Error::Tpm(TpmError::TimedOut { .. } | TpmError::Abandoned) => Err(error.clone()),
        _ => Ok(()),
    }
}
