//! Makes a CA from a backup, in a new epoch; and lets it serve again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{MasterSecret, TicketKey};
use assay_pkcs11::Uri;
use assay_store::sqlite::Sqlite;
use assay_store::{
    Database, Deed, ListedAre, Progress, PublishedList, Raised, SharedKeys, Store, TakenOver, copy,
};
use pem::Pem;
use time::OffsetDateTime;

use super::keys::Place;
use super::signers;
use crate::age::Identity;
use crate::backup_file::{self, Manifest};
use crate::directory::{Directory, empty_directory};
use crate::operator;
use crate::random::random;
use crate::shared_secrets::{KeptSecret, SharedSecret};

/// A CA that was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// The moment of which the record is.
    pub backed_up_at: OffsetDateTime,
    /// When it was restored.
    pub restored_at: OffsetDateTime,
    /// Where the record is.
    pub place: String,
    /// What moved forward.
    pub raised: Raised,
    /// How many devices are on record.
    pub devices: usize,
    /// The identities with a certificate that is good on record.
    pub identities: Vec<String>,
    /// The certificates of vendors that are trusted on record.
    pub anchors: Vec<String>,
    /// The tokens that have keys of the CA.
    pub tokens: BTreeSet<String>,
    /// The ticket key came from a token. The new one does not.
    pub ticket_key_was_in_token: bool,
}

/// The tokens without which this CA does not sign or knows not all of its secrets.
fn tokens_of(directory: &Directory, now: OffsetDateTime) -> Result<BTreeSet<String>> {
    let mut uris = Vec::new();
    for signer in signers::list(directory, now)? {
        if let Place::Tokens(_, its) = signer.place {
            uris.extend(its);
        }
    }
    for secret in SharedSecret::ALL {
        let kept = directory.beside(secret, directory.next_secret(secret)?)?;
        for kept in kept.iter() {
            if let KeptSecret::Token(its, _) = kept {
                uris.extend_from_slice(its);
            }
        }
    }
    let shown = |uri: &Uri| format!("{} by {}", uri.token(), uri.module().display());
    Ok(uris.iter().map(shown).collect())
}

