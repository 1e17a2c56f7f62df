//! What a root is asked to certify: a request (PKCS #10, RFC 2986) for an issuing CA or for a service
//! CA, made on another machine.

use rand_core::CryptoRng;
use rcgen::{SigningKey, SubjectPublicKeyInfo};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use crate::Fault;
use crate::authority::Authority;
use crate::ik::is_signed_by;
use crate::key::{PublicKey, SoundKey, UnreadableKey, WeakKey};

/// A request that holds together: whoever has the private key asks for one of the two CAs that a
/// root certifies, and for nothing else. Does not establish who that is.
#[derive(Clone, Debug)]
pub struct CaRequest {
    kind: CaKind,
    common_name: String,
    key: SoundKey,
    sha256: [u8; 32],
}

/// Which CA it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaKind {
    /// It certifies devices, which are clients.
    Issuing,
    /// It certifies brokers, workers, operators and backends, which are servers and clients.
    Service,
}

impl CaRequest {
    /// Reads a request in DER, and checks its signature, its key, and that its extensions are those
    /// that `assay issuing csr` and `assay init --root` ask for.
    ///
    /// # Errors
    /// It is not like this.
    pub fn check(der: &[u8]) -> Result<Self, CaRequestError> {
        let Ok((&[], csr)) = X509CertificationRequest::from_der(der) else {
            return Err(CaRequestError::Unreadable);
        };
        let info = &csr.certification_request_info;
        let key = PublicKey::from_spki(info.subject_pki.raw).map_err(CaRequestError::Key)?;
        let key = SoundKey::new(key).map_err(CaRequestError::WeakKey)?;
        if !is_signed_by(&key, info.raw, &csr.signature_value.data) {
            return Err(CaRequestError::Signature);
        }
        let common_name = only_common_name(&info.subject).ok_or(CaRequestError::Name)?;
        let kind = kind_asked_for(&csr)?;
        Ok(Self { kind, common_name, key, sha256: Sha256::digest(der).into() })
    }

    /// Which CA it asks for.
    pub fn kind(&self) -> CaKind {
        self.kind
    }

    /// What that is to be called: printable, and at most [`MAX_COMMON_NAME`] characters.
    pub fn common_name(&self) -> &str {
        &self.common_name
    }

    /// Its key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// SHA-256 of the request.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
}

/// A request asks for one of these by the usages of its key; what the certificate says is the
/// root's to decide, and the same for all.
fn kind_asked_for(csr: &X509CertificationRequest<'_>) -> Result<CaKind, CaRequestError> {
    let (mut is_ca, mut signs, mut kind) = (false, false, None);
    let attributes = csr.certification_request_info.iter_attributes().count();
    let extensions: Vec<_> = csr.requested_extensions().into_iter().flatten().collect();
    // What nobody reads may ask for anything.
    if attributes != 1 || extensions.len() != 3 {
        return Err(CaRequestError::Extensions);
    }
    for extension in extensions {
        match extension {
            ParsedExtension::BasicConstraints(it) => {
                is_ca = it.ca && it.path_len_constraint == Some(0);
            }
            ParsedExtension::KeyUsage(it) => {
                signs = it.flags == KEY_CERT_SIGN | CRL_SIGN;
            }
            ParsedExtension::ExtendedKeyUsage(it) => {
                let others = it.any
                    || it.code_signing
                    || it.email_protection
                    || it.time_stamping
                    || it.ocsp_signing
                    || !it.other.is_empty();
                kind = match (it.client_auth, it.server_auth, others) {
                    (true, false, false) => Some(CaKind::Issuing),
                    (true, true, false) => Some(CaKind::Service),
                    _ => None,
                };
            }
            _ => return Err(CaRequestError::Extensions),
        }
    }
    kind.filter(|_| is_ca && signs).ok_or(CaRequestError::Extensions)
}

/// The common name, if the name has nothing else, and nothing that a terminal would obey.
fn only_common_name(name: &X509Name<'_>) -> Option<String> {
    let mut attributes = name.iter_attributes();
    let only = attributes.next().filter(|_| attributes.next().is_none())?;
    let common_name = name.iter_common_name().next().filter(|it| *it == only)?;
    let text = common_name.as_str().ok()?;
    let fits = (1..=MAX_COMMON_NAME).contains(&text.chars().count());
    (fits && assay_wire::printable(text, MAX_COMMON_NAME) == text).then(|| text.to_owned())
}

impl<K: SigningKey> Authority<K> {
    /// The certificate of the CA that a request asks for, in PEM.
    ///
    /// # Errors
    /// It cannot be signed.
    pub fn certify_request(
        &self,
        request: &CaRequest,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<String, Fault> {
        let unreadable = |error: rcgen::Error| Fault::Certificate {
            operation: "reading a request's key",
            reason: error.to_string(),
        };
        let key = SubjectPublicKeyInfo::from_der(&request.key.spki()).map_err(unreadable)?;
        match request.kind {
            CaKind::Issuing => self.issuing_for(&request.common_name, &key, now, rng),
            CaKind::Service => self.service_for(&request.common_name, &key, now, rng),
        }
    }
}

/// Why a request is not certified.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum CaRequestError {
    #[error("it is not a certification request (PKCS #10)")]
    Unreadable,
    #[error("its key cannot be certified: {0}")]
    Key(UnreadableKey),
    #[error("its key is weak: {0}")]
    WeakKey(WeakKey),
    #[error(
        "its key did not sign it (ECDSA on P-256 with SHA-256, on P-384 with SHA-384, or RSA PKCS \
         #1 v1.5 with SHA-256)"
    )]
    Signature,
    #[error("its name is not a common name alone, of 1 to {MAX_COMMON_NAME} printable characters")]
    Name,
    #[error(
        "it does not ask for what an issuing CA or a service CA is, and nothing else: \
         basicConstraints=CA:TRUE,pathlen:0, keyUsage=keyCertSign,cRLSign, and \
         extendedKeyUsage=clientAuth or clientAuth,serverAuth; make it by `assay issuing csr` or \
         `assay init --root`"
    )]
    Extensions,
}

/// The longest common name (RFC 5280, Appendix A, ub-common-name).
pub const MAX_COMMON_NAME: usize = 64;
/// As the parser counts the bits of a key usage: the first is the lowest.
const KEY_CERT_SIGN: u16 = 1 << 5;
const CRL_SIGN: u16 = 1 << 6;
