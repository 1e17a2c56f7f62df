//! Reading the files in which vendors hand out certificates.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use assay_ca_core::certificates_in;
use rustls::pki_types::CertificateDer;

/// What was found in one file.
pub(crate) struct VendorFile {
    pub(crate) path: PathBuf,
    /// An error for a file that was named; of a directory, files without certificates are left out.
    pub(crate) certificates: Result<Vec<CertificateDer<'static>>>,
}

/// Reads files in any form, and all files of directories that hold certificates: those that are not
/// hidden, without subdirectories.
///
/// # Errors
/// A directory cannot be read.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<VendorFile>> {
    let mut found = Vec::new();
    for path in paths {
        if !path.is_dir() {
            found.push(VendorFile { path: path.clone(), certificates: certificates_of(path) });
            continue;
        }
        let entries =
            fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        let is_hidden = |file: &Path| {
            file.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'))
        };
        files.retain(|file| file.is_file() && !is_hidden(file));
        files.sort();
        let files =
            files.into_iter().map(|path| VendorFile { certificates: certificates_of(&path), path });
        found.extend(files.filter(|file| file.certificates.is_ok()));
    }
    Ok(found)
}

fn certificates_of(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    Ok(certificates_in(&read_bounded(file)?)?)
}

/// Reads a file of certificates.
///
/// # Errors
/// It cannot be read, or is too long.
pub(crate) fn read_bounded(file: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    let open = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    open.take(MAX_FILE + 1)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot read {}", file.display()))?;
    ensure!(
        content.len() as u64 <= MAX_FILE,
        "longer than {MAX_FILE} bytes, and no vendor's bundle is so long"
    );
    Ok(content)
}

/// Microsoft's collection of all vendors' certificates has some hundreds, of 1 to 2 KiB each.
const MAX_FILE: u64 = 16 * 1024 * 1024;
