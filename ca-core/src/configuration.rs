//! Signs the operator's documents for devices.

use assay_wire::{Bytes, CertificateList, Configuration, MAX_SIGNED_CONFIGURATION};
use assay_wire::{CertificateDer as Der, SignedConfiguration};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use rustls_pki_types::CertificateDer;

use crate::Fault;
use crate::key::PublicKey;
use crate::rejection::fitting;

/// A worker's key and certificates. The issuing key does not sign documents: its certificate is for
/// certificates and revocation lists alone (RFC 5280 §4.2.1.3).
#[derive(Debug)]
pub struct ConfigurationSigner {
    key: EcdsaKeyPair,
    chain: CertificateList<1>,
}

impl ConfigurationSigner {
    /// `chain` is the worker's certificate, then its issuers; `pkcs8` is its P-256 key in DER.
    ///
    /// Whether the chain leads to the root that devices pin is not checked here: they check it.
    ///
    /// # Errors
    /// It is another kind of key, the certificate is for another one, or the chain is too long.
    pub fn new(chain: &[CertificateDer<'_>], pkcs8: &[u8]) -> Result<Self, Fault> {
        let unusable = |_| Fault::Crypto("reading a worker's P-256 key");
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8);
        let key = key.map_err(unusable)?;
        let certified = chain.first().and_then(|leaf| PublicKey::from_certificate(leaf).ok());
        if certified.map(|key| key.subject_public_key()).as_deref()
            != Some(key.public_key().as_ref())
        {
            return Err(Fault::Crypto("finding a worker's key in its certificate"));
        }
        let chain =
            chain.iter().map(|certificate| fitting("a worker's certificate", certificate.to_vec()));
        let chain = chain.collect::<Result<Vec<Der>, _>>()?.try_into();
        let chain =
            chain.map_err(|limit| Fault::Oversize { field: "a worker's certificates", limit })?;
        Ok(Self { key, chain })
    }

    /// Signs a document for one device, in the form of a reply (RFC 9052 §4.4).
    ///
    /// # Errors
    /// The cryptographic library failed, or the worker's certificates are too long.
    pub fn sign(
        &self,
        configuration: &Configuration,
    ) -> Result<Bytes<MAX_SIGNED_CONFIGURATION>, Fault> {
        let payload = configuration.encode();
        let signed = SignedConfiguration::signed(&payload);
        let signature = self.key.sign(&SystemRandom::new(), &signed);
        let signature = signature.map_err(|_| Fault::Crypto("signing a configuration"))?;
        let signature =
            signature.as_ref().try_into().map_err(|_| Fault::Crypto("signing a configuration"))?;
        let signed = SignedConfiguration { chain: self.chain.clone(), payload, signature };
        fitting("the signed configuration", signed.encode())
    }
}
