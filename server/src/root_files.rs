//! The files of roots in a CA's directory: `root.pem`, and the next one with the certificate by
//! which the old one vouches for it.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use assay_ca_core::NewRoot;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::dated;

/// A root of a CA.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    /// When it was made; `None` is the one that devices pinned first.
    pub(crate) from: Option<OffsetDateTime>,
    /// Its self-signed certificate.
    pub(crate) certificate: CertificateDer<'static>,
    /// The certificate by which the root before vouches for it, if there is that root.
    pub(crate) cross: Option<CertificateDer<'static>>,
}

impl Root {
    /// The name of its files, without what comes after the first point.
    pub(crate) fn name(&self) -> String {
        dated::name(STEM, self.from)
    }

    /// Its name, and until when it is valid.
    pub(crate) fn shown(&self) -> Result<(String, OffsetDateTime)> {
        let (_, parsed) = X509Certificate::from_der(&self.certificate)
            .with_context(|| format!("{}.pem cannot be read", self.name()))?;
        Ok((parsed.subject().to_string(), parsed.validity().not_after.to_datetime()))
    }

    /// Whether a certificate names this root as its issuer.
    pub(crate) fn is_named_by(&self, certificate: &[u8]) -> bool {
        let parsed = X509Certificate::from_der(certificate);
        let own = X509Certificate::from_der(&self.certificate);
        matches!((parsed, own), (Ok((_, certificate)), Ok((_, root)))
            if certificate.issuer().as_raw() == root.subject().as_raw())
    }
}

/// The roots of a directory, the oldest first: one, or two while they overlap.
///
/// # Errors
/// They cannot be read, there are more, or the old one does not vouch for the new one.
pub(crate) fn read(directory: &Path) -> Result<Vec<Root>> {
    let certificate = |name: &str| {
        let path = directory.join(name);
        CertificateDer::from_pem_file(&path)
            .with_context(|| format!("cannot read {}", path.display()))
    };
    let cannot_read = || format!("cannot read {}", directory.display());
    let found = dated::files(directory, STEM, ".pem").with_context(cannot_read)?;
    ensure!(
        found.len() <= 2,
        "{} holds {} roots, and at most two may overlap; remove the files {STEM}-*.pem that do \
         not belong there",
        directory.display(),
        found.len()
    );
    let mut roots: Vec<Root> = Vec::new();
    for from in found {
        let name = dated::name(STEM, from);
        let root = certificate(&format!("{name}.pem"))?;
        let cross = match roots.last() {
            Some(old) if directory.join(format!("{name}.cross.pem")).exists() => {
                let cross = certificate(&format!("{name}.cross.pem"))?;
                let new = NewRoot::check(&root, &cross, &old.certificate)
                    .with_context(|| format!("{name}.pem, {name}.cross.pem and {STEM}.pem"))?;
                Some(new.cross().to_vec().into())
            }
            // `assay root remove` was cut short.
            _ => None,
        };
        roots.push(Root { from, certificate: root, cross });
    }
    Ok(roots)
}

/// What the files of roots are called.
pub(crate) const STEM: &str = "root";
