//! The make of a TPM.

/// The TPM that an EK certificate is for (TCG EK Credential Profile 2.5, 3.1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmModel {
    /// The vendor, as `id:` and four bytes in hexadecimal.
    pub manufacturer: String,
    /// The part.
    pub model: String,
    /// Its firmware version, as `id:` and hexadecimal.
    pub version: String,
}
