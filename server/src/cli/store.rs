//! `assay store`: where the CA is on record, and moving it.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use assay_server::directory::Directory;
use assay_server::operations::store::{self, Moved, Target};
use assay_store::{Database, Progress, Status};
use clap::{Args, Subcommand, ValueEnum};

use super::{list, table};

#[derive(Subcommand)]
pub(crate) enum Store {
    /// Say where the CA is on record, and which version of Assay wrote it
    Status(list::Json),
    /// Move the CA from its file to PostgreSQL, or back
    ///
    /// Everything arrives, or nothing: certificates, enrolments, the audit, and every counter.
    /// Stop every worker first. What was copied says where the CA went, and refuses to be opened or
    /// written to from then on.
    Copy(Copy),
    /// Bring the database of an earlier version of Assay up to this one
    ///
    /// The file is upgraded by itself, when it is first opened and no earlier version has it open,
    /// after a copy to assay.db.before-N.
    /// PostgreSQL is upgraded by this command alone: make a backup (pg_dump) and stop every worker
    /// first.
    Upgrade,
}

#[derive(Args)]
#[command(after_help = "Examples:
  assay --dir ca store copy postgres     # to the PostgreSQL that assay.toml names
  assay --dir ca store copy file         # back to assay.db, which must not be there")]
pub(crate) struct Copy {
    /// Where to
    to: TargetName,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum TargetName {
    /// From assay.db to the PostgreSQL that `[store]` of assay.toml names; assay.db is then called
    /// assay.db.copied
    Postgres,
    /// From that PostgreSQL to assay.db
    File,
}

impl Store {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        match self {
            Self::Status(list::Json { json }) => status(directory, json),
            Self::Copy(copy) => copy.run(directory),
            Self::Upgrade => upgrade(directory),
        }
    }
}

fn status(directory: &Directory, json: bool) -> Result<()> {
    let database = directory.database()?;
    let Status { place, schema, writer, wanted } =
        database.status().with_context(|| format!("cannot look at {}", database.shown()))?;
    let kind = match database {
        Database::Postgres(_) => "postgres",
        Database::Sqlite(_) => "file",
    };
    if json {
        let version = (schema > 0).then_some(schema);
        table::print_json(&serde_json::json!({
            "store": kind,
            "place": place,
            "schema": version,
            "written_by": version.map(|_| writer),
            "wanted": wanted,
        }));
        return Ok(());
    }
    let advice = match schema.cmp(&wanted) {
        _ if schema == 0 => {
            "there is no CA in it; `assay store copy` copies one into it".to_owned()
        }
        std::cmp::Ordering::Less => "too old: run `assay store upgrade`".to_owned(),
        std::cmp::Ordering::Equal => "up to date".to_owned(),
        std::cmp::Ordering::Greater => format!("too new: use assay {writer} or later"),
    };
    let written = if schema == 0 { "-".into() } else { format!("{schema}, by assay {writer}") };
    table::print(["STORE", "PLACE", "SCHEMA", "STATE"], [[kind.into(), place, written, advice]]);
    Ok(())
}

fn upgrade(directory: &Directory) -> Result<()> {
    let database = directory.database()?;
    let before = database.status()?;
    database.upgrade().with_context(|| format!("cannot upgrade {}", database.shown()))?;
    let after = database.status()?;
    if before.schema == after.schema {
        eprintln!("{} has schema version {} already", after.place, after.schema);
    } else {
        eprintln!("{}: schema version {} is now {}", after.place, before.schema, after.schema);
    }
    Ok(())
}

impl Copy {
    fn run(self, directory: &Directory) -> Result<()> {
        let mut teller = Teller::default();
        let target = match self.to {
            TargetName::Postgres => Target::Postgres,
            TargetName::File => Target::File,
        };
        let Moved { from, to, rows } =
            store::move_to(directory, target, |progress| teller.tell(progress))?;
        if self.json {
            table::print_json(&serde_json::json!({ "from": from, "to": to, "rows": rows }));
            return Ok(());
        }
        eprintln!("copied {rows} rows to {to}");
        match target {
            Target::Postgres => eprintln!("  assay.db is now assay.db.copied; keep it as a backup"),
            Target::File => eprintln!(
                "  take url out of [store] in assay.toml before you start workers, and drop the \
                 tables in PostgreSQL"
            ),
        }
        Ok(())
    }
}

/// Tells on stderr how far a copy is, once a second.
pub(super) struct Teller {
    told: Instant,
}

impl Default for Teller {
    fn default() -> Self {
        Self { told: Instant::now() }
    }
}

impl Teller {
    pub(super) fn tell(&mut self, Progress { table, copied, rows }: Progress) {
        if self.told.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.told = Instant::now();
        let end = if std::io::stderr().is_terminal() { "\r" } else { "\n" };
        eprint!("{table}: {copied} of {rows}        {end}");
    }
}
