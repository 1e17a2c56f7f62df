//! What a device says of its TPM: read, and believed by nobody.

use assay_wire::{Bundle, DeviceId, EkId};
use data_encoding::BASE32_NOPAD;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use crate::Rejection;
use crate::key::PublicKey;
use crate::tpm::public::{AreaError, PublicArea};

/// The content of a challenge request, parsed.
///
/// Everything in it was chosen by whoever sent it.
#[derive(Clone, Debug)]
pub struct Evidence {
    pub(crate) ek_area: PublicArea,
    pub(crate) ek_key: PublicKey,
    pub(crate) ek_certificates: Vec<CertificateDer<'static>>,
    pub(crate) ik_area: PublicArea,
    pub(crate) csr: Vec<u8>,
    device_id: Option<DeviceId>,
}

impl Evidence {
    /// Reads both public areas. Certificates and the CSR are read where they are checked.
    pub fn parse(request: Bundle) -> Result<Self, Rejection> {
        let ek = |error: AreaError| Rejection::of_ek(error.into());
        let ek_area = PublicArea::parse(&request.ek_public).map_err(ek)?;
        Ok(Self {
            ek_key: ek_area.public_key().map_err(ek)?,
            ek_area,
            ek_certificates: request.ek_certificates.iter().map(|der| der.to_vec().into()).collect(),
            ik_area: PublicArea::parse(&request.ik_public).map_err(|error| Rejection::of_ik(error.into()))?,
            csr: request.csr.into_vec(),
            device_id: request.device_id,
        })
    }

    /// Id of the EK the device claims to have.
    pub fn ek_id(&self) -> EkId {
        self.ek_key.ek_id()
    }

    /// The device id that was asked for.
    pub fn requested_device_id(&self) -> Option<&DeviceId> {
        self.device_id.as_ref()
    }

    /// The device id due to an EK that no enrolment names: the lower-case base32 (RFC 4648 §6, unpadded) of
    /// the SHA-256 of its `TPM2B_PUBLIC`.
    pub fn derived_device_id(&self) -> DeviceId {
        let digest = Sha256::digest(self.ek_area.encode_sized());
        let text = BASE32_NOPAD.encode(&digest).to_ascii_lowercase();
        text.parse().expect("52 lower-case letters and digits are a device id")
    }
}
