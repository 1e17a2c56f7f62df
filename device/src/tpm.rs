//! What provisioning needs of a TPM, as one narrow trait without a TPM library's types in it.

mod tcti;
mod thread;
mod tpm2;

use std::fmt;
use std::time::Duration;

use zeroize::Zeroizing;

pub use tcti::{Tcti, TctiError};
pub use thread::TpmThread;
pub use tpm2::Tpm2;
pub(crate) use tpm2::is_of_default_template;

use crate::der;
use crate::named::named_kind;

/// One TPM. Every call leaves it as it was found, but for the keys that
/// [`create_identity_key`](Tpm::create_identity_key) makes and
/// [`keep_hmac_key`](Tpm::keep_hmac_key) brings: no transient object and no session stays behind.
///
/// All calls block, some for many seconds on real chips; [`TpmThread`] gives them a thread and a
/// deadline.
pub trait Tpm {
    /// The EK certificate that the manufacturer left in NV memory, in DER, followed by the issuers
    /// found there. Empty if there is none for this kind of EK.
    fn ek_certificates(&mut self, kind: EkKind) -> Result<Vec<Vec<u8>>, TpmError>;

    /// The EK that TCG's default template for this kind gives; `None` if this TPM cannot have such
    /// keys.
    fn endorsement_key(&mut self, kind: EkKind) -> Result<Option<PublicArea>, TpmError>;

    /// The IK at a persistent handle; `None` if the handle is free.
    ///
    /// # Errors
    /// [`TpmError::HandleOccupied`] if what is there does not equal the IK template of this kind.
    fn identity_key(&mut self, kind: IkKind, handle: u32) -> Result<Option<PublicArea>, TpmError>;

    /// Creates an IK under the storage root key and makes it persistent. The handle must be free.
    fn create_identity_key(&mut self, kind: IkKind, handle: u32) -> Result<PublicArea, TpmError>;

    /// TPM2_Sign with the IK at a persistent handle: ECDSA as the DER of RFC 3279 §2.2.3, RSA as it
    /// is.
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

    /// The parent of this kind that the owner hierarchy's seed gives, which is the same at every
    /// call; of a plain storage root key, the persistent one if that has the shape. `None` if this
    /// TPM cannot have such keys.
    fn parent(&mut self, kind: ParentKind) -> Result<Option<PublicArea>, TpmError>;

    /// The TPMT_PUBLIC of the HMAC key at a persistent handle; `None` if the handle is free.
    ///
    /// # Errors
    /// [`TpmError::HandleOccupied`] if what is there has not the shape of an HMAC key from a CA.
    fn hmac_key(&mut self, handle: u32) -> Result<Option<Vec<u8>>, TpmError>;

    /// Opens the key that a CA sent to this EK and this parent. The TPM checks that whoever sent it
    /// knows the secret that belongs to its public area. Nothing is kept yet.
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
    /// If the handle holds this very key already, nothing is done. If it holds the key `replaced`
    /// (a TPMT_PUBLIC), that one is removed once the new one is loaded; whoever is killed before
    /// the new one is persistent finds the handle free.
    ///
    /// # Errors
    /// [`TpmError::HandleOccupied`] if the handle holds anything else. It is left alone.
    fn keep_hmac_key(
        &mut self,
        parent: ParentKind,
        handle: u32,
        key: &OpenedKey,
        replaced: Option<&[u8]>,
    ) -> Result<(), TpmError>;

    /// TPM2_GetCapability: the TPM's properties from `first` to the end of its group (TPM 2.0 Part
    /// 2, 6.13), each a tag and a value.
    fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>, TpmError>;

    /// Has the TPM test what it has not tested yet.
    ///
    /// # Errors
    /// [`TpmError::Refused`] if something failed, now or before.
    fn self_test(&mut self) -> Result<(), TpmError>;

    /// TPM2_HMAC with the key at a persistent handle: HMAC-SHA-256 of at most [`MAX_HMAC_DATA`]
    /// bytes.
    fn hmac(&mut self, handle: u32, data: &[u8]) -> Result<Vec<u8>, TpmError>;
}

