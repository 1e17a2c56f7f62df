//! Recognises an EK in an operator's file, in any form that common tools write.

use std::fmt;

use assay_wire::{DeviceId, EkId};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::Rejection;
use crate::ek::container::{Around, ContainerError, Item, Unwrapped, unwrap};
use crate::ek::evidence::{digest_naming, named_by};
use crate::ek::model::TpmModel;
use crate::ek::trust::EkCertificate;
use crate::key::{PublicKey, SoundKey, UnreadableKey, WeakKey};
use crate::tpm::public::PublicArea;
use crate::tpm::template::{AreaRefused, EkArea, naming_area};
use crate::x509::EkUsage;

/// The forms in which an EK is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecognisedAs {
    /// An X.509 certificate in PEM.
    CertificatePem,
    /// An X.509 certificate in DER.
    CertificateDer,
    /// An X.509 certificate in PKCS #7, alone or with others.
    CertificatePkcs7,
    /// An X.509 certificate in the JSON of Intel's service.
    CertificateJson,
    /// An X.509 certificate in DER with something after it, from an NV index of a TPM that is
    /// longer.
    CertificatePadded,
    /// A SubjectPublicKeyInfo in PEM.
    PublicKeyPem,
    /// A SubjectPublicKeyInfo in DER.
    PublicKeyDer,
    /// An RSA key in PKCS #1, in PEM or DER.
    PublicKeyPkcs1,
    /// A public area after its two-byte size, as `tpm2_createek -u` writes it.
    Tpm2bPublic,
    /// A public area alone, as `tpm2_createek -f tpmt` writes it.
    TpmtPublic,
}

impl RecognisedAs {
    fn certificate(around: Around) -> Self {
        match around {
            Around::Nothing => Self::CertificateDer,
            Around::Pem => Self::CertificatePem,
            Around::Pkcs7 => Self::CertificatePkcs7,
            Around::Json => Self::CertificateJson,
            Around::Padding => Self::CertificatePadded,
        }
    }
}

impl fmt::Display for RecognisedAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CertificatePem => "EK certificate in PEM",
            Self::CertificateDer => "EK certificate in DER",
            Self::CertificatePkcs7 => "EK certificate in PKCS #7",
            Self::CertificateJson => "EK certificate in Intel's JSON",
            Self::CertificatePadded => "EK certificate in a padded NV dump",
            Self::PublicKeyPem => "EK public key in PEM",
            Self::PublicKeyDer => "EK public key in DER",
            Self::PublicKeyPkcs1 => "EK public key in PKCS #1",
            Self::Tpm2bPublic => "TPM2B_PUBLIC of an EK",
            Self::TpmtPublic => "TPMT_PUBLIC of an EK",
        })
    }
}

/// What a file says about an EK. Establishes only that the key is sound and fits an EK template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EkIdentity {
    /// The EK's id.
    pub ek_id: EkId,
    /// The kind of key, e.g. `RSA-2048`.
    pub key: String,
    /// The template, if the file has a public area.
    pub template: Option<&'static str>,
    /// The certificate's summary, if the file has one.
    pub certificate: Option<CertificateSummary>,
    /// The device id that follows from the EK.
    pub derived_device_id: DeviceId,
    /// Whether Azure's SDKs may have made the EK, as far as the file shows.
    is_for_azure_sdks: bool,
}

/// The parts of an EK certificate that people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateSummary {
    /// Its issuer.
    pub issuer: String,
    /// Its serial number in hexadecimal.
    pub serial: String,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
    /// The TPM that it is for, if it says so.
    pub tpm: Option<TpmModel>,
}

impl EkIdentity {
    /// Finds out what an operator's file is, and which EK it holds. It may also hold issuers of the
    /// EK certificate, but not a second EK.
    pub fn recognise(file: &[u8]) -> Result<(RecognisedAs, Self), EkFileError> {
        let items = unwrap(file)?;
        let (mut eks, mut only_cas) = (Vec::new(), false);
        for Unwrapped { around, item } in &items {
            let Item::Certificate(der) = item else { continue };
            match Self::of_certificate(der) {
                Err(EkFileError::CaCertificate) => only_cas = true,
                identity => eks.push((RecognisedAs::certificate(*around), identity?)),
            }
        }
        match (eks.len(), items.into_iter().next()) {
            (0, Some(Unwrapped { around, item })) if !only_cas => Self::of_key_file(around, item),
            (0, _) => Err(EkFileError::CaCertificate),
            (1, _) => Ok(eks.remove(0)),
            (count, _) => Err(EkFileError::SeveralEks { count }),
        }
    }

    /// A file without a certificate.
    fn of_key_file(around: Around, item: Item) -> Result<(RecognisedAs, Self), EkFileError> {
        let form = if around == Around::Pem {
            RecognisedAs::PublicKeyPem
        } else {
            RecognisedAs::PublicKeyDer
        };
        match item {
            Item::PublicKey(der) => Ok((form, Self::of_spki(&der)?)),
            Item::RsaPublicKey(der) => {
                let key = PublicKey::from_pkcs1(&der).map_err(EkFileError::Key)?;
                Ok((RecognisedAs::PublicKeyPkcs1, Self::of_key(&key)?))
            }
            Item::Other(file) => match &file[..] {
                [0, 0x01 | 0x23, ..] => Ok((RecognisedAs::TpmtPublic, Self::of_area(&file)?)),
                [high, low, area @ ..]
                    if usize::from(u16::from_be_bytes([*high, *low])) == area.len() =>
                {
                    Ok((RecognisedAs::Tpm2bPublic, Self::of_area(area)?))
                }
                _ => Err(EkFileError::Unrecognised),
            },
            Item::Certificate(_) => Err(EkFileError::Unrecognised),
        }
    }

