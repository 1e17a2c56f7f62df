//! What a certificate said of the TPM of an EK, for a time when the device does not show it.

use crate::ek::ca_key::CaKey;
use crate::ek::model::TpmModel;

/// What groups ask of an EK certificate. It is kept with an enrolment: a device that leaves its
/// certificate out must not be another one to the groups than before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EkFacts {
    /// The subject of the anchor that the certificate leads to; empty if it was not checked.
    pub vendor: String,
    /// The TPM that the certificate names.
    pub tpm: Option<TpmModel>,
    /// The keys of the CAs between the certificate and the anchor, the anchor's too; none if that
    /// was not checked.
    pub issuers: Vec<CaKey>,
}

impl EkFacts {
    /// The longest text that is kept of a certificate, in bytes.
    pub const MAX_TEXT: usize = 128;

    /// Of a certificate that leads to an anchor.
    pub(crate) fn new(vendor: &str, tpm: Option<TpmModel>, issuers: &[CaKey]) -> Self {
        Self { vendor: bounded(vendor), issuers: issuers.to_vec(), ..Self::of_file(tpm) }
    }

    /// Of a certificate for which an operator vouches: who signed it was not checked.
    pub fn of_file(tpm: Option<TpmModel>) -> Self {
        let tpm = tpm.map(|tpm| TpmModel {
            manufacturer: bounded(&tpm.manufacturer),
            model: bounded(&tpm.model),
            version: bounded(&tpm.version),
        });
        Self { vendor: String::new(), tpm, issuers: Vec::new() }
    }
}

/// PostgreSQL takes no U+0000, and nobody wants the other control characters.
fn bounded(text: &str) -> String {
    let mut text = text.replace(char::is_control, "\u{FFFD}");
    text.truncate(text.floor_char_boundary(EkFacts::MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_certificate_says_is_kept_without_control_characters_and_bounded() {
        let model = format!("sw\0pm\u{1b}[31m{}", "ä".repeat(200));
        let tpm = TpmModel { manufacturer: String::new(), model, version: String::new() };
        let facts = EkFacts::new("CN=a\nb", Some(tpm), &[]);
        assert_eq!(facts.vendor, "CN=a\u{FFFD}b");
        let model = facts.tpm.unwrap().model;
        assert!(model.starts_with("sw\u{FFFD}pm\u{FFFD}[31m"), "{model}");
        assert!(model.len() <= EkFacts::MAX_TEXT);
    }
}
