//! `assay configuration`: documents that devices get with their certificates.

use std::fs::File;
use std::io::{Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use assay_server::directory::Directory;
use assay_server::operations::configurations::{self, Document};
use assay_server::operations::documents;
use assay_server::rfc3339;
use assay_wire::{DeviceId, MAX_CONFIGURATION};
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum Configuration {
    /// Attach a document to a device, or to all devices
    Set(Set),
    /// Print the document that is attached to a device, or to all devices
    Show(Show),
    /// List the documents
    List(list::Json),
    /// Remove a document: the device then gets that of all devices, or none
    Remove(Target),
}

#[derive(Args)]
#[command(after_help = SET_EXAMPLES)]
pub(crate) struct Set {
    #[command(flatten)]
    target: Target,
    /// The document, JSON or CBOR, at most 4096 bytes; - reads standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

#[derive(Args)]
pub(crate) struct Show {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    json: list::Json,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Target {
    /// This device alone; its document goes before that of all devices
    #[arg(long, value_name = "ID")]
    device: Option<DeviceId>,
    /// All devices of the scope
    #[arg(long)]
    scope: bool,
}

impl Configuration {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        match self {
            Self::Set(Set { target, file }) => set(directory, &target, &file),
            Self::Show(Show { target, json }) => show(directory, &target, json.json),
            Self::List(list::Json { json }) => list_all(directory, json),
            Self::Remove(target) => remove(directory, &target),
        }
    }
}

fn set(directory: &Directory, target: &Target, file: &Path) -> Result<()> {
    let document = read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let document = Document::read(document)
        .with_context(|| format!("{} is not for devices", file.display()))?;
    let device = target.device.as_ref();
    let now = OffsetDateTime::now_utc();
    let revision = configurations::set(directory, device, &document, now)?;
    eprintln!("{} has a document: revision {revision}", target.name());
    if let Some(device) = device
        && directory.store()?.ek_of_device(device)?.is_none()
    {
        eprintln!("no device has the id {device} yet; the one that gets it gets the document");
    }
    Ok(())
}

/// No more than shows that it is too long.
fn read(file: &Path) -> Result<Vec<u8>> {
    let source: Box<dyn Read> =
        if file == Path::new("-") { Box::new(stdin()) } else { Box::new(File::open(file)?) };
    let mut document = Vec::new();
    source.take(MAX_CONFIGURATION as u64 + 1).read_to_end(&mut document)?;
    Ok(document)
}

fn show(directory: &Directory, target: &Target, json: bool) -> Result<()> {
    let row = configurations::find(directory, target.device.as_ref())?;
    let Some((row, document)) =
        row.and_then(|row| row.document.clone().map(|document| (row, document)))
    else {
        bail!("{} has no document; assay configuration list says who has one", target.name());
    };
    if json {
        table::print_json(&documents::configuration(&row));
    } else {
        table::written(stdout().write_all(&document));
    }
    Ok(())
}

fn list_all(directory: &Directory, json: bool) -> Result<()> {
    let rows = configurations::list(directory)?;
    if json {
        rows.iter().for_each(|row| table::print_json(&documents::configuration(row)));
        return Ok(());
    }
    let rows = rows.into_iter().map(|row| {
        [
            row.device_id.map_or_else(|| "(all)".into(), |id| id.to_string()),
            row.revision.to_string(),
            row.document.map_or(0, |document| document.len()).to_string(),
            rfc3339::seconds(row.set_at.unix_timestamp()),
        ]
    });
    table::print(["DEVICE", "REVISION", "BYTES", "SET AT"], rows);
    Ok(())
}

fn remove(directory: &Directory, target: &Target) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    match configurations::remove(directory, target.device.as_ref(), now)? {
        Some(revision) => eprintln!("{} has no document: revision {revision}", target.name()),
        None => bail!("{} has no document", target.name()),
    }
    Ok(())
}

impl Target {
    /// Whom it is about, for people.
    fn name(&self) -> String {
        self.device.as_ref().map_or_else(|| "the scope".into(), DeviceId::to_string)
    }
}

const SET_EXAMPLES: &str = "\
A device gets the document with its certificate, and within seconds or minutes
if it is online. It is signed, but not secret: the broker can read it.

Examples:
  assay --dir ca configuration set --scope all.json
  assay --dir ca configuration set --device pump-17 pump-17.cbor
  echo '{\"interval\": 30}' | assay --dir ca configuration set --device pump-17 -";
