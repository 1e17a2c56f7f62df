//! The TPM commands that this crate uses, put together by our own code.

use std::thread;
use std::time::Duration;

use assay_device_core::WrappedKey;
use tpm2_protocol::basic::{TpmHandle, TpmUint16};
use tpm2_protocol::data::{
    Tpm2bNonce, TpmAlgId, TpmCap, TpmCc, TpmRh, TpmSe, TpmSt, TpmaNv, TpmaSession, TpmlDigest,
    TpmsAuthCommand, TpmsAuthResponse, TpmsContext, TpmsNvPublic, TpmsSchemeHash, TpmtPublic,
    TpmtSigScheme, TpmtTkHashcheck, TpmuCapabilities, TpmuSigScheme, TpmuSignature,
};
use tpm2_protocol::frame::{
    TpmActivateCredentialCommand, TpmActivateCredentialResponse, TpmContextLoadCommand,
    TpmContextLoadResponse, TpmContextSaveCommand, TpmContextSaveResponse, TpmCreateCommand,
    TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmCreateResponse, TpmEvictControlCommand,
    TpmEvictControlResponse, TpmFlushContextCommand, TpmFlushContextResponse, TpmFrame,
    TpmGetCapabilityCommand, TpmGetCapabilityResponse, TpmHmacCommand, TpmHmacResponse,
    TpmImportCommand, TpmImportResponse, TpmLoadCommand, TpmLoadResponse, TpmNvReadCommand,
    TpmNvReadPublicCommand, TpmNvReadPublicResponse, TpmNvReadResponse,
    TpmPolicyCommandCodeCommand, TpmPolicyCommandCodeResponse, TpmPolicyOrCommand,
    TpmPolicyOrResponse, TpmPolicySecretCommand, TpmPolicySecretResponse, TpmReadPublicCommand,
    TpmReadPublicResponse, TpmResponse, TpmSignCommand, TpmSignResponse,
    TpmStartAuthSessionCommand, TpmStartAuthSessionResponse, TpmUnmarshalBody,
};
use tpm2_protocol::{TpmError as ProtocolError, TpmMarshal, TpmResult, TpmUnmarshal, TpmWriter};
use zeroize::Zeroizing;

use super::commands::Commands;
use super::hash::Hash;
use super::object::Key;
use super::parts::{
    CommandError, Hierarchy, MAX_HANDLES, MAX_HANDLES_AT_ONCE, NvIndex, Reader, signed_by_ecdsa,
    sized, there,
};
use super::response_code::ResponseCode;
use super::salt::{self, Salt};
use super::session::{Session, Use};
use super::template;
use super::transport::{HEADER_SIZE, MAX_SIZE, Transport};
use crate::tpm::interface::SignatureScheme;
use crate::tpm::password::HierarchyPasswords;
use crate::tpm::tcti::Wire;

/// A connection that puts its commands together itself.
pub(super) struct Direct<'a> {
    transport: Transport,
    passwords: &'a HierarchyPasswords,
    /// Transient objects and sessions that this connection loaded and has not flushed.
    loaded: Vec<u32>,
    /// The sessions among them.
    sessions: Vec<Session>,
    password_session: Option<u32>,
    /// Whether the connection is gone or out of step.
    is_broken: bool,
    /// Whether a command may have loaded something whose handle never came back.
    has_lost_track: bool,
}

type Result<T> = std::result::Result<T, CommandError>;

impl<'a> Direct<'a> {
    pub(super) fn open(wire: &Wire, passwords: &'a HierarchyPasswords) -> Result<Self> {
        let transport = Transport::open(wire)?;
        let (loaded, sessions, password_session) = Default::default();
        Ok(Self {
            transport,
            passwords,
            loaded,
            sessions,
            password_session,
            is_broken: false,
            has_lost_track: false,
        })
    }
}

