//! `assay credentials`: certificates of operators and workers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use assay_broker_plugin::access::{OPERATOR_PREFIX, WORKER_PREFIX};
use assay_server::directory::{Directory, Role};
use assay_server::operations::credentials::{self, RevokeError};
use assay_server::operations::documents;
use assay_server::rfc3339;
use assay_wire::ClientId;
use clap::{Args, Subcommand, ValueEnum};
use time::OffsetDateTime;

use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum Credentials {
    /// List the certificates
    List(list::Json),
    /// Make a certificate, valid for three years
    Add(Add),
    /// Revoke a certificate: nobody is let in with it any more, and live connections are cut
    Revoke(Revoke),
}

#[derive(Args)]
#[command(after_help = "Examples:
  assay --dir ca credentials add operator alice            # alice.pem, alice.key
  assay --dir ca credentials add worker north --out north")]
pub(crate) struct Add {
    /// Who it is for
    role: RoleName,
    /// Its name: 1 to 64 of A-Z a-z 0-9 - . _ :
    name: ClientId,
    /// The directory to write NAME.pem and NAME.key to
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleName {
    /// Watches devices, and speaks to them
    Operator,
    /// Answers requests
    Worker,
}

#[derive(Args)]
pub(crate) struct Revoke {
    /// What `credentials list` calls it
    name: String,
    /// Revoke it even if it is the CA's own `worker.pem` or `operator.pem`
    #[arg(long)]
    force: bool,
}

impl Credentials {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        match self {
            Self::List(list::Json { json }) => list_all(directory, json),
            Self::Add(Add { role, name, out }) => {
                let role = match role {
                    RoleName::Operator => Role::Operator,
                    RoleName::Worker => Role::Worker,
                };
                directory.add_credential(role, &name, &out)?;
                let who = match role {
                    Role::Operator => OPERATOR_PREFIX,
                    Role::Worker => WORKER_PREFIX,
                };
                eprintln!("made {name}.pem and {name}.key in {}", out.display());
                eprintln!(
                    "  they open the operational listener under a client id that begins with \
                     {who}, e.g. {who}{name};"
                );
                eprintln!("  their user needs root.pem, too");
                Ok(())
            }
            Self::Revoke(Revoke { name, force }) => {
                match credentials::revoke(directory, &name, force, OffsetDateTime::now_utc()) {
                    Ok(true) => {
                        eprintln!("revoked {name}: its live connections end within seconds");
                        Ok(())
                    }
                    Ok(false) => {
                        eprintln!("{name} was revoked before");
                        Ok(())
                    }
                    Err(error @ RevokeError::Own { .. }) => bail!(
                        "{error}; first replace it with another (assay credentials add, \
                         docs/operations.md), or use --force"
                    ),
                    Err(error @ RevokeError::Unknown { .. }) => {
                        bail!("{error}; `assay credentials list` names them")
                    }
                    Err(error) => Err(error.into()),
                }
            }
        }
    }
}

fn list_all(directory: &Directory, json: bool) -> Result<()> {
    let credentials = directory.store()?.credentials()?;
    if json {
        credentials.iter().for_each(|row| table::print_json(&documents::credential(row)));
        return Ok(());
    }
    let rows = credentials.into_iter().map(|row| {
        [
            row.name,
            row.role,
            hex::encode(row.sha256)[..table::SHORT_ID].to_owned(),
            rfc3339::seconds(row.issued_at),
            rfc3339::seconds(row.not_after),
            row.revoked_at.map_or_else(
                || "good".into(),
                |since| format!("revoked {}", rfc3339::seconds(since)),
            ),
        ]
    });
    table::print(["NAME", "ROLE", "FINGERPRINT", "ISSUED", "NOT AFTER", "STATE"], rows);
    Ok(())
}
