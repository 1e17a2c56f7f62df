//! `assay root`: the first root, the next one, and the end of the old one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use assay_server::directory::Directory;
use assay_server::operations::roots;
use assay_server::rfc3339;
use clap::{Args, Subcommand};
use serde_json::json;
use time::OffsetDateTime;

use super::{ceremony, list, table};

#[derive(Subcommand)]
pub(crate) enum Root {
    /// Make a root on a machine of its own, without a CA
    Init(Box<ceremony::Init>),
    /// Certify what a CA on another machine asks for
    Sign(ceremony::Sign),
    /// Split what opens the root's key: so many of the shares open it
    Split(ceremony::SplitArgs),
    /// List the roots
    List(list::Json),
    /// Make the next root, which the one in use certifies; devices are told of it as they renew
    New(New),
    /// Take a new root that was made where the old root's key is
    Install(Install),
    /// Remove the old root, once no device needs it
    Remove(Remove),
}

#[derive(Args)]
#[command(after_help = "\
Devices go on to trust the old root, and pin the new one beside it when they
renew. `assay issuing new` and `assay service new` then use the new one.

Examples:
  assay --dir ca root new && systemctl reload assay
  assay --dir ca root new --root-key /media/safe/root.key
  assay root new --root root.pem --root-key root.key --out new     # elsewhere, then
  assay --dir ca root install new/new-root.pem new/new-root.cross.pem")]
pub(crate) struct New {
    /// The old root's key [default: root.key in the CA's directory]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    /// Make it for a CA on another machine: the old root's certificate
    #[arg(long, value_name = "FILE", requires = "root_key", requires = "out")]
    root: Option<PathBuf>,
    /// With --root: the directory to write new-root.pem, new-root.cross.pem and new-root.key to
    #[arg(long, value_name = "DIR", requires = "root")]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Install {
    /// The new root's certificate, and the one by which the old root certifies it
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Remove {
    /// Even if devices have not renewed since the new root is there
    #[arg(long)]
    force: bool,
}

impl Root {
    pub(crate) fn run(self, path: &Path) -> Result<()> {
        let directory = || Directory::open(path);
        let now = OffsetDateTime::now_utc();
        match self {
            Self::Init(init) => init.run(),
            Self::Sign(sign) => sign.run(path),
            Self::Split(split) => split.run(path),
            Self::List(list::Json { json }) => list_all(&directory()?, json),
            Self::New(New { root: Some(root), root_key, out }) => {
                let root_key = root_key.context("--root needs --root-key")?;
                let out = out.context("--root needs --out")?;
                roots::make_elsewhere(&root, &root_key, &out, now)?;
                eprintln!(
                    "made new-root.pem, new-root.cross.pem and new-root.key in {}",
                    out.display()
                );
                eprintln!("  bring the two certificates to the CA: assay root install FILE FILE");
                eprintln!("  keep the key where the old one is: it certifies CAs from now on");
                Ok(())
            }
            Self::New(New { root_key, .. }) => {
                told(&roots::make(&directory()?, root_key.as_deref(), now)?);
                Ok(())
            }
            Self::Install(Install { files }) => {
                told(&roots::install(&directory()?, &files, now)?);
                Ok(())
            }
            Self::Remove(Remove { force }) => {
                let lost = roots::remove(&directory()?, force, now)?;
                eprintln!("removed the old root and its key: root.pem is the new one");
                lost.iter().for_each(|lost| eprintln!("  {lost}"));
                eprintln!(
                    "  do the same on every machine with a worker, give brokers the new root.pem, \
                     and send SIGHUP to `assay serve` and `assay worker` (systemctl reload assay)"
                );
                Ok(())
            }
        }
    }
}

fn told(name: &str) {
    eprintln!("{name}.pem is the new root; root.pem certifies it in {name}.cross.pem");
    eprintln!(
        "  copy the two to every machine with a worker, give {name}.pem to brokers that are not \
         ours besides root.pem, and send SIGHUP to `assay serve` and `assay worker` (systemctl \
         reload assay)"
    );
    eprintln!(
        "  then make the CAs under it (assay service new, assay issuing new); see `assay root list`"
    );
}

fn list_all(directory: &Directory, json: bool) -> Result<()> {
    let roots = roots::list(directory)?;
    if json {
        for root in &roots {
            table::print_json(&json!({
                "file": root.file,
                "subject": root.subject,
                "not_after": rfc3339::seconds(root.not_after.unix_timestamp()),
                "has_key": root.has_key,
                "is_new": root.is_new,
            }));
        }
        return Ok(());
    }
    let cells = roots.into_iter().map(|root| {
        [
            root.file,
            root.subject,
            rfc3339::seconds(root.not_after.unix_timestamp()),
            if root.has_key { "here" } else { "elsewhere" }.into(),
            if root.is_new { "new: devices pin it as they renew" } else { "" }.into(),
        ]
    });
    table::print(["FILE", "NAME", "VALID UNTIL", "KEY", ""], cells);
    Ok(())
}
