//! Who may have which device id: the rules that need to know what happened before.

use std::fmt;
use std::str::FromStr;

use assay_wire::{DeviceId, EkId};
use time::{Duration, OffsetDateTime};

use crate::Rejection;
use crate::challenge::ProvenDevice;
use crate::evidence::digest_naming;
use crate::tpm::template::{ParentArea, ParentKind};
use crate::trust::{Assurance, TrustedEk};

/// An entry of the operator's list of EKs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// The device id the operator gave the EK, if any.
    pub device_id: Option<DeviceId>,
    /// What happens when the device asks again.
    pub reprovision: Reprovision,
    /// Whether the EK may be one of Azure's SDKs, which no vendor certified though the TPM has a
    /// certificate.
    pub legacy_dps_ek: bool,
    /// Whether a shared key may be sent to a plain storage root key, from which the device's
    /// software can have it.
    pub plain_srk: bool,
}

/// What a device gets that was provisioned before and comes with a new key: its TPM was cleared, or
/// it lost its state.
///
/// A request for the key that it has already is a repetition, which is answered with what it has
/// under any policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reprovision {
    /// `reissue`: a new certificate, or a shared key of the next generation; the old one ends when
    /// the new one is first used.
    #[default]
    Reissue,
    /// `reuse`: the same shared key. A new IK needs a new certificate, for no certificate fits it.
    Reuse,
    /// `never`: nothing. An operator must act.
    Never,
}

impl Reprovision {
    /// Every policy.
    pub const ALL: [Self; 3] = [Self::Reissue, Self::Reuse, Self::Never];

    /// The policy as people and settings name it.
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

/// A text names no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected reissue, reuse or never")]
pub struct UnknownReprovision;

/// A device that once proved itself: by a ticket, by a confirmation, or by a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The device id it got.
    pub device_id: DeviceId,
    /// The certificate it has now.
    pub certificate: Option<CertificateOnRecord>,
    /// How many certificates became active for it within the last [`QUOTA_PERIOD`].
    pub recent_certificates: u32,
}

/// The shared key of an EK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedKeyOnRecord {
    /// Its generation: tokens of earlier ones are refused.
    pub generation: u32,
    /// Whether the device has used it, which shows that its TPM could load it.
    pub is_used: bool,
    /// The last generation that was offered to a plain storage root key, and may be known outside
    /// of the TPM; 0 if none was.
    pub plain_srk_generation: u32,
}

impl SharedKeyOnRecord {
    /// Whether a plain storage root key was offered it, or one that is accepted after it, so that
    /// it may be known outside of the TPM.
    pub fn is_of_plain_srk(&self) -> bool {
        self.generation <= self.plain_srk_generation
    }
}

/// A device's active certificate, as far as admission depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateOnRecord {
    /// SHA-256 of the SubjectPublicKeyInfo of the IK it is for.
    pub ik_id: [u8; 32],
    /// When it was issued.
    pub issued_at: OffsetDateTime,
}

/// What is on record about an EK and the device id in question.
///
/// What was true before the challenge need not be true after it: read them again in the transaction
/// that stores a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Whether the operator locked the EK out, which needs neither enrolment nor registration.
    pub disabled: bool,
    /// The EK's entry on the enrolment list.
    pub enrolment: Option<Enrolment>,
    /// The device that the EK is registered as.
    pub registration: Option<Registration>,
    /// How many certificates were sealed to the EK within the last [`QUOTA_PERIOD`] and not
    /// confirmed: anybody can ask for them.
    pub recent_unconfirmed: u32,
    /// The shared key that was last offered to the EK.
    pub shared_key: Option<SharedKeyOnRecord>,
    /// How many generations of it the device took into use within the last [`QUOTA_PERIOD`].
    pub recent_generations: u32,
    /// The EK that is registered or enrolled under the device id in question: the [one
    /// due](due_device_id), or [that of a claim](ProvenDevice::device_id), of a certificate or of a
    /// token.
    pub id_holder: Option<EkId>,
    /// One of the [other EKs](crate::EkEvidence::other_eks) that is enrolled, registered or
    /// disabled.
    pub other_ek: Option<EkId>,
}

/// The device id that is due to an EK: an EK keeps the id it is registered under; before that it
/// gets the one its enrolment names, else the one derived from it.
pub fn due_device_id(
    derived: &DeviceId,
    enrolment: Option<&Enrolment>,
    registration: Option<&Registration>,
) -> DeviceId {
    granted_device_id(enrolment, registration).unwrap_or(derived).clone()
}

