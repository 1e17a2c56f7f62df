//! The private half of a key that others encrypt seeds for: an EK or a parent.

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::encoding::{
    AsBigEndian, AsDer, EcPublicKeyUncompressedBin, Pkcs8V1Der, PublicKeyX509Der,
};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepPrivateDecryptingKey,
    PrivateDecryptingKey,
};
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};
use x509_parser::public_key::PublicKey;

use super::area::{EkKind, ParentKind, unique_modulus, unique_point};
use super::hash::Hash;
use super::take_sized;

/// The kind of a key, independent of its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    P256,
    P384,
    Rsa2048,
    Rsa3072,
}

impl From<EkKind> for KeyKind {
    fn from(kind: EkKind) -> Self {
        match kind {
            EkKind::P256 => Self::P256,
            EkKind::P384 => Self::P384,
            EkKind::Rsa2048 => Self::Rsa2048,
            EkKind::Rsa3072 => Self::Rsa3072,
        }
    }
}

impl From<ParentKind> for KeyKind {
    fn from(kind: ParentKind) -> Self {
        match kind {
            ParentKind::P256 => Self::P256,
            ParentKind::Rsa2048 => Self::Rsa2048,
        }
    }
}

/// A decryption key in memory.
pub(crate) struct StorageKey {
    private: Private,
    /// `unique` of its public area.
    unique: Vec<u8>,
    spki: Vec<u8>,
}

enum Private {
    Ecc { key: PrivateKey, curve: &'static agreement::Algorithm },
    Rsa(OaepPrivateDecryptingKey),
}

impl StorageKey {
    /// A fresh key in PKCS #8; RSA takes a tenth of a second and more.
    pub(crate) fn generate(kind: KeyKind) -> Result<Vec<u8>> {
        let rsa = |size| -> Result<Pkcs8V1Der<'static>, Unspecified> {
            PrivateDecryptingKey::generate(size)?.as_der()
        };
        let ecc = |curve| -> Result<Pkcs8V1Der<'static>, Unspecified> {
            PrivateKey::generate(curve)?.as_der()
        };
        let der = match kind {
            KeyKind::P256 => ecc(&agreement::ECDH_P256),
            KeyKind::P384 => ecc(&agreement::ECDH_P384),
            KeyKind::Rsa2048 => rsa(KeySize::Rsa2048),
            KeyKind::Rsa3072 => rsa(KeySize::Rsa3072),
        };
        Ok(der.context("AWS-LC makes no key")?.as_ref().to_vec())
    }

    pub(crate) fn from_pkcs8(kind: KeyKind, der: &[u8]) -> Result<Self> {
        match kind {
            KeyKind::P256 => Self::ecc(&agreement::ECDH_P256, der),
            KeyKind::P384 => Self::ecc(&agreement::ECDH_P384, der),
            KeyKind::Rsa2048 | KeyKind::Rsa3072 => Self::rsa(der),
        }
    }

    fn ecc(curve: &'static agreement::Algorithm, der: &[u8]) -> Result<Self> {
        let key = PrivateKey::from_private_key_der(curve, der)
            .context("not a private key of this curve")?;
        let public = key.compute_public_key()?;
        let point: EcPublicKeyUncompressedBin<'_> = public.as_be_bytes()?;
        let spki: PublicKeyX509Der<'_> = public.as_der()?;
        let (unique, spki) = (unique_point(point.as_ref()), spki.as_ref().to_vec());
        Ok(Self { private: Private::Ecc { key, curve }, unique, spki })
    }

    fn rsa(der: &[u8]) -> Result<Self> {
        let key = PrivateDecryptingKey::from_pkcs8(der).context("not an RSA private key")?;
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der()?;
        let spki = spki.as_ref().to_vec();
        let unique = unique_modulus(&modulus(&spki)?);
        let key = OaepPrivateDecryptingKey::new(key)?;
        // AWS-LC derives blinding and Montgomery values when a key is first used, which costs as
        // much as the use. A device uses its key once, while others are measured, so the key is
        // used here first. The input is no ciphertext, so an error is expected.
        _ = key.decrypt(
            &OAEP_SHA256_MGF1SHA256,
            &vec![2; key.key_size_bytes()],
            &mut vec![0; key.min_output_size()],
            None,
        );
        Ok(Self { private: Private::Rsa(key), unique, spki })
    }

    /// `unique` of its public area.
    pub(crate) fn unique(&self) -> &[u8] {
        &self.unique
    }

    /// Its SubjectPublicKeyInfo.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The seed that was encrypted for this key, whose area has nameAlg `hash` (TPM 2.0 Part 1,
    /// B.10.3, B.10.4, C.6.1).
    pub(crate) fn seed(&self, hash: Hash, label: &str, encrypted: &[u8]) -> Result<Vec<u8>> {
        match &self.private {
            Private::Rsa(key) => {
                let oaep = match hash {
                    Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
                    Hash::Sha384 => &OAEP_SHA384_MGF1SHA384,
                };
                let label = [label.as_bytes(), &[0]].concat();
                let mut seed = vec![0; key.min_output_size()];
                let seed = key
                    .decrypt(oaep, encrypted, &mut seed, Some(&label))
                    .context("OAEP does not open")?;
                ensure!(seed.len() == hash.size(), "the seed has {} bytes", seed.len());
                Ok(seed.to_vec())
            }
            Private::Ecc { key, curve } => {
                let (x, rest) = take_sized(encrypted)?;
                let (y, rest) = take_sized(rest)?;
                let (own_x, _) = take_sized(&self.unique)?;
                if !rest.is_empty() || x.len() != own_x.len() || y.len() != own_x.len() {
                    bail!("the encrypted seed is no point of this curve");
                }
                let peer = UnparsedPublicKey::new(curve, [&[4], x, y].concat());
                agree(key, peer, Unspecified, |z| Ok(hash.kdfe(z, label, x, own_x)))
                    .context("the encrypted seed is no point of this curve")
            }
        }
    }
}

/// The modulus in a SubjectPublicKeyInfo.
pub(crate) fn modulus(spki: &[u8]) -> Result<Vec<u8>> {
    let (_, parsed) = SubjectPublicKeyInfo::from_der(spki).context("not a SubjectPublicKeyInfo")?;
    match parsed.parsed() {
        Ok(PublicKey::RSA(key)) => {
            Ok(key.modulus.strip_prefix(&[0]).unwrap_or(key.modulus).to_vec())
        }
        _ => bail!("not an RSA key"),
    }
}
