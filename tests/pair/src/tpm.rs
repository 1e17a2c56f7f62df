//! A TPM in software, with P-256 keys: what the device's core asks of a TPM.

use std::collections::BTreeMap;

use assay_ca_core::tpm::kdf::{Hash, kdfa, kdfe};
use assay_ca_core::tpm::public::Name;
use assay_device_core::{
    EkKind, EndorsementKey, IkKind, KeyPublic, OpenedKey, ParentKind, TpmAnswer, TpmFailure,
    TpmFailureKind, TpmOperation, WrappedKey,
};
use assay_wire::EkId;
use aws_lc_rs::agreement::{ECDH_P256, UnparsedPublicKey, agree};
use cfb_mode::cipher::KeyIvInit;
use rcgen::{CertificateParams, DistinguishedName, DnType, SigningKey};
use zeroize::Zeroizing;

use crate::factory::{FACTORY, IdentityKey, StorageKey};

pub(crate) struct Tpm {
    /// Its number in the factory.
    number: usize,
    clears: usize,
    /// The factory's number of the identity key at each handle.
    iks: BTreeMap<u32, usize>,
    hmac_keys: BTreeMap<u32, HmacKey>,
    /// The HMAC keys that it opened. `private` of an opened key is an index here.
    opened: Vec<HmacKey>,
}

#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HmacKey {
    /// TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
    key: Vec<u8>,
}

impl HmacKey {
    /// TPM2_HMAC.
    pub(crate) fn hmac(&self, data: &[u8]) -> Vec<u8> {
        Hash::Sha256.hmac(&self.key, &[data])
    }
}

/// A secret that a TPM took in or gave out, and that nobody else may learn.
pub(crate) enum Secret {
    /// The secret of a credential, for this IK.
    OfCredential { secret: Vec<u8>, ik_id: [u8; 32] },
    /// The HMAC key, and the key of its inner wrapper.
    OfSharedKey { hmac: HmacKey, key: Vec<u8>, inner_key: Vec<u8> },
}

impl Tpm {
    pub(crate) fn new(number: usize) -> Self {
        Self {
            number,
            clears: 0,
            iks: BTreeMap::new(),
            hmac_keys: BTreeMap::new(),
            opened: Vec::new(),
        }
    }

    /// TPM2_Clear: removes everything except the EK.
    pub(crate) fn clear(&mut self) {
        *self = Self { clears: self.clears + 1, ..Self::new(self.number) };
    }

    pub(crate) fn ek_id(&self) -> EkId {
        self.ek().id()
    }

    /// The digests of its identity keys.
    pub(crate) fn ik_ids(&self) -> Vec<[u8; 32]> {
        self.iks.values().map(|number| FACTORY.ik(*number).id).collect()
    }

    /// The HMAC key at a handle.
    pub(crate) fn hmac_key(&self, handle: u32) -> Option<&HmacKey> {
        self.hmac_keys.get(&handle)
    }

    /// The TPMT_PUBLIC of its HMAC keys.
    pub(crate) fn hmac_publics(&self) -> impl Iterator<Item = &[u8]> {
        self.hmac_keys.values().map(|key| &key.public[..])
    }

