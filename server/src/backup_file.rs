//! The one file of a backup: a tar archive whose first member, `manifest.json`, says how long each
//! of the others is and what its SHA-256 digest is; encrypted, if that was asked for.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::age::{self, Decrypted, Encrypted, Identity, Recipient};

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The version of Assay that made it.
    pub assay: String,
    backed_up_at: i64,
    /// In the order of the archive.
    pub files: Vec<Member>,
}

/// A file in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name in the CA's directory.
    pub name: String,
    /// In bytes.
    pub length: u64,
    sha256: String,
}

impl Manifest {
    /// The moment of which the record is.
    pub fn backed_up_at(&self) -> Result<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp(self.backed_up_at).context("backed_up_at is no time")
    }

    fn parse(text: &[u8]) -> Result<Self> {
        let manifest: Self = serde_json::from_slice(text).context("its manifest cannot be read")?;
        let Self { format, assay, .. } = &manifest;
        ensure!(
            *format == FORMAT,
            "it has format {format}, by assay {assay:?}; this version reads format {FORMAT}"
        );
        manifest.backed_up_at()?;
        let names: BTreeSet<_> = manifest.files.iter().map(|member| &member.name).collect();
        ensure!(names.len() == manifest.files.len(), "its manifest names a file twice");
        for Member { name, .. } in &manifest.files {
            ensure!(is_plain(name), "its manifest names {name:?}, which is no plain file name");
        }
        Ok(manifest)
    }
}

/// Whether this is the name of a file in the directory itself.
pub(crate) fn is_plain(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    !name.is_empty() && !name.starts_with('.') && name.len() <= 100 && name.chars().all(is_good)
}

/// Writes a backup of these files, each with the name that it gets. `backed_up_at` is the moment of
/// the record.
///
/// # Errors
/// A file cannot be read or changes meanwhile, or the backup cannot be written.
pub fn write(
    to: File,
    recipients: &[Recipient],
    files: &[(String, PathBuf)],
    backed_up_at: OffsetDateTime,
) -> Result<File> {
    let members = files.iter().map(|(name, path)| {
        let read = || -> io::Result<Member> {
            let mut digest = Hashed::new(File::open(path)?);
            let length = io::copy(&mut digest, &mut io::sink())?;
            Ok(Member { name: name.clone(), length, sha256: digest.hex() })
        };
        read().with_context(|| format!("cannot read {}", path.display()))
    });
    let manifest = Manifest {
        format: FORMAT,
        assay: env!("CARGO_PKG_VERSION").into(),
        backed_up_at: backed_up_at.unix_timestamp(),
        files: members.collect::<Result<_>>()?,
    };
    let to = BufWriter::new(to);
    let to = if recipients.is_empty() {
        write_archive(to, &manifest, files)?
    } else {
        write_archive(Encrypted::new(to, recipients)?, &manifest, files)?.finish()?
    };
    Ok(to.into_inner()?)
}

fn write_archive<W: Write>(to: W, manifest: &Manifest, files: &[(String, PathBuf)]) -> Result<W> {
    let mut archive = tar::Builder::new(to);
    let mut append = |name: &str, length: u64, content: &mut dyn Read| -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_mtime(manifest.backed_up_at.unsigned_abs());
        header.set_size(length);
        archive.append_data(&mut header, name, content)
    };
    let text = serde_json::to_vec_pretty(manifest)?;
    append(MANIFEST, text.len() as u64, &mut &text[..])?;
    for (Member { name, length, sha256 }, (_, path)) in manifest.files.iter().zip(files) {
        // It must be as long as the manifest says, or the archive would be damaged.
        let mut content = Hashed::new(File::open(path)?.take(*length));
        append(name, *length, &mut content)?;
        let is_same = content.inner.limit() == 0 && content.hex() == *sha256;
        ensure!(is_same, "{name} changed while it was read; try again");
    }
    Ok(archive.into_inner()?)
}

/// Reads a backup, and gives each file to `each`. What is read is only known to be whole once this
/// returns `Ok`: read it once without doing anything before you do something.
///
/// # Errors
/// It is no backup, it is cut off or was altered, it is for other identities, or `each` failed.
pub fn read(
    path: &Path,
    identities: &[Identity],
    each: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<()>,
) -> Result<Manifest> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut file = BufReader::with_capacity(128 * 1024, file);
    let manifest = if file.fill_buf()?.starts_with(age::VERSION.as_bytes()) {
        ensure!(
            !identities.is_empty(),
            "{} is encrypted: give the file with the identity (--identity)",
            path.display()
        );
        Decrypted::new(file, identities).and_then(|content| read_archive(content, each))
    } else {
        read_archive(file, each)
    };
    manifest.with_context(|| format!("{} cannot be restored", path.display()))
}

fn read_archive(
    from: impl Read,
    each: &mut dyn FnMut(&Member, &mut dyn Read) -> Result<()>,
) -> Result<Manifest> {
    let mut archive = tar::Archive::new(from);
    let damaged = || "it is no backup, or it is damaged";
    // Raw, because headers that only describe others are read into memory whole, and we write none.
    let mut entries = archive.entries()?.raw(true);
    let mut next = |name: &str| -> Result<_> {
        let entry = entries.next().with_context(|| format!("it ends before {name}"))?;
        let entry = entry.with_context(damaged)?;
        let is_it =
            entry.header().entry_type().is_file() && *entry.path_bytes() == *name.as_bytes();
        ensure!(is_it, "{name} is not where it should be");
        Ok(entry)
    };
    let mut text = Vec::new();
    next(MANIFEST)?.take(MAX_MANIFEST).read_to_end(&mut text).with_context(damaged)?;
    let manifest = Manifest::parse(&text)?;
    for member in &manifest.files {
        let name = &member.name;
        let entry = next(name)?;
        ensure!(
            entry.size() == member.length,
            "{name} is shorter or longer than the manifest says"
        );
        let mut content = Hashed::new(entry);
        each(member, &mut content)?;
        io::copy(&mut content, &mut io::sink()).with_context(damaged)?;
        ensure!(content.length == member.length, "it is cut off within {name}");
        ensure!(content.hex() == member.sha256, "{name} was altered: its digest is another one");
    }
    match entries.next() {
        None => {}
        Some(_) => bail!("it has more files than its manifest says"),
    }
    // An encrypted one shows only at its end that it is whole.
    io::copy(&mut archive.into_inner(), &mut io::sink()).with_context(damaged)?;
    Ok(manifest)
}

/// Computes a digest of what is read.
struct Hashed<R> {
    inner: R,
    digest: Sha256,
    length: u64,
}

impl<R> Hashed<R> {
    fn new(inner: R) -> Self {
        Self { inner, digest: Sha256::new(), length: 0 }
    }

    fn hex(&self) -> String {
        hex::encode(self.digest.clone().finalize())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.digest.update(&into[..read]);
        self.length += read as u64;
        Ok(read)
    }
}

const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
/// Some hundred bytes a file.
const MAX_MANIFEST: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_a_forged_backup_that_announces_a_long_name_is_not_read_into_memory() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(64 * 1024 * 1024);
        header.set_cksum();
        let mut name = io::repeat(b'n').take(64 * 1024 * 1024);
        let refused = read_archive(header.as_bytes().chain(&mut name), &mut |_, _| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("is not where it should be"));
        assert_eq!(name.limit(), 64 * 1024 * 1024, "nothing of the name was read");
    }
}
