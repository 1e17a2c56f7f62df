//! Why an EK is believed to be in a genuine TPM: its certificate, or the operator's enrolment list.

use std::fmt;
use std::str::FromStr;

use assay_wire::{DeviceId, EkId};
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use crate::admission::Enrolment;
use crate::anchors::TrustAnchors;
use crate::evidence::EkEvidence;
use crate::hardware::HardwareIdentity;
use crate::key::PublicKey;
use crate::tpm::template::EkArea;
use crate::{Rejection, oid};

/// What makes an EK trusted. Certificates carry it as a policy, so that relying parties can tell.
///
/// Its text reads back as it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
pub enum Assurance {
    /// The EK's certificate leads to a TPM vendor the operator trusts.
    #[n(1)]
    VendorCertificate,
    /// The operator put the EK on the enrolment list.
    #[n(2)]
    EnrolmentList,
}

impl fmt::Display for Assurance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VendorCertificate => "vendor-certificate",
            Self::EnrolmentList => "enrolment-list",
        })
    }
}

impl FromStr for Assurance {
    type Err = UnknownAssurance;

    fn from_str(text: &str) -> Result<Self, UnknownAssurance> {
        let all = [Self::VendorCertificate, Self::EnrolmentList];
        all.into_iter().find(|assurance| assurance.to_string() == text).ok_or(UnknownAssurance)
    }
}

/// A text names no assurance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither vendor-certificate nor enrolment-list")]
pub struct UnknownAssurance;

/// An EK that is sound, on template, and trusted to be in a TPM.
///
/// That the device at hand has this TPM is not established: anybody can send a public key.
#[derive(Clone, Debug)]
pub struct TrustedEk {
    pub(crate) area: EkArea,
    ek_id: EkId,
    pub(crate) hardware: HardwareIdentity,
    pub(crate) assurance: Assurance,
    pub(crate) derived_device_id: DeviceId,
}

impl TrustedEk {
    /// Checks the EK of `evidence`: its template, its key, its certificate.
    ///
    /// A vendor's certificate counts for more than an enrolment, so an enrolled EK whose certificate leads to a
    /// trusted root has [`Assurance::VendorCertificate`]. Without an enrolment, the certificate must.
    /// A certificate for another key is refused even if the EK is enrolled, unless the enrolment says that Azure's SDKs made
    /// the EK: then it never has a certificate of its own, but the TPM has one for another key, and that counts for nothing.
    pub fn verify(
        evidence: &EkEvidence,
        anchors: &TrustAnchors,
        enrolment: Option<&Enrolment>,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let area = EkArea::recognise(&evidence.area).map_err(Rejection::of_ek)?;
        let is_legacy = enrolment.is_some_and(|enrolment| enrolment.legacy_dps_ek);
        let by_certificate = match &evidence.certificates[..] {
            [] => Err(Rejection::EkNotEnrolled { ek: evidence.ek_id() }),
            [leaf, issuers @ ..] => {
                let certificate = EkCertificate::parse(leaf)?;
                match certificate.check_key(&area) {
                    Err(mismatch) if !is_legacy => return Err(mismatch),
                    matching => matching,
                }
                .and_then(|()| certificate.check_use())
                .and_then(|tpm| {
                    check_path(leaf, issuers, anchors, now)?;
                    Ok(certificate.hardware_identity(&tpm))
                })
            }
        };
        let (hardware, assurance) = match (by_certificate, enrolment) {
            (Ok(hardware), _) => (hardware, Assurance::VendorCertificate),
            (Err(_), Some(_)) => (HardwareIdentity::of_key(area.key()), Assurance::EnrolmentList),
            (Err(rejection), None) => return Err(rejection),
        };
        Ok(Self { area, ek_id: evidence.ek_id(), hardware, assurance, derived_device_id: evidence.derived_device_id() })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.ek_id
    }

    /// The device id due to an EK that no enrolment names.
    pub fn derived_device_id(&self) -> &DeviceId {
        &self.derived_device_id
    }

    /// Name of the template the EK follows.
    pub fn template(&self) -> &'static str {
        self.area.template()
    }

    /// Why the EK is trusted.
    pub fn assurance(&self) -> Assurance {
        self.assurance
    }
}

/// The TPM that an EK certificate is for (TCG EK Credential Profile 2.5, 3.1.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmModel {
    /// The vendor, as `id:` and four bytes in hexadecimal.
    pub manufacturer: String,
    /// The part.
    pub model: String,
    /// Its firmware version, as `id:` and hexadecimal.
    pub version: String,
}

/// An EK certificate, parsed.
pub(crate) struct EkCertificate<'a> {
    der: &'a [u8],
    parsed: X509Certificate<'a>,
    key: PublicKey,
}

