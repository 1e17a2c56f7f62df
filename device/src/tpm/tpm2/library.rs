//! The TPM commands that this crate uses, put together by libtss2.

use std::error::Error as _;
use std::io;

use assay_device_core::WrappedKey;
use tpm2_protocol::data::{TpmAlgId, TpmCc, TpmRh, TpmSe, TpmsContext, TpmtPublic};
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
use tss_esapi::constants::{CapabilityType, SessionType};
use tss_esapi::handles::{
    AuthHandle, KeyHandle, NvIndexHandle, ObjectHandle, PersistentTpmHandle, SessionHandle,
};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy as TssHierarchy, NvAuth, Provision};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Auth, CapabilityData, Data, Digest, DigestList, EncryptedSecret, HashScheme, HashcheckTicket,
    IdObject, MaxBuffer, Nonce, Private, Public, Signature, SignatureScheme as TssSignatureScheme,
    SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::{TPMS_CONTEXT, TPMT_TK_HASHCHECK};
use tss_esapi::{Context, TctiNameConf, tss2_esys};
use zeroize::Zeroizing;

use super::commands::Commands;
use super::health::{GROUP, MAX_PROPERTIES};
use super::object::{self, Key};
use super::parts::{
    CommandError, Hierarchy, MAX_HANDLES, MAX_HANDLES_AT_ONCE, NvIndex, Reader, signed_by_ecdsa,
    there,
};
use super::response_code::ResponseCode;
use crate::tpm::interface::SignatureScheme;
use crate::tpm::password::HierarchyPasswords;

/// A connection through libtss2. The library has its own numbers for what is loaded (ESYS_TR). No
/// such number is also a handle of the TPM, so both serve as handles here.
pub(super) struct Library<'a> {
    context: Context,
    passwords: &'a HierarchyPasswords,
    /// Transient objects and sessions that this connection loaded and has not flushed.
    loaded: Vec<u32>,
    sessions: Vec<(u32, AuthSession)>,
    password_session: Option<u32>,
    /// The objects that the library knows, by the TPM's handle.
    known: Vec<(u32, ObjectHandle)>,
    /// Whether the library no longer answers: after an I/O error it refuses every command.
    is_broken: bool,
    has_lost_track: bool,
}

type Result<T> = std::result::Result<T, CommandError>;

impl<'a> Library<'a> {
    pub(super) fn open(name: &str, conf: &str, passwords: &'a HierarchyPasswords) -> Result<Self> {
        let mut context = name_conf(name, conf).and_then(Context::new).map_err(failed)?;
        for (hierarchy, password) in [
            (ObjectHandle::Owner, &passwords.owner),
            (ObjectHandle::Endorsement, &passwords.endorsement),
        ] {
            let auth = Auth::try_from(password.without_zeros()).map_err(failed)?;
            context.tr_set_auth(hierarchy, auth).map_err(failed)?;
        }
        Ok(Self {
            context,
            passwords,
            loaded: Vec::new(),
            sessions: Vec::new(),
            password_session: None,
            known: Vec::new(),
            is_broken: false,
            has_lost_track: false,
        })
    }

    fn ask<T>(&mut self, command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>) -> Result<T> {
        let outcome = command(&mut self.context).map_err(failed);
        let is_lost = matches!(outcome, Err(CommandError::Io(_) | CommandError::BadResponse(_)));
        self.is_broken |= is_lost;
        self.has_lost_track |= is_lost;
        outcome
    }

