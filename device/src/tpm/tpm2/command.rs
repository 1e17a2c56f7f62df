//! The TPM commands that provisioning uses, each as a function.

use std::thread;
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tpm2_protocol::basic::{TpmHandle, TpmUint16};
use tpm2_protocol::data::{
    Tpm2bNonce, TpmAlgId, TpmCap, TpmRcBase, TpmRh, TpmSe, TpmSt, TpmaNv, TpmaSession, TpmsAuthCommand, TpmsContext,
    TpmsNvPublic, TpmtPublic, TpmtSigScheme, TpmtSignature, TpmtSymDef, TpmtTkHashcheck, TpmuCapabilities,
};
use tpm2_protocol::frame::{
    TpmActivateCredentialCommand, TpmActivateCredentialResponse, TpmContextLoadCommand, TpmContextLoadResponse,
    TpmContextSaveCommand, TpmContextSaveResponse, TpmCreateCommand, TpmCreatePrimaryCommand, TpmCreatePrimaryResponse,
    TpmCreateResponse, TpmEvictControlCommand, TpmEvictControlResponse, TpmFlushContextCommand,
    TpmFlushContextResponse, TpmFrame, TpmGetCapabilityCommand, TpmGetCapabilityResponse, TpmHmacCommand,
    TpmHmacResponse, TpmImportCommand, TpmImportResponse, TpmLoadCommand, TpmLoadResponse, TpmNvReadCommand,
    TpmNvReadPublicCommand, TpmNvReadPublicResponse, TpmNvReadResponse, TpmPolicySecretCommand,
    TpmPolicySecretResponse, TpmReadPublicCommand, TpmReadPublicResponse, TpmResponse, TpmSignCommand, TpmSignResponse,
    TpmStartAuthSessionCommand, TpmStartAuthSessionResponse, TpmUnmarshalBody, tpm_marshal_command,
};
use tpm2_protocol::{TpmError as ProtocolError, TpmWriter};
use zeroize::Zeroizing;

use super::response_code::ResponseCode;
use super::template;
use super::transport::{HEADER_SIZE, MAX_SIZE, Transport};
use crate::tpm::{HierarchyPasswords, Tcti, WrappedKey};

/// A connection to a TPM, and what was loaded over it.
pub(super) struct Connection<'a> {
    transport: Transport,
    passwords: &'a HierarchyPasswords,
    /// Transient objects and sessions that this connection loaded and has not flushed.
    loaded: Vec<u32>,
    /// Whether the connection is gone or out of step.
    is_broken: bool,
    /// Whether a command may have loaded something whose handle never came.
    has_lost_track: bool,
}

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The way to the TPM is not there, or no longer.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What came back is no response to the command.
    #[error("{0}")]
    BadResponse(String),
    /// What was to be sent fits into no command.
    #[error("{0}")]
    BadArgument(String),
    /// The TPM refused.
    #[error("{0}")]
    Refused(ResponseCode),
}

