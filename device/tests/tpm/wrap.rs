//! The CA's side of an HMAC key, implemented again from TPM 2.0 Part 1, 11.4.10, 23.3 and 24, and
//! C.6, for P-256 and SHA-256.

use aes::Aes128;
use aes::cipher::KeyIvInit;
use assay_device::tpm::{PublicArea, PublicKey, WrappedKey};
use hmac::{Hmac, KeyInit, Mac};
use p256::elliptic_curve::sec1::ToSec1Point;
use sha2::{Digest, Sha256};

use crate::name_of;

/// Wraps an HMAC key for an EK and a parent, both on P-256.
pub(crate) fn wrap(key: &[u8; 32], ek: &PublicArea, parent: &PublicArea) -> WrappedKey {
    wrap_as(key, hmac_public(key, &SEED_VALUE), ek, parent)
}

/// Wraps an HMAC key under a public area that need not be its own.
pub(crate) fn wrap_as(
    key: &[u8; 32],
    public: Vec<u8>,
    ek: &PublicArea,
    parent: &PublicArea,
) -> WrappedKey {
    let name = name(&public);
    let (credential_blob, encrypted_seed) = credential(ek, parent, &INNER_KEY);
    let sensitive =
        sized(&[&[0x00, 0x08], &sized(b"")[..], &sized(&SEED_VALUE), &sized(key)].concat());
    let integrity = Sha256::new().chain_update(&sensitive).chain_update(&name).finalize();
    let inner = encrypted(&INNER_KEY, [sized(&integrity), sensitive].concat());
    let (seed, symmetric_seed) = secret_for(&parent.key, b"DUPLICATE", &[0x22; 32]);
    let duplicate = protected(&seed, &name, inner);
    WrappedKey { credential_blob, encrypted_seed, duplicate, symmetric_seed, public }
}

/// TPMS_ID_OBJECT and encrypted seed of a credential with this secret, for an EK on P-256 and
/// another key (Part 1, 24).
pub(crate) fn credential(
    ek: &PublicArea,
    object: &PublicArea,
    secret: &[u8],
) -> (Vec<u8>, Vec<u8>) {
    let (seed, encrypted_seed) = secret_for(&ek.key, b"IDENTITY", &[0x11; 32]);
    (protected(&seed, &name_of(object), sized(secret)), encrypted_seed)
}

/// TPMT_PUBLIC: KEYEDHASH, SHA-256, userWithAuth | noDA | sign, no policy, HMAC with SHA-256.
fn hmac_public(key: &[u8], seed_value: &[u8]) -> Vec<u8> {
    let unique = Sha256::new().chain_update(seed_value).chain_update(key).finalize();
    [
        &[0x00, 0x08, 0x00, 0x0B, 0x00, 0x04, 0x04, 0x40, 0x00, 0x00, 0x00, 0x05, 0x00, 0x0B][..],
        &sized(&unique),
    ]
    .concat()
}

fn name(public: &[u8]) -> Vec<u8> {
    [&[0x00, 0x0B], &Sha256::digest(public)[..]].concat()
}

/// A seed, and the TPMS_ECC_POINT from which the owner of the key computes it again (C.6.1).
fn secret_for(key: &PublicKey, label: &[u8], ephemeral: &[u8; 32]) -> (Vec<u8>, Vec<u8>) {
    let PublicKey::P256(x, y) = key else { panic!("not on P-256") };
    let recipient = p256::PublicKey::from_sec1_bytes(&[&[4], &x[..], y].concat()).unwrap();
    let ephemeral = p256::SecretKey::from_slice(ephemeral).unwrap();
    let shared = p256::ecdh::diffie_hellman(ephemeral.to_nonzero_scalar(), recipient.as_affine());
    let point = ephemeral.public_key().to_sec1_point(false);
    let (our_x, our_y) = (point.x().unwrap(), point.y().unwrap());
    // KDFe (Part 1, 11.4.10.3), one block.
    let seed = Sha256::new()
        .chain_update(1u32.to_be_bytes())
        .chain_update(shared.raw_secret_bytes())
        .chain_update(label)
        .chain_update([0])
        .chain_update(our_x)
        .chain_update(x)
        .finalize();
    (seed.to_vec(), [sized(our_x), sized(our_y)].concat())
}

/// Encrypts contents, and puts an integrity value in front, as in credentials (Part 1, 24) and
/// duplicates (23.3.2.3).
fn protected(seed: &[u8], name: &[u8], contents: Vec<u8>) -> Vec<u8> {
    let encrypted = encrypted(&kdfa(seed, b"STORAGE", name, 128)[..16], contents);
    let integrity = hmac(&kdfa(seed, b"INTEGRITY", b"", 256), &[&encrypted, name].concat());
    [sized(&integrity), encrypted].concat()
}

/// KDFa (Part 1, 11.4.10.2), one block.
fn kdfa(key: &[u8], label: &[u8], context: &[u8], bits: u32) -> Vec<u8> {
    hmac(key, &[&1u32.to_be_bytes()[..], label, &[0], context, &bits.to_be_bytes()].concat())
}

fn encrypted(key: &[u8], mut contents: Vec<u8>) -> Vec<u8> {
    cfb_mode::Encryptor::<Aes128>::new_from_slices(key, &[0; 16]).unwrap().encrypt(&mut contents);
    contents
}

pub(crate) fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(data).finalize().into_bytes().to_vec()
}

pub(crate) const INNER_KEY: [u8; 16] = [0x1E; 16];
const SEED_VALUE: [u8; 32] = [0x5E; 32];

fn sized(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}