impl<'a> EkCertificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, Rejection> {
        let parsed = parse_certificate(der).ok_or_else(|| invalid("it is not an X.509 certificate"))?;
        let key = PublicKey::from_parsed(parsed.public_key())
            .map_err(|reason| Rejection::EkCertificateInvalid(format!("its key cannot be read: {reason}")))?;
        Ok(Self { der, parsed, key })
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }

    pub(crate) fn x509(&self) -> &X509Certificate<'a> {
        &self.parsed
    }

    fn check_key(&self, area: &EkArea) -> Result<(), Rejection> {
        if self.key == *area.key() {
            return Ok(());
        }
        let (certificate, ek) = (self.key.ek_id(), area.key().ek_id());
        if area.is_for_azure_sdks() && self.key.has_the_shape_of(area.key()) {
            return Err(Rejection::EkOfAzureSdk { certificate, area: ek });
        }
        Err(Rejection::EkCertificateMismatch { certificate, area: ek })
    }

    /// What path building does not check: that this is a certificate for an EK, and of which TPM.
    fn check_use(&self) -> Result<TpmModel, Rejection> {
        let usage = self.parsed.extended_key_usage().map_err(|_| invalid("its extended key usage is malformed"))?;
        let usage = usage.ok_or_else(|| invalid("it has no extended key usage"))?;
        if !usage.value.other.iter().any(|usage| usage.as_bytes() == oid::EK_CERTIFICATE) {
            return Err(invalid("its extended key usage lacks tcg-kp-EKCertificate (2.23.133.8.1)"));
        }
        self.tpm_model().ok_or_else(|| {
            invalid("its subject alternative name lacks the TPM's manufacturer, model or version (2.23.133.2.1 to .3)")
        })
    }

    pub(crate) fn tpm_model(&self) -> Option<TpmModel> {
        let names = self.parsed.subject_alternative_name().ok()??;
        names.value.general_names.iter().find_map(|name| {
            let GeneralName::DirectoryName(name) = name else {
                return None;
            };
            let attribute = |oid: &[u8]| {
                let found = name.iter_attributes().find(|attribute| attribute.attr_type().as_bytes() == oid)?;
                found.as_str().ok().map(str::to_owned)
            };
            Some(TpmModel {
                manufacturer: attribute(oid::TPM_MANUFACTURER)?,
                model: attribute(oid::TPM_MODEL)?,
                version: attribute(oid::TPM_VERSION)?,
            })
        })
    }

    fn hardware_identity(&self, tpm: &TpmModel) -> HardwareIdentity {
        let authority_key = self.parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(identifier) => Some(identifier.key_identifier.as_ref()?.0),
            _ => None,
        });
        HardwareIdentity::of_certificate(
            &tpm.manufacturer,
            authority_key.unwrap_or_default(),
            self.parsed.raw_serial(),
            self.der,
        )
    }
}

pub(crate) fn parse_certificate(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok((&[], certificate)) => Some(certificate),
        _ => None,
    }
}

fn invalid(reason: &str) -> Rejection {
    Rejection::EkCertificateInvalid(reason.to_owned())
}

fn check_path(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    anchors: &TrustAnchors,
    now: OffsetDateTime,
) -> Result<(), Rejection> {
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.unix_timestamp().max(0).unsigned_abs()));
    anchors.check_path(leaf, issuers, time).map_err(|error| match error {
        webpki::Error::CertExpired { not_after, .. } => {
            Rejection::EkCertificateExpired { not_after: show_time(not_after), now }
        }
        webpki::Error::CertNotValidYet { not_before, .. } => {
            Rejection::EkCertificateNotYetValid { not_before: show_time(not_before), now }
        }
        webpki::Error::BadDer
        | webpki::Error::BadDerTime
        | webpki::Error::CaUsedAsEndEntity
        | webpki::Error::EmptyEkuExtension
        | webpki::Error::ExtensionValueInvalid
        | webpki::Error::InvalidCertValidity
        | webpki::Error::MalformedExtensions
        | webpki::Error::RequiredEkuNotFoundContext(_)
        | webpki::Error::TrailingData(_)
        | webpki::Error::UnsupportedCertVersion
        | webpki::Error::UnsupportedCriticalExtension => Rejection::EkCertificateInvalid(error.to_string()),
        // Every other failure is one of finding or trusting an issuer.
        other => {
            let issuer = parse_certificate(leaf).map(|leaf| leaf.issuer().to_string()).unwrap_or_default();
            Rejection::EkCertificateUntrusted { issuer, reason: other.to_string() }
        }
    })
}

fn show_time(time: UnixTime) -> String {
    i64::try_from(time.as_secs())
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .map_or_else(|| format!("{} s after 1970", time.as_secs()), |time| time.to_string())
}