    fn ask_with_empty_password<T>(
        &mut self,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T> {
        self.ask(|context| context.execute_with_session(Some(AuthSession::Password), command))
    }

    /// A password is never sent. The library uses it for the HMAC of the session.
    fn ask_as_owner_of<T>(
        &mut self,
        session: Option<u32>,
        command: impl FnOnce(&mut Context) -> tss_esapi::Result<T>,
    ) -> Result<T> {
        let session = match session {
            None => AuthSession::Password,
            Some(session) => self.session(session, false, false)?,
        };
        self.ask(|context| context.execute_with_session(Some(session), command))
    }

    /// A session, set to encrypt the first parameter of the next response, or to decrypt that of
    /// the next command.
    fn session(&mut self, handle: u32, encrypt: bool, decrypt: bool) -> Result<AuthSession> {
        let session =
            self.sessions.iter().find(|(known, _)| *known == handle).map(|(_, session)| *session);
        let session =
            session.ok_or_else(|| CommandError::BadArgument("a session that has ended".into()))?;
        let builder = SessionAttributesBuilder::new().with_continue_session(true);
        let (attributes, mask) = builder.with_encrypt(encrypt).with_decrypt(decrypt).build();
        self.ask(|context| context.tr_sess_set_attributes(session, attributes, mask))?;
        Ok(session)
    }

    fn object(&mut self, handle: u32) -> Result<ObjectHandle> {
        if !is_of_tpm(handle) {
            return Ok(handle.into());
        }
        if let Some((_, object)) = self.known.iter().find(|(known, _)| *known == handle) {
            return Ok(*object);
        }
        let object = self.ask(|context| context.tr_from_tpm_public(handle.try_into()?))?;
        self.known.push((handle, object));
        Ok(object)
    }

    fn key(&mut self, handle: u32) -> Result<KeyHandle> {
        self.object(handle).map(KeyHandle::from)
    }

    fn remember(&mut self, object: impl Into<ObjectHandle>) -> u32 {
        let handle = tss2_esys::ESYS_TR::from(object.into());
        self.loaded.push(handle);
        handle
    }

    fn remember_session(&mut self, session: Option<AuthSession>) -> Result<u32> {
        let session = session.ok_or_else(|| strange("no session"))?;
        let handle = self.remember(SessionHandle::from(session));
        self.sessions.push((handle, session));
        Ok(handle)
    }

    /// What authorises the use of a key: a policy session, or an empty password.
    fn by(&mut self, policy: Option<u32>) -> Result<AuthSession> {
        policy.map_or(Ok(AuthSession::Password), |policy| self.session(policy, false, false))
    }

    fn forget(&mut self, handle: u32) {
        self.loaded.retain(|&loaded| loaded != handle);
        self.known.retain(|&(known, _)| known != handle);
        self.sessions.retain(|&(session, _)| session != handle);
    }
}

impl Commands for Library<'_> {
    fn may_leave_something(&self) -> bool {
        self.has_lost_track || !self.loaded.is_empty()
    }

    fn flush_loaded(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while !self.is_broken
            && let Some(handle) = self.loaded.pop()
        {
            let flushed = self.flush_context(handle);
            outcome = outcome.and(flushed);
        }
        outcome
    }

    fn handles(&mut self, first: u32) -> Result<Vec<u32>> {
        let mut handles: Vec<u32> = Vec::new();
        let mut next = first;
        loop {
            let (found, more) = self.ask(|context| {
                context.get_capability(CapabilityType::Handles, next, MAX_HANDLES_AT_ONCE)
            })?;
            let CapabilityData::Handles(found) = found else {
                return Err(CommandError::BadResponse(
                    "another capability than the handles in use".into(),
                ));
            };
            let before = handles.len();
            for handle in found.as_ref().iter().map(|&handle| u32::from(handle)) {
                if handle < next || handles.len() == MAX_HANDLES {
                    return Err(CommandError::BadResponse(
                        "handles out of order, or more than a TPM has".into(),
                    ));
                }
                handles.push(handle);
                next = handle.saturating_add(1);
            }
            if !more || handles.len() == before {
                return Ok(handles);
            }
        }
    }

