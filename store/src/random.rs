//! Randomness from the operating system.

use rand_core::{Rng, UnwrapErr};

/// A cryptographic generator that draws every byte from the kernel, and panics if the kernel cannot
/// give any.
pub(crate) fn random() -> impl rand_core::CryptoRng {
    UnwrapErr(getrandom::SysRng)
}

/// Random bytes that nobody can guess.
pub(crate) fn random_bytes<const LEN: usize>() -> [u8; LEN] {
    let mut bytes = [0; LEN];
    random().fill_bytes(&mut bytes);
    bytes
}
