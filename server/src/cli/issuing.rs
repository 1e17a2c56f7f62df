//! `assay issuing`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use assay_pkcs11::{KeyKind, Uri};
use assay_server::directory::Directory;
use assay_server::operations::documents;
use assay_server::operations::issuing::{self, AHEAD, InPlace, Row, State};
use assay_server::{TokenPlace, rfc3339};
use clap::{Args, Subcommand};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::table;

#[derive(Subcommand)]
#[command(after_help = EXAMPLES)]
pub(crate) enum Issuing {
    /// Make the next issuing CA, with the root's key
    New {
        /// From when on it is used: YYYY-MM-DD, RFC 3339, or `now`. A week ahead if it is left out
        #[arg(long, value_name = "DATE")]
        from: Option<From>,
        /// The root's key, if it is not in the CA's directory
        #[arg(long, value_name = "FILE")]
        root_key: Option<PathBuf>,
        #[command(flatten)]
        key: Key,
    },
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
        #[command(flatten)]
        key: Key,
    },
    /// Put the certificate in place that the root's owner made for the request
    Install {
        /// The certificate, in PEM or DER
        certificate: PathBuf,
        /// From when on it is used: YYYY-MM-DD, RFC 3339, or `now`. A week ahead if it is left out
        #[arg(long, value_name = "DATE")]
        from: Option<From>,
        /// The key in a token that it is for, if no key of `issuing csr` waits for it
        #[arg(long, value_name = "URI")]
        key: Option<Uri>,
    },
    /// List the issuing CAs, and how many certificates need each
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Remove key and certificate of one that no certificate needs
    Remove {
        /// The name of its files, for example issuing-20270115T000000Z, or its key identifier
        which: String,
        /// Remove it although certificates that it signed, and that were revoked, have not expired
        #[arg(long)]
        force: bool,
    },
}

/// Where the key of a new issuing CA is, if not in a file.
#[derive(Args)]
pub(crate) struct Key {
    /// The key in a token (RFC 7512: pkcs11:token=LABEL;object=LABEL?module-path=/path/to/lib.so).
    /// Without object and id, one is made there
    #[arg(long, value_name = "URI")]
    key: Option<Uri>,
    /// The kind of key that is made: p256, p384, rsa2048, rsa3072 or rsa4096
    #[arg(long, value_name = "KIND", default_value = "p256", requires = "key")]
    key_type: KeyKind,
}

impl Key {
    fn place(self) -> Option<TokenPlace> {
        Some(TokenPlace { uri: self.key?, kind: self.key_type })
    }
}

impl Issuing {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        match self {
            Self::New { from, root_key, key } => {
                let (from, place) = (time_of(from, now), key.place());
                tell(&issuing::make(directory, from, root_key.as_deref(), place, now)?, now);
            }
            Self::Csr { out, again, key } => request(directory, out, again, key.place(), now)?,
            Self::Install { certificate, from, key } => {
                let file = fs::read(&certificate)
                    .with_context(|| format!("cannot read {}", certificate.display()))?;
                let installed = issuing::install(directory, &file, time_of(from, now), key, now)
                    .with_context(|| format!("{} is not installed", certificate.display()))?;
                tell(&installed, now);
            }
            Self::List { json } => list(directory, json, now)?,
            Self::Remove { which, force } => {
                let removed = issuing::remove(directory, &which, force, now)?;
                eprintln!("removed the files {}.*; a key in a token stays there", removed.files);
                if removed.state != State::Unfinished {
                    eprintln!("  remove them on every machine that serves this CA");
                    eprintln!("  then send SIGHUP to `assay serve` and `assay worker`");
                }
            }
        }
        Ok(())
    }
}

/// From when on an issuing CA or a key is used.
#[derive(Clone, Copy)]
pub(crate) enum From {
    Now,
    Time(OffsetDateTime),
}

impl std::str::FromStr for From {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "now" => Ok(Self::Now),
            text => rfc3339::parse(text)
                .map(Self::Time)
                .ok_or("not a date; say 2027-01-15, 2027-01-15T08:00:00Z or now"),
        }
    }
}

impl From {
    pub(super) fn at(self, now: OffsetDateTime) -> OffsetDateTime {
        match self {
            Self::Now => now,
            Self::Time(time) => time,
        }
    }
}

fn time_of(from: Option<From>, now: OffsetDateTime) -> OffsetDateTime {
    from.map_or(now + AHEAD, |from| from.at(now))
}

