//! The TPM over tss-esapi: the only module that touches libtss2.

mod template;

use std::error::Error as _;

use tss_esapi::constants::response_code::Tss2ResponseCodeKind;
use tss_esapi::constants::tss::{
    TPM2_LOADED_SESSION_FIRST, TPM2_NV_INDEX_FIRST, TPM2_PERSISTENT_FIRST, TPM2_RH_NULL, TPM2_ST_HASHCHECK,
    TPM2_TRANSIENT_FIRST,
};
use tss_esapi::constants::{CapabilityType, PropertyTag, SessionType};
use tss_esapi::handles::{
    AuthHandle, KeyHandle, NvIndexHandle, NvIndexTpmHandle, ObjectHandle, PersistentTpmHandle, SessionHandle, TpmHandle,
};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth, Provision};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Auth, CapabilityData, Data, Digest, EncryptedSecret, HashScheme, HashcheckTicket, IdObject, MaxBuffer, Nonce,
    Private, Public, Signature, SignatureScheme as TssSignatureScheme, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::traits::{Marshall, UnMarshall};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::utils::TpmsContext;
use tss_esapi::{Context, TctiNameConf};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{
    EkKind, HierarchyPasswords, IkKind, OpenedKey, PublicArea, PublicKey, SignatureScheme, SrkKind, Tcti, Tpm,
    TpmError, WrappedKey,
};
use crate::der;

/// A TPM reached through libtss2.
///
/// The connection is opened by the first call, and again by the next one after a call failed: closing it flushes
/// what the failed call had loaded, and after an I/O error the library refuses every further command (BAD_SEQUENCE).
pub struct EsapiTpm {
    tcti: Tcti,
    passwords: HierarchyPasswords,
    context: Option<Context>,
    primaries: Primaries,
}

impl EsapiTpm {
    /// A TPM that is not connected to yet.
    pub fn new(tcti: Tcti, passwords: HierarchyPasswords) -> Self {
        Self { tcti, passwords, context: None, primaries: Primaries::default() }
    }

    fn run<T>(
        &mut self,
        operation: &'static str,
        command: impl FnOnce(&mut Context, &mut Primaries) -> Result<T, Fault>,
    ) -> Result<T, TpmError> {
        let result = match self.context.take() {
            Some(context) => Ok(context),
            None => self.open(),
        }
        .and_then(|mut context| {
            let value = command(&mut context, &mut self.primaries)?;
            self.context = Some(context);
            Ok(value)
        });
        result.map_err(|fault| self.explain(operation, fault))
    }

    fn open(&self) -> Result<Context, Fault> {
        let mut context = Context::new(name_conf(&self.tcti)?)?;
        let passwords =
            [(ObjectHandle::Owner, &self.passwords.owner), (ObjectHandle::Endorsement, &self.passwords.endorsement)];
        for (hierarchy, password) in passwords {
            context.tr_set_auth(hierarchy, Auth::try_from(password.as_bytes())?)?;
        }
        if !self.tcti.has_resource_manager() {
            flush_leftovers(&mut context)?;
        }
        Ok(context)
    }

    fn explain(&self, operation: &'static str, fault: Fault) -> TpmError {
        let error = match fault {
            Fault::Tss(error) => error,
            Fault::WrongPassword { hierarchy } => return TpmError::WrongPassword { operation, hierarchy },
            Fault::KeyWithPassword { handle, option } => {
                return TpmError::KeyWithPassword { operation, handle, option };
            }
            Fault::Occupied { handle, wanted, found, option } => {
                return TpmError::HandleOccupied { handle, wanted, found, option };
            }
            Fault::NotForThisTpm { reason } => return TpmError::NotForThisTpm { operation, reason },
            Fault::Unsupported(what) => return TpmError::Unsupported(what),
        };
        match response_code(&error) {
            None => TpmError::Library { operation, reason: error.to_string() },
            Some(code) if is_from_tpm(code) => TpmError::Refused { operation, code, reason: error.to_string() },
            Some(code) => TpmError::Unreachable { operation, tcti: self.tcti.clone(), code },
        }
    }
}

