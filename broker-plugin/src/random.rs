//! Randomness from the operating system.

use rand_core::{Rng, UnwrapErr};

/// A cryptographic generator that draws every byte from the kernel, and panics if the kernel cannot give any.
pub(crate) fn random() -> impl rand_core::CryptoRng {
    UnwrapErr(getrandom::SysRng)
}

/// For jitter, and names that only have to differ.
pub fn random_u32() -> u32 {
    random().next_u32()
}

/// For names that must be unguessable.
pub(crate) fn random_u128() -> u128 {
    let mut bytes = [0; 16];
    random().fill_bytes(&mut bytes);
    u128::from_be_bytes(bytes)
}
