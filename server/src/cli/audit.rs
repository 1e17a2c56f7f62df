//! `assay audit`: the record of decisions and of what operators did, and whether it is as it was.

use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use assay_server::directory::Directory;
use assay_server::operations::documents;
use assay_server::rfc3339;
use assay_store::{AuditRow, Chain, Link, Verified, Verifier};
use assay_wire::ProblemCode;
use clap::{Args, Subcommand};

use super::{list, table};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Audit {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    json: list::Json,
    /// How many entries, counted from the newest
    #[arg(long, default_value_t = 1000)]
    count: u32,
}

#[derive(Subcommand)]
enum What {
    /// Say whether nobody changed, removed or added an entry
    ///
    /// Prints the newest entry of each chain, with its hash. Keep this elsewhere: with --seen, it
    /// shows later that the entries up to there are what they were.
    Verify {
        /// An export to verify instead of the record; - for standard input
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// What this command printed before
        #[arg(long, value_name = "FILE")]
        seen: Option<PathBuf>,
    },
    /// Write every entry with its hash, one JSON object a line, to verify it elsewhere
    Export,
}

impl Audit {
    pub(crate) fn run(self, directory: impl FnOnce() -> Result<Directory>) -> Result<()> {
        match self.what {
            None => newest(&directory()?, &self.json, self.count),
            Some(What::Export) => {
                walk(&directory()?, Verifier::default(), |line| table::print_line(line)).map(drop)
            }
            Some(What::Verify { file, seen }) => {
                let verifier = Verifier::expecting(seen.as_deref().map_or(Ok(vec![]), read_links)?);
                told(&match file {
                    Some(file) => verify_file(&file, verifier)?,
                    None => walk(&directory()?, verifier, |_| {})?,
                })
            }
        }
    }
}

fn newest(directory: &Directory, json: &list::Json, count: u32) -> Result<()> {
    let entries = directory.store()?.audit(count)?;
    if json.json {
        entries.iter().for_each(|row| table::print_json(&documents::decision(row)));
        return Ok(());
    }
    let rows = entries.into_iter().map(|entry| {
        let outcome = outcome(&entry);
        let time = rfc3339::seconds(entry.time_us.div_euclid(1_000_000));
        let ek_id = || entry.ek_id.map(|ek| ek.to_string());
        let subject = match entry.chain {
            Chain::Acts => entry.due.or_else(ek_id).unwrap_or_else(|| "-".into()),
            Chain::Changes | Chain::Others => entry.proven.or_else(ek_id).unwrap_or(entry.client),
        };
        [time, entry.action, subject, outcome]
    });
    table::print(["TIME", "ACTION", "DEVICE, EK OR CLIENT", "OUTCOME"], rows);
    Ok(())
}

fn outcome(entry: &AuditRow) -> String {
    match (entry.chain, entry.code, &entry.detail, &entry.due) {
        (Chain::Acts, _, Some(detail), _) => format!("by {}: {detail}", entry.client),
        (Chain::Acts, _, None, _) => format!("by {}", entry.client),
        (_, Some(code), detail, _) => {
            let name = ProblemCode::from_number(code).name();
            format!("refused: {name}: {}", detail.as_deref().unwrap_or_default())
        }
        (_, None, _, Some(due)) => {
            format!("granted, for this EK's TPM to prove that it is {due}")
        }
        (_, None, _, None) => "granted".into(),
    }
}

/// Verifies what is on record, and says each line of an export.
fn walk(
    directory: &Directory,
    mut verifier: Verifier,
    mut line: impl FnMut(&str) + Send,
) -> Result<Verified> {
    let mut broken = None;
    directory.store()?.walk_audit(&mut |walked| match verifier.walk(&walked) {
        Ok(exported) => {
            exported.iter().for_each(|exported| line(exported));
            ControlFlow::Continue(())
        }
        Err(error) => {
            broken = Some(error);
            ControlFlow::Break(())
        }
    })?;
    let verified = broken.map_or_else(|| verifier.finish(), Err);
    verified.context("the audit is not as it was")
}

fn verify_file(file: &Path, mut verifier: Verifier) -> Result<Verified> {
    for (number, line) in (1..).zip(lines(file)?) {
        let line = line.with_context(|| format!("cannot read {}", file.display()))?;
        verifier
            .line(&line)
            .with_context(|| format!("the audit is not as it was: {}:{number}", file.display()))?;
    }
    verifier.finish().context("the audit is not as it was")
}

fn read_links(file: &Path) -> Result<Vec<Link>> {
    let link = |line: std::io::Result<String>| Ok(line?.parse()?);
    lines(file)?
        .map(link)
        .collect::<Result<_>>()
        .with_context(|| format!("{} is not what `assay audit verify` printed", file.display()))
}

fn lines(file: &Path) -> Result<Box<dyn Iterator<Item = std::io::Result<String>>>> {
    if file == Path::new("-") {
        return Ok(Box::new(stdin().lines()));
    }
    let opened = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    Ok(Box::new(BufReader::new(opened).lines()))
}

fn told(verified: &Verified) -> Result<()> {
    eprintln!("entries that fit: {}", verified.count);
    // What operators did is kept for years, so nothing takes it from one verification to the next.
    if let Some(Link { id, .. }) = verified.gone.iter().find(|it| it.chain == Chain::Acts) {
        bail!(
            "entry {id} of the chain acts was seen before, and is gone: retention takes it after \
             acts_days; else somebody removed it"
        );
    }
    for Link { chain, id, .. } in &verified.gone {
        eprintln!("not compared: entry {id} of the chain {chain}, which is no longer kept");
    }
    verified.ends.iter().for_each(table::print_line);
    Ok(())
}

const EXAMPLES: &str = "\
Examples:
  assay --dir ca audit --count 20
  assay --dir ca audit verify > audit.seen         keep this file elsewhere
  assay --dir ca audit verify --seen audit.seen    exit status 0 if all is as it was
  assay --dir ca audit export > audit.ndjson
  assay audit verify --file audit.ndjson           needs no CA";