/// A trusted EK and the device id it may have.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub(crate) ek: TrustedEk,
    pub(crate) device_id: DeviceId,
}

impl Admitted {
    /// Gives the EK the device id that is [due](due_device_id), or refuses another one that was
    /// requested.
    ///
    /// Whether another EK has the requested id makes no difference to the answer, or any TPM of a
    /// trusted vendor could find out which ids there are and who has them.
    pub fn decide(
        ek: TrustedEk,
        requested: Option<&DeviceId>,
        records: &Records,
    ) -> Result<Self, Rejection> {
        check_ek(&ek.ek_id(), ek.assurance, records)?;
        let due = due_device_id(
            &ek.derived_device_id,
            records.enrolment.as_ref(),
            records.registration.as_ref(),
        );
        check(&ek.ek_id(), requested.unwrap_or(&due), &due, records)?;
        check_other_eks(&ek.ek_id(), records)?;
        Ok(Self { ek, device_id: due })
    }

    /// The id the device gets.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    /// Lets the shared key be sent to an import parent, and to a plain storage root key only where
    /// the EK's enrolment allows it.
    ///
    /// This establishes that an operator knows, of a key that may leave its TPM, that it may. That
    /// the TPM has the parent is not established.
    pub fn parent(
        &self,
        parent: ParentArea,
        records: &Records,
    ) -> Result<AdmittedParent, Rejection> {
        match (parent.kind(), &records.enrolment) {
            (ParentKind::Import, _)
            | (ParentKind::PlainSrk, Some(Enrolment { plain_srk: true, .. })) => {
                Ok(AdmittedParent(parent))
            }
            (ParentKind::PlainSrk, enrolment) => {
                Err(Rejection::PlainSrk { ek: self.ek.ek_id(), is_enrolled: enrolment.is_some() })
            }
        }
    }

    /// The generation of the shared key that the EK gets now.
    ///
    /// A key that was never used is offered again: without a proof that the TPM could load it,
    /// nobody can be made to lose one. That a token of the generation that is offered retires the
    /// one in use is for [`Records::accepted_generations`].
    ///
    /// No key that was offered to a plain storage root key is offered to an import parent: it may
    /// be known outside of the TPM.
    pub fn generation(&self, parent: &AdmittedParent, records: &Records) -> Result<u32, Rejection> {
        let Some(SharedKeyOnRecord { generation, is_used, plain_srk_generation }) =
            records.shared_key
        else {
            return Ok(FIRST_GENERATION);
        };
        let count = records.recent_generations;
        let generation = match records.reprovision() {
            Reprovision::Reuse => generation,
            _ if !is_used => generation,
            Reprovision::Never => {
                return Err(Rejection::ReprovisionRefused { ek: self.ek.ek_id() });
            }
            Reprovision::Reissue if count >= QUOTA => {
                return Err(Rejection::QuotaExceeded { count });
            }
            Reprovision::Reissue => generation.saturating_add(1),
        };
        Ok(match parent.kind() {
            ParentKind::Import => generation.max(plain_srk_generation.saturating_add(1)),
            ParentKind::PlainSrk => generation,
        })
    }
}

/// A parent to which the device's shared key may be sent.
#[derive(Clone, Debug)]
pub struct AdmittedParent(pub(crate) ParentArea);

impl AdmittedParent {
    /// What the TPM does with it.
    pub fn kind(&self) -> ParentKind {
        self.0.kind()
    }
}

impl Records {
    fn reprovision(&self) -> Reprovision {
        self.enrolment.as_ref().map(|enrolment| enrolment.reprovision).unwrap_or_default()
    }

    /// The generations that a token may be signed with: the one on record and those that
    /// [`Admitted::generation`] may have offered since, under whatever policy held then: the next,
    /// once that on record was used, and the one after the last that was offered to a plain storage
    /// root key. A token of a later one raises the record to it.
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

    /// Decides whether a device may still be called `device_id`, at any moment after its EK was
    /// trusted.
    ///
    /// A name that an operator gave ends with the enrolment and the registration; one that follows
    /// from an EK is nobody's gift. That it follows from *this* EK was established when it was
    /// [decided](Admitted::decide).
    pub fn admit(
        &self,
        ek: &EkId,
        device_id: &DeviceId,
        assurance: Assurance,
    ) -> Result<(), Rejection> {
        check_ek(ek, assurance, self)?;
        let granted = granted_device_id(self.enrolment.as_ref(), self.registration.as_ref());
        let due = granted.or_else(|| digest_naming(device_id).map(|_| device_id));
        let withdrawn = || Rejection::DeviceIdWithdrawn { ek: *ek, device_id: device_id.clone() };
        check(ek, device_id, due.ok_or_else(withdrawn)?, self)
    }