    fn nv_index(&mut self, index: u32) -> Result<Option<NvIndex>> {
        let public = match there(self.object(index))? {
            Some(object) => {
                self.ask(|context| context.nv_read_public(NvIndexHandle::from(object)))?.0
            }
            None => return Ok(None),
        };
        Ok(Some(NvIndex {
            // The cast loses nothing: TPMS_NV_PUBLIC.dataSize has 16 bits.
            size: if public.attributes().written() { public.data_size() as u16 } else { 0 },
            name: Vec::new(),
            takes_own_password: public.attributes().auth_read(),
            takes_owner_password: public.attributes().owner_read(),
        }))
    }

    fn nv_read(
        &mut self,
        index: u32,
        _: &NvIndex,
        reader: Reader,
        offset: u16,
        size: u16,
    ) -> Result<Vec<u8>> {
        let index = NvIndexHandle::from(self.object(index)?);
        let part = match reader {
            Reader::Index => self.ask_with_empty_password(|context| {
                context.nv_read(NvAuth::NvIndex(index), index, size, offset)
            }),
            Reader::Owner { session } => self.ask_as_owner_of(session, |context| {
                context.nv_read(NvAuth::Owner, index, size, offset)
            }),
        }?
        .to_vec();
        if part.is_empty() || part.len() > usize::from(size) {
            return Err(CommandError::BadResponse(format!(
                "{} bytes where {size} were asked for",
                part.len()
            )));
        }
        Ok(part)
    }

    fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>> {
        let (found, _) = self.ask(|context| {
            context.get_capability(CapabilityType::TpmProperties, first, MAX_PROPERTIES)
        })?;
        let CapabilityData::TpmProperties(found) = found else {
            return Err(strange("another capability than its properties"));
        };
        let properties =
            found.as_ref().iter().map(|each| (u32::from(each.property()), each.value()));
        // The TPM also lists the next group.
        Ok(properties.filter(|(tag, _)| tag & GROUP == first & GROUP).collect())
    }

    fn self_test(&mut self) -> Result<()> {
        self.ask(|context| context.self_test(false))?;
        let (_, outcome) = self.ask(|context| context.get_test_result())?;
        outcome.map_err(failed)
    }

    fn create_primary(
        &mut self,
        hierarchy: Hierarchy,
        session: Option<u32>,
        template: TpmtPublic,
    ) -> Result<(u32, TpmtPublic)> {
        let hierarchy = match hierarchy {
            Hierarchy::Owner => TssHierarchy::Owner,
            Hierarchy::Endorsement => TssHierarchy::Endorsement,
            Hierarchy::Null => TssHierarchy::Null,
        };
        let template = to_tss(&template)?;
        let created = self.ask_as_owner_of(session, |context| {
            context.create_primary(hierarchy, template, None, None, None, None)
        })?;
        Ok((self.remember(created.key_handle), from_tss(&created.out_public)?))
    }

    fn create(&mut self, parent: u32, template: TpmtPublic) -> Result<(Vec<u8>, TpmtPublic)> {
        let (parent, template) = (self.key(parent)?, to_tss(&template)?);
        let created = self.ask_with_empty_password(|context| {
            context.create(parent, template, None, None, None, None)
        })?;
        Ok((created.out_private.to_vec(), from_tss(&created.out_public)?))
    }

    fn load(
        &mut self,
        parent: u32,
        policy: Option<u32>,
        private: &[u8],
        public: TpmtPublic,
    ) -> Result<u32> {
        let (parent, public) = (self.key(parent)?, to_tss(&public)?);
        let session = self.by(policy)?;
        let loaded = self.ask(|context| {
            context.execute_with_session(Some(session), |context| {
                context.load(parent, Private::try_from(private)?, public)
            })
        })?;
        let loaded = self.remember(loaded);
        policy.map_or(Ok(()), |policy| self.flush_context(policy))?;
        Ok(loaded)
    }

    fn read_public(&mut self, handle: u32) -> Result<Option<TpmtPublic>> {
        let Some(object) = there(self.key(handle))? else { return Ok(None) };
        match self.ask(|context| context.read_public(object)) {
            Ok((public, ..)) => from_tss(&public).map(Some),
            // A key of a kind that the crate does not know is not the one that is looked for.
            Err(CommandError::BadArgument(reason)) => Err(CommandError::BadResponse(reason)),
            Err(error) => Err(error),
        }
    }

