//! The salt of a session: a secret that only a key in the TPM can read (TPM 2.0 Part 1, 19.6).

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use ring::agreement::{self, ECDH_P256, ECDH_P384, EphemeralPrivateKey, UnparsedPublicKey};
use ring::rand::{SecureRandom, SystemRandom};
use tpm2_protocol::data::TpmtPublic;
use zeroize::Zeroizing;

use super::hash::Hash;
use super::object;
use super::parts::CommandError;
use crate::tpm::interface::PublicKey;

/// A salt, and its encrypted form for the TPM.
pub(super) struct Salt {
    pub(super) value: Zeroizing<Vec<u8>>,
    /// The content of a TPM2B_ENCRYPTED_SECRET.
    pub(super) encrypted: Vec<u8>,
}

impl Salt {
    /// A fresh salt that only the owner of this storage key or EK can read. It is as long as a
    /// digest of the key's `nameAlg`.
    pub(super) fn for_key(public: &TpmtPublic) -> Result<Self, CommandError> {
        let hash = Hash::of(public.name_alg)?;
        match object::public_key(public) {
            Some(PublicKey::P256(x, y)) => agreed(&ECDH_P256, hash, &x, &y),
            Some(PublicKey::P384(x, y)) => agreed(&ECDH_P384, hash, &x, &y),
            Some(PublicKey::Rsa(modulus)) => padded(hash, &modulus),
            None => Err(unusable()),
        }
    }
}

pub(super) fn random(bytes: &mut [u8]) -> Result<(), CommandError> {
    let filled = SystemRandom::new().fill(bytes);
    filled.map_err(|_| CommandError::BadArgument("the system gives no random numbers".into()))
}

/// ECDH with a key that is used once, and KDFe (TPM 2.0 Part 1, 11.4.10.3 and C.6.1).
fn agreed(
    curve: &'static agreement::Algorithm,
    hash: Hash,
    x: &[u8],
    y: &[u8],
) -> Result<Salt, CommandError> {
    let ours =
        EphemeralPrivateKey::generate(curve, &SystemRandom::new()).map_err(|_| unusable())?;
    let public = ours.compute_public_key().map_err(|_| unusable())?;
    // An uncompressed point (SEC 1 §2.3.3).
    let (our_x, our_y) = public.as_ref()[1..].split_at(x.len());
    let theirs = UnparsedPublicKey::new(curve, [&[4], x, y].concat());
    let value = agreement::agree_ephemeral(ours, &theirs, |shared| {
        // One round is enough: the salt is as long as the digest.
        Zeroizing::new(hash.digest(&[&1_u32.to_be_bytes(), shared, LABEL, our_x, x]))
    });
    let encrypted = [our_x, our_y]
        .map(|coordinate| [&(coordinate.len() as u16).to_be_bytes(), coordinate].concat());
    Ok(Salt { value: value.map_err(|_| unusable())?, encrypted: encrypted.concat() })
}

/// RSAES-OAEP (TPM 2.0 Part 1, B.4 and B.10.2; RFC 8017 §7.1.1).
fn padded(hash: Hash, modulus: &[u8]) -> Result<Salt, CommandError> {
    let length = hash.len();
    let mut value = Zeroizing::new(vec![0; length]);
    let mut seed = Zeroizing::new(vec![0; length]);
    random(&mut value)?;
    random(&mut seed)?;
    // lHash, zeros, 1, message
    let zeros = modulus.len().checked_sub(3 * length + 2).ok_or_else(unusable)?;
    let mut block = Zeroizing::new(hash.digest(&[LABEL]));
    block.resize(length + zeros, 0);
    block.push(1);
    block.extend_from_slice(&value);
    mask(hash, &seed, &mut block);
    mask(hash, &block, &mut seed);
    let padded = Zeroizing::new([&[0], &seed[..], &block].concat());
    Ok(Salt { encrypted: rsa(modulus, &padded).ok_or_else(unusable)?, value })
}

/// MGF1 (RFC 8017 §B.2.1).
fn mask(hash: Hash, seed: &[u8], bytes: &mut [u8]) {
    for (counter, block) in (0_u32..).zip(bytes.chunks_mut(hash.len())) {
        for (byte, mask) in block.iter_mut().zip(hash.digest(&[seed, &counter.to_be_bytes()])) {
            *byte ^= mask;
        }
    }
}

/// RSAEP (RFC 8017 §5.1.1) with the exponent 65537; as long as the modulus.
fn rsa(modulus: &[u8], message: &[u8]) -> Option<Vec<u8>> {
    let bits = u32::try_from(8 * modulus.len()).ok()?;
    let number = |bytes| BoxedUint::from_be_slice(bytes, bits).ok();
    let modulus: Option<_> = Odd::new(number(modulus)?).into();
    let parameters = BoxedMontyParams::new(modulus?);
    let power =
        BoxedMontyForm::new(number(message)?, &parameters).pow(&BoxedUint::from(65_537_u32));
    Some(power.retrieve().to_be_bytes().into_vec())
}

fn unusable() -> CommandError {
    CommandError::BadResponse("a key that no salt can be encrypted to".into())
}

/// Both schemes ask for the zero at its end.
const LABEL: &[u8] = b"SECRET\0";
