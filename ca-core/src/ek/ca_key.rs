//! A CA's key, by which an operator names the CA.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::hex;

/// A CA's key: SHA-256 of its SubjectPublicKeyInfo. Unlike the digest of a certificate, it stays
/// when somebody changes a signature, or when the CA gets another certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaKey([u8; 32]);

impl CaKey {
    pub(crate) fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }
}

impl fmt::Display for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for CaKey {
    type Err = NotACaKey;

    fn from_str(text: &str) -> Result<Self, NotACaKey> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or(NotACaKey)
    }
}

/// The text is not the digest of a CA's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a CA's key is a SHA-256 digest: 64 hexadecimal digits")]
pub struct NotACaKey;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_as_it_is_written() {
        let text = "ab".repeat(32);
        assert_eq!(text.parse::<CaKey>().unwrap().to_string(), text);
        assert_eq!("ab".parse::<CaKey>(), Err(NotACaKey));
    }
}