    /// Does what a machine asks. `next_ik` is the number of the identity key that it makes next,
    /// and `learn` gets secrets.
    pub(crate) fn run(
        &mut self,
        operation: TpmOperation,
        next_ik: &mut usize,
        mut learn: impl FnMut(Secret),
    ) -> Result<TpmAnswer, TpmFailure> {
        Ok(match operation {
            TpmOperation::EkCertificates(EkKind::P256) => {
                let chain = FACTORY.ek_certificates[self.number].clone();
                TpmAnswer::EkCertificates(assay_device::shell::read_ek_certificates(chain))
            }
            TpmOperation::EkCertificates(_) => TpmAnswer::EkCertificates(Default::default()),
            TpmOperation::EndorsementKey(EkKind::P256) => {
                let ek = self.ek();
                TpmAnswer::EndorsementKey(Some(EndorsementKey {
                    public: ek.public.clone(),
                    id: ek.id(),
                    is_of_default_template: true,
                }))
            }
            TpmOperation::EndorsementKey(_) => TpmAnswer::EndorsementKey(None),
            TpmOperation::IdentityKey { kind: IkKind::P256, handle } => {
                TpmAnswer::IdentityKey(self.ik(handle).map(key_public))
            }
            TpmOperation::CreateIdentityKey { kind: IkKind::P256, handle } => {
                assert!(self.ik(handle).is_none(), "the handle must be free");
                self.iks.insert(handle, *next_ik);
                *next_ik += 1;
                TpmAnswer::IdentityKey(self.ik(handle).map(key_public))
            }
            TpmOperation::FreeHandle { first } => {
                let is_free = |handle: &u32| {
                    !self.iks.contains_key(handle) && !self.hmac_keys.contains_key(handle)
                };
                TpmAnswer::FreeHandle((first..first + 40).find(is_free).expect("a free handle"))
            }
            TpmOperation::RemoveKey { handle, public } => {
                if self.ik(handle).is_some_and(|ik| ik.public == public) {
                    self.iks.remove(&handle);
                }
                if self.hmac_key(handle).is_some_and(|key| key.public == public) {
                    self.hmac_keys.remove(&handle);
                }
                TpmAnswer::Removed
            }
            TpmOperation::SignRequest { handle, device_id, .. } => {
                let ik = self.ik(handle).ok_or_else(refused)?;
                TpmAnswer::CertificateRequest(certificate_request(
                    ik,
                    device_id.as_ref().map(|id| id.as_str()),
                ))
            }
            TpmOperation::Sign { handle, message, .. } => {
                let ik = self.ik(handle).ok_or_else(refused)?;
                TpmAnswer::Signature(ik.key.sign(&message).expect("a signature"))
            }
            TpmOperation::Activate { handle, blob, seed, .. } => {
                let ik = self.ik(handle).ok_or_else(refused)?;
                let name = Name::of(Hash::Sha256, &ik.public);
                let secret = activate(self.ek(), &name, &blob, &seed).ok_or_else(refused)?;
                learn(Secret::OfCredential { secret: secret.clone(), ik_id: ik.id });
                TpmAnswer::Secret(Zeroizing::new(secret))
            }
            TpmOperation::Parent(kind) => {
                TpmAnswer::Parent(self.parent(kind).map(|parent| parent.public.clone()))
            }
            TpmOperation::HmacKey { handle } => {
                TpmAnswer::HmacKey(self.hmac_key(handle).map(|key| key.public.clone()))
            }
            TpmOperation::OpenHmacKey { parent, key, .. } => {
                let parent = self.parent(parent).ok_or_else(not_for_this_tpm)?;
                let (hmac, inner_key) =
                    import(self.ek(), parent, &key).ok_or_else(not_for_this_tpm)?;
                let public = key.public;
                self.opened.push(hmac.clone());
                // A real TPM returns the key encrypted. This one returns an index.
                let private = (self.opened.len() - 1).to_be_bytes().to_vec();
                learn(Secret::OfSharedKey { key: hmac.key.clone(), hmac, inner_key });
                TpmAnswer::Opened(OpenedKey { public, private })
            }
            TpmOperation::KeepHmacKey { handle, key, replaced, .. } => {
                let index = usize::from_be_bytes(key.private.try_into().map_err(|_| refused())?);
                let opened = self.opened.get(index).cloned().ok_or_else(refused)?;
                let there = self.hmac_key(handle).map(|key| &key.public);
                if there.is_some_and(|it| *it != opened.public && Some(it) != replaced.as_ref()) {
                    return Err(failure(TpmFailureKind::Other, "the handle is somebody else's"));
                }
                self.hmac_keys.insert(handle, opened);
                TpmAnswer::Kept
            }
            TpmOperation::IdentityKey { .. } | TpmOperation::CreateIdentityKey { .. } => {
                return Err(failure(TpmFailureKind::Unsupported, "P-256 alone"));
            }
        })
    }

    fn ek(&self) -> &'static StorageKey {
        &FACTORY.eks[self.number]
    }

    fn ik(&self, handle: u32) -> Option<&'static IdentityKey> {
        self.iks.get(&handle).map(|number| FACTORY.ik(*number))
    }

    fn parent(&self, kind: ParentKind) -> Option<&'static StorageKey> {
        // Each TPM has its own parents.
        let number = DEVICES_APART * self.number + self.clears;
        match kind {
            ParentKind::P256 => Some(FACTORY.import_parent(number)),
            ParentKind::SrkP256 => Some(FACTORY.plain_srk(number)),
            ParentKind::Rsa2048 | ParentKind::SrkRsa2048 => None,
        }
    }
}

/// How many clears of one TPM come before the parents of the next TPM.
const DEVICES_APART: usize = 32;

/// A certificate request (RFC 2986) for an IK.
pub(crate) fn certificate_request(ik: &IdentityKey, common_name: Option<&str>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.serialize_request(&ik.key).unwrap().der().to_vec()
}

