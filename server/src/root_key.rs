//! A root's private key, where it is kept offline: in a file that a passphrase or shares open, in a
//! token, or, in the directory of a CA, in a file in clear.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::Authority;
use assay_pkcs11::{TokenKey, Tokens, Uri, parse_uris};
use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::age::{self, Decrypted, Encrypted, Identity, Passphrase};
use crate::issuing_files::URIS;
use crate::issuing_keys::public_key;
use crate::new_files::pem_of;
use crate::shares::{self, Share};

/// A root's key, ready to sign.
pub(crate) enum RootKey {
    /// In memory.
    Here(KeyPair),
    /// In a token.
    Token(TokenKey),
}

impl PublicKeyData for RootKey {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::Here(key) => key.der_bytes(),
            Self::Token(key) => key.der_bytes(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::Here(key) => PublicKeyData::algorithm(key),
            Self::Token(key) => PublicKeyData::algorithm(key),
        }
    }
}

impl SigningKey for RootKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match self {
            Self::Here(key) => key.sign(message),
            Self::Token(key) => key.sign(message),
        }
    }
}

/// What opens an encrypted key. Nobody is asked for a passphrase before it is needed.
pub struct Unlock<'a> {
    /// The shares that were brought.
    pub shares: Vec<Share>,
    /// Asks for the passphrase.
    pub passphrase: &'a mut dyn FnMut() -> Result<Passphrase>,
}

/// How a root's key is kept.
pub(crate) enum KeptRoot {
    /// PKCS #8 in PEM, in clear.
    Clear(Zeroizing<String>),
    /// The same, encrypted by age.
    Encrypted(Vec<u8>),
    /// In a token.
    Token(Vec<Uri>),
}

impl KeptRoot {
    /// What may follow the name of the root's files. There is one of them, or none.
    pub(crate) const KINDS: [&str; 3] = [".key", ENCRYPTED, URIS];

    /// Reads the key of the root whose files have this name, if it is in this directory.
    ///
    /// # Errors
    /// There is more than one, or it cannot be read.
    pub(crate) fn find(directory: &Path, name: &str) -> Result<Option<Self>> {
        let files = Self::KINDS.map(|kind| directory.join(format!("{name}{kind}")));
        let mut there = files.iter().filter(|file| file.exists());
        let Some(file) = there.next() else { return Ok(None) };
        if let Some(other) = there.next() {
            bail!("{} and {} are both there; remove one", file.display(), other.display());
        }
        Self::read(file).map(Some)
    }

    /// Reads a file with a root's key, of whatever kind it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let shown = file.display();
        let content =
            Zeroizing::new(fs::read(file).with_context(|| format!("cannot read {shown}"))?);
        if content.starts_with(age::VERSION.as_bytes()) {
            return Ok(Self::Encrypted(content.to_vec()));
        }
        let text = std::str::from_utf8(&content).with_context(|| format!("{shown} is not text"))?;
        if text.starts_with("pkcs11:") {
            return Ok(Self::Token(parse_uris(text).with_context(|| format!("{shown}"))?));
        }
        Ok(Self::Clear(Zeroizing::new(text.to_owned())))
    }

    /// Where it is, for people.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Clear(_) => "in a file, in clear".to_owned(),
            Self::Encrypted(file) if age::has_passphrase(file) => {
                "in a file that a passphrase opens".to_owned()
            }
            Self::Encrypted(_) => "in a file that shares open".to_owned(),
            Self::Token(uris) => format!("in the token {}", uris[0].token()),
        }
    }

    /// Opens it. Does not establish that it is the key of this certificate; a token is asked for
    /// the key of it.
    ///
    /// # Errors
    /// What was brought does not open it.
    pub(crate) fn open(
        &self,
        certificate: &CertificateDer<'_>,
        unlock: &mut Unlock<'_>,
    ) -> Result<RootKey> {
        match self {
            Self::Token(uris) => {
                let public =
                    public_key(certificate).context("the root has a key of another kind")?;
                Ok(RootKey::Token(Tokens::default().key(uris, public)))
            }
            Self::Clear(_) | Self::Encrypted(_) => {
                let pem = self.pem(unlock)?;
                Ok(RootKey::Here(KeyPair::from_pem(&pem).context("the root's key is not PKCS #8")?))
            }
        }
    }

    /// The key in PEM.
    ///
    /// # Errors
    /// What was brought does not open it, or it is in a token.
    pub(crate) fn pem(&self, unlock: &mut Unlock<'_>) -> Result<Zeroizing<String>> {
        match self {
            Self::Clear(pem) => Ok(pem.clone()),
            Self::Encrypted(file) if age::has_passphrase(file) => {
                ensure!(unlock.shares.is_empty(), "a passphrase opens this key, and not shares");
                decrypted(file, &(unlock.passphrase)()?)
            }
            Self::Encrypted(file) => {
                let identity = shares::join(&unlock.shares)?;
                decrypted(file, &identity).context("these are shares of another key")
            }
            Self::Token(_) => bail!("the key is in a token, which does not give it away"),
        }
    }
}

fn decrypted(file: &[u8], key: &impl age::Opens) -> Result<Zeroizing<String>> {
    let mut pem = Zeroizing::new(String::new());
    // Longer than a key of any kind.
    let mut limited = Decrypted::new(file, std::slice::from_ref(key))?.take(MAX_KEY);
    limited.read_to_string(&mut pem)?;
    Ok(pem)
}

