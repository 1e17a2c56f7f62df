//! An issuing CA: its certificate and its key.

use std::fmt;

use assay_wire::CertificateList;
use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::X509Certificate;

use crate::profile::Profile;
use crate::x509::{Name, attribute_of, parse_certificate};
use crate::{Fault, oid, rfc3339};

/// A key that signs certificates: in a file, or elsewhere. One that is elsewhere may be slow, and
/// may fail with [`rcgen::Error::RemoteKeyError`] for a while.
pub type IssuingKey = Box<dyn SigningKey + Send + Sync>;

/// The issuing CA's certificate, and the key that signs device certificates.
pub struct Issuer {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) signer: rcgen::Issuer<'static, Signer>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// Its name, in DER.
    pub(super) subject: Vec<u8>,
    pub(super) key_id: Vec<u8>,
    /// What comes after its certificate in a chain.
    above: Option<assay_wire::CertificateDer>,
    pub(super) is_elsewhere: bool,
}

impl Issuer {
    /// Joins an issuing certificate and its key.
    pub fn new(certificate: CertificateDer<'static>, key: IssuingKey) -> Result<Self, IssuerError> {
        let parsed = parse_certificate(&certificate).ok_or(IssuerError::UnreadableCertificate)?;
        if !parsed.is_ca() {
            return Err(IssuerError::NotACa);
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(IssuerError::KeyMismatch);
        }
        let (not_before, not_after) = (parsed.validity().not_before, parsed.validity().not_after);
        // What rcgen writes into certificates and lists, to name the key that signed them.
        let derived = || Sha256::digest(parsed.public_key().raw)[..DERIVED_KEY_ID].to_vec();
        let key_id = subject_key_id(&parsed).map_or_else(derived, <[u8]>::to_vec);
        if key_id.is_empty() || key_id.len() > MAX_KEY_ID {
            return Err(IssuerError::KeyId { length: key_id.len() });
        }
        Ok(Self {
            not_before: not_before.to_datetime(),
            not_after: not_after.to_datetime(),
            subject: parsed.subject().as_raw().to_vec(),
            key_id,
            above: None,
            is_elsewhere: false,
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

    /// The same issuer, whose key is elsewhere: a signature may take long.
    #[must_use]
    pub fn elsewhere(self) -> Self {
        Self { is_elsewhere: true, ..self }
    }

    /// The same issuer, if one of these roots certified it: the root's key signed the issuing
    /// certificate, which names the root as its issuer (RFC 5280 §6.1.3 (a)(1) and (4)).
    ///
    /// # Errors
    /// None of them did.
    pub fn under(self, roots: &[CertificateDer<'_>]) -> Result<Self, IssuerError> {
        for root in roots {
            let root = parse_certificate(root).ok_or(IssuerError::UnreadableRoot)?;
            if is_signed_by(&self.certificate, &root) {
                return Ok(self);
            }
        }
        Err(IssuerError::OtherRoot)
    }

    /// The same issuer, whose chains have this certificate after its own: the one by which an older
    /// root vouches for its root. So those verify them who trust the older root alone.
    ///
    /// # Errors
    /// The certificate is too long for a message.
    pub fn below(self, above: Option<CertificateDer<'_>>) -> Result<Self, IssuerError> {
        let fitting = |above: CertificateDer<'_>| above.to_vec().try_into();
        let above = above.map(fitting).transpose();
        Ok(Self { above: above.map_err(|_| IssuerError::UnreadableRoot)?, ..self })
    }

    /// The same issuer, if its certificate is valid at this time (RFC 5280 §6.1.3 (a)(2)).
    ///
    /// # Errors
    /// It is not.
    pub fn valid_at(self, time: OffsetDateTime) -> Result<Self, IssuerError> {
        let (not_before, not_after) = (self.not_before, self.not_after);
        if (not_before..=not_after).contains(&time) {
            return Ok(self);
        }
        Err(IssuerError::NotValid { time, not_before, not_after })
    }

    /// The same issuer, if an operator may bring it as one that is used from this time on: it signs
    /// certificates and lists, of leaves and of clients alone (RFC 5280 §4.2.1.3, §4.2.1.9,
    /// §4.2.1.12), names its key (§4.2.1.2), and lasts for as long as a certificate.
    ///
    /// # Errors
    /// It is not like this.
    pub fn fit_to_issue(
        self,
        lifetime: Duration,
        from: OffsetDateTime,
    ) -> Result<Self, IssuerError> {
        let parsed = self.signs_leaves()?;
        // Without the extension it may sign for any use.
        let usage = parsed.extended_key_usage().ok().flatten().map(|it| it.value);
        if !usage.is_some_and(|it| it.client_auth && !it.server_auth && !it.any) {
            return Err(IssuerError::ExtendedKeyUsage);
        }
        let needed = from + lifetime;
        if self.not_after < needed {
            return Err(IssuerError::EndsTooSoon { not_after: self.not_after, needed });
        }
        Ok(self)
    }

    /// Its certificate, if it signs certificates and lists, and no further CA, and names its key.
    fn signs_leaves(&self) -> Result<X509Certificate<'_>, IssuerError> {
        let parsed =
            parse_certificate(&self.certificate).ok_or(IssuerError::UnreadableCertificate)?;
        if parsed.subject().as_raw() == parsed.issuer().as_raw() {
            return Err(IssuerError::NameOfRoot);
        }
        let usage = parsed.key_usage().ok().flatten().map(|it| it.value);
        if !usage.is_some_and(|it| it.key_cert_sign() && it.crl_sign()) {
            return Err(IssuerError::KeyUsage);
        }
        let constraints = parsed.basic_constraints().ok().flatten().map(|it| it.value);
        if constraints.and_then(|it| it.path_len_constraint) != Some(0) {
            return Err(IssuerError::PathLength);
        }
        if subject_key_id(&parsed).is_none() {
            return Err(IssuerError::NoKeyId);
        }
        Ok(parsed)
    }

    /// The same issuer, if it may be brought as a service CA: it signs certificates and lists, of
    /// leaves alone, of servers and of clients, and names its key.
    ///
    /// # Errors
    /// It is not like this.
    pub fn fit_to_serve(self) -> Result<Self, IssuerError> {
        let parsed = self.signs_leaves()?;
        // Without the extension it may sign for any use.
        let usage = parsed.extended_key_usage().ok().flatten().map(|it| it.value);
        if !usage.is_some_and(|it| it.client_auth && it.server_auth && !it.any) {
            return Err(IssuerError::NotOfServers);
        }
        Ok(self)
    }

    /// Its name, for people.
    pub fn name(&self) -> String {
        Name::read(&self.subject).map_or_else(String::new, |name| name.to_string())
    }

    /// Whether another CA has the same name.
    pub fn has_the_name_of(&self, other: &CertificateDer<'_>) -> bool {
        parse_certificate(other).is_some_and(|other| other.subject().as_raw() == self.subject)
    }

    /// Its common name, if it has one.
    pub fn common_name(&self) -> Option<String> {
        attribute_of(&self.subject, oid::COMMON_NAME)
    }

    /// The common name of any CA's certificate, if it has one.
    pub fn common_name_in(certificate: &CertificateDer<'_>) -> Option<String> {
        let certificate = parse_certificate(certificate)?;
        attribute_of(certificate.subject().as_raw(), oid::COMMON_NAME)
    }

    /// The identifier of its key, by which certificates and lists name it (RFC 5280 §4.2.1.1): 1 to
    /// [`MAX_KEY_ID`] bytes.
    pub fn key_id(&self) -> &[u8] {
        &self.key_id
    }

    /// Its certificate in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub(crate) fn signer(&self) -> &rcgen::Issuer<'static, Signer> {
        &self.signer
    }

    /// Until when its certificate is valid.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Until when a certificate of this issuer is valid that is issued now (RFC 5280 §4.1.2.5).
    pub(crate) fn end_of_validity(&self, profile: &Profile, now: OffsetDateTime) -> OffsetDateTime {
        let now = now.replace_nanosecond(0).expect("0 is a nanosecond");
        (now + profile.validity()).min(self.not_after)
    }

    /// Whether this issuer signed a certificate. Only then do the two make a valid
    /// [chain](Self::chain). The signature is verified only if the certificate names this issuer
    /// and this key.
    pub fn has_signed(&self, leaf: &[u8]) -> bool {
        let is_named = |leaf: &X509Certificate<'_>| {
            leaf.issuer().as_raw() == self.subject
                && authority_key_id(leaf).is_none_or(|key_id| key_id == self.key_id)
        };
        parse_certificate(leaf).is_some_and(|leaf| {
            is_named(&leaf)
                && parse_certificate(&self.certificate)
                    .is_some_and(|own| leaf.verify_signature(Some(own.public_key())).is_ok())
        })
    }

    /// A device's certificate, the issuing one, and what comes after it: its chain without the root.
    pub fn chain(&self, leaf: &[u8]) -> Result<CertificateList<1>, Fault> {
        let oversize = |limit| Fault::Oversize { field: "a certificate", limit };
        let chain = [leaf, &self.certificate].map(assay_wire::CertificateDer::try_from);
        let chain = chain.into_iter().collect::<Result<Vec<_>, _>>().map_err(oversize)?;
        let chain: Vec<_> = chain.into_iter().chain(self.above.clone()).collect();
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
        "the issuing certificate is not valid at {}: it is valid from {} to {}",
        rfc3339(time),
        rfc3339(not_before),
        rfc3339(not_after)
    )]
    NotValid { time: OffsetDateTime, not_before: OffsetDateTime, not_after: OffsetDateTime },
    #[error("the issuing certificate names itself as its issuer: it needs a name of its own")]
    NameOfRoot,
    #[error(
        "the issuing certificate may not sign certificates and revocation lists: it needs \
         keyUsage=critical,keyCertSign,cRLSign"
    )]
    KeyUsage,
    #[error(
        "the issuing certificate may certify further CAs: it needs \
         basicConstraints=critical,CA:TRUE,pathlen:0"
    )]
    PathLength,
    #[error(
        "the issuing certificate is not for clients alone, so that what it signs could pass for a \
         server: it needs extendedKeyUsage=clientAuth"
    )]
    ExtendedKeyUsage,
    #[error(
        "the service CA's certificate is not for servers and clients: it needs \
         extendedKeyUsage=clientAuth,serverAuth"
    )]
    NotOfServers,
    #[error("the issuing certificate does not name its key: it needs subjectKeyIdentifier=hash")]
    NoKeyId,
    #[error(
        "the issuing certificate ends at {}, which would cut the first device certificates short: \
         it has to last until {} at least",
        rfc3339(not_after),
        rfc3339(needed)
    )]
    EndsTooSoon { not_after: OffsetDateTime, needed: OffsetDateTime },
    #[error("the issuing certificate's key identifier has {length} bytes, not 1 to {MAX_KEY_ID}")]
    KeyId { length: usize },
}

/// The longest key identifier. Most have 20 bytes; this leaves room for SHA-256.
pub const MAX_KEY_ID: usize = 32;
/// The length of a key identifier that is derived from a key (RFC 7093 §2, method 1).
const DERIVED_KEY_ID: usize = 20;

fn subject_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(key_id) => Some(key_id.0),
        _ => None,
    })
}

fn authority_key_id<'a>(certificate: &X509Certificate<'a>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    })
}

fn is_signed_by(certificate: &[u8], issuer: &X509Certificate<'_>) -> bool {
    parse_certificate(certificate).is_some_and(|certificate| {
        certificate.issuer().as_raw() == issuer.subject().as_raw()
            && certificate.verify_signature(Some(issuer.public_key())).is_ok()
    })
}

/// A signing key of any kind; `rcgen` has no implementation for boxes.
pub(crate) struct Signer(IssuingKey);

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
