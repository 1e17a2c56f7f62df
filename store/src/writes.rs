//! What an act writes, as rows that both stores understand.

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{Assurance, Issued, Records};
use assay_wire::{DeviceId, EkId};
use time::OffsetDateTime;

use crate::act::{Act, Basis, Entry, IdInQuestion, Question, Snapshot};
use crate::audit::{Effect, Waited};
use crate::error::StoreError;

/// What an entry writes, and the question that must have the same answer as before.
pub(crate) struct Planned<'a> {
    /// The basis of its plan, which must still hold.
    pub(crate) basis: Option<&'a Basis>,
    /// The question of the basis. Without a basis, one about the EK and the device id of the write.
    pub(crate) question: Question,
    pub(crate) write: Write<'a>,
}

/// What an act writes.
pub(crate) enum Write<'a> {
    /// A certificate that comes into force.
    Certificate(NewCertificate<'a>),
    /// A certificate that waits to be confirmed.
    Waiting(NewCertificate<'a>),
    /// A certificate that waits to be adopted, in place of what else waits for its EK and IK.
    Renewal(NewCertificate<'a>),
    /// A certificate that waits to be adopted, in place of what else waits for its EK, except for
    /// the IK in force.
    Rekey(NewCertificate<'a>),
    /// A certificate that waited and comes into force.
    Activation(Activation<'a>),
    /// A shared key that is offered.
    Offer(NewOffer<'a>),
    /// A shared key that is used for the first time.
    Use(NewUse<'a>),
}

/// A row of `certificates`.
pub(crate) struct NewCertificate<'a> {
    pub(crate) serial: [u8; 16],
    pub(crate) device_id: &'a DeviceId,
    pub(crate) ek_id: EkId,
    pub(crate) ik_id: [u8; 32],
    pub(crate) assurance: Assurance,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) issued_at: OffsetDateTime,
    pub(crate) confirm_by: Option<OffsetDateTime>,
    pub(crate) confirmed_at: Option<OffsetDateTime>,
    pub(crate) sha256: [u8; 32],
    pub(crate) stored: &'a [u8],
}

/// What makes a waiting certificate the active one.
pub(crate) struct Activation<'a> {
    pub(crate) serial: [u8; 16],
    pub(crate) device_id: &'a DeviceId,
    pub(crate) ek_id: EkId,
    pub(crate) assurance: Assurance,
    pub(crate) confirmed_at: OffsetDateTime,
    pub(crate) der: &'a [u8],
}

/// A row of `shared_keys`.
pub(crate) struct NewOffer<'a> {
    pub(crate) ek_id: EkId,
    pub(crate) device_id: &'a DeviceId,
    pub(crate) assurance: Assurance,
    pub(crate) generation: u32,
    /// 0 if it was not sent to a plain storage root key.
    pub(crate) plain_srk_generation: u32,
    pub(crate) offered_at: OffsetDateTime,
}

/// What changes in `shared_keys` with a first use.
pub(crate) struct NewUse<'a> {
    pub(crate) ek_id: EkId,
    pub(crate) device_id: &'a DeviceId,
    pub(crate) assurance: Assurance,
    pub(crate) generation: u32,
    pub(crate) used_at: OffsetDateTime,
}

/// A device that proved itself: a row of `devices`.
pub(crate) struct NewDevice<'a> {
    pub(crate) device_id: &'a DeviceId,
    pub(crate) ek_id: EkId,
    pub(crate) assurance: Assurance,
    pub(crate) at: OffsetDateTime,
}

impl Entry {
    /// What it writes besides the audit.
    pub(crate) fn planned(&self) -> Result<Option<Planned<'_>>, StoreError> {
        let basis = self.basis.as_ref();
        let now = basis.map_or_else(OffsetDateTime::now_utc, |basis| basis.question.now);
        let Some(write) = Write::of(&self.act, now) else { return Ok(None) };
        if let Some(basis) = basis {
            write.check(basis)?;
        }
        let question = match basis {
            Some(basis) => basis.question.clone(),
            None => Question::about(write.ek_id(), write.device_id(), now),
        };
        Ok(Some(Planned { basis, question, write }))
    }
}

