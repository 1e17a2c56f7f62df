//! The ticket flow's two ends: a claim that only the right TPM can prove, and the proof.
//!
//! Nothing is kept between the two: the claim, which says what was verified, goes to the device and
//! comes back, and its ticket, a MAC of the claim, travels only inside a credential. Who shows the
//! ticket has activated the credential, so the EK and the IK of the claim are in one TPM, and it is
//! at the other end of this exchange.

use assay_wire::{ChallengeReply, DeviceId, EkId, Limit, Proof, Scope};
use minicbor::bytes::ByteArray;
use minicbor::data::Type;
use minicbor::{Decode, Decoder, Encode, Encoder};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::admission::Admitted;
use crate::bound_key::BoundKey;
use crate::evidence::{digest_naming, named_by};
use crate::hardware::HardwareIdentity;
use crate::issue::Subject;
use crate::key::PublicKey;
use crate::ticket::{KEY_ID_LEN, Terms, TicketKey};
use crate::tpm::credential::make_credential;
use crate::trust::Assurance;
use crate::{Fault, Rejection};

/// How long a device has to answer a challenge. RSA keys take a slow TPM seconds; bad networks take
/// minutes.
pub const CLAIM_LIFETIME: Duration = Duration::seconds(300);

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
        let Terms { scope, key_id, issued_at, .. } = key.terms(scope, now, now + CLAIM_LIFETIME);
        let Subject { device_id, ek_id, assurance, hardware, .. } = self.subject(ik, &scope);
        let claim = Claim {
            scope,
            device_id: BriefId(device_id),
            ek_id,
            ik: ik.area.key().brief(),
            assurance,
            hardware,
            key_id,
            issued_at,
        };
        let claim = minicbor::to_vec(claim).expect("writing to memory does not fail");
        let credential =
            make_credential(&self.ek.area, ik.area.name(), &*key.mac(TICKET_LABEL, &claim), rng)?;
        let oversize = |field| move |limit: Limit| Fault::Oversize { field, limit };
        Ok(ChallengeReply {
            claim: claim.try_into().map_err(oversize("the claim"))?,
            credential_blob: credential
                .id_object
                .try_into()
                .map_err(oversize("the credential blob"))?,
            encrypted_seed: credential
                .encrypted_seed
                .try_into()
                .map_err(oversize("the encrypted seed"))?,
        })
    }
}

/// A device that activated its credential: the EK and the IK of its claim are in one TPM, and it
/// has that TPM.
///
/// That it may still have its device id is not established: see [`Readmitted`](crate::Readmitted).
#[derive(Debug)]
pub struct ProvenDevice {
    subject: Subject,
    issued_at: OffsetDateTime,
}

impl ProvenDevice {
    /// Checks a claim and its ticket.
    pub fn verify(
        request: &Proof,
        scope: &Scope,
        key: &TicketKey,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        // Until its MAC is checked, the claim is only looked at for its terms.
        let claim: Claim =
            minicbor::decode(&request.claim).map_err(|_| Rejection::ClaimUnreadable)?;
        let issued_at = claim.terms().check(request, TICKET_LABEL, scope, key, now)?;
        let Claim { scope, device_id: BriefId(device_id), ek_id, ik, assurance, hardware, .. } =
            claim;
        let ik_spki = PublicKey::from_brief(&ik).spki();
        Ok(Self {
            subject: Subject { scope, device_id, ek_id, ik_spki, assurance, hardware },
            issued_at,
        })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.subject.ek_id
    }

    /// The device id the EK was admitted with.
    pub fn device_id(&self) -> &DeviceId {
        &self.subject.device_id
    }

    /// The IK as a SubjectPublicKeyInfo in DER.
    pub fn ik_spki(&self) -> &[u8] {
        &self.subject.ik_spki
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
        self.subject.assurance
    }

    pub(crate) fn into_subject(self) -> Subject {
        self.subject
    }
}

/// What the CA verified, as CBOR. It travels twice, so it is brief.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
struct Claim {
    #[n(0)]
    scope: Scope,
    #[n(1)]
    device_id: BriefId,
    #[n(2)]
    ek_id: EkId,
    /// See [`PublicKey::brief`].
    #[cbor(n(3), with = "minicbor::bytes")]
    ik: Vec<u8>,
    #[n(4)]
    assurance: Assurance,
    #[n(5)]
    hardware: HardwareIdentity,
    #[cbor(n(6), with = "minicbor::bytes")]
    key_id: [u8; KEY_ID_LEN],
    /// Seconds since 1970.
    #[n(7)]
    issued_at: i64,
}

impl Claim {
    fn terms(&self) -> Terms {
        let Self { scope, key_id, issued_at, .. } = self;
        let expires_at = issued_at.saturating_add(CLAIM_LIFETIME.whole_seconds());
        Terms { scope: scope.clone(), key_id: *key_id, issued_at: *issued_at, expires_at }
    }
}

/// A device id, or instead of one that follows from an EK the digest that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BriefId(DeviceId);

impl<C> Encode<C> for BriefId {
    fn encode<W: minicbor::encode::Write>(
        &self,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        match digest_naming(&self.0) {
            Some(digest) => e.bytes(&digest)?.ok(),
            None => self.0.encode(e, context),
        }
    }
}

impl<'b, C> Decode<'b, C> for BriefId {
    fn decode(d: &mut Decoder<'b>, context: &mut C) -> Result<Self, minicbor::decode::Error> {
        match d.datatype()? {
            Type::Bytes => ByteArray::decode(d, context).map(|digest| Self(named_by(&digest))),
            _ => DeviceId::decode(d, context).map(Self),
        }
    }
}

/// Keeps tickets apart from any other MAC that a key could be used for.
const TICKET_LABEL: &[u8] = b"assay ticket v1\0";