impl CommandError {
    pub(super) fn code(&self) -> Option<TpmRcBase> {
        match self {
            Self::Refused(code) => code.base(),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, CommandError>;

impl<'a> Connection<'a> {
    pub(super) fn open(tcti: &Tcti, passwords: &'a HierarchyPasswords) -> Result<Self> {
        let transport = Transport::open(tcti)?;
        Ok(Self { transport, passwords, loaded: Vec::new(), is_broken: false, has_lost_track: false })
    }

    /// Whether the TPM may hold something that was loaded over this connection.
    pub(super) fn may_leave_something(&self) -> bool {
        self.has_lost_track || self.transport.has_resent || !self.loaded.is_empty()
    }

    /// Flushes what is still loaded, all of it even if the TPM refuses some. On a broken connection there is nobody to tell.
    pub(super) fn flush_loaded(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        while !self.is_broken
            && let Some(handle) = self.loaded.pop()
        {
            let flushed = self.flush_context(handle);
            outcome = outcome.and(flushed);
        }
        outcome
    }

    /// TPM2_GetCapability (TPM 2.0 Part 3, 30.2): the handles in use from `first` on, of its type (TPM 2.0 Part 2, 7.2).
    pub(super) fn handles(&mut self, first: u32) -> Result<Vec<u32>> {
        let mut handles = Vec::new();
        let mut next = first;
        loop {
            let command = TpmGetCapabilityCommand {
                handles: [],
                cap: TpmCap::Handles,
                property: next.into(),
                property_count: MAX_HANDLES_AT_ONCE.into(),
            };
            let answer: TpmGetCapabilityResponse = self.run(&command, &[])?;
            let TpmuCapabilities::Handles(found) = answer.capability_data.data else {
                return Err(CommandError::BadResponse("another capability than the handles in use".into()));
            };
            for handle in found.iter().map(|handle| handle.value()) {
                if handle < next || handles.len() == MAX_HANDLES {
                    return Err(CommandError::BadResponse("handles out of order, or more than a TPM has".into()));
                }
                handles.push(handle);
                next = handle.saturating_add(1);
            }
            if !bool::from(answer.more_data) || found.is_empty() {
                return Ok(handles);
            }
        }
    }

    /// TPM2_NV_ReadPublic (TPM 2.0 Part 3, 31.6); `None` if there is no such index.
    pub(super) fn nv_index(&mut self, index: u32) -> Result<Option<NvIndex>> {
        let command = TpmNvReadPublicCommand { handles: [index.into()] };
        let Some(TpmNvReadPublicResponse { nv_public, .. }) = there(self.run(&command, &[]))? else { return Ok(None) };
        let TpmsNvPublic { attributes, data_size, .. } = nv_public.inner;
        Ok(Some(NvIndex {
            size: if attributes.contains(TpmaNv::WRITTEN) { data_size.value() } else { 0 },
            takes_own_password: attributes.contains(TpmaNv::AUTHREAD),
            takes_owner_password: attributes.contains(TpmaNv::OWNERREAD),
        }))
    }

    /// TPM2_NV_Read (TPM 2.0 Part 3, 31.13), authorised by a hierarchy, or by the index's own, empty password.
    pub(super) fn nv_read(
        &mut self,
        index: u32,
        hierarchy: Option<Hierarchy>,
        offset: u16,
        size: u16,
    ) -> Result<Vec<u8>> {
        let authorisation = hierarchy.map_or(EMPTY_PASSWORD, |hierarchy| self.password_of(hierarchy));
        let command = TpmNvReadCommand {
            handles: [hierarchy.map_or_else(|| index.into(), Hierarchy::handle), index.into()],
            size: TpmUint16::new(size),
            offset: TpmUint16::new(offset),
        };
        let TpmNvReadResponse { data, .. } = self.run(&command, &[authorisation])?;
        if data.is_empty() || data.len() > usize::from(size) {
            return Err(CommandError::BadResponse(format!("{} bytes where {size} were asked for", data.len())));
        }
        Ok(data.to_vec())
    }

    /// TPM2_CreatePrimary (TPM 2.0 Part 3, 24.1).
    pub(super) fn create_primary(&mut self, hierarchy: Hierarchy, template: TpmtPublic) -> Result<(u32, TpmtPublic)> {
        let command = TpmCreatePrimaryCommand {
            handles: [hierarchy.handle()],
            in_sensitive: Default::default(),
            in_public: template.into(),
            outside_info: Default::default(),
            creation_pcr: Default::default(),
        };
        let created: TpmCreatePrimaryResponse = self.run(&command, &[self.password_of(hierarchy)])?;
        Ok((self.remember(created.handles), created.out_public.inner))
    }

    /// TPM2_Create (TPM 2.0 Part 3, 12.1): the content of a TPM2B_PRIVATE, and the public area.
    pub(super) fn create(&mut self, parent: u32, template: TpmtPublic) -> Result<(Vec<u8>, TpmtPublic)> {
        let command = TpmCreateCommand {
            handles: [parent.into()],
            in_sensitive: Default::default(),
            in_public: template.into(),
            outside_info: Default::default(),
            creation_pcr: Default::default(),
        };
        let created: TpmCreateResponse = self.run(&command, &[EMPTY_PASSWORD])?;
        Ok((created.out_private.to_vec(), created.out_public.inner))
    }

    /// TPM2_Load (TPM 2.0 Part 3, 12.2).
    pub(super) fn load(&mut self, parent: u32, private: &[u8], public: TpmtPublic) -> Result<u32> {
        let command = TpmLoadCommand {
            handles: [parent.into()],
            in_private: sized(private, "an encrypted private area")?,
            in_public: public.into(),
        };
        let loaded: TpmLoadResponse = self.run(&command, &[EMPTY_PASSWORD])?;
        Ok(self.remember(loaded.handles))
    }

    /// TPM2_ReadPublic (TPM 2.0 Part 3, 12.4); `None` if there is no such object.
    pub(super) fn read_public(&mut self, handle: u32) -> Result<Option<TpmtPublic>> {
        let command = TpmReadPublicCommand { handles: [handle.into()] };
        let answer: Option<TpmReadPublicResponse> = there(self.run(&command, &[]))?;
        Ok(answer.map(|answer| answer.out_public.inner))
    }

    /// TPM2_EvictControl (TPM 2.0 Part 3, 28.5): makes a loaded object persistent, or removes a persistent one, which is both.
    pub(super) fn evict_control(&mut self, object: u32, persistent: u32) -> Result<()> {
        let command = TpmEvictControlCommand {
            handles: [Hierarchy::Owner.handle(), object.into()],
            persistent_handle: persistent.into(),
        };
        self.run(&command, &[self.password_of(Hierarchy::Owner)]).map(|TpmEvictControlResponse { .. }| ())
    }

    /// TPM2_FlushContext (TPM 2.0 Part 3, 28.4).
    pub(super) fn flush_context(&mut self, handle: u32) -> Result<()> {
        let command = TpmFlushContextCommand { handles: [], flush_handle: handle.into() };
        let TpmFlushContextResponse { .. } = self.run(&command, &[])?;
        self.forget(handle);
        Ok(())
    }

    /// TPM2_ContextSave (TPM 2.0 Part 3, 28.2).
    pub(super) fn context_save(&mut self, handle: u32) -> Result<TpmsContext> {
        let command = TpmContextSaveCommand { handles: [handle.into()] };
        self.run(&command, &[]).map(|TpmContextSaveResponse { context, .. }| context)
    }

    /// TPM2_ContextLoad (TPM 2.0 Part 3, 28.3).
    pub(super) fn context_load(&mut self, context: TpmsContext) -> Result<u32> {
        let command = TpmContextLoadCommand { handles: [], context };
        let loaded: TpmContextLoadResponse = self.run(&command, &[])?;
        Ok(self.remember(loaded.handles))
    }

    /// TPM2_StartAuthSession (TPM 2.0 Part 3, 11.1): a policy session, unbound and unsalted.
    pub(super) fn start_policy_session(&mut self, hash: TpmAlgId) -> Result<u32> {
        let mut nonce = [0; NONCE_SIZE];
        let random = SystemRandom::new().fill(&mut nonce);
        random.map_err(|_| CommandError::BadArgument("the system gives no random numbers".into()))?;
        let command = TpmStartAuthSessionCommand {
            handles: [TpmRh::Null.value().into(), TpmRh::Null.value().into()],
            nonce_caller: sized(&nonce, "a nonce")?,
            encrypted_salt: Default::default(),
            session_type: TpmSe::Policy,
            symmetric: TpmtSymDef::default(),
            auth_hash: hash,
        };
        let started: TpmStartAuthSessionResponse = self.run(&command, &[])?;
        Ok(self.remember(started.handles))
    }

    /// TPM2_PolicySecret (TPM 2.0 Part 3, 23.4): the endorsement hierarchy's password.
    pub(super) fn policy_secret(&mut self, session: u32) -> Result<()> {
        let command = TpmPolicySecretCommand {
            handles: [Hierarchy::Endorsement.handle(), session.into()],
            nonce_tpm: Tpm2bNonce::default(),
            cp_hash_a: Default::default(),
            policy_ref: Tpm2bNonce::default(),
            expiration: 0.into(),
        };
        self.run(&command, &[self.password_of(Hierarchy::Endorsement)]).map(|TpmPolicySecretResponse { .. }| ())
    }

    /// TPM2_ActivateCredential (TPM 2.0 Part 3, 12.5); `object` has an empty password. Ends a policy session that authorised it.
    pub(super) fn activate_credential(
        &mut self,
        object: u32,
        ek: u32,
        authorisation: Authorisation<'_>,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let command = TpmActivateCredentialCommand {
            handles: [object.into(), ek.into()],
            credential_blob: sized(blob, "a credential")?,
            secret: sized(seed, "an encrypted seed")?,
        };
        let activated: TpmActivateCredentialResponse = self.run(&command, &[EMPTY_PASSWORD, authorisation])?;
        if let Authorisation::Policy(session) = authorisation {
            self.forget(session);
        }
        Ok(Zeroizing::new(activated.cert_info.to_vec()))
    }

    /// TPM2_Sign (TPM 2.0 Part 3, 20.2) over a digest that was not made by the TPM, which unrestricted keys sign all the same.
    pub(super) fn sign(&mut self, key: u32, digest: &[u8], scheme: TpmtSigScheme) -> Result<TpmtSignature> {
        let no_ticket = TpmtTkHashcheck { tag: TpmSt::HashCheck, hierarchy: TpmRh::Null, digest: Default::default() };
        let command = TpmSignCommand {
            handles: [key.into()],
            digest: sized(digest, "a digest")?,
            in_scheme: scheme,
            validation: no_ticket,
        };
        self.run(&command, &[EMPTY_PASSWORD]).map(|TpmSignResponse { signature, .. }| signature)
    }

    /// TPM2_Import (TPM 2.0 Part 3, 13.3) of a key with an inner wrapper: the content of a TPM2B_PRIVATE.
    pub(super) fn import(
        &mut self,
        parent: u32,
        inner_key: &[u8],
        public: TpmtPublic,
        key: &WrappedKey,
    ) -> Result<Vec<u8>> {
        let command = TpmImportCommand {
            handles: [parent.into()],
            encryption_key: sized(inner_key, "an inner wrapper's key")?,
            object_public: public.into(),
            duplicate: sized(&key.duplicate, "a duplicate")?,
            in_sym_seed: sized(&key.symmetric_seed, "an encrypted seed")?,
            symmetric_alg: template::aes_cfb(128),
        };
        self.run(&command, &[EMPTY_PASSWORD]).map(|TpmImportResponse { out_private, .. }| out_private.to_vec())
    }

    /// TPM2_HMAC (TPM 2.0 Part 3, 15.5) with SHA-256.
    pub(super) fn hmac(&mut self, key: u32, data: &[u8]) -> Result<Vec<u8>> {
        let command = TpmHmacCommand {
            handles: [key.into()],
            buffer: sized(data, "the data of an HMAC")?,
            hash_alg: TpmAlgId::Sha256,
        };
        self.run(&command, &[EMPTY_PASSWORD]).map(|TpmHmacResponse { out_hmac, .. }| out_hmac.to_vec())
    }

    /// Sends a command until the TPM has done it or refused it.
    pub(super) fn run<R: TpmUnmarshalBody>(
        &mut self,
        command: &impl TpmFrame,
        authorisations: &[Authorisation<'_>],
    ) -> Result<R> {
        let tag = if authorisations.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        let sent = marshal(command, tag, authorisations)?;
        let mut pause = FIRST_PAUSE;
        for _ in 1..MAX_SUBMISSIONS {
            match self.exchange(&sent, tag) {
                Err(CommandError::Refused(code)) if code.asks_to_retry() => thread::sleep(pause),
                outcome => return outcome,
            }
            pause *= 2;
        }
        self.exchange(&sent, tag)
    }

    fn exchange<R: TpmUnmarshalBody>(&mut self, command: &[u8], tag: TpmSt) -> Result<R> {
        if self.is_broken {
            let reason = "nothing more is sent after a malformed response";
            return Err(std::io::Error::new(std::io::ErrorKind::NotConnected, reason).into());
        }
        let response = self.transport.exchange(command);
        self.is_broken |= response.is_err();
        let outcome = response.and_then(|response| unmarshal(&response, tag));
        self.has_lost_track |= matches!(outcome, Err(CommandError::Io(_) | CommandError::BadResponse(_)));
        outcome
    }

    fn password_of(&self, hierarchy: Hierarchy) -> Authorisation<'a> {
        Authorisation::Password(match hierarchy {
            Hierarchy::Owner => self.passwords.owner.as_bytes(),
            Hierarchy::Endorsement => self.passwords.endorsement.as_bytes(),
        })
    }

    fn remember(&mut self, [handle]: [TpmHandle; 1]) -> u32 {
        self.loaded.push(handle.value());
        handle.value()
    }

    fn forget(&mut self, handle: u32) {
        self.loaded.retain(|&loaded| loaded != handle);
    }
}

/// What an NV index holds, and who may read it.
pub(super) struct NvIndex {
    /// In bytes.
    pub(super) size: u16,
    pub(super) takes_own_password: bool,
    pub(super) takes_owner_password: bool,
}

/// Where a primary key comes from, and who may keep keys.
#[derive(Clone, Copy)]
pub(super) enum Hierarchy {
    Owner,
    Endorsement,
}

impl Hierarchy {
    fn handle(self) -> TpmHandle {
        match self {
            Self::Owner => TpmRh::Owner.value().into(),
            Self::Endorsement => TpmRh::Endorsement.value().into(),
        }
    }

    /// As the command line's options for its password are called.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Endorsement => "endorsement",
        }
    }
}

