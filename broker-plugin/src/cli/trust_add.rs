//! `assay trust add`: what a vendor's files hold, shown before it is trusted.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use assay_broker_plugin::ca::read_anchors;
use assay_broker_plugin::store::{AnchorRow, Store, Trusted};
use assay_ca_core::{Allowances, Role, VendorCertificate};
use clap::Args;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::table;
use super::trust::kind;
use super::vendor_files;

#[derive(Args)]
#[command(after_help = "\
Each certificate is reported: root (it signed itself, and is trusted), issuer (it helps to build paths to a root or an anchor), anchor
(it is trusted whoever signed it), already there, or refused with the reason. What can be added is added.
Exit status: 1 if a certificate was refused.

Examples:
  assay --dir ca trust add vendor-root.pem vendor-issuing-cas.p7b
  assay --dir ca trust add tpm-ca-certificates/
  assay --dir ca trust add --fingerprint 12:34:… vendor-root.der
  assay --dir ca trust add --anchor pluton-ica.der
  assay --dir ca trust add --anchor --allow-missing ek-usage,tpm-attributes cloud-ca.pem")]
pub(crate) struct Add {
    /// PEM, DER, PKCS #7, bundles of them, and directories
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Trust this CA itself, whoever signed it: one that is not self-signed, or one issuing CA
    /// instead of a whole vendor
    #[arg(long)]
    anchor: bool,
    /// What EK certificates under the anchor may lack: ek-usage, tpm-attributes, or both with a
    /// comma in between
    #[arg(long, value_name = "WHAT", requires = "anchor", default_value = "", hide_default_value = true)]
    allow_missing: Allowances,
    /// Trust no root or anchor but the one with this SHA-256 fingerprint; may be given several
    /// times
    #[arg(long = "fingerprint", value_name = "SHA256", value_parser = fingerprint)]
    fingerprints: Vec<[u8; 32]>,
    /// Print one JSON object a certificate on standard output
    #[arg(long)]
    json: bool,
}

impl Add {
    pub(crate) fn run(self, store: &Store) -> Result<()> {
        let found = self.found()?;
        let mut refused = 0;
        let mut issuers = Vec::new();
        for Found { place, fingerprint, content } in found {
            let (result, vendor) = match content {
                Ok((vendor, row)) => {
                    // Shown before it is trusted: whoever waits for the next line can still
                    // interrupt.
                    let result = match store.add_anchor(&row)? {
                        Trusted::Added | Trusted::Changed => kind(vendor.role()),
                        Trusted::Already => "already there",
                    };
                    (Ok(result), Some(vendor))
                }
                Err(reason) => (Err(reason), None),
            };
            refused += usize::from(result.is_err());
            self.report(&place, fingerprint.as_ref(), vendor.as_ref(), &result);
            issuers.extend(vendor.filter(|vendor| vendor.role() == Role::Issuer && result.is_ok()));
        }
        tell_of_incomplete(store, &issuers)?;
        ensure!(refused == 0, "refused: {refused}; what is reported otherwise is added");
        Ok(())
    }

    /// Every certificate, read and judged, before any is trusted.
    fn found(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for file in vendor_files::read(&self.files)? {
            let place = file.path.display().to_string();
            match file.certificates {
                Ok(certificates) => found.extend(certificates.iter().map(|der| self.judge(place.clone(), der))),
                Err(reason) => found.push(Found { place, fingerprint: None, content: Err(format!("{reason:#}")) }),
            }
        }
        // The same certificate may stand in several files.
        let mut seen = Vec::new();
        found.retain(|found| {
            let is_new = found.fingerprint.is_none_or(|fingerprint| !seen.contains(&fingerprint));
            seen.extend(found.fingerprint);
            is_new
        });
        if self.anchor && self.fingerprints.is_empty() && found.len() > 1 {
            bail!("--anchor trusts one CA, and here are {} certificates; say with --fingerprint which", found.len());
        }
        for wanted in &self.fingerprints {
            if !seen.contains(wanted) {
                bail!("no certificate here has the fingerprint {}; nothing is added", hex::encode(wanted));
            }
        }
        Ok(found)
    }

    fn judge(&self, place: String, der: &CertificateDer<'_>) -> Found {
        let fingerprint: [u8; 32] = Sha256::digest(der).into();
        let is_named = self.fingerprints.is_empty() || self.fingerprints.contains(&fingerprint);
        let vendor = if self.anchor && is_named {
            VendorCertificate::read_anchor(der, self.allow_missing)
        } else {
            VendorCertificate::read(der)
        };
        let content = match vendor {
            Ok(vendor) if !is_named && vendor.role() != Role::Issuer => {
                Err(format!("{} has another fingerprint than the one asked for", vendor.subject()))
            }
            Ok(vendor) => {
                let row = AnchorRow {
                    fingerprint,
                    certificate: der.to_vec(),
                    subject: vendor.subject(),
                    role: vendor.role(),
                    not_after: vendor.not_after().unix_timestamp(),
                    added_at: OffsetDateTime::now_utc().unix_timestamp(),
                };
                Ok((vendor, row))
            }
            Err(reason) => Err(reason.to_string()),
        };
        Found { place, fingerprint: Some(fingerprint), content }
    }

    fn report(
        &self,
        place: &str,
        fingerprint: Option<&[u8; 32]>,
        vendor: Option<&VendorCertificate>,
        result: &Result<&'static str, String>,
    ) {
        let fingerprint = fingerprint.map(hex::encode);
        let not_after = vendor.map(|vendor| table::time(vendor.not_after().unix_timestamp()));
        if self.json {
            let line = serde_json::json!({
                "file": place,
                "result": result.as_ref().copied().unwrap_or("refused"),
                "reason": result.as_ref().err(),
                "subject": vendor.map(VendorCertificate::subject),
                "fingerprint": fingerprint,
                "not_after": not_after,
                "key": vendor.map(VendorCertificate::key),
            });
            println!("{line}");
            return;
        }
        let line = match (result, vendor) {
            (Ok(result), Some(vendor)) => {
                let (subject, key) = (vendor.subject(), vendor.key());
                let (until, sha256) = (not_after.unwrap_or_default(), fingerprint.unwrap_or_default());
                format!("{result}: {subject}\n  {key}, until {until}, SHA-256 {sha256}")
            }
            (Err(reason), _) => format!("refused: {place}: {reason}"),
            (Ok(result), None) => (*result).to_owned(),
        };
        line.lines().for_each(|line| eprintln!("{}", table::printable(line)));
    }
}

/// A certificate, and what it is good for; or why it is refused.
struct Found {
    place: String,
    fingerprint: Option<[u8; 32]>,
    content: Result<(VendorCertificate, AnchorRow), String>,
}

/// Names the issuers that no path can use yet.
fn tell_of_incomplete(store: &Store, issuers: &[VendorCertificate]) -> Result<()> {
    if issuers.is_empty() {
        return Ok(());
    }
    let anchors = read_anchors(store)?;
    for issuer in issuers {
        if let Err(reason) = anchors.check_ca(issuer, OffsetDateTime::now_utc()) {
            eprintln!("{}", table::printable(&format!("counts for nothing yet: {reason}")));
        }
    }
    Ok(())
}

/// Reads a fingerprint as `openssl x509 -fingerprint` or `sha256sum` prints it.
fn fingerprint(text: &str) -> Result<[u8; 32], String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let bytes = hex::decode(digits).ok().and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| "a SHA-256 fingerprint has 64 hexadecimal digits, with colons in between or without".to_owned())
}