/// The most that [`Tpm::hmac`] takes, in bytes: TPM2B_MAX_BUFFER (TPM 2.0 Part 2, 10.4.8) where it
/// is smallest.
pub const MAX_HMAC_DATA: usize = 1024;

/// An HMAC key as a CA sends it: for one EK and one parent. Every field is the content of a TPM2B,
/// without its size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// TPM2B_ID_OBJECT for the parent's Name: the key of the inner wrapper, for AES-128-CFB.
    pub credential_blob: Vec<u8>,
    /// The TPM2B_ENCRYPTED_SECRET of that credential.
    pub encrypted_seed: Vec<u8>,
    /// TPM2B_PRIVATE: the key in its inner and outer wrapper (TPM 2.0 Part 1, 23.3).
    pub duplicate: Vec<u8>,
    /// The TPM2B_ENCRYPTED_SECRET of the outer wrapper.
    pub symmetric_seed: Vec<u8>,
    /// TPMT_PUBLIC.
    pub public: Vec<u8>,
}

/// An HMAC key that this TPM has opened, and that it alone can load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedKey {
    /// TPMT_PUBLIC.
    public: Vec<u8>,
    /// The content of a TPM2B_PRIVATE, encrypted by the TPM for the parent.
    private: Vec<u8>,
}

impl OpenedKey {
    /// The key's TPMT_PUBLIC.
    pub fn public(&self) -> &[u8] {
        &self.public
    }
}

/// Why the TPM did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TpmError {
    /// The TPM, or the way to it, is not there.
    #[error("no TPM at {tcti} ({operation} failed: {reason}): {hint}", hint = connection_hint(tcti))]
    Unreachable {
        /// What was being done.
        operation: &'static str,
        /// Where the TPM was looked for.
        tcti: Tcti,
        /// What the system says.
        reason: String,
    },
    /// The TPM did not answer in time. It is not asked again: a second command would only wait
    /// behind the first.
    #[error(
        "the TPM was still {operation} after {} s; check that nothing else holds it, or allow more time (--tpm-timeout)",
        limit.as_secs()
    )]
    TimedOut {
        /// What was being done.
        operation: &'static str,
        /// How long it was allowed to take.
        limit: Duration,
    },
    /// An earlier call timed out, so the TPM is no longer used.
    #[error("the TPM is not asked again after it timed out; open it anew")]
    Abandoned,
    /// A hierarchy is protected by another password.
    #[error(
        "{operation}: the TPM refused the {hierarchy} password; give the right one in a file \
         (--{hierarchy}-auth-file) or the environment"
    )]
    WrongPassword {
        /// What was being done.
        operation: &'static str,
        /// `owner` or `endorsement`.
        hierarchy: &'static str,
    },
    /// The handle of the IK or of the HMAC key holds something else, which is left alone.
    #[error(
        "persistent handle {handle:#010x} holds {found}, not {wanted}; choose another handle \
         ({option}), or remove the object if nobody needs it: tpm2_evictcontrol -c {handle:#010x}"
    )]
    HandleOccupied {
        /// The handle.
        handle: u32,
        /// What was looked for, e.g. `an identity key of kind p-256`.
        wanted: String,
        /// What is there.
        found: String,
        /// The command line's option for another handle.
        option: &'static str,
    },
    /// A key has a password, so this program did not make it.
    #[error(
        "{operation}: the key at persistent handle {handle:#010x} has a password, so it is not \
         this device's; choose another one ({option})"
    )]
    KeyWithPassword {
        /// What was being done.
        operation: &'static str,
        /// The handle of the key.
        handle: u32,
        /// The command line's option for another key.
        option: &'static str,
    },
    /// The TPM cannot open a key that was sent to it.
    #[error("{operation}: not made for this TPM's EK and parent: {reason}")]
    NotForThisTpm {
        /// What was being done.
        operation: &'static str,
        /// What the TPM says, or what was wrong before it was asked.
        reason: String,
    },
    /// The TPM shows another EK than before, or than the CA knows this device by.
    #[error(
        "{operation}: the TPM shows another EK than the one by which the CA knows this device: it \
         is another TPM, or somebody changes what goes over its bus; it was given no password. If \
         the TPM was replaced, use a new state directory (--state)"
    )]
    OtherEk {
        /// What was being done.
        operation: &'static str,
    },
    /// Nobody whose password is known may read an EK certificate.
    #[error(
        "the TPM does not let NV index {index:#010x} be read, where an EK certificate is; give \
         the certificate in a file (--ek-certificate), or the owner's password if it takes that \
         (--owner-auth-file)"
    )]
    Unreadable {
        /// The NV index.
        index: u32,
    },
    /// This TPM cannot have such keys.
    #[error("this TPM has no {0} keys")]
    Unsupported(String),
    /// The TPM refused a command.
    #[error("{operation}: the TPM answered {code:#x}: {reason}")]
    Refused {
        /// What was being done.
        operation: &'static str,
        /// The TPM_RC (TPM 2.0 Part 2, 6.6).
        code: u32,
        /// What the code means.
        reason: String,
    },
    /// What the TPM was to be given fits into no command.
    #[error("{operation}: {reason}")]
    BadArgument {
        /// What was being done.
        operation: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// What came back is no response to what was sent.
    #[error("{operation}: the TPM's response is malformed: {reason}")]
    BadResponse {
        /// What was being done.
        operation: &'static str,
        /// What is wrong with the response.
        reason: String,
    },
}

