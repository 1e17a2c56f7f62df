//! `assay enroll`: single EKs that an operator vouches for, and devices switched off.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use assay_broker_plugin::directory::Directory;
use assay_broker_plugin::store::{EnrolmentRow, NewEnrolment, Store};
use assay_ca_core::{EkIdentity, Reprovision};
use assay_wire::{DeviceId, EkId};
use clap::Subcommand;
use time::OffsetDateTime;

use super::table;

#[derive(Subcommand)]
pub(crate) enum Enroll {
    /// Put an EK on the list: it is trusted without a vendor's certificate, and may get a device id of your choice
    Add {
        /// EK certificate or EK public key: PEM, DER, TPM2B_PUBLIC or TPMT_PUBLIC
        file: PathBuf,
        /// The device id it is to have; without one, the id follows from the EK
        #[arg(long)]
        device_id: Option<DeviceId>,
    },
    /// List the EKs that the CA knows: enrolled, registered, or both
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one
    Show {
        /// EK id, device id, or a file that `add` takes
        which: String,
    },
    /// Refuse it from now on
    Disable {
        /// EK id, device id, or a file that `add` takes
        which: String,
    },
    /// Admit it again
    Enable {
        /// EK id, device id, or a file that `add` takes
        which: String,
    },
}

impl Enroll {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let mut store = directory.store()?;
        match self {
            Self::Add { file, device_id } => add(&mut store, &file, device_id),
            Self::List { json } => list(&store, json),
            Self::Show { which } => show(&find(&store, &which)?),
            Self::Disable { which } => switch(&mut store, &which, true),
            Self::Enable { which } => switch(&mut store, &which, false),
        }
    }
}

fn add(store: &mut Store, file: &Path, device_id: Option<DeviceId>) -> Result<()> {
    let (recognised, ek) = recognise(file)?;
    eprintln!("recognised: {recognised}, {}", ek.key);
    if let Some(certificate) = &ek.certificate {
        let until = table::time(certificate.not_after.unix_timestamp());
        eprintln!("  issuer {}", table::printable(&certificate.issuer));
        eprintln!("  serial {}, valid until {until}", certificate.serial);
        if let Some(tpm) = &certificate.tpm {
            let tpm = format!("manufacturer {}, model {}, version {}", tpm.manufacturer, tpm.model, tpm.version);
            eprintln!("  TPM {}", table::printable(&tpm));
        }
    }
    let new = NewEnrolment {
        ek_id: ek.ek_id,
        device_id: device_id.clone(),
        recognised,
        reprovision: Reprovision::default(),
        legacy_dps_ek: false,
        added_at: OffsetDateTime::now_utc(),
    };
    store.enroll(&[new]).map_err(|(_, error)| error)?;
    match device_id {
        Some(device_id) => eprintln!("enrolled as {device_id}"),
        None => eprintln!("enrolled; its device id follows from the EK"),
    }
    println!("{}", ek.ek_id);
    Ok(())
}

fn recognise(file: &Path) -> Result<(String, EkIdentity)> {
    let content = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (recognised, ek) =
        EkIdentity::recognise(&content).with_context(|| format!("{} holds no EK", file.display()))?;
    Ok((recognised.to_string(), ek))
}

fn find(store: &Store, which: &str) -> Result<EnrolmentRow> {
    let ek = find_ek(store, which)?;
    store
        .enrolment(&ek)?
        .with_context(|| format!("EK {ek} is neither enrolled nor registered; see `assay enroll list`"))
}

fn find_ek(store: &Store, which: &str) -> Result<EkId> {
    if let Ok(ek) = which.parse() {
        return Ok(ek);
    }
    if let Ok(device) = which.parse()
        && let Some(ek) = store.ek_of_device(&device)?
    {
        return Ok(ek);
    }
    let file = Path::new(which);
    if file.exists() {
        return Ok(recognise(file)?.1.ek_id);
    }
    bail!("{which} is neither an EK id, nor a device id that the CA knows, nor a file; see `assay enroll list`")
}

fn switch(store: &mut Store, which: &str, disabled: bool) -> Result<()> {
    let row = find(store, which)?;
    store.set_disabled(&row.ek_id, disabled, OffsetDateTime::now_utc())?;
    eprintln!("{}: EK {}", table::status(disabled), row.ek_id);
    Ok(())
}

fn show(row: &EnrolmentRow) -> Result<()> {
    println!("{:#}", json(row));
    Ok(())
}

fn list(store: &Store, as_json: bool) -> Result<()> {
    let rows = store.enrolments()?;
    if as_json {
        rows.iter().for_each(|row| println!("{}", json(row)));
        return Ok(());
    }
    let rows = rows.into_iter().map(|row| {
        let device = row.device_id.as_ref().map_or_else(|| "(from the EK)".into(), DeviceId::to_string);
        let source = row.recognised.clone().unwrap_or_else(|| "vendor's certificate".into());
        let registered = if row.registered { "registered" } else { "expected" };
        [row.ek_id.to_string(), device, registered.into(), table::status(row.disabled).into(), source]
    });
    table::print(["EK", "DEVICE", "STATE", "STATUS", "KNOWN BY"], rows);
    Ok(())
}

fn json(row: &EnrolmentRow) -> serde_json::Value {
    serde_json::json!({
        "ek_id": row.ek_id.to_string(),
        "device_id": row.device_id.as_ref().map(DeviceId::as_str),
        "enrolled_from": row.recognised,
        "registered": row.registered,
        "disabled": row.disabled,
        "added_at": table::time(row.added_at),
    })
}
