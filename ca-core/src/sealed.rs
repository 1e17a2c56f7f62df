//! The sealed flow: a certificate that only the right TPM can read, and the confirmation that it
//! did.
//!
//! The certificate exists before anybody proved anything. Until it is confirmed it counts for
//! nothing: it leaves the CA only encrypted under a key that travels inside a credential, it
//! supersedes nothing, and past its time it is revoked.

use std::fmt;

use assay_wire::{
    CertificateList, DeviceId, EkId, Limit, Proof, Receipt, Scope, SealedCertificate, SealedReply,
    Ticket,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use minicbor::{Decode, Encode};
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::admission::{Admitted, QUOTA, Records};
use crate::bound_key::BoundKey;
use crate::issue::Subject;
use crate::ticket::{KEY_ID_LEN, Terms, TicketKey};
use crate::tpm::credential::make_credential;
use crate::tpm::public::Name;
use crate::tpm::template::EkArea;
use crate::trust::Assurance;
use crate::{Fault, Rejection};

/// An EK with its device id and an IK, which may get a certificate if it is sealed.
///
/// That the two are in one TPM is not established, nor that whoever asks has it: anybody can send
/// public keys.
pub struct Candidate {
    subject: Subject,
    ek_area: EkArea,
    ik_name: Name,
}

impl Admitted {
    /// Decides whether a certificate may be issued for this IK before the device proved itself.
    ///
    /// There is a quota of certificates that nobody confirmed, for who knows an EK certificate,
    /// which is no secret, can ask for them. It says nothing about the ticket flow, whose quota
    /// counts what was proven.
    pub fn candidate(
        &self,
        ik: &BoundKey,
        scope: &Scope,
        records: &Records,
        now: OffsetDateTime,
    ) -> Result<Candidate, Rejection> {
        // The times on record have no fractions either, and it is those that a confirmation is
        // judged by.
        let decided_at = now.replace_nanosecond(0).expect("0 is a nanosecond");
        records.check_rekey(&self.ek.ek_id(), &ik.ik_id(), decided_at)?;
        Ok(Candidate {
            subject: self.subject(ik, scope),
            ek_area: self.ek.area.clone(),
            ik_name: ik.area.name().clone(),
        })
    }
}

impl Candidate {
    /// Refuses one more certificate that may never be confirmed.
    pub fn check_quota(&self, records: &Records) -> Result<(), Rejection> {
        let count = records.recent_unconfirmed;
        if count >= QUOTA {
            return Err(Rejection::SealedQuotaExceeded { ek: self.subject.ek_id, count });
        }
        Ok(())
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.subject.ek_id
    }

    /// SHA-256 of the IK's SubjectPublicKeyInfo.
    pub fn ik_id(&self) -> [u8; 32] {
        Sha256::digest(&self.subject.ik_spki).into()
    }

    /// Whether a certificate that waits for this EK and IK says what a new one would, and can still
    /// be confirmed. An operator may have granted another device id meanwhile, or a certificate for
    /// another IK become active.
    pub fn may_have(&self, waiting: &Unconfirmed, records: &Records, now: OffsetDateTime) -> bool {
        let Subject { ek_id, device_id, assurance, .. } = &self.subject;
        (&waiting.ek_id, &waiting.device_id, &waiting.assurance) == (ek_id, device_id, assurance)
            && waiting.ik_id == self.ik_id()
            && waiting.clone().confirm(records, now).is_ok()
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Encrypts a chain to the TPM that has the EK and the IK, with what it takes to confirm until
    /// `confirm_by`.
    ///
    /// The key is fresh and travels as the secret of a credential (TPM 2.0 Part 1, 24) for the Name
    /// of the IK. The box opens only beside its claim, for this EK and this IK (SP 800-38D,
    /// associated data).
    pub fn seal(
        &self,
        chain: CertificateList<1>,
        confirm_by: OffsetDateTime,
        key: &TicketKey,
        now: OffsetDateTime,
        rng: &mut dyn CryptoRng,
    ) -> Result<SealedReply, Fault> {
        let Terms { scope, key_id, issued_at, expires_at } =
            key.terms(&self.subject.scope, now, confirm_by);
        let certificate = Sha256::digest(&*chain[0]).into();
        let claim =
            Claim { scope, ek_id: self.subject.ek_id, certificate, key_id, issued_at, expires_at };
        let claim = minicbor::to_vec(claim).expect("writing to memory does not fail");
        let ticket = Ticket::from(*key.mac(CONFIRMATION_LABEL, &claim));
        let receipt_sha256 = Sha256::digest(*key.mac(RECEIPT_LABEL, &claim)).into();
        let content = Zeroizing::new(SealedCertificate { chain, ticket, receipt_sha256 }.encode());

        let mut secret = Zeroizing::new([0; SEALING_KEY_LEN]);
        rng.fill_bytes(&mut *secret);
        let credential = make_credential(&self.ek_area, &self.ik_name, &*secret, rng)?;
        let data = SealedReply::associated_data(&claim, &self.subject.ek_id, &self.ik_id());
        let oversize = |field| move |limit: Limit| Fault::Oversize { field, limit };
        Ok(SealedReply {
            claim: claim.try_into().map_err(oversize("the claim"))?,
            credential_blob: credential
                .id_object
                .try_into()
                .map_err(oversize("the credential blob"))?,
            encrypted_seed: credential
                .encrypted_seed
                .try_into()
                .map_err(oversize("the encrypted seed"))?,
            sealed: encrypt(&secret, &data, &content, rng)?
                .try_into()
                .map_err(oversize("the sealed certificate"))?,
        })
    }
}

/// A certificate that waits for its confirmation, as it is stored, so that nobody has it who reads
/// the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedCertificate(Vec<u8>);

impl EncryptedCertificate {
    /// Takes it from storage.
    pub fn new(stored: Vec<u8>) -> Self {
        Self(stored)
    }

    /// The bytes, for storage.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TicketKey {
    /// Encrypts a certificate for as long as it waits (AES-256-GCM, SP 800-38D, with random nonces:
    /// good for 2^32 certificates). Who has this key can make tickets, and needs no certificate
    /// that waits. It is bound to its serial number, so that no other certificate can be put in its
    /// place.
    pub fn encrypt(
        &self,
        certificate: &[u8],
        serial: &[u8; 16],
        rng: &mut dyn CryptoRng,
    ) -> Result<EncryptedCertificate, Fault> {
        encrypt(&self.mac(WAITING_LABEL, &[]), serial, certificate, rng).map(EncryptedCertificate)
    }

    /// The certificate with this serial number; `None` if it was encrypted under another key or for
    /// another, or changed since.
    pub fn decrypt(&self, encrypted: &EncryptedCertificate, serial: &[u8; 16]) -> Option<Vec<u8>> {
        let key =
            LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &*self.mac(WAITING_LABEL, &[])).ok()?);
        let (nonce, ciphertext) = encrypted.0.split_first_chunk::<NONCE_LEN>()?;
        let mut content = ciphertext.to_vec();
        let length = key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(serial), &mut content)
            .ok()?
            .len();
        content.truncate(length);
        Some(content)
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Candidate({:?})", self.subject)
    }
}

