//! `assay root init`, `root sign` and `root split`: what is done where the root's key is.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_pkcs11::{KeyKind, Uri};
use assay_server::age::Passphrase;
use assay_server::operations::ceremony::{self, As, Keep, Locked, Requests, SharesTo};
use assay_server::{Dice, Share, Split, TokenPlace, Unlock, Witness, Written};
use clap::Args;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::table;

#[derive(Args)]
#[command(after_help = "\
It needs no CA and no network: docs/ceremony.md is the whole procedure. The key
is in a file that a passphrase opens, unless shares or a token are named.

Examples:
  assay root init root --name Plant --by 'Ada Lovelace' --by 'Grace Hopper'
  assay root init root --threshold 3 --shares 5 --shares-to /dev/shm/shares
  assay root init root --key 'pkcs11:token=root?module-path=/usr/lib/softhsm/libsofthsm2.so'
  assay root init next --after root               # certified by the root before")]
pub(crate) struct Init {
    /// The directory to make; it must be new or empty
    directory: PathBuf,
    /// What the root is called, in its certificate
    #[arg(long, default_value = "Assay", conflicts_with = "after")]
    name: String,
    /// Make the root after the one in this directory, which certifies it in cross.pem
    #[arg(long, value_name = "DIR")]
    after: Option<PathBuf>,
    /// The file with a share of the key of the root before; give as many as are needed
    #[arg(long, value_name = "FILE", requires = "after")]
    after_share: Vec<PathBuf>,
    /// The file with the passphrase of the key of the root before
    #[arg(long, value_name = "FILE", requires = "after")]
    after_passphrase_file: Option<PathBuf>,
    #[command(flatten)]
    shares: Shares,
    /// The key in a token (RFC 7512: pkcs11:token=LABEL;object=LABEL?module-path=/path/to/lib.so).
    /// Without object and id, one is made there
    #[arg(long, value_name = "URI", conflicts_with_all = ["shares", "dice", "passphrase_file"])]
    key: Option<Uri>,
    /// The kind of key that is made in the token: p256, p384, rsa2048, rsa3072 or rsa4096
    #[arg(long, value_name = "KIND", default_value = "p256", requires = "key")]
    key_type: KeyKind,
    /// Mix rolls of a die into the key, besides the random numbers of the operating system: a file
    /// of 50 digits from 1 to 6 at least
    #[arg(long, value_name = "FILE")]
    dice: Option<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseFile,
    #[command(flatten)]
    present: Present,
}

#[derive(Args)]
#[command(after_help = "\
It certifies requests of `assay issuing csr` and of `assay init --root`, with
the root in --dir: one that `assay root init` made, or that of a CA.

Examples:
  assay --dir root root sign issuing.csr --out issuing.pem
  assay --dir root root sign init.csr --share 1.txt --share 4.txt --share 5.txt
  assay --dir ca root sign issuing.csr --root-key /media/safe/root.key")]
pub(crate) struct Sign {
    /// The request, or the two of a new CA, in PEM
    request: PathBuf,
    /// Write the certificates to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The root's key, if it is not in the directory
    #[arg(long, value_name = "FILE")]
    root_key: Option<PathBuf>,
    #[command(flatten)]
    unlock: UnlockWith,
    /// Sign without asking
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    present: Present,
}

#[derive(Args)]
#[command(after_help = "\
The key and the root stay the same. What opened the key before does not open it
afterwards; destroy copies of before.

Example:
  assay --dir root root split --threshold 3 --shares 5 --shares-to /dev/shm/shares")]
pub(crate) struct SplitArgs {
    #[command(flatten)]
    shares: Shares,
    #[command(flatten)]
    unlock: UnlockWith,
    #[command(flatten)]
    present: Present,
}

