//! `assay identity`: brokers, workers, operators and backends, and their certificates.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use assay_broker_plugin::access::{BACKEND_PREFIX, OPERATOR_PREFIX, WORKER_PREFIX};
use assay_ca_core::LEAF_LIFETIME;
use assay_server::directory::Directory;
use assay_server::operations::documents;
use assay_server::operations::identities::{self, Revoke as What, RevokeError, Wish};
use assay_server::{expiry, rfc3339};
use assay_store::{IdentityCertificateRow, IdentityRole, IdentityRow};
use assay_wire::{IdentityName, Rights, Scope};
use clap::{Args, Subcommand, ValueEnum};
use time::{Duration, OffsetDateTime};

use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum Identity {
    /// Make an identity: a certificate and a key, and for a backend its rights
    Add(Add),
    /// List the identities with their certificates
    List(list::Json),
    /// Make another certificate for an identity; the old one stays good
    Renew(Renew),
    /// Give a backend other rights, at once
    Update(Update),
    /// Revoke an identity: nobody is let in as it any more, and live connections are cut
    Revoke(Revoke),
    /// Print the backends' rights as lines of an access list for Mosquitto
    Acl,
}

#[derive(Args)]
#[command(after_help = ADD_EXAMPLES)]
pub(crate) struct Add {
    /// Its name: 1 to 56 of A-Z a-z 0-9 - . _ :
    name: IdentityName,
    /// What it is
    #[arg(long, default_value = "backend")]
    role: Role,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    validity: Validity,
    /// The directory to write NAME.pem and NAME.key to
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Reads and sends what its rights say
    Backend,
    /// Shows a server's certificate
    Broker,
    /// Watches devices, and sends them commands
    Operator,
    /// Answers requests
    Worker,
}

/// The rights of a backend.
#[derive(Args)]
struct Filters {
    /// A backend may subscribe to this, e.g. 'device/+/telemetry': below device/, fleet/ or ca/ of
    /// this CA's scope, without version and scope; may be repeated
    #[arg(long, value_name = "FILTER")]
    subscribe: Vec<String>,
    /// A backend may publish this, e.g. 'device/+/command/#': commands to devices; may be repeated
    #[arg(long, value_name = "FILTER")]
    publish: Vec<String>,
}

impl Filters {
    fn rights(&self) -> Result<Rights> {
        let [publish, subscribe] =
            [&self.publish, &self.subscribe].map(|filters| filters.iter().map(String::as_str));
        Ok(Rights::new(publish, subscribe)?)
    }
}

#[derive(Args)]
struct Validity {
    /// A DNS name or IP address under which a broker is reached; may be repeated
    #[arg(long = "server-name", value_name = "HOST")]
    server_names: Vec<String>,
    /// For how many days the certificate is valid, 1095 at most
    #[arg(long, value_name = "DAYS", default_value_t = LONGEST,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(LONGEST)))]
    days: u16,
}

