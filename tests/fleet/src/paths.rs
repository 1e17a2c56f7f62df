//! Verifies the paths of certificates, as a device does.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// The roots that devices trust.
pub(crate) struct Paths {
    roots: RootCertStore,
    verified: Mutex<Vec<Issuers>>,
}

/// The issuers in a chain that led to a root.
struct Issuers {
    certificates: Vec<Vec<u8>>,
    /// The first of them.
    anchor: TrustAnchor<'static>,
}

impl Paths {
    pub(crate) fn new(roots: RootCertStore) -> Self {
        Self { roots, verified: Mutex::default() }
    }

    /// Checks that a chain, leaf first, leads to a root now, for TLS client authentication (RFC
    /// 5280 §6.1).
    ///
    /// Issuers that led to a root in this run are not verified again: a fleet has the same issuers,
    /// and this process shares the processors with the server that it measures.
    pub(crate) fn verify(&self, chain: &[&[u8]]) -> Result<()> {
        let (leaf, issuers) = chain.split_first().context("no certificate")?;
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = verified.iter().find(|known| known.certificates == issuers) {
            let anchor = [known.anchor.clone()];
            drop(verified);
            return verify(leaf, &[], &anchor);
        }
        verify(leaf, issuers, &self.roots.roots)?;
        if let Some(issuer) = issuers.first() {
            let anchor = anchor_from_trusted_cert(&CertificateDer::from(*issuer))?.to_owned();
            let certificates = issuers.iter().map(|issuer| issuer.to_vec()).collect();
            verified.push(Issuers { certificates, anchor });
        }
        Ok(())
    }
}

fn verify(leaf: &[u8], issuers: &[&[u8]], anchors: &[TrustAnchor<'_>]) -> Result<()> {
    let leaf = CertificateDer::from(leaf);
    let issuers: Vec<_> = issuers.iter().map(|issuer| CertificateDer::from(*issuer)).collect();
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    EndEntityCert::try_from(&leaf)?
        .verify_for_usage(
            algorithms.all,
            anchors,
            &issuers,
            UnixTime::now(),
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map(drop)
        .context("the certificate leads to no root that devices trust")
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };

    use super::*;

    struct Made {
        der: Vec<u8>,
        issuer: Issuer<'static, KeyPair>,
    }

    fn root(name: &str) -> Made {
        let (key, params) = (KeyPair::generate().unwrap(), params(name, true));
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Made { der, issuer: Issuer::new(params, key) }
    }

    fn under(above: &Made, name: &str, is_ca: bool) -> Made {
        let (key, params) = (KeyPair::generate().unwrap(), params(name, is_ca));
        let der = params.signed_by(&key, &above.issuer).unwrap().der().to_vec();
        Made { der, issuer: Issuer::new(params, key) }
    }

    fn params(name: &str, is_ca: bool) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        } else {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }
        params
    }

    fn trusting(root: &Made) -> Paths {
        let mut roots = RootCertStore::empty();
        roots.add(root.der.clone().into()).unwrap();
        Paths::new(roots)
    }

    #[test]
    fn certificate_that_leads_to_no_trusted_root_is_refused() {
        let (one, other) = (root("Root"), root("Root"));
        let issuer = under(&one, "Issuing", true);
        let leaf = under(&issuer, "pump", false);
        let chain = [&leaf.der[..], &issuer.der];
        assert!(trusting(&one).verify(&chain).is_ok());
        assert!(trusting(&other).verify(&chain).is_err());
        assert!(trusting(&one).verify(&[]).is_err());
    }

    #[test]
    fn certificate_by_another_key_is_refused_also_when_its_issuer_was_verified_before() {
        let root = root("Root");
        let (issuer, namesake) = (under(&root, "Issuing", true), under(&root, "Issuing", true));
        let paths = trusting(&root);
        for _ in 0..2 {
            let leaf = under(&issuer, "pump", false);
            assert!(paths.verify(&[&leaf.der, &issuer.der]).is_ok());
        }
        let leaf = under(&namesake, "pump", false);
        assert!(paths.verify(&[&leaf.der, &issuer.der]).is_err());
    }
}
