//! The offer of a shared key: its generation, and the form that only one TPM can load.

use assay_wire::{ActivationReply, DeviceId, EkId, Scope};
use rand_core::CryptoRng;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::key::MasterSecret;
use super::parent::AdmittedParent;
use crate::admission::Admitted;
use crate::ek::assurance::Assurance;
use crate::profile::{Profile, SharedKeyFlow};
use crate::records::{FIRST_GENERATION, QUOTA, Records, Reprovision, SharedKeyOnRecord};
use crate::rejection::fitting;
use crate::tpm::credential::make_credential;
use crate::tpm::duplicate::INNER_KEY_BYTES;
use crate::tpm::template::ParentKind;
use crate::{Fault, Rejection};

/// A shared key that an EK gets.
///
/// Record the offer before the device gets the key. A key that was offered to a plain storage root
/// key must never be offered to an import parent, and only the record can tell.
#[derive(Clone, Debug)]
pub struct KeyOffer {
    admitted: Admitted<SharedKeyFlow>,
    parent: AdmittedParent,
    generation: u32,
    rotation: Option<Rotation>,
}

/// When a device is to ask for the next key.
#[derive(Clone, Copy, Debug)]
struct Rotation {
    /// The CA gives the next one from this time on.
    due_in: Duration,
    /// The device is told to come this much later at most.
    spread: Duration,
}

impl KeyOffer {
    /// Chooses the generation of the shared key that the EK gets now.
    ///
    /// A generation that was never used is offered again. Only a token of the offered generation
    /// retires the one in use (see [`Records::accepted_generations`]). So a request, which proves
    /// nothing, takes no key from any device.
    ///
    /// A key that was offered to a plain storage root key is never offered to an import parent,
    /// because it may be known outside of the TPM.
    ///
    /// A device that gets the same key by policy gets the next one once the key is due to be
    /// rotated: after three quarters of the [time](Profile::rotate_after) for which it is used.
    pub fn decide(
        admitted: Admitted<SharedKeyFlow>,
        parent: AdmittedParent,
        records: &Records,
        profile: &Profile,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let left = Rotation::of_key_in_use(records, profile, now);
        let is_due = left.is_some_and(|left| left.due_in <= Duration::ZERO);
        let generation = generation(admitted.ek.ek_id(), parent.kind(), records, is_due)?;
        let is_in_use =
            records.shared_key.is_some_and(|it| it.is_used && it.generation == generation);
        let rotation = if is_in_use { left } else { Rotation::of_new_key(profile) };
        // Under this policy there is no next one.
        let rotation = rotation.filter(|_| records.reprovision() != Reprovision::Never);
        Ok(Self { admitted, parent, generation, rotation })
    }

    /// Makes the shared key in the form that the device's TPM can load.
    ///
    /// The duplicate opens only with the parent. The key of its inner wrapper is the secret of a
    /// credential for the parent's Name, which opens only if EK and parent are in one TPM. So only
    /// the TPM with that EK and that parent loads the key. Because the parent is on template, it is
    /// in no other TPM. An import parent decrypts for nobody outside. A plain storage root key
    /// does, for an attacker who controls the device's software, and is admitted only where the
    /// operator says so.
    ///
    /// This does not establish that the TPM ever loads the key, because nothing comes back. A later
    /// [token](crate::AuthenticatedDevice) shows that. The key is not the TPM's alone: the CA knows
    /// it too, so a token proves only to the CA that the device made it. A token does not say when
    /// it was made, only until when it is valid.
    ///
    /// Another call for the same generation gives the same key in new wrappers.
    pub fn activation(
        &self,
        scope: &Scope,
        master: &MasterSecret,
        rng: &mut dyn CryptoRng,
    ) -> Result<ActivationReply, Fault> {
        let (ek, AdmittedParent(parent)) = (&self.admitted.ek, &self.parent);
        let object = master.key(scope, self.device_id(), &ek.ek_id(), self.generation).object();
        let mut inner_key = Zeroizing::new([0; INNER_KEY_BYTES]);
        rng.fill_bytes(&mut *inner_key);
        let credential = make_credential(&ek.area, parent.name(), &*inner_key, rng)?;
        let duplicate = object.duplicate(parent, &inner_key, rng)?;
        Ok(ActivationReply {
            credential_blob: fitting("the credential blob", credential.id_object)?,
            encrypted_seed: fitting("the encrypted seed", credential.encrypted_seed)?,
            duplicate: fitting("the duplicate", duplicate.private)?,
            symmetric_seed: fitting("the symmetric seed", duplicate.encrypted_seed)?,
            key_public: fitting("the key's public area", object.public().to_vec())?,
            device_id: self.device_id().clone(),
            rotate_after: self.rotation.map(|rotation| rotation.advice(rng)),
        })
    }