/// Makes the CA anew in a directory that is empty, or holds only an `assay.toml`, which is then
/// used; and in an empty PostgreSQL if the settings name one. The whole backup is checked before
/// anything is written. The CA is held until [`resume`].
///
/// # Errors
/// The backup is damaged or encrypted to somebody else, the directory or the PostgreSQL is not
/// empty, or the clock of this machine is behind the backup.
pub fn restore(
    file: &Path,
    identities: &[Identity],
    directory: &Path,
    shared_keys: SharedKeys,
    progress: impl FnMut(Progress),
) -> Result<Restored> {
    let manifest = backup_file::read(file, identities, &mut |_, _| Ok(()))?;
    for needed in NEEDED {
        let is_there = manifest.files.iter().any(|member| member.name == needed);
        ensure!(is_there, "{} has no {needed}, so it is no backup of a CA", file.display());
    }
    let (backed_up_at, now) = (manifest.backed_up_at()?, OffsetDateTime::now_utc());
    ensure!(
        now >= backed_up_at,
        "the backup is of {backed_up_at}, and the clock of this machine says {now}: set the clock"
    );
    empty_directory(directory, |new, kept| {
        let staging = new.staging().context("cannot make a directory to unpack to")?;
        let staged = |name: &str| staging.path().join(name);
        let unpacked = backup_file::read(file, identities, &mut |member, content| {
            let to = staged(&member.name);
            let mut to = File::create(&to).with_context(|| format!("{}", to.display()))?;
            io::copy(content, &mut to)?;
            Ok(())
        })?;
        ensure!(unpacked == manifest, "{} changed while it was read", file.display());
        if kept.is_some() {
            fs::copy(directory.join(Directory::SETTINGS), staged(Directory::SETTINGS))?;
        }
        // Claims and tickets of before end with the one, all shared keys with the other.
        let mut replaced = vec![SharedSecret::Ticket];
        let before = KeptSecret::read(&staged(Directory::TICKET_KEY));
        let ticket_key_was_in_token = matches!(before, Ok(KeptSecret::Token(..)));
        fs::write(staged(Directory::TICKET_KEY), TicketKey::generate(&mut random()).secret())?;
        if shared_keys == SharedKeys::Retire {
            replaced.push(SharedSecret::Master);
            let master = MasterSecret::generate(&mut random());
            fs::write(staged(Directory::MASTER_SECRET), master.secret())?;
        }
        let mut names: Vec<_> = manifest.files.iter().map(|member| member.name.clone()).collect();
        // The ones beside them would be accepted, too.
        for secret in replaced {
            for name in names.extract_if(.., |name| secret.is_of_a_later(name)) {
                fs::remove_file(staged(&name))?;
            }
        }
        let record = staged(Directory::RECORD);
        let mut store = Sqlite::open(&record).context("the record in the backup")?;
        store.act_as(operator::actor(now));
        let raised = store.raise_epoch(backed_up_at, shared_keys, now)?;
        let detail = format!("the backup of {backed_up_at}, as epoch {}", raised.epoch);
        store.note(Deed::of_ca("restore", detail))?;
        let mut restored = Restored {
            backed_up_at,
            restored_at: now,
            place: directory.join(Directory::RECORD).display().to_string(),
            raised,
            devices: store.devices()?.len(),
            identities: good_identities(&store, now)?,
            anchors: store.anchors()?.into_iter().map(|row| row.subject).collect(),
            manifest: unpacked,
            tokens: BTreeSet::new(),
            ticket_key_was_in_token,
        };
        // So that nothing is left in a log beside the file.
        drop(store);
        let held = Directory::open(&staging.path())?;
        held.ca().context("the keys in the backup")?;
        restored.tokens = tokens_of(&held, now)?;
        // Whoever can write the file can put another one in its place: its settings must not say
        // who gets the record, nor which password file is read for that.
        ensure!(
            kept.is_some() || !held.is_in_postgres(),
            "the settings in the backup name a PostgreSQL; put an assay.toml that names the one to \
             restore to, and the files that it names, into {} and try again",
            directory.display()
        );
        let postgres = held.postgres()?;
        if let Some(postgres) = &postgres {
            copy(&Database::Sqlite(record.clone()), postgres, progress)
                .with_context(|| format!("cannot copy the record to {}", postgres.shown()))?;
        }
        for name in names.iter().filter(|name| *name != Directory::RECORD) {
            if name != Directory::SETTINGS || kept.is_none() {
                new.write_copy(name, &staged(name))?;
            }
        }
        match postgres {
            Some(postgres) => {
                new.finish(None)?;
                Ok(Restored { place: postgres.shown(), ..restored })
            }
            // Last: without it, no command takes the directory for a CA.
            None => new.finish(Some(&record)).map(|()| restored),
        }
    })
}

fn good_identities(store: &Sqlite, now: OffsetDateTime) -> Result<Vec<String>> {
    let is_good = |row: &assay_store::IdentityRow| {
        let mut certificates = row.certificates.iter();
        certificates.any(|it| it.revoked_at.is_none() && it.not_after > now.unix_timestamp())
    };
    Ok(store.identities()?.into_iter().filter(is_good).map(|row| row.name).collect())
}

/// A list that was taken over.
#[derive(Clone, Debug)]
pub struct ListTaken {
    /// Where it was read.
    pub file: PathBuf,
    /// Whose certificates it is about.
    pub about: ListedAre,
    /// Its number.
    pub number: u32,
    /// When it was signed.
    pub issued_at: OffsetDateTime,
    /// What it changed.
    pub taken: TakenOver,
}

/// What became of a CA that waited.
#[derive(Clone, Debug)]
pub struct Resumed {
    /// The lists, in their order.
    pub lists: Vec<ListTaken>,
    /// Whether the CA may serve. If not, some devices were disabled whose EKs are not known.
    pub serves: bool,
}

