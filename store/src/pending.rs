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
    /// The device id that was asked for. On record is the first one: whoever asks for another one
    /// later does not change what the operator looks at.
    pub device_id: Option<DeviceId>,
    /// When it was asked for.
    pub asked_at: OffsetDateTime,
}

impl Waiting {
    /// What is kept of whoever asks.
    pub fn of(applicant: &Applicant, asked_at: OffsetDateTime) -> Self {
        let tpm = applicant.tpm.as_ref();
        let text = |text: Option<&String>| {
            // PostgreSQL takes no U+0000, and nobody wants the others.
            let text = text.map(String::as_str).unwrap_or_default();
            let text = text.replace(char::is_control, "\u{FFFD}");
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

#[cfg(test)]
mod tests {
    use assay_ca_core::TpmModel;
    use time::Duration;

    use super::*;

    #[test]
    fn what_a_certificate_says_is_kept_without_control_characters_and_bounded() {
        let model = format!("sw\0pm\u{1b}[31m{}", "ä".repeat(200));
        let tpm = TpmModel { manufacturer: String::new(), model, version: String::new() };
        let applicant = Applicant {
            ek_id: [1; 32].into(),
            vendor: Some("CN=a\nb".into()),
            tpm: Some(tpm),
            flow: Flow::Ticket,
            device_id: None,
            waited: Duration::ZERO,
        };
        let waiting = Waiting::of(&applicant, OffsetDateTime::UNIX_EPOCH);
        assert_eq!(waiting.vendor, "CN=a\u{FFFD}b");
        assert!(waiting.model.starts_with("sw\u{FFFD}pm\u{FFFD}[31m"), "{}", waiting.model);
        assert!(waiting.model.len() <= MAX_TEXT);
    }
}
