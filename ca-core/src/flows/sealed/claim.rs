//! The claim of a sealed certificate: what the device confirms.

use assay_wire::{EkId, Scope};
use minicbor::{Decode, Encode};

use crate::flows::mac::{KEY_ID_LEN, Terms};

/// What the CA verified and issued, as CBOR. It travels in clear, so it names neither the device id
/// nor the serial number. The hash of the certificate reveals nothing, because the certificate has
/// 80 random bits and a signature.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub(super) struct Claim {
    #[n(0)]
    pub(super) scope: Scope,
    #[n(1)]
    pub(super) ek_id: EkId,
    /// SHA-256 of the certificate.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub(super) certificate: [u8; 32],
    #[cbor(n(3), with = "minicbor::bytes")]
    pub(super) key_id: [u8; KEY_ID_LEN],
    /// Seconds since 1970.
    #[n(4)]
    pub(super) issued_at: i64,
    /// Seconds since 1970.
    #[n(5)]
    pub(super) expires_at: i64,
}

impl Claim {
    pub(super) fn terms(&self) -> Terms {
        let Self { scope, key_id, issued_at, expires_at, .. } = self;
        Terms {
            scope: scope.clone(),
            key_id: *key_id,
            issued_at: *issued_at,
            expires_at: *expires_at,
        }
    }
}

/// Separates the tickets of this flow from those of the ticket flow.
pub(super) const CONFIRMATION_LABEL: &[u8] = b"assay confirmation v1\0";
/// Separates receipts from tickets, because a device has its ticket before the CA has it.
pub(super) const RECEIPT_LABEL: &[u8] = b"assay receipt v1\0";
