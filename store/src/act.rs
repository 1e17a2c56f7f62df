//! What is recorded: acts that were planned on a snapshot, and their audit.

use assay_ca_core::tpm::template::ParentKind;
use assay_ca_core::{Assurance, Confirmed, EncryptedCertificate, IssuedCertificate, Records};
use assay_wire::{DeviceId, EkId};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::audit::AuditEntry;
use crate::error::StoreError;
use crate::snapshot::{Basis, IdInQuestion};

/// A decision with what it changes.
#[derive(Debug)]
pub struct Entry {
    /// What changes.
    pub act: Act,
    /// What the audit says of it; nothing of it is written if the act is stale.
    pub audit: Option<AuditEntry>,
}

/// What changes.
#[derive(Debug)]
pub enum Act {
    /// Nothing: there is only an audit.
    None,
    /// A device that proved itself has a new certificate in force. It is registered if it is new,
    /// and the certificate that it had is superseded.
    Certify {
        /// What it was planned by.
        basis: Basis,
        /// The certificate.
        certificate: IssuedCertificate,
    },
    /// A certificate was sealed to an EK, and waits for its confirmation.
    Seal {
        /// What it was planned by.
        basis: Basis,
        /// The certificate.
        certificate: IssuedCertificate,
        /// As it is stored.
        stored: EncryptedCertificate,
    },
    /// A certificate that waited comes into force.
    Activate {
        /// What it was planned by.
        basis: Basis,
        /// The certificate.
        confirmed: Confirmed,
        /// In DER.
        der: Vec<u8>,
    },
    /// A shared key was offered to an EK. The generation on record is only set the first time: that
    /// of a later offer counts once a token of it is accepted. That a plain storage root key was
    /// offered it is never forgotten.
    Offer {
        /// What it was planned by.
        basis: Basis,
        /// The key.
        offer: KeyOffer,
    },
    /// A device connected with a token of a generation that was not used before: earlier ones are
    /// retired, and the device is registered.
    Accept {
        /// What it was planned by.
        basis: Basis,
        /// The token.
        first_use: FirstUse,
    },
}

/// A shared key that is offered.
#[derive(Clone, Debug)]
pub struct KeyOffer {
    /// The EK.
    pub ek_id: EkId,
    /// The device id.
    pub device_id: DeviceId,
    /// Why the EK was trusted.
    pub assurance: Assurance,
    /// Which key it is.
    pub generation: u32,
    /// To what it is sent.
    pub parent: ParentKind,
}

/// A token that was verified and is welcome.
#[derive(Clone, Debug)]
pub struct FirstUse {
    /// The EK.
    pub ek_id: EkId,
    /// The device id.
    pub device_id: DeviceId,
    /// Why the EK was trusted.
    pub assurance: Assurance,
    /// Which key signed it.
    pub generation: u32,
}

/// What became of an [`Entry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// It is on record, with its audit.
    Done,
    /// What it was planned by no longer holds; nothing of it is on record. Plan again.
    Stale,
}

/// What an act writes, as rows.
pub(crate) enum Write<'a> {
    /// A certificate that comes into force.
    Certificate(NewCertificate<'a>),
    /// One that waits.
    Waiting(NewCertificate<'a>),
    /// One that waited and comes into force.
    Activation(Activation<'a>),
    /// A shared key that is offered.
    Offer(NewOffer<'a>),
    /// A shared key that is used for the first time.
    Use(NewUse<'a>),
}

/// A row of `certificates`.
pub(crate) struct NewCertificate<'a> {
    pub(crate) serial: &'a [u8],
    pub(crate) device_id: &'a DeviceId,
    pub(crate) ek_id: &'a EkId,
    pub(crate) ik_id: [u8; 32],
    pub(crate) assurance: Assurance,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) issued_at: OffsetDateTime,
    pub(crate) confirm_by: Option<OffsetDateTime>,
    pub(crate) sha256: [u8; 32],
    pub(crate) stored: &'a [u8],
}

/// What makes a waiting certificate the active one.
pub(crate) struct Activation<'a> {
    pub(crate) serial: &'a [u8],
    pub(crate) device_id: &'a DeviceId,
    pub(crate) ek_id: &'a EkId,
    pub(crate) assurance: Assurance,
    pub(crate) confirmed_at: OffsetDateTime,
    pub(crate) der: &'a [u8],
}

/// A row of `shared_keys`.
pub(crate) struct NewOffer<'a> {
    pub(crate) ek_id: &'a EkId,
    pub(crate) device_id: &'a DeviceId,
    pub(crate) assurance: Assurance,
    pub(crate) generation: u32,
    /// 0 if it was not sent to a plain storage root key.
    pub(crate) plain_srk_generation: u32,
    pub(crate) offered_at: OffsetDateTime,
}

/// What changes in `shared_keys` with a first use.
pub(crate) struct NewUse<'a> {
    pub(crate) ek_id: &'a EkId,
    pub(crate) device_id: &'a DeviceId,
    pub(crate) assurance: Assurance,
    pub(crate) generation: u32,
    pub(crate) used_at: OffsetDateTime,
}

impl Act {
    /// What it was planned by.
    pub fn basis(&self) -> Option<&Basis> {
        match self {
            Self::None => None,
            Self::Certify { basis, .. }
            | Self::Seal { basis, .. }
            | Self::Activate { basis, .. }
            | Self::Offer { basis, .. }
            | Self::Accept { basis, .. } => Some(basis),
        }
    }