    fn evict_control(&mut self, object: &Key, session: Option<u32>, persistent: u32) -> Result<()> {
        let handle = self.object(object.handle)?;
        self.ask_as_owner_of(session, |context| {
            let persistent = Persistent::Persistent(PersistentTpmHandle::new(persistent)?);
            context.evict_control(Provision::Owner, handle, persistent)
        })?;
        // Otherwise the library compares the next object at this handle with this one.
        self.known.retain(|&(known, _)| known != persistent);
        Ok(())
    }

    fn flush_context(&mut self, handle: u32) -> Result<()> {
        let object = self.object(handle)?;
        let flushed = self.ask(|context| context.flush_context(object));
        self.forget(handle);
        match flushed {
            // The crate flushes this object, and then reports that it did not expect to.
            Err(CommandError::BadArgument(_)) if is_of_tpm(handle) => Ok(()),
            outcome => outcome,
        }
    }

    fn context_save(&mut self, handle: u32) -> Result<TpmsContext> {
        let object = self.object(handle)?;
        let saved = self.ask(|context| TPMS_CONTEXT::try_from(context.context_save(object)?))?;
        let blob =
            saved.contextBlob.buffer.get(..saved.contextBlob.size.into()).unwrap_or_default();
        let context_blob = blob.try_into();
        Ok(TpmsContext {
            sequence: saved.sequence.into(),
            saved_handle: saved.savedHandle.into(),
            hierarchy: TpmRh::try_from(saved.hierarchy)
                .map_err(|_| strange("a context of no hierarchy"))?,
            context_blob: context_blob.map_err(|_| strange("a context that is too long"))?,
        })
    }

    fn context_load(&mut self, saved: TpmsContext) -> Result<u32> {
        let mut context_blob = tss2_esys::TPM2B_CONTEXT_DATA::default();
        let blob: &[u8] = &saved.context_blob;
        // The cast loses nothing: the blob came from such a structure.
        context_blob.size = blob.len() as u16;
        context_blob.buffer[..blob.len()].copy_from_slice(blob);
        let saved = TPMS_CONTEXT {
            sequence: saved.sequence.value(),
            savedHandle: saved.saved_handle.value(),
            hierarchy: saved.hierarchy.value(),
            contextBlob: context_blob,
        };
        let loaded = self.ask(|context| context.context_load(saved.try_into()?))?;
        Ok(self.remember(loaded))
    }

    fn start_session(&mut self, session_type: TpmSe, hash: TpmAlgId, key: &Key) -> Result<u32> {
        let key = self.key(key.handle)?;
        let session_type =
            if session_type == TpmSe::Policy { SessionType::Policy } else { SessionType::Hmac };
        let session = self.ask(|context| {
            let hash = HashingAlgorithm::try_from(hash.value())?;
            context.start_auth_session(
                Some(key),
                None,
                None,
                session_type,
                SymmetricDefinition::AES_128_CFB,
                hash,
            )
        })?;
        self.remember_session(session)
    }

    fn start_policy(&mut self, hash: TpmAlgId) -> Result<u32> {
        let session = self.ask(|context| {
            let hash = HashingAlgorithm::try_from(hash.value())?;
            context.start_auth_session(
                None,
                None,
                None,
                SessionType::Policy,
                SymmetricDefinition::Null,
                hash,
            )
        })?;
        self.remember_session(session)
    }

    fn policy_command_code(&mut self, policy: u32, code: TpmCc) -> Result<()> {
        let policy = self.session(policy, false, false)?;
        self.ask(|context| {
            context.policy_command_code(policy.try_into()?, code.value().try_into()?)
        })
    }

