//! The decisions of `ca-core`, given what the store knows.

use assay_ca_core::{
    Admitted, BoundKey, Evidence, Fault, Issuer, Prepared, Profile, ProvenDevice, Rejection, TicketKey, TrustAnchors,
    TrustedEk,
};
use assay_wire::{CertificateReply, ChallengeReply, DeviceId, Scope};
use time::OffsetDateTime;

use crate::random::random;
use crate::store::{AnchorsVersion, Store, StoreError, Transaction};

/// The CA's own keys and rules.
pub struct Ca {
    /// The provisioning domain it serves.
    pub scope: Scope,
    /// Seals tickets.
    pub ticket_key: TicketKey,
    /// Signs certificates.
    pub issuer: Issuer,
    /// Says what a certificate looks like.
    pub profile: Profile,
}

impl Ca {
    /// Certifies a proven device inside the store's transaction: what is decided here and what is recorded cannot come apart.
    ///
    /// A device that holds a certificate in force for the same IK gets that one again, so a repeated or resumed request
    /// issues nothing.
    ///
    /// # Errors
    /// The device is no longer admitted, the store failed, or the signer did.
    pub fn certify(
        &self,
        transaction: &Transaction<'_>,
        device: ProvenDevice,
        now: OffsetDateTime,
    ) -> Result<CertificateReply, Refusal> {
        let records = transaction.records(&device, now)?;
        let device = device.readmit(&records)?;
        let device_id = device.device().device_id().clone();
        let leaf = match transaction.certificate_in_force(device.device(), now)? {
            Some(der) => der,
            None => {
                let prepared = Prepared::new(device, &self.profile, &self.issuer, now, &mut random())?;
                let issued = self.issuer.sign(prepared)?;
                transaction.add_certificate(&issued, now)?;
                issued.der.to_vec()
            }
        };
        Ok(CertificateReply { chain: self.issuer.chain(&leaf)?, device_id })
    }
}

/// Checks evidence against the store's newest state. Each thread has its own.
pub struct Examiner {
    store: Store,
    anchors: TrustAnchors,
    anchors_version: AnchorsVersion,
}

impl Examiner {
    /// Reads the vendors' certificates.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn new(store: Store) -> Result<Self, StoreError> {
        let anchors_version = store.anchors_version()?;
        let anchors = read_anchors(&store)?;
        Ok(Self { store, anchors, anchors_version })
    }

    /// Answers a device's evidence with a challenge, once every check that needs no answer has passed.
    ///
    /// # Errors
    /// A check failed, or the store did.
    pub fn challenge(
        &mut self,
        ca: &Ca,
        evidence: Evidence,
        now: OffsetDateTime,
    ) -> Result<(ChallengeReply, DeviceId), Refusal> {
        self.refresh_anchors()?;
        let records = self.store.records(&evidence, now)?;
        let ek = TrustedEk::verify(&evidence, &self.anchors, records.enrolment.as_ref(), now)?;
        let key = BoundKey::verify(&evidence)?;
        let admitted = Admitted::decide(ek, evidence.requested_device_id(), &records)?;
        let device_id = admitted.device_id().clone();
        let reply = admitted.challenge(&key, &ca.scope, &ca.ticket_key, now, &mut random())?;
        Ok((reply, device_id))
    }

    fn refresh_anchors(&mut self) -> Result<(), StoreError> {
        let version = self.store.anchors_version()?;
        if version != self.anchors_version {
            self.anchors = read_anchors(&self.store)?;
            self.anchors_version = version;
        }
        Ok(())
    }
}

fn read_anchors(store: &Store) -> Result<TrustAnchors, StoreError> {
    let certificates = store.anchors()?.into_iter().map(|row| row.certificate.into());
    Ok(TrustAnchors::new(certificates)?)
}

/// Why a request gets no other answer than a problem.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The device's fault; it is told.
    #[error(transparent)]
    Rejection(#[from] Rejection),
    /// Ours; the device learns no more than that.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Ours; the device learns no more than that.
    #[error(transparent)]
    Store(#[from] StoreError),
}
