//! The MAC that proves a claim, and the terms that every claim has.

use assay_wire::{Proof, Scope, Ticket};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use crate::Rejection;
use crate::secret::{Overlapping, secret};

/// By how much the clocks of two workers, or of a device and the CA, may differ.
pub const CLOCK_SKEW: Duration = Duration::seconds(60);

secret!(
    /// The secret that makes tickets. All workers of a CA have the same one.
    TicketKey
);

impl TicketKey {
    /// Identifies the key without revealing it.
    fn id(&self) -> [u8; KEY_ID_LEN] {
        let digest = Sha256::new_with_prefix("assay ticket key id").chain_update(self.0).finalize();
        *digest.first_chunk().expect("SHA-256 is longer than a key id")
    }

    /// The MAC of a claim. `label` separates the claims of one flow from those of another, and
    /// tickets from receipts.
    pub(crate) fn mac(&self, label: &[u8], claim: &[u8]) -> Zeroizing<[u8; Ticket::LEN]> {
        let mut mac =
            <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("HMAC takes any key length");
        mac.update(label);
        mac.update(claim);
        Zeroizing::new(mac.finalize().into_bytes().into())
    }

    pub(crate) fn terms(
        &self,
        scope: &Scope,
        issued_at: OffsetDateTime,
        expires_at: OffsetDateTime,
    ) -> Terms {
        let (issued_at, expires_at) = (issued_at.unix_timestamp(), expires_at.unix_timestamp());
        Terms { scope: scope.clone(), key_id: self.id(), issued_at, expires_at }
    }
}

/// The terms of a claim: its scope, the key that made it, and its times.
pub(crate) struct Terms {
    pub(crate) scope: Scope,
    pub(crate) key_id: [u8; KEY_ID_LEN],
    /// Seconds since 1970.
    pub(crate) issued_at: i64,
    /// Seconds since 1970.
    pub(crate) expires_at: i64,
}

impl Overlapping<TicketKey> {
    /// The key with which a claim was made, as the claim says.
    fn of(&self, terms: &Terms) -> Result<&TicketKey, Rejection> {
        let mut keys = self.accepted();
        keys.find(|key| key.id() == terms.key_id).ok_or(Rejection::ClaimOfAnotherKey)
    }
}

/// A claim that its ticket proves.
pub(crate) struct Checked<'a> {
    /// The key that made both.
    pub(crate) key: &'a TicketKey,
    /// When they were made.
    pub(crate) issued_at: OffsetDateTime,
}

impl Terms {
    /// Checks that `proof` proves its claim, in this scope and now. `self` are the terms of that
    /// claim.
    pub(crate) fn check<'a>(
        self,
        proof: &Proof,
        label: &[u8],
        scope: &Scope,
        keys: &'a Overlapping<TicketKey>,
        now: OffsetDateTime,
    ) -> Result<Checked<'a>, Rejection> {
        let key = keys.of(&self)?;
        if !bool::from(key.mac(label, &proof.claim).ct_eq(proof.ticket.as_bytes())) {
            return Err(Rejection::TicketWrong);
        }
        if self.scope != *scope {
            return Err(Rejection::ClaimOfAnotherScope {
                claimed: self.scope,
                scope: scope.clone(),
            });
        }
        let (issued_at, expired_at) = (time(self.issued_at)?, time(self.expires_at)?);
        if now >= expired_at {
            return Err(Rejection::ClaimExpired { expired_at, now });
        }
        if issued_at > now + CLOCK_SKEW {
            return Err(Rejection::ClaimFromTheFuture { issued_at, now });
        }
        Ok(Checked { key, issued_at })
    }
}

fn time(seconds: i64) -> Result<OffsetDateTime, Rejection> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Rejection::ClaimUnreadable)
}

/// Length of a key's id in a claim.
pub(crate) const KEY_ID_LEN: usize = 4;