    fn policy_or(&mut self, policy: u32, branches: &[[u8; 32]]) -> Result<()> {
        let policy = self.session(policy, false, false)?;
        self.ask(|context| {
            let mut digests = DigestList::new();
            for branch in branches {
                digests.add(Digest::try_from(branch.as_slice())?)?;
            }
            context.policy_or(policy.try_into()?, digests)
        })
    }

    fn start_password_session(&mut self, key: &Key) -> Result<u32> {
        let session = self.start_session(TpmSe::Hmac, TpmAlgId::Sha256, key)?;
        self.password_session = Some(session);
        Ok(session)
    }

    fn password_session(&self) -> Option<u32> {
        self.password_session
    }

    fn has_password(&self, hierarchy: Hierarchy) -> bool {
        !hierarchy.password(self.passwords).is_empty()
    }

    fn policy_secret(&mut self, policy: u32, session: Option<u32>) -> Result<()> {
        let policy = self.session(policy, false, false)?;
        self.ask_as_owner_of(session, |context| {
            let (policy, endorsement) = (PolicySession::try_from(policy)?, AuthHandle::Endorsement);
            context.policy_secret(
                policy,
                endorsement,
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        })?;
        Ok(())
    }

    fn activate_credential(
        &mut self,
        object: &Key,
        ek: &Key,
        session: u32,
        is_session_kept: bool,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let (object, ek) = (self.key(object.handle)?, self.key(ek.handle)?);
        let sessions =
            (Some(AuthSession::Password), Some(self.session(session, true, false)?), None);
        let secret = self.ask(|context| {
            context.execute_with_sessions(sessions, |context| {
                context.activate_credential(
                    object,
                    ek,
                    IdObject::try_from(blob)?,
                    EncryptedSecret::try_from(seed)?,
                )
            })
        })?;
        if !is_session_kept {
            self.flush_context(session)?;
        }
        Ok(Zeroizing::new(secret.to_vec()))
    }

    fn sign(&mut self, key: u32, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>> {
        let sha256 = HashScheme::new(HashingAlgorithm::Sha256);
        let scheme = match scheme {
            SignatureScheme::EcdsaSha256 => TssSignatureScheme::EcDsa { hash_scheme: sha256 },
            SignatureScheme::EcdsaSha384 => {
                TssSignatureScheme::EcDsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha384) }
            }
            SignatureScheme::RsaPkcs1Sha256 => TssSignatureScheme::RsaSsa { hash_scheme: sha256 },
            SignatureScheme::RsaPssSha256 => TssSignatureScheme::RsaPss { hash_scheme: sha256 },
        };
        let key = self.key(key)?;
        let signature = self.ask_with_empty_password(|context| {
            let ticket = TPMT_TK_HASHCHECK {
                tag: TPM2_ST_HASHCHECK,
                hierarchy: TPM2_RH_NULL,
                digest: Default::default(),
            };
            context.sign(key, Digest::try_from(digest)?, scheme, HashcheckTicket::try_from(ticket)?)
        })?;
        match signature {
            Signature::EcDsa(signature) => {
                Ok(signed_by_ecdsa(signature.signature_r(), signature.signature_s()))
            }
            Signature::RsaSsa(signature) | Signature::RsaPss(signature) => {
                Ok(signature.signature().to_vec())
            }
            _ => Err(strange("a signature by another scheme")),
        }
    }

    fn import(
        &mut self,
        parent: &Key,
        policy: Option<u32>,
        session: u32,
        inner_key: &[u8],
        public: TpmtPublic,
        key: &WrappedKey,
    ) -> Result<Vec<u8>> {
        let (parent, public) = (self.object(parent.handle)?, to_tss(&public)?);
        let sessions = (Some(self.by(policy)?), Some(self.session(session, false, true)?), None);
        let imported = self.ask(|context| {
            context.execute_with_sessions(sessions, |context| {
                context.import(
                    parent,
                    Some(Data::try_from(inner_key)?),
                    public,
                    Private::try_from(key.duplicate.as_slice())?,
                    EncryptedSecret::try_from(key.symmetric_seed.as_slice())?,
                    SymmetricDefinitionObject::AES_128_CFB,
                )
            })
        })?;
        for session in policy.into_iter().chain([session]) {
            self.flush_context(session)?;
        }
        Ok(imported.to_vec())
    }