    /// The device id that the key is for.
    pub fn device_id(&self) -> &DeviceId {
        self.admitted.device_id()
    }

    /// What must be on record before the device gets the key.
    pub fn record(&self) -> OfferedKey {
        OfferedKey {
            ek_id: self.admitted.ek.ek_id(),
            device_id: self.device_id().clone(),
            assurance: self.admitted.ek.assurance(),
            generation: self.generation,
            parent: self.parent.kind(),
        }
    }
}

impl Rotation {
    /// `None` if the CA does not have keys rotated.
    fn of_new_key(profile: &Profile) -> Option<Self> {
        let spread = profile.rotate_after()? / SPREAD;
        Some(Self { due_in: spread * (SPREAD - 1), spread })
    }

    /// The rotation of the key that is on record as used. One that nobody knows the age of is due.
    fn of_key_in_use(records: &Records, profile: &Profile, now: OffsetDateTime) -> Option<Self> {
        let Self { due_in, spread } = Self::of_new_key(profile)?;
        let left = records.key_used_since.map(|since| since + due_in - now);
        // By a clock that was set back since, it would be more than there ever was.
        let left = left.unwrap_or_default().clamp(Duration::ZERO, due_in);
        Some(Self { due_in: left, spread })
    }

    /// What the device is told: each device another time, so that a fleet that was provisioned at
    /// once does not come back at once.
    fn advice(self, rng: &mut dyn CryptoRng) -> u32 {
        let spread = self.spread.whole_seconds().unsigned_abs();
        let jitter = (u128::from(rng.next_u64()) * u128::from(spread)) >> u64::BITS;
        let due_in = self.due_in.whole_seconds().unsigned_abs();
        let jitter = u64::try_from(jitter).expect("it is less than the spread");
        u32::try_from(due_in + jitter).unwrap_or(u32::MAX)
    }
}

/// What a store keeps of an offered shared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedKey {
    pub(crate) ek_id: EkId,
    pub(crate) device_id: DeviceId,
    pub(crate) assurance: Assurance,
    pub(crate) generation: u32,
    pub(crate) parent: ParentKind,
}

impl OfferedKey {
    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.ek_id
    }

    /// The device id that the key is for.
    pub fn device_id(&self) -> &DeviceId {
        &self.device_id
    }

    /// Why the EK was trusted.
    pub fn assurance(&self) -> Assurance {
        self.assurance
    }

    /// The generation of the key.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// What the TPM does with the content wrapped for the parent to which the key is sent.
    pub fn parent(&self) -> ParentKind {
        self.parent
    }
}

fn generation(
    ek: EkId,
    parent: ParentKind,
    records: &Records,
    is_due: bool,
) -> Result<u32, Rejection> {
    let Some(SharedKeyOnRecord { generation, is_used, plain_srk_generation }) = records.shared_key
    else {
        return Ok(FIRST_GENERATION);
    };
    let count = records.recent_generations;
    let generation = match records.reprovision() {
        _ if !is_used => generation,
        Reprovision::Never => return Err(Rejection::ReprovisionRefused { ek }),
        Reprovision::Reuse if !is_due => generation,
        Reprovision::Reissue | Reprovision::Reuse if count >= QUOTA => {
            return Err(Rejection::QuotaExceeded { count });
        }
        Reprovision::Reissue | Reprovision::Reuse => generation.saturating_add(1),
    };
    Ok(match parent {
        ParentKind::Import => generation.max(plain_srk_generation.saturating_add(1)),
        ParentKind::PlainSrk => generation,
    })
}

/// Devices are told to come within the last such part of the time for which a key is used.
const SPREAD: i32 = 4;
