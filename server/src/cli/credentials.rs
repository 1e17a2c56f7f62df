//! `assay credentials`: certificates of operators and workers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use assay_broker_plugin::access::{OPERATOR_PREFIX, WORKER_PREFIX};
use assay_server::directory::{Directory, Role};
use assay_store::CredentialRow;
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
                eprintln!("  whoever uses them needs root.pem, too");
                Ok(())
            }
            Self::Revoke(Revoke { name, force }) => {
                if !force && let Some(holder) = directory.holder_of(&name)? {
                    bail!(
                        "{holder}.pem of this directory is that certificate, so the CA itself \
                         would be shut out; put another in its place first (assay credentials \
                         add, docs/operations.md), or insist with --force"
                    );
                }
                match directory.store()?.revoke_credential(&name, OffsetDateTime::now_utc())? {
                    Some(true) => {
                        eprintln!("revoked {name}: its live connections end within seconds")
                    }
                    Some(false) => eprintln!("{name} was revoked before"),
                    None => {
                        bail!("there is no credential {name}; `assay credentials list` names them")
                    }
                }
                Ok(())
            }
        }
    }
}

fn list_all(directory: &Directory, json: bool) -> Result<()> {
    let credentials = directory.store()?.credentials()?;
    if json {
        for CredentialRow { name, role, sha256, issued_at, not_after, revoked_at } in credentials {
            let line = serde_json::json!({
                "name": name,
                "role": role,
                "fingerprint": hex::encode(sha256),
                "issued_at": table::time(issued_at),
                "not_after": table::time(not_after),
                "revoked_at": revoked_at.map(table::time),
            });
            table::print_json(&line);
        }
        return Ok(());
    }
    let rows = credentials.into_iter().map(|row| {
        [
            row.name,
            row.role,
            hex::encode(row.sha256)[..table::SHORT_ID].to_owned(),
            table::time(row.issued_at),
            table::time(row.not_after),
            row.revoked_at
                .map_or_else(|| "good".into(), |since| format!("revoked {}", table::time(since))),
        ]
    });
    table::print(["NAME", "ROLE", "FINGERPRINT", "ISSUED", "NOT AFTER", "STATE"], rows);
    Ok(())
}
