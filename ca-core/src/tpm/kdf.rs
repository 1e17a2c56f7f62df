//! The TPM's two key derivation functions, and the hashes that they use.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384};
use zeroize::Zeroizing;

use super::algorithms::AlgorithmId;

/// The hashes of the accepted templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

impl Hash {
    /// Its `TPM_ALG_ID`.
    pub const fn tpm_id(self) -> AlgorithmId {
        match self {
            Self::Sha256 => AlgorithmId::SHA256,
            Self::Sha384 => AlgorithmId::SHA384,
        }
    }

    /// Length of its digest in bytes.
    pub const fn digest_bytes(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    /// The digest of the concatenated `parts`.
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn run<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        }
        match self {
            Self::Sha256 => run::<Sha256>(parts),
            Self::Sha384 => run::<Sha384>(parts),
        }
    }

    /// The HMAC of the concatenated `parts`.
    pub fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        fn run<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
            let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes any key length");
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Self::Sha256 => run::<Hmac<Sha256>>(key, parts),
            Self::Sha384 => run::<Hmac<Sha384>>(key, parts),
        }
    }
}

/// KDFa: SP 800-108 in counter mode over HMAC (Part 1, 11.4.10.2).
///
/// `bytes` is the length of the result; `label` is given without its terminating zero.
pub fn kdfa(
    hash: Hash,
    key: &[u8],
    label: &str,
    context_u: &[u8],
    context_v: &[u8],
    bytes: usize,
) -> Zeroizing<Vec<u8>> {
    derive(bytes, |counter| {
        hash.hmac(key, &[counter, label.as_bytes(), &[0], context_u, context_v, &bits(bytes)])
    })
}

/// KDFe: the concatenation KDF of SP 800-56A (Part 1, 11.4.10.3).
///
/// `z` and both party infos are x coordinates padded to the width of the curve's field.
pub fn kdfe(
    hash: Hash,
    z: &[u8],
    label: &str,
    party_u: &[u8],
    party_v: &[u8],
    bytes: usize,
) -> Zeroizing<Vec<u8>> {
    derive(bytes, |counter| hash.digest(&[counter, z, label.as_bytes(), &[0], party_u, party_v]))
}

/// Concatenates blocks numbered from 1 and cuts them to length.
fn derive(bytes: usize, block: impl Fn(&[u8]) -> Vec<u8>) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(bytes + Hash::Sha384.digest_bytes()));
    let mut counter = 0u32;
    while out.len() < bytes {
        counter += 1;
        out.extend_from_slice(&Zeroizing::new(block(&counter.to_be_bytes())));
    }
    out.truncate(bytes);
    out
}

fn bits(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes * 8).expect("derived keys are a few hundred bits").to_be_bytes()
}
