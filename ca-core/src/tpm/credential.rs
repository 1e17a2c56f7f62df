//! TPM2_MakeCredential in software: a secret that only the TPM holding both an EK and a named object can read.
//!
//! Activating the credential proves that the EK's private key and an object with exactly that Name are in one
//! TPM. It says nothing of what the object is: that is what [templates](super::template) are for.

use aes::cipher::KeyIvInit;
use aes::{Aes128, Aes256};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, agree};
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OAEP_SHA384_MGF1SHA384, OaepPublicEncryptingKey, PublicEncryptingKey};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::kdf::{Hash, kdfa, kdfe};
use super::public::{Name, put_sized};
use super::template::EkArea;
use crate::Fault;
use crate::key::{Curve, PublicKey, SEC1_UNCOMPRESSED};

/// What TPM2_ActivateCredential takes beside the two keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// `TPMS_ID_OBJECT` (Part 2, 12.4.2): what a `TPM2B_ID_OBJECT` holds, without its size.
    pub id_object: Vec<u8>,
    /// What a `TPM2B_ENCRYPTED_SECRET` holds (Part 2, 11.4.3), without its size.
    pub encrypted_seed: Vec<u8>,
}

/// Encrypts `secret` to an EK and the object called `name` (Part 1, 24).
///
/// `secret` may be as long as the digest of the EK's `nameAlg`: 32 bytes for every template.
/// For RSA EKs the padding's randomness comes from the cryptographic library, everything else from `rng`.
pub fn make_credential(ek: &EkArea, name: &Name, secret: &[u8], rng: &mut dyn CryptoRng) -> Result<Credential, Fault> {
    let hash = ek.hash();
    assert!(secret.len() <= hash.digest_bytes(), "TPM2_ActivateCredential refuses a longer secret");
    let (seed, encrypted_seed) = match ek.key() {
        PublicKey::Rsa { .. } => wrap_seed(ek, rng)?,
        PublicKey::Ecc { curve, x, y } => agree_on_seed(hash, *curve, x, y, rng)?,
    };

    let mut identity = Zeroizing::new(Vec::new());
    put_sized(&mut identity, secret);
    let storage_key = kdfa(hash, &seed, "STORAGE", name.as_ref(), &[], ek.aes_key_bytes());
    encrypt_cfb(&storage_key, &mut identity);

    let integrity_key = kdfa(hash, &seed, "INTEGRITY", &[], &[], hash.digest_bytes());
    let mut id_object = Vec::new();
    put_sized(&mut id_object, &hash.hmac(&integrity_key, &[&identity, name.as_ref()]));
    id_object.extend_from_slice(&identity);
    Ok(Credential { id_object, encrypted_seed })
}

/// RSA: a random seed under OAEP with the label `IDENTITY` (Part 1, B.10.4).
fn wrap_seed(ek: &EkArea, rng: &mut dyn CryptoRng) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Fault> {
    let mut seed = Zeroizing::new(vec![0; ek.hash().digest_bytes()]);
    rng.fill_bytes(&mut seed);
    let oaep = match ek.hash() {
        Hash::Sha256 => &OAEP_SHA256_MGF1SHA256,
        Hash::Sha384 => &OAEP_SHA384_MGF1SHA384,
    };
    let failed = |_| Fault::Crypto("encrypting a seed to an RSA EK");
    let key = PublicEncryptingKey::from_der(&ek.key().spki()).map_err(|_| Fault::Crypto("loading an RSA EK"))?;
    let key = OaepPublicEncryptingKey::new(key).map_err(failed)?;
    let mut encrypted = vec![0; key.ciphertext_size()];
    // The terminating zero is part of the label.
    let length = key.encrypt(oaep, &seed, &mut encrypted, Some(b"IDENTITY\0")).map_err(failed)?.len();
    encrypted.truncate(length);
    Ok((seed, encrypted))
}

/// ECC: a seed from one-pass ECDH with a fresh key, whose point is sent (Part 1, C.6.1).
fn agree_on_seed(
    hash: Hash,
    curve: Curve,
    x: &[u8],
    y: &[u8],
    rng: &mut dyn CryptoRng,
) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Fault> {
    let failed = Fault::Crypto("agreeing on a seed with an ECC EK");
    let ephemeral = random_key(curve, rng);
    let point = ephemeral.compute_public_key().map_err(|_| failed.clone())?;
    let (ephemeral_x, ephemeral_y) = point.as_ref()[1..].split_at(curve.field_bytes());
    let peer = UnparsedPublicKey::new(curve.ecdh(), [&[SEC1_UNCOMPRESSED], x, y].concat());
    // The agreed value is the x coordinate, padded to the width of the field, as KDFe wants it.
    let seed =
        agree(&ephemeral, &peer, failed, |z| Ok(kdfe(hash, z, "IDENTITY", ephemeral_x, x, hash.digest_bytes())))?;
    let mut encrypted = Vec::new();
    put_sized(&mut encrypted, ephemeral_x);
    put_sized(&mut encrypted, ephemeral_y);
    Ok((seed, encrypted))
}

/// A private key that is uniform below the order of the curve (FIPS 186-5, A.2.2).
fn random_key(curve: Curve, rng: &mut dyn CryptoRng) -> PrivateKey {
    let mut candidate = Zeroizing::new(vec![0; curve.field_bytes()]);
    loop {
        rng.fill_bytes(&mut candidate);
        // Refused once in 2^32: zero, or at least the order.
        if let Ok(key) = PrivateKey::from_private_key(curve.ecdh(), &candidate) {
            return key;
        }
    }
}

/// AES in CFB mode with an all-zero IV (Part 1, 24.4).
fn encrypt_cfb(key: &[u8], data: &mut [u8]) {
    const UNSUITABLE: &str = "templates have AES-128 or AES-256";
    let iv = [0; 16];
    match key.len() {
        16 => cfb_mode::Encryptor::<Aes128>::new_from_slices(key, &iv).expect(UNSUITABLE).encrypt(data),
        _ => cfb_mode::Encryptor::<Aes256>::new_from_slices(key, &iv).expect(UNSUITABLE).encrypt(data),
    }
}
