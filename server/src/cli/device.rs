//! `assay device`: another TPM for a device, and which it had.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use assay_server::directory::Directory;
use assay_server::ek_list;
use assay_server::operations::{documents, replace};
use assay_server::rfc3339;
use assay_store::Store;
use assay_wire::DeviceId;
use clap::Subcommand;

use super::policy::Policy;
use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum DeviceCommand {
    /// Give a device another TPM, because its hardware was replaced
    ///
    /// The EK of the new TPM is enrolled under the device's id. The old one is removed and disabled:
    /// its certificates are revoked, its shared key is retired, and it is connected no more. The
    /// device keeps its documents, its tags and its re-provisioning policy.
    #[command(after_help = EXAMPLES)]
    Replace {
        /// The device
        device_id: DeviceId,
        /// The EK of its next TPM, in any form that `assay enroll add` takes, - for standard input
        file: PathBuf,
        #[command(flatten)]
        policy: Policy,
    },
    /// Show which EKs a device had, and has
    History {
        /// The device
        device_id: DeviceId,
        #[command(flatten)]
        json: list::Json,
    },
}

impl DeviceCommand {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let store = &mut *directory.store()?;
        match self {
            Self::Replace { device_id, file, policy } => put(store, &device_id, &file, &policy),
            Self::History { device_id, json } => history(store, &device_id, json.json),
        }
    }
}

fn put(store: &mut dyn Store, device_id: &DeviceId, file: &Path, policy: &Policy) -> Result<()> {
    let content =
        ek_list::read_small(file).with_context(|| format!("cannot read {}", file.display()))?;
    let enrolment = policy.defaults().enrolment(&content);
    let (recognised, ek, enrolment) =
        enrolment.with_context(|| format!("{} holds no EK", file.display()))?;
    eprintln!("recognised: {recognised}, {}", ek.key);
    let (old, removed) = replace::replace(store, device_id, &ek, enrolment)?;
    eprintln!("enrolled as {device_id}; the device gets its certificate when it asks");
    let key = if removed.shared_key { ", its shared key retired" } else { "" };
    eprintln!(
        "removed and disabled: EK {old}; certificates revoked: {}{key}",
        removed.certificates
    );
    table::print_line(ek.ek_id);
    Ok(())
}

fn history(store: &mut dyn Store, device_id: &DeviceId, as_json: bool) -> Result<()> {
    let rows = store.history(device_id)?;
    if as_json {
        rows.iter().for_each(|row| table::print_json(&documents::tenure(row)));
        return Ok(());
    }
    let rows = rows.into_iter().map(|row| {
        let until = row.until.map_or_else(|| "-".into(), rfc3339::seconds);
        [row.ek_id.to_string(), rfc3339::seconds(row.since), until]
    });
    table::print(["EK", "SINCE", "UNTIL"], rows);
    Ok(())
}

const EXAMPLES: &str = "\
Examples:
  assay --dir ca device replace pump-17 new-ek.pem
  assay --dir ca device history pump-17";
