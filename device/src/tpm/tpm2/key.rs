//! The keys in a TPM: finding them, making them, and keeping them.

use assay_device_core::{EkKind, IkKind, ParentKind};
use tpm2_protocol::data::{TpmAlgId, TpmCc, TpmSe, TpmsContext, TpmtPublic};
use zeroize::Zeroizing;

use super::certificate::{self, Owner};
use super::commands::Connection;
use super::fault::{Fault, authorised, is_wrong_password, unsupported};
use super::hash::Hash;
use super::object::{Key, decoded, encoded, public_key};
use super::parts::{CommandError, Hierarchy};
use super::template;
use crate::tpm::interface::PublicArea;

impl Key {
    /// The key at a persistent handle; `None` if the handle is free.
    pub(super) fn persistent(
        tpm: &mut Connection<'_>,
        handle: u32,
    ) -> Result<Option<Self>, CommandError> {
        let public = tpm.read_public(handle)?;
        Ok(public.map(|public| Self::at(handle, public)))
    }

    /// The key at a persistent handle, from what was read before.
    pub(super) fn at(handle: u32, public: TpmtPublic) -> Self {
        Self { handle, public, is_persistent: true }
    }

    pub(super) fn load(
        tpm: &mut Connection<'_>,
        parent: &Self,
        private: &[u8],
        public: TpmtPublic,
    ) -> Result<Self, CommandError> {
        let policy = authorise_parent(tpm, parent, TpmCc::Load)?;
        let handle = tpm.load(parent.handle, policy, private, public.clone())?;
        Ok(Self { handle, public, is_persistent: false })
    }

    /// Flushes a transient key, to make room for other keys: all users of the TPM together have at
    /// least three places (TPM_PT_HR_TRANSIENT_MIN).
    pub(super) fn release(&self, tpm: &mut Connection<'_>) -> Result<(), CommandError> {
        if self.is_persistent { Ok(()) } else { tpm.flush_context(self.handle) }
    }

    /// Makes a transient key persistent.
    pub(super) fn persist(
        &self,
        tpm: &mut Connection<'_>,
        primaries: &mut Primaries,
        handle: u32,
    ) -> Result<(), Fault> {
        let session = session_for(tpm, primaries, Hierarchy::Owner)?;
        tpm.evict_control(self, session, handle)
            .map_err(|error| authorised(Hierarchy::Owner, error))
    }

    /// Removes a persistent key from the TPM.
    pub(super) fn evict(
        self,
        tpm: &mut Connection<'_>,
        primaries: &mut Primaries,
    ) -> Result<(), Fault> {
        self.persist(tpm, primaries, self.handle)
    }

    /// The Name (TPM 2.0 Part 1, 16).
    pub(super) fn name(&self) -> Result<Vec<u8>, CommandError> {
        let digest = Hash::of(self.public.name_alg)?.digest(&[&encoded(&self.public)]);
        Ok([&self.public.name_alg.value().to_be_bytes()[..], &digest].concat())
    }

    pub(super) fn public_area(&self) -> Result<PublicArea, CommandError> {
        let key = public_key(&self.public)
            .ok_or_else(|| CommandError::BadResponse("a key of no known kind".into()))?;
        Ok(PublicArea { bytes: encoded(&self.public), key })
    }
}

/// The EK. A persistent key that equals the template is used first, because a chip needs seconds to
/// make an RSA key.
pub(super) fn load_ek(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
) -> Result<Key, Fault> {
    match find_ek(tpm, primaries, kind)? {
        Some(ek) => Ok(ek),
        None => {
            let template = ek_template(tpm, primaries, kind)?;
            make_primary(tpm, primaries, Hierarchy::Endorsement, template, kind.name())
        }
    }
}

fn load_ek_without_password(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
) -> Result<Option<Key>, Fault> {
    if !tpm.has_password(Hierarchy::Endorsement) {
        return load_ek(tpm, primaries, kind).map(Some);
    }
    find_ek(tpm, primaries, kind)
}

/// The EK, if the TPM does not have to make it.
fn find_ek(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
) -> Result<Option<Key>, Fault> {
    let template = ek_template(tpm, primaries, kind)?;
    if let Some(saved) = primaries.load(tpm, Hierarchy::Endorsement, &template)? {
        return Ok(Some(saved));
    }
    for handle in tpm.handles(EK_PERSISTENT_FIRST)? {
        if !(EK_PERSISTENT_FIRST..=EK_PERSISTENT_LAST).contains(&handle) {
            continue;
        }
        let Some(public) = read(tpm, handle)? else { continue };
        if template::fits(&public, &template) && is_of_kind(tpm, primaries, kind, &public)? {
            return Ok(Some(Key::at(handle, public)));
        }
    }
    Ok(None)
}

