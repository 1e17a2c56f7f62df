//! Service CAs, which certify brokers, workers, operators and backends: the next one, and the end of
//! the old one.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use assay_store::IdentityRow;
use time::OffsetDateTime;

use crate::dated;
use crate::directory::Directory;
use crate::issuing_files::Files;
use crate::new_files::{PUBLIC, SECRET};
use crate::random::random;

/// Makes the next service CA under the newest root: with its key in `root_key`, or else in the CA's
/// directory. It certifies from now on. What the old one certified stays good. Returns the name of
/// the files.
///
/// # Errors
/// There are two already, the root's key cannot be read, or the files cannot be written.
pub fn make(directory: &Directory, root_key: Option<&Path>, now: OffsetDateTime) -> Result<String> {
    let known = directory.services()?;
    ensure!(
        known.len() == 1,
        "there are {} service CAs; renew the identities of the older one (assay identity list), \
         and run `assay service retire`",
        known.len()
    );
    let root = directory.root_authority(root_key)?;
    let made = root.next_service(now, &mut random())?;
    let pair = made.to_pem();
    let name = dated::name(STEM, Some(now));
    let files = Files::open(directory.path())?;
    // The certificate comes last: without it, the key counts for nothing.
    files.put(&format!("{name}.key"), pair.key.as_bytes(), SECRET)?;
    files.put(&format!("{name}.pem"), pair.certificate.as_bytes(), PUBLIC)?;
    Ok(name)
}

/// Drops the old service CA: the new one takes its file names. It may be cut short at any point,
/// and run again. Returns the identities that `force` overrode.
///
/// # Errors
/// There is one only, or an identity's newest certificate may be of the old one, and `force` is not
/// given.
pub fn retire(directory: &Directory, force: bool, now: OffsetDateTime) -> Result<Vec<String>> {
    let found = directory.dated(STEM, ".pem")?;
    let Some(from) = found.last().copied().flatten().filter(|_| found.len() > 1) else {
        bail!("there is one service CA only; `assay service new` makes the next one")
    };
    let is_old = |row: &IdentityRow| {
        row.newest().is_some_and(|newest| {
            // In the same second, it may be of either.
            newest.issued_at <= from.unix_timestamp() && newest.not_after > now.unix_timestamp()
        })
    };
    let rows = directory.store()?.identities()?;
    let old: Vec<_> = rows.into_iter().filter(is_old).map(|row| row.name).collect();
    ensure!(
        force || old.is_empty(),
        "the old service CA certified {}; renew them first (assay identity renew), or revoke them. \
         With --force nobody believes their certificates any more",
        old.join(", ")
    );
    let (path, name) = (directory.path(), dated::name(STEM, Some(from)));
    let rename = || -> Result<()> {
        for kind in ["key", "pem"] {
            let new = path.join(format!("{name}.{kind}"));
            // The key may be gone: an earlier attempt was cut short, or it is elsewhere.
            if kind == "pem" || new.exists() {
                fs::rename(new, path.join(format!("{STEM}.{kind}")))?;
            }
        }
        Ok(File::open(path)?.sync_all()?)
    };
    rename().with_context(|| format!("cannot put {name}.pem into its place"))?;
    Ok(old)
}

/// What the files of service CAs are called.
const STEM: &str = "service";
