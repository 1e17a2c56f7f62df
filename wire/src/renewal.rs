//! What a device's IK signs to renew a certificate, and to adopt the renewed one.

use alloc::vec::Vec;

use minicbor::{Decode, Encode, Encoder};

use crate::{Bytes, CertificateList, EkId, EkPublic, MAX_SIGNATURE, Scope};

/// Asks for a new certificate in place of the one in force. The CA believes none of it before it
/// has checked it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Renewal {
    /// The EK's public area.
    #[n(0)]
    pub ek_public: EkPublic,
    /// The EK certificate and its issuers as far as the device knows them, leaf first; may be
    /// empty.
    #[n(1)]
    pub ek_certificates: CertificateList<0>,
    /// SHA-256 of the certificate in force, in DER.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub certificate: [u8; 32],
    /// The device's clock, in seconds since 1970.
    #[n(3)]
    pub time: u64,
    /// By the IK, of [`Renewal::signed`], with the algorithm of the IK's certificate request.
    #[n(4)]
    pub signature: Bytes<MAX_SIGNATURE>,
}

impl Renewal {
    /// What the IK signs: a CBOR array of the text `assay renew v1`, the scope, the certificate's
    /// SHA-256 and the time.
    pub fn signed(scope: &Scope, certificate: &[u8; 32], time: u64) -> Vec<u8> {
        statement("assay renew v1", scope, certificate, time)
    }
}

/// Says that the device has stored a renewed certificate. The CA believes none of it before it has
/// checked it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Adoption {
    /// SHA-256 of the renewed certificate, in DER.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub certificate: [u8; 32],
    /// The device's clock, in seconds since 1970.
    #[n(1)]
    pub time: u64,
    /// By the IK, of [`Adoption::signed`], with the algorithm of the IK's certificate request.
    #[n(2)]
    pub signature: Bytes<MAX_SIGNATURE>,
    /// The EK of the TPM that keeps the IK. The CA looks for the certificate among those of this
    /// EK.
    #[n(3)]
    pub ek_id: EkId,
}

impl Adoption {
    /// What the IK signs: as [`Renewal::signed`], with the text `assay adopt v1`.
    pub fn signed(scope: &Scope, certificate: &[u8; 32], time: u64) -> Vec<u8> {
        statement("assay adopt v1", scope, certificate, time)
    }
}

fn statement(label: &str, scope: &Scope, certificate: &[u8; 32], time: u64) -> Vec<u8> {
    let mut signed = Vec::new();
    // Unwrap safety: writing to a Vec cannot fail.
    Encoder::new(&mut signed)
        .array(4)
        .and_then(|e| e.str(label))
        .and_then(|e| e.str(scope.as_str()))
        .and_then(|e| e.bytes(certificate))
        .and_then(|e| e.u64(time))
        .unwrap();
    signed
}