/// How a key is split.
#[derive(Args)]
struct Shares {
    /// Split what opens the key into so many shares, a file each
    #[arg(long, value_name = "N", requires = "threshold", requires = "shares_to")]
    shares: Option<u8>,
    /// How many of them open it
    #[arg(long, value_name = "N", requires = "shares")]
    threshold: Option<u8>,
    /// The new directory for the files, best in memory: /dev/shm/shares
    #[arg(long, value_name = "DIR", requires = "shares")]
    shares_to: Option<PathBuf>,
}

impl Shares {
    fn wanted(self) -> Result<Option<SharesTo>> {
        let (Some(shares), Some(threshold), Some(directory)) =
            (self.shares, self.threshold, self.shares_to)
        else {
            return Ok(None);
        };
        Ok(Some(SharesTo { split: Split::new(threshold, shares)?, directory }))
    }
}

/// What opens a key.
#[derive(Args)]
struct UnlockWith {
    /// The file with a share of the key; give as many as are needed
    #[arg(long = "share", value_name = "FILE")]
    share: Vec<PathBuf>,
    #[command(flatten)]
    passphrase: PassphraseFile,
}

impl UnlockWith {
    fn with<T>(self, work: impl FnOnce(&mut Unlock<'_>) -> Result<T>) -> Result<T> {
        let mut shares = Vec::new();
        for file in &self.share {
            let text = fs::read_to_string(file).map(Zeroizing::new);
            let share = text.map_err(Into::into).and_then(|text| Share::read(&text));
            shares.push(share.with_context(|| format!("the share in {}", file.display()))?);
        }
        let passphrase = &mut || self.passphrase.read(false);
        work(&mut Unlock { shares, passphrase })
    }
}

#[derive(Args)]
struct PassphraseFile {
    /// The file with the passphrase of the key; without it, somebody at the terminal is asked
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl PassphraseFile {
    /// A new one is asked for twice.
    fn read(&self, is_new: bool) -> Result<Passphrase> {
        if let Some(file) = &self.passphrase_file {
            let text = fs::read_to_string(file)
                .map(Zeroizing::new)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let line = text.strip_suffix('\n').unwrap_or(&text);
            return Passphrase::new(Zeroizing::new(line.to_owned()));
        }
        ensure!(
            io::stdin().is_terminal(),
            "nobody can be asked for the passphrase of the root's key; say --passphrase-file FILE"
        );
        let ask = |prompt| rpassword::prompt_password(prompt).map(Zeroizing::new);
        let first = ask("Passphrase of the root's key: ")?;
        if is_new && *ask("The same again: ")? != *first {
            bail!("the two passphrases are not the same");
        }
        Passphrase::new(first)
    }
}

#[derive(Args)]
struct Present {
    /// Who is present, for the transcript; repeat it for each person. Without it, somebody at the
    /// terminal is asked
    #[arg(long = "by", value_name = "NAME")]
    by: Vec<Witness>,
}

impl Present {
    fn names(self) -> Result<Vec<Witness>> {
        if !self.by.is_empty() || !io::stdin().is_terminal() {
            return Ok(self.by);
        }
        let mut present = Vec::new();
        loop {
            let name = ask(match present.len() {
                0 => "Who is present? ",
                _ => "Who else? (nobody: an empty line) ",
            })?;
            match name.as_str() {
                "" if !present.is_empty() => return Ok(present),
                name => match name.parse() {
                    Ok(name) => present.push(name),
                    Err(error) => eprintln!("{error}"),
                },
            }
        }
    }
}

/// Asks somebody at the terminal for a line.
fn ask(prompt: &str) -> Result<String> {
    eprint!("{prompt}");
    io::stderr().flush()?;
    let mut line = String::new();
    ensure!(io::stdin().read_line(&mut line)? > 0, "nobody answers");
    Ok(line.trim().to_owned())
}

impl Init {
    pub(crate) fn run(self) -> Result<()> {
        let now = OffsetDateTime::now_utc();
        let present = self.present.names()?;
        let dice = self.dice.as_deref().map(read_dice).transpose()?;
        let shares = self.shares.wanted()?;
        let shares_in = shares.as_ref().map(|it| it.directory.clone());
        let keep = match (self.key, shares) {
            (Some(uri), _) => Keep::Token(TokenPlace { uri, kind: self.key_type }),
            (None, Some(shares)) => Keep::Shares(shares),
            (None, None) => Keep::Passphrase(self.passphrase.read(true)?),
        };
        let make = |made_as: As<'_, '_>| {
            ceremony::init(&self.directory, made_as, keep, dice.as_ref(), &present, now)
        };
        let is_first = self.after.is_none();
        let written = match self.after {
            None => make(As::First(&self.name))?,
            Some(before) => {
                let before = Locked::find(&before, None)?;
                let passphrase = PassphraseFile { passphrase_file: self.after_passphrase_file };
                let unlock = UnlockWith { share: self.after_share, passphrase };
                unlock.with(|unlock| make(As::After(&before, unlock)))?
            }
        };
        let directory = self.directory.display();
        eprintln!("made a root in {directory}: root.pem is its certificate");
        tell(&self.directory, &written);
        if let Some(shares) = shares_in {
            tell_shares(&shares);
        }
        if is_first {
            eprintln!("next, where the CA is to be: assay init ca --root root.pem");
        } else {
            eprintln!("next, where the CA is: assay root install root.pem cross.pem");
        }
        Ok(())
    }
}

fn read_dice(file: &Path) -> Result<Dice> {
    let text = fs::read_to_string(file).map(Zeroizing::new);
    let dice = text.map_err(Into::into).and_then(|text| Dice::read(&text));
    dice.with_context(|| format!("cannot use {}", file.display()))
}

impl Sign {
    pub(crate) fn run(self, directory: &Path) -> Result<()> {
        let requests = Requests::read(&self.request)?;
        let locked = Locked::find(directory, self.root_key.as_deref())?;
        eprintln!("root: {}", table::printable(&locked.shown()?));
        for request in requests.shown() {
            eprintln!("asks for {request}");
        }
        if !self.yes {
            ensure!(
                io::stdin().is_terminal(),
                "nobody can be asked whether this is right; say --yes if it is"
            );
            let answer =
                ask("Compare this with what the requests' owner says. Sign it? (yes/no) ")?;
            ensure!(answer == "yes", "nothing was signed");
        }
        let present = self.present.names()?;
        let now = OffsetDateTime::now_utc();
        let (certificates, written) =
            self.unlock.with(|unlock| locked.sign(&requests, unlock, &present, now))?;
        match &self.out {
            Some(file) => fs::write(file, &certificates)
                .with_context(|| format!("cannot write {}", file.display()))?,
            None => table::print_line(certificates.trim_end()),
        }
        eprintln!("signed; bring the certificates to the CA, which checks them");
        tell(directory, &written);
        Ok(())
    }
}

impl SplitArgs {
    pub(crate) fn run(self, directory: &Path) -> Result<()> {
        let shares = self.shares.wanted()?.context(
            "say how: --threshold N --shares N --shares-to DIR, for example 3, 5 and /dev/shm/shares",
        )?;
        let locked = Locked::find(directory, None)?;
        eprintln!("root: {}", table::printable(&locked.shown()?));
        let present = self.present.names()?;
        let now = OffsetDateTime::now_utc();
        let written = self.unlock.with(|unlock| locked.split(&shares, unlock, &present, now))?;
        eprintln!("from now on shares open the key, and nothing else");
        tell(directory, &written);
        tell_shares(&shares.directory);
        Ok(())
    }
}

fn tell(directory: &Path, written: &Written) {
    let Written { file, sha256 } = written;
    eprintln!("transcript, for two people to sign: {}", directory.join(file).display());
    eprintln!("  SHA-256 {sha256}");
}

fn tell_shares(directory: &Path) {
    eprintln!(
        "the shares are in {}: give each to another person, print it if you like, and destroy the \
         files",
        directory.display()
    );
}
