//! What this crate needs of a TPM: one narrow trait, without the types of a TPM library.

use assay_device_core::{EkKind, IkKind, OpenedKey, ParentKind, WrappedKey};
use zeroize::Zeroizing;

use super::error::TpmError;
use crate::der;

/// One TPM.
///
/// [`Tpm2`](super::Tpm2) implements this trait. Other crates can implement it for a TPM that is
/// reached in another way, or to wrap another implementation, and give theirs to
/// [`Device::with_tpm`](crate::Device::with_tpm). All types in the trait can be made outside of
/// this crate.
///
/// Every call leaves the TPM as the call found it: no transient object and no session stays behind.
/// Only [`create_identity_key`](Tpm::create_identity_key), [`keep_hmac_key`](Tpm::keep_hmac_key)
/// and [`share_identity_key`](Tpm::share_identity_key) add something, and
/// [`remove_key`](Tpm::remove_key) takes something away.
///
/// All calls block, some for many seconds on real chips. [`TpmThread`](super::TpmThread) gives them
/// a thread and a deadline. After an error, the next call must work again if the TPM does.
pub trait Tpm {
    /// Tells the TPM, before all other calls, by which EK the CA knows this device: `id` is the
    /// SHA-256 of the EK's SubjectPublicKeyInfo.
    ///
    /// An implementation that has passwords can then refuse to give them to a TPM with another EK.
    /// It cannot check an EK that is not persistent, if the TPM makes this EK only with a password.
    fn expect_ek(&mut self, kind: EkKind, id: [u8; 32]) {
        _ = (kind, id);
    }

    /// The EK certificate that the manufacturer left in NV memory, in DER, followed by the issuers
    /// found there. Empty if there is none for this kind of EK.
    fn ek_certificates(&mut self, kind: EkKind) -> Result<Vec<Vec<u8>>, TpmError>;

    /// The EK that TCG's default template of this kind gives; `None` if this TPM cannot have such
    /// keys.
    fn endorsement_key(&mut self, kind: EkKind) -> Result<Option<PublicArea>, TpmError>;

    /// The IK at a persistent handle; `None` if the handle is free.
    ///
    /// # Errors
    /// [`TpmError::HandleOccupied`] if what is there does not equal the IK template of this kind.
    fn identity_key(&mut self, kind: IkKind, handle: u32) -> Result<Option<PublicArea>, TpmError>;

    /// Creates an IK under the storage root key and makes it persistent. The handle must be free.
    fn create_identity_key(&mut self, kind: IkKind, handle: u32) -> Result<PublicArea, TpmError>;

    /// The private part of the IK that this value created last, if it created one at this handle:
    /// the contents of its TPM2B_PRIVATE, which the TPM encrypted for the storage root key (TPM 2.0
    /// Part 1, 22). With it, other programs can load the key into this TPM.
    fn private_of_created(&mut self, handle: u32) -> Option<Vec<u8>> {
        _ = handle;
        None
    }

    /// Checks that this private part loads under the storage root key at 0x81000001, and is that of
    /// the IK at a persistent handle. If 0x81000001 is free, the storage root key is made
    /// persistent there first; returns whether it was.
    ///
    /// # Errors
    /// [`TpmError::NotForThisTpm`] if it does not load there, [`TpmError::Unsupported`] if the
    /// implementation cannot do this.
    fn share_identity_key(&mut self, handle: u32, private: &[u8]) -> Result<bool, TpmError> {
        _ = (handle, private);
        Err(TpmError::Unsupported("a key that other programs load".into()))
    }