impl Tpm for EsapiTpm {
    fn ek_certificates(&mut self, kind: EkKind) -> Result<Vec<Vec<u8>>, TpmError> {
        let Some(leaf) = kind.certificate_index() else { return Ok(Vec::new()) };
        self.run("reading the EK certificate", |context, _| {
            let indices = handles(context, TPM2_NV_INDEX_FIRST)?;
            if !indices.contains(&leaf) {
                return Ok(Vec::new());
            }
            let mut certificates: Vec<_> = split_certificates(&read_nv(context, leaf)?).take(1).collect();
            if certificates.is_empty() {
                return Ok(certificates);
            }
            for index in indices.into_iter().filter(|index| EK_CHAIN_INDICES.contains(index)) {
                certificates.extend(split_certificates(&read_nv(context, index)?));
            }
            Ok(certificates)
        })
    }

    fn endorsement_key(&mut self, kind: EkKind) -> Result<Option<PublicArea>, TpmError> {
        self.run("making the EK", |context, primaries| {
            let ek = match load_ek(context, primaries, kind) {
                Err(Fault::Unsupported(_)) => return Ok(None),
                ek => ek?,
            };
            // It is needed again soon, to open what was encrypted to it.
            primaries.keep(context, template::ek(kind)?, &ek)?;
            ek.release(context)?;
            Ok(Some(public_area(&ek.public)?))
        })
    }

    fn identity_key(&mut self, kind: IkKind, handle: u32) -> Result<Option<PublicArea>, TpmError> {
        self.run("looking for the identity key", |context, _| {
            let Some(found) = find_persistent(context, handle)? else { return Ok(None) };
            found.release(context)?;
            if !template::fits(&found.public, &template::ik(kind)?) {
                let (wanted, found) = (format!("an identity key of kind {kind}"), template::describe(&found.public));
                return Err(Fault::Occupied { handle, wanted, found, option: IK_HANDLE_OPTION });
            }
            Ok(Some(public_area(&found.public)?))
        })
    }

