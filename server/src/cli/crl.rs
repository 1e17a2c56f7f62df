//! `assay crl`: the revocation lists, for brokers that read them from a file.

use std::fs::{OpenOptions, Permissions};
use std::io::{IsTerminal, Write, stdout};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use assay_server::directory::Directory;
use assay_server::operations::revocation_lists;
use assay_server::pem_of;
use assay_wire::KeyId;
use clap::Args;
use time::OffsetDateTime;

use super::table;

#[derive(Args)]
pub(crate) struct Crl {
    /// Write PEM instead of DER: the list of devices by each issuing CA and, after them, that of
    /// identities. DER holds one list: that of devices by the issuing CA in use
    #[arg(long)]
    pem: bool,
    /// The list of devices by the issuing CA with this key (`assay issuing list`)
    #[arg(long, value_name = "KEY", conflicts_with = "pem")]
    issuer: Option<KeyId>,
    /// Write to this file instead of standard output; readers see the old content or the new one,
    /// never a part. A device or a pipe is written to
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Crl {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let to_terminal = self.out.is_none() && stdout().is_terminal();
        ensure!(
            self.pem || !to_terminal,
            "a terminal cannot show DER; use --pem, or write a file with --out"
        );
        let now = OffsetDateTime::now_utc();
        let lists = if self.pem {
            let lists = revocation_lists::of_all(directory, now)?;
            lists.iter().map(|list| pem_of("X509 CRL", list)).collect::<String>().into_bytes()
        } else {
            revocation_lists::of_devices(directory, self.issuer.as_ref(), now)?
        };
        match self.out {
            Some(file) => {
                replace(&file, &lists).with_context(|| format!("cannot write {}", file.display()))
            }
            None => {
                table::written(stdout().write_all(&lists));
                Ok(())
            }
        }
    }
}

/// The new file has a name that nobody can foresee, and so no link of another user at its place.
fn replace(file: &Path, content: &[u8]) -> Result<()> {
    if !may_be_replaced(file) {
        return Ok(OpenOptions::new().write(true).open(file)?.write_all(content)?);
    }
    let directory = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    let mut new = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)?;
    new.write_all(content)?;
    new.as_file().sync_all()?;
    new.persist(file)?;
    Ok(())
}

/// Not a device or a pipe, which other programs need as it is: root could put a file at the place
/// of `/dev/null`. `/dev/stdout` is a link that may lead to a file.
fn may_be_replaced(file: &Path) -> bool {
    !file.starts_with("/dev") && (file.is_file() || !file.exists())
}
