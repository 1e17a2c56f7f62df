//! `assay keys`: the CA's keys and secrets, and the change of those that all workers share.

use anyhow::{Result, ensure};
use assay_server::directory::{Directory, SharedSecret};
use assay_server::operations::documents::issuing_state;
use assay_server::operations::keys::{self, LEAD, Role};
use assay_server::operations::signers::{self, Place};
use assay_server::rfc3339;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use time::OffsetDateTime;

use super::issuing::From;
use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum Keys {
    /// List the keys of the CAs, the ticket keys and the master secrets: what each is, where it is,
    /// and what still needs an old one
    List(list::Json),
    /// Try each: that it works, and how long it takes
    Test(Test),
    /// Make the next one: it is accepted as soon as a worker reads it, and used from a time on
    Rotate(Rotate),
    /// Drop the one before
    Retire(Retire),
}

#[derive(Args)]
pub(crate) struct Test {
    /// How often each signs; the median counts
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    times: u16,
    #[command(flatten)]
    json: list::Json,
}

#[derive(Args)]
#[command(after_help = "\
Give the new file to every machine with a worker, and have each worker read it
(SIGHUP) before the time comes: whoever does not know it refuses what is made
with it.

Examples:
  assay --dir ca keys rotate ticket && systemctl reload assay
  assay --dir ca keys rotate master --from 2027-01-15T08:00:00Z
  assay --dir ca keys list                          # what still needs the old one
  assay --dir ca keys retire ticket && systemctl reload assay")]
pub(crate) struct Rotate {
    /// Which of them
    secret: Which,
    /// From when on it is used: a time or a day (UTC), or `now`, for a CA with one worker, or if the
    /// old one was stolen [default: in an hour]
    #[arg(long, value_name = "TIME")]
    from: Option<From>,
}

#[derive(Args)]
pub(crate) struct Retire {
    /// Which of them
    secret: Which,
    /// Even if something still needs it, which is lost then
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    /// Makes tickets, and encrypts certificates that wait
    Ticket,
    /// From it, the shared keys of devices are derived
    Master,
}

impl Which {
    fn secret(self) -> SharedSecret {
        match self {
            Self::Ticket => SharedSecret::Ticket,
            Self::Master => SharedSecret::Master,
        }
    }
}

impl Keys {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        match self {
            Self::List(list::Json { json }) => list_all(directory, json),
            Self::Test(test) => test.run(directory),
            Self::Rotate(rotate) => rotate.run(directory),
            Self::Retire(retire) => retire.run(directory),
        }
    }
}

impl Test {
    fn run(self, directory: &Directory) -> Result<()> {
        let tried = signers::test(directory, self.times, OffsetDateTime::now_utc())?;
        let broken = tried.iter().filter(|it| it.outcome.is_err()).count();
        if self.json.json {
            for it in &tried {
                table::print_json(&json!({
                    "key": it.files,
                    "where": it.place,
                    "works": it.outcome.is_ok(),
                    "median_us": it.outcome.as_ref().ok().map(|took| took.as_micros() as u64),
                    "error": it.outcome.as_ref().err(),
                }));
            }
        } else {
            let cells = tried.iter().map(|it| {
                let outcome = match &it.outcome {
                    Ok(took) => format!("works, {:.3} ms", took.as_secs_f64() * 1000.0),
                    Err(_) => "BROKEN".to_owned(),
                };
                [it.files.clone(), outcome, it.place.clone()]
            });
            table::print(["KEY", "OUTCOME", "WHERE"], cells);
            // They are too long for a column.
            for it in &tried {
                if let Err(error) = &it.outcome {
                    eprintln!("{}: {}", it.files, table::printable(error));
                }
            }
        }
        ensure!(broken == 0, "{broken} of these keys do not work");
        Ok(())
    }
}

impl Rotate {
    fn run(self, directory: &Directory) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        let from = self.from.map_or(now + LEAD, |from| from.at(now));
        let file = keys::rotate(directory, self.secret.secret(), from, now)?;
        let stem = self.secret.secret().stem();
        eprintln!("made {file}, used from {} on", rfc3339::seconds(from.unix_timestamp()));
        eprintln!(
            "  copy it to every machine with a worker, and send SIGHUP to `assay serve` and `assay \
             worker` (systemctl reload assay) before that"
        );
        eprintln!("  {stem}.key is accepted until `assay keys retire {stem}`");
        Ok(())
    }
}

impl Retire {
    fn run(self, directory: &Directory) -> Result<()> {
        let secret = self.secret.secret();
        let lost = keys::retire(directory, secret, self.force, OffsetDateTime::now_utc())?;
        let stem = secret.stem();
        eprintln!("dropped the {stem} key of before: {stem}.key is the one in use");
        lost.iter().for_each(|lost| eprintln!("  lost: {lost}"));
        eprintln!(
            "  do the same on every machine with a worker, and send SIGHUP to `assay serve` and \
             `assay worker` (systemctl reload assay)"
        );
        Ok(())
    }
}

fn list_all(directory: &Directory, json: bool) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let (signers, held) = (signers::list(directory, now)?, keys::list(directory, now)?);
    let from =
        |from: Option<OffsetDateTime>| from.map(|from| rfc3339::seconds(from.unix_timestamp()));
    if json {
        for signer in &signers {
            let uris = match &signer.place {
                Place::Tokens(_, uris) => Some(uris.iter().map(ToString::to_string)),
                Place::File(_) | Place::Elsewhere => None,
            };
            let file = match &signer.place {
                Place::File(file) | Place::Tokens(file, _) => Some(file),
                Place::Elsewhere => None,
            };
            table::print_json(&json!({
                "key": signer.ca,
                "kind": signer.kind,
                "file": file,
                "tokens": uris.map(Iterator::collect::<Vec<_>>),
                "from": from(signer.from),
                "state": issuing_state(signer.state),
            }));
        }
        for held in &held {
            let (role, needed) = match &held.role {
                Role::InUse => ("in use", None),
                Role::Next => ("next", None),
                Role::Before(needed) => ("before", Some(needed)),
            };
            table::print_json(&json!({
                "key": held.secret.stem(),
                "kind": SECRET_KIND,
                "file": held.file,
                "from": from(held.from),
                "state": role,
                "needed_by": needed,
            }));
        }
        return Ok(());
    }
    let signers = signers.iter().map(|signer| {
        let from = from(signer.from).unwrap_or_else(|| "-".into());
        let place = match &signer.place {
            Place::File(file) => file.clone(),
            Place::Tokens(_, uris) => {
                let all: Vec<_> = uris.iter().map(|uri| format!("token {}", uri.token())).collect();
                all.join(", ")
            }
            Place::Elsewhere => "not on this machine".into(),
        };
        let state = issuing_state(signer.state).into();
        [signer.ca.into(), signer.kind.clone(), place, from, state]
    });
    let secrets = held.iter().map(|held| {
        let state = match &held.role {
            Role::InUse => "in use".into(),
            Role::Next => "next, accepted".into(),
            Role::Before(needed) if needed.is_empty() => "before, no longer needed".into(),
            Role::Before(needed) => format!("before, accepted: {}", needed.join("; ")),
        };
        let from = from(held.from).unwrap_or_else(|| "-".into());
        [held.secret.stem().into(), SECRET_KIND.into(), held.file.clone(), from, state]
    });
    table::print(["KEY", "KIND", "WHERE", "USED FROM", "STATE"], signers.chain(secrets));
    Ok(())
}

/// What a shared secret is.
const SECRET_KIND: &str = "HMAC-SHA-256";
