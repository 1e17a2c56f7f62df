//! EKs about which an operator is asked.

use assay_ca_core::{Applicant, EkFacts};
use assay_wire::{DeviceId, EkId, Flow};
use time::OffsetDateTime;

/// An EK whose certificate leads to a trusted vendor, and which a group that asks is for. Nothing
/// shows that whoever asked has its TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The EK.
    pub ek_id: EkId,
    /// What its certificate says of its TPM.
    pub facts: EkFacts,
    /// What was asked for last.
    pub flow: Flow,
    /// The device id that was asked for. On record is the first one: whoever asks for another one
    /// later does not change what the operator looks at.
    pub device_id: Option<DeviceId>,
    /// When it was asked for.
    pub asked_at: OffsetDateTime,
}

impl Waiting {
    /// What is kept of whoever asks.
    pub fn of(applicant: &Applicant, asked_at: OffsetDateTime) -> Self {
        Self {
            ek_id: applicant.ek_id,
            facts: applicant.facts.clone(),
            flow: applicant.flow,
            device_id: applicant.device_id.clone(),
            asked_at,
        }
    }
}

/// A [`Waiting`] on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRow {
    /// What was asked last.
    pub waiting: Waiting,
    /// When it was asked for first, in seconds since 1970. When it was last is
    /// [`Waiting::asked_at`].
    pub first_seen: i64,
}

/// The most EKs that wait. If more come, those that were not heard of for longest make way: with
/// the EK certificates of that many TPMs, anybody can make as many rows, of less than 1 KiB each.
pub(crate) const MAX_PENDING: i64 = 10_000;
