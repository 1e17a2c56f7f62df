//! What a device says about its TPM: parsed, but not checked.

use assay_wire::{Bundle, CertificateList, DeviceId, EkId, EkIds, EkPublic, ParentBundle};
use data_encoding::BASE32_NOPAD;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::Rejection;
use crate::key::PublicKey;
use crate::tpm::public::{AreaError, PublicArea};
use crate::tpm::template::{ParentArea, area_of_certificate, naming_area};

/// The EK in a request of any flow, parsed.
///
/// The sender chose everything in it.
#[derive(Clone, Debug)]
pub struct EkEvidence {
    pub(crate) area: PublicArea,
    key: PublicKey,
    ek_id: EkId,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    device_id: Option<DeviceId>,
    others: Vec<EkId>,
}

impl EkEvidence {
    /// Certificates are read where they are checked. Only if the first one stands for the EK, its
    /// key is read here.
    pub(crate) fn parse(
        ek_public: &EkPublic,
        certificates: &CertificateList<0>,
        device_id: Option<DeviceId>,
        others: Option<EkIds>,
    ) -> Result<Self, Rejection> {
        let ek = |error: AreaError| Rejection::of_ek(error.into());
        let area = match ek_public {
            EkPublic::Area(area) => PublicArea::parse(area).map_err(ek)?,
            EkPublic::OfCertificate(index) => {
                let leaf = certificates.first().ok_or_else(|| {
                    Rejection::EkCertificateInvalid(
                        "it is missing, and should hold the EK".to_owned(),
                    )
                })?;
                let key = PublicKey::from_certificate(leaf).map_err(|reason| {
                    Rejection::EkCertificateInvalid(format!("its key cannot be read: {reason}"))
                })?;
                area_of_certificate(*index, &key).map_err(Rejection::of_ek)?
            }
        };
        let key = area.public_key().map_err(ek)?;
        Ok(Self {
            ek_id: key.ek_id(),
            key,
            area,
            certificates: certificates.iter().map(|der| der.to_vec().into()).collect(),
            device_id,
            others: others.map(|others| others.to_vec()).unwrap_or_default(),
        })
    }

    /// Id of the EK that the device claims to have.
    pub fn ek_id(&self) -> EkId {
        self.ek_id
    }

    /// The device id that the device asks for.
    pub fn requested_device_id(&self) -> Option<&DeviceId> {
        self.device_id.as_ref()
    }

    /// Other EKs that the device says are in its TPM. Nothing proves that they are, so nothing is
    /// granted for them.
    pub fn other_eks(&self) -> &[EkId] {
        &self.others
    }

    /// The device id that is due to an EK if no enrolment names another one: the lower-case base32
    /// (RFC 4648 §6, unpadded) of the SHA-256 of its `TPM2B_PUBLIC`. This is taken on the template
    /// of the low range if that fits the key. So one EK has one id, and showing the EK on another
    /// template gives no other id.
    pub fn derived_device_id(&self) -> DeviceId {
        let digest =
            Sha256::digest(naming_area(&self.key).as_ref().unwrap_or(&self.area).encode_sized());
        named_by(&digest.into())
    }
}

/// The device id that follows from a digest of an EK.
pub(crate) fn named_by(digest: &[u8; 32]) -> DeviceId {
    let text = BASE32_NOPAD.encode(digest).to_ascii_lowercase();
    text.parse().expect("52 lower-case letters and digits are a device id")
}

/// The digest from which this device id follows; `None` if it follows from none.
pub(crate) fn digest_naming(device_id: &DeviceId) -> Option<[u8; 32]> {
    let text = device_id.as_str();
    let digest = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()?.try_into().ok()?;
    (named_by(&digest) == *device_id).then_some(digest)
}

/// A bundle, parsed: an EK, and an IK for which the device wants a certificate.
///
/// The sender chose everything in it.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// The EK.
    pub ek: EkEvidence,
    pub(crate) ik_area: PublicArea,
    pub(crate) csr: Vec<u8>,
}

impl Evidence {
    /// Reads both public areas. The CSR is read where it is checked, and so are certificates,
    /// except one that stands for the EK.
    pub fn parse(bundle: Bundle) -> Result<Self, Rejection> {
        Ok(Self {
            ek: EkEvidence::parse(
                &bundle.ek_public,
                &bundle.ek_certificates,
                bundle.device_id,
                bundle.other_eks,
            )?,
            ik_area: PublicArea::parse(&bundle.ik_public)
                .map_err(|error| Rejection::of_ik(error.into()))?,
            csr: bundle.csr.into_vec(),
        })
    }
}

impl Evidence {
    /// SHA-256 of the SubjectPublicKeyInfo of the IK as it was sent. Nobody has checked it yet: use
    /// it only to look up what is on record before the IK is [verified](crate::BoundKey::verify).
    pub fn claimed_ik_id(&self) -> Option<[u8; 32]> {
        let key = self.ik_area.public_key().ok()?;
        Some(Sha256::digest(key.spki()).into())
    }
}

/// The bundle of the shared key flow, parsed: an EK, and the parent that receives the key.
///
/// The sender chose everything in it.
#[derive(Clone, Debug)]
pub struct ParentEvidence {
    /// The EK.
    pub ek: EkEvidence,
    parent_area: PublicArea,
}

impl ParentEvidence {
    /// Reads both public areas. Certificates are read where they are checked, except one that
    /// stands for the EK.
    pub fn parse(bundle: ParentBundle) -> Result<Self, Rejection> {
        Ok(Self {
            ek: EkEvidence::parse(
                &bundle.ek_public,
                &bundle.ek_certificates,
                bundle.device_id,
                bundle.other_eks,
            )?,
            parent_area: PublicArea::parse(&bundle.parent_public)
                .map_err(|error| Rejection::of_parent(error.into()))?,
        })
    }

    /// Checks the parent: its template and its key.
    ///
    /// If a TPM holds an object with the parent's Name, then the parent was made in that TPM and
    /// never leaves it. Does not establish that the TPM of the EK holds one: only a TPM that has
    /// both can open what is made for both. Does not establish that the TPM keeps to itself what is
    /// encrypted to the parent: that depends on the parent's kind, on which
    /// [`AdmittedParent`](crate::AdmittedParent) decides.
    pub fn parent(&self) -> Result<ParentArea, Rejection> {
        ParentArea::recognise(&self.parent_area).map_err(Rejection::of_parent)
    }
}
