//! Lists of EKs as operators have them: a CSV file, or a directory with a file for each.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use assay_broker_plugin::store::NewEnrolment;
use assay_ca_core::{EkIdentity, RecognisedAs, Reprovision};
use assay_wire::{DeviceId, EkId};
use csv::{ByteRecord, ErrorKind, ReaderBuilder, Trim};
use time::OffsetDateTime;

/// What stands in one line or file, or why it cannot be enrolled.
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) content: Result<NewEnrolment>,
}

/// Where in the list.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Line(u64),
    File(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(number) => write!(f, "line {number}"),
            Self::File(name) => f.write_str(name),
        }
    }
}

/// What holds for entries that do not say otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) reprovision: Option<Reprovision>,
    pub(crate) legacy_dps_ek: Option<bool>,
    pub(crate) added_at: OffsetDateTime,
}

impl Defaults {
    /// Checks an EK in any form and joins it to what is said of it.
    pub(crate) fn enrolment(&self, ek: &[u8]) -> Result<(RecognisedAs, EkIdentity, NewEnrolment)> {
        let (recognised, identity) = EkIdentity::recognise(ek)?;
        let enrolment = NewEnrolment {
            ek_id: identity.ek_id,
            device_id: None,
            recognised: recognised.to_string(),
            reprovision: self.reprovision,
            legacy_dps_ek: self.legacy_dps_ek,
            disabled: None,
            added_at: self.added_at,
        };
        Ok((recognised, identity, enrolment))
    }
}

/// Reads every entry, in the order of the file or of the names, and refuses what stands there twice. `progress` hears how many are read.
///
/// # Errors
/// The file or directory cannot be read, or the file has no header that says what its columns are.
pub(crate) fn read(path: &Path, defaults: Defaults, progress: impl FnMut(usize)) -> Result<Vec<Entry>> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut entries =
        if metadata.is_dir() { read_directory(path, defaults, progress) } else { read_csv(path, defaults, progress) }
            .with_context(|| format!("cannot read {}", path.display()))?;
    refuse_repetitions(&mut entries);
    Ok(entries)
}

/// Reads a file that can hold no more than one EK.
///
/// # Errors
/// It cannot be read, or is too long.
pub(crate) fn read_small(file: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(file)?.take(MAX_EK as u64 + 1).read_to_end(&mut content)?;
    ensure!(content.len() <= MAX_EK, "longer than {MAX_EK} bytes, which no EK is in any form");
    Ok(content)
}

fn read_directory(path: &Path, defaults: Defaults, mut progress: impl FnMut(usize)) -> Result<Vec<Entry>> {
    let mut files: Vec<_> =
        fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    files.retain(|file| file.is_file() && !file_name(file).starts_with('.'));
    files.sort();
    let mut entries = Vec::with_capacity(files.len());
    for file in files {
        let content = read_small(&file).and_then(|content| {
            let (_, ek, enrolment) = defaults.enrolment(&content)?;
            checked(&ek, enrolment)
        });
        entries.push(Entry { place: Place::File(file_name(&file)), content });
        progress(entries.len());
    }
    Ok(entries)
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read_csv(path: &Path, defaults: Defaults, mut progress: impl FnMut(usize)) -> Result<Vec<Entry>> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    ensure!(length <= MAX_CSV, "it has {length} bytes; split it into files of at most {MAX_CSV}");
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(file.take(MAX_CSV));
    let columns = Columns::of(reader.byte_headers()?)?;
    let mut entries = Vec::new();
    let mut record = ByteRecord::new();
    loop {
        let (line, content) = match reader.read_byte_record(&mut record) {
            Ok(false) => return Ok(entries),
            Ok(true) => (record.position().map(csv::Position::line), columns.enrolment(&record, defaults)),
            Err(error) => match error.kind() {
                ErrorKind::UnequalLengths { pos, expected_len, len } => {
                    let reason = anyhow::anyhow!("it has {len} cells and the header {expected_len}");
                    (pos.as_ref().map(csv::Position::line), Err(reason))
                }
                _ => return Err(error.into()),
            },
        };
        entries.push(Entry { place: Place::Line(line.unwrap_or_default()), content });
        progress(entries.len());
    }
}

/// Where each column of a CSV file stands.
#[derive(Default)]
struct Columns {
    endorsement_key: usize,
    device_id: Option<usize>,
    reprovision: Option<usize>,
    legacy_dps_ek: Option<usize>,
    status: Option<usize>,
}

impl Columns {
    fn of(header: &ByteRecord) -> Result<Self> {
        let mut columns = Self::default();
        let mut endorsement_key = None;
        for (position, name) in header.iter().enumerate() {
            let name = String::from_utf8_lossy(name);
            let column = match &*name {
                "endorsement_key" => &mut endorsement_key,
                "registration_id" | "device_id" => &mut columns.device_id,
                "reprovision" => &mut columns.reprovision,
                "legacy_dps_ek" => &mut columns.legacy_dps_ek,
                "status" => &mut columns.status,
                _ => bail!("its header names a column {name:?}; there are {COLUMNS}"),
            };
            ensure!(column.replace(position).is_none(), "its header names the column {name} twice{}", alias(&name));
        }
        let missing = || format!("its first line names no column endorsement_key; there are {COLUMNS}");
        Ok(Self { endorsement_key: endorsement_key.with_context(missing)?, ..columns })
    }

