//! How a new root or service CA takes the file names of the one before.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use assay_ca_core::Issuer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::new_files::pem_of;

/// Puts `{new}.pem` and `{new}.key` in the place of `{old}.pem` and `{old}.key`, and removes the
/// new one's files of the kinds `besides`. The new key may be elsewhere: the old one goes all the
/// same. It may be cut short at any point, and run again.
///
/// # Errors
/// The files cannot be read or renamed.
pub(crate) fn take_over(directory: &Path, new: &str, old: &str, besides: &[&str]) -> Result<()> {
    let file = |name: &str, kind: &str| directory.join(format!("{name}.{kind}"));
    let take_over = || -> Result<()> {
        if file(new, "key").exists() {
            fs::rename(file(new, "key"), file(old, "key"))?;
        } else if !is_key_of(&file(new, "pem"), &file(old, "key"))? {
            // It is not the new one, which an attempt that was cut short would have left here.
            remove(&file(old, "key"))?;
        }
        for kind in besides {
            remove(&file(new, kind))?;
        }
        // Last: until then, this can be run again.
        fs::rename(file(new, "pem"), file(old, "pem"))?;
        Ok(File::open(directory)?.sync_all()?)
    };
    take_over().with_context(|| format!("cannot put {new}.pem into its place"))
}

/// Whether a file has the key of this certificate.
fn is_key_of(certificate: &Path, key: &Path) -> Result<bool> {
    let certificate = pem_of("CERTIFICATE", &CertificateDer::from_pem_file(certificate)?);
    let key = fs::read_to_string(key).map(Zeroizing::new);
    Ok(key.is_ok_and(|key| Issuer::from_pem(&certificate, &key).is_ok()))
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
