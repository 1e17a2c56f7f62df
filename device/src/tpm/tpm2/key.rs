//! The keys in a TPM: finding them, making them, and keeping them.

use assay_device_core::{EkKind, IkKind, ParentKind};
use tpm2_protocol::data::{
    TpmAlgId, TpmCc, TpmEccCurve, TpmSe, TpmsContext, TpmtPublic, TpmuPublicId, TpmuPublicParms,
};
use tpm2_protocol::{TpmMarshal, TpmSized, TpmUnmarshal, TpmWriter};
use zeroize::Zeroizing;

use super::command::{CommandError, Hierarchy};
use super::connection::Connection;
use super::hash::Hash;
use super::{Fault, authorised, certificate, is_wrong_password, template, unsupported};
use crate::tpm::interface::{PublicArea, PublicKey};

/// A key that commands may use.
pub(super) struct Key {
    pub(super) handle: u32,
    pub(super) public: TpmtPublic,
    is_persistent: bool,
}

impl Key {
    /// What a persistent handle holds.
    pub(super) fn persistent(
        tpm: &mut Connection<'_>,
        handle: u32,
    ) -> Result<Option<Self>, CommandError> {
        let public = tpm.read_public(handle)?;
        Ok(public.map(|public| Self::at(handle, public)))
    }

    /// What a persistent handle was seen to hold.
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

    /// Makes room for others where that is scarce: the TPM's users share three places or more
    /// (TPM_PT_HR_TRANSIENT_MIN).
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

/// The EK: one that was made persistent if it equals the template, for creating an RSA key takes
/// real chips seconds.
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

/// The EK, if it need not be made.
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

/// What an EK of a kind is made from: TCG's default template, or the template and the nonce that
/// the manufacturer left in NV memory in its place (TCG EK Credential Profile 2.5, 2.2.1.4).
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

/// Whether a persistent key of an EK's shape is that EK. The EKs [`EkKind::Rsa2048`] and
/// [`EkKind::LegacyDps`] have one shape; the manufacturer's certificate tells which of the two a
/// key is. Without one, neither is believed to be there.
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

/// The parent of identity keys: the persistent storage root key if the platform's owner left one,
/// of whatever kind, else one made for the moment.
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

/// The parent of shared keys of one kind. It is made for the moment, but for a plain storage root
/// key that is persistent and has that shape.
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

/// Whether a storage key can be used without its password. The TPM looks at the password before it
/// finds that there is nothing to load (TPM 2.0 Part 1, 19.2), and a wrong one does not count where
/// the key is exempt (noDA).
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

/// The session that carries the password of a hierarchy; `None` if there is no password to carry.
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

/// The key that the salt of a password's session is encrypted to. Whoever substitutes it on the bus
/// can try passwords, so it is the EK by which the CA knows this device, if there is one and it can
/// be had without a password. Else it is any primary key that was made before, or one of the null
/// hierarchy, which has no password (TPM 2.0 Part 1, 14.4); these keep out who only listens.
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

/// Primary keys that were made before, saved as the TPM gives them out: loading one again takes a
/// chip milliseconds, making an RSA key seconds. Nobody but this TPM can load them, and it only
/// until it is reset.
#[derive(Default)]
pub(super) struct Primaries {
    saved: Vec<SavedPrimary>,
    /// The EK by which the CA knows this device: SHA-256 of its SubjectPublicKeyInfo.
    pub(super) expected: Option<(EkKind, [u8; 32])>,
    /// Whether that EK is being looked for: then no password is given to the TPM for it.
    pub(super) is_choosing_salt: bool,
    /// The EKs that this process has seen, of each kind the last.
    seen_eks: Vec<(EkKind, TpmtPublic)>,
    /// What EKs are made from, as far as it was looked for.
    ek_templates: Vec<(EkKind, TpmtPublic)>,
    /// The NV indices of EK certificates and what goes with them, if they were listed.
    pub(super) nv_indices: Option<Vec<u32>>,
}

struct SavedPrimary {
    hierarchy: Hierarchy,
    template: TpmtPublic,
    public: TpmtPublic,
    context: TpmsContext,
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

    /// Whichever there is.
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

    /// Saves a key that `template` gave, unless it is persistent or was saved before. If the TPM
    /// does not, the key is made again.
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
/// over the bus encrypted, for a session whose salt only the EK can read.
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

/// As [`activate`], and the session goes on.
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
    // What a CA sent was made for the EK that was shown, and is to be read by nobody else.
    if primaries.seen_eks.iter().any(|(seen, public)| *seen == kind && *public != ek.public) {
        return Err(Fault::OtherEk);
    }
    let session = authorise_ek(tpm, primaries, &ek)?;
    let secret = tpm.activate_credential(object, &ek, session, is_session_kept, blob, seed)?;
    ek.release(tpm)?;
    Ok((secret, session))
}

/// A session that authorises the use of an EK (TCG EK Credential Profile 2.5, B.3 and B.4):
/// templates of the high range have userWithAuth and an empty password, those of the low range only
/// the policy PolicySecret(TPM_RH_ENDORSEMENT).
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

/// The public area of an object; `None` also if its algorithm is newer than this program, for then
/// it is not what is looked for.
pub(super) fn read(
    tpm: &mut Connection<'_>,
    handle: u32,
) -> Result<Option<TpmtPublic>, CommandError> {
    match tpm.read_public(handle) {
        Err(CommandError::BadResponse(_)) => Ok(None),
        outcome => outcome,
    }
}

/// TPMT_PUBLIC.
pub(super) fn encoded(public: &TpmtPublic) -> Vec<u8> {
    let mut bytes = vec![0; public.len()];
    // Unwrap safety: there is room, and the parameters are of the type that the area says, or it
    // would not have been read.
    public.marshal(&mut TpmWriter::new(&mut bytes)).unwrap();
    bytes
}

/// Reads a TPMT_PUBLIC with nothing behind it.
pub(super) fn decoded(bytes: &[u8]) -> Option<TpmtPublic> {
    let (public, rest) = TpmtPublic::unmarshal(bytes).ok()?;
    (rest.is_empty() && encoded(&public) == bytes).then_some(public)
}

pub(super) fn public_key(public: &TpmtPublic) -> Option<PublicKey> {
    match (&public.parameters, &public.unique) {
        (_, TpmuPublicId::Rsa(modulus)) => Some(PublicKey::Rsa(modulus.to_vec())),
        (TpmuPublicParms::Ecc(parameters), TpmuPublicId::Ecc(point)) => match parameters.curve_id {
            TpmEccCurve::NistP256 => Some(PublicKey::P256(padded(&point.x)?, padded(&point.y)?)),
            TpmEccCurve::NistP384 => Some(PublicKey::P384(padded(&point.x)?, padded(&point.y)?)),
            _ => None,
        },
        _ => None,
    }
}

/// A coordinate with the leading zeros that some TPMs leave out.
fn padded<const N: usize>(coordinate: &[u8]) -> Option<[u8; N]> {
    let mut padded = [0; N];
    padded[N.checked_sub(coordinate.len())?..].copy_from_slice(coordinate);
    Some(padded)
}

/// Persistent EKs (TCG Registry of Reserved TPM 2.0 Handles, 2.3.1).
const EK_PERSISTENT_FIRST: u32 = 0x8101_0000;
const EK_PERSISTENT_LAST: u32 = 0x8101_FFFF;
/// The persistent storage root key (TCG TPM v2.0 Provisioning Guidance, 7.5.1).
const SRK_PERSISTENT: u32 = 0x8100_0001;