    fn create_identity_key(&mut self, kind: IkKind, handle: u32) -> Result<PublicArea, TpmError> {
        self.run("creating the identity key", |context, primaries| {
            let srk = load_parent(context, primaries)?;
            let ik = context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    let created = context.create(srk.handle, template::ik(kind)?, None, None, None, None)?;
                    let handle = context.load(srk.handle, created.out_private, created.out_public.clone())?;
                    Ok(Loaded { handle, public: created.out_public, is_persistent: false })
                })
                .map_err(|error| unsupported(error, kind.name()))?;
            srk.release(context)?;

            ik.persist(context, handle)?;
            Ok(public_area(&ik.public)?)
        })
    }

    fn sign(&mut self, handle: u32, scheme: SignatureScheme, digest: &[u8]) -> Result<Vec<u8>, TpmError> {
        let hash = |hash| HashScheme::new(hash);
        let scheme = match scheme {
            SignatureScheme::EcdsaSha256 => TssSignatureScheme::EcDsa { hash_scheme: hash(HashingAlgorithm::Sha256) },
            SignatureScheme::EcdsaSha384 => TssSignatureScheme::EcDsa { hash_scheme: hash(HashingAlgorithm::Sha384) },
            SignatureScheme::RsaPkcs1Sha256 => {
                TssSignatureScheme::RsaSsa { hash_scheme: hash(HashingAlgorithm::Sha256) }
            }
            SignatureScheme::RsaPssSha256 => TssSignatureScheme::RsaPss { hash_scheme: hash(HashingAlgorithm::Sha256) },
        };
        self.run("signing", |context, _| {
            let ik = Loaded::persistent(context, handle)?;
            let signature = context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.sign(ik.handle, Digest::try_from(digest)?, scheme, software_digest_ticket()?)
                })
                .map_err(|error| used(handle, IK_HANDLE_OPTION, error))?;
            ik.release(context)?;
            match signature {
                Signature::EcDsa(signature) => Ok(der::sequence(&[
                    &der::unsigned_integer(signature.signature_r()),
                    &der::unsigned_integer(signature.signature_s()),
                ])),
                Signature::RsaSsa(signature) | Signature::RsaPss(signature) => Ok(signature.signature().to_vec()),
                _ => Err(WRONG_VALUE.into()),
            }
        })
    }

    fn activate(
        &mut self,
        kind: EkKind,
        handle: u32,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.run("activating the credential", |context, primaries| {
            let ik = Loaded::persistent(context, handle)?;
            let secret = activate(context, primaries, kind, &ik, blob, seed)?;
            ik.release(context)?;
            Ok(secret)
        })
    }

    fn storage_root_key(&mut self, kind: SrkKind) -> Result<Option<PublicArea>, TpmError> {
        self.run("making the storage root key", |context, primaries| {
            let srk = match load_srk(context, primaries, kind) {
                Err(Fault::Unsupported(_)) => return Ok(None),
                srk => srk?,
            };
            primaries.keep(context, template::srk(kind)?, &srk)?;
            srk.release(context)?;
            Ok(Some(public_area(&srk.public)?))
        })
    }

    fn hmac_key(&mut self, handle: u32) -> Result<Option<Vec<u8>>, TpmError> {
        self.run("looking for the HMAC key", |context, _| {
            let Some(found) = find_persistent(context, handle)? else { return Ok(None) };
            found.release(context)?;
            if !template::fits(&found.public, &template::hmac_key()?) {
                return Err(no_hmac_key(handle, &found.public));
            }
            Ok(Some(found.public.marshall()?))
        })
    }

    fn open_hmac_key(&mut self, ek: EkKind, srk: SrkKind, key: &WrappedKey) -> Result<OpenedKey, TpmError> {
        self.run("opening the HMAC key", |context, primaries| {
            let public = hmac_public(&key.public)?;
            let parent = load_srk(context, primaries, srk)?;
            let private = import(context, primaries, ek, &parent, key, &public)?;
            // TPM2_Load compares the sensitive area with the public one (TPM 2.0 Part 3, 12.2.1), whether TPM2_Import did or not.
            let loaded = load(context, &parent, private.clone(), public).map_err(|error| not_opened(error.into()))?;
            loaded.release(context)?;
            parent.release(context)?;
            Ok(OpenedKey { public: key.public.clone(), private: private.to_vec() })
        })
    }

    fn keep_hmac_key(
        &mut self,
        srk: SrkKind,
        handle: u32,
        key: &OpenedKey,
        replaced: Option<&[u8]>,
    ) -> Result<(), TpmError> {
        let outcome = self.run("loading the HMAC key", |context, primaries| {
            let old = find_persistent(context, handle)?;
            if let Some(old) = &old {
                let found = old.public.marshall()?;
                if found == key.public {
                    return Ok(old.release(context)?);
                }
                if Some(found.as_slice()) != replaced {
                    return Err(no_hmac_key(handle, &old.public));
                }
            }
            let parent = load_srk(context, primaries, srk)?;
            let private = Private::try_from(key.private.as_slice())?;
            let key = load(context, &parent, private, Public::unmarshall(&key.public)?)?;
            parent.release(context)?;
            if let Some(old) = old {
                old.evict(context, handle)?;
            }
            key.persist(context, handle)
        });
        // The library does not forget the name of a key that it removed, and would refuse the new one at the same handle.
        self.context = None;
        outcome
    }

    fn hmac(&mut self, handle: u32, data: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.run("computing an HMAC", |context, _| {
            let key = Loaded::persistent(context, handle)?;
            let data = MaxBuffer::try_from(data)?;
            let hmac = context
                .execute_with_session(Some(AuthSession::Password), |context| {
                    context.hmac(key.handle.into(), data, HashingAlgorithm::Sha256)
                })
                .map_err(|error| used(handle, HMAC_HANDLE_OPTION, error))?;
            key.release(context)?;
            Ok(hmac.to_vec())
        })
    }
}

/// The library's own parser of whole strings tries a regular expression for each kind of TCTI, which costs more time and memory than
/// all else that is done with the string.
fn name_conf(tcti: &Tcti) -> tss_esapi::Result<TctiNameConf> {
    let (name, conf) = tcti.as_str().split_once(':').unwrap_or((tcti.as_str(), ""));
    match name {
        "device" => conf.parse().map(TctiNameConf::Device),
        "swtpm" => conf.parse().map(TctiNameConf::Swtpm),
        "mssim" => conf.parse().map(TctiNameConf::Mssim),
        _ => conf.parse().map(TctiNameConf::Tabrmd),
    }
}

