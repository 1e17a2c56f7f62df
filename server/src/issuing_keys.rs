//! Where the key of an issuing CA is: in a file, or in a token that a file names.

use anyhow::{Context, Result, bail, ensure};
use assay_ca_core::{Issuer, IssuerError, KeyAndCertificate};
use assay_pkcs11::{KeyKind, KeySelector, PublicKey, Tokens, Uri, parse_uris};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey as Parsed;
use zeroize::Zeroizing;

use crate::issuing_files::{Files, KEYS, URIS};
use crate::random::random_bytes;
use crate::rfc3339;

/// The key of an issuing CA, as its file has it.
pub(crate) enum KeptKey {
    /// PKCS #8 in PEM.
    Pem(Zeroizing<String>),
    /// The same key in one or more tokens. No file has their PINs.
    Token(Vec<Uri>),
}

impl KeptKey {
    /// Reads the file of this holder, e.g. `issuing`, if there is one.
    ///
    /// # Errors
    /// There are two, or it cannot be read.
    pub(crate) fn read(files: &Files, holder: &str) -> Result<Option<Self>> {
        let [pem, uris] = KEYS.map(|kind| files.read(&format!("{holder}{kind}")));
        Ok(match (pem?, uris?) {
            (None, None) => None,
            (Some(pem), None) => Some(Self::Pem(pem)),
            (None, Some(uris)) => {
                let uris = parse_uris(&uris).with_context(|| format!("{holder}{URIS}"))?;
                Some(Self::Token(uris))
            }
            (Some(_), Some(_)) => {
                bail!("{holder}.key and {holder}{URIS} are both there; remove one of them")
            }
        })
    }

    /// The name of its file.
    pub(crate) fn file(&self, holder: &str) -> String {
        match self {
            Self::Pem(_) => format!("{holder}.key"),
            Self::Token(_) => format!("{holder}{URIS}"),
        }
    }

    /// What is in the file.
    pub(crate) fn content(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Pem(pem) => pem.as_bytes().to_vec(),
            Self::Token(uris) => {
                uris.iter().map(|uri| format!("{uri}\n")).collect::<String>().into()
            }
        })
    }

    /// The issuing CA with this certificate, in PEM. Of a token's key, this establishes nothing: it
    /// is compared when it first signs.
    pub(crate) fn issuer(
        &self,
        certificate: &str,
        tokens: &mut Tokens,
    ) -> Result<Issuer, IssuerError> {
        match self {
            Self::Pem(pem) => Issuer::from_pem(certificate, pem),
            Self::Token(uris) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
                    .map_err(|_| IssuerError::UnreadableCertificate)?;
                let public = public_key(&certificate).ok_or(IssuerError::KeyMismatch)?;
                let key = tokens.key(uris, public);
                Ok(Issuer::new(certificate, Box::new(key))?.elsewhere())
            }
        }
    }

    /// The same, if it is the key of this certificate: a token is asked.
    ///
    /// # Errors
    /// It is not, or the token failed.
    pub(crate) fn checked_issuer(
        &self,
        certificate: &CertificateDer<'static>,
        tokens: &mut Tokens,
    ) -> Result<Issuer> {
        let certificate = crate::pem_of("CERTIFICATE", certificate);
        let issuer = self.issuer(&certificate, tokens)?;
        if let Self::Token(uris) = self {
            for uri in uris {
                let public = tokens.find(uri).with_context(|| format!("the key {uri}"))?;
                let der = CertificateDer::from_pem_slice(certificate.as_bytes())?;
                ensure!(public_key(&der) == Some(public), IssuerError::KeyMismatch);
            }
        }
        Ok(issuer)
    }
}

/// A token, and what the URI says besides: the key of a CA, or nothing, for one that is to
/// be made.
pub struct TokenPlace {
    /// Where it is.
    pub uri: Uri,
    /// Of which kind a new one is.
    pub kind: KeyKind,
}

impl TokenPlace {
    /// The key that is there, or a new one for a CA of this kind: where it is, and its public half.
    ///
    /// # Errors
    /// The token failed, or has no such key or no room.
    pub(crate) fn take(
        self,
        ca: &str,
        tokens: &mut Tokens,
        now: OffsetDateTime,
    ) -> Result<(Uri, PublicKey)> {
        let Self { uri, kind } = self;
        if uri.key().is_some() {
            let public = tokens.find(&uri).with_context(|| {
                format!("{uri}; to have a key made in the token, leave out object= and id=")
            })?;
            return Ok((uri, public));
        }
        let name = KeySelector {
            object: Some(format!("assay-{ca}-{}", rfc3339::seconds(now.unix_timestamp()))),
            id: Some(random_bytes::<16>().to_vec()),
        };
        let shown = uri.to_string();
        tokens.generate(uri, kind, name).with_context(|| format!("no key was made by {shown}"))
    }
}

/// A new issuing CA, before its files are written.
pub(crate) struct MadeIssuing {
    /// In PEM.
    pub(crate) certificate: String,
    pub(crate) kept: KeptKey,
    pub(crate) issuer: Issuer,
}

impl MadeIssuing {
    pub(crate) fn in_file(pair: &KeyAndCertificate) -> Result<Self> {
        let (certificate, key) = (pair.certificate.clone(), pair.key.clone());
        let issuer = Issuer::from_pem(&certificate, &key)?;
        Ok(Self { certificate, kept: KeptKey::Pem(key), issuer })
    }

    /// With a key in a token, which has signed once when this returns; `certify` makes the
    /// certificate for its public half.
    ///
    /// # Errors
    /// The token failed, or the certificate cannot be made.
    pub(crate) fn in_token(
        place: TokenPlace,
        now: OffsetDateTime,
        certify: impl FnOnce(&PublicKey) -> Result<String>,
    ) -> Result<Self> {
        let mut tokens = Tokens::default();
        let (uri, public) = place.take("issuing", &mut tokens, now)?;
        let certificate = certify(&public)?;
        let uris = vec![uri];
        let signed = tokens.key(&uris, public).sign_in(0, b"a key that was made");
        signed.with_context(|| format!("{}, which stays in the token", uris[0]))?;
        let kept = KeptKey::Token(uris);
        let issuer = kept.issuer(&certificate, &mut tokens)?;
        Ok(Self { certificate, kept, issuer })
    }
}

/// The key of a certificate, if it is of a kind that tokens are used for.
pub(crate) fn public_key(certificate: &[u8]) -> Option<PublicKey> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let spki = certificate.public_key();
    match spki.parsed().ok()? {
        Parsed::RSA(key) => PublicKey::rsa(key.modulus, key.exponent),
        Parsed::EC(point) => {
            let curve = spki.algorithm.parameters.as_ref()?.as_oid().ok()?.to_id_string();
            PublicKey::ec(&curve, point.data())
        }
        _ => None,
    }
}
