//! Shared keys: HMAC keys that the CA derives whenever it needs them, and never stores.

use std::fmt;

use assay_wire::{DeviceId, EkId, Scope};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::secret::secret;
use crate::tpm::duplicate::{HMAC_KEY_BYTES, HmacObject, SEED_VALUE_BYTES};
use crate::tpm::kdf::Hash;

secret!(
    /// The secret from which all shared keys of a CA are derived. Anybody who has it can be any
    /// device. All workers of a CA have the same one.
    MasterSecret
);

impl MasterSecret {
    /// The key of a device: for its id in this scope, its TPM, and a generation. A higher
    /// generation retires the old key.
    ///
    /// HKDF-SHA-256 (RFC 5869) without salt. Its info is a CBOR array of the text `assay shared key
    /// v1`, the scope, the device id, the EK's id and the generation, in the deterministic encoding
    /// (RFC 8949 §4.2). So the infos of two devices are never equal.
    pub fn key(
        &self,
        scope: &Scope,
        device_id: &DeviceId,
        ek: &EkId,
        generation: u32,
    ) -> SharedKey {
        let info = minicbor::to_vec((KEY_LABEL, scope, device_id, ek, generation))
            .expect("writing to memory does not fail");
        let prk = Salt::new(HKDF_SHA256, &[]).extract(&self.0);
        let mut key = SharedKey([0; SharedKey::LEN]);
        prk.expand(&[&info], SharedKeyLength)
            .and_then(|output| output.fill(&mut key.0))
            .expect("64 bytes are fewer than the 255 digests that HKDF can make");
        key
    }
}

/// What a device and the CA share: a key for HMAC-SHA-256, and the `seedValue` of its object in the
/// TPM.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SharedKey([u8; Self::LEN]);

impl SharedKey {
    const LEN: usize = HMAC_KEY_BYTES + SEED_VALUE_BYTES;

    /// The result of TPM2_HMAC over `message` with this key. Compare it in constant time.
    pub fn hmac(&self, message: &[u8]) -> Vec<u8> {
        Hash::Sha256.hmac(self.parts().0, &[message])
    }

    pub(super) fn object(&self) -> HmacObject {
        let (key, seed_value) = self.parts();
        HmacObject::new(key, seed_value)
    }

    fn parts(&self) -> (&[u8; HMAC_KEY_BYTES], &[u8; SEED_VALUE_BYTES]) {
        let whole = "the key is as long as its two parts";
        (self.0.first_chunk().expect(whole), self.0.last_chunk().expect(whole))
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(..)")
    }
}

struct SharedKeyLength;

impl KeyType for SharedKeyLength {
    fn len(&self) -> usize {
        SharedKey::LEN
    }
}

/// Separates shared keys from any other use of the secret.
const KEY_LABEL: &str = "assay shared key v1";

#[cfg(test)]
mod tests {
    use super::*;

    /// Another derivation would lock out every device. Python's hmac computed the value, as the doc
    /// comment of [`MasterSecret::key`] says.
    #[test]
    fn keys_are_derived_as_ever() {
        let master = MasterSecret::new(std::array::from_fn(|at| u8::try_from(at).unwrap()));
        let (scope, device_id) = ("plant-7".parse().unwrap(), "pump-1".parse().unwrap());
        let key = master.key(&scope, &device_id, &EkId::from([7; 32]), 42);
        let expected = concat!(
            "fc5e8b24ae03eb2b3a8b830faec79dc88f9c0ab2d2955b688508487a21e226d0",
            "a89e74872b601967faed9693d5a17f12a012994db166333e3e51116c0906b9c3"
        );
        assert_eq!(crate::hex(&key.0), expected);
    }
}
