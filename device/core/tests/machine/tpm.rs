//! A TPM that keeps identity keys and HMAC keys.

use std::collections::BTreeMap;

use assay_device_core::{
    DEFAULT_HMAC_HANDLE, DEFAULT_IK_HANDLE, EkCertificates, EkKind, EndorsementKey, KeyPublic,
    OpenedKey, ParentKind, TpmAnswer, TpmFailure, TpmFailureKind, TpmOperation,
};
use assay_wire::EkId;
use zeroize::Zeroizing;

use crate::tag;

#[derive(Clone, Default)]
pub(crate) struct FakeTpm {
    /// The identity key at each handle.
    pub(crate) iks: BTreeMap<u32, [u8; 32]>,
    /// The HMAC key at each handle.
    pub(crate) hmac_keys: BTreeMap<u32, Vec<u8>>,
    /// The operations that fail.
    pub(crate) fails: Option<fn(&TpmOperation) -> bool>,
    /// How often it was cleared.
    clears: u8,
    keys_made: u8,
}

impl FakeTpm {
    pub(crate) fn clear(&mut self) {
        *self = Self { clears: self.clears + 1, keys_made: self.keys_made, ..Self::default() };
    }

    /// The identity key at the handle that is used first.
    pub(crate) fn ik(&self) -> Option<[u8; 32]> {
        self.iks.get(&DEFAULT_IK_HANDLE).copied()
    }

    /// The HMAC key at the handle that is used first.
    pub(crate) fn hmac_key(&self) -> Option<Vec<u8>> {
        self.hmac_keys.get(&DEFAULT_HMAC_HANDLE).cloned()
    }

    fn ik_at(&self, handle: u32) -> Result<[u8; 32], TpmFailure> {
        self.iks.get(&handle).copied().ok_or_else(|| failure(TpmFailureKind::Refused))
    }

    pub(crate) fn run(&mut self, operation: TpmOperation) -> Result<TpmAnswer, TpmFailure> {
        if self.fails.is_some_and(|fails| fails(&operation)) {
            return Err(failure(TpmFailureKind::Other));
        }
        Ok(match operation {
            TpmOperation::EkCertificates(kind) => TpmAnswer::EkCertificates(ek_certificates(kind)),
            TpmOperation::EndorsementKey(kind) => {
                // This TPM has no P-384.
                TpmAnswer::EndorsementKey((kind != EkKind::P384).then(|| EndorsementKey {
                    public: ek_id(kind).as_bytes().to_vec(),
                    id: ek_id(kind),
                    is_of_default_template: true,
                }))
            }
            TpmOperation::IdentityKey { handle, .. } => {
                TpmAnswer::IdentityKey(self.iks.get(&handle).copied().map(public))
            }
            TpmOperation::CreateIdentityKey { handle, .. } => {
                self.keys_made += 1;
                let before = self.iks.insert(handle, [self.keys_made; 32]);
                assert!(before.is_none(), "the handle must be free");
                TpmAnswer::IdentityKey(self.iks.get(&handle).copied().map(public))
            }
            TpmOperation::FreeHandle { first } => {
                let is_free = |handle: &u32| {
                    !self.iks.contains_key(handle) && !self.hmac_keys.contains_key(handle)
                };
                let free = (first..).find(is_free);
                TpmAnswer::FreeHandle(free.unwrap())
            }
            TpmOperation::RemoveKey { handle, public } => {
                if self.iks.get(&handle).is_some_and(|ik| ik[..] == public) {
                    self.iks.remove(&handle);
                }
                if self.hmac_keys.get(&handle) == Some(&public) {
                    self.hmac_keys.remove(&handle);
                }
                TpmAnswer::Removed
            }
            TpmOperation::SignRequest { .. } => TpmAnswer::CertificateRequest(vec![0x30, 0]),
            TpmOperation::Sign { message, handle, .. } => {
                let ik = self.ik_at(handle)?;
                TpmAnswer::Signature(signature(&ik, &message))
            }
            TpmOperation::Activate { ek, blob, seed, handle } => {
                let ik = self.ik_at(handle)?;
                let (secret, found) =
                    blob.split_last_chunk().ok_or_else(|| failure(TpmFailureKind::Refused))?;
                if *found != credential_tag(&ek_id(ek), &ik, secret, &seed) {
                    return Err(failure(TpmFailureKind::Refused));
                }
                TpmAnswer::Secret(Zeroizing::new(secret.to_vec()))
            }
            TpmOperation::Parent(kind) => TpmAnswer::Parent(Some(self.parent(kind))),
            TpmOperation::HmacKey { handle } => {
                TpmAnswer::HmacKey(self.hmac_keys.get(&handle).cloned())
            }
            TpmOperation::OpenHmacKey { ek, parent, key } => {
                let parts: [&[u8]; 4] =
                    [&key.credential_blob, &key.encrypted_seed, &key.symmetric_seed, &key.public];
                let expected = key_tag(&ek_id(ek), &self.parent(parent), &parts.concat());
                if key.duplicate != expected {
                    return Err(failure(TpmFailureKind::NotForThisTpm));
                }
                TpmAnswer::Opened(OpenedKey { public: key.public, private: key.duplicate })
            }
            TpmOperation::KeepHmacKey { key, replaced, handle, .. } => {
                let there = self.hmac_keys.get(&handle);
                if there.is_some_and(|it| *it != key.public && Some(it) != replaced.as_ref()) {
                    return Err(failure(TpmFailureKind::Other));
                }
                self.hmac_keys.insert(handle, key.public);
                TpmAnswer::Kept
            }
        })
    }

    fn parent(&self, kind: ParentKind) -> Vec<u8> {
        [kind.name().as_bytes(), &[self.clears]].concat()
    }
}

fn failure(kind: TpmFailureKind) -> TpmFailure {
    TpmFailure { kind, reason: "as the test has it".into() }
}

fn public(id: [u8; 32]) -> KeyPublic {
    KeyPublic { public: id.to_vec(), id }
}

pub(crate) fn ek_id(kind: EkKind) -> EkId {
    let place = EkKind::ALL.iter().position(|known| *known == kind).unwrap();
    [0xE0 + place as u8; 32].into()
}

/// The manufacturer certified two of the EKs.
fn ek_certificates(kind: EkKind) -> EkCertificates {
    match kind {
        EkKind::P256 | EkKind::Rsa2048 => EkCertificates {
            chain: vec![ek_id(kind).as_bytes().to_vec()],
            key_id: Some(ek_id(kind)),
            kind: Some(kind),
        },
        _ => EkCertificates::default(),
    }
}

/// What only the TPM with this identity key can make.
pub(crate) fn signature(ik: &[u8; 32], message: &[u8]) -> Vec<u8> {
    tag(&[b"signature", ik, message]).to_vec()
}

/// What only the TPM with both keys can open.
pub(crate) fn credential_tag(ek: &EkId, ik: &[u8; 32], secret: &[u8], seed: &[u8]) -> [u8; 8] {
    tag(&[b"credential", ek.as_bytes(), ik, secret, seed])
}

/// What only the TPM with this EK and this parent can open.
pub(crate) fn key_tag(ek: &EkId, parent: &[u8], key: &[u8]) -> Vec<u8> {
    tag(&[b"key", ek.as_bytes(), parent, key]).to_vec()
}
