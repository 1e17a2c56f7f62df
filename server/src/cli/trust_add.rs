//! `assay trust add`: what a vendor's files hold, shown before it is trusted.

use std::io::{IsTerminal, stderr, stdin};
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use assay_ca_core::{Allowances, Role, VendorCertificate};
use assay_server::anchors::{read_anchor, read_anchors};
use assay_store::{AnchorRow, Store, StoreError};
use clap::Args;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::table;
use super::trust::kind;
use super::vendor_files;

#[derive(Args)]
#[command(after_help = "\
Each certificate is reported: root (it signed itself, and is trusted), issuer (it helps to build \
                        paths to a root or an anchor), anchor
(it is trusted whoever signed it), already there, or refused with the reason. Then, at a terminal, \
                        you are asked before any is trusted,
unless you named a fingerprint. What can be added is added.
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
    #[arg(
        long,
        value_name = "WHAT",
        requires = "anchor",
        default_value = "",
        hide_default_value = true
    )]
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
    pub(crate) fn run(self, store: &mut dyn Store) -> Result<()> {
        let found = self.found(&Known::read(store)?)?;
        found.iter().for_each(|found| self.report(found));
        let new =
            found.iter().filter_map(|found| found.content.as_ref().ok()).filter(|good| good.is_new);
        let new: Vec<_> = new.collect();
        self.ask(&new)?;
        for good in &new {
            store.add_anchor(&good.row)?;
        }
        tell_of_incomplete(store, &found)?;
        let refused = found.iter().filter(|found| found.content.is_err()).count();
        ensure!(refused == 0, "refused: {refused}; what is reported otherwise is added");
        Ok(())
    }

    /// Every certificate, read and judged, before any is trusted.
    fn found(&self, known: &Known) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        for file in vendor_files::read(&self.files)? {
            let place = file.path.display().to_string();
            match file.certificates {
                Ok(certificates) => found
                    .extend(certificates.iter().map(|der| self.judge(place.clone(), der, known))),
                Err(reason) => found.push(Found {
                    place,
                    fingerprint: None,
                    content: Err(format!("{reason:#}")),
                }),
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
            bail!(
                "--anchor trusts one CA, and here are {} certificates; say with --fingerprint \
                 which",
                found.len()
            );
        }
        for wanted in &self.fingerprints {
            if !seen.contains(wanted) {
                bail!(
                    "no certificate here has the fingerprint {}; nothing is added",
                    hex::encode(wanted)
                );
            }
        }
        Ok(found)
    }

    /// Asks whoever sits at a terminal. A script has read the vendor's fingerprint before, or
    /// trusts its files.
    fn ask(&self, new: &[&Good]) -> Result<()> {
        let trusted = new.iter().filter(|good| good.vendor.role() != Role::Issuer).count();
        if trusted == 0
            || !self.fingerprints.is_empty()
            || !stdin().is_terminal()
            || !stderr().is_terminal()
        {
            return Ok(());
        }
        eprint!(
            "Every EK that leads to what is named root or anchor above is going to be trusted. Go \
             on? [y/N] "
        );
        let mut answer = String::new();
        stdin().read_line(&mut answer)?;
        ensure!(matches!(answer.trim(), "y" | "Y" | "yes"), "nothing is added");
        Ok(())
    }

    fn judge(&self, place: String, der: &CertificateDer<'_>, known: &Known) -> Found {
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
            Ok(vendor) => Ok(known.compare(vendor, fingerprint, der)),
            Err(reason) => Err(reason.to_string()),
        };
        Found { place, fingerprint: Some(fingerprint), content }
    }

    fn report(&self, Found { place, fingerprint, content }: &Found) {
        let good = content.as_ref().ok();
        let result = match good {
            None => "refused",
            Some(good) if good.is_new => kind(good.vendor.role()),
            Some(_) => "already there",
        };
        let fingerprint =
            good.map_or(*fingerprint, |good| Some(good.row.fingerprint)).map(hex::encode);
        let not_after = good.map(|good| table::time(good.row.not_after));
        if self.json {
            let line = serde_json::json!({
                "file": place,
                "result": result,
                "reason": content.as_ref().err(),
                "subject": good.map(|good| good.vendor.subject()),
                "fingerprint": fingerprint,
                "not_after": not_after,
                "key": good.map(|good| good.vendor.key()),
            });
            table::print_json(&line);
            return;
        }
        let line = match content {
            Ok(good) => {
                let (subject, key) = (good.vendor.subject(), good.vendor.key());
                let (until, sha256) =
                    (not_after.unwrap_or_default(), fingerprint.unwrap_or_default());
                format!("{result}: {subject}\n  {key}, until {until}, SHA-256 {sha256}")
            }
            Err(reason) => format!("refused: {place}: {reason}"),
        };
        line.lines().for_each(|line| eprintln!("{}", table::printable(line)));
    }
}

/// A certificate, and what it is good for; or why it is refused.
struct Found {
    place: String,
    fingerprint: Option<[u8; 32]>,
    content: Result<Good, String>,
}

struct Good {
    vendor: VendorCertificate,
    row: AnchorRow,
    /// It is not known, or not yet as an anchor.
    is_new: bool,
}

/// What is trusted already.
struct Known(Vec<(VendorCertificate, AnchorRow)>);

impl Known {
    fn read(store: &mut dyn Store) -> Result<Self> {
        let read = |row: AnchorRow| Ok((read_anchor(&row)?, row));
        Ok(Self(store.anchors()?.into_iter().map(read).collect::<Result<_, StoreError>>()?))
    }

    /// A root or anchor of which only the signature differs is the one that is known, and keeps its
    /// fingerprint. Of an issuer nobody has verified the signature yet: the one that is known may
    /// be damaged.
    fn compare(&self, vendor: VendorCertificate, fingerprint: [u8; 32], der: &[u8]) -> Good {
        let is_known = |known: &VendorCertificate, row: &AnchorRow| {
            known.is_same(&vendor)
                && (vendor.role() != Role::Issuer || row.fingerprint == fingerprint)
        };
        let known = self.0.iter().find(|(known, row)| is_known(known, row)).map(|(_, row)| row);
        let row = AnchorRow {
            fingerprint: known.map_or(fingerprint, |row| row.fingerprint),
            certificate: known.map_or_else(|| der.to_vec(), |row| row.certificate.clone()),
            subject: vendor.subject(),
            role: vendor.role(),
            not_after: vendor.not_after().unix_timestamp(),
            added_at: OffsetDateTime::now_utc().unix_timestamp(),
        };
        let is_new = known.is_none_or(|known| known.role.becomes(row.role));
        Good { vendor, row, is_new }
    }
}

/// Names the issuers that no path can use yet.
fn tell_of_incomplete(store: &mut dyn Store, found: &[Found]) -> Result<()> {
    let issuers =
        found.iter().filter_map(|found| found.content.as_ref().ok()).map(|good| &good.vendor);
    let issuers: Vec<_> = issuers.filter(|vendor| vendor.role() == Role::Issuer).collect();
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
    bytes.ok_or_else(|| {
        "a SHA-256 fingerprint has 64 hexadecimal digits, with colons in between or without"
            .to_owned()
    })
}