/// What went wrong in a command, before the operation it served is known.
enum Fault {
    Tss(tss_esapi::Error),
    WrongPassword { hierarchy: &'static str },
    KeyWithPassword { handle: u32, option: &'static str },
    Occupied { handle: u32, wanted: String, found: String, option: &'static str },
    NotForThisTpm { reason: String },
    Unsupported(String),
}

impl From<tss_esapi::Error> for Fault {
    fn from(error: tss_esapi::Error) -> Self {
        Self::Tss(error)
    }
}

/// A key that commands may use.
struct Loaded {
    handle: KeyHandle,
    public: Public,
    is_persistent: bool,
}

impl Loaded {
    fn persistent(context: &mut Context, handle: u32) -> Result<Self, Fault> {
        let handle = TpmHandle::Persistent(PersistentTpmHandle::new(handle)?);
        let handle = KeyHandle::from(context.tr_from_tpm_public(handle)?);
        let (public, ..) = context.read_public(handle)?;
        Ok(Self { handle, public, is_persistent: true })
    }

    fn primary(
        context: &mut Context,
        hierarchy: Hierarchy,
        name: &'static str,
        template: Public,
    ) -> Result<Self, Fault> {
        let created = context.execute_with_session(Some(AuthSession::Password), |context| {
            context.create_primary(hierarchy, template, None, None, None, None)
        });
        let created = created.map_err(|error| authorised(name, error))?;
        Ok(Self { handle: created.key_handle, public: created.out_public, is_persistent: false })
    }

    fn release(&self, context: &mut Context) -> tss_esapi::Result<()> {
        let mut handle = ObjectHandle::from(self.handle);
        if self.is_persistent { context.tr_close(&mut handle) } else { context.flush_context(handle) }
    }

    /// Makes a transient key persistent, and releases it.
    fn persist(&self, context: &mut Context, handle: u32) -> Result<(), Fault> {
        let mut object = self.evict_control(context, handle)?;
        self.release(context)?;
        Ok(context.tr_close(&mut object)?)
    }

    /// Removes a persistent key, whose handle this is, from the TPM.
    fn evict(self, context: &mut Context, handle: u32) -> Result<(), Fault> {
        self.evict_control(context, handle).map(drop)
    }

    fn evict_control(&self, context: &mut Context, handle: u32) -> Result<ObjectHandle, Fault> {
        let persistent = Persistent::Persistent(PersistentTpmHandle::new(handle)?);
        context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.evict_control(Provision::Owner, self.handle.into(), persistent)
            })
            .map_err(|error| authorised("owner", error))
    }
}

/// What a persistent handle holds. Asking for it only if it is there keeps the library from printing errors.
fn find_persistent(context: &mut Context, handle: u32) -> Result<Option<Loaded>, Fault> {
    if handles(context, TPM2_PERSISTENT_FIRST)?.contains(&handle) {
        Loaded::persistent(context, handle).map(Some)
    } else {
        Ok(None)
    }
}

/// The EK: one that was made persistent if it equals the template, for creating an RSA key takes real chips seconds.
fn load_ek(context: &mut Context, primaries: &mut Primaries, kind: EkKind) -> Result<Loaded, Fault> {
    let template = template::ek(kind)?;
    for handle in handles(context, EK_PERSISTENT_FIRST)? {
        if !(EK_PERSISTENT_FIRST..=EK_PERSISTENT_LAST).contains(&handle) {
            continue;
        }
        let found = Loaded::persistent(context, handle)?;
        if template::fits(&found.public, &template) && is_of_kind(context, kind, &found.public)? {
            return Ok(found);
        }
        found.release(context)?;
    }
    primaries.load(context, Hierarchy::Endorsement, "endorsement", template, kind.name())
}

/// Whether a persistent key of an EK's shape is that EK. The EKs [`EkKind::Rsa2048`] and [`EkKind::LegacyDps`] have one shape; the
/// manufacturer's certificate tells which of the two a key is. Without one, neither is believed to be there.
fn is_of_kind(context: &mut Context, kind: EkKind, ek: &Public) -> Result<bool, Fault> {
    if !matches!(kind, EkKind::Rsa2048 | EkKind::LegacyDps) {
        return Ok(true);
    }
    if !handles(context, TPM2_NV_INDEX_FIRST)?.contains(&EK_CERTIFICATE_RSA_2048) {
        return Ok(false);
    }
    let contents = read_nv(context, EK_CERTIFICATE_RSA_2048)?;
    let Ok((_, certificate)) = X509Certificate::from_der(&contents) else { return Ok(false) };
    let is_certified = certificate.public_key().raw == public_area(ek)?.key.subject_public_key_info();
    Ok(is_certified == (kind == EkKind::Rsa2048))
}

/// The parent of identity keys: the persistent storage root key if the platform's owner left one, of whatever kind, else one made
/// for the moment.
fn load_parent(context: &mut Context, primaries: &mut Primaries) -> Result<Loaded, Fault> {
    if let Some(found) = find_persistent(context, SRK_PERSISTENT)? {
        if template::is_storage_key(&found.public) {
            return Ok(found);
        }
        found.release(context)?;
    }
    let mut primary =
        |kind: SrkKind| primaries.load(context, Hierarchy::Owner, "owner", template::srk(kind)?, kind.name());
    match primary(SrkKind::P256) {
        Err(Fault::Unsupported(_)) => primary(SrkKind::Rsa2048),
        srk => srk,
    }
}

/// The storage root key of one kind: the persistent one if it has that shape, else one made for the moment.
fn load_srk(context: &mut Context, primaries: &mut Primaries, kind: SrkKind) -> Result<Loaded, Fault> {
    let template = template::srk(kind)?;
    if let Some(found) = find_persistent(context, SRK_PERSISTENT)? {
        if template::fits(&found.public, &template) {
            return Ok(found);
        }
        found.release(context)?;
    }
    primaries.load(context, Hierarchy::Owner, "owner", template, kind.name())
}

/// Primary keys that were made before, saved as the TPM gives them out: loading one again takes a chip milliseconds, making an RSA key
/// seconds. Nobody but this TPM can load them, and it only until it is reset.
#[derive(Default)]
struct Primaries(Vec<SavedPrimary>);

struct SavedPrimary {
    template: Public,
    public: Public,
    context: TpmsContext,
}

impl Primaries {
    /// The primary key that a template gives: saved, or made now.
    fn load(
        &mut self,
        context: &mut Context,
        hierarchy: Hierarchy,
        name: &'static str,
        template: Public,
        kind: &str,
    ) -> Result<Loaded, Fault> {
        if let Some(at) = self.0.iter().position(|saved| saved.template == template) {
            let SavedPrimary { public, context: saved, .. } = &self.0[at];
            if let Ok(handle) = context.context_load(saved.clone()) {
                return Ok(Loaded { handle: handle.into(), public: public.clone(), is_persistent: false });
            }
            // The TPM was reset.
            self.0.swap_remove(at);
        }
        Loaded::primary(context, hierarchy, name, template).map_err(|fault| match fault {
            Fault::Tss(error) => unsupported(error, kind),
            fault => fault,
        })
    }

