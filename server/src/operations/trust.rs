//! Which TPM vendors are trusted, and for what.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use assay_ca_core::{
    Allowances, Answer, ContainerError, EkCheck, EkFacts, EkIdentity, Flaws, GroupName, Role,
    TrustAnchors, VendorCertificate, certificates_in,
};
use assay_store::Store;
use assay_store::{AnchorRow, StoreError};
use assay_wire::EkId;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::anchors::{read_anchor, read_anchors};
use crate::vendor_files;

/// What an operator means to trust.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// As an anchor, whoever signed it, with what EK certificates under it may lack.
    pub anchor: Option<Allowances>,
    /// No root or anchor but those with these SHA-256 fingerprints, unless there is none.
    pub fingerprints: Vec<[u8; 32]>,
}

impl Wish {
    /// Every certificate in these files, read and judged, before any is trusted.
    ///
    /// # Errors
    /// A file cannot be read, or the wish fits not what they hold.
    pub fn examine(&self, store: &mut dyn Store, files: &[PathBuf]) -> Result<Vec<Found>> {
        let known = Known::read(store)?;
        let mut found = Vec::new();
        for file in vendor_files::read(files)? {
            let place = file.path.display().to_string();
            match file.certificates {
                Ok(certificates) => found
                    .extend(certificates.iter().map(|der| self.judge(place.clone(), der, &known))),
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
        if self.anchor.is_some() && self.fingerprints.is_empty() && found.len() > 1 {
            bail!(
                "--anchor trusts one CA, but here are {} certificates; choose one with \
                 --fingerprint",
                found.len()
            );
        }
        for wanted in &self.fingerprints {
            ensure!(
                seen.contains(wanted),
                "no certificate here has the fingerprint {}; nothing is added",
                hex::encode(wanted)
            );
        }
        Ok(found)
    }

    fn judge(&self, place: String, der: &CertificateDer<'_>, known: &Known) -> Found {
        let fingerprint: [u8; 32] = Sha256::digest(der).into();
        let is_named = self.fingerprints.is_empty() || self.fingerprints.contains(&fingerprint);
        let vendor = match self.anchor {
            Some(allowances) if is_named => VendorCertificate::read_anchor(der, allowances),
            _ => VendorCertificate::read(der),
        };
        let content = match vendor {
            Ok(vendor) if !is_named && vendor.role() != Role::Issuer => {
                Err(format!("{} has another fingerprint than you gave", vendor.subject()))
            }
            Ok(vendor) => Ok(known.compare(vendor, fingerprint, der)),
            Err(reason) => Err(reason.to_string()),
        };
        Found { place, fingerprint: Some(fingerprint), content }
    }
}

/// A certificate in a file, and what it is good for; or why it is refused.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub place: String,
    /// SHA-256 of the certificate; `None` if there is none.
    pub fingerprint: Option<[u8; 32]>,
    /// What it is good for, or why it is refused.
    pub content: Result<Good, String>,
}

/// A certificate that can be trusted.
#[derive(Debug)]
pub struct Good {
    /// What it says.
    pub vendor: VendorCertificate,
    /// As it is put on record.
    pub row: AnchorRow,
    /// Whether it is not known, or not yet as an anchor.
    pub is_new: bool,
}

/// Trusts what is new.
///
/// # Errors
/// The record cannot be written.
pub fn trust<'a>(
    store: &mut dyn Store,
    new: impl IntoIterator<Item = &'a Good>,
) -> Result<(), StoreError> {
    for good in new {
        store.add_anchor(&good.row)?;
    }
    Ok(())
}

/// Why each of the issuers among these counts for nothing yet: no path from it leads to a root or
/// an anchor.
///
/// # Errors
/// The record cannot be read.
pub fn incomplete(store: &mut dyn Store, found: &[Found]) -> Result<Vec<String>, StoreError> {
    let good = found.iter().filter_map(|found| found.content.as_ref().ok());
    let issuers: Vec<_> =
        good.map(|good| &good.vendor).filter(|vendor| vendor.role() == Role::Issuer).collect();
    if issuers.is_empty() {
        return Ok(Vec::new());
    }
    let (anchors, now) = (read_anchors(store)?, OffsetDateTime::now_utc());
    let reasons = issuers.iter().filter_map(|issuer| anchors.check_ca(issuer, now).err());
    Ok(reasons.map(|reason| reason.to_string()).collect())
}

