//! Keys as commands name them, and their public areas.

use tpm2_protocol::data::{TpmEccCurve, TpmtPublic, TpmuPublicId, TpmuPublicParms};
use tpm2_protocol::{TpmMarshal, TpmSized, TpmUnmarshal, TpmWriter};

use crate::tpm::interface::PublicKey;

/// A key that commands may use.
pub(super) struct Key {
    pub(super) handle: u32,
    pub(super) public: TpmtPublic,
    pub(super) is_persistent: bool,
}

/// TPMT_PUBLIC.
pub(super) fn encoded(public: &TpmtPublic) -> Vec<u8> {
    let mut bytes = vec![0; public.len()];
    // Unwrap safety: there is room, and the parameters are of the type that the area says, or it
    // would not have been read.
    public.marshal(&mut TpmWriter::new(&mut bytes)).unwrap();
    bytes
}

/// Reads a TPMT_PUBLIC that ends where `bytes` end.
pub(super) fn decoded(bytes: &[u8]) -> Option<TpmtPublic> {
    let (public, rest) = TpmtPublic::unmarshal(bytes).ok()?;
    (rest.is_empty() && encoded(&public) == bytes).then_some(public)
}

pub(super) fn public_key(public: &TpmtPublic) -> Option<PublicKey> {
    match (&public.parameters, &public.unique) {
        (_, TpmuPublicId::Rsa(modulus)) => Some(PublicKey::Rsa(modulus.to_vec())),
        (TpmuPublicParms::Ecc(parameters), TpmuPublicId::Ecc(point)) => match parameters.curve_id {
            TpmEccCurve::NistP256 => Some(PublicKey::P256(padded(&point.x)?, padded(&point.y)?)),
            TpmEccCurve::NistP384 => Some(PublicKey::P384(padded(&point.x)?, padded(&point.y)?)),
            _ => None,
        },
        _ => None,
    }
}

/// A coordinate with the leading zeros that some TPMs leave out.
fn padded<const N: usize>(coordinate: &[u8]) -> Option<[u8; N]> {
    let mut padded = [0; N];
    padded[N.checked_sub(coordinate.len())?..].copy_from_slice(coordinate);
    Some(padded)
}
