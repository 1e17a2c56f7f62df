//! EKs about which an operator is asked.

use assay_ca_core::Applicant;
use assay_wire::{DeviceId, EkId, Flow};
use time::OffsetDateTime;

/// An EK whose certificate leads to a trusted vendor, and which a group that asks is for. Nothing
/// shows that whoever asked has its TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The EK.
    pub ek_id: EkId,
    /// The subject of the anchor that its certificate leads to.
    pub vendor: String,
    /// The TPM's manufacturer, as its certificate has it; empty if it has none.
    pub manufacturer: String,
    /// The TPM's model, in the same way.
    pub model: String,
    /// The TPM's firmware version, in the same way.
    pub firmware: String,
    /// What was asked for last.
    pub flow: Flow,
    /// The device id that was asked for last, if any.
    pub device_id: Option<DeviceId>,
    /// When it was asked for.
    pub asked_at: OffsetDateTime,
}

impl Waiting {
    /// What is kept of whoever asks.
    pub fn of(applicant: &Applicant, asked_at: OffsetDateTime) -> Self {
        let tpm = applicant.tpm.as_ref();
        let text = |text: Option<&String>| {
            let text = text.map(String::as_str).unwrap_or_default();
            text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
        };
        Self {
            ek_id: applicant.ek_id,
            vendor: text(applicant.vendor.as_ref()),
            manufacturer: text(tpm.map(|tpm| &tpm.manufacturer)),
            model: text(tpm.map(|tpm| &tpm.model)),
            firmware: text(tpm.map(|tpm| &tpm.version)),
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
/// The longest text that is kept of a certificate, in bytes.
const MAX_TEXT: usize = 128;