/// Trusts a vendor's certificate no longer, nor the same with another signature; returns the
/// subjects of those that were removed.
///
/// # Errors
/// The fingerprint's beginning is too short, or names none or several.
pub fn remove(store: &mut dyn Store, prefix: &str) -> Result<Vec<String>> {
    let prefix = prefix.to_ascii_lowercase().replace(':', "");
    ensure!(
        prefix.len() >= MIN_PREFIX,
        "give at least {MIN_PREFIX} digits of the fingerprint, as `assay trust list` shows it"
    );
    let anchors = store.anchors()?;
    let mut matching =
        anchors.iter().filter(|anchor| hex::encode(anchor.fingerprint).starts_with(&prefix));
    let wanted = match (matching.next(), matching.next()) {
        (Some(anchor), None) => read_anchor(anchor)?,
        (None, _) => bail!(
            "no certificate with a fingerprint that begins with {prefix}; see `assay trust list`"
        ),
        (Some(_), Some(_)) => bail!("several fingerprints begin with {prefix}; give more of it"),
    };
    let mut removed = Vec::new();
    for other in &anchors {
        if read_anchor(other)?.is_same(&wanted) {
            store.remove_anchor(&other.fingerprint)?;
            removed.push(other.subject.clone());
        }
    }
    Ok(removed)
}

/// Why an EK would be trusted.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The kind of key.
    pub key: String,
    /// `certificate` or `enrolment`.
    pub trusted_by: &'static str,
    /// The CAs that its certificate leads through.
    pub issuers: Vec<String>,
    /// Which group the EK belongs to, and what that answers; `None` if it is in none, or if a CA's
    /// certificate was judged.
    pub group: Option<(GroupName, Answer)>,
    /// Whether it is an EK.
    pub is_ek: bool,
}

/// Whether the EK in a file would be trusted, in whatever form it is; or a CA's certificate.
///
/// # Errors
/// It would not be, for this reason; or the record cannot be read.
pub fn judge(
    store: &mut dyn Store,
    anchors: &TrustAnchors,
    flaws: &Flaws,
    file: &Path,
) -> Result<Verdict> {
    let content = &vendor_files::read_bounded(file)?;
    let now = OffsetDateTime::now_utc();
    let by_enrolment = |key, group| Verdict {
        key,
        trusted_by: "enrolment",
        issuers: Vec::new(),
        group,
        is_ek: true,
    };
    let by_certificate = |key, issuers: &[String]| Verdict {
        key,
        trusted_by: "certificate",
        issuers: issuers.to_vec(),
        group: None,
        is_ek: false,
    };
    let certificates = match certificates_in(content) {
        Err(ContainerError::NoCertificate) => {
            let (_, ek) = EkIdentity::recognise(content)?;
            ensure!(
                store.is_enrolled(&ek.ek_id)?,
                "it holds no certificate; a bare key is trusted only if it is enrolled, see \
                 `assay enroll add`"
            );
            return Ok(by_enrolment(ek.key, group_of(store, ek.ek_id, None, flaws)?));
        }
        certificates => certificates?,
    };
    if let [only] = &certificates[..]
        && let Ok(ca) = VendorCertificate::read(only)
    {
        let path = anchors.check_ca(&ca, now)?;
        return Ok(by_certificate(ca.key(), path.issuers()));
    }
    let EkCheck { ek_id, key, path, facts } = EkCheck::of(&certificates, anchors, now)?;
    match path {
        Ok(path) => {
            let group = group_of(store, ek_id, facts, flaws)?;
            Ok(Verdict { group, is_ek: true, ..by_certificate(key, path.issuers()) })
        }
        Err(_) if store.is_enrolled(&ek_id)? => {
            Ok(by_enrolment(key, group_of(store, ek_id, None, flaws)?))
        }
        Err(reason) => Err(reason.into()),
    }
}

/// The group that an EK belongs to, and what that answers.
fn group_of(
    store: &mut dyn Store,
    ek: EkId,
    facts: Option<EkFacts>,
    flaws: &Flaws,
) -> Result<Option<(GroupName, Answer)>> {
    let (enrolment, is_enrolled) = (store.enrolment(&ek)?, store.is_enrolled(&ek)?);
    let facts = facts.or_else(|| enrolment.and_then(|row| row.facts));
    let (_, groups) = store.groups()?;
    let group = groups.of_ek(ek, facts.as_ref(), flaws, is_enrolled);
    Ok(group.map(|group| (group.name.clone(), group.answer)))
}

/// One word for what a certificate is good for.
pub fn kind(role: Role) -> &'static str {
    match role {
        Role::Root => "root",
        Role::Issuer => "issuer",
        Role::Anchor(_) => "anchor",
    }
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

/// Enough to name one certificate, and too much to type by accident.
const MIN_PREFIX: usize = 8;
