//! `assay enroll`: EKs that an operator vouches for, and devices switched off or removed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{EkIdentity, Flaws, Reprovision, SharedKeyOnRecord};
use assay_server::directory::Directory;
use assay_server::ek_list;
use assay_server::operations::documents;
use assay_server::operations::enrol::{self, EnrolmentError, Forgotten};
use assay_server::rfc3339;
use assay_store::{Enrolled, EnrolmentRow, NewEnrolment, Store};
use assay_wire::{DeviceId, EkId, printable_json};
use clap::{ArgGroup, Args, Subcommand};
use time::OffsetDateTime;

use super::import::ImportList;
use super::policy::{Policy, ReprovisionArg};
use super::table;

#[derive(Subcommand)]
pub(crate) enum Enroll {
    /// Put an EK on the list: it is trusted without a vendor's certificate, and may get a device id
    /// of your choice
    Add {
        /// EK certificate or EK public key, - for standard input: PEM, DER, PKCS #7, PKCS #1,
        /// TPM2B_PUBLIC, TPMT_PUBLIC, the binary ones also in base64 or base64url; a dump of a
        /// TPM's NV index, or the answer of Intel's service
        file: PathBuf,
        /// The device id it is to have; without one, the id follows from the EK
        #[arg(long)]
        device_id: Option<DeviceId>,
        #[command(flatten)]
        policy: Policy,
    },
    /// Put many EKs on the list: all of them, or none if one cannot be
    Import(ImportList),
    /// List the EKs that the CA knows: enrolled, registered, disabled
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one EK
    Show {
        #[command(flatten)]
        ek: Which,
    },
    /// Change an enrolment
    #[command(group(ArgGroup::new("change").required(true).multiple(true).args(["reprovision", "plain_srk"])))]
    Update {
        #[command(flatten)]
        ek: Which,
        /// What a device gets that was provisioned before and now has a new key
        #[arg(long, value_name = "POLICY")]
        reprovision: Option<ReprovisionArg>,
        /// Whether its shared key may be sent to a plain storage root key. An attacker who controls
        /// the device's software can get the shared key from it
        #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        plain_srk: Option<bool>,
    },
    /// Disable an EK, also one that the CA does not know
    Disable {
        #[command(flatten)]
        ek: Which,
    },
    /// Enable an EK again; it must still be trusted
    Enable {
        #[command(flatten)]
        ek: Which,
    },
    /// Retire the shared key of an EK at once; the device gets the next one by
    /// `assay-device provision --again`
    Rotate {
        #[command(flatten)]
        ek: Which,
    },
    /// Remove an EK: revoke its certificates, retire its shared key, free its device id for other
    /// hardware
    Remove {
        #[command(flatten)]
        ek: Which,
    },
}

#[derive(Args)]
pub(crate) struct Which {
    /// EK id or its first 16 digits, device id, or a file that `add` takes
    which: String,
}

impl Enroll {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let store = &mut *directory.store()?;
        match self {
            Self::Add { file, device_id, policy } => add(store, &file, device_id, &policy),
            Self::Import(import) => import.run(store),
            Self::List { json } => list(store, &directory.flaws()?, json),
            Self::Show { ek } => {
                let ek = ek.id(store)?;
                show(&enrol::show(store, &ek).or_else(see_list)?, &directory.flaws()?)
            }
            Self::Update { ek, reprovision, plain_srk } => {
                let ek = ek.id(store)?;
                update(store, &ek, reprovision.map(|policy| policy.0), plain_srk)
            }
            Self::Disable { ek } => {
                let ek = ek.id(store)?;
                disable(store, &ek)
            }
            Self::Enable { ek } => {
                let ek = ek.id(store)?;
                enable(store, &ek)
            }
            Self::Rotate { ek } => {
                let ek = ek.id(store)?;
                rotate(store, &ek)
            }
            Self::Remove { ek } => {
                let ek = ek.id(store)?;
                remove(store, &ek)
            }
        }
    }
}

impl Which {
    fn id(&self, store: &mut dyn Store) -> Result<EkId> {
        let which = &self.which;
        match enrol::find(store, which) {
            Err(EnrolmentError::NotFound) => {}
            found => return Ok(found?),
        }
        let file = Path::new(which);
        ensure!(
            file.exists(),
            "{which} is {}, and there is no such file; see `assay enroll list`",
            EnrolmentError::NotFound
        );
        let ek = EkIdentity::recognise(&read(file)?)
            .with_context(|| format!("{} holds no EK", file.display()))?;
        Ok(ek.1.ek_id)
    }
}

