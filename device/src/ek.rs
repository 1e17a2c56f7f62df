//! Which EK to show, and the certificates that vouch for it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use assay_wire::{
    Bytes, CertificateList, EkId, EkIds, EkPublic, Limit, MAX_CERTIFICATES, MAX_SHOWN, printable,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey as CertificateKey;

use crate::clock::{rfc3339, since_1970};
use crate::error::Error;
use crate::issuers;
use crate::pem;
use crate::provision::{Progress, Step};
use crate::tpm::{
    EkKind, HierarchyPasswords, PublicArea, Tcti, Tpm2, TpmError, TpmThread, id_of_key,
    is_of_default_template,
};

/// Which EK to show to a CA, to which another EK is another device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkChoice {
    /// The first with a certificate.
    Auto,
    /// The one of this kind.
    Kind(EkKind),
}

impl FromStr for EkChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == AUTO { Ok(Self::Auto) } else { text.parse().map(Self::Kind) }
    }
}

impl fmt::Display for EkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad(AUTO),
            Self::Kind(kind) => kind.fmt(f),
        }
    }
}

const AUTO: &str = "auto";

/// An EK of this TPM, as an operator needs to know it.
#[derive(Clone, Debug)]
pub struct EkDescription {
    /// Its kind.
    pub kind: EkKind,
    /// Whether [`EkChoice::Auto`] takes this one.
    pub is_default: bool,
    /// The id under which an operator enrols it: SHA-256 of its SubjectPublicKeyInfo, in
    /// hexadecimal digits.
    pub ek_id: String,
    /// The device id that follows from it, if no enrolment names one.
    pub device_id: String,
    /// SubjectPublicKeyInfo in PEM.
    pub public_key: String,
    /// The certificate in the TPM's NV memory, if there is one.
    pub certificate: Option<EkCertificate>,
}

impl EkDescription {
    /// What `assay enroll add` wants, in PEM: the certificate, if it is for this very key, else the
    /// public key.
    pub fn enrolment(&self) -> &str {
        match &self.certificate {
            Some(certificate) if certificate.is_for_this_key => &certificate.pem,
            _ => &self.public_key,
        }
    }
}

/// An EK certificate. It was not verified.
#[derive(Clone, Debug)]
pub struct EkCertificate {
    /// Whom it is for; often empty (TCG EK Credential Profile 2.5, 3.2.5).
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Until when it is valid, e.g. `2027-02-20T20:08:40Z`.
    pub not_after: String,
    /// Whether it has the public key of this EK.
    pub is_for_this_key: bool,
    /// How many certificates of issuers are in NV memory beside it.
    pub issuers: usize,
    /// The certificate in PEM.
    pub pem: String,
}

/// The EKs of a TPM: of `choice`, or every one that the TPM can have of a kind that manufacturers
/// certify.
///
/// Making an RSA key takes a chip seconds, so `progress` is told each EK.
pub fn endorsement_keys(
    tcti: Tcti,
    passwords: HierarchyPasswords,
    timeout: Duration,
    choice: Option<EkChoice>,
    progress: Progress<'_>,
) -> Result<Vec<EkDescription>, Error> {
    let tpm = TpmThread::start(Tpm2::new(tcti, passwords), timeout);
    let mut step = Step { started: Instant::now(), progress };
    let mut found = Vec::new();
    match choice {
        Some(EkChoice::Auto) => found.push(EndorsementKey::find(&tpm, None, &[])?),
        Some(EkChoice::Kind(kind)) => found.push(EndorsementKey::find(&tpm, Some(kind), &[])?),
        None => {
            for kind in EkKind::CERTIFIED {
                match EndorsementKey::find(&tpm, Some(kind), &[]) {
                    Err(Error::Tpm(TpmError::Unsupported(_))) => continue,
                    ek => found.push(ek?),
                }
                step.done(&format!("EK {kind} read"));
            }
        }
    }
    let default = match choice {
        Some(EkChoice::Auto) => found.first(),
        _ => found.iter().find(|ek| !ek.certificates.is_empty()).or_else(|| found.first()),
    };
    let default = default.filter(|_| !matches!(choice, Some(EkChoice::Kind(_)))).map(|ek| ek.kind);
    Ok(found.iter().map(|ek| ek.describe(default == Some(ek.kind))).collect())
}

/// The EK that the CA gets to see.
pub(crate) struct EndorsementKey {
    pub(crate) kind: EkKind,
    pub(crate) public: PublicArea,
    /// Leaf first; may be empty.
    pub(crate) certificates: Vec<Vec<u8>>,
    pub(crate) certificate_source: &'static str,
    /// Other EKs of the TPM, for the CA to say that it knows one of them.
    pub(crate) others: Vec<EkId>,
}

