//! TPM2_Duplicate in software: an HMAC key that only the TPM with a given parent can load, and only
//! with the key of the inner wrapper.

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::algorithms::AlgorithmId;
use super::kdf::Hash;
use super::outer_wrapper::encrypt_cfb;
use super::public::{Name, ObjectAttributes, put_sized, put_u16};
use super::template::ParentArea;
use crate::Fault;

/// Length of an HMAC key in bytes: that of the digest of its scheme, SHA-256.
pub const HMAC_KEY_BYTES: usize = 32;
/// Length of an object's `seedValue` in bytes: that of the digest of its `nameAlg`, SHA-256 (Part
/// 1, 27.6.2).
pub const SEED_VALUE_BYTES: usize = 32;
/// Length of the key of an inner wrapper in bytes: AES-128.
pub const INNER_KEY_BYTES: usize = 16;

/// A key for HMAC-SHA-256 as an object that TPM2_Import takes and TPM2_HMAC uses.
///
/// It was made outside of the TPM, and its attributes say so: fixedTPM, fixedParent and
/// sensitiveDataOrigin are clear. Even so, the TPM does not give it out again: TPM2_Duplicate takes
/// a policy, because its role is DUP (Part 3, 13.1), and the object has none.
pub struct HmacObject {
    public: Vec<u8>,
    sensitive: Zeroizing<Vec<u8>>,
}

/// What TPM2_Import takes besides the parent, the object's public area and the key of the inner
/// wrapper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The content of a `TPM2B_PRIVATE` (Part 2, 12.3.7), without its size: the object's sensitive
    /// area in both wrappers.
    pub private: Vec<u8>,
    /// The content of a `TPM2B_ENCRYPTED_SECRET` (Part 2, 11.4.3), without its size: the seed of
    /// the outer wrapper.
    pub encrypted_seed: Vec<u8>,
}

impl HmacObject {
    /// The object for `key`. `seed_value` is as secret as the key: without it, somebody could test
    /// guesses of the key on the public area.
    pub fn new(key: &[u8; HMAC_KEY_BYTES], seed_value: &[u8; SEED_VALUE_BYTES]) -> Self {
        let unique = Hash::Sha256.digest(&[seed_value, key]);
        Self { public: public_area(&unique), sensitive: sensitive_area(key, seed_value) }
    }

    /// Its `TPMT_PUBLIC` (Part 2, 12.2.4), without the size of a `TPM2B_PUBLIC`.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// Protects the object for the TPM with `parent`, in an inner and an outer wrapper (Part 1,
    /// 23.3).
    ///
    /// The TPM needs `inner_key` to import it. Each inner key encrypts once, so take a fresh one
    /// for every duplicate.
    pub fn duplicate(
        &self,
        parent: &ParentArea,
        inner_key: &[u8; INNER_KEY_BYTES],
        rng: &mut dyn CryptoRng,
    ) -> Result<Duplicate, Fault> {
        let name = Name::of(Hash::Sha256, &self.public);
        let inner = self.inner_wrapper(&name, inner_key);
        let wrapped = parent.storage_key().wrap("DUPLICATE", &name, inner, rng)?;
        Ok(Duplicate { private: wrapped.content, encrypted_seed: wrapped.encrypted_seed })
    }

    fn inner_wrapper(&self, name: &Name, inner_key: &[u8; INNER_KEY_BYTES]) -> Zeroizing<Vec<u8>> {
        let mut inner = Zeroizing::new(Vec::with_capacity(MAX_WRAPPED));
        put_sized(&mut inner, &Hash::Sha256.digest(&[&self.sensitive, name.as_ref()]));
        inner.extend_from_slice(&self.sensitive);
        encrypt_cfb(inner_key, &mut inner);
        inner
    }
}

/// `TPMT_PUBLIC` of a `TPM_ALG_KEYEDHASH` object (Part 2, 12.2.3.3) whose scheme is HMAC-SHA-256.
fn public_area(unique: &[u8]) -> Vec<u8> {
    let mut area = Vec::new();
    put_u16(&mut area, AlgorithmId::KEYEDHASH.0);
    put_u16(&mut area, AlgorithmId::SHA256.0);
    area.extend_from_slice(&ATTRIBUTES.0.to_be_bytes());
    put_sized(&mut area, NO_POLICY);
    put_u16(&mut area, AlgorithmId::HMAC.0);
    put_u16(&mut area, AlgorithmId::SHA256.0);
    put_sized(&mut area, unique);
    area
}

/// `TPM2B_SENSITIVE` (Part 2, 12.3.3).
fn sensitive_area(key: &[u8], seed_value: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut area = Zeroizing::new(Vec::with_capacity(MAX_WRAPPED));
    put_u16(&mut area, AlgorithmId::KEYEDHASH.0);
    put_sized(&mut area, NO_AUTH);
    put_sized(&mut area, seed_value);
    put_sized(&mut area, key);
    let mut sized = Zeroizing::new(Vec::with_capacity(MAX_WRAPPED));
    put_sized(&mut sized, &area);
    sized
}

/// The key signs, its password may be empty, and it was not made in the TPM.
const ATTRIBUTES: ObjectAttributes =
    ObjectAttributes::USER_WITH_AUTH.union(ObjectAttributes::NO_DA).union(ObjectAttributes::SIGN);
const NO_POLICY: &[u8] = &[];
const NO_AUTH: &[u8] = &[];
/// Room for a sensitive area and its digest. A vector that grows would leave a copy of a secret
/// behind.
const MAX_WRAPPED: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_those_of_azures_keys() {
        assert_eq!(ATTRIBUTES.0, 0x0004_0440);
    }

    #[test]
    fn secrets_are_written_without_growing() {
        let object = HmacObject::new(&[1; 32], &[2; 32]);
        let name = Name::of(Hash::Sha256, object.public());
        for area in [&object.sensitive, &object.inner_wrapper(&name, &[3; 16])] {
            assert_eq!(area.capacity(), MAX_WRAPPED);
        }
    }
}