impl Validity {
    fn lifetime(&self) -> Duration {
        Duration::days(self.days.into())
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  assay --dir ca identity renew server && systemctl reload assay
  assay --dir ca identity renew sink --out /etc/sink         # replaces sink.pem, sink.key
  assay --dir ca identity revoke sink --old                  # once sink uses the new ones")]
pub(crate) struct Renew {
    /// What `identity list` calls it; the built-in broker is `server`
    name: String,
    #[command(flatten)]
    validity: Validity,
    /// Revoke the older certificates now, and cut who is connected with them
    #[arg(long)]
    revoke_old: bool,
    /// The directory with NAME.pem and NAME.key, which are replaced [default: the CA's directory
    /// for the CA's own, otherwise this directory]
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Update {
    /// What `identity list` calls it
    name: String,
    #[command(flatten)]
    filters: Filters,
}

#[derive(Args)]
pub(crate) struct Revoke {
    /// What `identity list` calls it
    name: String,
    /// Revoke all of its certificates but the newest
    #[arg(long)]
    old: bool,
    /// Revoke it even if it is the CA's own `server.pem`, `worker.pem` or `operator.pem`
    #[arg(long)]
    force: bool,
}

impl Identity {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        match self {
            Self::Add(add) => add.run(directory),
            Self::List(list::Json { json }) => list_all(directory, json),
            Self::Renew(renew) => renew.run(directory),
            Self::Update(update) => update.run(directory),
            Self::Revoke(Revoke { name, old, force }) => {
                let what = if old { What::Old } else { What::All };
                revoke(directory, &name, what, force)
            }
            Self::Acl => {
                let list = identities::access_list(directory)?;
                list.trim_end().lines().for_each(table::print_line);
                Ok(())
            }
        }
    }
}

impl Add {
    fn run(self, directory: &Directory) -> Result<()> {
        let Self { name, role, filters, validity, out } = self;
        let rights = filters.rights()?;
        let scope = &directory.config().scope;
        ensure!(
            role == Role::Backend || rights.is_empty(),
            "--subscribe and --publish are for backends: others have the rights of their role"
        );
        ensure!(
            role != Role::Backend || !rights.is_empty(),
            "a backend needs --subscribe or --publish; for another say --role operator, worker or \
             broker"
        );
        ensure!(
            (role == Role::Broker) != validity.server_names.is_empty(),
            "a broker needs --server-name, and nobody else has one"
        );
        let shown = shown(&rights, scope);
        let wish = Wish {
            role: role.into(),
            server_names: &validity.server_names,
            lifetime: validity.lifetime(),
        };
        identities::add(directory, &name, &wish, rights, &out)?;
        eprintln!("made {name}.pem and {name}.key in {}", out.display());
        match role {
            Role::Broker => eprintln!("  for a broker of your own; devices need root.pem"),
            Role::Operator | Role::Worker => {
                let who = if role == Role::Operator { OPERATOR_PREFIX } else { WORKER_PREFIX };
                eprintln!(
                    "  they open the operational listener under a client id that begins with \
                     {who}, e.g. {who}{name};"
                );
                eprintln!("  their user needs root.pem, too");
            }
            Role::Backend => {
                eprintln!(
                    "  they open the operational listener under the client id \
                     {BACKEND_PREFIX}{name}, and further connections under \
                     {BACKEND_PREFIX}{name}@2 and so on;"
                );
                eprintln!("  their user needs root.pem, too");
                eprintln!("  it may {shown}");
            }
        }
        Ok(())
    }
}

impl Renew {
    fn run(self, directory: &Directory) -> Result<()> {
        let Self { name, validity, revoke_old, out } = self;
        let (names, lifetime) = (&validity.server_names, validity.lifetime());
        let renewal = identities::renew(directory, &name, names, lifetime, out.as_deref())?;
        let files = renewal.files.display();
        eprintln!("renewed {name}: {files}.pem and {files}.key are new");
        if let Some("server" | "worker") = renewal.holder {
            eprintln!(
                "  send SIGHUP to `assay serve` and `assay worker` (systemctl reload assay), which \
                 take them then"
            );
        }
        if !revoke_old {
            if renewal.old > 0 {
                eprintln!(
                    "  the old certificate is good until it expires, or `assay identity revoke \
                     {name} --old`"
                );
            }
            return Ok(());
        }
        ensure!(
            renewal.holder != Some("worker"),
            "a running worker still shows the old certificate, which therefore stays good: send \
             SIGHUP first, then run `assay identity revoke {name} --old`"
        );
        revoke(directory, &name, What::Old, false)
    }
}

impl Update {
    fn run(self, directory: &Directory) -> Result<()> {
        let Self { name, filters } = self;
        let rights = filters.rights()?;
        ensure!(
            !rights.is_empty(),
            "say every filter that {name} may have, with --subscribe and --publish; to take all \
             from it, use `assay identity revoke {name}`"
        );
        ensure!(
            directory.store()?.set_rights(&name, &rights)?,
            "there is no backend {name}; `assay identity list` names them"
        );
        eprintln!("{name} may {}", shown(&rights, &directory.config().scope));
        eprintln!("  live connections of another right are cut within a second");
        Ok(())
    }
}

fn revoke(directory: &Directory, name: &str, what: What, force: bool) -> Result<()> {
    let subject = match what {
        What::All => name.to_owned(),
        What::Old => format!("the older certificates of {name}"),
    };
    let store = &mut *directory.store()?;
    match identities::revoke(directory, store, name, what, force, OffsetDateTime::now_utc()) {
        Ok(0) if what == What::All => eprintln!("{name} was revoked before"),
        Ok(0) => eprintln!("{name} has no older certificate that is good"),
        Ok(_) => eprintln!("revoked {subject}: live connections end within seconds"),
        Err(error @ RevokeError::Own { .. }) => {
            bail!("{error}; use `assay identity renew {name}` to replace it, or --force")
        }
        Err(error @ RevokeError::Unknown { .. }) => {
            bail!("{error}; `assay identity list` names them")
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn list_all(directory: &Directory, json: bool) -> Result<()> {
    let (identities, now) = (directory.store()?.identities()?, OffsetDateTime::now_utc());
    let scope = &directory.config().scope;
    let rows = || identities.iter().flat_map(IdentityRow::certificates_of);
    if json {
        for (row, certificate) in rows() {
            table::print_json(&documents::identity(row, certificate, scope, now));
        }
        return Ok(());
    }
    let cells = rows().map(|(row, certificate)| {
        [
            row.name.clone(),
            row.role.name().into(),
            hex::encode(&certificate.serial),
            expiry::days_left(certificate.not_after, now).to_string(),
            state(row, certificate, now),
            shown(&row.rights, scope),
        ]
    });
    table::print(["NAME", "ROLE", "SERIAL", "DAYS LEFT", "STATE", "MAY"], cells);
    Ok(())
}

fn state(row: &IdentityRow, certificate: &IdentityCertificateRow, now: OffsetDateTime) -> String {
    match certificate.revoked_at {
        Some(since) => format!("revoked {}", rfc3339::seconds(since)),
        None if certificate.not_after < now.unix_timestamp() => "expired".into(),
        None if expiry::is_due(row, certificate, now) => "good, to be renewed".into(),
        None => "good".into(),
    }
}

/// What a backend may do, with the topics as they stand in MQTT.
fn shown(rights: &Rights, scope: &Scope) -> String {
    let parts = [("hear", rights.subscribe_in(scope)), ("say", rights.publish_in(scope))];
    let parts = parts.into_iter().filter(|(_, filters)| !filters.is_empty());
    parts
        .map(|(verb, filters)| format!("{verb} {}", filters.join(" ")))
        .collect::<Vec<_>>()
        .join("; ")
}

impl From<Role> for IdentityRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Backend => Self::Backend,
            Role::Broker => Self::Broker,
            Role::Operator => Self::Operator,
            Role::Worker => Self::Worker,
        }
    }
}

/// [`LEAF_LIFETIME`] in days.
#[expect(clippy::cast_possible_truncation, reason = "some thousand days")]
#[expect(clippy::cast_sign_loss, reason = "it is positive")]
const LONGEST: u16 = LEAF_LIFETIME.whole_days() as u16;

const ADD_EXAMPLES: &str = "\
A backend is a service of yours. What it may do is on record, so that a change
acts at once. Only workers have shared subscriptions.

Examples:
  assay --dir ca identity add sink --subscribe 'device/#'     # sink.pem, sink.key
  assay --dir ca identity add control --subscribe 'device/+/telemetry' --publish 'device/+/command/#'
  assay --dir ca identity add alice --role operator --days 90
  assay --dir ca identity add north --role worker --out north
  assay --dir ca identity add mosquitto --role broker --server-name mqtt.example";
