//! The steps that people are told of while a device is provisioned.

use alloc::string::String;
use core::fmt;
use core::time::Duration;

use assay_wire::{EkId, ProblemCode};

use crate::answer::rfc3339;
use crate::kinds::{EkKind, IkKind, ParentKind};
use crate::memory::KeyPurpose;

/// Something that was done or found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The certificate in use is good, so the CA is not asked.
    CertificateIsGood,
    /// The HMAC key in use is in the TPM, so the CA is not asked.
    HmacKeyIsThere,
    /// The certificate in use is good, and due for renewal since this time, or somebody asked for
    /// the renewal. In seconds since 1970.
    Renewing(u64),
    /// An earlier run stored a renewed certificate that is not adopted.
    NotAdopted,
    /// The CA says that the renewal is due at this time, in seconds since 1970.
    NotDue(u64),
    /// The CA knows that the renewed certificate with this serial number is stored.
    CertificateAdopted(String),
    /// The CA does not renew the certificate, for this reason. The device goes on with its flow.
    RenewalRefused(String),
    /// The operator's document came with the certificate. It is new, and has this revision.
    ConfigurationKept(u64),
    /// The operator's document came with the certificate, and is not taken for this reason. The
    /// certificate is.
    ConfigurationRefused(String),
    /// The CA does not take the certificate for another key, for this reason. What is in use stays.
    RekeyRefused(String),
    /// The certificate could not be renewed now, for this reason. It is still good, and the next
    /// run tries again.
    RenewalPostponed(String),
    /// The HMAC key in use is due to be rotated since this time, or somebody asked for it. In
    /// seconds since 1970.
    Rotating(u64),
    /// The CA gave the HMAC key that is in use. It is to be rotated at this time, in seconds since
    /// 1970.
    RotationNotDue(u64),
    /// The HMAC key was not rotated, for this reason. The one in use stays.
    NotRotated(String),
    /// This EK is shown to the CA.
    Ek {
        /// Its kind.
        kind: EkKind,
        /// Where its certificate comes from.
        source: CertificateSource,
        /// Its id.
        id: EkId,
    },
    /// The CA is told that the TPM has this many other EKs.
    OtherEks(usize),
    /// An earlier run showed an EK of this kind, and this run shows another one.
    NotTheEkBefore(EkKind),
    /// The CA does not take the EK for this reason. The device tries another one.
    TryingEk {
        /// Why the CA refused.
        refusal: ProblemCode,
        /// The EK that the device tries next.
        next: EkKind,
    },
    /// The identity key is ready.
    IdentityKey {
        /// Its kind.
        kind: IkKind,
        /// Its persistent handle.
        handle: u32,
        /// Whether the TPM just made it.
        is_new: bool,
    },
    /// The certificate request is signed.
    RequestSigned,
    /// An earlier run stored a sealed certificate that is not confirmed.
    Unconfirmed,
    /// The parent for the HMAC key is ready.
    Parent(ParentKind),
    /// The broker is connected.
    Connected,
    /// The ticket flow's challenge came.
    ChallengeReceived,
    /// The sealed certificate came.
    SealedReceived,
    /// The wrapped HMAC key came.
    HmacKeyReceived,
    /// The TPM opened the credential.
    CredentialActivated,
    /// The TPM opened the HMAC key.
    HmacKeyOpened,
    /// A certificate with this serial number came, and is good.
    CertificateReceived(String),
    /// The CA has a new root of this name, certified by one that was pinned: it is pinned, too.
    RootPinned(String),
    /// The CA sent a new root that is not pinned, for this reason.
    RootRefused(String),
    /// A sealed certificate with this serial number is opened, and is good.
    CertificateOpened(String),
    /// The CA knows that the certificate with this serial number arrived.
    CertificateConfirmed(String),
    /// The HMAC key is persistent at this handle.
    HmacKeyKept(u32),
    /// The TPM removed the key at this handle, which is no longer used.
    KeyRemoved(u32),
    /// A key at this handle is no longer used. It is left in the TPM, because others may use it.
    Unused {
        /// The key.
        key: KeyPurpose,
        /// Its persistent handle.
        handle: u32,
    },
    /// An attempt failed.
    Retry {
        /// How long the device waits before the next one.
        delay: Duration,
        /// Why it failed.
        reason: String,
    },
}

/// Where the certificate of an EK comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateSource {
    /// The request had it.
    Request,
    /// NV memory of the TPM.
    NvMemory,
    /// There is none.
    None,
    /// There may be one, but the TPM does not let it be read.
    Unreadable,
}

