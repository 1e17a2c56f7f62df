//! The offer of a shared key: its generation, and the form that only one TPM can load.

use assay_wire::{ActivationReply, DeviceId, EkId, Scope};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::key::MasterSecret;
use super::parent::AdmittedParent;
use crate::admission::Admitted;
use crate::ek::assurance::Assurance;
use crate::profile::SharedKeyFlow;
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
    pub fn decide(
        admitted: Admitted<SharedKeyFlow>,
        parent: AdmittedParent,
        records: &Records,
    ) -> Result<Self, Rejection> {
        let generation = generation(admitted.ek.ek_id(), parent.kind(), records)?;
        Ok(Self { admitted, parent, generation })
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

fn generation(ek: EkId, parent: ParentKind, records: &Records) -> Result<u32, Rejection> {
    let Some(SharedKeyOnRecord { generation, is_used, plain_srk_generation }) = records.shared_key
    else {
        return Ok(FIRST_GENERATION);
    };
    let count = records.recent_generations;
    let generation = match records.reprovision() {
        Reprovision::Reuse => generation,
        _ if !is_used => generation,
        Reprovision::Never => return Err(Rejection::ReprovisionRefused { ek }),
        Reprovision::Reissue if count >= QUOTA => return Err(Rejection::QuotaExceeded { count }),
        Reprovision::Reissue => generation.saturating_add(1),
    };
    Ok(match parent {
        ParentKind::Import => generation.max(plain_srk_generation.saturating_add(1)),
        ParentKind::PlainSrk => generation,
    })
}
