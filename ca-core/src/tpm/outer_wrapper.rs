//! What protects a secret on its way into a TPM: a seed that only a storage key of that TPM can
//! read, and encryption and an HMAC with keys from the seed.
//!
//! Credentials (Part 1, 24) and duplicates (Part 1, 23.3) use the same wrapper. Only the label of
//! the seed differs.

use aes::cipher::KeyIvInit;
use aes::{Aes128, Aes256};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::kdf::{Hash, kdfa, kdfe};
use super::public::{Name, put_sized};
use crate::Fault;
use crate::key::{Curve, PublicKey, SEC1_UNCOMPRESSED};

/// A storage key: an RSA or ECC key with which a TPM opens what is protected for it.
pub(super) struct StorageKey<'a> {
    pub(super) key: &'a PublicKey,
    /// Its `nameAlg`.
    pub(super) hash: Hash,
    /// Length of its AES key in bytes.
    pub(super) aes_key_bytes: usize,
}

/// A content that only the TPM with the storage key can read, and only together with the named
/// object.
pub(super) struct Wrapped {
    /// The HMAC as a `TPM2B`, then the encrypted content.
    pub(super) content: Vec<u8>,
    /// The content of a `TPM2B_ENCRYPTED_SECRET` (Part 2, 11.4.3), without its size.
    pub(super) encrypted_seed: Vec<u8>,
}

impl StorageKey<'_> {
    /// Puts `content` in an outer wrapper for the object with this Name, under a fresh seed.
    ///
    /// For RSA keys the padding's randomness comes from the cryptographic library, everything else
    /// from `rng`.
    pub(super) fn wrap(
        &self,
        label: &str,
        name: &Name,
        mut content: Zeroizing<Vec<u8>>,
        rng: &mut dyn CryptoRng,
    ) -> Result<Wrapped, Fault> {
        let (seed, encrypted_seed) = match self.key {
            PublicKey::Rsa { .. } => self.encrypt_seed(label, rng)?,
            PublicKey::Ecc { curve, x, y } => self.agree_on_seed(label, *curve, x, y, rng)?,
        };
        let storage_key = kdfa(self.hash, &seed, "STORAGE", name.as_ref(), &[], self.aes_key_bytes);
        encrypt_cfb(&storage_key, &mut content);

        let integrity_key = kdfa(self.hash, &seed, "INTEGRITY", &[], &[], self.hash.digest_bytes());
        let mut wrapped = Vec::new();
        put_sized(&mut wrapped, &self.hash.hmac(&integrity_key, &[&content, name.as_ref()]));
        wrapped.extend_from_slice(&content);
        Ok(Wrapped { content: wrapped, encrypted_seed })
    }

    /// RSA: encrypts a random seed with OAEP (Part 1, B.10.4).
    fn encrypt_seed(
        &self,
        label: &str,
        rng: &mut dyn CryptoRng,
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Fault> {
        let mut seed = Zeroizing::new(vec![0; self.hash.digest_bytes()]);
        rng.fill_bytes(&mut seed);
        let oaep = match self.hash {
            Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
            Hash::Sha384 => &OAEP_SHA384_MGF1SHA384,
        };
        let failed = |_| Fault::Crypto("encrypting a seed to an RSA key");
        let key = PublicEncryptingKey::from_der(&self.key.spki())
            .map_err(|_| Fault::Crypto("loading an RSA key"))?;
        let key = OaepPublicEncryptingKey::new(key).map_err(failed)?;
        let mut encrypted = vec![0; key.ciphertext_size()];
        // The terminating zero is part of the label.
        let label = [label.as_bytes(), &[0]].concat();
        let length = key.encrypt(oaep, &seed, &mut encrypted, Some(&label)).map_err(failed)?.len();
        encrypted.truncate(length);
        Ok((seed, encrypted))
    }

    /// ECC: agrees on a seed by one-pass ECDH. The wrapper has the point of the fresh key (Part 1,
    /// C.6.1).
    fn agree_on_seed(
        &self,
        label: &str,
        curve: Curve,
        x: &[u8],
        y: &[u8],
        rng: &mut dyn CryptoRng,
    ) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Fault> {
        let failed = Fault::Crypto("agreeing on a seed with an ECC key");
        let ephemeral = random_key(curve, rng);
        let point = ephemeral.compute_public_key().map_err(|_| failed.clone())?;
        let (ephemeral_x, ephemeral_y) = point.as_ref()[1..].split_at(curve.field_bytes());
        let peer = UnparsedPublicKey::new(curve.ecdh(), [&[SEC1_UNCOMPRESSED], x, y].concat());
        // The agreed value is the x coordinate, padded to the width of the field, as KDFe needs it.
        let seed = agree(&ephemeral, &peer, failed, |z| {
            Ok(kdfe(self.hash, z, label, ephemeral_x, x, self.hash.digest_bytes()))
        })?;
        let mut encrypted = Vec::new();
        put_sized(&mut encrypted, ephemeral_x);
        put_sized(&mut encrypted, ephemeral_y);
        Ok((seed, encrypted))
    }
}

/// A private key, drawn uniformly below the order of the curve (FIPS 186-5, A.2.2).
fn random_key(curve: Curve, rng: &mut dyn CryptoRng) -> PrivateKey {
    let mut candidate = Zeroizing::new(vec![0; curve.field_bytes()]);
    loop {
        rng.fill_bytes(&mut candidate);
        // Refuses zero and numbers not below the order, about once in 2^32.
        if let Ok(key) = PrivateKey::from_private_key(curve.ecdh(), &candidate) {
            return key;
        }
    }
}

/// AES in CFB mode with an all-zero IV (Part 1, 24.4). The IV is safe because each key encrypts
/// once.
pub(super) fn encrypt_cfb(key: &[u8], data: &mut [u8]) {
    const UNSUITABLE: &str = "templates have AES-128 or AES-256";
    let iv = [0; 16];
    match key.len() {
        16 => cfb_mode::Encryptor::<Aes128>::new_from_slices(key, &iv)
            .expect(UNSUITABLE)
            .encrypt(data),
        _ => cfb_mode::Encryptor::<Aes256>::new_from_slices(key, &iv)
            .expect(UNSUITABLE)
            .encrypt(data),
    }
}
