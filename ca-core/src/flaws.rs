//! Firmware of TPMs with known flaws.

use crate::ek::facts::EkFacts;
use crate::groups::{Firmware, Manufacturer};

/// Versions of a manufacturer's firmware that have a flaw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What people call it.
    pub name: String,
    /// Whose TPMs have it.
    pub manufacturer: Manufacturer,
    /// The first and the last of versions that follow each other.
    pub versions: Vec<(Firmware, Firmware)>,
    /// Who says so.
    pub source: String,
}

/// The flaws that are known to a CA.
///
/// An EK certificate has the firmware of when it was made. So that a TPM is found here establishes
/// that it had the flaw; whether it was updated since, nothing here can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flaws(Vec<Flaw>);

impl Flaws {
    /// These.
    pub fn new(flaws: Vec<Flaw>) -> Self {
        Self(flaws)
    }

    /// All of them.
    pub fn all(&self) -> &[Flaw] {
        &self.0
    }

    /// Those that a TPM had when it was made.
    pub fn of<'a>(&'a self, facts: &EkFacts) -> impl Iterator<Item = &'a Flaw> + use<'a> {
        let tpm = facts.tpm.as_ref();
        let manufacturer = tpm.and_then(|tpm| tpm.manufacturer.parse::<Manufacturer>().ok());
        let firmware = tpm.and_then(|tpm| tpm.version.parse::<Firmware>().ok());
        let has_it = move |flaw: &&Flaw| {
            let is_within = |version: Firmware| {
                flaw.versions.iter().any(|(first, last)| version.is_within(*first, *last))
            };
            manufacturer == Some(flaw.manufacturer) && firmware.is_some_and(is_within)
        };
        self.0.iter().filter(has_it)
    }
}