impl<'a> Write<'a> {
    /// `now` is the time of an offer, which has none of its own.
    fn of(act: &'a Act, now: OffsetDateTime) -> Option<Self> {
        Some(match act {
            Act::None | Act::Ask(_) | Act::Learn(..) => return None,
            Act::Certify(certificate) => {
                let issued_at = certificate.facts().issued_at;
                Self::Certificate(new_certificate(certificate, Some(issued_at)))
            }
            Act::Seal(certificate) => Self::Waiting(new_certificate(certificate, None)),
            Act::Renew(certificate) => Self::Renewal(new_certificate(certificate, None)),
            Act::Rekey(certificate) => Self::Rekey(new_certificate(certificate, None)),
            Act::Activate(confirmed) => Self::Activation(Activation {
                serial: confirmed.serial(),
                device_id: confirmed.device_id(),
                ek_id: confirmed.ek_id(),
                assurance: confirmed.assurance(),
                confirmed_at: confirmed.decided_at(),
                der: confirmed.der(),
            }),
            Act::Offer(offer) => Self::Offer(NewOffer {
                ek_id: offer.ek_id(),
                device_id: offer.device_id(),
                assurance: offer.assurance(),
                generation: offer.generation(),
                plain_srk_generation: match offer.parent() {
                    ParentKind::Import => 0,
                    ParentKind::PlainSrk => offer.generation(),
                },
                offered_at: now,
            }),
            Act::Accept(first_use) => Self::Use(NewUse {
                ek_id: first_use.ek_id(),
                device_id: first_use.device_id(),
                assurance: first_use.assurance(),
                generation: first_use.generation(),
                used_at: first_use.decided_at(),
            }),
        })
    }

    pub(crate) fn ek_id(&self) -> EkId {
        match self {
            Self::Certificate(new) | Self::Waiting(new) | Self::Renewal(new) | Self::Rekey(new) => {
                new.ek_id
            }
            Self::Activation(activation) => activation.ek_id,
            Self::Offer(offer) => offer.ek_id,
            Self::Use(first_use) => first_use.ek_id,
        }
    }

    pub(crate) fn device_id(&self) -> &'a DeviceId {
        match self {
            Self::Certificate(new) | Self::Waiting(new) | Self::Renewal(new) | Self::Rekey(new) => {
                new.device_id
            }
            Self::Activation(activation) => activation.device_id,
            Self::Offer(offer) => offer.device_id,
            Self::Use(first_use) => first_use.device_id,
        }
    }

    /// The registration that it makes or confirms.
    pub(crate) fn device(&self) -> Option<NewDevice<'a>> {
        let (assurance, at) = match self {
            Self::Certificate(new) => (new.assurance, new.issued_at),
            Self::Activation(activation) => (activation.assurance, activation.confirmed_at),
            Self::Use(first_use) => (first_use.assurance, first_use.used_at),
            Self::Waiting(_) | Self::Renewal(_) | Self::Rekey(_) | Self::Offer(_) => return None,
        };
        Some(NewDevice { device_id: self.device_id(), ek_id: self.ek_id(), assurance, at })
    }

    /// Its certificate that comes into force, so that the one before ends, and when.
    pub(crate) fn in_force(&self) -> Option<(&[u8; 16], OffsetDateTime)> {
        match self {
            Self::Certificate(new) => Some((&new.serial, new.issued_at)),
            Self::Activation(activation) => Some((&activation.serial, activation.confirmed_at)),
            Self::Waiting(_)
            | Self::Renewal(_)
            | Self::Rekey(_)
            | Self::Offer(_)
            | Self::Use(_) => None,
        }
    }

    /// What it does, as far as others should hear of it. `is_new` says whether the device was not
    /// registered before, `waited` is about a certificate that comes into force by it, and
    /// `replaced` is the certificate that ends: its serial number and its IK.
    pub(crate) fn effect(
        &self,
        is_new: bool,
        waited: Option<&Waited>,
        replaced: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Effect {
        match (self, waited) {
            (Self::Certificate(new), _) => Effect {
                event: Some("provisioned"),
                serial: Some(new.serial.to_vec()),
                replaced: replaced.map(|(serial, _)| serial),
            },
            (Self::Activation(new), Some(waited)) => {
                Effect::of_activation(new.serial, waited, replaced)
            }
            (Self::Use(new), _) if is_new || new.generation == 1 => {
                Effect { event: Some("provisioned"), ..Effect::default() }
            }
            (Self::Use(_), _) => Effect { event: Some("key-rotated"), ..Effect::default() },
            _ => Effect::default(),
        }
    }

    /// Refuses a write that is about something else than its basis: a basis that still holds would
    /// then say nothing about it.
    fn check(&self, Basis { question, snapshot }: &Basis) -> Result<(), StoreError> {
        if self.ek_id() != question.ek {
            return Err(StoreError::Inconsistent("the plan is for another EK"));
        }
        let Some(NewDevice { device_id, ek_id, .. }) = self.device() else { return Ok(()) };
        if let IdInQuestion::Is(asked) = &question.device
            && asked != device_id
        {
            return Err(StoreError::Inconsistent("the plan is for another device id"));
        }
        if snapshot.records.id_holder.is_some_and(|holder| holder != ek_id) {
            return Err(StoreError::Inconsistent("the device id belongs to another EK"));
        }
        Ok(())
    }
}

