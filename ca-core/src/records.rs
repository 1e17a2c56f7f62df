//! What is on record about an EK and a device id. Every decision depends on it.

use std::fmt;
use std::str::FromStr;

use assay_wire::{DeviceId, EkId};
use time::{Duration, OffsetDateTime};

use crate::ek::assurance::Assurance;
use crate::ek::facts::EkFacts;

/// An entry of the operator's list of EKs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// The device id that the operator gave the EK, if any.
    pub device_id: Option<DeviceId>,
    /// What happens when the device comes with a new key.
    pub reprovision: Reprovision,
    /// Whether the EK may be one that Azure's SDKs made. No vendor certified it, though the TPM has
    /// a certificate for another EK.
    pub legacy_dps_ek: bool,
    /// Whether a shared key may be sent to a plain storage root key. The device's software can then
    /// have the shared key.
    pub plain_srk: bool,
    /// What is known of its TPM from a certificate that the device showed, or that the operator's
    /// list has.
    pub facts: Option<EkFacts>,
}

/// What a device gets that was provisioned before and now comes with a new key, because its TPM was
/// cleared or it lost its state.
///
/// A request for the key that the device has already is a repetition. Under any policy, the CA
/// answers it with what the device has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reprovision {
    /// `reissue`: a new certificate, or a shared key of the next generation. The old one ends when
    /// the device first uses the new one.
    #[default]
    Reissue,
    /// `reuse`: the same shared key, until it is due to be rotated. A new IK still needs a new
    /// certificate, because none fits it.
    Reuse,
    /// `never`: nothing. An operator must act. A shared key is not rotated.
    Never,
}

impl Reprovision {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Reissue, Self::Reuse, Self::Never];

    /// The policy's name in settings and in text for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reissue => "reissue",
            Self::Reuse => "reuse",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for Reprovision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Reprovision {
    type Err = UnknownReprovision;

    fn from_str(name: &str) -> Result<Self, UnknownReprovision> {
        Self::ALL.into_iter().find(|policy| policy.name() == name).ok_or(UnknownReprovision)
    }
}

/// The text is not the name of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected reissue, reuse or never")]
pub struct UnknownReprovision;

/// A device that has proved itself: by a ticket, by a confirmation, or by a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The device id that it got.
    pub device_id: DeviceId,
    /// The certificate that it has now.
    pub certificate: Option<CertificateOnRecord>,
    /// How many of its certificates became active within the last [`QUOTA_PERIOD`].
    pub recent_certificates: u32,
}

/// The shared key of an EK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedKeyOnRecord {
    /// Its generation. Tokens of earlier generations are refused.
    pub generation: u32,
    /// Whether the device has used it, which shows that its TPM could load it.
    pub is_used: bool,
    /// The last generation that was offered to a plain storage root key and so may be known outside
    /// of the TPM; 0 if none was.
    pub plain_srk_generation: u32,
}

impl SharedKeyOnRecord {
    /// Whether this generation, or a later one that is accepted too, was offered to a plain storage
    /// root key and so may be known outside of the TPM.
    pub fn is_of_plain_srk(&self) -> bool {
        self.generation <= self.plain_srk_generation
    }
}

/// A device's active certificate, reduced to what admission depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateOnRecord {
    /// SHA-256 of the SubjectPublicKeyInfo of the IK that it is for.
    pub ik_id: [u8; 32],
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// When it came into force: later than it was issued, if it waited. It is no earlier than that
    /// of any certificate that the EK had before, also if the CA's clock was set back since.
    pub in_force_since: OffsetDateTime,
}

