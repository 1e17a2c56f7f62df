//! Lists of EKs as operators have them: a CSV file, or a directory with a file for each.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, stdin};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use assay_ca_core::{EkFacts, EkIdentity, RecognisedAs, Reprovision};
use assay_store::{NewEnrolment, Tags};
use assay_wire::{DeviceId, EkId};
use csv::{ByteRecord, ErrorKind, ReaderBuilder, Trim};
use time::OffsetDateTime;

/// What stands in one line or file, or why it cannot be enrolled.
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// What it says.
    pub content: Result<NewEnrolment>,
}

/// Where in the list.
#[derive(Clone, Debug)]
pub enum Place {
    /// The line of a CSV file, counted from 1.
    Line(u64),
    /// The file of a directory.
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
pub struct Defaults {
    /// What happens when a device asks again.
    pub reprovision: Option<Reprovision>,
    /// Whether they are EKs of Azure's SDKs.
    pub legacy_dps_ek: Option<bool>,
    /// Whether their shared keys may be sent to a plain storage root key.
    pub plain_srk: Option<bool>,
    /// The time now.
    pub added_at: OffsetDateTime,
}

impl Defaults {
    /// Checks an EK in any form, and makes an enrolment of it with these defaults.
    ///
    /// # Errors
    /// It is no EK, or not a sound one.
    pub fn enrolment(&self, ek: &[u8]) -> Result<(RecognisedAs, EkIdentity, NewEnrolment)> {
        let (recognised, identity) = EkIdentity::recognise(ek)?;
        let tpm = identity.certificate.as_ref().and_then(|certificate| certificate.tpm.clone());
        let enrolment = NewEnrolment {
            ek_id: identity.ek_id,
            device_id: None,
            recognised: recognised.to_string(),
            reprovision: self.reprovision,
            legacy_dps_ek: self.legacy_dps_ek,
            plain_srk: self.plain_srk,
            disabled: None,
            tags: Tags::new(),
            facts: tpm.map(|tpm| EkFacts::of_file(Some(tpm))),
            added_at: self.added_at,
        };
        Ok((recognised, identity, enrolment))
    }
}

/// How far a list is read.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// The header is read, and names these columns that mean nothing to the CA.
    Tags(&'a [&'a str]),
    /// So many entries are read.
    Entries(usize),
}