    /// Saves a key that `template` gave, unless it is persistent or was saved before.
    fn keep(&mut self, context: &mut Context, template: Public, key: &Loaded) -> Result<(), Fault> {
        if !key.is_persistent && self.0.iter().all(|saved| saved.template != template) {
            let saved = context.context_save(key.handle.into())?;
            self.0.push(SavedPrimary { template, public: key.public.clone(), context: saved });
        }
        Ok(())
    }
}

/// TPM2_ActivateCredential for any key whose ADMIN role takes an empty password.
fn activate(
    context: &mut Context,
    primaries: &mut Primaries,
    kind: EkKind,
    object: &Loaded,
    blob: &[u8],
    seed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Fault> {
    let ek = load_ek(context, primaries, kind)?;
    let authorisation = EkAuthorisation::of(context, &ek.public)?;
    let sessions = (Some(AuthSession::Password), Some(authorisation.session()), None);
    let secret = context.execute_with_sessions(sessions, |context| {
        context.activate_credential(
            object.handle,
            ek.handle,
            IdObject::try_from(blob)?,
            EncryptedSecret::try_from(seed)?,
        )
    })?;
    authorisation.end(context)?;
    ek.release(context)?;
    Ok(Zeroizing::new(secret.to_vec()))
}

/// Opens a key that was wrapped for an EK and a storage root key: what comes back is encrypted for the latter alone.
fn import(
    context: &mut Context,
    primaries: &mut Primaries,
    ek: EkKind,
    parent: &Loaded,
    key: &WrappedKey,
    public: &Public,
) -> Result<Private, Fault> {
    let inner_key =
        activate(context, primaries, ek, parent, &key.credential_blob, &key.encrypted_seed).map_err(not_opened)?;
    context
        .execute_with_session(Some(AuthSession::Password), |context| {
            context.import(
                parent.handle.into(),
                Some(Data::try_from(inner_key.as_slice())?),
                public.clone(),
                Private::try_from(key.duplicate.as_slice())?,
                EncryptedSecret::try_from(key.symmetric_seed.as_slice())?,
                SymmetricDefinitionObject::AES_128_CFB,
            )
        })
        .map_err(|error| not_opened(error.into()))
}

fn load(context: &mut Context, parent: &Loaded, private: Private, public: Public) -> tss_esapi::Result<Loaded> {
    let handle = context.execute_with_session(Some(AuthSession::Password), |context| {
        context.load(parent.handle, private, public.clone())
    })?;
    Ok(Loaded { handle, public, is_persistent: false })
}

/// Nothing else than an HMAC key is imported, whoever sent it.
fn hmac_public(bytes: &[u8]) -> Result<Public, Fault> {
    let off_template = || Fault::NotForThisTpm { reason: "what was sent is no HMAC key of the agreed shape".into() };
    let public = Public::unmarshall(bytes).map_err(|_| off_template())?;
    let is_agreed = template::fits(&public, &template::hmac_key()?) && public.marshall()? == bytes;
    if is_agreed { Ok(public) } else { Err(off_template()) }
}

fn no_hmac_key(handle: u32, found: &Public) -> Fault {
    let (wanted, found) = ("the HMAC key of this device".into(), template::describe(found));
    Fault::Occupied { handle, wanted, found, option: HMAC_HANDLE_OPTION }
}

/// How an EK's use is authorised (TCG EK Credential Profile 2.5, B.3 and B.4): templates of the high range have
/// userWithAuth and an empty password, those of the low range only the policy PolicySecret(TPM_RH_ENDORSEMENT).
enum EkAuthorisation {
    EmptyPassword,
    Policy(AuthSession),
}

impl EkAuthorisation {
    fn of(context: &mut Context, ek: &Public) -> Result<Self, Fault> {
        if ek.object_attributes().user_with_auth() {
            return Ok(Self::EmptyPassword);
        }
        let session = context
            .start_auth_session(
                None,
                None,
                None,
                SessionType::Policy,
                SymmetricDefinition::AES_128_CFB,
                ek.name_hashing_algorithm(),
            )?
            .ok_or(WRONG_VALUE)?;
        let policy = PolicySession::try_from(session)?;
        context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.policy_secret(
                    policy,
                    AuthHandle::Endorsement,
                    Nonce::default(),
                    Digest::default(),
                    Nonce::default(),
                    None,
                )
            })
            .map_err(|error| authorised("endorsement", error))?;
        Ok(Self::Policy(session))
    }