/// AES-256-GCM (SP 800-38D): nonce, ciphertext, tag.
fn encrypt(
    key: &[u8; SEALING_KEY_LEN],
    data: &[u8],
    content: &[u8],
    rng: &mut dyn CryptoRng,
) -> Result<Vec<u8>, Fault> {
    let failed = |_| Fault::Crypto("sealing a certificate");
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(failed)?);
    let mut nonce = [0; NONCE_LEN];
    rng.fill_bytes(&mut nonce);
    let mut out = [&nonce, content].concat();
    let tag = key
        .seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(data),
            &mut out[NONCE_LEN..],
        )
        .map_err(failed)?;
    out.extend_from_slice(tag.as_ref());
    Ok(out)
}

/// A device that could read its sealed certificate: the EK and the IK are in one TPM, and it has
/// that TPM.
///
/// That the certificate may become active is not established: see [`Unconfirmed::confirm`].
#[derive(Debug)]
pub struct Confirmation {
    claim: Claim,
    receipt: Receipt,
}

impl Confirmation {
    /// Checks a claim and its ticket, which was nowhere but in the box beside the claim.
    pub fn verify(
        request: &Proof,
        scope: &Scope,
        key: &TicketKey,
        now: OffsetDateTime,
    ) -> Result<Self, Rejection> {
        let claim: Claim =
            minicbor::decode(&request.claim).map_err(|_| Rejection::ClaimUnreadable)?;
        claim.terms().check(request, CONFIRMATION_LABEL, scope, key, now)?;
        Ok(Self { claim, receipt: Receipt::from(*key.mac(RECEIPT_LABEL, &request.claim)) })
    }

