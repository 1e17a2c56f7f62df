//! TPM2_MakeCredential in software: a secret that only a TPM with both an EK and a named object can
//! read.
//!
//! A device that shows the secret proves that the EK's private key and an object with exactly that
//! Name are in one TPM. It does not prove what the object is; the [templates](super::template) do.

use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::public::{Name, put_sized};
use super::template::EkArea;
use crate::Fault;

/// What TPM2_ActivateCredential takes besides the two keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// `TPMS_ID_OBJECT` (Part 2, 12.4.2): the content of a `TPM2B_ID_OBJECT`, without its size.
    pub id_object: Vec<u8>,
    /// The content of a `TPM2B_ENCRYPTED_SECRET` (Part 2, 11.4.3), without its size.
    pub encrypted_seed: Vec<u8>,
}

/// Encrypts `secret` to an EK and the object with this Name (Part 1, 24).
///
/// `secret` may be as long as the digest of the EK's `nameAlg`, so 32 bytes fit every template. For
/// RSA EKs the padding's randomness comes from the cryptographic library, everything else from
/// `rng`.
pub fn make_credential(
    ek: &EkArea,
    name: &Name,
    secret: &[u8],
    rng: &mut dyn CryptoRng,
) -> Result<Credential, Fault> {
    assert!(
        secret.len() <= ek.hash().digest_bytes(),
        "TPM2_ActivateCredential refuses a longer secret"
    );
    let mut identity = Zeroizing::new(Vec::new());
    put_sized(&mut identity, secret);
    let wrapped = ek.storage_key().wrap("IDENTITY", name, identity, rng)?;
    Ok(Credential { id_object: wrapped.content, encrypted_seed: wrapped.encrypted_seed })
}
