//! Random bytes from the operating system.

use ring::rand::{SecureRandom, SystemRandom};

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Unwrap safety: getrandom(2) does not fail on the kernels that Rust's standard library
    // supports.
    SystemRandom::new().fill(&mut bytes).unwrap();
    bytes
}
