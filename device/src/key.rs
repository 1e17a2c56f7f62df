//! The identity key for certificate requests and TLS handshakes. These need signatures of messages,
//! and the TPM signs digests.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_wire::DeviceId;
use ring::digest;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
};
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

    /// Signs bytes by the algorithm of this key's certificate requests.
    pub(crate) fn sign_statement(&self, message: &[u8]) -> Result<Vec<u8>, TpmError> {
        let scheme = match self.kind {
            IkKind::P256 => SignatureScheme::EcdsaSha256,
            IkKind::P384 => SignatureScheme::EcdsaSha384,
            IkKind::Rsa2048 => SignatureScheme::RsaPkcs1Sha256,
        };
        self.sign(scheme, message)
    }

    /// Signs a fixed text that nobody else uses, checks the signature, and returns how long the TPM
    /// took.
    pub(crate) fn test_signature(&self) -> Result<Duration, Error> {
        let algorithm: &'static dyn VerificationAlgorithm = match self.kind {
            IkKind::P256 => &ECDSA_P256_SHA256_ASN1,
            IkKind::P384 => &ECDSA_P384_SHA384_ASN1,
            IkKind::Rsa2048 => &RSA_PKCS1_2048_8192_SHA256,
        };
        let started = Instant::now();
        let signature = self.sign_statement(SALT_PROBE)?;
        let took = started.elapsed();
        let verified = UnparsedPublicKey::new(algorithm, self.public.subject_public_key())
            .verify(SALT_PROBE, &signature);
        verified.map_err(|_| {
            Error::Internal("the TPM's signature does not verify under its own key".into())
        })?;
        Ok(took)
    }

    /// A certificate request (RFC 2986, DER). It asks for the device id as common name, and for
    /// nothing else.
    pub(crate) fn certificate_request(
        &self,
        device_id: Option<&DeviceId>,
    ) -> Result<Vec<u8>, Error> {
        let mut request = rcgen::CertificateParams::default();
        request.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(device_id) = device_id {
            request.distinguished_name.push(rcgen::DnType::CommonName, device_id.as_str());
        }
        let key = CsrKey {
            key: self,
            subject_public_key: self.public.subject_public_key(),
            failure: Default::default(),
        };
        match request.serialize_request(&key) {
            Ok(csr) => Ok(csr.der().to_vec()),
            Err(error) => Err(match key.failure.take() {
                Some(failure) => failure.into(),
                None => Error::Internal(format!("certificate request: {error}")),
            }),
        }
    }

    /// A TLS client configuration that trusts `roots` alone and authenticates with this key and its
    /// certificate.
    pub(crate) fn tls_config(
        &self,
        roots: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<ClientConfig, Error> {
        let key = TlsKey { schemes: self.tls_schemes()?, key: self.clone() };
        // TLS 1.3 knows no other RSA signature than PSS (RFC 8446 §4.2.3).
        let versions: &[_] =
            if key.schemes.iter().all(|&(scheme, _)| scheme == TlsScheme::RSA_PKCS1_SHA256) {
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

    /// Whether the TPM's RSAPSS salt is as long as the digest, as TLS demands (RFC 8446 §4.2.3).
    /// The TPM chooses the length, and some chips take the longest that fits (TPM 2.0 Part 1, B.7).
    /// So the TPM makes one signature to find out.
    pub(crate) fn pss_suits_tls(&self) -> Result<bool, TpmError> {
        let signature = self.sign(SignatureScheme::RsaPssSha256, SALT_PROBE)?;
        Ok(is_tls_pss_signature(&self.public, SALT_PROBE, &signature))
    }
}

fn is_tls_pss_signature(key: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA256, key.subject_public_key())
        .verify(message, signature)
        .is_ok()
}

fn tls_fault(error: rustls::Error) -> Error {
    Error::Internal(format!("TLS: {error}"))
}

/// Gives rcgen the key, and keeps the TPM's error, because rcgen's own error has no field for it.
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
        self.key.sign_statement(message).map_err(|failure| {
            self.failure.set(Some(failure));
            rcgen::Error::RemoteKeyError
        })
    }
}