    /// Decides whether the certificate for an IK, whose issue was decided at `decided_at`, may
    /// become the device's active one.
    ///
    /// A device that has a certificate for this IK keeps it. For another IK the decision must be
    /// younger than the certificate, or two could take turns for as long as they are valid; and
    /// there are a policy and a quota.
    pub(crate) fn check_rekey(
        &self,
        ek: &EkId,
        ik_id: &[u8; 32],
        decided_at: OffsetDateTime,
    ) -> Result<(), Rejection> {
        let Some(registration) = &self.registration else { return Ok(()) };
        let Some(certificate) =
            registration.certificate.as_ref().filter(|certificate| certificate.ik_id != *ik_id)
        else {
            return Ok(());
        };
        if self.reprovision() == Reprovision::Never {
            return Err(Rejection::ReprovisionRefused { ek: *ek });
        }
        if certificate.issued_at >= decided_at {
            return Err(Rejection::ClaimOutdated { issued_at: decided_at });
        }
        let count = registration.recent_certificates;
        if count >= QUOTA {
            return Err(Rejection::QuotaExceeded { count });
        }
        Ok(())
    }
}

/// A device that proved itself, and that is still welcome.
#[derive(Debug)]
pub struct Readmitted(pub(crate) ProvenDevice);

impl ProvenDevice {
    /// Decides once more, with what is on record now: an operator may have acted since the
    /// challenge, another device may have taken the id, or this device may have moved on to another
    /// IK, to which an old claim must not bring it back.
    pub fn readmit(self, records: &Records) -> Result<Readmitted, Rejection> {
        records.check_rekey(&self.ek_id(), &self.ik_id(), self.issued_at())?;
        records.admit(&self.ek_id(), self.device_id(), self.assurance())?;
        Ok(Readmitted(self))
    }
}

/// Certificates that a device may get for new IKs within [`QUOTA_PERIOD`], and generations of its
/// shared key. A device needs them when its TPM was cleared; what needs more is a fault or an
/// attempt to fill the store and the revocation list.
pub const QUOTA: u32 = 24;

/// The generation of an EK's first shared key.
pub const FIRST_GENERATION: u32 = 1;

/// See [`QUOTA`].
pub const QUOTA_PERIOD: Duration = Duration::days(1);

impl Readmitted {
    /// The device.
    pub fn device(&self) -> &ProvenDevice {
        &self.0
    }
}

/// Nobody is admitted whom an operator disabled, before anything else is said; and who is trusted
/// for being on the list must be on it.
fn check_ek(ek: &EkId, assurance: Assurance, records: &Records) -> Result<(), Rejection> {
    if records.disabled {
        return Err(Rejection::DeviceDisabled { ek: *ek });
    }
    if assurance == Assurance::EnrolmentList && records.enrolment.is_none() {
        return Err(Rejection::EkNotEnrolled { ek: *ek });
    }
    Ok(())
}

/// A device that lost its state should not become a second one because it shows another EK. This
/// protects an honest device from its own choice, and nobody from a dishonest one, which need not
/// name its other EKs.
fn check_other_eks(ek: &EkId, records: &Records) -> Result<(), Rejection> {
    match records.other_ek {
        Some(other) if records.enrolment.is_none() && records.registration.is_none() => {
            Err(Rejection::OtherEkOnRecord { ek: *ek, other })
        }
        _ => Ok(()),
    }
}

fn granted_device_id<'a>(
    enrolment: Option<&'a Enrolment>,
    registration: Option<&'a Registration>,
) -> Option<&'a DeviceId> {
    let enrolled = enrolment.and_then(|enrolment| enrolment.device_id.as_ref());
    registration.map(|registration| &registration.device_id).or(enrolled)
}

fn check(
    ek: &EkId,
    requested: &DeviceId,
    due: &DeviceId,
    records: &Records,
) -> Result<(), Rejection> {
    if requested != due {
        let requested = requested.clone();
        return Err(match &records.registration {
            Some(Registration { device_id, .. }) => {
                Rejection::EkRegistered { ek: *ek, registered: device_id.clone(), requested }
            }
            None => Rejection::DeviceIdNotEnrolled { ek: *ek, requested, due: due.clone() },
        });
    }
    match records.id_holder.filter(|holder| holder != ek) {
        Some(_) => Err(Rejection::DeviceIdTaken { device_id: due.clone(), ek: *ek }),
        None => Ok(()),
    }
}
