//! `assay trust`: TPM vendors' certificates.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use assay_broker_plugin::directory::Directory;
use assay_broker_plugin::store::AnchorRow;
use assay_ca_core::VendorCertificate;
use clap::Subcommand;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::table;

#[derive(Subcommand)]
pub(crate) enum Trust {
    /// Add the certificates of PEM files: roots, and the intermediates that devices may not send
    Add {
        /// PEM files, each with one certificate or more
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List them
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Remove one; EKs that chain to it are refused from then on
    Remove {
        /// Its SHA-256 fingerprint, as `list` shows it, or the beginning of it
        fingerprint: String,
    },
}

impl Trust {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        match self {
            Self::Add { files } => files.iter().try_for_each(|file| add(directory, file)),
            Self::List { json } => list(directory, json),
            Self::Remove { fingerprint } => remove(directory, &fingerprint),
        }
    }
}

fn add(directory: &Directory, file: &Path) -> Result<()> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .with_context(|| format!("cannot read certificates in PEM from {}", file.display()))?;
    ensure!(!certificates.is_empty(), "{} holds no certificate in PEM", file.display());
    // Refuses what can be no anchor, before any of the file is stored.
    for certificate in &certificates {
        VendorCertificate::read(certificate).with_context(|| format!("{}", file.display()))?;
    }
    let store = directory.store()?;
    for certificate in certificates {
        let anchor = anchor(&certificate)?;
        let subject = table::printable(&anchor.subject);
        let already = if store.add_anchor(&anchor)? { "" } else { " (it was there)" };
        if anchor.root {
            eprintln!("trusted: root {subject}{already}");
        } else {
            eprintln!("kept: intermediate {subject}{already}; it counts for nothing without its root");
        }
    }
    Ok(())
}

fn anchor(certificate: &CertificateDer<'_>) -> Result<AnchorRow> {
    let (_, parsed) = X509Certificate::from_der(certificate)?;
    Ok(AnchorRow {
        fingerprint: Sha256::digest(certificate).into(),
        certificate: certificate.to_vec(),
        subject: parsed.subject().to_string(),
        root: parsed.subject().as_raw() == parsed.issuer().as_raw(),
        not_after: parsed.validity().not_after.timestamp(),
        added_at: OffsetDateTime::now_utc().unix_timestamp(),
    })
}

fn list(directory: &Directory, json: bool) -> Result<()> {
    let anchors = directory.store()?.anchors()?;
    if json {
        for anchor in anchors {
            let line = serde_json::json!({
                "fingerprint": hex::encode(anchor.fingerprint),
                "kind": kind(anchor.root),
                "subject": anchor.subject,
                "not_after": table::time(anchor.not_after),
                "added_at": table::time(anchor.added_at),
            });
            println!("{line}");
        }
        return Ok(());
    }
    let rows = anchors.into_iter().map(|anchor| {
        let fingerprint = hex::encode(anchor.fingerprint);
        [fingerprint[..16].to_owned(), kind(anchor.root).into(), table::time(anchor.not_after), anchor.subject]
    });
    table::print(["FINGERPRINT", "KIND", "NOT AFTER", "SUBJECT"], rows);
    Ok(())
}

fn remove(directory: &Directory, prefix: &str) -> Result<()> {
    let store = directory.store()?;
    let prefix = prefix.to_ascii_lowercase().replace(':', "");
    ensure!(
        prefix.len() >= MIN_PREFIX,
        "give at least {MIN_PREFIX} digits of the fingerprint, as `assay trust list` shows it"
    );
    let anchors = store.anchors()?;
    let mut matching = anchors.iter().filter(|anchor| hex::encode(anchor.fingerprint).starts_with(&prefix));
    match (matching.next(), matching.next()) {
        (Some(anchor), None) => {
            store.remove_anchor(&anchor.fingerprint)?;
            eprintln!("removed: {}", table::printable(&anchor.subject));
            Ok(())
        }
        (None, _) => bail!("no certificate with a fingerprint that begins with {prefix}; see `assay trust list`"),
        (Some(_), Some(_)) => bail!("several fingerprints begin with {prefix}; give more of it"),
    }
}

fn kind(root: bool) -> &'static str {
    if root { "root" } else { "intermediate" }
}

/// Enough to name one certificate, and too much to type by accident.
const MIN_PREFIX: usize = 8;
