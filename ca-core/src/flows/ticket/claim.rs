//! The claim of a challenge: what a TPM is asked to prove.

use assay_wire::{DeviceId, EkId, Scope};
use minicbor::bytes::ByteArray;
use minicbor::data::Type;
use minicbor::{Decode, Decoder, Encode, Encoder};
use time::Duration;

use crate::ek::assurance::Assurance;
use crate::ek::evidence::{digest_naming, named_by};
use crate::ek::hardware::HardwareIdentity;
use crate::flows::mac::{KEY_ID_LEN, Terms};

/// How long a device has to answer a challenge. A slow TPM takes seconds for RSA keys; a bad
/// network takes minutes.
pub const CLAIM_LIFETIME: Duration = Duration::seconds(300);

/// What the CA verified, as CBOR. It travels twice, so it is short.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct Claim {
    #[n(0)]
    pub(super) scope: Scope,
    #[n(1)]
    pub(super) device_id: BriefId,
    #[n(2)]
    pub(super) ek_id: EkId,
    /// See [`PublicKey::brief`].
    #[cbor(n(3), with = "minicbor::bytes")]
    pub(super) ik: Vec<u8>,
    #[n(4)]
    pub(super) assurance: Assurance,
    #[n(5)]
    pub(super) hardware: HardwareIdentity,
    #[cbor(n(6), with = "minicbor::bytes")]
    pub(super) key_id: [u8; KEY_ID_LEN],
    /// Seconds since 1970.
    #[n(7)]
    pub(super) issued_at: i64,
    /// Whether the device keeps the certificate that it has until it takes the one for this IK.
    /// Absent is no.
    #[n(8)]
    pub(super) is_rekey: Option<bool>,
    /// How long the certificate is valid, in seconds, if the device's group says so.
    #[n(9)]
    pub(super) lifetime_s: Option<u32>,
}

impl Claim {
    pub(super) fn terms(&self) -> Terms {
        let Self { scope, key_id, issued_at, .. } = self;
        let expires_at = issued_at.saturating_add(CLAIM_LIFETIME.whole_seconds());
        Terms { scope: scope.clone(), key_id: *key_id, issued_at: *issued_at, expires_at }
    }
}

/// A device id. If it follows from an EK, it is encoded as its digest, which is shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BriefId(pub(super) DeviceId);

impl<C> Encode<C> for BriefId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match digest_naming(&self.0) {
            Some(digest) => e.bytes(&digest)?.ok(),
            None => self.0.encode(e, context),
        }
    }
}

impl<'b, C> Decode<'b, C> for BriefId {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, minicbor::decode::Error> {
        match d.datatype()? {
            Type::Bytes => ByteArray::decode(d, context).map(|digest| Self(named_by(&digest))),
            _ => DeviceId::decode(d, context).map(Self),
        }
    }
}

/// Separates tickets from any other MAC under the same key.
pub(super) const TICKET_LABEL: &[u8] = b"assay ticket v1\0";