    fn hmac(&mut self, key: u32, data: &[u8]) -> Result<Vec<u8>> {
        let key = self.object(key)?;
        let hmac = self.ask_with_empty_password(|context| {
            context.hmac(key, MaxBuffer::try_from(data)?, HashingAlgorithm::Sha256)
        })?;
        Ok(hmac.to_vec())
    }
}

impl Drop for Library<'_> {
    fn drop(&mut self) {
        // Otherwise the library flushes what others loaded.
        for (_, object) in &mut self.known {
            // It closes the object, and then may report that it expected to flush it.
            _ = self.context.tr_close(object);
        }
    }
}

/// The crate `tss-esapi` knows only these kinds of TCTI. Its own parser of whole strings is not
/// used, because it tries a regular expression for each kind.
fn name_conf(name: &str, conf: &str) -> tss_esapi::Result<TctiNameConf> {
    match name {
        "device" => conf.parse().map(TctiNameConf::Device),
        "swtpm" => conf.parse().map(TctiNameConf::Swtpm),
        "mssim" => conf.parse().map(TctiNameConf::Mssim),
        _ => conf.parse().map(TctiNameConf::Tabrmd),
    }
}

fn to_tss(public: &TpmtPublic) -> Result<Public> {
    Public::unmarshall(&object::encoded(public)).map_err(failed)
}

fn from_tss(public: &Public) -> Result<TpmtPublic> {
    let bytes = public.marshall().map_err(failed)?;
    object::decoded(&bytes).ok_or_else(|| strange("a key of an unknown shape"))
}

fn strange(what: &str) -> CommandError {
    CommandError::BadResponse(what.into())
}

/// Tells the TPM's handles from the library's own numbers by the first byte (TPM 2.0 Part 2, 7.2).
/// The library's numbers begin like permanent handles, which are never given to this function.
fn is_of_tpm(handle: u32) -> bool {
    handle >> 24 != 0x40
}

/// The parts of a TSS2_RC (TCG TSS 2.0 Overview, 2.3): its third byte names the layer.
fn failed(error: tss_esapi::Error) -> CommandError {
    let Some(code) = response_code(&error) else {
        return CommandError::BadArgument(error.to_string());
    };
    match (code >> 16 & 0xFF, code & 0xFFFF) {
        (TPM | RESOURCE_MANAGER | TPM_BEHIND_RESOURCE_MANAGER, _) => {
            CommandError::Refused(ResponseCode(code))
        }
        (_, MALFORMED_RESPONSE | INSUFFICIENT_RESPONSE | RESPONSE_HMAC) => {
            CommandError::BadResponse(format!("libtss2 says {code:#x}"))
        }
        _ => io::Error::other(format!("libtss2 says {code:#x}")).into(),
    }
}

/// The crate shows the code only in the text of the innermost error, `Response code value: 0x…`.
fn response_code(error: &tss_esapi::Error) -> Option<u32> {
    let tss_esapi::Error::Tss2Error(code) = error else { return None };
    let text = code.source()?.to_string();
    u32::from_str_radix(text.rsplit_once("0x")?.1, 16).ok()
}

/// TSS2_TPM_RC_LAYER and the two of resource managers.
const TPM: u32 = 0;
const RESOURCE_MANAGER: u32 = 11;
const TPM_BEHIND_RESOURCE_MANAGER: u32 = 12;
/// TSS2_BASE_RC.
const MALFORMED_RESPONSE: u32 = 0x11;
const INSUFFICIENT_RESPONSE: u32 = 0x13;
const RESPONSE_HMAC: u32 = 0x1B;