/// The template of an EK: TCG's default template, or the template and the nonce that the
/// manufacturer left in NV memory instead (TCG EK Credential Profile 2.5, 2.2.1.4).
pub(super) fn ek_template(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
) -> Result<TpmtPublic, Fault> {
    let default = template::ek(kind);
    let (nonce_index, template_index) = match kind {
        EkKind::Rsa2048 => (0x01C0_0003, 0x01C0_0004),
        EkKind::P256 => (0x01C0_000B, 0x01C0_000C),
        EkKind::P384 | EkKind::Rsa3072 | EkKind::LegacyDps => return Ok(default),
    };
    if let Some((_, known)) = primaries.ek_templates.iter().find(|(known, _)| *known == kind) {
        return Ok(known.clone());
    }
    let indices = match &primaries.nv_indices {
        Some(indices) => indices.clone(),
        None => certificate::indices(tpm)?,
    };
    let mut left = |index| match indices.contains(&index) {
        true => certificate::read(tpm, primaries, index),
        false => Ok(None),
    };
    let own = left(template_index)?.and_then(|template| decoded(&template));
    let nonce = left(nonce_index)?;
    let template = match nonce {
        Some(nonce) => template::with_nonce(own.unwrap_or(default), &nonce),
        None => own.unwrap_or(default),
    };
    primaries.ek_templates.push((kind, template.clone()));
    Ok(template)
}

/// Whether a persistent key with the shape of an EK is that EK. The EKs [`EkKind::Rsa2048`] and
/// [`EkKind::LegacyDps`] have the same shape, and the manufacturer's certificate tells which of the
/// two a key is. Without a certificate, the key counts as neither.
fn is_of_kind(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
    ek: &TpmtPublic,
) -> Result<bool, Fault> {
    if !matches!(kind, EkKind::Rsa2048 | EkKind::LegacyDps) {
        return Ok(true);
    }
    let certified = certificate::rsa_2048_key(tpm, primaries)?;
    let ek = public_key(ek).map(|key| key.subject_public_key_info());
    Ok(certified.is_some_and(|certified| (Some(certified) == ek) == (kind == EkKind::Rsa2048)))
}

/// The parent of identity keys: the persistent storage root key of any kind, if the platform's
/// owner left one; else one that is made for this call.
pub(super) fn load_ik_parent(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
) -> Result<Key, Fault> {
    if let Some(found) = Key::persistent(tpm, SRK_PERSISTENT)?
        && template::is_storage_key(&found.public)
        && takes_empty_password(tpm, &found)?
    {
        return Ok(found);
    }
    if let Some(saved) =
        primaries.load(tpm, Hierarchy::Owner, &template::parent(ParentKind::SrkP256))?
    {
        return Ok(saved);
    }
    let mut primary = |kind: ParentKind| {
        make_primary(tpm, primaries, Hierarchy::Owner, template::parent(kind), kind.name())
    };
    match primary(ParentKind::SrkP256) {
        Err(Fault::Unsupported(_)) => primary(ParentKind::SrkRsa2048),
        srk => srk,
    }
}

/// The parent of shared keys of one kind. It is made for this call, unless it is a plain storage
/// root key that is persistent and has the right shape.
pub(super) fn load_parent(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: ParentKind,
) -> Result<Key, Fault> {
    let template = template::parent(kind);
    if let Some(saved) = primaries.load(tpm, Hierarchy::Owner, &template)? {
        return Ok(saved);
    }
    if kind.is_plain_srk()
        && let Some(found) = Key::persistent(tpm, SRK_PERSISTENT)?
        && template::fits(&found.public, &template)
        && takes_empty_password(tpm, &found)?
    {
        return Ok(found);
    }
    make_primary(tpm, primaries, Hierarchy::Owner, template, kind.name())
}

/// The policy session that authorises one command on an import parent. `None` for other parents,
/// which take an empty password.
pub(super) fn authorise_parent(
    tpm: &mut Connection<'_>,
    parent: &Key,
    command: TpmCc,
) -> Result<Option<u32>, CommandError> {
    if template::has_password(&parent.public) {
        return Ok(None);
    }
    let policy = tpm.start_policy(parent.public.name_alg)?;
    tpm.policy_command_code(policy, command)?;
    tpm.policy_or(policy, &template::IMPORT_PARENT_BRANCHES)?;
    Ok(Some(policy))
}

/// Whether a storage key takes an empty password. The TPM checks the password before it finds that
/// there is nothing to load (TPM 2.0 Part 1, 19.2). A wrong password does not count as a failure
/// for keys that are exempt (noDA).
fn takes_empty_password(tpm: &mut Connection<'_>, parent: &Key) -> Result<bool, CommandError> {
    match Key::load(tpm, parent, &[], template::ik(IkKind::P256)) {
        Err(error @ CommandError::Refused(_)) => Ok(!is_wrong_password(&error)),
        outcome => outcome.map(|_| true),
    }
}

