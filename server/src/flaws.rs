//! Firmware with known flaws: the list of this version, and what an operator adds.

use anyhow::{Context, Result};
use assay_ca_core::{Firmware, Flaw, Flaws};
use serde::Deserialize;

/// Those of this version, and those in the text of a file of the same form.
///
/// # Errors
/// The text cannot be read.
pub(crate) fn read(more: Option<&str>) -> Result<Flaws> {
    let mut all = parse(KNOWN).expect("a test reads it");
    if let Some(more) = more {
        all.extend(parse(more)?);
    }
    Ok(Flaws::new(all))
}

fn parse(text: &str) -> Result<Vec<Flaw>> {
    let File { flaw } = toml::from_str(text)?;
    flaw.into_iter().map(|entry| entry.checked().with_context(|| entry.name.clone())).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    flaw: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    source: String,
    manufacturer: String,
    firmware: Vec<String>,
}

impl Entry {
    fn checked(&self) -> Result<Flaw> {
        let versions = self.firmware.iter().map(|text| range(text));
        Ok(Flaw {
            name: self.name.clone(),
            manufacturer: self.manufacturer.parse()?,
            versions: versions.collect::<Result<_>>()?,
            source: self.source.clone(),
        })
    }
}

/// `7.40`, or `7.40 to 7.61`.
fn range(text: &str) -> Result<(Firmware, Firmware)> {
    let (first, last) = text.split_once(" to ").unwrap_or((text, text));
    let version = |text: &str| {
        let (major, minor) = text.split_once('.')?;
        let (major, minor): (u16, u16) = (major.parse().ok()?, minor.parse().ok()?);
        format!("id:{major:04X}{minor:04X}").parse::<Firmware>().ok()
    };
    let both = version(first).zip(version(last));
    let both = both.filter(|(first, last)| first.is_within(*first, *last));
    both.with_context(|| format!("{text:?} is no version, such as 7.40, or 7.40 to 7.61"))
}

/// The list of this version.
const KNOWN: &str = include_str!("flaws.toml");

#[cfg(test)]
mod tests {
    use assay_ca_core::{EkFacts, TpmModel};

    use super::*;

    fn found(flaws: &Flaws, manufacturer: &str, version: &str) -> Vec<String> {
        let [manufacturer, version] = [manufacturer, version].map(str::to_owned);
        let facts = EkFacts::of_file(Some(TpmModel { manufacturer, model: "x".into(), version }));
        flaws.of(&facts).map(|flaw| flaw.name.clone()).collect()
    }

    #[test]
    fn a_tpm_that_was_made_with_a_flaw_is_found_and_no_other() {
        let flaws = read(None).unwrap();
        for (manufacturer, version, flaw) in [
            // A real certificate: ST33HTPHAHB4.
            ("id:53544D20", "id:00490004", Some("TPM-FAIL")),
            ("id:53544D20", "id:00490014", None),
            ("id:53544D20", "id:00010102", None),
            ("id:49465800", "id:00070028", Some("ROCA")),
            ("id:49465800", "id:0007003D", Some("ROCA")),
            ("id:49465800", "id:0007003E", None),
            ("id:49465800", "id:00040022", None),
            ("id:49465800", "id:00040028", Some("ROCA")),
            // Versions of another length are not compared, and another vendor numbers anew.
            ("id:49465800", "id:0007002800000000", None),
            ("id:4E544300", "id:0581", None),
            ("id:494E5443", "id:00490004", None),
        ] {
            let expected: Vec<_> = flaw.iter().map(ToString::to_string).collect();
            assert_eq!(found(&flaws, manufacturer, version), expected, "{manufacturer} {version}");
        }
        assert_eq!(flaws.of(&EkFacts::default()).count(), 0);
    }

    #[test]
    fn an_operator_adds_flaws() {
        let more = "[[flaw]]\nname = \"own\"\nsource = \"a letter\"\nmanufacturer = \
                    \"id:494E5443\"\nfirmware = [\"2.0 to 2.5\"]\n";
        let flaws = read(Some(more)).unwrap();
        assert_eq!(found(&flaws, "id:494E5443", "id:00020003"), ["own"]);
        assert_eq!(found(&flaws, "id:53544D20", "id:00490004"), ["TPM-FAIL"]);
        for wrong in ["2.5 to 2.0", "2", "2.x", "70000.1", ""] {
            assert!(read(Some(&more.replace("2.0 to 2.5", wrong))).is_err(), "{wrong}");
        }
        assert!(read(Some("[[flow]]")).is_err());
    }
}