    fn of_certificate(der: &[u8]) -> Result<Self, EkFileError> {
        let certificate = EkCertificate::parse(der).map_err(EkFileError::Certificate)?;
        let x509 = certificate.x509();
        if x509.extensions.is_ca {
            return Err(EkFileError::CaCertificate);
        }
        if x509.extensions.ek_usage != EkUsage::Named {
            return Err(EkFileError::OtherUse { subject: x509.subject.to_string() });
        }
        let summary = CertificateSummary {
            issuer: x509.issuer.to_string(),
            serial: crate::hex(&x509.serial),
            not_after: x509.not_after,
            tpm: certificate.tpm_model(),
        };
        Ok(Self {
            certificate: Some(summary),
            is_for_azure_sdks: false,
            ..Self::of_key(certificate.key())?
        })
    }

    fn of_spki(der: &[u8]) -> Result<Self, EkFileError> {
        Self::of_key(&PublicKey::from_spki(der).map_err(EkFileError::Key)?)
    }

    fn of_area(area: &[u8]) -> Result<Self, EkFileError> {
        let area = PublicArea::parse(area).map_err(AreaRefused::from)?;
        let area = EkArea::recognise(&area)?;
        let is_for_azure_sdks = area.is_for_azure_sdks();
        Ok(Self { template: Some(area.template()), is_for_azure_sdks, ..Self::of_key(area.key())? })
    }

    fn of_key(key: &PublicKey) -> Result<Self, EkFileError> {
        let key = &*SoundKey::new(key.clone())?;
        let area =
            naming_area(key).ok_or_else(|| EkFileError::NoTemplate { key: key.to_string() })?;
        let is_for_azure_sdks =
            matches!(key, PublicKey::Rsa { modulus, .. } if modulus.len() == AZURE_MODULUS_BYTES);
        Ok(Self {
            ek_id: key.ek_id(),
            key: key.to_string(),
            template: None,
            certificate: None,
            derived_device_id: named_by(&Sha256::digest(area.encode_sized()).into()),
            is_for_azure_sdks,
        })
    }

    /// The device id, if the EK may have it. An id that follows from another EK is refused: it
    /// would be that EK's, and would not end with the enrolment.
    pub fn may_be_named(&self, device_id: DeviceId) -> Result<DeviceId, EkFileError> {
        if digest_naming(&device_id).is_some() && device_id != self.derived_device_id {
            let derived = self.derived_device_id.clone();
            return Err(EkFileError::DeviceIdOfAnotherEk { device_id, derived });
        }
        Ok(device_id)
    }

    /// The EK, if Azure's SDKs may have made it. Their EKs are RSA-2048 keys of TCG's template L-1,
    /// and no vendor certified them.
    pub fn of_azure_sdk(&self) -> Result<&Self, EkFileError> {
        match (&self.certificate, self.is_for_azure_sdks) {
            (Some(_), _) => Err(EkFileError::CertifiedEk),
            (None, true) => Ok(self),
            (None, false) => Err(EkFileError::NoAzureSdk {
                found: self.template.unwrap_or(&self.key).to_owned(),
            }),
        }
    }
}

/// Why a file holds no EK that this CA could provision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each variant's message is its documentation
pub enum EkFileError {
    #[error("not a certificate, a public key, a TPM2B_PUBLIC or a TPMT_PUBLIC")]
    Unrecognised,
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(
        "not a certificate, a public key, a TPM2B_PUBLIC or a TPMT_PUBLIC: if it is a key, {0}"
    )]
    Key(UnreadableKey),
    #[error(
        "the certificate of {subject} is not an EK's: its extended key usage lacks \
         tcg-kp-EKCertificate (2.23.133.8.1). If its key is an EK all the same, enrol the key: \
         `openssl x509 -pubkey -noout` prints it"
    )]
    OtherUse { subject: String },
    #[error("{count} EK certificates; enrol each from a file of its own")]
    SeveralEks { count: usize },
    #[error("the certificate of a CA, not of an EK; `assay trust add` takes those of vendors' CAs")]
    CaCertificate,
    #[error(transparent)]
    Certificate(Rejection),
    #[error("not the public area of an EK: {0}")]
    Area(#[from] AreaRefused),
    #[error("the EK is weak: {0}")]
    Weak(#[from] WeakKey),
    #[error("no EK template has a key of the kind {key}")]
    NoTemplate { key: String },
    #[error("Azure's SDKs make EKs of the template EK L-1 (RSA-2048), but this is {found}")]
    NoAzureSdk { found: String },
    #[error(
        "the device id {device_id} has the form of a device id that is derived from an EK (52 \
         letters and digits of base32), but the device id derived from this EK is {derived}: \
         choose another, or leave it out"
    )]
    DeviceIdOfAnotherEk { device_id: DeviceId, derived: DeviceId },
    #[error("a vendor certified this EK; no vendor certifies EKs that Azure's SDKs make")]
    CertifiedEk,
}

/// The length of an RSA-2048 modulus.
const AZURE_MODULUS_BYTES: usize = 256;
