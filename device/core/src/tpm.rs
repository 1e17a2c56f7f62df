//! What the core asks of a TPM, and what a TPM answers.

use alloc::string::String;
use alloc::vec::Vec;

use assay_wire::{DeviceId, EkId};
use zeroize::Zeroizing;

use crate::kinds::{EkKind, IkKind, ParentKind};

/// Something that the TPM has to do. Each operation names the [`TpmAnswer`] that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmOperation {
    /// Read the EK certificate that the manufacturer left in NV memory, and its issuers. Answer:
    /// [`TpmAnswer::EkCertificates`], empty if there is none for this kind of EK.
    EkCertificates(EkKind),
    /// Make the EK of this kind from TCG's default template. Answer:
    /// [`TpmAnswer::EndorsementKey`], `None` if this TPM cannot have such keys.
    EndorsementKey(EkKind),
    /// Read the identity key (IK) at a persistent handle. Answer: [`TpmAnswer::IdentityKey`],
    /// `None` if the handle is free.
    IdentityKey {
        /// The kind of key that must be there.
        kind: IkKind,
        /// The persistent handle.
        handle: u32,
    },
    /// Make an IK and keep it at a free persistent handle. Answer: [`TpmAnswer::IdentityKey`].
    CreateIdentityKey {
        /// The kind of key.
        kind: IkKind,
        /// The persistent handle.
        handle: u32,
    },
    /// Find a free persistent handle, from this one on. Answer: [`TpmAnswer::FreeHandle`].
    FreeHandle {
        /// The first handle that may be taken.
        first: u32,
    },
    /// Remove a key of this device from a persistent handle. Nothing happens if another key, or
    /// none, is there. Answer: [`TpmAnswer::Removed`].
    RemoveKey {
        /// The persistent handle.
        handle: u32,
        /// The TPMT_PUBLIC of the key.
        public: Vec<u8>,
    },
    /// Sign a certificate request (RFC 2986, DER) with the IK. Answer:
    /// [`TpmAnswer::CertificateRequest`].
    SignRequest {
        /// The kind of IK.
        kind: IkKind,
        /// Its persistent handle.
        handle: u32,
        /// The common name to ask for; the request asks for nothing else.
        device_id: Option<DeviceId>,
    },
    /// Sign these bytes with the IK, by the algorithm of its certificate requests: ECDSA with
    /// SHA-256 or SHA-384, or RSASSA-PKCS1-v1_5 with SHA-256. Answer: [`TpmAnswer::Signature`].
    Sign {
        /// The kind of IK.
        kind: IkKind,
        /// Its persistent handle.
        handle: u32,
        /// What is signed, before it is hashed.
        message: Vec<u8>,
    },
    /// TPM2_ActivateCredential with the EK and the IK. Answer: [`TpmAnswer::Secret`].
    Activate {
        /// The EK that the credential was encrypted to.
        ek: EkKind,
        /// The persistent handle of the IK whose Name the credential is for.
        handle: u32,
        /// The content of a TPM2B_ID_OBJECT, without its size.
        blob: Vec<u8>,
        /// The content of a TPM2B_ENCRYPTED_SECRET, without its size.
        seed: Vec<u8>,
    },
    /// Make the parent of this kind. Answer: [`TpmAnswer::Parent`], `None` if this TPM cannot have
    /// such keys.
    Parent(ParentKind),
    /// Read the HMAC key at a persistent handle. Answer: [`TpmAnswer::HmacKey`], `None` if the
    /// handle is free.
    HmacKey {
        /// The persistent handle.
        handle: u32,
    },
    /// Open the HMAC key that a CA sent to this EK and this parent. Nothing is kept yet. Answer:
    /// [`TpmAnswer::Opened`].
    OpenHmacKey {
        /// The EK.
        ek: EkKind,
        /// The parent.
        parent: ParentKind,
        /// The key as the CA sent it.
        key: WrappedKey,
    },
    /// Make an opened HMAC key persistent, in place of `replaced`. Answer: [`TpmAnswer::Kept`].
    KeepHmacKey {
        /// The parent that the key was opened under.
        parent: ParentKind,
        /// The persistent handle.
        handle: u32,
        /// The key.
        key: OpenedKey,
        /// The TPMT_PUBLIC of the device's own key that may be removed from the handle.
        replaced: Option<Vec<u8>>,
    },
}

/// What the TPM answered to a [`TpmOperation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TpmAnswer {
    /// EK certificates, as they were found.
    EkCertificates(EkCertificates),
    /// The EK.
    EndorsementKey(Option<EndorsementKey>),
    /// The IK.
    IdentityKey(Option<KeyPublic>),
    /// A persistent handle that is free.
    FreeHandle(u32),
    /// The key is no longer there.
    Removed,
    /// A certificate request (RFC 2986, DER), signed.
    CertificateRequest(Vec<u8>),
    /// A signature: of ECDSA in DER (RFC 3279 §2.2.3), of RSA as the TPM gives it.
    Signature(Vec<u8>),
    /// The secret of a credential.
    Secret(Zeroizing<Vec<u8>>),
    /// The TPMT_PUBLIC of the parent.
    Parent(Option<Vec<u8>>),
    /// The TPMT_PUBLIC of the HMAC key.
    HmacKey(Option<Vec<u8>>),
    /// The HMAC key, opened.
    Opened(OpenedKey),
    /// The HMAC key is persistent.
    Kept,
}

/// A TPM operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct TpmFailure {
    /// The kind of failure, by which the core decides.
    pub kind: TpmFailureKind,
    /// What happened, for people.
    pub reason: String,
}

/// The kinds of failure that the core tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmFailureKind {
    /// The TPM refused the command, or its argument fits into no command.
    Refused,
    /// The TPM cannot open what was sent to it.
    NotForThisTpm,
    /// The TPM cannot have such keys.
    Unsupported,
    /// The TPM does not let the EK certificate be read.
    Unreadable,
    /// Anything else, e.g. the TPM was not reached.
    Other,
}

/// Certificates for an EK. Nobody has verified them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EkCertificates {
    /// The certificate of the EK, then issuers, in DER: at most
    /// [`MAX_CERTIFICATES`](assay_wire::MAX_CERTIFICATES). Empty if there is none.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 of the SubjectPublicKeyInfo in the first one; `None` if it cannot be read.
    pub key_id: Option<EkId>,
    /// The kind of EK that this key can be; `None` if no template has such keys.
    pub kind: Option<EkKind>,
}

/// The public part of an EK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndorsementKey {
    /// TPMT_PUBLIC (TPM 2.0 Part 2, 12.2.4), without the size of a TPM2B.
    pub public: Vec<u8>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub id: EkId,
    /// Whether everything except the key itself is as in TCG's default template of its kind.
    pub is_of_default_template: bool,
}

/// The public part of an identity key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPublic {
    /// TPMT_PUBLIC, without the size of a TPM2B.
    pub public: Vec<u8>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub id: [u8; 32],
}

/// An HMAC key as a CA sends it, for one EK and one parent. Every field is the content of a TPM2B,
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

/// An HMAC key that a TPM has opened. Only that TPM can load it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedKey {
    /// TPMT_PUBLIC.
    pub public: Vec<u8>,
    /// The content of a TPM2B_PRIVATE, encrypted by the TPM for the parent.
    pub private: Vec<u8>,
}
