//! `assay backup`, `assay restore` and `assay resume`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use assay_server::age::{Identity, Recipient};
use assay_server::directory::Directory;
use assay_server::operations::{backup, restore};
use assay_server::rfc3339;
use assay_store::{ListedAre, SharedKeys};
use clap::Args;
use serde_json::json;
use time::OffsetDateTime;

use super::store::Teller;
use super::table;

#[derive(Args)]
#[command(after_help = "Examples:
  assay --dir ca backup ca-2026-12-01.assay --recipient age1…
  assay --dir ca backup /mnt/safe/ca.assay --json")]
pub(crate) struct Backup {
    /// The file to write; it must not exist
    file: PathBuf,
    /// Encrypt to this public key of age (`age-keygen`), which may be given several times. Without
    /// it, whoever reads the file has the CA's keys
    #[arg(long, value_name = "age1…")]
    recipient: Vec<Recipient>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Backup {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let Self { file, recipient, json } = self;
        let mut teller = Teller::default();
        let made = backup::make(directory, &file, &recipient, |progress| teller.tell(progress))?;
        let at = rfc3339::seconds(made.backed_up_at.unix_timestamp());
        if recipient.is_empty() {
            eprintln!(
                "warning: {} holds the CA's keys in clear; --recipient encrypts it",
                file.display()
            );
        }
        if json {
            table::print_json(&json!({
                "file": file,
                "backed_up_at": at,
                "length": made.length,
                "encrypted": !recipient.is_empty(),
                "files": made.files,
            }));
        } else {
            let (count, length) = (made.files.len(), made.length);
            eprintln!("wrote {} ({length} bytes, {count} files, as of {at})", file.display());
        }
        Ok(())
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  assay --dir new-ca restore ca-2026-12-01.assay --identity key.txt
  assay --dir new-ca resume --list crl.pem")]
pub(crate) struct Restore {
    /// What `assay backup` wrote
    file: PathBuf,
    /// The file with the private key of age, if the backup is encrypted
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Keep shared keys. Only if you know that none was rotated, and no device removed, since the
    /// backup: a key that was retired since would be good again
    #[arg(long)]
    keep_shared_keys: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Restore {
    pub(crate) fn run(self, directory: &Path) -> Result<()> {
        let identities = match &self.identity {
            Some(file) => fs::read_to_string(file)
                .map_err(Into::into)
                .and_then(|text| Identity::read_all(&text))
                .with_context(|| format!("cannot read {}", file.display()))?,
            None => Vec::new(),
        };
        let shared_keys = if self.keep_shared_keys { SharedKeys::Keep } else { SharedKeys::Retire };
        let mut teller = Teller::default();
        let restored = restore::restore(&self.file, &identities, directory, shared_keys, |it| {
            teller.tell(it)
        })?;
        self.tell(directory, &restored);
        Ok(())
    }

    fn tell(&self, directory: &Path, restored: &restore::Restored) {
        let [from, to] = [restored.backed_up_at, restored.restored_at]
            .map(|at| rfc3339::seconds(at.unix_timestamp()));
        let raised = &restored.raised;
        if self.json {
            table::print_json(&json!({
                "epoch": raised.epoch,
                "backed_up_at": from,
                "restored_at": to,
                "written_by": restored.manifest.assay,
                "record": restored.place,
                "devices": restored.devices,
                "shared_keys_retired": raised.shared_keys,
                "waiting_revoked": raised.waiting,
                "revocation_list": { "before": raised.list.0, "after": raised.list.1 },
                "identities": restored.identities,
                "anchors": restored.anchors,
                "tokens": restored.tokens,
                "held": true,
            }));
            return;
        }
        let keys = match self.keep_shared_keys {
            true => "kept, as you said".to_owned(),
            false => format!("all void (new master.key), {} of them on record", raised.shared_keys),
        };
        eprintln!("restored {} in epoch {}", restored.place, raised.epoch);
        eprintln!("  record: as of {from}, {} devices", restored.devices);
        eprintln!("  revocation lists: the next has a number above {}", raised.list.1);
        eprintln!("  tickets and claims: void (new ticket.key)");
        if restored.ticket_key_was_in_token {
            eprintln!(
                "    the one before was in a token, the new one is in its file; `assay keys rotate \
                 ticket --key URI` takes the next one from a token"
            );
        }
        eprintln!("  certificates that waited: {} are revoked", raised.waiting);
        eprintln!("  shared keys: {keys}");
        for token in &restored.tokens {
            eprintln!("  needed, and not in the backup: token {token}, and its PIN");
        }
        eprintln!("not known: what happened from {from} to {to}. Do again what was done then:");
        eprintln!("  devices that were disabled or removed   assay enroll disable | remove");
        eprintln!("  enrolments that were added or changed   assay enroll add | update");
        eprintln!("  identities, good on record: {}", restored.identities.join(", "));
        eprintln!("    those that were revoked               assay identity revoke");
        eprintln!("    those that lost rights                assay identity update");
        eprintln!("  vendors, trusted on record: {}", restored.anchors.len());
        eprintln!("    those that were removed               assay trust remove");
        eprintln!("  groups that were changed or removed     assay group list | update | remove");
        eprintln!("  issuing and service CA: if they were replaced since, replace them again");
        eprintln!("Devices that were certified since come back through their flow.");
        eprintln!(
            "The CA is held: nobody is let in. Then: assay --dir {} resume --list the-last-crl.pem",
            directory.display()
        );
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  assay --dir ca resume --list crl.pem       # the last list that the CA published, from anywhere
  assay --dir ca resume                      # no list, and all is revoked again by hand")]
pub(crate) struct Resume {
    /// A revocation list that the CA published after the backup, in DER or PEM: from a broker's
    /// file, or from the topic ca/v1/{scope}/crl. What it names is revoked here too
    #[arg(long, value_name = "FILE")]
    list: Vec<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

impl Resume {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let resumed = restore::resume(directory, &self.list, OffsetDateTime::now_utc())?;
        let mut rows = Vec::new();
        for list in &resumed.lists {
            let about = match list.about {
                ListedAre::Devices => "devices",
                ListedAre::Identities => "identities",
            };
            let (taken, file) = (list.taken, list.file.display());
            let at = rfc3339::seconds(list.issued_at.unix_timestamp());
            rows.push(json!({
                "file": list.file,
                "about": about,
                "number": list.number,
                "issued_at": at,
                "ended": taken.ended,
                "disabled": taken.disabled,
                "unknown": taken.unknown,
                "unknown_disabled": taken.unknown_disabled,
            }));
            eprintln!(
                "{file}: list {} of {about}, of {at}: {} certificates ended, {} devices disabled, \
                 {} certificates that the record does not know stay on the list",
                list.number, taken.ended, taken.disabled, taken.unknown
            );
        }
        if self.json {
            table::print_json(&json!({ "serves": resumed.serves, "lists": rows }));
        }
        if !resumed.serves {
            let unknown: u64 = resumed.lists.iter().map(|it| it.taken.unknown_disabled).sum();
            bail!(
                "{unknown} certificates of disabled devices are not on record, so their EKs are \
                 not known: disable these devices (assay enroll disable EK), then run \
                 `assay resume` again. The CA is still held"
            );
        }
        eprintln!("the CA may serve");
        Ok(())
    }
}