fn make_primary(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    hierarchy: Hierarchy,
    template: TpmtPublic,
    kind: &str,
) -> Result<Key, Fault> {
    let session = session_for(tpm, primaries, hierarchy)?;
    match tpm.create_primary(hierarchy, session, template) {
        Ok((handle, public)) => Ok(Key { handle, public, is_persistent: false }),
        Err(error) => Err(match authorised(hierarchy, error) {
            Fault::Command(error) => unsupported(error, kind),
            fault => fault,
        }),
    }
}

/// The session that carries the password of a hierarchy; `None` if the hierarchy has none.
pub(super) fn session_for(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    hierarchy: Hierarchy,
) -> Result<Option<u32>, Fault> {
    if !tpm.has_password(hierarchy) {
        return Ok(None);
    }
    if let Some(session) = tpm.password_session() {
        return Ok(Some(session));
    }
    let key = salting_key(tpm, primaries)?;
    let session = tpm.start_password_session(&key)?;
    key.release(tpm)?;
    Ok(Some(session))
}

/// The key that the salt of a password's session is encrypted to. An attacker who replaces it on
/// the bus can try passwords. So it is the EK by which the CA knows this device, if there is one
/// and no password is needed to get it. Otherwise it is any primary key that was made before, or
/// one of the null hierarchy, which has no password (TPM 2.0 Part 1, 14.4). These protect against
/// listeners only.
fn salting_key(tpm: &mut Connection<'_>, primaries: &mut Primaries) -> Result<Key, Fault> {
    primaries.is_choosing_salt = true;
    let expected = primaries
        .expected
        .map(|(kind, id)| Ok::<_, Fault>((load_ek_without_password(tpm, primaries, kind)?, id)));
    primaries.is_choosing_salt = false;
    if let Some((Some(ek), id)) = expected.transpose()? {
        return if public_key(&ek.public).is_some_and(|key| key.id() == id) {
            Ok(ek)
        } else {
            Err(Fault::OtherEk)
        };
    }
    if let Some(saved) = primaries.load_any(tpm)? {
        return Ok(saved);
    }
    let mut primary = |kind: ParentKind| {
        let (hierarchy, template) = (Hierarchy::Null, template::parent(kind));
        let key = make_primary(tpm, primaries, hierarchy, template.clone(), kind.name())?;
        primaries.keep(tpm, hierarchy, template, &key);
        Ok(key)
    };
    match primary(ParentKind::SrkP256) {
        Err(Fault::Unsupported(_)) => primary(ParentKind::SrkRsa2048),
        key => key,
    }
}

/// Primary keys that were made before, saved in the TPM's own format. A chip loads one in
/// milliseconds, and makes an RSA key in seconds. Only this TPM can load them, until it is reset.
#[derive(Default)]
pub(super) struct Primaries {
    saved: Vec<SavedPrimary>,
    /// The EK by which the CA knows this device: SHA-256 of its SubjectPublicKeyInfo.
    pub(super) expected: Option<(EkKind, [u8; 32])>,
    /// Whether that EK is being looked for. Meanwhile no password is given to the TPM.
    pub(super) is_choosing_salt: bool,
    /// The EKs that this process has seen, the last one of each kind.
    seen_eks: Vec<(EkKind, TpmtPublic)>,
    /// The templates of EKs that were looked for.
    ek_templates: Vec<(EkKind, TpmtPublic)>,
    /// The NV indices of EK certificates and their issuers, if they were listed.
    pub(super) nv_indices: Option<Vec<u32>>,
}

struct SavedPrimary {
    hierarchy: Hierarchy,
    template: TpmtPublic,
    public: TpmtPublic,
    context: TpmsContext,
}

impl Owner for Primaries {
    fn may_authorise(&self) -> bool {
        !self.is_choosing_salt
    }

    fn session(&mut self, tpm: &mut Connection<'_>) -> Result<Option<u32>, Fault> {
        session_for(tpm, self, Hierarchy::Owner)
    }
}

impl Primaries {
    pub(super) fn note_ek(&mut self, kind: EkKind, ek: &Key) {
        self.seen_eks.retain(|(seen, _)| *seen != kind);
        self.seen_eks.push((kind, ek.public.clone()));
    }

    /// The primary key that a template gave.
    fn load(
        &mut self,
        tpm: &mut Connection<'_>,
        hierarchy: Hierarchy,
        template: &TpmtPublic,
    ) -> Result<Option<Key>, CommandError> {
        let is_it =
            |saved: &SavedPrimary| saved.hierarchy == hierarchy && saved.template == *template;
        match self.saved.iter().position(is_it) {
            Some(at) => self.load_at(tpm, at),
            None => Ok(None),
        }
    }