impl Commands for Direct<'_> {
    fn may_leave_something(&self) -> bool {
        self.has_lost_track || self.transport.has_resent || !self.loaded.is_empty()
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
        let mut handles = Vec::new();
        let mut next = first;
        loop {
            let command = TpmGetCapabilityCommand {
                handles: [],
                cap: TpmCap::Handles,
                property: next.into(),
                property_count: MAX_HANDLES_AT_ONCE.into(),
            };
            let answer: TpmGetCapabilityResponse = self.run(&command, &[], &[])?;
            let TpmuCapabilities::Handles(found) = answer.capability_data.data else {
                return Err(CommandError::BadResponse(
                    "another capability than the handles in use".into(),
                ));
            };
            for handle in found.iter().map(|handle| handle.value()) {
                if handle < next || handles.len() == MAX_HANDLES {
                    return Err(CommandError::BadResponse(
                        "handles out of order, or more than a TPM has".into(),
                    ));
                }
                handles.push(handle);
                next = handle.saturating_add(1);
            }
            if !bool::from(answer.more_data) || found.is_empty() {
                return Ok(handles);
            }
        }
    }

    fn nv_index(&mut self, index: u32) -> Result<Option<NvIndex>> {
        let command = TpmNvReadPublicCommand { handles: [index.into()] };
        let Some(TpmNvReadPublicResponse { nv_public, nv_name, .. }) =
            there(self.run(&command, &[], &[]))?
        else {
            return Ok(None);
        };
        let TpmsNvPublic { attributes, data_size, .. } = nv_public.inner;
        Ok(Some(NvIndex {
            size: if attributes.contains(TpmaNv::WRITTEN) { data_size.value() } else { 0 },
            name: nv_name.to_vec(),
            takes_own_password: attributes.contains(TpmaNv::AUTHREAD),
            takes_owner_password: attributes.contains(TpmaNv::OWNERREAD),
        }))
    }

    fn nv_read(
        &mut self,
        index: u32,
        nv: &NvIndex,
        reader: Reader,
        offset: u16,
        size: u16,
    ) -> Result<Vec<u8>> {
        let (authority, authorisation) = match reader {
            Reader::Index => (index.into(), Authorisation::EmptyPassword),
            Reader::Owner { session } => {
                (Hierarchy::Owner.handle(), self.authorisation_of(Hierarchy::Owner, session))
            }
        };
        let command = TpmNvReadCommand {
            handles: [authority, index.into()],
            size: TpmUint16::new(size),
            offset: TpmUint16::new(offset),
        };
        let names = [Hierarchy::Owner.name(), nv.name.clone()];
        let TpmNvReadResponse { data, .. } = self.run(&command, &names, &[authorisation])?;
        if data.is_empty() || data.len() > usize::from(size) {
            return Err(CommandError::BadResponse(format!(
                "{} bytes where {size} were asked for",
                data.len()
            )));
        }
        Ok(data.to_vec())
    }

    fn create_primary(
        &mut self,
        hierarchy: Hierarchy,
        session: Option<u32>,
        template: TpmtPublic,
    ) -> Result<(u32, TpmtPublic)> {
        let command = TpmCreatePrimaryCommand {
            handles: [hierarchy.handle()],
            in_sensitive: Default::default(),
            in_public: template.into(),
            outside_info: Default::default(),
            creation_pcr: Default::default(),
        };
        let authorisation = self.authorisation_of(hierarchy, session);
        let created: TpmCreatePrimaryResponse =
            self.run(&command, &[hierarchy.name()], &[authorisation])?;
        Ok((self.remember(created.handles), created.out_public.inner))
    }

    fn create(&mut self, parent: u32, template: TpmtPublic) -> Result<(Vec<u8>, TpmtPublic)> {
        let command = TpmCreateCommand {
            handles: [parent.into()],
            in_sensitive: Default::default(),
            in_public: template.into(),
            outside_info: Default::default(),
            creation_pcr: Default::default(),
        };
        let created: TpmCreateResponse =
            self.run(&command, &[], &[Authorisation::EmptyPassword])?;
        Ok((created.out_private.to_vec(), created.out_public.inner))
    }

    fn load(
        &mut self,
        parent: u32,
        policy: Option<u32>,
        private: &[u8],
        public: TpmtPublic,
    ) -> Result<u32> {
        let command = TpmLoadCommand {
            handles: [parent.into()],
            in_private: sized(private, "an encrypted private area")?,
            in_public: public.into(),
        };
        let loaded: TpmLoadResponse = self.run(&command, &[], &[Authorisation::by(policy)])?;
        Ok(self.remember(loaded.handles))
    }

    fn read_public(&mut self, handle: u32) -> Result<Option<TpmtPublic>> {
        let command = TpmReadPublicCommand { handles: [handle.into()] };
        let answer: Option<TpmReadPublicResponse> = there(self.run(&command, &[], &[]))?;
        Ok(answer.map(|answer| answer.out_public.inner))
    }

    fn evict_control(&mut self, object: &Key, session: Option<u32>, persistent: u32) -> Result<()> {
        let command = TpmEvictControlCommand {
            handles: [Hierarchy::Owner.handle(), object.handle.into()],
            persistent_handle: persistent.into(),
        };
        let (names, owner) = (
            [Hierarchy::Owner.name(), object.name()?],
            self.authorisation_of(Hierarchy::Owner, session),
        );
        self.run(&command, &names, &[owner]).map(|TpmEvictControlResponse { .. }| ())
    }

    fn flush_context(&mut self, handle: u32) -> Result<()> {
        let command = TpmFlushContextCommand { handles: [], flush_handle: handle.into() };
        let TpmFlushContextResponse { .. } = self.run(&command, &[], &[])?;
        self.forget(handle);
        Ok(())
    }

    fn context_save(&mut self, handle: u32) -> Result<TpmsContext> {
        let command = TpmContextSaveCommand { handles: [handle.into()] };
        self.run(&command, &[], &[]).map(|TpmContextSaveResponse { context, .. }| context)
    }

    fn context_load(&mut self, context: TpmsContext) -> Result<u32> {
        let command = TpmContextLoadCommand { handles: [], context };
        let loaded: TpmContextLoadResponse = self.run(&command, &[], &[])?;
        Ok(self.remember(loaded.handles))
    }

    fn start_session(&mut self, session_type: TpmSe, hash: TpmAlgId, key: &Key) -> Result<u32> {
        let salt = Salt::for_key(&key.public)?;
        let mut nonce_caller = vec![0; NONCE_SIZE];
        salt::random(&mut nonce_caller)?;
        let command = TpmStartAuthSessionCommand {
            handles: [key.handle.into(), TpmRh::Null.value().into()],
            nonce_caller: sized(&nonce_caller, "a nonce")?,
            encrypted_salt: sized(&salt.encrypted, "an encrypted salt")?,
            session_type,
            symmetric: template::aes_cfb(128),
            auth_hash: hash,
        };
        let started: TpmStartAuthSessionResponse = self.run(&command, &[], &[])?;
        let handle = self.remember(started.handles);
        self.sessions.push(Session::new(
            handle,
            Hash::of(hash)?,
            &salt,
            nonce_caller,
            started.nonce_tpm.to_vec(),
        ));
        Ok(handle)
    }

    fn start_policy(&mut self, hash: TpmAlgId) -> Result<u32> {
        let mut nonce_caller = vec![0; NONCE_SIZE];
        salt::random(&mut nonce_caller)?;
        let command = TpmStartAuthSessionCommand {
            handles: [TpmRh::Null.value().into(), TpmRh::Null.value().into()],
            nonce_caller: sized(&nonce_caller, "a nonce")?,
            encrypted_salt: Default::default(),
            session_type: TpmSe::Policy,
            symmetric: Default::default(),
            auth_hash: hash,
        };
        let started: TpmStartAuthSessionResponse = self.run(&command, &[], &[])?;
        Ok(self.remember(started.handles))
    }

    fn policy_command_code(&mut self, policy: u32, code: TpmCc) -> Result<()> {
        let command = TpmPolicyCommandCodeCommand { handles: [policy.into()], code };
        self.run(&command, &[], &[]).map(|TpmPolicyCommandCodeResponse { .. }| ())
    }

    fn policy_or(&mut self, policy: u32, branches: &[[u8; 32]]) -> Result<()> {
        let mut p_hash_list = TpmlDigest::new();
        for branch in branches {
            let too_many = |_| CommandError::BadArgument("more branches than a policy has".into());
            p_hash_list.try_push(sized(branch, "a digest")?).map_err(too_many)?;
        }
        let command = TpmPolicyOrCommand { handles: [policy.into()], p_hash_list };
        self.run(&command, &[], &[]).map(|TpmPolicyOrResponse { .. }| ())
    }

    fn start_password_session(&mut self, key: &Key) -> Result<u32> {
        let session = self.start_session(TpmSe::Hmac, TpmAlgId::Sha256, key)?;
        self.password_session = Some(session);
        Ok(session)
    }

    fn password_session(&self) -> Option<u32> {
        self.password_session
    }

    fn policy_secret(&mut self, policy: u32, session: Option<u32>) -> Result<()> {
        let hierarchy = Hierarchy::Endorsement;
        let command = TpmPolicySecretCommand {
            handles: [hierarchy.handle(), policy.into()],
            nonce_tpm: Tpm2bNonce::default(),
            cp_hash_a: Default::default(),
            policy_ref: Tpm2bNonce::default(),
            expiration: 0.into(),
        };
        // The Name of a session is its handle (TPM 2.0 Part 1, 16).
        let (names, password) = (
            [hierarchy.name(), policy.to_be_bytes().to_vec()],
            self.authorisation_of(hierarchy, session),
        );
        self.run(&command, &names, &[password]).map(|TpmPolicySecretResponse { .. }| ())
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
        let command = TpmActivateCredentialCommand {
            handles: [object.handle.into(), ek.handle.into()],
            credential_blob: sized(blob, "a credential")?,
            secret: sized(seed, "an encrypted seed")?,
        };
        let kept =
            if is_session_kept { TpmaSession::CONTINUE_SESSION } else { TpmaSession::empty() };
        let session = Use { session, auth_value: &[], attributes: TpmaSession::ENCRYPT | kept };
        let authorisations = [Authorisation::EmptyPassword, Authorisation::Session(session)];
        let activated: TpmActivateCredentialResponse =
            self.run(&command, &[object.name()?, ek.name()?], &authorisations)?;
        Ok(Zeroizing::new(activated.cert_info.to_vec()))
    }

    fn sign(&mut self, key: u32, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>> {
        let (scheme, hash_alg) = match scheme {
            SignatureScheme::EcdsaSha256 => (TpmAlgId::Ecdsa, TpmAlgId::Sha256),
            SignatureScheme::EcdsaSha384 => (TpmAlgId::Ecdsa, TpmAlgId::Sha384),
            SignatureScheme::RsaPkcs1Sha256 => (TpmAlgId::Rsassa, TpmAlgId::Sha256),
            SignatureScheme::RsaPssSha256 => (TpmAlgId::Rsapss, TpmAlgId::Sha256),
        };
        let no_ticket = TpmtTkHashcheck {
            tag: TpmSt::HashCheck,
            hierarchy: TpmRh::Null,
            digest: Default::default(),
        };
        let command = TpmSignCommand {
            handles: [key.into()],
            digest: sized(digest, "a digest")?,
            in_scheme: TpmtSigScheme {
                scheme,
                details: TpmuSigScheme::Hash(TpmsSchemeHash { hash_alg }),
            },
            validation: no_ticket,
        };
        let signed: TpmSignResponse = self.run(&command, &[], &[Authorisation::EmptyPassword])?;
        match signed.signature.signature {
            TpmuSignature::Ecdsa(signature) => {
                Ok(signed_by_ecdsa(&signature.signature_r, &signature.signature_s))
            }
            TpmuSignature::Rsassa(signature) | TpmuSignature::Rsapss(signature) => {
                Ok(signature.sig.to_vec())
            }
            _ => Err(CommandError::BadResponse("a signature by another scheme".into())),
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
        let command = TpmImportCommand {
            handles: [parent.handle.into()],
            encryption_key: sized(inner_key, "an inner wrapper's key")?,
            object_public: public.into(),
            duplicate: sized(&key.duplicate, "a duplicate")?,
            in_sym_seed: sized(&key.symmetric_seed, "an encrypted seed")?,
            symmetric_alg: template::aes_cfb(128),
        };
        let session = Use { session, auth_value: &[], attributes: TpmaSession::DECRYPT };
        let authorisations = [Authorisation::by(policy), Authorisation::Session(session)];
        let imported: TpmImportResponse = self.run(&command, &[parent.name()?], &authorisations)?;
        Ok(imported.out_private.to_vec())
    }

    fn hmac(&mut self, key: u32, data: &[u8]) -> Result<Vec<u8>> {
        let command = TpmHmacCommand {
            handles: [key.into()],
            buffer: sized(data, "the data of an HMAC")?,
            hash_alg: TpmAlgId::Sha256,
        };
        self.run(&command, &[], &[Authorisation::EmptyPassword])
            .map(|TpmHmacResponse { out_hmac, .. }| out_hmac.to_vec())
    }

    fn has_password(&self, hierarchy: Hierarchy) -> bool {
        !hierarchy.password(self.passwords).is_empty()
    }

    fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>> {
        self.read_properties(first)
    }

    fn self_test(&mut self) -> Result<()> {
        self.test()
    }
}

impl<'a> Direct<'a> {
    /// Sends a command, and again if the TPM asks for that, until the TPM has done or refused it.
    /// The Names of its handles matter only if sessions authorise it.
    pub(super) fn run<R: TpmUnmarshalBody>(
        &mut self,
        command: &impl TpmFrame,
        names: &[Vec<u8>],
        authorisations: &[Authorisation<'_>],
    ) -> Result<R> {
        let sent = self.marshal(command, names, authorisations)?;
        let tag = tag_of(authorisations);
        let mut response = self.exchange(&sent);
        let mut pause = FIRST_PAUSE;
        for _ in 1..MAX_SUBMISSIONS {
            match response {
                Err(CommandError::Refused(code)) if code.asks_to_retry() => thread::sleep(pause),
                _ => break,
            }
            pause *= 2;
            response = self.exchange(&sent);
        }
        let outcome = response.and_then(|mut response| {
            self.end(R::HANDLES, command, authorisations, &mut response)?;
            unmarshal(&response, tag)
        });
        self.has_lost_track |=
            matches!(outcome, Err(CommandError::Io(_) | CommandError::BadResponse(_)));
        outcome
    }

    /// Sends a command once. Returns the response of a command that succeeded.
    fn exchange(&mut self, command: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        if self.is_broken {
            let reason = "nothing more is sent after a malformed response";
            return Err(std::io::Error::new(std::io::ErrorKind::NotConnected, reason).into());
        }
        let response = self.transport.exchange(command);
        self.is_broken |= response.is_err();
        response.and_then(done)
    }

    /// A whole command (TPM 2.0 Part 1, 18), with the HMACs of its sessions, and encrypted where
    /// the sessions say so.
    fn marshal(
        &mut self,
        command: &impl TpmFrame,
        names: &[Vec<u8>],
        authorisations: &[Authorisation<'_>],
    ) -> Result<Zeroizing<Vec<u8>>> {
        let handles = marshalled(|writer| command.marshal_handles(writer))?;
        let mut parameters = marshalled(|writer| command.marshal_parameters(writer))?;
        for authorisation in authorisations {
            if let Authorisation::Session(usage) = authorisation {
                self.session(*usage)?.begin(*usage, &mut parameters)?;
            }
        }
        let code = command.cc().value().to_be_bytes();
        let hashed: Vec<&[u8]> = std::iter::once(&code[..])
            .chain(names.iter().map(Vec::as_slice))
            .chain([&parameters[..]])
            .collect();
        let mut authorisation_area = Zeroizing::new(Vec::new());
        for authorisation in authorisations {
            let authorised = match authorisation {
                Authorisation::EmptyPassword => TpmsAuthCommand {
                    session_handle: TpmRh::Pw.value().into(),
                    ..TpmsAuthCommand::default()
                },
                // The HMAC of this session has no key, so it may be empty (TPM 2.0 Part 1, 19.6.5).
                Authorisation::Policy(policy) => TpmsAuthCommand {
                    session_handle: (*policy).into(),
                    ..TpmsAuthCommand::default()
                },
                Authorisation::Session(usage) => {
                    self.session(*usage)?.authorise(*usage, &hashed)?
                }
            };
            authorisation_area.extend_from_slice(&marshalled(|writer| authorised.marshal(writer))?);
        }
        if !authorisations.is_empty() {
            let size = (authorisation_area.len() as u32).to_be_bytes();
            authorisation_area.splice(..0, size);
        }
        let size = HEADER_SIZE + handles.len() + authorisation_area.len() + parameters.len();
        if size > MAX_SIZE {
            return Err(CommandError::BadArgument(format!(
                "{size} bytes are too many for a command"
            )));
        }
        let (tag, size) =
            (tag_of(authorisations).value().to_be_bytes(), (size as u32).to_be_bytes());
        Ok(Zeroizing::new(
            [&tag[..], &size, &code, &handles, &authorisation_area, &parameters].concat(),
        ))
    }

    /// Checks the HMACs of a response that has this many handles, and decrypts it.
    fn end(
        &mut self,
        handles: usize,
        command: &impl TpmFrame,
        authorisations: &[Authorisation<'_>],
        response: &mut [u8],
    ) -> Result<()> {
        if authorisations
            .iter()
            .all(|authorisation| matches!(authorisation, Authorisation::EmptyPassword))
        {
            return Ok(());
        }
        let short =
            || CommandError::BadResponse("a response without the sessions of its command".into());
        let body = response.get_mut(HEADER_SIZE + 4 * handles..).ok_or_else(short)?;
        let (size, body) = body.split_first_chunk_mut().ok_or_else(short)?;
        let size = u32::from_be_bytes(*size) as usize;
        let (parameters, answers) = body.split_at_mut_checked(size).ok_or_else(short)?;
        let mut answers: &[u8] = answers;
        let mut ended = Vec::new();
        for authorisation in authorisations {
            let (answer, rest) = TpmsAuthResponse::unmarshal(answers).map_err(|_| short())?;
            answers = rest;
            match authorisation {
                Authorisation::EmptyPassword => {}
                Authorisation::Policy(policy) => ended.push(*policy),
                Authorisation::Session(usage) => {
                    self.session(*usage)?.end(
                        *usage,
                        command.cc().value().to_be_bytes(),
                        parameters,
                        &answer,
                    )?;
                    if !usage.attributes.contains(TpmaSession::CONTINUE_SESSION) {
                        ended.push(usage.session);
                    }
                }
            }
        }
        ended.into_iter().for_each(|session| self.forget(session));
        Ok(())
    }

    fn session(&mut self, usage: Use<'_>) -> Result<&mut Session> {
        let session = self.sessions.iter_mut().find(|session| session.handle == usage.session);
        session.ok_or_else(|| CommandError::BadArgument("a session that has ended".into()))
    }

    /// A password is never sent, because others may read the bus. It is part of the key of the
    /// session's HMAC.
    fn authorisation_of(&self, hierarchy: Hierarchy, session: Option<u32>) -> Authorisation<'a> {
        match session {
            None => Authorisation::EmptyPassword,
            Some(session) => Authorisation::Session(Use {
                session,
                auth_value: hierarchy.password(self.passwords),
                attributes: TpmaSession::CONTINUE_SESSION,
            }),
        }
    }

    fn remember(&mut self, [handle]: [TpmHandle; 1]) -> u32 {
        self.loaded.push(handle.value());
        handle.value()
    }

    fn forget(&mut self, handle: u32) {
        self.loaded.retain(|&loaded| loaded != handle);
        self.sessions.retain(|session| session.handle != handle);
    }
}

/// How the use of a handle is authorised, or what else a session does for a command.
#[derive(Clone, Copy)]
pub(super) enum Authorisation<'a> {
    EmptyPassword,
    /// A session without a key, in which the policy is satisfied. It ends with the command.
    Policy(u32),
    Session(Use<'a>),
}

impl Authorisation<'_> {
    fn by(policy: Option<u32>) -> Self {
        policy.map_or(Self::EmptyPassword, Self::Policy)
    }
}

fn tag_of(authorisations: &[Authorisation<'_>]) -> TpmSt {
    if authorisations.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions }
}

fn marshalled(
    write: impl FnOnce(&mut TpmWriter<'_>) -> TpmResult<()>,
) -> Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; MAX_SIZE]);
    let mut writer = TpmWriter::new(&mut bytes);
    let written = write(&mut writer);
    let length = writer.len();
    written.map_err(|error| {
        CommandError::BadArgument(format!("no command can be made of it: {error}"))
    })?;
    bytes.truncate(length);
    Ok(bytes)
}