/// Reads every entry, in the order of the file or of the file names, and refuses repeated ones.
/// `progress` hears how far it is.
///
/// # Errors
/// The file or directory cannot be read, or the file has no header that says what its columns are.
pub fn read(
    path: &Path,
    defaults: Defaults,
    progress: impl FnMut(Progress<'_>),
) -> Result<Vec<Entry>> {
    let mut entries = if is_standard_input(path) {
        read_csv(stdin().lock(), defaults, progress)
    } else if path.is_dir() {
        read_directory(path, defaults, progress)
    } else {
        File::open(path).map_err(Into::into).and_then(|file| read_csv(file, defaults, progress))
    }
    .with_context(|| format!("cannot read {}", path.display()))?;
    refuse_repetitions(&mut entries);
    Ok(entries)
}

/// Reads a file that can hold no more than one EK.
///
/// # Errors
/// It cannot be read, or is too long.
pub fn read_small(file: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let open: Box<dyn Read> = if is_standard_input(file) {
        Box::new(stdin().lock())
    } else {
        Box::new(File::open(file)?)
    };
    open.take(MAX_EK as u64 + 1).read_to_end(&mut content)?;
    ensure!(content.len() <= MAX_EK, "longer than {MAX_EK} bytes, and no form of an EK is so long");
    Ok(content)
}

/// Whether a path stands for standard input.
fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

fn read_directory(
    path: &Path,
    defaults: Defaults,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Vec<Entry>> {
    let mut files: Vec<_> = fs::read_dir(path)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_, std::io::Error>>()?;
    files.retain(|file| file.is_file() && !file_name(file).starts_with('.'));
    files.sort();
    let mut entries = Vec::with_capacity(files.len());
    for file in files {
        let content = read_small(&file).and_then(|content| {
            let (_, ek, enrolment) = defaults.enrolment(&content)?;
            checked(&ek, enrolment)
        });
        entries.push(Entry { place: Place::File(file_name(&file)), content });
        progress(Progress::Entries(entries.len()));
    }
    Ok(entries)
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Reads the entries of a CSV file, and leaves repeated ones as they are.
///
/// # Errors
/// It cannot be read, has no header that says what its columns are, or is too long.
pub fn read_csv(
    file: impl Read,
    defaults: Defaults,
    mut progress: impl FnMut(Progress<'_>),
) -> Result<Vec<Entry>> {
    let mut reader = ReaderBuilder::new().trim(Trim::All).from_reader(file.take(MAX_CSV + 1));
    let columns = Columns::of(reader.byte_headers()?)?;
    if !columns.tags.is_empty() {
        let names: Vec<_> = columns.tags.iter().map(|(_, name)| name.as_str()).collect();
        progress(Progress::Tags(&names));
    }
    let mut entries = Vec::new();
    let mut record = ByteRecord::new();
    loop {
        let (line, content) = match reader.read_byte_record(&mut record) {
            Ok(false) => {
                ensure!(reader.get_ref().limit() > 0, "it has more than {MAX_CSV} bytes; split it");
                return Ok(entries);
            }
            Ok(true) => {
                (record.position().map(csv::Position::line), columns.enrolment(&record, defaults))
            }
            Err(error) => match error.kind() {
                ErrorKind::UnequalLengths { pos, expected_len, len } => {
                    let reason =
                        anyhow::anyhow!("it has {len} cells, but the header has {expected_len}");
                    (pos.as_ref().map(csv::Position::line), Err(reason))
                }
                _ => return Err(error.into()),
            },
        };
        entries.push(Entry { place: Place::Line(line.unwrap_or_default()), content });
        progress(Progress::Entries(entries.len()));
    }
}

/// Where each column of a CSV file stands.
#[derive(Default)]
struct Columns {
    endorsement_key: usize,
    registration_id: Option<usize>,
    device_id: Option<usize>,
    reprovision: Option<usize>,
    legacy_dps_ek: Option<usize>,
    plain_srk: Option<usize>,
    status: Option<usize>,
    /// All others, with their names.
    tags: Vec<(usize, String)>,
}

impl Columns {
    fn of(header: &ByteRecord) -> Result<Self> {
        let mut columns = Self::default();
        let mut endorsement_key = None;
        for (position, name) in header.iter().enumerate() {
            let name = String::from_utf8_lossy(name);
            let name = name.trim_start_matches('\u{FEFF}');
            let column = match &*plain(name) {
                "endorsementkey" => &mut endorsement_key,
                "registrationid" => &mut columns.registration_id,
                "deviceid" => &mut columns.device_id,
                "reprovision" => &mut columns.reprovision,
                "legacydpsek" => &mut columns.legacy_dps_ek,
                "plainsrk" => &mut columns.plain_srk,
                "status" | "provisioningstatus" => &mut columns.status,
                _ => {
                    ensure!(!name.is_empty(), "its header has a column without a name");
                    ensure!(
                        name.len() <= MAX_TAG_NAME,
                        "a column's name is longer than {MAX_TAG_NAME} bytes"
                    );
                    let is_new = columns.tags.iter().all(|(_, other)| other != name);
                    ensure!(is_new, "its header names the column {name:?} twice");
                    columns.tags.push((position, name.to_owned()));
                    ensure!(
                        columns.tags.len() <= MAX_TAGS,
                        "it has more than {MAX_TAGS} columns besides {COLUMNS}"
                    );
                    continue;
                }
            };
            ensure!(column.replace(position).is_none(), "its header names the column {name} twice");
        }
        let missing =
            || format!("its first line lacks the column endorsement_key; columns are {COLUMNS}");
        Ok(Self { endorsement_key: endorsement_key.with_context(missing)?, ..columns })
    }

    fn enrolment(&self, record: &ByteRecord, defaults: Defaults) -> Result<NewEnrolment> {
        for cell in record {
            ensure!(cell.len() <= MAX_EK, "a cell is longer than {MAX_EK} bytes");
        }
        let ek = record.get(self.endorsement_key).unwrap_or_default();
        ensure!(!ek.is_empty(), "endorsement_key is empty");
        let (_, identity, enrolment) = defaults.enrolment(ek).context("endorsement_key")?;
        let id = |column| cell(record, column, |id| Ok(id.parse::<DeviceId>()?));
        let device_id = match (id(self.registration_id), id(self.device_id)) {
            (Ok(Some(one)), Ok(Some(other))) => {
                ensure!(
                    one == other,
                    "registration_id and device_id are different ids; leave out the one that the \
                     EK must not get"
                );
                Some(one)
            }
            (one, other) => one.context("registration_id")?.or(other.context("device_id")?),
        };
        let tags = self.tags.iter().filter_map(|(position, name)| {
            let value = record.get(*position).filter(|value| !value.is_empty())?;
            Some(
                std::str::from_utf8(value)
                    .map(|value| (name.clone(), value.to_owned()))
                    .context(name.clone()),
            )
        });
        let tags: Tags = tags.collect::<Result<_>>()?;
        check_tags(&tags)?;
        let reprovision =
            cell(record, self.reprovision, |policy| Ok(policy.parse()?)).context("reprovision")?;
        let flag = |column| cell(record, column, |flag| either(flag, ["false", "true"]));
        let legacy = flag(self.legacy_dps_ek).context("legacy_dps_ek")?;
        let plain_srk = flag(self.plain_srk).context("plain_srk")?;
        let disabled = cell(record, self.status, |status| either(status, ["enabled", "disabled"]))
            .context("status")?;
        let enrolment = NewEnrolment {
            device_id,
            reprovision: reprovision.or(enrolment.reprovision),
            legacy_dps_ek: legacy.or(enrolment.legacy_dps_ek),
            plain_srk: plain_srk.or(enrolment.plain_srk),
            disabled,
            tags,
            ..enrolment
        };
        checked(&identity, enrolment)
    }
}

/// A column's name in a form that all its spellings share: Azure DPS's
/// `attestation.tpm.endorsementKey` and `registrationId` are our `endorsement_key` and
/// `registration_id`.
fn plain(name: &str) -> String {
    let last = name.rsplit('.').next().unwrap_or_default();
    last.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The cell of a column that may be missing; an empty cell counts as missing.
fn cell<T>(
    record: &ByteRecord,
    column: Option<usize>,
    read: impl Fn(&str) -> Result<T>,
) -> Result<Option<T>> {
    match column.and_then(|column| record.get(column)) {
        None | Some(b"") => Ok(None),
        Some(text) => Ok(Some(read(std::str::from_utf8(text)?)?)),
    }
}

fn either(text: &str, [no, yes]: [&str; 2]) -> Result<bool> {
    ensure!(text == no || text == yes, "{text:?} is neither {yes} nor {no}");
    Ok(text == yes)
}

/// Refuses an enrolment as an EK of Azure's SDKs that cannot be one, and a device id that names
/// another EK.
pub(crate) fn checked(ek: &EkIdentity, enrolment: NewEnrolment) -> Result<NewEnrolment> {
    if enrolment.legacy_dps_ek == Some(true) {
        ek.of_azure_sdk().context("legacy_dps_ek")?;
    }
    let device_id = enrolment.device_id.map(|id| ek.may_be_named(id)).transpose()?;
    Ok(NewEnrolment { device_id, ..enrolment })
}

/// Refuses more tags than a list may have, and longer ones.
pub(crate) fn check_tags(tags: &Tags) -> Result<()> {
    ensure!(tags.len() <= MAX_TAGS, "there are more than {MAX_TAGS}");
    for (name, value) in tags {
        ensure!(name.len() <= MAX_TAG_NAME, "a name is longer than {MAX_TAG_NAME} bytes");
        ensure!(value.len() <= MAX_TAG, "{name:?} is longer than {MAX_TAG} bytes");
    }
    Ok(())
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

const COLUMNS: &str =
    "endorsement_key, registration_id or device_id, reprovision, legacy_dps_ek, plain_srk, status";
/// Inventories have some ten columns.
const MAX_TAGS: usize = 32;
/// Short enough for a table's heading.
const MAX_TAG_NAME: usize = 64;
/// Long enough for a line of text.
const MAX_TAG: usize = 256;
/// An EK certificate has at most 4 KiB (`assay_wire::MAX_CERTIFICATE`), so 6 KiB in PEM, and what
/// `openssl x509 -text` writes above it.
const MAX_EK: usize = 16 * 1024;
/// A million lines of 256 bytes. An open quotation mark makes the rest of the file one cell, which
/// must fit in memory.
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
        assert_eq!(
            (columns.endorsement_key, columns.registration_id, columns.status),
            (2, Some(1), Some(0))
        );
        assert_eq!(
            (columns.device_id, columns.reprovision, columns.legacy_dps_ek),
            (None, None, None)
        );
    }

    #[test]
    fn columns_have_azures_names_too() {
        let header =
            ["registrationId", "deviceId", "attestation.tpm.endorsementKey", "provisioningStatus"];
        let columns = columns(&header).unwrap();
        assert_eq!((columns.registration_id, columns.device_id), (Some(0), Some(1)));
        assert_eq!((columns.endorsement_key, columns.status), (2, Some(3)));
        assert!(columns.tags.is_empty());
    }

    #[test]
    fn other_columns_are_tags() {
        let columns = columns(&["\u{FEFF}endorsement_key", "site", "Rack No."]).unwrap();
        assert_eq!(columns.tags, [(1, "site".to_owned()), (2, "Rack No.".to_owned())]);
        assert!(refused(&["endorsement_key", "site", "site"]).contains("\"site\" twice"));
        assert!(refused(&["endorsement_key", ""]).contains("without a name"));
        assert!(
            refused(&["endorsement_key", &"x".repeat(MAX_TAG_NAME + 1)]).contains("longer than")
        );
        let names: Vec<_> = (0..=MAX_TAGS).map(|number| number.to_string()).collect();
        let header: Vec<_> = names.iter().map(String::as_str).chain(["endorsement_key"]).collect();
        assert!(refused(&header).contains("more than"));
    }

    #[test]
    fn missing_and_repeated_columns_are_refused_by_name() {
        assert!(refused(&["registration_id"]).contains("lacks the column endorsement_key"));
        assert!(refused(&["endorsement_key", "endorsementKey"]).contains("endorsementKey twice"));
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
