//! `assay trust`: TPM vendors' certificates.

use std::path::PathBuf;

use anyhow::{Result, bail};
use assay_ca_core::{Allowances, Answer, Flaws, GroupName, Role};
use assay_server::anchors::read_anchors;
use assay_server::directory::Directory;
use assay_server::operations::trust::{self, Verdict};
use assay_server::operations::{documents, groups};
use assay_server::rfc3339;
use assay_store::Store;
use clap::{Args, Subcommand};

use super::table;
use super::trust_add::Add;

#[derive(Subcommand)]
pub(crate) enum Trust {
    /// Add vendors' CA certificates: roots, and the issuers below them that devices may not send
    Add(Add),
    /// Say whether an EK would be trusted, through which CAs, and which group would admit it; or
    /// what is missing
    Check(Check),
    /// List them
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Remove one; EKs that chain to it are refused from then on
    Remove {
        /// Its SHA-256 fingerprint, as `list` shows it, or the beginning of it
        fingerprint: String,
    },
}

impl Trust {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let store = &mut *directory.store()?;
        match self {
            Self::Add(add) => add.run(store),
            Self::Check(check) => check.run(store, &directory.flaws()?),
            Self::List { json } => list(store, json),
            Self::Remove { fingerprint } => {
                for subject in trust::remove(store, &fingerprint)? {
                    eprintln!("removed: {}", table::printable(&subject));
                }
                let left = groups::of_no_vendor(store)?;
                for group in left {
                    eprintln!(
                        "group {group} is for a CA that is not trusted any more; remove it too, or \
                         it counts again once that CA is: assay group remove {group}"
                    );
                }
                Ok(())
            }
        }
    }
}

#[derive(Args)]
#[command(after_help = "\
Exit status: 0 if all of them would be trusted, 1 if one would not.

Examples:
  assay --dir ca trust check ek.der
  assay --dir ca trust check --json eks/*.der")]
pub(crate) struct Check {
    /// EK certificates, in any form that `enroll add` takes; a file may hold the certificate's
    /// issuers too, or one CA's certificate alone
    #[arg(required = true, value_name = "EK")]
    files: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Check {
    fn run(self, store: &mut dyn Store, flaws: &Flaws) -> Result<()> {
        let anchors = read_anchors(store)?;
        let mut refused = 0;
        for file in &self.files {
            let name = file.display().to_string();
            let verdict = trust::judge(store, &anchors, flaws, file);
            refused += usize::from(verdict.is_err());
            if self.json {
                let line = match verdict {
                    Ok(Verdict { key, trusted_by, issuers, group, .. }) => serde_json::json!({
                        "file": name, "trusted": true, "key": key, "by": trusted_by, "path": issuers,
                        "group": group.as_ref().map(|(name, _)| name.as_str()),
                        "answer": group.as_ref().map(|(_, answer)| answer.name()),
                    }),
                    Err(reason) => {
                        serde_json::json!({ "file": name, "trusted": false, "reason": format!("{reason:#}") })
                    }
                };
                table::print_json(&line);
                continue;
            }
            let line = match verdict {
                Ok(Verdict { key, trusted_by: "enrolment", group, .. }) => {
                    format!("trusted: {name}: {key}, which is enrolled; {}", told(group.as_ref()))
                }
                Ok(Verdict { key, issuers, is_ek: false, .. }) => {
                    format!("trusted: {name}: {key}, through {}", issuers.join(" → "))
                }
                Ok(Verdict { key, issuers, group, .. }) => {
                    let (path, group) = (issuers.join(" → "), told(group.as_ref()));
                    format!("trusted: {name}: {key}, through {path}; {group}")
                }
                Err(reason) => format!("not trusted: {name}: {reason:#}"),
            };
            table::print_line(table::printable(&line));
        }
        match refused {
            0 => Ok(()),
            1 => bail!("one EK would not be trusted"),
            several => bail!("{several} EKs would not be trusted"),
        }
    }
}

/// What becomes of a device with an EK of this group.
fn told(group: Option<&(GroupName, Answer)>) -> String {
    match group {
        None => "in no group, so refused: assay group add".into(),
        Some((name, Answer::Admit)) => format!("group {name} admits it"),
        Some((name, Answer::Ask)) => format!("group {name} asks about it"),
        Some((name, Answer::Refuse)) => format!("group {name} refuses it"),
    }
}

fn list(store: &mut dyn Store, json: bool) -> Result<()> {
    let anchors = store.anchors()?;
    if json {
        anchors.iter().for_each(|row| table::print_json(&documents::anchor(row)));
        return Ok(());
    }
    let rows = anchors.into_iter().map(|anchor| {
        let fingerprint = hex::encode(anchor.fingerprint);
        let kind = match anchor.role {
            Role::Anchor(allowances) if allowances != Allowances::default() => {
                format!("anchor, without {allowances}")
            }
            role => trust::kind(role).into(),
        };
        [
            fingerprint[..table::SHORT_ID].to_owned(),
            kind,
            rfc3339::seconds(anchor.not_after),
            anchor.subject,
        ]
    });
    table::print(["FINGERPRINT", "KIND", "NOT AFTER", "SUBJECT"], rows);
    Ok(())
}
