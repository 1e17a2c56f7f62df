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