    /// TPM2_Sign with the IK at a persistent handle. An ECDSA signature is in DER (RFC 3279
    /// §2.2.3), an RSA signature as the TPM gives it.
    fn sign(
        &mut self,
        handle: u32,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, TpmError>;

    /// TPM2_ActivateCredential: the secret that was encrypted to the EK for the Name of the IK at a
    /// persistent handle.
    ///
    /// `blob` and `seed` are the contents of a TPM2B_ID_OBJECT and a TPM2B_ENCRYPTED_SECRET,
    /// without their sizes.
    fn activate(
        &mut self,
        kind: EkKind,
        handle: u32,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError>;

    /// The parent of this kind. The owner hierarchy's seed gives the same one at every call. For a
    /// plain storage root key, it is the persistent one, if that has the right shape. `None` if
    /// this TPM cannot have such keys.
    fn parent(&mut self, kind: ParentKind) -> Result<Option<PublicArea>, TpmError>;

    /// The TPMT_PUBLIC of the HMAC key at a persistent handle; `None` if the handle is free.
    ///
    /// # Errors
    /// [`TpmError::HandleOccupied`] if the object there does not have the shape of an HMAC key from
    /// a CA.
    fn hmac_key(&mut self, handle: u32) -> Result<Option<Vec<u8>>, TpmError>;

    /// Opens the key that a CA sent to this EK and this parent. The TPM checks that the sender knew
    /// the secret that belongs to the key's public area. The TPM does not keep the key yet.
    ///
    /// # Errors
    /// [`TpmError::NotForThisTpm`] if the key was not made for this EK and this parent, or has
    /// another shape.
    fn open_hmac_key(
        &mut self,
        ek: EkKind,
        parent: ParentKind,
        key: &WrappedKey,
    ) -> Result<OpenedKey, TpmError>;

    /// Makes an opened key persistent.
    ///
    /// If the handle holds this very key already, nothing happens. If it holds the key `replaced`
    /// (a TPMT_PUBLIC), that key is removed once the new one is loaded. If the process is killed
    /// before the new key is persistent, the handle may be free.
    ///
    /// # Errors
    /// [`TpmError::HandleOccupied`] if the handle holds anything else, which stays as it is.
    fn keep_hmac_key(
        &mut self,
        parent: ParentKind,
        handle: u32,
        key: &OpenedKey,
        replaced: Option<&[u8]>,
    ) -> Result<(), TpmError>;

    /// Removes the key at a persistent handle if it is this one (a TPMT_PUBLIC). What else is there
    /// stays, as does everything if the handle is free.
    fn remove_key(&mut self, handle: u32, public: &[u8]) -> Result<(), TpmError>;

    /// TPM2_GetCapability: the TPM's properties from `first` to the end of its group (TPM 2.0 Part
    /// 2, 6.13), each a tag and a value.
    fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>, TpmError>;

    /// Makes the TPM test what it has not tested yet.
    ///
    /// # Errors
    /// [`TpmError::Refused`] if something failed, now or before.
    fn self_test(&mut self) -> Result<(), TpmError>;

    /// TPM2_HMAC with the key at a persistent handle: HMAC-SHA-256 of at most [`MAX_HMAC_DATA`]
    /// bytes.
    fn hmac(&mut self, handle: u32, data: &[u8]) -> Result<Vec<u8>, TpmError>;
}

/// The most that [`Tpm::hmac`] takes, in bytes: the smallest TPM2B_MAX_BUFFER of any TPM (TPM 2.0
/// Part 2, 10.4.8).
pub const MAX_HMAC_DATA: usize = 1024;

/// How an IK signs a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureScheme {
    /// ECDSA over P-256 with SHA-256.
    EcdsaSha256,
    /// ECDSA over P-384 with SHA-384.
    EcdsaSha384,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RsaPkcs1Sha256,
    /// RSASSA-PSS with SHA-256. The length of the salt is the TPM's choice (TPM 2.0 Part 1, B.7).
    RsaPssSha256,
}

/// The public part of a key in a TPM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicArea {
    /// TPMT_PUBLIC (TPM 2.0 Part 2, 12.2.4), without the size of a TPM2B.
    pub bytes: Vec<u8>,
    /// The key itself.
    pub key: PublicKey,
}

/// A public key. Numbers are big-endian, as long as the field or the modulus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublicKey {
    /// A point on NIST P-256.
    P256([u8; 32], [u8; 32]),
    /// A point on NIST P-384.
    P384([u8; 48], [u8; 48]),
    /// The modulus; the public exponent is 65537.
    Rsa(Vec<u8>),
}

impl PublicKey {
    /// What the BIT STRING of a SubjectPublicKeyInfo holds: an uncompressed point (SEC 1 §2.3.3) or
    /// an RSAPublicKey (RFC 8017 A.1.1).
    pub fn subject_public_key(&self) -> Vec<u8> {
        match self {
            Self::P256(x, y) => [&[4], &x[..], y].concat(),
            Self::P384(x, y) => [&[4], &x[..], y].concat(),
            Self::Rsa(modulus) => der::sequence(&[
                &der::unsigned_integer(modulus),
                &der::unsigned_integer(&[1, 0, 1]),
            ]),
        }
    }

    /// SubjectPublicKeyInfo (RFC 5280 §4.1.2.7) in DER.
    pub fn subject_public_key_info(&self) -> Vec<u8> {
        let algorithm: &[&[u8]] = match self {
            Self::P256(..) => &[der::OID_EC_PUBLIC_KEY, der::OID_P256],
            Self::P384(..) => &[der::OID_EC_PUBLIC_KEY, der::OID_P384],
            Self::Rsa(_) => &[der::OID_RSA_ENCRYPTION, der::NULL],
        };
        der::sequence(&[&der::sequence(algorithm), &der::bit_string(&self.subject_public_key())])
    }

    /// SHA-256 of the SubjectPublicKeyInfo, by which operators and the CA know a key.
    pub fn id(&self) -> [u8; 32] {
        id_of_key(&self.subject_public_key_info())
    }
}

pub(crate) fn id_of_key(subject_public_key_info: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, subject_public_key_info);
    // Unwrap safety: SHA-256 has 32 bytes.
    digest.as_ref().try_into().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subject_public_key_info_is_what_ring_writes() {
        use ring::signature::KeyPair;

        let random = ring::rand::SystemRandom::new();
        let algorithm = &ring::signature::ECDSA_P256_SHA256_ASN1_SIGNING;
        let pkcs8 = ring::signature::EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair =
            ring::signature::EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap();
        let point = pair.public_key().as_ref();
        let key =
            PublicKey::P256(point[1..33].try_into().unwrap(), point[33..].try_into().unwrap());
        assert_eq!(key.subject_public_key(), point);
        let head = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        assert_eq!(hex(&key.subject_public_key_info()), format!("{head}{}", hex(point)));
    }
}