/// What is on record about an EK and the device id in question.
///
/// The records may change between the challenge and the second step. Read them again in the
/// transaction that stores a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    /// Whether the operator disabled the EK. This needs neither enrolment nor registration.
    pub disabled: bool,
    /// The EK's entry on the enrolment list.
    pub enrolment: Option<Enrolment>,
    /// The device that the EK is registered as.
    pub registration: Option<Registration>,
    /// How many certificates were sealed to the EK within the last [`QUOTA_PERIOD`] and are not
    /// confirmed. There is a quota because anybody can ask for them.
    pub recent_unconfirmed: u32,
    /// The shared key that was last offered to the EK.
    pub shared_key: Option<SharedKeyOnRecord>,
    /// How many generations of the shared key the device first used within the last
    /// [`QUOTA_PERIOD`].
    pub recent_generations: u32,
    /// Since when the device uses its shared key, or up to a [`QUOTA_PERIOD`] earlier. `None` if no
    /// generation was ever used, or nobody knows when.
    pub key_used_since: Option<OffsetDateTime>,
    /// The EK that is registered or enrolled under the device id in question: the id that is
    /// [due](due_device_id), or the id of a claim, of a certificate or of a token.
    pub id_holder: Option<EkId>,
    /// One of the [other EKs](crate::EkEvidence::other_eks) that is enrolled, registered or
    /// disabled.
    pub other_ek: Option<EkId>,
}

impl Records {
    pub(crate) fn reprovision(&self) -> Reprovision {
        self.enrolment.as_ref().map(|enrolment| enrolment.reprovision).unwrap_or_default()
    }

    /// The device id that somebody gave to the EK: by its registration, or by its enrolment.
    pub(crate) fn granted_device_id(&self) -> Option<&DeviceId> {
        granted(self.enrolment.as_ref(), self.registration.as_ref())
    }

    /// The generations whose tokens are accepted: the one on record, and those that
    /// [`KeyOffer`](crate::KeyOffer) may have offered since, under whatever policy held then. These
    /// are the next generation if the one on record was used, and the generations up to the one
    /// after the last that was offered to a plain storage root key. A token of a later generation
    /// raises the record to it.
    pub fn accepted_generations(&self) -> Vec<u32> {
        let Some(SharedKeyOnRecord { generation, is_used, plain_srk_generation }) = self.shared_key
        else {
            return Vec::new();
        };
        let next = if is_used { generation.saturating_add(1) } else { generation };
        let last = match plain_srk_generation {
            0 => next,
            plain => next.max(plain.saturating_add(1)),
        };
        (generation..=last).collect()
    }
}

/// The device id that is due to an EK.
///
/// An EK keeps the id that it is registered under. Before that it gets the id that its enrolment
/// names, or else the id that is derived from it.
pub fn due_device_id<'a>(
    derived: &'a DeviceId,
    enrolment: Option<&'a Enrolment>,
    registration: Option<&'a Registration>,
) -> &'a DeviceId {
    granted(enrolment, registration).unwrap_or(derived)
}

fn granted<'a>(
    enrolment: Option<&'a Enrolment>,
    registration: Option<&'a Registration>,
) -> Option<&'a DeviceId> {
    let enrolled = enrolment.and_then(|enrolment| enrolment.device_id.as_ref());
    registration.map(|registration| &registration.device_id).or(enrolled)
}

/// The certificate in force of an EK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveCertificate {
    /// Its serial number.
    pub serial: [u8; 16],
    /// SHA-256 of the SubjectPublicKeyInfo of the IK that it is for.
    pub ik_id: [u8; 32],
    /// The certificate in DER.
    pub der: Vec<u8>,
}

/// An EK to which a shared key was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedKeyHolder {
    /// The EK.
    pub ek_id: EkId,
    /// Why it was trusted.
    pub assurance: Assurance,
}

/// The number of certificates that a device may get for new IKs within [`QUOTA_PERIOD`]. The same
/// number holds for generations of its shared key.
///
/// A device needs new ones when its TPM was cleared. If it needs more, that is a fault, or an
/// attempt to fill the store and the revocation list.
pub const QUOTA: u32 = 24;

/// See [`QUOTA`].
pub const QUOTA_PERIOD: Duration = Duration::days(1);

/// The generation of an EK's first shared key.
pub const FIRST_GENERATION: u32 = 1;