    /// The rows, if it fits its own basis.
    pub(crate) fn write(&self) -> Result<Option<(&Basis, Write<'_>)>, StoreError> {
        let (basis, write) = match self {
            Self::None => return Ok(None),
            Self::Certify { basis, certificate } => {
                let new = new_certificate(certificate, basis, &certificate.der);
                (basis, Write::Certificate(NewCertificate { confirm_by: None, ..new }))
            }
            Self::Seal { basis, certificate, stored } => {
                (basis, Write::Waiting(new_certificate(certificate, basis, stored.as_bytes())))
            }
            Self::Activate { basis, confirmed, der } => {
                let certificate = confirmed.certificate();
                let activation = Activation {
                    serial: &certificate.serial,
                    device_id: &certificate.device_id,
                    ek_id: &certificate.ek_id,
                    assurance: certificate.assurance,
                    confirmed_at: basis.question.now,
                    der,
                };
                (basis, Write::Activation(activation))
            }
            Self::Offer { basis, offer } => {
                let plain_srk_generation = match offer.parent {
                    ParentKind::Import => 0,
                    ParentKind::PlainSrk => offer.generation,
                };
                let offer = NewOffer {
                    ek_id: &offer.ek_id,
                    device_id: &offer.device_id,
                    assurance: offer.assurance,
                    generation: offer.generation,
                    plain_srk_generation,
                    offered_at: basis.question.now,
                };
                (basis, Write::Offer(offer))
            }
            Self::Accept { basis, first_use } => {
                let first_use = NewUse {
                    ek_id: &first_use.ek_id,
                    device_id: &first_use.device_id,
                    assurance: first_use.assurance,
                    generation: first_use.generation,
                    used_at: basis.question.now,
                };
                (basis, Write::Use(first_use))
            }
        };
        write.check(basis)?;
        Ok(Some((basis, write)))
    }
}

fn new_certificate<'a>(
    certificate: &'a IssuedCertificate,
    basis: &Basis,
    stored: &'a [u8],
) -> NewCertificate<'a> {
    NewCertificate {
        serial: &certificate.serial,
        device_id: &certificate.device_id,
        ek_id: &certificate.ek_id,
        ik_id: Sha256::digest(&certificate.ik_spki).into(),
        assurance: certificate.assurance,
        not_before: certificate.not_before,
        not_after: certificate.not_after,
        issued_at: basis.question.now,
        confirm_by: certificate.confirm_by,
        sha256: Sha256::digest(&certificate.der).into(),
        stored,
    }
}

impl Write<'_> {
    pub(crate) fn ek_id(&self) -> &EkId {
        match self {
            Self::Certificate(new) | Self::Waiting(new) => new.ek_id,
            Self::Activation(activation) => activation.ek_id,
            Self::Offer(offer) => offer.ek_id,
            Self::Use(first_use) => first_use.ek_id,
        }
    }

    pub(crate) fn device_id(&self) -> &DeviceId {
        match self {
            Self::Certificate(new) | Self::Waiting(new) => new.device_id,
            Self::Activation(activation) => activation.device_id,
            Self::Offer(offer) => offer.device_id,
            Self::Use(first_use) => first_use.device_id,
        }
    }

    /// The registration that it makes or confirms: device id, EK, assurance and time.
    pub(crate) fn registration(&self) -> Option<(&DeviceId, &EkId, Assurance, OffsetDateTime)> {
        match self {
            Self::Certificate(new) => {
                Some((new.device_id, new.ek_id, new.assurance, new.issued_at))
            }
            Self::Activation(new) => {
                Some((new.device_id, new.ek_id, new.assurance, new.confirmed_at))
            }
            Self::Use(new) => Some((new.device_id, new.ek_id, new.assurance, new.used_at)),
            Self::Waiting(_) | Self::Offer(_) => None,
        }
    }

    /// Refuses what the basis of the plan forbids: the schema would refuse the whole transaction.
    fn check(&self, Basis { question, snapshot }: &Basis) -> Result<(), StoreError> {
        if *self.ek_id() != question.ek {
            return Err(StoreError::Inconsistent("it is about another EK"));
        }
        let Some((device_id, ek, ..)) = self.registration() else { return Ok(()) };
        let registered = snapshot.records.registration.as_ref();
        if registered.is_some_and(|registered| registered.device_id != *device_id) {
            return Err(StoreError::Inconsistent("the EK is registered under another device id"));
        }
        let asked = match &question.device {
            IdInQuestion::Is(asked) => asked == device_id,
            IdInQuestion::Due { .. } => true,
        };
        if !asked {
            return Err(StoreError::Inconsistent("it is about another device id"));
        }
        if snapshot.records.id_holder.is_some_and(|holder| holder != *ek) {
            return Err(StoreError::Inconsistent("the device id is another EK's"));
        }
        let is_on_record = snapshot.records.shared_key.is_some();
        if matches!(self, Self::Use(_)) && !is_on_record {
            return Err(StoreError::Inconsistent("the EK was offered no shared key"));
        }
        Ok(())
    }
}

/// Everything that an act and the question behind it depend on: two entries that share none of
/// these can be recorded together.
pub(crate) fn touched(Basis { question, snapshot }: &Basis, write: &Write<'_>) -> Vec<Touched> {
    let Records { registration, enrolment, .. } = &snapshot.records;
    let (named, others) = match &question.device {
        IdInQuestion::Is(device) => (device, &[][..]),
        IdInQuestion::Due { derived, other_eks } => (derived, &other_eks[..]),
    };
    let granted = enrolment.as_ref().and_then(|enrolment| enrolment.device_id.as_ref());
    let registered = registration.as_ref().map(|registration| &registration.device_id);
    let devices = [Some(named), Some(write.device_id()), granted, registered];
    let devices = devices.into_iter().flatten().cloned().map(Touched::Device);
    devices.chain([question.ek].iter().chain(others).copied().map(Touched::Ek)).collect()
}

/// See [`touches`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Touched {
    Device(DeviceId),
    Ek(EkId),
}
