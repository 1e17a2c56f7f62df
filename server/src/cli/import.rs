//! `assay enroll import`: many EKs at once, all of them or none.

use std::fmt::Display;
use std::io::{BufWriter, Write, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use assay_server::ek_list;
use assay_server::operations::import::{self, Import, Refused};
use assay_store::{Enrolled, NewEnrolment, Store};
use assay_wire::DeviceId;
use clap::Args;

use super::policy::Policy;
use super::table;

#[derive(Args)]
pub(crate) struct ImportList {
    /// A CSV file, - for one on standard input, or a directory with a file for each EK
    ///
    /// A CSV file begins with a line that names its columns, in any order: endorsement_key
    /// (TPM2B_PUBLIC in base64 as Azure's tools print it; or TPMT_PUBLIC, SubjectPublicKeyInfo or
    /// certificate, each in base64; or PEM in quotation marks), and if you like registration_id (or
    /// device_id), reprovision (reissue, reuse or never), legacy_dps_ek and plain_srk (true or
    /// false), status (enabled or disabled). Azure DPS's own names will do too. All other columns
    /// are kept as tags. An empty cell gives no value.
    ///
    /// In a directory, every file that is not hidden is read, in any form that `enroll add` takes.
    /// Subdirectories are not.
    path: PathBuf,
    #[command(flatten)]
    policy: Policy,
    /// Check everything and import nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line instead of EK ids
    #[arg(long)]
    json: bool,
}

impl ImportList {
    pub(crate) fn run(self, store: &mut dyn Store) -> Result<()> {
        let mut progress = Progress::default();
        let defaults = self.policy.defaults();
        let import = import::import(store, &self.path, defaults, self.dry_run, |read| {
            progress.tell(read);
        })?;
        let done = match import {
            Import::Done(done) => done,
            Import::Refused(refused) => return report(&refused),
        };
        write(&done, self.json)?;
        let count = |which| done.iter().filter(|(enrolled, _)| *enrolled == which).count();
        let (added, retagged) = (count(Enrolled::Added), count(Enrolled::Retagged));
        let imported = if self.dry_run { "would import" } else { "imported" };
        let updated =
            if retagged > 0 { format!(", tags updated of {retagged}") } else { String::new() };
        eprintln!("{imported} {added}{updated}, unchanged {}", done.len() - added - retagged);
        Ok(())
    }
}

fn report(refused: &[Refused]) -> Result<()> {
    for Refused { place, reason } in refused.iter().take(MAX_REPORTED) {
        eprintln!("{}", table::printable(&format!("{place}: {reason}")));
    }
    match refused.len().checked_sub(MAX_REPORTED) {
        None | Some(0) => {}
        Some(more) => eprintln!("and {more} more"),
    }
    bail!("nothing is imported, because {} cannot be", refused.len())
}

fn write(done: &[(Enrolled, NewEnrolment)], json: bool) -> Result<()> {
    let mut out = BufWriter::new(stdout().lock());
    for (enrolled, new) in done {
        let line: &dyn Display = if json { &object(*enrolled, new) } else { &new.ek_id };
        table::written(writeln!(out, "{line}"));
    }
    table::written(out.flush());
    Ok(())
}

fn object(enrolled: Enrolled, new: &NewEnrolment) -> serde_json::Value {
    serde_json::json!({
        "ek_id": new.ek_id.to_string(),
        "device_id": new.device_id.as_ref().map(DeviceId::as_str),
        "result": match enrolled {
            Enrolled::Added => "imported",
            Enrolled::Retagged => "updated",
            Enrolled::Unchanged => "unchanged",
        },
    })
}

/// Tells on stderr what is kept as tags, and how far a long import is, once a second.
struct Progress {
    told: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { told: Instant::now() }
    }
}

impl Progress {
    fn tell(&mut self, read: ek_list::Progress<'_>) {
        match read {
            ek_list::Progress::Tags(names) => {
                let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
                eprintln!("kept as tags: the columns {}", names.join(", "));
            }
            ek_list::Progress::Entries(count) if self.told.elapsed() >= PROGRESS_INTERVAL => {
                self.told = Instant::now();
                eprintln!("{count} read");
            }
            ek_list::Progress::Entries(_) => {}
        }
    }
}

/// More than a screen of them only hides the first.
const MAX_REPORTED: usize = 50;
/// What takes less needs no patience.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