fn see_list<T>(error: EnrolmentError) -> Result<T> {
    match error {
        EnrolmentError::Store(error) => Err(error.into()),
        error => bail!("{error}; see `assay enroll list`"),
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    ek_list::read_small(file).with_context(|| format!("cannot read {}", file.display()))
}

fn add(
    store: &mut dyn Store,
    file: &Path,
    device_id: Option<DeviceId>,
    policy: &Policy,
) -> Result<()> {
    let enrolment = policy.defaults().enrolment(&read(file)?);
    let (recognised, ek, enrolment) =
        enrolment.with_context(|| format!("{} holds no EK", file.display()))?;
    eprintln!("recognised: {recognised}, {}", ek.key);
    if let Some(certificate) = &ek.certificate {
        let until = rfc3339::seconds(certificate.not_after.unix_timestamp());
        eprintln!("  issuer {}", table::printable(&certificate.issuer));
        eprintln!("  serial {}, valid until {until}", certificate.serial);
        if let Some(tpm) = &certificate.tpm {
            let tpm = format!(
                "manufacturer {}, model {}, version {}",
                tpm.manufacturer, tpm.model, tpm.version
            );
            eprintln!("  TPM {}", table::printable(&tpm));
        }
    }
    if ek.certificate.is_none() {
        eprintln!(
            "  nothing shows that this key is in a TPM: by enrolling it, you vouch for a key that \
             may be anywhere"
        );
    }
    let (enrolled, row) = enrol::add(store, &ek, NewEnrolment { device_id, ..enrolment })?;
    let already = if enrolled == Enrolled::Added { "" } else { " already" };
    match row {
        EnrolmentRow { disabled: true, .. } => {
            eprintln!("enrolled{already}, and disabled as before");
        }
        EnrolmentRow { device_id: Some(device_id), .. } => {
            eprintln!("enrolled{already} as {device_id}");
        }
        _ => eprintln!("enrolled{already}; its device id follows from the EK"),
    }
    table::print_line(ek.ek_id);
    Ok(())
}

fn update(
    store: &mut dyn Store,
    ek: &EkId,
    reprovision: Option<Reprovision>,
    plain_srk: Option<bool>,
) -> Result<()> {
    let updated = enrol::update(store, ek, reprovision, plain_srk);
    if let Err(error @ EnrolmentError::NotEnrolled { .. }) = &updated {
        let reprovision =
            reprovision.map_or_else(String::new, |policy| format!(" --reprovision {policy}"));
        let plain_srk = if plain_srk == Some(true) { " --plain-srk" } else { "" };
        bail!("{error}; `assay enroll add FILE{reprovision}{plain_srk}` enrols it");
    }
    let row = updated.or_else(see_list)?;
    if let Some(reprovision) = reprovision {
        eprintln!("re-provisioning is {reprovision}: EK {ek}");
    }
    match plain_srk {
        Some(true) => eprintln!("its shared key may be sent to a plain storage root key: EK {ek}"),
        Some(false) => {
            eprintln!("its shared key is sent to an import parent alone: EK {ek}");
            if row.shared_key.is_some_and(|key| key.is_of_plain_srk()) {
                eprintln!(
                    "  but its present key was sent to a plain storage root key; `assay enroll \
                     rotate {ek}` retires that key"
                );
            }
        }
        None => {}
    }
    Ok(())
}

fn disable(store: &mut dyn Store, ek: &EkId) -> Result<()> {
    let known = enrol::disable(store, ek, OffsetDateTime::now_utc())?;
    let note = if known { "" } else { ", which the CA did not know" };
    eprintln!("disabled: EK {ek}{note}");
    Ok(())
}

fn enable(store: &mut dyn Store, ek: &EkId) -> Result<()> {
    let row = enrol::enable(store, ek, OffsetDateTime::now_utc()).or_else(see_list)?;
    let known = row.registered || row.recognised.is_some();
    let note =
        if known { "" } else { ", which needs a trusted vendor's certificate or an enrolment" };
    eprintln!("enabled: EK {ek}{note}");
    Ok(())
}

fn rotate(store: &mut dyn Store, ek: &EkId) -> Result<()> {
    enrol::rotate(store, ek).or_else(see_list)?;
    eprintln!(
        "retired the shared key of EK {ek}; its device gets the next one by `assay-device \
         provision --again`"
    );
    Ok(())
}

fn remove(store: &mut dyn Store, ek: &EkId) -> Result<()> {
    let forgotten = enrol::remove(store, ek, OffsetDateTime::now_utc()).or_else(see_list)?;
    let Forgotten { device_id, stays_disabled, removed } = forgotten;
    let name = device_id.map_or_else(String::new, |id| format!(", which was {id}"));
    let retired =
        if removed.shared_key { "retired its shared key" } else { "it had no shared key" };
    eprintln!("removed: EK {ek}{name}");
    eprintln!("  revoked certificates: {}; {retired}", removed.certificates);
    if stays_disabled {
        eprintln!("  it stays disabled until `assay enroll enable {ek}`");
    } else {
        eprintln!(
            "  a trusted vendor's certificate may bring it back; `assay enroll disable {ek}` \
             keeps it out"
        );
    }
    Ok(())
}

fn show(row: &EnrolmentRow, flaws: &Flaws) -> Result<()> {
    table::print_line(printable_json(&format!("{:#}", documents::ek(row, flaws))));
    Ok(())
}

fn list(store: &mut dyn Store, flaws: &Flaws, as_json: bool) -> Result<()> {
    let rows = store.enrolments()?;
    if as_json {
        rows.iter().for_each(|row| table::print_json(&documents::ek(row, flaws)));
        return Ok(());
    }
    let rows = rows.into_iter().map(|row| {
        let enrolled = row.recognised.is_some();
        let (state, source) = match (row.registered, enrolled) {
            (true, false) => ("registered", "vendor's certificate"),
            (true, true) => ("registered", ""),
            (false, true) => ("expected", ""),
            (false, false) => ("unknown", "operator's word"),
        };
        [
            row.ek_id.to_string(),
            row.device_id.as_ref().map_or_else(|| "(from the EK)".into(), DeviceId::to_string),
            state.into(),
            table::status(row.disabled).into(),
            row.reprovision.map_or_else(|| "-".into(), |policy| policy.to_string()),
            row.shared_key.map_or_else(|| "-".into(), shared_key),
            row.recognised.map_or_else(
                || source.into(),
                |form| if row.legacy_dps_ek { form + ", of Azure's SDK" } else { form },
            ),
        ]
    });
    table::print(
        ["EK", "DEVICE", "STATE", "STATUS", "REPROVISION", "SHARED KEY", "KNOWN BY"],
        rows,
    );
    Ok(())
}

fn shared_key(key: SharedKeyOnRecord) -> String {
    let state = if key.is_used { "used" } else { "not used" };
    let parent = if key.is_of_plain_srk() { ", plain SRK" } else { "" };
    format!("{} ({state}{parent})", key.generation)
}