    /// Any saved key.
    fn load_any(&mut self, tpm: &mut Connection<'_>) -> Result<Option<Key>, CommandError> {
        while !self.saved.is_empty() {
            if let Some(key) = self.load_at(tpm, 0)? {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn load_at(
        &mut self,
        tpm: &mut Connection<'_>,
        at: usize,
    ) -> Result<Option<Key>, CommandError> {
        let SavedPrimary { public, context, .. } = &self.saved[at];
        match tpm.context_load(context.clone()) {
            Ok(handle) => Ok(Some(Key { handle, public: public.clone(), is_persistent: false })),
            // The TPM was reset.
            Err(CommandError::Refused(_)) => {
                self.saved.swap_remove(at);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Saves a key that was made from `template`, unless it is persistent or was saved before. If
    /// the TPM does not save it, the key is made again later.
    pub(super) fn keep(
        &mut self,
        tpm: &mut Connection<'_>,
        hierarchy: Hierarchy,
        template: TpmtPublic,
        key: &Key,
    ) {
        if !key.is_persistent
            && self
                .saved
                .iter()
                .all(|saved| saved.hierarchy != hierarchy || saved.template != template)
            && let Ok(context) = tpm.context_save(key.handle)
        {
            self.saved.push(SavedPrimary {
                hierarchy,
                template,
                public: key.public.clone(),
                context,
            });
        }
    }
}

/// TPM2_ActivateCredential for any key whose ADMIN role takes an empty password. The secret comes
/// back encrypted, for a session whose salt only the EK can read.
pub(super) fn activate(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
    object: &Key,
    blob: &[u8],
    seed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let (secret, _) = activated(tpm, primaries, kind, object, false, blob, seed)?;
    Ok(secret)
}

/// Like [`activate`], but the session stays open, and is returned.
pub(super) fn activate_and_go_on(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
    object: &Key,
    blob: &[u8],
    seed: &[u8],
) -> Result<(Zeroizing<Vec<u8>>, u32), Fault> {
    activated(tpm, primaries, kind, object, true, blob, seed)
}

fn activated(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    kind: EkKind,
    object: &Key,
    is_session_kept: bool,
    blob: &[u8],
    seed: &[u8],
) -> Result<(Zeroizing<Vec<u8>>, u32), Fault> {
    let ek = load_ek(tpm, primaries, kind)?;
    // The CA encrypted the secret to the EK that was shown. No other TPM may read it.
    if primaries.seen_eks.iter().any(|(seen, public)| *seen == kind && *public != ek.public) {
        return Err(Fault::OtherEk);
    }
    let session = authorise_ek(tpm, primaries, &ek)?;
    let secret = tpm.activate_credential(object, &ek, session, is_session_kept, blob, seed)?;
    ek.release(tpm)?;
    Ok((secret, session))
}

/// A session that authorises the use of an EK (TCG EK Credential Profile 2.5, B.3 and B.4).
/// Templates of the high range have userWithAuth and an empty password. Templates of the low range
/// have only the policy PolicySecret(TPM_RH_ENDORSEMENT).
fn authorise_ek(
    tpm: &mut Connection<'_>,
    primaries: &mut Primaries,
    ek: &Key,
) -> Result<u32, Fault> {
    if template::has_password(&ek.public) {
        return Ok(tpm.start_session(TpmSe::Hmac, TpmAlgId::Sha256, ek)?);
    }
    let password = session_for(tpm, primaries, Hierarchy::Endorsement)?;
    let session = tpm.start_session(TpmSe::Policy, ek.public.name_alg, ek)?;
    tpm.policy_secret(session, password)
        .map_err(|error| authorised(Hierarchy::Endorsement, error))?;
    Ok(session)
}

/// The public area of an object. `None` also if its algorithm is newer than this program, because
/// then it is not the key that is looked for.
pub(super) fn read(
    tpm: &mut Connection<'_>,
    handle: u32,
) -> Result<Option<TpmtPublic>, CommandError> {
    match tpm.read_public(handle) {
        Err(CommandError::BadResponse(_)) => Ok(None),
        outcome => outcome,
    }
}

/// Persistent EKs (TCG Registry of Reserved TPM 2.0 Handles, 2.3.1).
const EK_PERSISTENT_FIRST: u32 = 0x8101_0000;
const EK_PERSISTENT_LAST: u32 = 0x8101_FFFF;
/// The persistent storage root key (TCG TPM v2.0 Provisioning Guidance, 7.5.1).
pub(super) const SRK_PERSISTENT: u32 = 0x8100_0001;
