//! Why the CA believes that an EK is in a genuine TPM: its certificate, or the operator's enrolment
//! list.

use std::fmt;

use assay_wire::{DeviceId, EkId};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::ek::anchors::{Allowances, TrustAnchors, VendorPath};
use crate::ek::assurance::Assurance;
use crate::ek::evidence::EkEvidence;
use crate::ek::facts::EkFacts;
use crate::ek::hardware::HardwareIdentity;
use crate::ek::model::TpmModel;
use crate::key::{PublicKey, SoundKey};
use crate::records::Enrolment;
use crate::tpm::template::EkArea;
use crate::x509::{AltName, Certificate, EkUsage, attribute_of};
use crate::{Rejection, oid};

/// An EK that is sound, on template, and trusted to be in a TPM.
///
/// Does not establish that the sender has this TPM: anybody can send a public key.
#[derive(Clone, Debug)]
pub struct TrustedEk {
    pub(crate) area: EkArea,
    ek_id: EkId,
    pub(crate) hardware: HardwareIdentity,
    facts: Option<EkFacts>,
    pub(crate) assurance: Assurance,
    derived_device_id: DeviceId,
    requested_device_id: Option<DeviceId>,
}

impl TrustedEk {
    /// Checks the EK of `evidence`: its template, its key, its certificate.
    ///
    /// A vendor's certificate counts for more than an enrolment, so an enrolled EK whose
    /// certificate leads to a trusted root has [`Assurance::VendorCertificate`]. Without an
    /// enrolment, the certificate must lead there. A certificate for another key is refused even if
    /// the EK is enrolled, except if the enrolment says that Azure's SDKs made the EK. Such an EK
    /// never has a certificate of its own; the TPM has a certificate for another key, and that
    /// counts for nothing.
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
                match certificate.of(&area) {
                    Err(mismatch) if !is_legacy => return Err(mismatch),
                    matching => matching,
                }
                .and_then(|certificate| certificate.trust(issuers, anchors, now))
            }
        };
        let (hardware, facts, assurance) = match (by_certificate, enrolment) {
            (Ok(vouched), _) => {
                let facts = vouched.facts();
                (vouched.hardware, Some(facts), Assurance::VendorCertificate)
            }
            (Err(_), Some(_)) => {
                let hardware = HardwareIdentity::of_key(area.key());
                (hardware, None, Assurance::EnrolmentList)
            }
            (Err(rejection), None) => return Err(rejection),
        };
        Ok(Self {
            area,
            ek_id: evidence.ek_id(),
            hardware,
            facts,
            assurance,
            derived_device_id: evidence.derived_device_id(),
            requested_device_id: evidence.requested_device_id().cloned(),
        })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.ek_id
    }

    /// The device id that is due to an EK if no enrolment names another one.
    pub fn derived_device_id(&self) -> &DeviceId {
        &self.derived_device_id
    }

    /// What the trusted certificate says of the TPM; `None` if the EK is trusted for its enrolment.
    pub fn facts(&self) -> Option<&EkFacts> {
        self.facts.as_ref()
    }

    /// The device id that the sender asks for.
    pub fn requested_device_id(&self) -> Option<&DeviceId> {
        self.requested_device_id.as_ref()
    }

    /// Name of the template that the EK equals.
    pub fn template(&self) -> &'static str {
        self.area.template()
    }

    /// Why the EK is trusted.
    pub fn assurance(&self) -> Assurance {
        self.assurance
    }
}

/// What the CA knows about an EK from its certificate alone.
#[derive(Clone, Debug)]
pub struct EkCheck {
    /// The EK's id.
    pub ek_id: EkId,
    /// The kind of key, e.g. `RSA-2048`.
    pub key: String,
    /// The path to a trusted vendor, or why the CA would refuse a device with this EK unless it is
    /// enrolled.
    pub path: Result<VendorPath, Rejection>,
    /// What the groups ask of its certificate, if that leads to a trusted vendor.
    pub facts: Option<EkFacts>,
}

impl EkCheck {
    /// Checks an EK certificate for an operator, as the CA would check it in a request.
    ///
    /// Of several certificates, the first one that is not a CA's is the EK's. The others may be its
    /// issuers.
    ///
    /// # Errors
    /// The EK certificate cannot be read.
    pub fn of(
        certificates: &[CertificateDer<'_>],
        anchors: &TrustAnchors,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let is_ca = |der: &CertificateDer<'_>| {
            Certificate::read(der).is_ok_and(|read| read.extensions.is_ca)
        };
        let position = certificates.iter().position(|der| !is_ca(der)).unwrap_or_default();
        let leaf = certificates.get(position).ok_or_else(|| invalid(&"there is none"))?;
        let others: Vec<_> = certificates.iter().filter(|other| *other != leaf).cloned().collect();
        let certificate = EkCertificate::parse(leaf)?;
        let vouched = SoundKey::new(certificate.key.clone())
            .map_err(Rejection::EkWeak)
            .and_then(|_| certificate.trust(&others, anchors, now));
        let facts = vouched.as_ref().ok().map(Vouched::facts);
        let (ek_id, key) = (certificate.key.ek_id(), certificate.key.to_string());
        Ok(Self { ek_id, key, path: vouched.map(|it| it.path), facts })
    }
}

