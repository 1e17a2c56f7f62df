//! What is protected under a seed: credentials, and the two wrappers of a duplicate.

use anyhow::{Context, Result, ensure};
use aws_lc_rs::cipher::{AES_128, AES_256, DecryptingKey, DecryptionContext, UnboundCipherKey};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::iv::FixedLength;

use super::area::hmac_key_area;
use super::hash::Hash;
use super::storage_key::StorageKey;
use super::take_sized;

/// How an EK or parent protects what is under it: nameAlg and AES key length of its area.
#[derive(Clone, Copy)]
pub(crate) struct Protection {
    pub(crate) hash: Hash,
    pub(crate) aes_key_size: usize,
}

/// TPM2_ActivateCredential (TPM 2.0 Part 1, 24; Part 3, 12.5) for the object called `name`.
pub(crate) fn activate_credential(
    ek: &StorageKey,
    protection: Protection,
    name: &[u8],
    credential_blob: &[u8],
    encrypted_seed: &[u8],
) -> Result<Vec<u8>> {
    let seed = ek.seed(protection.hash, "IDENTITY", encrypted_seed)?;
    let identity = open_outer_wrapper(protection, &seed, name, credential_blob)?;
    let (secret, rest) = take_sized(&identity)?;
    ensure!(rest.is_empty(), "bytes after the secret");
    Ok(secret.to_vec())
}

/// TPM2_Import (TPM 2.0 Part 1, 23.3; Part 3, 13.3) of an HMAC key for the parent. Returns the key
/// itself, which no TPM would show.
pub(crate) fn import_hmac_key(
    parent: &StorageKey,
    inner_key: &[u8],
    area: &[u8],
    duplicate: &[u8],
    symmetric_seed: &[u8],
) -> Result<Vec<u8>> {
    let name = Hash::sha256_name(area);
    let seed = parent.seed(PARENT_PROTECTION.hash, "DUPLICATE", symmetric_seed)?;
    let inner = open_outer_wrapper(PARENT_PROTECTION, &seed, &name, duplicate)?;
    let inner = decrypt_cfb(inner_key, inner)?;
    let (digest, sensitive) = take_sized(&inner)?;
    ensure!(
        digest == Hash::Sha256.digest(&[sensitive, &name]),
        "the inner wrapper's digest is wrong"
    );

    let (sensitive, rest) = take_sized(sensitive)?;
    let (auth, fields) = take_sized(
        sensitive.strip_prefix(&KEYEDHASH).context("not the sensitive area of an HMAC key")?,
    )?;
    let (seed_value, fields) = take_sized(fields)?;
    let (key, end) = take_sized(fields)?;
    ensure!(
        rest.is_empty() && end.is_empty() && auth.is_empty(),
        "the sensitive area is not an HMAC key's"
    );
    // TPM2_Load checks this (Part 1, 27.5.3.3): the public area belongs to this key.
    let unique = Hash::Sha256.digest(&[seed_value, key]);
    ensure!(area == hmac_key_area(&unique), "the public area is not this HMAC key's");
    Ok(key.to_vec())
}

/// Checks and decrypts what is protected under `seed` for the object called `name` (TPM 2.0 Part 1,
/// 22.4 and 24.4).
fn open_outer_wrapper(
    protection: Protection,
    seed: &[u8],
    name: &[u8],
    wrapped: &[u8],
) -> Result<Vec<u8>> {
    let Protection { hash, aes_key_size } = protection;
    let (mac, encrypted) = take_sized(wrapped)?;
    let integrity_key = hash.kdfa(seed, "INTEGRITY", &[], hash.size());
    let expected = hash.hmac(&integrity_key, &[encrypted, name]);
    verify_slices_are_equal(mac, &expected)
        .context("TPM_RC_INTEGRITY: made for another seed or Name")?;
    decrypt_cfb(&hash.kdfa(seed, "STORAGE", name, aes_key_size), encrypted.to_vec())
}

/// AES in full-block feedback, with an IV of zeros.
fn decrypt_cfb(key: &[u8], mut data: Vec<u8>) -> Result<Vec<u8>> {
    let algorithm = if key.len() == 16 { &AES_128 } else { &AES_256 };
    let key = DecryptingKey::cfb128(UnboundCipherKey::new(algorithm, key)?)?;
    let plain = key.decrypt(&mut data, DecryptionContext::Iv128(FixedLength::from([0; 16])))?.len();
    data.truncate(plain);
    Ok(data)
}

/// The protection in both templates of parents.
const PARENT_PROTECTION: Protection = Protection { hash: Hash::Sha256, aes_key_size: 16 };
const KEYEDHASH: [u8; 2] = [0x00, 0x08];
