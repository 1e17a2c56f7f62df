//! A simulated device: its keys, and what it computes with them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use assay_wire::{
    ActivationReply, Bundle, CertificateList, DeviceId, EkId, EkPublic, ParentBundle,
    SealedCertificate, SealedReply,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use minicbor::{Decode, Encode};

use crate::bad::Bad;
use crate::factory::{Ek, Ik, Parent};
use crate::tpm::hash::Hash;
use crate::tpm::wrapper::{self, Protection};

/// One TPM, and how its owner behaves.
pub(crate) struct Device {
    pub(crate) ek: Ek,
    pub(crate) bound: Bound,
    pub(crate) bad: Option<Bad>,
    /// Whether it drops its connection after the first reply, and begins again.
    pub(crate) churns: bool,
    /// Whether it sleeps in this run.
    pub(crate) sleeps: bool,
    granted: Mutex<Option<Granted>>,
    /// Whether the broker refused its certificate.
    is_refused: AtomicBool,
}

/// A certificate and its device.
#[derive(Clone, Encode, Decode)]
pub(crate) struct Granted {
    #[n(0)]
    pub(crate) device_id: DeviceId,
    #[n(1)]
    pub(crate) chain: CertificateList<1>,
    /// When the CA said that it is to be renewed, in seconds since 1970.
    #[n(2)]
    pub(crate) renew_at: Option<u64>,
    /// Whether the CA knows that the device has it.
    #[n(3)]
    pub(crate) is_adopted: bool,
}

/// The key that the CA binds to the EK.
pub(crate) enum Bound {
    Ik(Ik),
    Parent(Parent),
}

impl Device {
    pub(crate) fn new(ek: Ek, bound: Bound) -> Self {
        let (granted, is_refused) = (Mutex::default(), AtomicBool::default());
        Self { ek, bound, bad: None, churns: false, sleeps: false, granted, is_refused }
    }

    /// Its certificate.
    pub(crate) fn granted(&self) -> Option<Granted> {
        self.lock().clone()
    }

    /// Keeps a certificate in place of the one before.
    pub(crate) fn keep(&self, granted: Granted) {
        *self.lock() = Some(granted);
        self.is_refused.store(false, Ordering::Relaxed);
    }

    /// The broker refuses its certificate.
    pub(crate) fn refuse(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_refused(&self) -> bool {
        self.is_refused.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Granted>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The request of the ticket and the sealed flow.
    pub(crate) fn bundle(&self, ik: &Ik) -> Result<Bundle> {
        Ok(Bundle {
            device_id: None,
            ek_public: self.ek_public()?,
            ek_certificates: self.ek_certificates()?,
            ik_public: self.bound_area().try_into()?,
            csr: ik.csr.as_slice().try_into()?,
            other_eks: None,
        })
    }

    /// The request of the shared key flow.
    pub(crate) fn parent_bundle(&self) -> Result<ParentBundle> {
        Ok(ParentBundle {
            device_id: None,
            ek_public: self.ek_public()?,
            ek_certificates: self.ek_certificates()?,
            parent_public: self.bound_area().try_into()?,
            other_eks: None,
        })
    }

    /// TPM2_ActivateCredential for the IK or the parent.
    pub(crate) fn activate(
        &self,
        credential_blob: &[u8],
        encrypted_seed: &[u8],
    ) -> Result<Vec<u8>> {
        let name = Hash::sha256_name(&self.bound_area());
        let protection =
            Protection { hash: self.ek.kind.hash(), aes_key_size: self.ek.kind.aes_key_size() };
        wrapper::activate_credential(
            &self.ek.key,
            protection,
            &name,
            credential_blob,
            encrypted_seed,
        )
    }

    /// Opens the box of a sealed reply.
    pub(crate) fn open(&self, ik: &Ik, reply: &SealedReply) -> Result<SealedCertificate> {
        let key = self.activate(&reply.credential_blob, &reply.encrypted_seed)?;
        let key = LessSafeKey::new(
            UnboundKey::new(&AES_256_GCM, &key).context("a box has a key of 32 bytes")?,
        );
        let [ek_id, ik_id] =
            [self.ek.key.spki(), &ik.spki].map(|spki| Hash::Sha256.digest(&[spki]));
        let ek_id: [u8; 32] = ek_id.as_slice().try_into()?;
        let data = SealedReply::associated_data(
            &reply.claim,
            &EkId::from(ek_id),
            &ik_id.as_slice().try_into()?,
        );
        let (nonce, sealed) =
            reply.sealed.split_at_checked(NONCE_LEN).context("the box has no nonce")?;
        let (nonce, mut sealed) = (Nonce::try_assume_unique_for_key(nonce)?, sealed.to_vec());
        let opened = key
            .open_in_place(nonce, Aad::from(data), &mut sealed)
            .context("the box does not open")?;
        Ok(SealedCertificate::decode(opened)?)
    }

    /// The HMAC key of an activation.
    pub(crate) fn import(&self, parent: &Parent, reply: &ActivationReply) -> Result<Vec<u8>> {
        let inner_key = self.activate(&reply.credential_blob, &reply.encrypted_seed)?;
        wrapper::import_hmac_key(
            &parent.key,
            &inner_key,
            &reply.key_public,
            &reply.duplicate,
            &reply.symmetric_seed,
        )
    }

    pub(crate) fn ek_certificates(&self) -> Result<CertificateList<0>> {
        Ok(vec![self.ek.certificate.as_slice().try_into()?].try_into()?)
    }

    pub(crate) fn ek_public(&self) -> Result<EkPublic> {
        if self.bad == Some(Bad::ForeignCertificate) {
            return Ok(self.ek.kind.area(self.ek.key.unique()).try_into()?);
        }
        Ok(EkPublic::OfCertificate(self.ek.kind.certificate_index()))
    }

    fn bound_area(&self) -> Vec<u8> {
        match (&self.bound, self.bad) {
            (Bound::Ik(ik), Some(Bad::NotFixedTpm)) => ik.kind.area_without_fixed_tpm(&ik.unique),
            (Bound::Ik(ik), _) => ik.kind.area(&ik.unique),
            (Bound::Parent(parent), Some(Bad::NotFixedTpm)) => {
                parent.kind.area_without_fixed_tpm(parent.key.unique())
            }
            (Bound::Parent(parent), Some(Bad::PlainSrk)) => {
                parent.kind.area_of_plain_srk(parent.key.unique())
            }
            (Bound::Parent(parent), _) => parent.kind.area(parent.key.unique()),
        }
    }
}