fn connection_hint(tcti: &Tcti) -> &'static str {
    if tcti.is_of_library() {
        "is it running, and is libtss2's module for it installed (libtss2-tcti-…)? \
         TSS2_LOG=all+ERROR says more"
    } else if tcti.is_device() {
        "is the device there, and may this user open it (group tss)?"
    } else {
        "is it running?"
    }
}

/// The passwords of the hierarchies, empty where there is none.
#[derive(Clone, Debug, Default)]
pub struct HierarchyPasswords {
    /// Needed to make the IK persistent.
    pub owner: Password,
    /// Needed to create and to use an EK.
    pub endorsement: Password,
}

/// A TPM password: at most [`Password::MAX`] bytes. Kept out of logs and wiped on drop; what is
/// copied into a command on its way to the TPM is not all wiped.
#[derive(Clone, Default)]
pub struct Password(Zeroizing<Vec<u8>>);

impl Password {
    /// The longest, in bytes: a TPM2B_AUTH holds one digest (TPM 2.0 Part 2, 10.4.5), SHA-512 at
    /// most.
    pub const MAX: usize = 64;

    /// Takes the password over; `None` if it is too long.
    pub fn new(password: Vec<u8>) -> Option<Self> {
        let password = Zeroizing::new(password);
        (password.len() <= Self::MAX).then_some(Self(password))
    }

    /// As a TPM keeps it (TPM 2.0 Part 1, 19.6.4).
    fn without_zeros(&self) -> &[u8] {
        let end = self.0.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        &self.0[..end]
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

/// The kinds of EK we use, each with one template; those of TCG are from the EK Credential Profile
/// 2.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EkKind {
    /// Template L-2.
    P256,
    /// Template H-3.
    P384,
    /// Template L-1.
    Rsa2048,
    /// Template H-6.
    Rsa3072,
    /// Template L-1, but with an empty `unique`: the EK that Azure's C SDK for device provisioning
    /// makes, by mistake. It is another key than the one that the manufacturer certified, so there
    /// is no certificate for it.
    LegacyDps,
}

impl EkKind {
    /// Every kind.
    pub const ALL: [Self; 5] =
        [Self::P256, Self::P384, Self::Rsa2048, Self::Rsa3072, Self::LegacyDps];
    /// Those with certificates, in the order in which they are tried: elliptic curves are faster on
    /// every chip.
    pub const CERTIFIED: [Self; 4] = [Self::P256, Self::P384, Self::Rsa2048, Self::Rsa3072];