    fn enrolment(&self, record: &ByteRecord, defaults: Defaults) -> Result<NewEnrolment> {
        for cell in record {
            ensure!(cell.len() <= MAX_EK, "a cell is longer than {MAX_EK} bytes");
        }
        let ek = record.get(self.endorsement_key).unwrap_or_default();
        ensure!(!ek.is_empty(), "endorsement_key is empty");
        let (_, identity, enrolment) = defaults.enrolment(ek).context("endorsement_key")?;
        let device_id = cell(record, self.device_id, |id| Ok(id.parse()?)).context("device id")?;
        let reprovision = cell(record, self.reprovision, |policy| Ok(policy.parse()?)).context("reprovision")?;
        let legacy =
            cell(record, self.legacy_dps_ek, |flag| either(flag, ["false", "true"])).context("legacy_dps_ek")?;
        let disabled = cell(record, self.status, |status| either(status, ["enabled", "disabled"])).context("status")?;
        let enrolment = NewEnrolment {
            device_id,
            reprovision: reprovision.or(enrolment.reprovision),
            legacy_dps_ek: legacy.or(enrolment.legacy_dps_ek),
            disabled,
            ..enrolment
        };
        checked(&identity, enrolment)
    }
}

fn alias(name: &str) -> &'static str {
    if matches!(name, "registration_id" | "device_id") { "; registration_id and device_id are the same" } else { "" }
}

/// The cell of a column that may be missing; an empty one says nothing.
fn cell<T>(record: &ByteRecord, column: Option<usize>, read: impl Fn(&str) -> Result<T>) -> Result<Option<T>> {
    match column.and_then(|column| record.get(column)) {
        None | Some(b"") => Ok(None),
        Some(text) => Ok(Some(read(std::str::from_utf8(text)?)?)),
    }
}

fn either(text: &str, [no, yes]: [&str; 2]) -> Result<bool> {
    ensure!(text == no || text == yes, "{text:?} is neither {yes} nor {no}");
    Ok(text == yes)
}

/// Refuses an enrolment as an EK of Azure's SDKs that cannot be one.
pub(crate) fn checked(ek: &EkIdentity, enrolment: NewEnrolment) -> Result<NewEnrolment> {
    if enrolment.legacy_dps_ek == Some(true) {
        ek.check_azure_sdk().context("legacy_dps_ek")?;
    }
    Ok(enrolment)
}

/// Makes the second entry for an EK or device id an error that names the first.
fn refuse_repetitions(entries: &mut [Entry]) {
    let mut eks: HashMap<EkId, Place> = HashMap::new();
    let mut device_ids: HashMap<DeviceId, Place> = HashMap::new();
    for Entry { place, content } in entries {
        let Ok(enrolment) = content else { continue };
        if let Some(first) = eks.get(&enrolment.ek_id) {
            *content = Err(anyhow::anyhow!("the same EK as {first}"));
            continue;
        }
        eks.insert(enrolment.ek_id, place.clone());
        let Some(device_id) = &enrolment.device_id else { continue };
        if let Some(first) = device_ids.get(device_id) {
            *content = Err(anyhow::anyhow!("the same device id as {first}: {device_id}"));
            continue;
        }
        device_ids.insert(device_id.clone(), place.clone());
    }
}

const COLUMNS: &str = "endorsement_key, registration_id or device_id, reprovision, legacy_dps_ek, status";
/// An EK certificate has at most 4 KiB (`assay_wire::MAX_CERTIFICATE`), so 6 KiB in PEM, and what `openssl x509 -text` writes above it.
const MAX_EK: usize = 16 * 1024;
/// A million lines of 256 bytes. An open quotation mark makes the rest of the file one cell, which must fit in memory.
const MAX_CSV: u64 = 256 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(header: &[&str]) -> Result<Columns> {
        Columns::of(&ByteRecord::from(header.to_vec()))
    }

    fn refused(header: &[&str]) -> String {
        columns(header).err().expect("refused").to_string()
    }

    #[test]
    fn columns_stand_in_any_order() {
        let columns = columns(&["status", "registration_id", "endorsement_key"]).unwrap();
        assert_eq!((columns.endorsement_key, columns.device_id, columns.status), (2, Some(1), Some(0)));
        assert_eq!((columns.reprovision, columns.legacy_dps_ek), (None, None));
    }

    #[test]
    fn unknown_missing_and_repeated_columns_are_refused_by_name() {
        assert!(refused(&["endorsement_key", "registrationId"]).contains("\"registrationId\""));
        assert!(refused(&["registration_id"]).contains("no column endorsement_key"));
        assert!(refused(&["endorsement_key", "endorsement_key"]).contains("endorsement_key twice"));
        assert!(refused(&["endorsement_key", "device_id", "registration_id"]).contains("are the same"));
    }

    #[test]
    fn flags_have_two_values() {
        assert!(either("true", ["false", "true"]).unwrap());
        assert!(!either("false", ["false", "true"]).unwrap());
        for other in ["", "True", "1", "yes"] {
            assert!(either(other, ["false", "true"]).is_err(), "{other}");
        }
    }
}
