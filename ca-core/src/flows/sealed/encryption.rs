//! AES-256-GCM (SP 800-38D) for certificates that nobody may read yet.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rand_core::CryptoRng;

use crate::Fault;
use crate::flows::mac::TicketKey;
use crate::secret::Overlapping;

/// A certificate that waits for its confirmation. It is stored encrypted, so that nobody who reads
/// the store can read it, and so that nobody can take a sealed certificate for a renewed one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedCertificate(Vec<u8>);

impl EncryptedCertificate {
    /// Takes an encrypted certificate from storage.
    pub fn new(stored: Vec<u8>) -> Self {
        Self(stored)
    }

    /// The bytes, for storage.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a certificate waits for.
///
/// The two are encrypted under different keys. So the CA can tell them apart for certain: a renewed
/// one may be sent in clear and be adopted, a sealed one may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    /// It was sealed, and waits for its device to show that its TPM could open it.
    Sealed,
    /// It is a renewed one, or one for another IK, and waits for its device to adopt it.
    Renewed,
}

impl Waits {
    /// Separates the keys from each other, and from the MACs that are sent to devices.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Sealed => b"assay waiting certificate v1\0",
            Self::Renewed => b"assay renewed certificate v1\0",
        }
    }
}

impl TicketKey {
    /// Encrypts a certificate for as long as it waits (AES-256-GCM, SP 800-38D; random nonces are
    /// good for 2^32 certificates). An attacker with this key can make tickets, and has no use for
    /// a waiting certificate. The certificate is bound to its serial number, so that no other one
    /// can be put in its place.
    pub(crate) fn encrypt(
        &self,
        certificate: &[u8],
        serial: &[u8; 16],
        waits: Waits,
        rng: &mut dyn CryptoRng,
    ) -> Result<EncryptedCertificate, Fault> {
        encrypt(&self.mac(waits.label(), &[]), serial, certificate, rng).map(EncryptedCertificate)
    }

    /// The certificate with this serial number. `None` if it was encrypted under another key or for
    /// another serial number, if it waits for something else, or if it was changed.
    fn decrypt(
        &self,
        encrypted: &EncryptedCertificate,
        serial: &[u8; 16],
        waits: Waits,
    ) -> Option<Vec<u8>> {
        let key =
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*self.mac(waits.label(), &[])).ok()?);
        let (nonce, ciphertext) = encrypted.0.split_first_chunk::<NONCE_LEN>()?;
        let mut content = ciphertext.to_vec();
        let length = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(serial), &mut content)
            .ok()?
            .len();
        content.truncate(length);
        Some(content)
    }
}

impl Overlapping<TicketKey> {
    /// As [`TicketKey::decrypt`], for a certificate that was encrypted under one of these keys.
    pub(crate) fn decrypt(
        &self,
        encrypted: &EncryptedCertificate,
        serial: &[u8; 16],
        waits: Waits,
    ) -> Option<Vec<u8>> {
        self.accepted().find_map(|key| key.decrypt(encrypted, serial, waits))
    }
}

/// Encrypts with AES-256-GCM (SP 800-38D) to nonce, ciphertext, tag.
pub(super) fn encrypt(
    key: &[u8; SEALING_KEY_LEN],
    data: &[u8],
    content: &[u8],
    rng: &mut dyn CryptoRng,
) -> Result<Vec<u8>, Fault> {
    let failed = |_| Fault::Crypto("sealing a certificate");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(failed)?);
    let mut nonce = [0; NONCE_LEN];
    rng.fill_bytes(&mut nonce);
    let mut out = [&nonce, content].concat();
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(data),
            &mut out[NONCE_LEN..],
        )
        .map_err(failed)?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// The length of an AES-256 key. A credential for an EK of any template can hold it.
pub(super) const SEALING_KEY_LEN: usize = 32;
/// By how much [`encrypt`] makes its content longer: the nonce and the tag.
pub(super) const SEALING_OVERHEAD: usize = NONCE_LEN + 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_that_waits_cannot_be_read_without_the_ticket_key() {
        let (der, serial) = (&[7; 600], &[0x41; 16]);
        let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
        let key = TicketKey::new([2; TicketKey::LEN]);
        let mut encrypt = |waits| key.encrypt(der, serial, waits, &mut rng).unwrap();
        let (encrypted, other) = (encrypt(Waits::Sealed), encrypt(Waits::Sealed));
        assert_ne!(encrypted, other, "each under a fresh nonce");
        assert_eq!(key.decrypt(&encrypted, serial, Waits::Sealed).unwrap(), der);
        assert_eq!(key.decrypt(&encrypted, serial, Waits::Renewed), None, "a sealed one");
        let renewed = encrypt(Waits::Renewed);
        assert_eq!(key.decrypt(&renewed, serial, Waits::Renewed).unwrap(), der);
        assert_eq!(key.decrypt(&renewed, serial, Waits::Sealed), None, "a renewed one");
        assert_eq!(
            TicketKey::new([3; TicketKey::LEN]).decrypt(&encrypted, serial, Waits::Sealed),
            None
        );
        assert_eq!(
            key.decrypt(&encrypted, &[1; 16], Waits::Sealed),
            None,
            "in the place of another"
        );
        for byte in 0..encrypted.as_bytes().len() {
            let mut changed = encrypted.as_bytes().to_vec();
            changed[byte] ^= 1;
            assert_eq!(
                key.decrypt(&EncryptedCertificate::new(changed), serial, Waits::Sealed),
                None,
                "{byte}"
            );
        }
        assert_eq!(
            key.decrypt(&EncryptedCertificate::new(vec![1; 11]), serial, Waits::Sealed),
            None
        );
    }
}