    /// The NV index of the certificate for such an EK (TCG EK Credential Profile 2.5, 2.2.1.4 and
    /// 2.2.1.5).
    pub(crate) const fn certificate_index(self) -> Option<u32> {
        match self {
            Self::P256 => Some(0x01C0_000A),
            Self::P384 => Some(0x01C0_0016),
            Self::Rsa2048 => Some(RSA_2048_CERTIFICATE),
            Self::Rsa3072 => Some(0x01C0_001C),
            Self::LegacyDps => None,
        }
    }

    /// The template's name in the TCG EK Credential Profile 2.5, annex B.
    pub const fn template(self) -> &'static str {
        match self {
            Self::P256 => "L-2",
            Self::P384 => "H-3",
            Self::Rsa2048 => "L-1",
            Self::Rsa3072 => "H-6",
            Self::LegacyDps => "L-1 with an empty unique",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa2048 => "rsa-2048",
            Self::Rsa3072 => "rsa-3072",
            Self::LegacyDps => "legacy-dps",
        }
    }
}

/// The NV index of the certificate for the EK of template L-1.
pub(crate) const RSA_2048_CERTIFICATE: u32 = 0x01C0_0002;

/// The kinds of identity key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IkKind {
    /// ECDSA with SHA-256: the default, for it is fast on every chip and its signatures suit every
    /// TLS version.
    P256,
    /// ECDSA with SHA-384.
    P384,
    /// RSASSA or RSAPSS with SHA-256.
    Rsa2048,
}

impl IkKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::P256, Self::P384, Self::Rsa2048];

    const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::P384 => "p-384",
            Self::Rsa2048 => "rsa-2048",
        }
    }
}

/// The kinds of parent that an HMAC key can be sent to.
///
/// An *import parent* lets the TPM import keys and load them, and refuses whatever else could be
/// done with them. A plain storage root key, of the default template of the TCG TPM v2.0
/// Provisioning Guidance, 7.5.1, refuses nothing: whoever controls this device's software for a
/// moment has the TPM hand out the HMAC key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentKind {
    /// An import parent: the default, for elliptic curves are fast on every chip.
    P256,
    /// An import parent for TPMs without P-256.
    Rsa2048,
    /// A plain storage root key.
    SrkP256,
    /// A plain storage root key, as Azure's SDKs use it.
    SrkRsa2048,
}

impl ParentKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::P256, Self::Rsa2048, Self::SrkP256, Self::SrkRsa2048];
    /// The storage root keys, in the order in which they are tried.
    pub const SRKS: [Self; 2] = [Self::SrkP256, Self::SrkRsa2048];

    /// Whether it is a plain storage root key.
    pub const fn is_plain_srk(self) -> bool {
        matches!(self, Self::SrkP256 | Self::SrkRsa2048)
    }

    /// The import parent whose key is of the same kind.
    pub(crate) const fn import_parent(self) -> Self {
        match self {
            Self::P256 | Self::SrkP256 => Self::P256,
            Self::Rsa2048 | Self::SrkRsa2048 => Self::Rsa2048,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p-256",
            Self::Rsa2048 => "rsa-2048",
            Self::SrkP256 => "srk-p-256",
            Self::SrkRsa2048 => "srk-rsa-2048",
        }
    }
}

named_kind!(EkKind, "EK");
named_kind!(IkKind, "IK");
named_kind!(ParentKind, "parent");

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
    fn kinds_read_back_from_their_names() {
        for kind in EkKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for kind in IkKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        for kind in ParentKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!(
            "rsa-1024".parse::<EkKind>().unwrap_err().contains("p-256, p-384, rsa-2048, rsa-3072")
        );
    }

    #[test]
    fn a_password_does_not_show_in_debug_output() {
        let password = Password::new(b"hunter2".to_vec()).unwrap();
        assert!(!format!("{password:?}").contains("hunter2"));
    }

    #[test]
    fn a_password_longer_than_a_tpm_takes_is_refused() {
        assert!(Password::new(vec![0; Password::MAX]).is_some());
        assert!(Password::new(vec![0; Password::MAX + 1]).is_none());
    }

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