/// An EK certificate, parsed.
pub(crate) struct EkCertificate<'a> {
    der: &'a [u8],
    certificate: Certificate,
    key: PublicKey,
}

/// What a trusted EK certificate establishes.
struct Vouched {
    path: VendorPath,
    tpm: Option<TpmModel>,
    hardware: HardwareIdentity,
}

impl Vouched {
    fn facts(&self) -> EkFacts {
        let vendor = self.path.issuers().last().map_or("", String::as_str);
        EkFacts::new(vendor, self.tpm.clone(), self.path.keys())
    }
}

impl<'a> EkCertificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, Rejection> {
        let certificate = Certificate::read(der).map_err(|reason| invalid(&reason))?;
        let key = PublicKey::from_spki(&certificate.spki)
            .map_err(|reason| invalid(&format_args!("its key cannot be read: {reason}")))?;
        Ok(Self { der, certificate, key })
    }

    pub(crate) fn key(&self) -> &PublicKey {
        &self.key
    }

    pub(crate) fn x509(&self) -> &Certificate {
        &self.certificate
    }

    /// The certificate, if it is for the key of this area.
    fn of(&self, area: &EkArea) -> Result<&Self, Rejection> {
        if self.key == *area.key() {
            return Ok(self);
        }
        let (certificate, ek) = (self.key.ek_id(), area.key().ek_id());
        if area.is_for_azure_sdks() && self.key.has_the_shape_of(area.key()) {
            return Err(Rejection::EkOfAzureSdk { certificate, area: ek });
        }
        Err(Rejection::EkCertificateMismatch { certificate, area: ek })
    }

    /// Checks that a trusted vendor certified the EK, and for which TPM.
    ///
    /// The anchor at the end of the path must allow what the certificate lacks. If no anchor allows
    /// it, the certificate is refused before any signature is verified.
    fn trust(
        &self,
        issuers: &[CertificateDer<'_>],
        anchors: &TrustAnchors,
        now: OffsetDateTime,
    ) -> Result<Vouched, Rejection> {
        let (missing, tpm) = self.check_use()?;
        if missing != Allowances::default() && !anchors.may_allow(missing) {
            return Err(lacking(missing));
        }
        let path =
            anchors.find_path(&self.certificate, issuers, now).map_err(Rejection::of_path)?;
        if !path.allowances().cover(missing) {
            return Err(lacking(missing));
        }
        let hardware = match &tpm {
            Some(tpm) => self.hardware_identity(tpm),
            None => HardwareIdentity::of_key(&self.key),
        };
        Ok(Vouched { path, tpm, hardware })
    }

    /// What the certificate lacks of an EK certificate (TCG EK Credential Profile 2.5, 3.2), and
    /// which TPM it is for.
    ///
    /// # Errors
    /// It is for another use.
    pub(crate) fn check_use(&self) -> Result<(Allowances, Option<TpmModel>), Rejection> {
        let lacks_usage = match self.certificate.extensions.ek_usage {
            EkUsage::Named => false,
            EkUsage::Unsaid => true,
            EkUsage::Any | EkUsage::Excluded => {
                return Err(invalid(
                    &"its extended key usage lacks tcg-kp-EKCertificate (2.23.133.8.1): it is for \
                      another use",
                ));
            }
        };
        let tpm = self.tpm_model();
        Ok((Allowances { ek_usage: lacks_usage, tpm_attributes: tpm.is_none() }, tpm))
    }

    pub(crate) fn tpm_model(&self) -> Option<TpmModel> {
        self.certificate.extensions.alt_names.iter().find_map(|name| {
            let AltName::Directory(name) = name else { return None };
            Some(TpmModel {
                manufacturer: attribute_of(name, oid::TPM_MANUFACTURER)?,
                model: attribute_of(name, oid::TPM_MODEL)?,
                version: attribute_of(name, oid::TPM_VERSION)?,
            })
        })
    }

    fn hardware_identity(&self, tpm: &TpmModel) -> HardwareIdentity {
        let authority_key =
            self.certificate.extensions.authority_key_id.as_deref().unwrap_or_default();
        HardwareIdentity::of_certificate(
            &tpm.manufacturer,
            authority_key,
            &self.certificate.serial,
            self.der,
        )
    }
}

fn invalid(reason: &dyn fmt::Display) -> Rejection {
    Rejection::EkCertificateInvalid(reason.to_string())
}

fn lacking(missing: Allowances) -> Rejection {
    if missing.ek_usage {
        return invalid(
            &"it has no extended key usage; an EK certificate must name tcg-kp-EKCertificate \
              (2.23.133.8.1)",
        );
    }
    invalid(
        &"its subject alternative name lacks the TPM's manufacturer, model or version \
          (2.23.133.2.1 to .3)",
    )
}
