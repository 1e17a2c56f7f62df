//! The files of issuing CAs in a CA's directory: their names, which say from when on each is used,
//! and how they are written.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::dated;
use crate::new_files::NewFiles;

/// The name of an issuing CA's files, without `.pem` and `.key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IssuingName {
    from: Option<OffsetDateTime>,
}

impl IssuingName {
    /// Of the one that `assay init` makes, which is used from the beginning.
    pub const FIRST: Self = Self { from: None };

    /// Of one that is used from this second on.
    pub fn from(time: OffsetDateTime) -> Self {
        let time = time.to_offset(time::UtcOffset::UTC);
        Self { from: Some(time.replace_nanosecond(0).expect("0 is a nanosecond")) }
    }

    /// Of one that is used from then on; `None` is from the beginning.
    pub fn of(used_from: Option<OffsetDateTime>) -> Self {
        used_from.map_or(Self::FIRST, Self::from)
    }

    /// Reads `issuing` or `issuing-YYYYMMDDTHHMMSSZ`.
    pub fn parse(name: &str) -> Option<Self> {
        dated::parse(STEM, name).map(|from| Self { from })
    }

    /// From when on it is used; `None` is from the beginning.
    pub fn used_from(self) -> Option<OffsetDateTime> {
        self.from
    }

    /// The name of the file with its certificate.
    pub fn certificate(self) -> String {
        format!("{self}.pem")
    }

    /// The name of the file with its key.
    pub fn key(self) -> String {
        format!("{self}.key")
    }

    /// The name of the file that says in which tokens its key is, if it is not in a file.
    pub fn uris(self) -> String {
        format!("{self}{URIS}")
    }
}

impl std::fmt::Display for IssuingName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&dated::name(STEM, self.from))
    }
}

/// The issuing CAs whose certificate is in this directory, in the order of their times. A key
/// without a certificate is half made, and counts for nothing.
///
/// # Errors
/// The directory cannot be read.
pub fn certified(directory: &Path) -> io::Result<Vec<IssuingName>> {
    named(directory, ".pem")
}

/// Those whose key is in this directory.
///
/// # Errors
/// The directory cannot be read.
pub fn with_key(directory: &Path) -> io::Result<Vec<IssuingName>> {
    named(directory, ".key")
}

/// Those whose key is in a token.
///
/// # Errors
/// The directory cannot be read.
pub fn in_token(directory: &Path) -> io::Result<Vec<IssuingName>> {
    named(directory, URIS)
}

/// The names of the keys that wait for a certificate, without `.key` and `.pkcs11`. A key that has
/// got a name with a time waits under that name alone, although a command that was cut short left
/// the other name, too.
///
/// # Errors
/// The directory cannot be read.
pub fn waiting(directory: &Path) -> io::Result<Vec<String>> {
    let certified = certified(directory)?;
    let mut waiting: Vec<_> = with_key(directory)?
        .into_iter()
        .chain(in_token(directory)?)
        .filter(|name| !certified.contains(name))
        .map(|name| name.to_string())
        .collect();
    let is_there = KEYS.iter().any(|kind| directory.join(format!("{PENDING}{kind}")).exists());
    if is_there && used(directory)?.is_none() {
        waiting.push(PENDING.to_owned());
    }
    Ok(waiting)
}

/// The file of the key of [`PENDING`], if that is the key of an issuing CA with a time, too.
fn used(directory: &Path) -> io::Result<Option<String>> {
    let read = |name: &str| fs::read(directory.join(name)).map(Zeroizing::new);
    for kind in KEYS {
        let pending = format!("{PENDING}{kind}");
        if !directory.join(&pending).exists() {
            continue;
        }
        let key = read(&pending)?;
        for name in named(directory, kind)? {
            if read(&format!("{name}{kind}"))? == key {
                return Ok(Some(pending));
            }
        }
    }
    Ok(None)
}

fn named(directory: &Path, kind: &str) -> io::Result<Vec<IssuingName>> {
    let found = dated::files(directory, STEM, kind)?;
    Ok(found.into_iter().map(|from| IssuingName { from }).collect())
}

/// The CA's directory, held open: it is the same directory even if the owner of a directory above
/// puts another in its place. Whatever is written is there as a whole, and on disk, or not at all.
pub(crate) struct Files {
    held: File,
    path: PathBuf,
}