/// Returns the response of a command that succeeded. The response to a refused command is only a
/// header (TPM 2.0 Part 1, 18).
fn done(response: Zeroizing<Vec<u8>>) -> Result<Zeroizing<Vec<u8>>> {
    let code =
        response.get(6..HEADER_SIZE).and_then(|code| code.try_into().ok()).map(u32::from_be_bytes);
    match code {
        Some(0) => Ok(response),
        Some(code) if response.len() == HEADER_SIZE => {
            Err(CommandError::Refused(ResponseCode(code)))
        }
        _ => Err(CommandError::BadResponse("a refusal with extra bytes".into())),
    }
}

/// Reads the response of a command that succeeded. It must have the command's tag, and nothing
/// after its last field.
fn unmarshal<R: TpmUnmarshalBody>(response: &[u8], tag: TpmSt) -> Result<R> {
    let malformed = |error: ProtocolError| {
        CommandError::BadResponse(format!("{error} at byte {}", error.offset()))
    };
    let frame = TpmResponse::cast(response).map_err(malformed)?;
    if frame.tag() != Ok(tag) {
        return Err(CommandError::BadResponse("a response to another kind of command".into()));
    }
    frame.unmarshal().map_err(malformed)
}

/// The shortest nonce that a TPM takes (TPM 2.0 Part 3, 11.1.1). It is long enough never to repeat.
const NONCE_SIZE: usize = 16;
/// libtss2 makes as many attempts (_ESYS_MAX_SUBMISSIONS).
const MAX_SUBMISSIONS: u32 = 5;
/// The pause before the second attempt. It doubles each time, so a TPM that tests itself has three
/// quarters of a second. The kernel starts with 20 ms, and has already made its attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