fn new_certificate<P>(
    certificate: &Issued<P>,
    confirmed_at: Option<OffsetDateTime>,
) -> NewCertificate<'_> {
    let facts = certificate.facts();
    NewCertificate {
        serial: facts.serial,
        device_id: &facts.device_id,
        ek_id: facts.ek_id,
        ik_id: facts.ik_id,
        assurance: facts.assurance,
        not_before: facts.not_before,
        not_after: facts.not_after,
        issued_at: facts.issued_at,
        confirm_by: facts.confirm_by,
        confirmed_at,
        sha256: certificate.sha256(),
        stored: certificate.stored(),
    }
}

/// The IK of the EK's active certificate.
pub(crate) fn active_ik(records: &Records) -> Option<[u8; 32]> {
    let certificate = records.registration.as_ref()?.certificate.as_ref()?;
    Some(certificate.ik_id)
}

/// Whether two answers to a question are the same. The certificate with a serial number never
/// changes, so this compares no DER.
pub(crate) fn is_same(a: &Snapshot, b: &Snapshot) -> bool {
    let actives = [a, b].map(|snapshot| snapshot.active.as_ref().map(|active| active.serial));
    let [waiting, waited] = [a, b].map(|snapshot| snapshot.waiting.iter().map(|it| it.serial));
    let versions = |it: &Snapshot| (it.anchors, it.groups);
    is_same_record(&a.records, &b.records)
        && actives[0] == actives[1]
        && waiting.eq(waited)
        && versions(a) == versions(b)
}

/// What a certificate said of the TPM does not count: whoever shows the EK's certificate may change
/// it, and would hold up the device that has the TPM.
fn is_same_record(a: &Records, b: &Records) -> bool {
    let without = |records: &Records| {
        let mut records = records.clone();
        if let Some(enrolment) = &mut records.enrolment {
            enrolment.facts = None;
        }
        records
    };
    a == b || without(a) == without(b)
}

/// Everything that an entry and its question depend on. Two entries that share none of these can be
/// recorded together.
pub(crate) fn touched(planned: &Planned<'_>) -> Vec<Touched> {
    let (named, others) = match &planned.question.device {
        IdInQuestion::Is(device) => (device, &[][..]),
        IdInQuestion::Due { derived, other_eks } => (derived, &other_eks[..]),
    };
    let mut devices = vec![named, planned.write.device_id()];
    if let Some(Basis { snapshot, .. }) = planned.basis {
        let Records { registration, enrolment, .. } = &snapshot.records;
        devices.extend(enrolment.as_ref().and_then(|enrolment| enrolment.device_id.as_ref()));
        devices.extend(registration.as_ref().map(|registration| &registration.device_id));
    }
    let eks =
        [planned.question.ek, planned.write.ek_id()].into_iter().chain(others.iter().copied());
    let devices = devices.into_iter().cloned().map(Touched::Device);
    devices.chain(eks.map(Touched::Ek)).collect()
}

/// See [`touched`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Touched {
    Device(DeviceId),
    Ek(EkId),
}
