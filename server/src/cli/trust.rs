//! `assay trust`: TPM vendors' certificates.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use assay_ca_core::{
    ContainerError, EkCheck, EkIdentity, Role, TrustAnchors, VendorCertificate, certificates_in,
};
use assay_server::anchors::{read_anchor, read_anchors};
use assay_server::directory::Directory;
use assay_store::Store;
use clap::{Args, Subcommand};
use time::OffsetDateTime;

use super::table;
use super::trust_add::Add;
use super::vendor_files::read_bounded;

#[derive(Subcommand)]
pub(crate) enum Trust {
    /// Add vendors' CA certificates: roots, and the issuers below them that devices may not send
    Add(Add),
    /// Say whether an EK would be trusted, and through which CAs; or what is missing
    Check(Check),
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
        let store = &mut *directory.store()?;
        match self {
            Self::Add(add) => add.run(store),
            Self::Check(check) => check.run(store),
            Self::List { json } => list(store, json),
            Self::Remove { fingerprint } => remove(store, &fingerprint),
        }
    }
}

#[derive(Args)]
#[command(after_help = "\
Exit status: 0 if all of them would be trusted, 1 if one would not.

Examples:
  assay --dir ca trust check ek.der
  assay --dir ca trust check --json eks/*.der")]
pub(crate) struct Check {
    /// EK certificates, in any form that `enroll add` takes; a file may hold the certificate's
    /// issuers too, or one CA's certificate alone
    #[arg(required = true, value_name = "EK")]
    files: Vec<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

impl Check {
    fn run(self, store: &mut dyn Store) -> Result<()> {
        let anchors = read_anchors(store)?;
        let mut refused = 0;
        for file in &self.files {
            let name = file.display().to_string();
            let verdict = judge(store, &anchors, file);
            refused += usize::from(verdict.is_err());
            if self.json {
                let line = match verdict {
                    Ok(Verdict { key, trusted_by, issuers }) => serde_json::json!({
                        "file": name, "trusted": true, "key": key, "by": trusted_by, "path": issuers,
                    }),
                    Err(reason) => {
                        serde_json::json!({ "file": name, "trusted": false, "reason": format!("{reason:#}") })
                    }
                };
                table::print_json(&line);
                continue;
            }
            let line = match verdict {
                Ok(Verdict { key, trusted_by: "enrolment", .. }) => {
                    format!("trusted: {name}: {key}, which is enrolled")
                }
                Ok(Verdict { key, issuers, .. }) => {
                    format!("trusted: {name}: {key}, through {}", issuers.join(" → "))
                }
                Err(reason) => format!("not trusted: {name}: {reason:#}"),
            };
            table::print_line(table::printable(&line));
        }
        match refused {
            0 => Ok(()),
            1 => bail!("one EK would not be trusted"),
            several => bail!("{several} EKs would not be trusted"),
        }
    }
}

/// Why an EK would be trusted.
struct Verdict {
    key: String,
    trusted_by: &'static str,
    issuers: Vec<String>,
}

fn judge(store: &mut dyn Store, anchors: &TrustAnchors, file: &Path) -> Result<Verdict> {
    let content = read_bounded(file)?;
    let certificates = match certificates_in(&content) {
        Err(ContainerError::NoCertificate) => {
            let (_, ek) = EkIdentity::recognise(&content)?;
            ensure!(
                store.is_enrolled(&ek.ek_id)?,
                "it holds no certificate; a bare key is trusted only if it is enrolled, see \
                 `assay enroll add`"
            );
            return Ok(Verdict { key: ek.key, trusted_by: "enrolment", issuers: Vec::new() });
        }
        certificates => certificates?,
    };
    if let [only] = &certificates[..]
        && let Ok(ca) = VendorCertificate::read(only)
    {
        let path = anchors.check_ca(&ca, OffsetDateTime::now_utc())?;
        return Ok(Verdict {
            key: ca.key(),
            trusted_by: "certificate",
            issuers: path.issuers().to_vec(),
        });
    }
    let EkCheck { ek_id, key, path } =
        EkCheck::of(&certificates, anchors, OffsetDateTime::now_utc())?;
    match path {
        Ok(path) => {
            Ok(Verdict { key, trusted_by: "certificate", issuers: path.issuers().to_vec() })
        }
        Err(_) if store.is_enrolled(&ek_id)? => {
            Ok(Verdict { key, trusted_by: "enrolment", issuers: Vec::new() })
        }
        Err(reason) => Err(reason.into()),
    }
}

fn list(store: &mut dyn Store, json: bool) -> Result<()> {
    let anchors = store.anchors()?;
    if json {
        for anchor in anchors {
            let line = serde_json::json!({
                "fingerprint": hex::encode(anchor.fingerprint),
                "kind": kind(anchor.role),
                "allow_missing": allowances(anchor.role),
                "subject": anchor.subject,
                "not_after": table::time(anchor.not_after),
                "added_at": table::time(anchor.added_at),
            });
            table::print_json(&line);
        }
        return Ok(());
    }
    let rows = anchors.into_iter().map(|anchor| {
        let fingerprint = hex::encode(anchor.fingerprint);
        let kind = match allowances(anchor.role) {
            Some(allowances) if !allowances.is_empty() => format!("anchor, without {allowances}"),
            _ => kind(anchor.role).into(),
        };
        [
            fingerprint[..table::SHORT_ID].to_owned(),
            kind,
            table::time(anchor.not_after),
            anchor.subject,
        ]
    });
    table::print(["FINGERPRINT", "KIND", "NOT AFTER", "SUBJECT"], rows);
    Ok(())
}

fn remove(store: &mut dyn Store, prefix: &str) -> Result<()> {
    let prefix = prefix.to_ascii_lowercase().replace(':', "");
    ensure!(
        prefix.len() >= MIN_PREFIX,
        "give at least {MIN_PREFIX} digits of the fingerprint, as `assay trust list` shows it"
    );
    let anchors = store.anchors()?;
    let mut matching =
        anchors.iter().filter(|anchor| hex::encode(anchor.fingerprint).starts_with(&prefix));
    match (matching.next(), matching.next()) {
        (Some(anchor), None) => {
            let wanted = read_anchor(anchor)?;
            // The same with another signature would go on to be trusted.
            for other in &anchors {
                if read_anchor(other)?.is_same(&wanted) {
                    store.remove_anchor(&other.fingerprint)?;
                    eprintln!("removed: {}", table::printable(&other.subject));
                }
            }
            Ok(())
        }
        (None, _) => bail!(
            "no certificate with a fingerprint that begins with {prefix}; see `assay trust list`"
        ),
        (Some(_), Some(_)) => bail!("several fingerprints begin with {prefix}; give more of it"),
    }
}

/// One word for what a certificate is good for.
pub(crate) fn kind(role: Role) -> &'static str {
    match role {
        Role::Root => "root",
        Role::Issuer => "issuer",
        Role::Anchor(_) => "anchor",
    }
}

fn allowances(role: Role) -> Option<String> {
    match role {
        Role::Anchor(allowances) => Some(allowances.to_string()),
        Role::Root | Role::Issuer => None,
    }
}

/// Enough to name one certificate, and too much to type by accident.
const MIN_PREFIX: usize = 8;
