//! The identity key: a key that some TPM made and keeps, and a CSR signed by it.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{
    self, ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::der::{element, tag};
use crate::ek::evidence::Evidence;
use crate::key::{Curve, NO_UNUSED_BITS, PublicKey};
use crate::tpm::template::IkArea;
use crate::{Rejection, oid};

/// An identity key on template, and proof that its holder signs with it.
///
/// If a TPM holds an object with this key's Name, then that object never leaves it. Does not
/// establish that the TPM of the EK holds one: the challenge does that.
#[derive(Clone, Debug)]
pub struct BoundKey {
    pub(crate) area: IkArea,
}

impl BoundKey {
    /// Checks the IK of `evidence`: its template, its key, and that the CSR is for this key and
    /// signed by it.
    ///
    /// Ignores whatever else the CSR asks for: the [profile](crate::Profile) decides.
    pub fn verify(evidence: &Evidence) -> Result<Self, Rejection> {
        let area = IkArea::recognise(&evidence.ik_area).map_err(Rejection::of_ik)?;
        let Ok((&[], csr)) = X509CertificationRequest::from_der(&evidence.csr) else {
            return Err(invalid("it is not a PKCS#10 request"));
        };
        let info = &csr.certification_request_info;
        if info.subject_pki.raw != area.key().spki() {
            return Err(Rejection::CsrKeyMismatch);
        }
        let (oid, parameters) = match area.key() {
            PublicKey::Ecc { curve: Curve::P256, .. } => (oid::ECDSA_WITH_SHA256, vec![]),
            PublicKey::Ecc { curve: Curve::P384, .. } => (oid::ECDSA_WITH_SHA384, vec![]),
            PublicKey::Rsa { .. } => (oid::SHA256_WITH_RSA, element(tag::NULL, &[])),
        };
        let found = &csr.signature_algorithm.algorithm;
        if found.as_bytes() != oid {
            return Err(invalid(&format!(
                "its signature algorithm {found} is not the one of {}",
                area.template()
            )));
        }
        // The parser is lenient about the bytes that the signature does not cover.
        let signature = &csr.signature_value.data;
        let algorithm_identifier =
            element(tag::SEQUENCE, &[&element(tag::OID, &[oid]), &parameters]);
        let bit_string = element(tag::BIT_STRING, &[&[NO_UNUSED_BITS], signature]);
        if evidence.csr != element(tag::SEQUENCE, &[info.raw, &algorithm_identifier, &bit_string]) {
            return Err(invalid("it is not in DER"));
        }
        if !is_signed_by(area.key(), info.raw, signature) {
            return Err(Rejection::CsrSignatureInvalid);
        }
        Ok(Self { area })
    }

    /// Its kind.
    pub fn kind(&self) -> IkKind {
        match self.area.key() {
            PublicKey::Ecc { curve: Curve::P256, .. } => IkKind::P256,
            PublicKey::Ecc { curve: Curve::P384, .. } => IkKind::P384,
            // There is one template for RSA.
            PublicKey::Rsa { .. } => IkKind::Rsa2048,
        }
    }

    /// The IK as a SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> Vec<u8> {
        self.area.key().spki()
    }

    /// SHA-256 of [`spki`](Self::spki): names the IK on record.
    pub fn ik_id(&self) -> [u8; 32] {
        Sha256::digest(self.spki()).into()
    }
}

/// A kind of identity key, as devices and operators name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IkKind {
    /// `p-256`
    P256,
    /// `p-384`
    P384,
    /// `rsa-2048`
    Rsa2048,
}

impl IkKind {
    /// Every kind for which there is a template.
    pub const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa2048 => "rsa-2048",
        }
    }
}

impl fmt::Display for IkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for IkKind {
    type Err = UnknownIkKind;

    fn from_str(name: &str) -> Result<Self, UnknownIkKind> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or(UnknownIkKind)
    }
}

/// The text is not the name of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected p-256, p-384 or rsa-2048")]
pub struct UnknownIkKind;

/// Whether an IK signed a message, with the one algorithm of its kind: ECDSA on P-256 with SHA-256,
/// ECDSA on P-384 with SHA-384, or RSASSA-PKCS1-v1_5 with SHA-256.
pub(crate) fn is_signed_by(ik: &PublicKey, message: &[u8], signature: &[u8]) -> bool {
    let algorithm: &'static dyn VerificationAlgorithm = match ik {
        PublicKey::Ecc { curve: Curve::P256, .. } => &ECDSA_P256_SHA256_ASN1,
        PublicKey::Ecc { curve: Curve::P384, .. } => &ECDSA_P384_SHA384_ASN1,
        PublicKey::Rsa { .. } => &RSA_PKCS1_2048_8192_SHA256,
    };
    let key = signature::UnparsedPublicKey::new(algorithm, ik.subject_public_key());
    key.verify(message, signature).is_ok()
}

fn invalid(reason: &str) -> Rejection {
    Rejection::CsrInvalid(reason.to_owned())
}