impl fmt::Display for CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "with certificate from file",
            Self::NvMemory => "with certificate from NV memory",
            Self::None => "without certificate",
            Self::Unreadable => {
                "without the certificate, which the TPM does not let this device read"
            }
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CertificateIsGood => f.write_str(
                "provisioned already: the certificate is valid and the TPM holds its key",
            ),
            Self::Renewing(at) => {
                write!(
                    f,
                    "the certificate is good; to be renewed at {}: asking the CA",
                    rfc3339(*at)
                )
            }
            Self::NotAdopted => {
                f.write_str("an earlier run stored a new certificate: it is still to be adopted")
            }
            Self::NotDue(at) => {
                write!(f, "the CA renews the certificate at {}: it stays", rfc3339(*at))
            }
            Self::CertificateAdopted(serial) => write!(f, "certificate {serial} adopted"),
            Self::RenewalRefused(reason) => {
                write!(f, "the CA does not renew the certificate ({reason}): proving the TPM anew")
            }
            Self::ConfigurationKept(revision) => {
                write!(f, "configuration received and verified: revision {revision}")
            }
            Self::ConfigurationRefused(reason) => {
                write!(f, "the configuration is not taken: {reason}")
            }
            Self::RekeyRefused(reason) => write!(
                f,
                "the CA does not take the new certificate ({reason}): the one before it stays in use"
            ),
            Self::RenewalPostponed(reason) => write!(
                f,
                "the certificate is not renewed now, is still good, and stays in use: {reason}"
            ),
            Self::Rotating(at) => {
                write!(f, "the HMAC key is there; to be rotated at {}: asking the CA", rfc3339(*at))
            }
            Self::RotationNotDue(at) => {
                write!(f, "the CA rotates the HMAC key at {}: it stays", rfc3339(*at))
            }
            Self::NotRotated(reason) => {
                write!(f, "the HMAC key is not rotated now, and stays in use: {reason}")
            }
            Self::HmacKeyIsThere => f.write_str("provisioned already: the TPM holds the HMAC key"),
            Self::Ek { kind, source, id } => write!(f, "EK {kind} {source}, id {id}"),
            Self::OtherEks(count) => write!(
                f,
                "{count} other EKs of this TPM found; the CA is asked whether it knows one of them"
            ),
            Self::NotTheEkBefore(kind) => write!(
                f,
                "this EK is not the one of kind {kind} shown before: to the CA it is another \
                 device"
            ),
            Self::TryingEk { refusal, next } => {
                write!(f, "the CA does not take this EK ({refusal}): trying the one of kind {next}")
            }
            Self::IdentityKey { kind, handle, is_new } => {
                let origin = if *is_new { "created" } else { "found" };
                write!(f, "identity key {kind} {origin} at {handle:#010x}")
            }
            Self::RequestSigned => f.write_str("certificate request signed"),
            Self::Unconfirmed => {
                f.write_str("an earlier run stored the certificate: it is not confirmed yet")
            }
            Self::Parent(kind) => write!(f, "parent {kind} ready"),
            Self::Connected => f.write_str("connected to the broker"),
            Self::ChallengeReceived => {
                f.write_str("challenge received: the CA accepts the EK and the identity key")
            }
            Self::SealedReceived => f.write_str(
                "sealed certificate received: the CA accepts the EK and the identity key",
            ),
            Self::HmacKeyReceived => {
                f.write_str("key received: the CA accepts the EK and the parent")
            }
            Self::CredentialActivated => f.write_str("credential activated by the TPM"),
            Self::HmacKeyOpened => f.write_str("HMAC key opened by the TPM"),
            Self::CertificateReceived(serial) => {
                write!(f, "certificate {serial} received and verified")
            }
            Self::RootPinned(name) => {
                write!(f, "the CA has a new root, {name}: pinned beside the old one")
            }
            Self::RootRefused(reason) => write!(
                f,
                "the CA sent a new root that is not pinned ({reason}): the pinned ones stay"
            ),
            Self::CertificateOpened(serial) => {
                write!(f, "certificate {serial} opened and verified")
            }
            Self::CertificateConfirmed(serial) => write!(f, "certificate {serial} confirmed"),
            Self::KeyRemoved(handle) => {
                write!(f, "the key at {handle:#010x} is no longer used: removed from the TPM")
            }
            Self::HmacKeyKept(handle) => write!(f, "HMAC key kept at {handle:#010x}"),
            Self::Unused { key, handle } => {
                let key = match key {
                    KeyPurpose::Identity => "identity key",
                    KeyPurpose::Hmac => "HMAC key",
                };
                write!(
                    f,
                    "the {key} at {handle:#010x} is no longer used; if nobody else uses it: \
                     tpm2_evictcontrol -c {handle:#010x}"
                )
            }
            Self::Retry { delay, reason } => {
                write!(f, "trying again in {:.1} s: {reason}", delay.as_secs_f64())
            }
        }
    }
}