    fn session(&self) -> AuthSession {
        match self {
            Self::EmptyPassword => AuthSession::Password,
            Self::Policy(session) => *session,
        }
    }

    fn end(self, context: &mut Context) -> tss_esapi::Result<()> {
        match self {
            Self::EmptyPassword => Ok(()),
            // The library keeps a session after its use (continueSession).
            Self::Policy(session) => context.flush_context(SessionHandle::from(session).into()),
        }
    }
}

/// Flushes what a process like this one left in the TPM when it was killed: keys with our templates, and sessions, which
/// nothing tells apart. Without a resource manager at most three of each fit, and there can be no second user.
fn flush_leftovers(context: &mut Context) -> Result<(), Fault> {
    for handle in handles(context, TPM2_TRANSIENT_FIRST)? {
        let mut object = context.tr_from_tpm_public(TpmHandle::try_from(handle)?)?;
        let (public, ..) = context.read_public(object.into())?;
        if template::is_ours(&public)? {
            context.flush_context(object)?;
        } else {
            // Unless it is closed here, the library flushes it in the end. It closes it well, and then complains that it had
            // expected to flush it.
            _ = context.tr_close(&mut object);
        }
    }
    for handle in handles(context, TPM2_LOADED_SESSION_FIRST)? {
        let session = context.tr_from_tpm_public(TpmHandle::try_from(handle)?)?;
        // The library flushes a policy session well, and then complains that it had not expected to.
        _ = context.flush_context(session);
    }
    Ok(())
}

