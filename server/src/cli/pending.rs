//! `assay pending`: devices that wait until an operator approves or refuses them.

use anyhow::{Result, ensure};
use assay_ca_core::{Flaws, Manufacturer};
use assay_server::directory::Directory;
use assay_server::operations::documents;
use assay_server::operations::pending::{self, Naming, Selection};
use assay_server::rfc3339;
use assay_store::{PendingRow, Store};
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum Pending {
    /// List the EKs that wait, first come first
    List(list::Json),
    /// Admit EKs: puts them on the enrolment list
    #[command(after_help = APPROVE_EXAMPLES)]
    Approve {
        #[command(flatten)]
        which: Which,
        /// The device id of the one that is meant. An n in braces in it stands for the next number
        /// that is free, so that several can be meant
        #[arg(long, value_name = "ID", conflicts_with = "as_asked", value_parser = naming)]
        name: Option<Naming>,
        /// Give each the device id that it asks for
        #[arg(long)]
        as_asked: bool,
    },
    /// Refuse EKs: disables them, until `assay enroll enable`
    Refuse {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Which {
    /// EK ids, or their first digits
    #[arg(value_name = "EK")]
    eks: Vec<String>,
    /// All that wait
    #[arg(long)]
    all: bool,
    /// Those whose TPM is of this manufacturer, e.g. id:494E5443
    #[arg(long, value_name = "ID")]
    manufacturer: Option<Manufacturer>,
}

impl Pending {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let store = &mut *directory.store()?;
        let now = OffsetDateTime::now_utc();
        match self {
            Self::List(list::Json { json }) => list_all(store, &directory.flaws()?, json),
            Self::Approve { which, name, as_asked } => {
                let rows = which.selection().find(store)?;
                let naming = match (name, as_asked) {
                    (Some(name), _) => name,
                    (None, true) => Naming::AsAsked,
                    (None, false) => Naming::Derived,
                };
                let approved = pending::approve(store, &rows, &naming, now)?;
                eprintln!("approved: {}", approved.len());
                for (ek, device_id) in &approved {
                    let device_id = device_id.as_ref().map_or("-", |id| id.as_str());
                    table::print_line(format!("{ek} {device_id}"));
                }
                let left = rows.len() - approved.len();
                let reason = "ask to be somebody (`assay pending list`), and take no other name: \
                              --as-asked, or --name for one of them";
                ensure!(left == 0 || !approved.is_empty(), "nothing is approved: all {reason}");
                if left > 0 {
                    eprintln!("left out: {left}, which {reason}");
                }
                Ok(())
            }
            Self::Refuse { which } => {
                let rows = which.selection().find(store)?;
                pending::turn_away(store, &rows, now)?;
                eprintln!("refused, and disabled: {}", rows.len());
                rows.iter().for_each(|row| table::print_line(row.waiting.ek_id));
                Ok(())
            }
        }
    }
}

impl Which {
    fn selection(self) -> Selection {
        Selection { eks: self.eks, all: self.all, manufacturer: self.manufacturer }
    }
}

fn naming(text: &str) -> Result<Naming, String> {
    if text.contains("{n}") {
        return text.parse().map(Naming::Numbered).map_err(|error| format!("{error}"));
    }
    text.parse().map(Naming::Name).map_err(|error| format!("{error}"))
}

fn list_all(store: &mut dyn Store, flaws: &Flaws, json: bool) -> Result<()> {
    let rows = store.pending()?;
    if json {
        rows.iter().for_each(|row| table::print_json(&documents::pending(row, flaws)));
        return Ok(());
    }
    let rows = rows.into_iter().map(|PendingRow { waiting, first_seen }| {
        let found: Vec<_> = flaws.of(&waiting.facts).map(|flaw| flaw.name.as_str()).collect();
        let flawed = if found.is_empty() { "-".to_owned() } else { found.join(", ") };
        let tpm = waiting.facts.tpm.map(|tpm| [tpm.manufacturer, tpm.model, tpm.version]);
        let [manufacturer, model, firmware] = tpm.unwrap_or_else(|| [(); 3].map(|()| "-".into()));
        [
            waiting.ek_id.to_string()[..table::SHORT_ID].to_owned(),
            manufacturer,
            model,
            firmware,
            flawed,
            rfc3339::seconds(first_seen),
            rfc3339::seconds(waiting.asked_at.unix_timestamp()),
            waiting.flow.to_string(),
            waiting.device_id.map_or_else(|| "-".into(), |id| id.to_string()),
            waiting.facts.vendor,
        ]
    });
    table::print(
        [
            "EK",
            "MANUFACTURER",
            "MODEL",
            "FIRMWARE",
            "FLAWS",
            "FIRST SEEN",
            "LAST SEEN",
            "FLOW",
            "ASKS TO BE",
            "VENDOR",
        ],
        rows,
    );
    Ok(())
}

const APPROVE_EXAMPLES: &str = "\
Examples:
  assay --dir ca pending approve 0123456789abcdef --name pump-17
  assay --dir ca pending approve --manufacturer id:49465800 --as-asked";
