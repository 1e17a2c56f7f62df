//! The EKs of a TPM and their certificates, as an operator needs to know them.

use std::time::Duration;

use assay_device_core::{Action, EkChoice, Event, Failure, ShownEk, find_ek, rfc3339};
use assay_wire::{MAX_SHOWN, printable};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::Error;
use crate::operations::Operations;
use crate::pem;
use crate::progress::{Progress, Steps};
use crate::times::since_1970;
use crate::tpm::{EkKind, HierarchyPasswords, PublicArea, Tcti, Tpm2, TpmError, TpmThread};

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
    /// The device id that follows from the EK, if no enrolment names one.
    pub device_id: String,
    /// SubjectPublicKeyInfo in PEM.
    pub public_key: String,
    /// The certificate in the TPM's NV memory, if there is one.
    pub certificate: Option<EkCertificate>,
}

impl EkDescription {
    /// What `assay enroll add` needs, in PEM: the certificate, if it is for this very key; else the
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

/// The EKs of a TPM: the EK of `choice`, or, without a choice, all that the TPM can have of the
/// kinds that manufacturers certify.
///
/// A chip takes seconds to make an RSA key, so `progress` hears of each EK.
pub fn endorsement_keys(
    tcti: Tcti,
    passwords: HierarchyPasswords,
    timeout: Duration,
    choice: Option<EkChoice>,
    progress: Progress<'_>,
) -> Result<Vec<EkDescription>, Error> {
    let tpm = TpmThread::start(Tpm2::new(tcti, passwords), timeout);
    let mut steps = Steps::start(progress);
    let mut found = Vec::new();
    match choice {
        Some(EkChoice::Auto) => found.push(FoundEk::find(&tpm, None)?),
        Some(EkChoice::Kind(kind)) => found.push(FoundEk::find(&tpm, Some(kind))?),
        None => {
            for kind in EkKind::CERTIFIED {
                match FoundEk::find(&tpm, Some(kind)) {
                    Err(Error::Tpm(TpmError::Unsupported(_))) => continue,
                    ek => found.push(ek?),
                }
                steps.done(&format!("EK {kind} read"));
            }
        }
    }
    let default = match choice {
        Some(EkChoice::Auto) => found.first(),
        Some(EkChoice::Kind(_)) => None,
        None => found.iter().find(|ek| ek.has_certificate()).or_else(|| found.first()),
    };
    let default = default.map(|ek| ek.shown.kind);
    Ok(found.iter().map(|ek| ek.describe(default == Some(ek.shown.kind))).collect())
}

/// An EK that the TPM has.
pub(crate) struct FoundEk {
    pub(crate) shown: ShownEk,
    public: PublicArea,
}

impl FoundEk {
    /// Looks for the EK of this kind, or, without a kind, for the EK that a device shows by
    /// default.
    pub(crate) fn find(tpm: &TpmThread, kind: Option<EkKind>) -> Result<Self, Error> {
        let mut operations = Operations::new(tpm);
        let mut machine = find_ek(kind, Duration::ZERO);
        while let Some(action) = machine.poll_action() {
            let Action::Tpm(operation) = action else {
                return Err(Error::Internal("an EK is looked for in the TPM alone".into()));
            };
            machine.handle(Duration::ZERO, Event::Tpm(operations.run(operation)));
        }
        let shown = machine.into_result().map_err(|failure| match failure {
            Failure::Unsupported(keys) => TpmError::Unsupported(keys).into(),
            failure => {
                operations.take_error().unwrap_or_else(|| Error::Internal(failure.to_string()))
            }
        })?;
        match operations.ek(shown.kind).cloned() {
            Some(public) => Ok(Self { shown, public }),
            None => Err(Error::Internal("an EK was found and not made".into())),
        }
    }

    fn has_certificate(&self) -> bool {
        !self.shown.certificates.chain.is_empty()
    }

    pub(crate) fn describe(&self, is_default: bool) -> EkDescription {
        let public_key = self.public.key.subject_public_key_info();
        let chain = &self.shown.certificates.chain;
        let certificate = chain.first().and_then(|leaf| {
            let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
            Some(EkCertificate {
                subject: printable(&certificate.subject().to_string(), MAX_SHOWN),
                issuer: printable(&certificate.issuer().to_string(), MAX_SHOWN),
                not_after: rfc3339(since_1970(certificate.validity().not_after)),
                is_for_this_key: certificate.public_key().raw == public_key,
                issuers: chain.len() - 1,
                pem: pem::certificates(&[leaf.clone().into()]),
            })
        });
        EkDescription {
            kind: self.shown.kind,
            is_default,
            ek_id: self.shown.key.id.to_string(),
            device_id: device_id(&self.public),
            public_key: pem::block("PUBLIC KEY", &public_key),
            certificate,
        }
    }
}

/// The device id that a CA gives to an EK if no enrolment names one: lower-case base32 of the
/// SHA-256 of its TPM2B_PUBLIC, as in Azure's tools.
fn device_id(public: &PublicArea) -> String {
    // A public area is no longer than MAX_PUBLIC_AREA.
    let size = (public.bytes.len() as u16).to_be_bytes();
    let digest = ring::digest::digest(&ring::digest::SHA256, &[&size, &public.bytes[..]].concat());
    data_encoding::BASE32_NOPAD.encode(digest.as_ref()).to_ascii_lowercase()
}
