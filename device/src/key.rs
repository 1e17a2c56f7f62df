//! The identity key as CSRs and TLS handshakes use it: they ask for signatures over messages, the TPM signs digests.

use std::fmt;
use std::sync::Arc;

use assay_wire::DeviceId;
use ring::digest;
use ring::signature::{RSA_PSS_2048_8192_SHA256, UnparsedPublicKey};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, SignatureAlgorithm, SignatureScheme as TlsScheme};

use crate::error::Error;
use crate::tpm::{IkKind, PublicKey, SignatureScheme, TpmError, TpmThread};

/// An identity key in a TPM.
#[derive(Clone)]
pub(crate) struct IdentityKey {
    pub(crate) tpm: TpmThread,
    pub(crate) handle: u32,
    pub(crate) kind: IkKind,
    pub(crate) public: PublicKey,
}

impl IdentityKey {
    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Vec<u8>, TpmError> {
        let algorithm = match scheme {
            SignatureScheme::EcdsaSha384 => &digest::SHA384,
            _ => &digest::SHA256,
        };
        let digest = digest::digest(algorithm, message);
        let handle = self.handle;
        self.tpm.call("signing", move |tpm| tpm.sign(handle, scheme, digest.as_ref()))
    }

    /// A certificate request (RFC 2986, DER). Its only wish is the device id, as common name.
    pub(crate) fn certificate_request(&self, device_id: Option<&DeviceId>) -> Result<Vec<u8>, Error> {
        let mut request = rcgen::CertificateParams::default();
        request.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(device_id) = device_id {
            request.distinguished_name.push(rcgen::DnType::CommonName, device_id.as_str());
        }
        let key =
            CsrKey { key: self, subject_public_key: self.public.subject_public_key(), failure: Default::default() };
        match request.serialize_request(&key) {
            Ok(csr) => Ok(csr.der().to_vec()),
            Err(error) => Err(match key.failure.take() {
                Some(failure) => failure.into(),
                None => Error::Internal(format!("certificate request: {error}")),
            }),
        }
    }

    /// A TLS client configuration that trusts `roots` alone and authenticates with this key and its certificate.
    pub(crate) fn tls_config(
        &self,
        roots: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<ClientConfig, Error> {
        let key = TlsKey { schemes: self.tls_schemes()?, key: self.clone() };
        // TLS 1.3 knows no other RSA signature than PSS (RFC 8446 §4.2.3).
        let versions: &[_] = if key.schemes.iter().all(|&(scheme, _)| scheme == TlsScheme::RSA_PKCS1_SHA256) {
            &[&rustls::version::TLS12]
        } else {
            rustls::DEFAULT_VERSIONS
        };
        let certified = CertifiedKey::new(chain, Arc::new(key));
        certified.keys_match().map_err(tls_fault)?;
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(certified));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Ok(ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(tls_fault)?
            .with_root_certificates(roots)
            .with_client_cert_resolver(resolver))
    }

    fn tls_schemes(&self) -> Result<Vec<(TlsScheme, SignatureScheme)>, TpmError> {
        let pkcs1 = (TlsScheme::RSA_PKCS1_SHA256, SignatureScheme::RsaPkcs1Sha256);
        Ok(match self.kind {
            IkKind::P256 => vec![(TlsScheme::ECDSA_NISTP256_SHA256, SignatureScheme::EcdsaSha256)],
            IkKind::P384 => vec![(TlsScheme::ECDSA_NISTP384_SHA384, SignatureScheme::EcdsaSha384)],
            IkKind::Rsa2048 if self.pss_suits_tls()? => {
                vec![(TlsScheme::RSA_PSS_SHA256, SignatureScheme::RsaPssSha256), pkcs1]
            }
            IkKind::Rsa2048 => vec![pkcs1],
        })
    }

    /// Whether the TPM's RSAPSS salt is as long as the digest, which TLS demands (RFC 8446 §4.2.3). The TPM chooses: some
    /// chips take the longest that fits (TPM 2.0 Part 1, B.7), so one signature is made to see.
    fn pss_suits_tls(&self) -> Result<bool, TpmError> {
        let message = b"assay: RSAPSS salt length";
        let signature = self.sign(SignatureScheme::RsaPssSha256, message)?;
        Ok(is_tls_pss_signature(&self.public, message, &signature))
    }
}

fn is_tls_pss_signature(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.subject_public_key()).verify(message, signature).is_ok()
}

fn tls_fault(error: rustls::Error) -> Error {
    Error::Internal(format!("TLS: {error}"))
}

/// Hands rcgen the key, and keeps the TPM's error that rcgen's own has no room for.
struct CsrKey<'a> {
    key: &'a IdentityKey,
    subject_public_key: Vec<u8>,
    failure: std::cell::Cell<Option<TpmError>>,
}

impl rcgen::PublicKeyData for CsrKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.subject_public_key
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        match self.key.kind {
            IkKind::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            IkKind::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            IkKind::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        }
    }
}

impl rcgen::SigningKey for CsrKey<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let scheme = match self.key.kind {
            IkKind::P256 => SignatureScheme::EcdsaSha256,
            IkKind::P384 => SignatureScheme::EcdsaSha384,
            IkKind::Rsa2048 => SignatureScheme::RsaPkcs1Sha256,
        };
        self.key.sign(scheme, message).map_err(|failure| {
            self.failure.set(Some(failure));
            rcgen::Error::RemoteKeyError
        })
    }
}

/// The key for rustls, with the schemes it can be used with, best first.
struct TlsKey {
    key: IdentityKey,
    schemes: Vec<(TlsScheme, SignatureScheme)>,
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identity key of kind {} at {:#010x}", self.key.kind, self.key.handle)
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[TlsScheme]) -> Option<Box<dyn Signer>> {
        let &(tls_scheme, scheme) = self.schemes.iter().find(|(scheme, _)| offered.contains(scheme))?;
        Some(Box::new(TlsSigner { key: self.key.clone(), tls_scheme, scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.key.public.subject_public_key_info().into())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        match self.key.kind {
            IkKind::P256 | IkKind::P384 => SignatureAlgorithm::ECDSA,
            IkKind::Rsa2048 => SignatureAlgorithm::RSA,
        }
    }
}

struct TlsSigner {
    key: IdentityKey,
    tls_scheme: TlsScheme,
    scheme: SignatureScheme,
}

impl fmt::Debug for TlsSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:#010x}", self.tls_scheme, self.key.handle)
    }
}

impl Signer for TlsSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        self.key.sign(self.scheme, message).map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> TlsScheme {
        self.tls_scheme
    }
}