impl EndorsementKey {
    /// Takes the kind wanted; else the one that the certificate in `files` is for; else the first
    /// with a certificate in NV memory; else P-256 or RSA-2048, without a certificate.
    pub(crate) fn find(
        tpm: &TpmThread,
        wanted: Option<EkKind>,
        files: &[CertificateDer<'_>],
    ) -> Result<Self, Error> {
        if let Some(leaf) = files.first() {
            if wanted == Some(EkKind::LegacyDps) {
                return Err(Error::Usage(format!(
                    "no manufacturer certifies an EK of kind {}; leave the certificate out",
                    EkKind::LegacyDps
                )));
            }
            let kind = wanted.map_or_else(|| kind_of_certificate(leaf), Ok)?;
            let public = load(tpm, kind)?.ok_or_else(|| TpmError::Unsupported(kind.to_string()))?;
            let certificates = files.iter().map(|certificate| certificate.to_vec()).collect();
            let certificates = issuers::that_fit(certificates, MAX_CERTIFICATES);
            return Ok(Self {
                kind,
                public,
                certificates,
                certificate_source: "with certificate from file",
                others: Vec::new(),
            });
        }
        let kinds = wanted.as_ref().map_or(&EkKind::CERTIFIED[..], std::slice::from_ref);
        let mut without = "without certificate";
        for &kind in kinds {
            let certificates = match tpm
                .call("reading the EK certificate", move |tpm| tpm.ek_certificates(kind))
            {
                Ok(certificates) if certificates.is_empty() => continue,
                // An enrolled EK needs none.
                Err(TpmError::Unreadable { .. }) => {
                    without = "without the certificate that the TPM does not let be read \
                               (--ek-certificate gives it in a file)";
                    continue;
                }
                certificates => issuers::that_fit(certificates?, MAX_CERTIFICATES),
            };
            if let Some(public) = load(tpm, kind)? {
                let certificate_source = "with certificate from NV memory";
                return Ok(Self {
                    kind,
                    public,
                    certificates,
                    certificate_source,
                    others: Vec::new(),
                });
            }
        }
        let kinds =
            wanted.as_ref().map_or(&[EkKind::P256, EkKind::Rsa2048][..], std::slice::from_ref);
        for &kind in kinds {
            if let Some(public) = load(tpm, kind)? {
                let (certificates, others) = Default::default();
                return Ok(Self {
                    kind,
                    public,
                    certificates,
                    certificate_source: without,
                    others,
                });
            }
        }
        let kinds: Vec<_> = kinds.iter().map(EkKind::to_string).collect();
        Err(TpmError::Unsupported(kinds.join(" or ")).into())
    }

    /// Has the CA told the other EKs of the TPM, if it could take this one for its certificate
    /// alone.
    ///
    /// An RSA-3072 EK without a certificate is left out: it is rarely enrolled, and some chips take
    /// minutes to make it.
    pub(crate) fn name_others(&mut self, tpm: &TpmThread) {
        if self.certificates.is_empty() {
            return;
        }
        for kind in EkKind::CERTIFIED.into_iter().filter(|kind| *kind != self.kind) {
            // What is wrong with an EK that is not used must not keep the device from using
            // another.
            let certificates =
                tpm.call("reading the EK certificate", move |tpm| tpm.ek_certificates(kind));
            let certificates = certificates.unwrap_or_default();
            let certified =
                certificates.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
            let id = match certified {
                Some((_, certificate)) => Some(EkId::from(id_of_key(certificate.public_key().raw))),
                None if kind != EkKind::Rsa3072 => {
                    load(tpm, kind).ok().flatten().map(|public| public.key.id().into())
                }
                None => None,
            };
            self.others.extend(id);
        }
    }

    /// The [others](Self::name_others) as a request has them.
    pub(crate) fn other_ids(&self) -> Result<Option<EkIds>, Limit> {
        if self.others.is_empty() { Ok(None) } else { self.others.clone().try_into().map(Some) }
    }

    /// The public area as a request has it: in brief if the certificate says all but the template.
    pub(crate) fn public_area(&self) -> Result<EkPublic, Limit> {
        let leaf = self.certificates.first().and_then(|leaf| X509Certificate::from_der(leaf).ok());
        let is_in_certificate = leaf.is_some_and(|(_, leaf)| {
            leaf.public_key().raw == self.public.key.subject_public_key_info()
        });
        let is_told = is_in_certificate && is_of_default_template(self.kind, &self.public);
        match self.kind.certificate_index().filter(|_| is_told) {
            Some(index) => Ok(EkPublic::OfCertificate(index)),
            None => self.public.bytes.clone().try_into(),
        }
    }

    /// The certificates as a request has them.
    pub(crate) fn certificate_list(&self) -> Result<CertificateList<0>, Limit> {
        let certificates: Result<Vec<_>, _> =
            self.certificates.iter().cloned().map(Bytes::try_from).collect();
        certificates.and_then(CertificateList::try_from)
    }

    pub(crate) fn describe(&self, is_default: bool) -> EkDescription {
        let public_key = self.public.key.subject_public_key_info();
        let certificate = self.certificates.first().and_then(|leaf| {
            let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
            Some(EkCertificate {
                subject: printable(&certificate.subject().to_string(), MAX_SHOWN),
                issuer: printable(&certificate.issuer().to_string(), MAX_SHOWN),
                not_after: rfc3339(since_1970(certificate.validity().not_after)),
                is_for_this_key: certificate.public_key().raw == public_key,
                issuers: self.certificates.len() - 1,
                pem: pem::certificates(&[leaf.clone().into()]),
            })
        });
        EkDescription {
            kind: self.kind,
            is_default,
            ek_id: self.id().to_string(),
            device_id: device_id(&self.public),
            public_key: pem::block("PUBLIC KEY", &public_key),
            certificate,
        }
    }

    /// The id under which an operator enrols this EK.
    pub(crate) fn id(&self) -> EkId {
        self.public.key.id().into()
    }
}

/// As a CA names an EK that no enrolment names: lower-case base32 of the SHA-256 of its
/// TPM2B_PUBLIC, as Azure's tools name it.
fn device_id(public: &PublicArea) -> String {
    // A public area is no longer than MAX_PUBLIC_AREA.
    let size = (public.bytes.len() as u16).to_be_bytes();
    let digest = ring::digest::digest(&ring::digest::SHA256, &[&size, &public.bytes[..]].concat());
    data_encoding::BASE32_NOPAD.encode(digest.as_ref()).to_ascii_lowercase()
}

fn load(tpm: &TpmThread, kind: EkKind) -> Result<Option<PublicArea>, TpmError> {
    tpm.call("making the EK", move |tpm| tpm.endorsement_key(kind))
}

fn kind_of_certificate(certificate: &[u8]) -> Result<EkKind, Error> {
    let unusable = |what: String| {
        Error::Usage(format!("the EK certificate given {what}; say the kind of EK with --ek"))
    };
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| unusable(format!("cannot be read ({error})")))?;
    match certificate.public_key().parsed() {
        Ok(CertificateKey::EC(point)) if point.key_size() == 256 => Ok(EkKind::P256),
        Ok(CertificateKey::EC(point)) if point.key_size() == 384 => Ok(EkKind::P384),
        Ok(CertificateKey::RSA(key)) if key.key_size() == 2048 => Ok(EkKind::Rsa2048),
        Ok(CertificateKey::RSA(key)) if key.key_size() == 3072 => Ok(EkKind::Rsa3072),
        _ => Err(unusable("is for a kind of key that no EK template has".into())),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::tpm::PublicKey;

    /// An EK with this key, shown with these certificates.
    fn shown(kind: EkKind, key: &KeyPair, certificates: Vec<Vec<u8>>) -> EkPublic {
        let point = key.public_key_raw();
        let key =
            PublicKey::P256(point[1..33].try_into().unwrap(), point[33..].try_into().unwrap());
        let public = PublicArea { bytes: AREA.to_vec(), key };
        EndorsementKey { kind, public, certificates, certificate_source: "", others: Vec::new() }
            .public_area()
            .unwrap()
    }

    fn certificate_for(key: &KeyPair) -> Vec<u8> {
        CertificateParams::default().self_signed(key).unwrap().der().to_vec()
    }

    const AREA: &[u8] = b"area";

    #[test]
    fn ek_is_shown_in_brief_only_beside_its_own_certificate() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let (own, foreign) = (certificate_for(&key), certificate_for(&other));
        let in_full = EkPublic::try_from(AREA.to_vec()).unwrap();
        let brief = EkPublic::OfCertificate(0x01C0_000A);
        assert_eq!(shown(EkKind::P256, &key, vec![own.clone(), foreign.clone()]), brief);
        for certificates in [vec![], vec![foreign.clone(), own.clone()], vec![vec![0x30, 0]]] {
            assert_eq!(shown(EkKind::P256, &key, certificates), in_full);
        }
        assert_eq!(
            shown(EkKind::LegacyDps, &key, vec![own]),
            in_full,
            "no certificate is for such an EK"
        );
    }
}
