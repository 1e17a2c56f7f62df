//! A salted session: the HMACs of commands and responses, and what is encrypted in them.

use aes::Aes128;
use aes::cipher::KeyIvInit;
use tpm2_protocol::data::{TpmaSession, TpmsAuthCommand, TpmsAuthResponse};
use zeroize::Zeroizing;

use super::hash::Hash;
use super::parts::{CommandError, sized};
use super::salt::{self, Salt};

/// A session whose key nobody on the bus knows (TPM 2.0 Part 1, 19.6.8 and 19.6.11).
pub(super) struct Session {
    pub(super) handle: u32,
    hash: Hash,
    key: Zeroizing<Vec<u8>>,
    nonce_caller: Vec<u8>,
    nonce_tpm: Vec<u8>,
}

/// What a session does for one command, besides authorising it.
#[derive(Clone, Copy)]
pub(super) struct Use<'a> {
    pub(super) session: u32,
    /// The authValue of the object that the session authorises. Empty if it has none, or if the
    /// session only encrypts.
    pub(super) auth_value: &'a [u8],
    pub(super) attributes: TpmaSession,
}

impl Session {
    /// The session that TPM2_StartAuthSession gave for this salt and these nonces.
    pub(super) fn new(
        handle: u32,
        hash: Hash,
        salt: &Salt,
        nonce_caller: Vec<u8>,
        nonce_tpm: Vec<u8>,
    ) -> Self {
        let key = hash.derive(&salt.value, b"ATH\0", [&nonce_tpm, &nonce_caller], hash.len());
        Self { handle, hash, key, nonce_caller, nonce_tpm }
    }

    /// Begins a command: makes a fresh nonce, and encrypts the first parameter if the use says so.
    pub(super) fn begin(
        &mut self,
        usage: Use<'_>,
        parameters: &mut [u8],
    ) -> Result<(), CommandError> {
        salt::random(&mut self.nonce_caller)?;
        if usage.attributes.contains(TpmaSession::DECRYPT) {
            let derived = self.derive(usage, [&self.nonce_caller, &self.nonce_tpm]);
            cipher::<cfb_mode::Encryptor<Aes128>>(&derived).encrypt(first(parameters)?);
        }
        Ok(())
    }

    /// Authorises a command (TPM 2.0 Part 1, 18.7 and 19.6.5). The HMAC contains no nonce of
    /// another session, because none of our other sessions encrypts what the first one authorises.
    pub(super) fn authorise(
        &self,
        usage: Use<'_>,
        command: &[&[u8]],
    ) -> Result<TpmsAuthCommand, CommandError> {
        let digest = self.hash.digest(command);
        let attributes = [usage.attributes.bits()];
        let message = [&digest, &self.nonce_caller, &self.nonce_tpm, &attributes[..]];
        Ok(TpmsAuthCommand {
            session_handle: self.handle.into(),
            nonce: sized(&self.nonce_caller, "a nonce")?,
            session_attributes: usage.attributes,
            hmac: sized(self.hash.hmac(&self.key_with(usage), &message).as_ref(), "an HMAC")?,
        })
    }

    /// Checks that the TPM made this response to that command (TPM 2.0 Part 1, 18.8 and 19.6.5),
    /// and then decrypts its first parameter if the use says so.
    pub(super) fn end(
        &mut self,
        usage: Use<'_>,
        code: [u8; 4],
        parameters: &mut [u8],
        answer: &TpmsAuthResponse,
    ) -> Result<(), CommandError> {
        let digest = self.hash.digest(&[&SUCCESS, &code, parameters]);
        let attributes = [answer.session_attributes.bits()];
        let message = [&digest, &answer.nonce[..], &self.nonce_caller, &attributes].concat();
        if !self.hash.is_hmac(&self.key_with(usage), &message, &answer.hmac) {
            return Err(CommandError::BadResponse(
                "its HMAC is wrong: somebody altered the response, or made it with another key"
                    .into(),
            ));
        }
        self.nonce_tpm = answer.nonce.to_vec();
        if usage.attributes.contains(TpmaSession::ENCRYPT) {
            let derived = self.derive(usage, [&self.nonce_tpm, &self.nonce_caller]);
            cipher::<cfb_mode::Decryptor<Aes128>>(&derived).decrypt(first(parameters)?);
        }
        Ok(())
    }

    /// Key and initialisation vector of one parameter (TPM 2.0 Part 1, 21.3); the newer nonce comes
    /// first.
    fn derive(&self, usage: Use<'_>, nonces: [&[u8]; 2]) -> Zeroizing<Vec<u8>> {
        self.hash.derive(&self.key_with(usage), b"CFB\0", nonces, 2 * AES_BLOCK)
    }

    fn key_with(&self, usage: Use<'_>) -> Zeroizing<Vec<u8>> {
        Zeroizing::new([&self.key, usage.auth_value].concat())
    }
}

fn cipher<C: KeyIvInit>(derived: &[u8]) -> C {
    // Unwrap safety: both are as long as a block of AES.
    C::new_from_slices(&derived[..AES_BLOCK], &derived[AES_BLOCK..]).unwrap()
}

/// The content of the first parameter. It is always a TPM2B if it is encrypted.
fn first(parameters: &mut [u8]) -> Result<&mut [u8], CommandError> {
    let size = parameters.first_chunk().map(|size| usize::from(u16::from_be_bytes(*size)));
    let content = size.and_then(|size| parameters.get_mut(2..2 + size));
    content
        .ok_or_else(|| CommandError::BadResponse("an encrypted parameter that ends early".into()))
}

/// In bytes. AES-128 has a key of the same length.
const AES_BLOCK: usize = 16;
/// TPM_RC_SUCCESS: a response of any other kind has no sessions (TPM 2.0 Part 1, 18.8).
const SUCCESS: [u8; 4] = [0; 4];