/// Encrypts a key in PEM, so that this passphrase opens it.
pub(crate) fn with_passphrase(pem: &str, passphrase: &Passphrase) -> Result<Vec<u8>> {
    let mut to = Encrypted::with_passphrase(Vec::new(), passphrase)?;
    to.write_all(pem.as_bytes())?;
    Ok(to.finish()?)
}

/// Encrypts a key in PEM, so that this private key of age opens it.
pub(crate) fn with_identity(pem: &str, identity: &Identity) -> Result<Vec<u8>> {
    let mut to = Encrypted::new(Vec::new(), &[identity.recipient()?])?;
    to.write_all(pem.as_bytes())?;
    Ok(to.finish()?)
}

/// The root of this certificate and key, if they belong together.
///
/// # Errors
/// They do not, or the certificate cannot be read.
pub(crate) fn authority(
    certificate: &CertificateDer<'_>,
    key: RootKey,
) -> Result<Authority<RootKey>> {
    let own = x509_parser::parse_x509_certificate(certificate);
    let (_, own) = own.context("the root's certificate cannot be read")?;
    ensure!(
        own.public_key().raw == key.subject_public_key_info(),
        "the key is not that of the root's certificate"
    );
    Ok(Authority::of(&pem_of("CERTIFICATE", certificate), key)?)
}

/// Rolls of a die with six sides.
pub struct Dice(Zeroizing<Vec<u8>>);

impl Dice {
    /// The fewest rolls: as much as 128 bits.
    pub const MIN: usize = 50;

    /// Reads digits from 1 to 6; spaces and ends of lines do not count.
    ///
    /// # Errors
    /// There is anything else, or they are too few.
    pub fn read(text: &str) -> Result<Self> {
        let rolls: Vec<u8> = text.bytes().filter(|it| !it.is_ascii_whitespace()).collect();
        let rolls = Zeroizing::new(rolls);
        ensure!(
            rolls.iter().all(|it| (b'1'..=b'6').contains(it)),
            "rolls of dice are digits from 1 to 6, and nothing else"
        );
        ensure!(
            rolls.len() >= Self::MIN,
            "{} rolls of dice are too few: {} are as much as 128 bits",
            rolls.len(),
            Self::MIN
        );
        Ok(Self(rolls))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// A P-256 key of the operating system's random bytes and of these rolls (HKDF, RFC 5869): who
    /// knows one of the two still knows nothing of the key.
    pub(crate) fn key(&self, random: &[u8; 64]) -> Result<KeyPair> {
        let both = Zeroizing::new([&random[..], &self.0].concat());
        let prk = Salt::new(HKDF_SHA256, b"assay root key").extract(&both);
        for attempt in 0..u8::MAX {
            let mut scalar = Zeroizing::new([0; 32]);
            let label = [&[attempt][..]];
            let output = prk.expand(&label, HKDF_SHA256).context("cannot derive a key")?;
            output.fill(&mut *scalar).context("cannot derive a key")?;
            // One in 2^32 is not below the order of the curve (FIPS 186-5, A.2.2).
            let Ok(key) = PrivateKey::from_private_key(&ECDH_P256, &*scalar) else { continue };
            let der: Pkcs8V1Der<'_> = key.as_der().context("cannot write a key")?;
            return Ok(KeyPair::try_from(&PrivatePkcs8KeyDer::from(der.as_ref()))?);
        }
        bail!("no key is below the order of the curve")
    }
}

/// What ends the name of a file with an encrypted key.
pub(crate) const ENCRYPTED: &str = ".key.age";
/// In bytes. An RSA key of 4096 bits has some 3300 in PEM.
const MAX_KEY: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_of_dice_depends_on_every_roll_and_on_the_random_bytes_and_signs() {
        let rolls = "1234 5612 3456\n".repeat(5);
        let key = |rolls: &str, random: [u8; 64]| Dice::read(rolls).unwrap().key(&random).unwrap();
        let one = key(&rolls, [7; 64]);
        assert_eq!(one.serialize_der(), key(&rolls, [7; 64]).serialize_der());
        let mut others = Vec::new();
        for at in rolls.char_indices().filter(|(_, c)| c.is_ascii_digit()).map(|(at, _)| at) {
            let mut other = rolls.clone().into_bytes();
            other[at] = if other[at] == b'1' { b'2' } else { b'1' };
            others.push(key(&String::from_utf8(other).unwrap(), [7; 64]).serialize_der());
        }
        let mut random = [7; 64];
        random[63] = 8;
        others.push(key(&rolls, random).serialize_der());
        assert!(others.len() == 61 && others.iter().all(|it| *it != one.serialize_der()));
        let signed = one.sign(b"message").unwrap();
        let public = aws_lc_rs::signature::UnparsedPublicKey::new(
            &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
            one.der_bytes(),
        );
        public.verify(b"message", &signed).unwrap();
    }

    #[test]
    fn rolls_are_of_dice_and_enough() {
        assert!(Dice::read(&"6".repeat(50)).is_ok());
        for text in [&"6".repeat(49), &"7".repeat(60), &("6".repeat(60) + "x"), ""] {
            assert!(Dice::read(text).is_err(), "{text}");
        }
    }
}
