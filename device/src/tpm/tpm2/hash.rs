//! The hashes of keys and sessions, and what is derived with them.

use ring::{digest, hmac};
use tpm2_protocol::data::TpmAlgId;
use zeroize::Zeroizing;

use super::parts::CommandError;

/// A hash, on its own and in HMACs.
#[derive(Clone, Copy)]
pub(super) struct Hash {
    digest: &'static digest::Algorithm,
    hmac: hmac::Algorithm,
}

impl Hash {
    /// The hash that a key or a session names.
    pub(super) fn of(algorithm: TpmAlgId) -> Result<Self, CommandError> {
        match algorithm {
            TpmAlgId::Sha256 => Ok(Self { digest: &digest::SHA256, hmac: hmac::HMAC_SHA256 }),
            TpmAlgId::Sha384 => Ok(Self { digest: &digest::SHA384, hmac: hmac::HMAC_SHA384 }),
            TpmAlgId::Sha512 => Ok(Self { digest: &digest::SHA512, hmac: hmac::HMAC_SHA512 }),
            _ => Err(CommandError::BadResponse("a key whose hash is unknown".into())),
        }
    }

    /// The length of a digest, in bytes.
    pub(super) fn len(self) -> usize {
        self.digest.output_len()
    }

    pub(super) fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut context = digest::Context::new(self.digest);
        parts.iter().for_each(|part| context.update(part));
        context.finish().as_ref().to_vec()
    }

    pub(super) fn hmac(self, key: &[u8], parts: &[&[u8]]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&hmac::Key::new(self.hmac, key));
        parts.iter().for_each(|part| context.update(part));
        context.sign()
    }

    pub(super) fn is_hmac(self, key: &[u8], message: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&hmac::Key::new(self.hmac, key), message, tag).is_ok()
    }

    /// KDFa (TPM 2.0 Part 1, 11.4.10.2); `label` ends with a zero.
    pub(super) fn derive(
        self,
        key: &[u8],
        label: &[u8],
        contexts: [&[u8]; 2],
        length: usize,
    ) -> Zeroizing<Vec<u8>> {
        let bits = (8 * length as u32).to_be_bytes();
        let mut derived = Zeroizing::new(Vec::with_capacity(length));
        for counter in 1_u32.. {
            if derived.len() >= length {
                break;
            }
            let block =
                self.hmac(key, &[&counter.to_be_bytes(), label, contexts[0], contexts[1], &bits]);
            let wanted = block.as_ref().len().min(length - derived.len());
            derived.extend_from_slice(&block.as_ref()[..wanted]);
        }
        derived
    }
}