    /// The EK's id.
    pub fn ek_id(&self) -> EkId {
        self.claim.ek_id
    }

    /// SHA-256 of the certificate that it confirms.
    pub fn certificate_sha256(&self) -> &[u8; 32] {
        &self.claim.certificate
    }

    /// What tells the device that the certificate is active, and that it was the CA that said so.
    /// Send it only if it is.
    pub fn into_receipt(self) -> Receipt {
        self.receipt
    }

    /// Why there is nothing to confirm: the certificate was superseded or revoked since.
    pub fn outdated(&self) -> Rejection {
        match OffsetDateTime::from_unix_timestamp(self.claim.issued_at) {
            Ok(issued_at) => Rejection::CertificateEnded { issued_at },
            Err(_) => Rejection::ClaimUnreadable,
        }
    }
}

/// A certificate on record that waits for its device to confirm it.
///
/// Who presents it must have shown that it could read it, by a [`Confirmation`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Its serial number.
    pub serial: [u8; 16],
    /// Its subject.
    pub device_id: DeviceId,
    /// The EK of the TPM that keeps its key.
    pub ek_id: EkId,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub ik_id: [u8; 32],
    /// Why the EK was trusted.
    pub assurance: Assurance,
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// From when on it is too late.
    pub confirm_by: OffsetDateTime,
}

impl Unconfirmed {
    /// Decides with what is on record now, as
    /// [`ProvenDevice::readmit`](crate::ProvenDevice::readmit) does.
    pub fn confirm(self, records: &Records, now: OffsetDateTime) -> Result<Confirmed, Rejection> {
        if now >= self.confirm_by {
            return Err(Rejection::ClaimExpired { expired_at: self.confirm_by, now });
        }
        records.check_rekey(&self.ek_id, &self.ik_id, self.issued_at)?;
        records.admit(&self.ek_id, &self.device_id, self.assurance)?;
        Ok(Confirmed(self))
    }
}

/// A certificate that becomes its device's active one.
#[derive(Debug)]
pub struct Confirmed(Unconfirmed);

impl Confirmed {
    /// The certificate.
    pub fn certificate(&self) -> &Unconfirmed {
        &self.0
    }
}

/// What the CA verified and issued, as CBOR. It travels in clear, so it names neither the device
/// nor the serial number; the hash of a certificate with 80 random bits and a signature tells
/// nothing of it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
struct Claim {
    #[n(0)]
    scope: Scope,
    #[n(1)]
    ek_id: EkId,
    /// SHA-256 of the certificate.
    #[cbor(n(2), with = "minicbor::bytes")]
    certificate: [u8; 32],
    #[cbor(n(3), with = "minicbor::bytes")]
    key_id: [u8; KEY_ID_LEN],
    /// Seconds since 1970.
    #[n(4)]
    issued_at: i64,
    /// Seconds since 1970.
    #[n(5)]
    expires_at: i64,
}

impl Claim {
    fn terms(&self) -> Terms {
        let Self { scope, key_id, issued_at, expires_at, .. } = self;
        Terms {
            scope: scope.clone(),
            key_id: *key_id,
            issued_at: *issued_at,
            expires_at: *expires_at,
        }
    }
}

/// Keeps the tickets of this flow apart from those of the ticket flow.
const CONFIRMATION_LABEL: &[u8] = b"assay confirmation v1\0";
/// Keeps the key that certificates wait under apart from what is sent to devices.
const WAITING_LABEL: &[u8] = b"assay waiting certificate v1\0";
/// Keeps receipts apart from tickets: a device has its ticket before the CA has it.
const RECEIPT_LABEL: &[u8] = b"assay receipt v1\0";
/// AES-256, and as long as the secret of a credential may be for every EK template.
const SEALING_KEY_LEN: usize = 32;