impl Files {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let cannot_open = || format!("cannot open {}", directory.display());
        let held = File::open(directory).with_context(cannot_open)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        Ok(Self { held, path })
    }

    pub(crate) fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>> {
        match fs::read_to_string(self.path.join(name)) {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {name}")),
        }
    }

    /// Writes a file that does not exist yet.
    pub(crate) fn put(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.write_new(name, content, mode)
            .and_then(|new| self.rename(&new, name))
            .with_context(|| format!("cannot write {name}"))
    }

    /// Writes a file in the place of the one that has this name, if there is one.
    pub(crate) fn replace(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        let replace = |new: String| -> Result<()> {
            fs::rename(self.path.join(new), self.path.join(name))?;
            Ok(self.held.sync_all()?)
        };
        self.write_new(name, content, mode)
            .and_then(replace)
            .with_context(|| format!("cannot write {name}"))
    }

    /// Returns the name that the file has until it is whole.
    fn write_new(&self, name: &str, content: &[u8], mode: u32) -> Result<String> {
        // No file of a CA has a name that begins with a dot.
        let new = format!(".{name}.new");
        self.remove(&new)?;
        NewFiles::of(&self.path)?.write(&new, content, mode)?;
        Ok(new)
    }

    /// Gives a file another name, which no file has.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        // Unlike a renaming, this overwrites nothing.
        fs::hard_link(self.path.join(from), self.path.join(to))
            .with_context(|| format!("cannot make {to}"))?;
        self.remove(from)
    }

    /// Removes the key that waits, and the request for it, if the key has got another name: an
    /// earlier command was cut short before it had done so. Returns whether it had.
    pub(crate) fn drop_used(&self) -> Result<bool> {
        let Some(key) = used(&self.path)? else { return Ok(false) };
        self.remove(&format!("{PENDING}.csr"))?;
        self.remove(&key)?;
        Ok(true)
    }

    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {name}"))
            }
            _ => Ok(self.held.sync_all()?),
        }
    }
}

/// The name of a key that waits for a certificate, and of the request for it. From when on the
/// issuing CA is used is said when its certificate comes.
pub const PENDING: &str = "issuing-next";

const STEM: &str = "issuing";
/// What ends the name of a file with URIs of keys in tokens.
pub(crate) const URIS: &str = ".pkcs11";
/// The kinds of file that an issuing key is in.
pub(crate) const KEYS: [&str; 2] = [".key", URIS];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_read_back_as_what_was_written_and_no_time_has_two() {
        assert_eq!(IssuingName::parse("issuing"), Some(IssuingName::FIRST));
        let time = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let name = IssuingName::from(time + time::Duration::MILLISECOND);
        assert_eq!(name.to_string(), "issuing-20270115T080000Z");
        assert_eq!(name.used_from(), Some(time));
        assert_eq!(IssuingName::parse("issuing-20270115T080000Z"), Some(name));
        for other in [
            "",
            "issuing-",
            "issuing-next",
            "issuing-20270115",
            "issuing-20270115T080000",
            "issuing-20270115T080000z",
            "issuing-2027-01-15T08:00:00Z",
            "issuing-20271315T080000Z",
            "issuing-20270115T080060Z",
            "issuing-+20270115T080000Z",
            "issuing20270115T080000Z",
            "Issuing",
        ] {
            assert_eq!(IssuingName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_key_without_a_certificate_counts_for_nothing_and_other_files_neither() {
        let directory = tempfile::tempdir().unwrap();
        for file in [
            "issuing.pem",
            "issuing.key",
            "issuing-20280101T000000Z.pem",
            "issuing-20270101T000000Z.pem",
            "issuing-20290101T000000Z.key",
            "issuing-old.pem",
            "service.pem",
        ] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let names = |list: io::Result<Vec<IssuingName>>| {
            list.unwrap().iter().map(IssuingName::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            names(certified(directory.path())),
            ["issuing", "issuing-20270101T000000Z", "issuing-20280101T000000Z"]
        );
        assert_eq!(names(with_key(directory.path())), ["issuing", "issuing-20290101T000000Z"]);
        assert_eq!(waiting(directory.path()).unwrap(), ["issuing-20290101T000000Z"]);
        for file in ["issuing-next.key", "issuing-next.pkcs11"] {
            fs::write(directory.path().join(file), "another").unwrap();
            let all = ["issuing-20290101T000000Z", "issuing-next"];
            assert_eq!(waiting(directory.path()).unwrap(), all, "{file}");
            fs::remove_file(directory.path().join(file)).unwrap();
        }
    }
}
