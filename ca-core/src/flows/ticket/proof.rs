//! The proof: a claim that comes back with its ticket.

use assay_wire::{DeviceId, EkId, Proof, Scope};
use time::{Duration, OffsetDateTime};

use super::claim::{BriefId, Claim, TICKET_LABEL};
use crate::Rejection;
use crate::ek::assurance::Assurance;
use crate::flows::mac::{Checked, TicketKey};
use crate::key::PublicKey;
use crate::secret::Overlapping;
use crate::subject::Subject;

/// A device that activated its credential: the EK and the IK of its claim are in one TPM, and it
/// has that TPM.
///
/// Does not establish that it may still have its device id: see [`Readmitted`](crate::Readmitted).
#[derive(Clone, Debug)]
pub struct ProvenDevice {
    pub(super) subject: Subject,
    pub(super) issued_at: OffsetDateTime,
    instead: Instead,
    lifetime: Option<Duration>,
}

/// When a certificate for another IK takes the place of the one that its device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// When it is issued: the device may have no use for the old one, because its TPM was cleared.
    AtOnce,
    /// When the device adopts it or connects with it. The old one stays good until then.
    OnceTaken,
}

impl ProvenDevice {
    /// Checks a claim and its ticket.
    pub fn verify(
        request: &Proof,
        scope: &Scope,
        keys: &Overlapping<TicketKey>,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        // Until the MAC is checked, only the terms of the claim are read.
        let claim: Claim =
            minicbor::decode(&request.claim).map_err(|_| Rejection::ClaimUnreadable)?;
        let Checked { issued_at, .. } =
            claim.terms().check(request, TICKET_LABEL, scope, keys, now)?;
        let Claim { scope, device_id: BriefId(device_id), ek_id, ik, assurance, hardware, .. } =
            claim;
        let (is_rekey, lifetime) = (claim.is_rekey == Some(true), claim.lifetime_s);
        let instead = if is_rekey { Instead::OnceTaken } else { Instead::AtOnce };
        let ik_spki = PublicKey::from_brief(&ik).spki();
        Ok(Self {
            subject: Subject { scope, device_id, ek_id, ik_spki, assurance, hardware },
            issued_at,
            instead,
            lifetime: lifetime.map(|seconds| Duration::seconds(seconds.into())),
        })
    }

    /// When the certificate that it gets takes the place of the one that it has.
    pub fn instead(&self) -> Instead {
        self.instead
    }

    /// How long its certificate is valid, if its group says so.
    pub fn lifetime(&self) -> Option<Duration> {
        self.lifetime
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.subject.ek_id
    }

    /// The device id that the EK was admitted with.
    pub fn device_id(&self) -> &DeviceId {
        &self.subject.device_id
    }

    /// The IK as a SubjectPublicKeyInfo in DER.
    pub fn ik_spki(&self) -> &[u8] {
        &self.subject.ik_spki
    }

    /// SHA-256 of [`ik_spki`](Self::ik_spki), which names the IK on record.
    pub fn ik_id(&self) -> [u8; 32] {
        self.subject.ik_id()
    }

    /// Why the EK was trusted.
    pub fn assurance(&self) -> Assurance {
        self.subject.assurance
    }
}
