//! `assay service`: the next CA of brokers, workers, operators and backends.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use assay_server::directory::Directory;
use assay_server::operations::services;
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::issuing::give_request;

#[derive(Subcommand)]
pub(crate) enum Service {
    /// Make the next service CA, under the newest root: identities that are made or renewed from now
    /// on are of it
    New(New),
    /// Make a key, and a request that the root's owner certifies on another machine
    ///
    /// The request that waits already is given again.
    Csr {
        /// Write the request to this file instead of standard output
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Forget the key that waits, and make another one
        #[arg(long)]
        again: bool,
    },
    /// Put the certificate in place that the root's owner made for the request
    Install {
        /// The certificate, in PEM or DER
        certificate: PathBuf,
    },
    /// Drop the old service CA, once no certificate of it is good
    Retire(Retire),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  assay --dir ca service new                      # or, if the root is elsewhere:
  assay --dir ca service csr --out service.csr && assay --dir ca service install service.pem
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
                tell(&services::make(directory, root_key.as_deref(), now)?);
            }
            Self::Csr { out, again } => {
                let (request, is_new) = services::request(directory, again, now)?;
                give_request(&request, out.as_deref())?;
                let made = if is_new { "made a key, which waits" } else { "the key waits already" };
                eprintln!("{made}: service-next.key");
                eprintln!(
                    "next: have the root's owner certify the request (assay root sign), then run \
                     `assay service install CERTIFICATE`"
                );
            }
            Self::Install { certificate } => {
                let shown = certificate.display();
                let file =
                    fs::read(&certificate).with_context(|| format!("cannot read {shown}"))?;
                let installed = services::install(directory, &file, now);
                tell(&installed.with_context(|| format!("{shown} is not installed"))?);
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

fn tell(name: &str) {
    eprintln!("made {name}.pem and {name}.key");
    eprintln!(
        "  renew the identities (assay identity renew NAME), and revoke the old certificates once \
         nobody uses them (assay identity revoke --old NAME)"
    );
}
