//! The issuing CA: its certificate and its key.

use std::fmt;

use assay_wire::CertificateList;
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::X509Certificate;

use crate::Fault;
use crate::profile::Profile;
use crate::x509::parse_certificate;

/// The issuing CA's certificate, and the key that signs device certificates.
pub struct Issuer {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) signer: rcgen::Issuer<'static, Signer>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
}

impl Issuer {
    /// Joins an issuing certificate and its key. The key may be in a file, or behind an HSM.
    pub fn new(
        certificate: CertificateDer<'static>,
        key: Box<dyn SigningKey + Send + Sync>,
    ) -> Result<Self, IssuerError> {
        let parsed = parse_certificate(&certificate).ok_or(IssuerError::UnreadableCertificate)?;
        if !parsed.is_ca() {
            return Err(IssuerError::NotACa);
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(IssuerError::KeyMismatch);
        }
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        Ok(Self {
            not_before: not_before.to_datetime(),
            not_after: not_after.to_datetime(),
            signer: rcgen::Issuer::from_ca_cert_der(&certificate, Signer(key))
                .map_err(|_| IssuerError::UnreadableCertificate)?,
            certificate,
        })
    }

    /// Reads the certificate and its PKCS#8 key from PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, IssuerError> {
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
        let key = rcgen::KeyPair::from_pem(key).map_err(|_| IssuerError::UnreadableKey)?;
        Self::new(certificate.map_err(|_| IssuerError::UnreadableCertificate)?, Box::new(key))
    }

    /// The same issuer, if devices that pin this root accept it now: the root's key signed the
    /// issuing certificate, which names the root as its issuer and is valid now (RFC 5280 §6.1.3).
    ///
    /// # Errors
    /// They do not accept it.
    pub fn under(
        self,
        root: &CertificateDer<'_>,
        now: OffsetDateTime,
    ) -> Result<Self, IssuerError> {
        let root = parse_certificate(root).ok_or(IssuerError::UnreadableRoot)?;
        if !is_signed_by(&self.certificate, &root) {
            return Err(IssuerError::OtherRoot);
        }
        if !(self.not_before..=self.not_after).contains(&now) {
            return Err(IssuerError::NotValid {
                not_before: self.not_before,
                not_after: self.not_after,
            });
        }
        Ok(self)
    }

    /// Until when a certificate of this issuer is valid that is issued now (RFC 5280 §4.1.2.5).
    pub(crate) fn end_of_validity(&self, profile: &Profile, now: OffsetDateTime) -> OffsetDateTime {
        let now = now.replace_nanosecond(0).expect("0 is a nanosecond");
        (now + profile.validity()).min(self.not_after)
    }

    /// Whether this issuer signed a certificate. Only then do the two make a valid
    /// [chain](Self::chain).
    pub fn has_signed(&self, leaf: &[u8]) -> bool {
        parse_certificate(&self.certificate).is_some_and(|issuing| is_signed_by(leaf, &issuing))
    }

    /// A device's certificate and the issuing one: its chain without the root.
    pub fn chain(&self, leaf: &[u8]) -> Result<CertificateList<1>, Fault> {
        let oversize = |limit| Fault::Oversize { field: "a certificate", limit };
        let chain = [leaf, &self.certificate].map(assay_wire::CertificateDer::try_from);
        let chain = chain.into_iter().collect::<Result<Vec<_>, _>>().map_err(oversize)?;
        chain.try_into().map_err(oversize)
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.signer.fmt(f)
    }
}

/// Why a certificate and a key do not make an issuing CA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum IssuerError {
    #[error("the issuing certificate is not an X.509 certificate")]
    UnreadableCertificate,
    #[error("the issuing key is not a PKCS#8 private key")]
    UnreadableKey,
    #[error("the issuing certificate is not a CA's")]
    NotACa,
    #[error("the issuing key does not belong to the issuing certificate")]
    KeyMismatch,
    #[error("the root certificate is not an X.509 certificate")]
    UnreadableRoot,
    #[error("the root did not sign the issuing certificate")]
    OtherRoot,
    #[error(
        "the issuing certificate is not valid now: it is valid from {not_before} to {not_after}"
    )]
    NotValid { not_before: OffsetDateTime, not_after: OffsetDateTime },
}

fn is_signed_by(certificate: &[u8], issuer: &X509Certificate<'_>) -> bool {
    parse_certificate(certificate).is_some_and(|certificate| {
        certificate.issuer().as_raw() == issuer.subject().as_raw()
            && certificate.verify_signature(Some(issuer.public_key())).is_ok()
    })
}

/// A signing key of any kind; `rcgen` has no implementation for boxes.
pub(super) struct Signer(Box<dyn SigningKey + Send + Sync>);

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}