fn key_public(ik: &IdentityKey) -> KeyPublic {
    KeyPublic { public: ik.public.clone(), id: ik.id }
}

/// TPM2_ActivateCredential (TPM 2.0 Part 1, 24) for an object called `name`; `None` if the
/// credential was not made for that object and this EK.
fn activate(ek: &StorageKey, name: &Name, blob: &[u8], seed: &[u8]) -> Option<Vec<u8>> {
    let seed = shared_seed(ek, "IDENTITY", seed)?;
    let identity = open_outer_wrapper(&seed, name, blob)?;
    let length = usize::from(u16::from_be_bytes(*identity.first_chunk()?));
    identity.get(2..2 + length).map(<[u8]>::to_vec)
}

/// TPM2_ActivateCredential for the parent, then TPM2_Import (TPM 2.0 Part 3, 13.3): the HMAC key,
/// and the key of its inner wrapper.
fn import(ek: &StorageKey, parent: &StorageKey, key: &WrappedKey) -> Option<(HmacKey, Vec<u8>)> {
    let parent_name = Name::of(Hash::Sha256, &parent.public);
    let inner_key = activate(ek, &parent_name, &key.credential_blob, &key.encrypted_seed)?;
    let name = Name::of(Hash::Sha256, &key.public);
    let seed = shared_seed(parent, "DUPLICATE", &key.symmetric_seed)?;
    let mut inner = open_outer_wrapper(&seed, &name, &key.duplicate)?;
    decrypt(&inner_key, &mut inner)?;
    let (digest, sensitive) = inner.strip_prefix(&[0, 32])?.split_at_checked(32)?;
    if digest != Hash::Sha256.digest(&[sensitive, name.as_ref()]) {
        return None;
    }
    const TPM_ALG_KEYEDHASH: &[u8] = &[0, 8];
    let (area, _) = take_sized(sensitive)?;
    let (_auth, rest) = take_sized(area.strip_prefix(TPM_ALG_KEYEDHASH)?)?;
    let (_seed_value, rest) = take_sized(rest)?;
    let (hmac_key, _) = take_sized(rest)?;
    Some((HmacKey { public: key.public.clone(), key: hmac_key.to_vec() }, inner_key))
}

/// The seed that the sender of an encrypted seed shares with this key (TPM 2.0 Part 1, C.6.1).
fn shared_seed(key: &StorageKey, label: &str, encrypted: &[u8]) -> Option<Vec<u8>> {
    let (x, rest) = take_sized(encrypted)?;
    let (y, rest) = take_sized(rest)?;
    if !rest.is_empty() {
        return None;
    }
    let peer = UnparsedPublicKey::new(&ECDH_P256, [&[4], x, y].concat());
    agree(&key.private, &peer, (), |z| Ok(kdfe(Hash::Sha256, z, label, x, key.x(), 32).to_vec()))
        .ok()
}

/// Checks and decrypts what is protected under `seed` for the object called `name` (TPM 2.0 Part 1,
/// 24.5).
fn open_outer_wrapper(seed: &[u8], name: &Name, wrapped: &[u8]) -> Option<Vec<u8>> {
    let (mac, encrypted) = wrapped.strip_prefix(&[0, 32])?.split_at_checked(32)?;
    let integrity_key = kdfa(Hash::Sha256, seed, "INTEGRITY", &[], &[], 32);
    if mac != Hash::Sha256.hmac(&integrity_key, &[encrypted, name.as_ref()]) {
        return None;
    }
    let storage_key = kdfa(Hash::Sha256, seed, "STORAGE", name.as_ref(), &[], 16);
    let mut content = encrypted.to_vec();
    decrypt(&storage_key, &mut content)?;
    Some(content)
}

fn decrypt(key: &[u8], data: &mut [u8]) -> Option<()> {
    let key = cfb_mode::Decryptor::<aes::Aes128>::new_from_slices(key, &[0; 16]).ok()?;
    key.decrypt(data);
    Some(())
}

fn take_sized(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

fn failure(kind: TpmFailureKind, reason: &str) -> TpmFailure {
    TpmFailure { kind, reason: reason.into() }
}

fn refused() -> TpmFailure {
    failure(TpmFailureKind::Refused, "TPM_RC_INTEGRITY")
}

fn not_for_this_tpm() -> TpmFailure {
    failure(TpmFailureKind::NotForThisTpm, "TPM_RC_INTEGRITY")
}