/// Takes over what revocation lists say that the CA published before it was restored, and lets it
/// serve. If a list names devices on hold that the record does not know, the CA stays held, so that
/// an operator can disable them first.
///
/// # Errors
/// The CA is not held; a list is not this CA's, or is from before the backup.
pub fn resume(directory: &Directory, lists: &[PathBuf], now: OffsetDateTime) -> Result<Resumed> {
    let mut store = directory.store()?;
    let epoch = store.epoch()?;
    let Some(restored) = epoch.restored.as_ref().filter(|_| epoch.is_held()) else {
        bail!("this CA is not held: it was never restored, or it was resumed")
    };
    let mut read = Vec::new();
    for file in lists {
        let lists = read_lists(directory, file, now)
            .with_context(|| format!("{} cannot be used", file.display()))?;
        for (list, issued_at) in lists {
            ensure!(
                issued_at >= restored.backed_up_at,
                "{} is of {issued_at}, before the backup of {}: it says nothing new",
                file.display(),
                restored.backed_up_at
            );
            read.push((file.clone(), list, issued_at));
        }
    }
    let until = [
        (ListedAre::Devices, now + directory.config().profile.validity()),
        (ListedAre::Identities, now + IDENTITIES_LAST),
    ];
    let mut taken_over = Vec::new();
    for (file, list, issued_at) in read {
        let until = until.iter().find(|(about, _)| *about == list.about).expect("both are there").1;
        let taken = store.take_over(&list, until)?;
        let (about, number) = (list.about, list.number);
        taken_over.push(ListTaken { file, about, number, issued_at, taken });
    }
    let is_known = taken_over.iter().all(|list| list.taken.unknown_disabled == 0);
    if is_known {
        store.resume(now)?;
    }
    Ok(Resumed { lists: taken_over, serves: is_known })
}

/// The lists in a file: one in DER, or any number in PEM.
fn read_lists(
    directory: &Directory,
    file: &Path,
    now: OffsetDateTime,
) -> Result<Vec<(PublishedList, OffsetDateTime)>> {
    let content = fs::read(file)?;
    let ders = match pem::parse_many(&content) {
        Ok(pems) if !pems.is_empty() => pems.into_iter().map(Pem::into_contents).collect(),
        _ => vec![content],
    };
    let (issuing, services) = (directory.issuers()?, directory.service_issuers(now)?);
    let issuing = issuing.all().iter().map(|it| (ListedAre::Devices, &*it.issuer));
    let issuers: Vec<_> =
        issuing.chain(services.iter().map(|it| (ListedAre::Identities, it))).collect();
    let list = |der: Vec<u8>| {
        let mut lists = issuers.iter().filter_map(|(about, issuer)| {
            let read = issuer.read_list(&der)?;
            let list = PublishedList { about: *about, number: read.number, revoked: read.revoked };
            Some((list, read.issued_at))
        });
        lists.next().context(
            "no issuing CA and no service CA of this directory signed it; if one was made since \
             the backup, put its files back first",
        )
    };
    ders.into_iter().map(list).collect()
}

/// Refuses a CA that was restored and waits for an operator.
///
/// # Errors
/// It is held, or the store cannot be read.
pub fn refuse_if_held(store: &mut dyn Store) -> Result<()> {
    let epoch = store.epoch()?;
    let Some(restored) = epoch.restored.as_ref().filter(|_| epoch.is_held()) else { return Ok(()) };
    bail!(
        "this CA was restored from a backup of {} and does not know what was revoked since: \
         revoke it again, then run `assay resume` (docs/operations.md, \"Backup and restore\")",
        crate::rfc3339::seconds(restored.backed_up_at.unix_timestamp())
    )
}

const NEEDED: [&str; 5] = [
    "root.pem",
    Directory::TICKET_KEY,
    Directory::MASTER_SECRET,
    Directory::SETTINGS,
    Directory::RECORD,
];
/// As long as certificates of identities are valid.
const IDENTITIES_LAST: time::Duration = time::Duration::days(3 * 366);
