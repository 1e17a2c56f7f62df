//! Files of keys and certificates: never over another file by chance, and each for its owner.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use anyhow::{Context, Result};
use assay_ca_core::KeyAndCertificate;
use assay_store::IdentityCertificate;
use pem::{EncodeConfig, LineEnding, Pem};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The mode of a file with a secret.
pub(crate) const SECRET: u32 = 0o600;
/// The mode of a file that everybody may read.
pub(crate) const PUBLIC: u32 = 0o644;

/// Where files are made, and for whom.
pub(crate) struct NewFiles<'a> {
    pub(crate) directory: &'a Path,
    /// User and group of the directory.
    pub(crate) owner: (u32, u32),
}

impl<'a> NewFiles<'a> {
    /// For the owner of this directory.
    pub(crate) fn of(directory: &'a Path) -> io::Result<Self> {
        let metadata = fs::metadata(directory)?;
        Ok(Self { directory, owner: (metadata.uid(), metadata.gid()) })
    }

    /// Writes a certificate with its issuers to `{holder}.pem`, and its key to `{holder}.key`.
    pub(crate) fn write_pair(
        &self,
        holder: &str,
        pair: &KeyAndCertificate,
        issuers: &str,
    ) -> Result<()> {
        let chain = format!("{}{issuers}", pair.certificate);
        self.write(&format!("{holder}.pem"), chain.as_bytes(), PUBLIC)?;
        self.write(&format!("{holder}.key"), pair.key.as_bytes(), SECRET)
    }

    /// As [`write_pair`](Self::write_pair), in place of the files that are there. A reader finds
    /// the old file or the new one, never a part. Whoever reads both in between finds two that do
    /// not belong together, and so has to be told to read them afterwards.
    pub(crate) fn replace_pair(
        &self,
        holder: &str,
        pair: &KeyAndCertificate,
        issuers: &str,
    ) -> Result<()> {
        // No identity has a name that begins with a dot.
        let new = format!(".{holder}.new");
        let place = |holder: &str, kind: &str| self.directory.join(format!("{holder}.{kind}"));
        for kind in ["pem", "key"] {
            // Of an earlier attempt that was cut short.
            match fs::remove_file(place(&new, kind)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        self.write_pair(&new, pair, issuers)?;
        for kind in ["key", "pem"] {
            fs::rename(place(&new, kind), place(holder, kind))?;
        }
        Ok(File::open(self.directory)?.sync_all()?)
    }

    /// Writes a file that does not exist yet.
    pub(crate) fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<()> {
        self.write_from(name, content, mode)
    }

    /// The same, with whatever is read.
    pub(crate) fn write_from(
        &self,
        name: &str,
        mut content: impl io::Read,
        mode: u32,
    ) -> Result<()> {
        let path = self.directory.join(name);
        // `create_new` follows no link and overwrites nothing.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        io::copy(&mut content, &mut file)?;
        // Root may make a CA for the user that runs the service.
        if file.metadata()?.uid() != self.owner.0 {
            fchown(&file, Some(self.owner.0), Some(self.owner.1))?;
        }
        Ok(file.sync_all()?)
    }
}

/// PEM, as every other program writes it.
pub fn pem_of(label: &str, der: &[u8]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(label, der), config)
}

/// What is put on record of a certificate that was just made.
pub(crate) fn certificate_of(pair: &KeyAndCertificate) -> Result<IdentityCertificate> {
    let leaf = CertificateDer::from_pem_slice(pair.certificate.as_bytes())?;
    IdentityCertificate::read(&leaf).context("a certificate that was just made cannot be read")
}

/// The user and the group that this process acts as.
pub(crate) fn ours() -> io::Result<(u32, u32)> {
    let metadata = fs::metadata("/proc/self")?;
    Ok((metadata.uid(), metadata.gid()))
}
