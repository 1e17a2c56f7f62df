//! What a TPM would compute, in software: areas, Names, credentials and duplicates, written anew so that the CA is not checked
//! by its own code.
//!
//! All of the cryptography is AWS-LC's. Private operations of RSA and ECDH are most of what a simulated device costs, and this
//! process shares the processors with the server that it measures: RustCrypto's are five to twelve times slower.

pub(crate) mod area;
pub(crate) mod hash;
pub(crate) mod storage_key;
pub(crate) mod wrapper;

use anyhow::{Result, bail};

/// Splits a `TPM2B` off the front.
fn take_sized(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    match bytes.split_at_checked(2) {
        Some((size, rest)) if rest.len() >= usize::from(u16::from_be_bytes([size[0], size[1]])) => {
            Ok(rest.split_at(usize::from(u16::from_be_bytes([size[0], size[1]]))))
        }
        _ => bail!("a sized buffer is cut short"),
    }
}