fn tell(made: &InPlace, now: OffsetDateTime) {
    let InPlace { name, key_file, subject, key_id, from, ends } = made;
    let [from_shown, ends] = [from, ends].map(|time| rfc3339::seconds(time.unix_timestamp()));
    eprintln!("{}: it signs device certificates from {from_shown} on", table::printable(subject));
    eprintln!("  files  {} and {key_file}", name.certificate());
    eprintln!("  key    {key_id}");
    eprintln!("  ends   {ends}");
    eprintln!("next:");
    eprintln!("  copy both files to every machine that serves this CA");
    if *from <= now {
        eprintln!(
            "  send SIGHUP to `assay serve` and `assay worker`: until then the one before signs"
        );
    } else {
        eprintln!("  send SIGHUP to `assay serve` and `assay worker`, before {from_shown}");
    }
    eprintln!("  make a backup");
}

fn request(
    directory: &Directory,
    out: Option<PathBuf>,
    again: bool,
    place: Option<TokenPlace>,
    now: OffsetDateTime,
) -> Result<()> {
    let request = issuing::request(directory, again, place, now)?;
    let made = if request.is_new { "made a key, which waits" } else { "the key waits already" };
    give_request(&request.pem, out.as_deref())?;
    eprintln!("{made}: {}", request.key_file);
    eprintln!(
        "next: have the root's owner certify the request (assay root sign; docs/operations.md, \
         \"Replacing the issuing CA\"), then run `assay issuing install CERTIFICATE`"
    );
    Ok(())
}

/// Writes a request to a file or to standard output, and says what its owner and the root's compare.
pub(super) fn give_request(request: &str, out: Option<&Path>) -> Result<()> {
    match out {
        Some(file) => {
            fs::write(file, request).with_context(|| format!("cannot write {}", file.display()))?
        }
        None => table::print_line(request.trim_end()),
    }
    let digest = Sha256::digest(pem::parse(request)?.contents());
    eprintln!("SHA-256 of the request: {}", hex::encode(digest));
    Ok(())
}

fn list(directory: &Directory, json: bool, now: OffsetDateTime) -> Result<()> {
    let rows = issuing::list(directory, now)?;
    if json {
        rows.iter().for_each(|row| table::print_json(&documents::issuing_ca(row)));
    } else {
        table::print(
            ["FILES", "STATE", "FROM", "ENDS", "IN FORCE", "MAY WAIT", "LAST ENDS", "KEY", "NAME"],
            rows.iter().map(cells),
        );
    }
    // Each row may be good, and the whole not.
    directory.issuers().map(drop).context("no worker takes them as they are")
}

fn cells(row: &Row) -> [String; 9] {
    let state = documents::issuing_state(row.state).to_owned();
    let time = |seconds: i64| rfc3339::seconds(seconds);
    let from = match row.state {
        State::Unfinished => "-".to_owned(),
        _ => row.from.map_or_else(|| "the beginning".into(), |it| time(it.unix_timestamp())),
    };
    let none = || "-".to_owned();
    match &row.certificate {
        Some(Ok(it)) => [
            row.files.clone(),
            state,
            from,
            time(it.ends.unix_timestamp()),
            it.in_force.active.to_string(),
            it.in_force.waiting.to_string(),
            it.in_force.last_ends.map_or_else(none, time),
            it.key_id.to_string(),
            it.subject.clone(),
        ],
        other => {
            let reason = match other {
                Some(Err(reason)) => format!("(broken: {reason})"),
                _ => "(no certificate yet)".to_owned(),
            };
            let [a, b, c, d, e] = [(); 5].map(|()| none());
            [row.files.clone(), state, from, a, b, c, d, e, reason]
        }
    }
}

const EXAMPLES: &str = "\
The next issuing CA signs from its date on, by the clock, once every worker has
reread its files. Devices follow when they renew. docs/operations.md, \"Replacing
the issuing CA\", has every step.

Examples:
  assay --dir ca issuing new --root-key /media/safe/root.key     # a week ahead
  assay --dir ca issuing new --from 2027-01-15
  assay --dir ca issuing csr --out issuing.csr                   # the root is elsewhere
  assay --dir ca issuing install issuing.pem --from 2027-01-15
  assay --dir ca issuing list
  assay --dir ca issuing remove issuing                          # once nobody needs it";
