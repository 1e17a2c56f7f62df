//! `assay crl`: the revocation list, for brokers that read it from a file.

use std::fs;
use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use assay_broker_plugin::directory::Directory;
use clap::Args;
use pem::{EncodeConfig, LineEnding, Pem};
use time::OffsetDateTime;

use super::table;

#[derive(Args)]
pub(crate) struct Crl {
    /// Write PEM instead of DER
    #[arg(long)]
    pem: bool,
    /// Write to this file instead of standard output; readers see the old list or the new one, never a part
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Crl {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let to_terminal = self.out.is_none() && stdout().is_terminal();
        ensure!(self.pem || !to_terminal, "a terminal shows no DER; ask for --pem, or for a file with --out");
        let list = directory.ca()?.revocation_list(&mut directory.store()?, usize::MAX, OffsetDateTime::now_utc())?;
        let list = if self.pem { pem(list) } else { list };
        match self.out {
            Some(file) => replace(&file, &list).with_context(|| format!("cannot write {}", file.display())),
            None => {
                table::written(stdout().write_all(&list));
                Ok(())
            }
        }
    }
}

fn pem(der: Vec<u8>) -> Vec<u8> {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("X509 CRL", der), config).into_bytes()
}

fn replace(file: &Path, content: &[u8]) -> Result<()> {
    let new = file.with_added_extension("new");
    fs::write(&new, content)?;
    Ok(fs::rename(&new, file)?)
}