/// The handles in use of one type, that of `first` (TPM 2.0 Part 2, 7.2). Asking for them keeps the library from printing errors about
/// objects that are not there.
fn handles(context: &mut Context, first: u32) -> tss_esapi::Result<Vec<u32>> {
    let mut handles: Vec<u32> = Vec::new();
    loop {
        let next = handles.last().map_or(first, |last| last + 1);
        let (CapabilityData::Handles(found), more) =
            context.get_capability(CapabilityType::Handles, next, MAX_CAP_HANDLES)?
        else {
            return Err(WRONG_VALUE);
        };
        let before = handles.len();
        handles.extend(found.as_ref().iter().map(|&handle| u32::from(handle)));
        if !more || handles.len() == before {
            return Ok(handles);
        }
    }
}

fn read_nv(context: &mut Context, index: u32) -> Result<Vec<u8>, Fault> {
    let mut object = context.tr_from_tpm_public(TpmHandle::NvIndex(NvIndexTpmHandle::new(index)?))?;
    let handle = NvIndexHandle::from(object);
    let (public, _) = context.nv_read_public(handle)?;
    let size = if public.attributes().written() { public.data_size() } else { 0 };
    let step = context.get_tpm_property(PropertyTag::NvBufferMax)?.unwrap_or(NV_BUFFER_MIN) as usize;
    let mut contents = Vec::with_capacity(size);
    while contents.len() < size {
        let wanted = step.min(size - contents.len()).min(NV_READ_MAX);
        let part = context.execute_with_session(Some(AuthSession::Password), |context| {
            // Both fit: an NV index holds at most 65535 bytes (TPMS_NV_PUBLIC.dataSize).
            context.nv_read(NvAuth::NvIndex(handle), handle, wanted as u16, contents.len() as u16)
        })?;
        if part.is_empty() {
            return Err(WRONG_VALUE.into());
        }
        contents.extend_from_slice(&part);
    }
    context.tr_close(&mut object)?;
    Ok(contents)
}

/// The certificates that stand one behind the other; what follows them is padding of the NV area.
fn split_certificates(mut contents: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    std::iter::from_fn(move || {
        let (certificate, rest) = der::split_sequence(contents)?;
        contents = rest;
        Some(certificate.to_vec())
    })
}

fn public_area(public: &Public) -> tss_esapi::Result<PublicArea> {
    let key = match public {
        Public::Rsa { unique, .. } => PublicKey::Rsa(unique.to_vec()),
        Public::Ecc { unique, .. } if unique.x().len() <= 32 => {
            PublicKey::P256(padded(unique.x())?, padded(unique.y())?)
        }
        Public::Ecc { unique, .. } => PublicKey::P384(padded(unique.x())?, padded(unique.y())?),
        _ => return Err(WRONG_VALUE),
    };
    Ok(PublicArea { bytes: public.marshall()?, key })
}

/// A coordinate with the leading zeros that some TPMs leave out.
fn padded<const N: usize>(coordinate: &[u8]) -> tss_esapi::Result<[u8; N]> {
    let mut padded = [0; N];
    let start = N.checked_sub(coordinate.len()).ok_or(WRONG_VALUE)?;
    padded[start..].copy_from_slice(coordinate);
    Ok(padded)
}

/// Says that the digest was not made by the TPM, which unrestricted keys sign all the same (TPM 2.0 Part 3, 20.2).
fn software_digest_ticket() -> tss_esapi::Result<HashcheckTicket> {
    let ticket = TPMT_TK_HASHCHECK { tag: TPM2_ST_HASHCHECK, hierarchy: TPM2_RH_NULL, digest: Default::default() };
    HashcheckTicket::try_from(ticket)
}