/// The key for rustls, with the signature schemes that it can use, best first.
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
        let &(tls_scheme, scheme) =
            self.schemes.iter().find(|(scheme, _)| offered.contains(scheme))?;
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
        self.key
            .sign(self.scheme, message)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    fn scheme(&self) -> TlsScheme {
        self.tls_scheme
    }
}

/// The text that is signed to find out the length of the salt, and whether the TPM signs at all.
const SALT_PROBE: &[u8] = b"assay: RSAPSS salt length";

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()
    }

    #[test]
    fn pss_signature_with_another_salt_length_than_the_digests_does_not_suit_tls() {
        let key = PublicKey::Rsa(bytes(MODULUS));
        assert!(is_tls_pss_signature(&key, SALT_PROBE, &bytes(SALT_OF_DIGEST_LENGTH)));
        assert!(!is_tls_pss_signature(&key, SALT_PROBE, &bytes(SALT_OF_MAXIMAL_LENGTH)));
    }

    // openssl genrsa 2048; openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt
    // rsa_pss_saltlen:digest (or max) -sign
    const MODULUS: &str = "\
        aa3264812f85fc841c2488f36318ebf84385ce1a79093548c4f8abecced8157fb3ca644bb74feb4ea69a4352d41e8ca0\
        06686e5e93d74a10fa9be6478237ba8677ed579267580e41c8fb594aefc8c278a4e30fdd87b153d3a9716e051896755e\
        5017ec6a67c8f1d61dc8fcebd5a73c4445e18248707b5acbaf9187913b0bf881eb2569b2017dd80352d09880eb8c8843\
        4a8bb65f74f69a8afe88e07dcc98f0461facf4862fefde2341498df63d436e729652f3ccd123a82a3d44818034818b52\
        8dab39f0aebe99b119fb142a69612f5fbf96ccd108191faf3b4c685505b2bc98e4549eada12fc954001e7703b5f28342\
        87505dc77c514dbfc3d90272a6becb65";
    const SALT_OF_DIGEST_LENGTH: &str = "\
        1790b4f82c6a88a769bf636f7fff77176efe4278f4658d7601697c0121f35fe15eeafe2d048855b8c83c5b9808713df0\
        09abbfb4e545eef28925813bf7efb5563a2bec5c0d99f55c81dc916bf0bd6694c46e1feb8054b5746337ec2b7973e345\
        977fd7edb08862fcbc7086be389aee682948826ab72f2d4b47e0247250a0d4644f3541b840abf454870bb768484f3833\
        eac42f55a22f65f9d7d4380ba30922907099cc49fd6e74101d7a33551f6ee51bf951736724c9c47447b1d7be64a60d1f\
        bf8bb4857317e7e1960970210e0106239a8bc852b2348e969003bf99ec5bb9c44b0c1d5d5df559342433fc852d228cee\
        93828700515644b775f310340e97b5e6";
    const SALT_OF_MAXIMAL_LENGTH: &str = "\
        11732d4430ebacd6d8fde198812b1c1685fa0ef744086af9d7c2369d5b47bdd7ddb7a9cc87a9fdb626b98c7837e32b35\
        9ee4ce54827f2d1d78a79a14d76dd0f668ac97df92963a4d69ab4ab9d11100487555d543a378995a611a8fd438633ba2\
        06dd8551b374ab944a0b5685237461aaa101f6d01663a813033bbd9e0b24c5e9b5461a42530f56281c735f3f9126129f\
        a4925d44a0746f8bc688cd49306d1bb252ccd926d2a1525f24ea2324e6f49680010f7baa13d31b8fc9901831327b7e76\
        cd3e5223d32d30872efe6654cd160a85f9e2c9c4cdf04dbc57b2c454b918d8a2f296cdd119e3f2106c6b671deb643d3a\
        118f91c2e12ec7745d37523f5d979114";
}
