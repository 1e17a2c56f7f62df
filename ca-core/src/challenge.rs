//! The ticket flow's two ends: a claim that only the right TPM can prove, and the proof.
//!
//! Nothing is kept between the two: the claim, which says what was verified, goes to the device and comes back, and
//! its ticket, a MAC of the claim, travels only inside a credential. Who shows the ticket has activated the
//! credential, so the EK and the IK of the claim are in one TPM, and it is at the other end of this exchange.

use std::fmt;

use assay_wire::{ChallengeReply, DeviceId, EkId, Limit, Proof, Scope};
use hmac::{Hmac, KeyInit, Mac};
use minicbor::{Decode, Encode};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use time::{Duration, OffsetDateTime};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::admission::Admitted;
use crate::bound_key::BoundKey;
use crate::hardware::HardwareIdentity;
use crate::tpm::credential::make_credential;
use crate::trust::Assurance;
use crate::{Fault, Rejection};

/// How long a device has to answer a challenge. RSA keys take a slow TPM seconds; bad networks take minutes.
pub const CLAIM_LIFETIME: Duration = Duration::seconds(300);

/// By how much the clocks of two workers may differ.
pub const CLOCK_SKEW: Duration = Duration::seconds(60);

/// The secret that makes tickets. All workers of a CA have the same.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TicketKey([u8; Self::LEN]);

impl TicketKey {
    /// Its length in bytes.
    pub const LEN: usize = 32;

    /// Takes a key from storage. Wipe the copy it came from.
    pub fn new(secret: [u8; Self::LEN]) -> Self {
        Self(secret)
    }

    /// Makes a new key.
    pub fn generate(rng: &mut dyn CryptoRng) -> Self {
        let mut secret = [0; Self::LEN];
        rng.fill_bytes(&mut secret);
        Self(secret)
    }

    /// The key, for storage.
    pub fn secret(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Names the key without giving it away.
    fn id(&self) -> [u8; KEY_ID_LEN] {
        let digest = Sha256::new_with_prefix("assay ticket key id").chain_update(self.0).finalize();
        *digest.first_chunk().expect("SHA-256 is longer than a key id")
    }

    fn ticket(&self, claim: &[u8]) -> Zeroizing<[u8; assay_wire::Ticket::LEN]> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("HMAC takes any key length");
        mac.update(TICKET_LABEL);
        mac.update(claim);
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

impl Admitted {
    /// Makes the challenge that proves the EK and the IK to be in one TPM.
    ///
    /// This is the only use of an EK: no credential is made for one that failed a check.
    pub fn challenge(
        &self,
        ik: &BoundKey,
        scope: &Scope,
        key: &TicketKey,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<ChallengeReply, Fault> {
        let claim = Claim {
            scope: scope.clone(),
            device_id: self.device_id.clone(),
            ek_id: self.ek.ek_id(),
            ik_spki: ik.spki(),
            assurance: self.ek.assurance,
            hardware: self.ek.hardware.clone(),
            key_id: key.id(),
            issued_at: now.unix_timestamp(),
            expires_at: (now + CLAIM_LIFETIME).unix_timestamp(),
        };
        let claim = minicbor::to_vec(claim).expect("writing to memory does not fail");
        let credential = make_credential(&self.ek.area, ik.area.name(), &*key.ticket(&claim), rng)?;
        let oversize = |field| move |limit: Limit| Fault::Oversize { field, limit };
        Ok(ChallengeReply {
            claim: claim.try_into().map_err(oversize("the claim"))?,
            credential_blob: credential.id_object.try_into().map_err(oversize("the credential blob"))?,
            encrypted_seed: credential.encrypted_seed.try_into().map_err(oversize("the encrypted seed"))?,
        })
    }
}

/// A device that activated its credential: the EK and the IK of its claim are in one TPM, and it has that TPM.
///
/// That it may still have its device id is not established: see [`Readmitted`](crate::Readmitted).
#[derive(Debug)]
pub struct ProvenDevice {
    claim: Claim,
    issued_at: OffsetDateTime,
}

impl ProvenDevice {
    /// Checks a claim and its ticket.
    pub fn verify(request: &Proof, scope: &Scope, key: &TicketKey, now: OffsetDateTime) -> Result<Self, Rejection> {
        // Until its MAC is checked, the claim is only looked at for the key that made it.
        let claim: Claim = minicbor::decode(&request.claim).map_err(|_| Rejection::ClaimUnreadable)?;
        if claim.key_id != key.id() {
            return Err(Rejection::ClaimOfAnotherKey);
        }
        if !bool::from(key.ticket(&request.claim).ct_eq(request.ticket.as_bytes())) {
            return Err(Rejection::TicketWrong);
        }
        if claim.scope != *scope {
            return Err(Rejection::ClaimOfAnotherScope { claimed: claim.scope, scope: scope.clone() });
        }
        let (issued_at, expired_at) = (claim.time(claim.issued_at)?, claim.time(claim.expires_at)?);
        if now >= expired_at {
            return Err(Rejection::ClaimExpired { expired_at, now });
        }
        if issued_at > now + CLOCK_SKEW {
            return Err(Rejection::ClaimFromTheFuture { issued_at, now });
        }
        Ok(Self { claim, issued_at })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.claim.ek_id
    }

    /// The device id the EK was admitted with.
    pub fn device_id(&self) -> &DeviceId {
        &self.claim.device_id
    }

    /// The IK as a SubjectPublicKeyInfo in DER.
    pub fn ik_spki(&self) -> &[u8] {
        &self.claim.ik_spki
    }

    /// SHA-256 of [`ik_spki`](Self::ik_spki): names the IK on record.
    pub fn ik_id(&self) -> [u8; 32] {
        Sha256::digest(self.ik_spki()).into()
    }

    pub(crate) fn issued_at(&self) -> OffsetDateTime {
        self.issued_at
    }

    /// Why the EK was trusted.
    pub fn assurance(&self) -> Assurance {
        self.claim.assurance
    }

    /// The scope the device provisions in.
    pub fn scope(&self) -> &Scope {
        &self.claim.scope
    }

    pub(crate) fn hardware(&self) -> &HardwareIdentity {
        &self.claim.hardware
    }
}

/// What the CA verified, as deterministic CBOR (RFC 8949 §4.2): definite lengths, ascending keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
struct Claim {
    #[n(0)]
    scope: Scope,
    #[n(1)]
    device_id: DeviceId,
    #[n(2)]
    ek_id: EkId,
    #[cbor(n(3), with = "minicbor::bytes")]
    ik_spki: Vec<u8>,
    #[n(4)]
    assurance: Assurance,
    #[n(5)]
    hardware: HardwareIdentity,
    #[cbor(n(6), with = "minicbor::bytes")]
    key_id: [u8; KEY_ID_LEN],
    /// Seconds since 1970.
    #[n(7)]
    issued_at: i64,
    /// Seconds since 1970.
    #[n(8)]
    expires_at: i64,
}

impl Claim {
    fn time(&self, seconds: i64) -> Result<OffsetDateTime, Rejection> {
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Rejection::ClaimUnreadable)
    }
}

const KEY_ID_LEN: usize = 8;
/// Keeps tickets apart from any other MAC that a key could be used for.
const TICKET_LABEL: &[u8] = b"assay ticket v1\0";
