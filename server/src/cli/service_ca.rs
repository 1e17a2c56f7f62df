//! `assay service`: the next CA of brokers, workers, operators and backends.

use std::path::PathBuf;

use anyhow::Result;
use assay_server::directory::Directory;
use assay_server::operations::services;
use clap::{Args, Subcommand};
use time::OffsetDateTime;

#[derive(Subcommand)]
pub(crate) enum Service {
    /// Make the next service CA, under the newest root: identities that are made or renewed from now
    /// on are of it
    New(New),
    /// Drop the old service CA, once no certificate of it is good
    Retire(Retire),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  assay --dir ca service new
  assay --dir ca identity renew server && assay --dir ca identity renew worker
  systemctl reload assay
  assay --dir ca identity revoke --old server     # and so on, once nobody uses the old ones
  assay --dir ca service retire")]
pub(crate) struct New {
    /// The root's key [default: that of the newest root in the CA's directory]
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Retire {
    /// Even if certificates of it are good
    #[arg(long)]
    force: bool,
}

impl Service {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        match self {
            Self::New(New { root_key }) => {
                let name = services::make(directory, root_key.as_deref(), now)?;
                eprintln!("made {name}.pem and {name}.key");
                eprintln!(
                    "  renew the identities (assay identity renew NAME), and revoke the old \
                     certificates once nobody uses them (assay identity revoke --old NAME)"
                );
            }
            Self::Retire(Retire { force }) => {
                let lost = services::retire(directory, force, now)?;
                eprintln!("dropped the old service CA: service.pem is the new one");
                lost.iter().for_each(|name| eprintln!("  {name} is believed no more"));
            }
        }
        Ok(())
    }
}
