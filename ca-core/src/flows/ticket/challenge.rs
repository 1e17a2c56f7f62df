//! The challenge: a claim, and a credential that holds its ticket.

use assay_wire::{ChallengeReply, Scope};
use rand_core::CryptoRng;
use time::OffsetDateTime;

use super::claim::{BriefId, CLAIM_LIFETIME, Claim, TICKET_LABEL};
use super::proof::Instead;
use crate::Fault;
use crate::admission::Admitted;
use crate::flows::mac::{Terms, TicketKey};
use crate::ik::BoundKey;
use crate::profile::TicketFlow;
use crate::rejection::fitting;
use crate::subject::Subject;
use crate::tpm::credential::make_credential;

/// A challenge that only the TPM with both the EK and the IK can answer.
#[derive(Debug)]
pub struct Challenge(ChallengeReply);

impl Challenge {
    /// Makes a claim of what was verified, and a credential with the claim's ticket, for the EK and
    /// the Name of the IK (TPM 2.0 Part 1, 24).
    ///
    /// `instead` is in the claim, so nobody can change it before the certificate is issued.
    ///
    /// The types ensure that no EK that failed a check gets a credential.
    pub fn new(
        admitted: &Admitted<TicketFlow>,
        ik: &BoundKey,
        instead: Instead,
        scope: &Scope,
        key: &TicketKey,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<Self, Fault> {
        let Terms { scope, key_id, issued_at, .. } = key.terms(scope, now, now + CLAIM_LIFETIME);
        let Subject { device_id, ek_id, assurance, hardware, .. } =
            Subject::new(admitted, ik, &scope);
        let claim = Claim {
            scope,
            device_id: BriefId(device_id),
            ek_id,
            ik: ik.area.key().brief(),
            assurance,
            hardware,
            key_id,
            issued_at,
            is_rekey: (instead == Instead::OnceTaken).then_some(true),
            lifetime_s: admitted.lifetime().map(|lifetime| {
                u32::try_from(lifetime.whole_seconds()).expect("a group bounds it")
            }),
        };
        let claim = minicbor::to_vec(claim).expect("writing to memory does not fail");
        let ticket = key.mac(TICKET_LABEL, &claim);
        let credential = make_credential(&admitted.ek.area, ik.area.name(), &*ticket, rng)?;
        Ok(Self(ChallengeReply {
            claim: fitting("the claim", claim)?,
            credential_blob: fitting("the credential blob", credential.id_object)?,
            encrypted_seed: fitting("the encrypted seed", credential.encrypted_seed)?,
        }))
    }

    /// The reply to the device.
    pub fn into_reply(self) -> ChallengeReply {
        self.0
    }
}