/// How the use of a handle is authorised.
#[derive(Clone, Copy)]
pub(super) enum Authorisation<'a> {
    Password(&'a [u8]),
    /// A policy session that ends with the command.
    Policy(u32),
}

pub(super) const EMPTY_PASSWORD: Authorisation<'static> = Authorisation::Password(&[]);

impl Authorisation<'_> {
    fn marshal(self) -> Result<TpmsAuthCommand> {
        let (session, hmac) = match self {
            Self::Password(password) => (TpmRh::Pw.value(), password),
            // A session that is neither bound nor salted has no key, and then an Empty Buffer is its HMAC, unless the policy asks for
            // a password (TPM 2.0 Part 1, 19.6).
            Self::Policy(session) => (session, &[][..]),
        };
        Ok(TpmsAuthCommand {
            session_handle: session.into(),
            nonce: Tpm2bNonce::default(),
            session_attributes: TpmaSession::empty(),
            hmac: sized(hmac, "a password")?,
        })
    }
}

fn marshal(command: &impl TpmFrame, tag: TpmSt, authorisations: &[Authorisation<'_>]) -> Result<Zeroizing<Vec<u8>>> {
    let authorisations: Vec<_> = authorisations.iter().map(|each| each.marshal()).collect::<Result<_>>()?;
    let mut bytes = Zeroizing::new(vec![0; MAX_SIZE]);
    let mut writer = TpmWriter::new(&mut bytes);
    let marshalled = tpm_marshal_command(command, tag, &authorisations, &mut writer);
    let length = writer.len();
    marshalled.map_err(|error| CommandError::BadArgument(format!("no command can be made of it: {error}")))?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Reads a response whose size is right (TPM 2.0 Part 1, 18): it has the command's tag and nothing behind its last field, or is no more
/// than a header if the TPM refused.
fn unmarshal<R: TpmUnmarshalBody>(response: &[u8], tag: TpmSt) -> Result<R> {
    let code = response.get(6..HEADER_SIZE).and_then(|code| code.try_into().ok()).map(u32::from_be_bytes);
    match code {
        Some(0) => {}
        Some(code) if response.len() == HEADER_SIZE => return Err(CommandError::Refused(ResponseCode(code))),
        _ => return Err(CommandError::BadResponse("a refusal with something behind it".into())),
    }
    let malformed = |error: ProtocolError| CommandError::BadResponse(format!("{error} at byte {}", error.offset()));
    let frame = TpmResponse::cast(response).map_err(malformed)?;
    if frame.tag() != Ok(tag) {
        return Err(CommandError::BadResponse("a response to another kind of command".into()));
    }
    frame.unmarshal().map_err(malformed)
}

/// Makes a TPM2B of its content.
fn sized<'a, T: TryFrom<&'a [u8]>>(bytes: &'a [u8], what: &str) -> Result<T> {
    T::try_from(bytes).map_err(|_| CommandError::BadArgument(format!("{} bytes are too many for {what}", bytes.len())))
}

/// `None` where the TPM says that there is nothing at the command's only handle (TPM 2.0 Part 3, 5.4).
fn there<R>(outcome: Result<R>) -> Result<Option<R>> {
    match outcome {
        Err(CommandError::Refused(code)) if code.base() == Some(TpmRcBase::Handle) && code.is_about_first_handle() => {
            Ok(None)
        }
        outcome => outcome.map(Some),
    }
}

/// As many as one answer may hold for the library (TpmlHandle). TPMs give out 254 at most (TPM 2.0 Part 2, 10.9.3: MAX_CAP_HANDLES).
const MAX_HANDLES_AT_ONCE: u32 = 128;
/// Far more than any TPM has of one type; chips have room for some dozen.
const MAX_HANDLES: usize = 4096;
/// The least that a TPM takes (TPM 2.0 Part 3, 11.1.1). Nothing depends on it: the session has no key.
const NONCE_SIZE: usize = 16;
/// As often as libtss2 tries (_ESYS_MAX_SUBMISSIONS).
const MAX_SUBMISSIONS: u32 = 5;
/// Doubled each time, so that a TPM that tests itself has three quarters of a second. The kernel starts with 20 ms, and has tried before us.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
