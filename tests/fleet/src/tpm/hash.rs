//! The TPM's hashes, and the two key derivation functions on them.

use aws_lc_rs::{digest, hmac};

/// The hashes of the templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    /// Length of its digest in bytes.
    pub(crate) fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    /// The digest of the joined `parts`.
    pub(crate) fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => &digest::SHA256,
            Self::Sha384 => &digest::SHA384,
        };
        let mut context = digest::Context::new(algorithm);
        parts.iter().for_each(|part| context.update(part));
        context.finish().as_ref().to_vec()
    }

    /// The HMAC of the joined `parts`.
    pub(crate) fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        let algorithm = match self {
            Self::Sha256 => hmac::HMAC_SHA256,
            Self::Sha384 => hmac::HMAC_SHA384,
        };
        let mut context = hmac::Context::with_key(&hmac::Key::new(algorithm, key));
        parts.iter().for_each(|part| context.update(part));
        context.sign().as_ref().to_vec()
    }

    /// KDFa (TPM 2.0 Part 1, 11.4.10.2) without context V, because the keys of credentials and
    /// duplicates have none.
    pub(crate) fn kdfa(self, key: &[u8], label: &str, context: &[u8], size: usize) -> Vec<u8> {
        blocks(size, |counter| {
            self.hmac(key, &[counter, label.as_bytes(), &[0], context, &bits(size)])
        })
    }

    /// KDFe (TPM 2.0 Part 1, 11.4.10.3) to the length of this hash. The party infos are x
    /// coordinates as wide as the field.
    pub(crate) fn kdfe(self, z: &[u8], label: &str, party_u: &[u8], party_v: &[u8]) -> Vec<u8> {
        self.digest(&[&1u32.to_be_bytes(), z, label.as_bytes(), &[0], party_u, party_v])
    }

    /// The Name of the object with this public area. Its nameAlg must be SHA-256, as for every IK,
    /// parent and HMAC key.
    pub(crate) fn sha256_name(area: &[u8]) -> Vec<u8> {
        [&TPM_ALG_SHA256[..], &Self::Sha256.digest(&[area])].concat()
    }
}

fn blocks(size: usize, block: impl Fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut out = Vec::with_capacity(size);
    let mut counter = 0u32;
    while out.len() < size {
        counter += 1;
        out.extend_from_slice(&block(&counter.to_be_bytes()));
    }
    out.truncate(size);
    out
}

fn bits(size: usize) -> [u8; 4] {
    (8 * size as u32).to_be_bytes()
}

const TPM_ALG_SHA256: [u8; 2] = [0x00, 0x0b];