fn kind_of(error: &tss_esapi::Error) -> Option<Tss2ResponseCodeKind> {
    match error {
        tss_esapi::Error::Tss2Error(code) => code.kind(),
        tss_esapi::Error::WrapperError(_) => None,
    }
}

fn authorised(hierarchy: &'static str, error: tss_esapi::Error) -> Fault {
    if is_wrong_password(&error) { Fault::WrongPassword { hierarchy } } else { Fault::Tss(error) }
}

fn used(handle: u32, option: &'static str, error: tss_esapi::Error) -> Fault {
    if is_wrong_password(&error) { Fault::KeyWithPassword { handle, option } } else { Fault::Tss(error) }
}

/// What the TPM says of a key that was not made for it, or altered on the way. Whether the TPM can be reached is another question,
/// and so is a storage root key with a password, which can only be the persistent one.
fn not_opened(fault: Fault) -> Fault {
    match fault {
        Fault::Tss(error) if is_wrong_password(&error) => used(SRK_PERSISTENT, SRK_OPTION, error),
        Fault::Tss(error) if response_code(&error).is_none_or(is_from_tpm) => {
            Fault::NotForThisTpm { reason: error.to_string() }
        }
        fault => fault,
    }
}

fn is_wrong_password(error: &tss_esapi::Error) -> bool {
    matches!(kind_of(error), Some(Tss2ResponseCodeKind::AuthFail | Tss2ResponseCodeKind::BadAuth))
}

fn is_unsupported(error: &tss_esapi::Error) -> bool {
    use Tss2ResponseCodeKind::{Asymmetric, Curve, Hash, KeySize, Symmetric, Value};
    matches!(kind_of(error), Some(Asymmetric | Curve | Hash | KeySize | Symmetric | Value))
}

fn unsupported(error: tss_esapi::Error, kind: &str) -> Fault {
    if is_unsupported(&error) { Fault::Unsupported(kind.into()) } else { Fault::Tss(error) }
}

/// The TSS2_RC. The library shows it nowhere but in the text of the innermost error, `Response code value: 0x…`.
fn response_code(error: &tss_esapi::Error) -> Option<u32> {
    let tss_esapi::Error::Tss2Error(code) = error else { return None };
    let text = code.source()?.to_string();
    u32::from_str_radix(text.rsplit_once("0x")?.1, 16).ok()
}

/// Whether the layer of a TSS2_RC (TCG TSS 2.0 Overview, 2.3) is the TPM itself, or a resource manager that speaks for it.
fn is_from_tpm(code: u32) -> bool {
    matches!(code >> 16 & 0xFF, 0 | 11 | 12)
}

const WRONG_VALUE: tss_esapi::Error = tss_esapi::Error::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm);

/// The command line's options for other keys than those that are in the way.
const IK_HANDLE_OPTION: &str = "--ik-handle";
const HMAC_HANDLE_OPTION: &str = "--hmac-handle";
const SRK_OPTION: &str = "--srk";
/// The certificate for the EK of template L-1.
const EK_CERTIFICATE_RSA_2048: u32 = 0x01C0_0002;
/// Certificates of the EK's issuers (TCG EK Credential Profile 2.5, 2.2.1.5).
const EK_CHAIN_INDICES: std::ops::RangeInclusive<u32> = 0x01C0_0100..=0x01C0_01FF;
/// Persistent EKs (TCG Registry of Reserved TPM 2.0 Handles, 2.3.1).
const EK_PERSISTENT_FIRST: u32 = 0x8101_0000;
const EK_PERSISTENT_LAST: u32 = 0x8101_FFFF;
/// The persistent storage root key (TCG TPM v2.0 Provisioning Guidance, 7.5.1).
const SRK_PERSISTENT: u32 = 0x8100_0001;
/// As many handles as one answer of TPM2_GetCapability may hold (TPM 2.0 Part 2, 10.9.3: MAX_CAP_HANDLES of 1024 bytes).
const MAX_CAP_HANDLES: u32 = 254;
/// What every TPM reads at once (PC Client Platform TPM Profile: TPM_PT_NV_BUFFER_MAX of at least 512).
const NV_BUFFER_MIN: u32 = 512;
/// The most that the library takes at once (MAX_NV_BUFFER_SIZE).
const NV_READ_MAX: usize = 2048;
