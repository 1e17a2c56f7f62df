//! Identity keys, and TPM2_Sign with them.

use anyhow::{Context, Result};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};

use super::area::IkKind;

/// An identity key in memory.
pub(crate) enum SigningKey {
    Ecc(EcdsaKeyPair),
    Rsa(RsaKeyPair),
}

impl SigningKey {
    pub(crate) fn from_pkcs8(kind: IkKind, der: &[u8]) -> Result<Self> {
        let ecc = |algorithm| EcdsaKeyPair::from_pkcs8(algorithm, der).map(Self::Ecc);
        let key = match kind {
            IkKind::P256 => ecc(&ECDSA_P256_SHA256_ASN1_SIGNING),
            IkKind::P384 => ecc(&ECDSA_P384_SHA384_ASN1_SIGNING),
            IkKind::Rsa2048 => RsaKeyPair::from_pkcs8(der).map(Self::Rsa),
        };
        key.context("not a private key of this kind")
    }

    /// Signs with the algorithm of the certificate request, in the form that X.509 has.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        let random = SystemRandom::new();
        match self {
            Self::Ecc(key) => Ok(key.sign(&random, message)?.as_ref().to_vec()),
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                Ok(signature)
            }
        }
    }
}
