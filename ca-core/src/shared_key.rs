//! The shared key flow: an HMAC key that only one TPM can load, derived anew whenever it is needed.

use std::fmt;

use assay_wire::{ActivationReply, DeviceId, EkId, Limit, Scope};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::Fault;
use crate::admission::{Admitted, AdmittedParent};
use crate::secret::secret;
use crate::tpm::credential::make_credential;
use crate::tpm::duplicate::{HMAC_KEY_BYTES, HmacObject, INNER_KEY_BYTES, SEED_VALUE_BYTES};
use crate::tpm::kdf::Hash;

secret!(
    /// The secret from which all shared keys of a CA are derived: who has it can be any device. All
    /// workers of a CA have the same.
    MasterSecret
);

impl MasterSecret {
    /// The key of a device: of its id in this scope, of its TPM, and of a generation, which the
    /// operator raises to retire it.
    ///
    /// HKDF-SHA-256 (RFC 5869) without salt. Its info is a CBOR array of the text `assay shared key
    /// v1`, the scope, the device id, the EK's id and the generation, in the deterministic encoding
    /// (RFC 8949 §4.2): no two devices' infos are equal.
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

    /// What TPM2_HMAC makes of `message` with this key. Compare it in constant time.
    pub fn hmac(&self, message: &[u8]) -> Vec<u8> {
        Hash::Sha256.hmac(self.parts().0, &[message])
    }

    fn object(&self) -> HmacObject {
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

impl Admitted {
    /// Makes the shared key of the device in the form that its TPM can load.
    ///
    /// The duplicate needs `parent` to be opened. The key of its inner wrapper is a credential for
    /// `parent`'s Name, which needs the EK and `parent` in one TPM. So only the TPM with that EK
    /// and that parent loads the key. Because the parent is on template, it is in no other TPM. An
    /// import parent decrypts for nobody outside; a plain storage root key does, for whoever
    /// controls the device's software, and is admitted only where the operator says so.
    ///
    /// What is not established: that the TPM ever loaded it, for nothing comes back; a later
    /// [token](crate::AuthenticatedDevice) shows that. And the key is no secret of the TPM's alone:
    /// the CA knows it, and a token proves to nobody but the CA that the device made it. Nor does a
    /// token say when it was made, only until when it holds.
    ///
    /// Asked again with the same generation, it gives the same key in new wrappers.
    pub fn activation(
        &self,
        AdmittedParent(parent): &AdmittedParent,
        scope: &Scope,
        master: &MasterSecret,
        generation: u32,
        rng: &mut dyn CryptoRng,
    ) -> Result<ActivationReply, Fault> {
        let object = master.key(scope, &self.device_id, &self.ek.ek_id(), generation).object();
        let mut inner_key = Zeroizing::new([0; INNER_KEY_BYTES]);
        rng.fill_bytes(&mut *inner_key);
        let credential = make_credential(&self.ek.area, parent.name(), &*inner_key, rng)?;
        let duplicate = object.duplicate(parent, &inner_key, rng)?;
        let oversize = |field| move |limit: Limit| Fault::Oversize { field, limit };
        Ok(ActivationReply {
            credential_blob: credential
                .id_object
                .try_into()
                .map_err(oversize("the credential blob"))?,
            encrypted_seed: credential
                .encrypted_seed
                .try_into()
                .map_err(oversize("the encrypted seed"))?,
            duplicate: duplicate.private.try_into().map_err(oversize("the duplicate"))?,
            symmetric_seed: duplicate
                .encrypted_seed
                .try_into()
                .map_err(oversize("the symmetric seed"))?,
            key_public: object.public().try_into().map_err(oversize("the key's public area"))?,
            device_id: self.device_id.clone(),
        })
    }
}

/// Keeps shared keys apart from anything else that the secret could be used for.
const KEY_LABEL: &str = "assay shared key v1";

#[cfg(test)]
mod tests {
    use super::*;

    /// Another derivation would lock out every device. The value was computed by Python's hmac,
    /// from the words of [`MasterSecret::key`].
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
