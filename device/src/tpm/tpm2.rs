//! The implementation of `Tpm` that sends commands to a TPM 2.0.

mod certificate;
mod command;
mod commands;
mod connection;
mod fault;
mod hash;
mod health;
mod key;
#[cfg(feature = "tss2")]
mod library;
mod object;
mod parts;
mod response_code;
mod salt;
mod session;
mod template;
mod transport;

use assay_device_core::{EkKind, IkKind, KeyPurpose, OpenedKey, ParentKind, WrappedKey};
use tpm2_protocol::data::{TpmCc, TpmtPublic};
use zeroize::Zeroizing;

use self::commands::Connection;
use self::fault::{Fault, not_opened, unsupported, used};
use self::key::{Primaries, SRK_PERSISTENT};
use self::object::Key;
use self::parts::{CommandError, Hierarchy};
use super::error::TpmError;
use super::interface::{PublicArea, SignatureScheme, Tpm};
use super::password::HierarchyPasswords;
use super::tcti::Tcti;

/// A TPM 2.0.
///
/// A connection lives for one call. Others may use the TPM in between, and an I/O error affects
/// only its own call.
pub struct Tpm2 {
    tcti: Tcti,
    passwords: HierarchyPasswords,
    primaries: Primaries,
    /// The identity key that was seen last: its handle and public area.
    identity: Option<(u32, Vec<u8>)>,
    /// The identity key that was created last: its handle and private part.
    created: Option<(u32, Vec<u8>)>,
    /// Whether this process, or one before it, may have left something loaded in the TPM.
    may_hold_leftovers: bool,
}

impl Tpm2 {
    /// A TPM that is not connected to yet.
    pub fn new(tcti: Tcti, passwords: HierarchyPasswords) -> Self {
        Self {
            tcti,
            passwords,
            primaries: Primaries::default(),
            identity: None,
            created: None,
            may_hold_leftovers: true,
        }
    }

    /// Whether something accepts a connection. Only a command tells whether it is a TPM.
    pub(crate) fn reaches(tcti: &Tcti) -> std::io::Result<()> {
        connection::reaches(tcti)
    }

    fn run<T>(
        &mut self,
        operation: &'static str,
        work: impl FnOnce(&mut Connection<'_>, &mut Primaries) -> Result<T, Fault>,
    ) -> Result<T, TpmError> {
        self.connect_and(work).map_err(|fault| fault.explain(operation, &self.tcti))
    }

    fn connect_and<T>(
        &mut self,
        work: impl FnOnce(&mut Connection<'_>, &mut Primaries) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut tpm = connection::open(&self.tcti, &self.passwords)?;
        let tpm = tpm.as_mut();
        if self.may_hold_leftovers && !self.tcti.has_resource_manager() {
            flush_leftovers(tpm)?;
        }
        let outcome = work(tpm, &mut self.primaries);
        let flushed = tpm.flush_loaded();
        self.may_hold_leftovers = tpm.may_leave_something();
        let value = outcome?;
        flushed?;
        Ok(value)
    }
}

impl Tpm for Tpm2 {
    fn expect_ek(&mut self, kind: EkKind, id: [u8; 32]) {
        self.primaries.expected = Some((kind, id));
    }

    fn ek_certificates(&mut self, kind: EkKind) -> Result<Vec<Vec<u8>>, TpmError> {
        let Some(leaf) = kind.certificate_index() else { return Ok(Vec::new()) };
        self.run("reading the EK certificate", |tpm, primaries| {
            let indices = certificate::indices(tpm)?;
            let certificates = match indices.contains(&leaf) {
                true => certificate::with_issuers(tpm, primaries, leaf, &indices)?,
                false => Vec::new(),
            };
            primaries.nv_indices = Some(indices);
            Ok(certificates)
        })
    }

    fn endorsement_key(&mut self, kind: EkKind) -> Result<Option<PublicArea>, TpmError> {
        self.run("making the EK", |tpm, primaries| {
            let ek = match key::load_ek(tpm, primaries, kind) {
                Err(Fault::Unsupported(_)) => return Ok(None),
                ek => ek?,
            };
            // The EK is needed again soon, to open what was encrypted to it.
            let template = key::ek_template(tpm, primaries, kind)?;
            primaries.keep(tpm, Hierarchy::Endorsement, template, &ek);
            primaries.note_ek(kind, &ek);
            Ok(Some(ek.public_area()?))
        })
    }

    fn identity_key(&mut self, kind: IkKind, handle: u32) -> Result<Option<PublicArea>, TpmError> {
        let found = self.run("looking for the identity key", |tpm, _| {
            let Some(found) = Key::persistent(tpm, handle)? else { return Ok(None) };
            if !template::fits(&found.public, &template::ik(kind)) {
                let (wanted, found) =
                    (format!("an identity key of kind {kind}"), template::describe(&found.public));
                return Err(Fault::Occupied { handle, wanted, found, key: KeyPurpose::Identity });
            }
            Ok(Some(found.public_area()?))
        })?;
        self.identity = found.as_ref().map(|found| (handle, found.bytes.clone()));
        Ok(found)
    }

    fn create_identity_key(&mut self, kind: IkKind, handle: u32) -> Result<PublicArea, TpmError> {
        let (created, private) = self.run("creating the identity key", |tpm, primaries| {
            let srk = key::load_ik_parent(tpm, primaries)?;
            let (private, public) = tpm
                .create(srk.handle, template::ik(kind))
                .map_err(|error| unsupported(error, kind.name()))?;
            let ik = Key::load(tpm, &srk, &private, public)?;
            srk.release(tpm)?;
            ik.persist(tpm, primaries, handle)?;
            Ok((ik.public_area()?, private))
        })?;
        self.identity = Some((handle, created.bytes.clone()));
        self.created = Some((handle, private));
        Ok(created)
    }

    fn private_of_created(&mut self, handle: u32) -> Option<Vec<u8>> {
        let (_, private) = self.created.take_if(|(created, _)| *created == handle)?;
        Some(private)
    }

    fn share_identity_key(&mut self, handle: u32, private: &[u8]) -> Result<bool, TpmError> {
        self.run("loading the identity key", |tpm, primaries| {
            let ik = Key::persistent(tpm, handle)?.ok_or_else(|| no_key(handle))?;
            let found = Key::persistent(tpm, SRK_PERSISTENT)?;
            let is_free = found.is_none();
            let srk = match found {
                Some(srk) => srk,
                None => key::load_ik_parent(tpm, primaries)?,
            };
            // TPM 2.0 Part 3, 12.2: the TPM checks that private part, public area and parent
            // belong together.
            let loaded = Key::load(tpm, &srk, private, ik.public);
            loaded.map_err(|error| not_opened(error.into()))?.release(tpm)?;
            if is_free {
                srk.persist(tpm, primaries, SRK_PERSISTENT)?;
            }
            Ok(is_free)
        })
    }

    fn sign(
        &mut self,
        handle: u32,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        self.run("signing", |tpm, _| {
            tpm.sign(handle, scheme, digest)
                .map_err(|error| used(handle, KeyPurpose::Identity, error))
        })
    }

    fn activate(
        &mut self,
        kind: EkKind,
        handle: u32,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let seen = self.identity.as_ref().filter(|(at, _)| *at == handle);
        let seen = seen
            .and_then(|(_, public)| object::decoded(public))
            .map(|public| Key::at(handle, public));
        self.run("activating the credential", |tpm, primaries| {
            let ik = match seen {
                Some(ik) => ik,
                None => Key::persistent(tpm, handle)?.ok_or_else(|| no_key(handle))?,
            };
            key::activate(tpm, primaries, kind, &ik, blob, seed)
        })
    }

    fn parent(&mut self, kind: ParentKind) -> Result<Option<PublicArea>, TpmError> {
        self.run("making the parent", |tpm, primaries| {
            let parent = match key::load_parent(tpm, primaries, kind) {
                Err(Fault::Unsupported(_)) => return Ok(None),
                parent => parent?,
            };
            primaries.keep(tpm, Hierarchy::Owner, template::parent(kind), &parent);
            Ok(Some(parent.public_area()?))
        })
    }

    fn hmac_key(&mut self, handle: u32) -> Result<Option<Vec<u8>>, TpmError> {
        self.run("looking for the HMAC key", |tpm, _| {
            let Some(found) = Key::persistent(tpm, handle)? else { return Ok(None) };
            if !template::fits(&found.public, &template::hmac_key()) {
                return Err(no_hmac_key(handle, &found.public));
            }
            Ok(Some(object::encoded(&found.public)))
        })
    }

    fn open_hmac_key(
        &mut self,
        ek: EkKind,
        parent: ParentKind,
        key: &WrappedKey,
    ) -> Result<OpenedKey, TpmError> {
        self.run("opening the HMAC key", |tpm, primaries| {
            let public = hmac_public(&key.public)?;
            let parent = key::load_parent(tpm, primaries, parent)?;
            let (blob, seed) = (&key.credential_blob, &key.encrypted_seed);
            let (inner_key, session) =
                key::activate_and_go_on(tpm, primaries, ek, &parent, blob, seed)
                    .map_err(not_opened)?;
            let policy = key::authorise_parent(tpm, &parent, TpmCc::Import)?;
            let private = tpm
                .import(&parent, policy, session, &inner_key, public.clone(), key)
                .map_err(|error| not_opened(error.into()))?;
            // TPM2_Load compares the sensitive area with the public one (TPM 2.0 Part 3, 12.2.1),
            // whether TPM2_Import did or not.
            Key::load(tpm, &parent, &private, public).map_err(|error| not_opened(error.into()))?;
            Ok(OpenedKey { public: key.public.clone(), private })
        })
    }

    fn keep_hmac_key(
        &mut self,
        parent: ParentKind,
        handle: u32,
        key: &OpenedKey,
        replaced: Option<&[u8]>,
    ) -> Result<(), TpmError> {
        self.run("loading the HMAC key", |tpm, primaries| {
            let old = Key::persistent(tpm, handle)?;
            if let Some(old) = &old {
                let found = object::encoded(&old.public);
                if found == key.public {
                    return Ok(());
                }
                if Some(found.as_slice()) != replaced {
                    return Err(no_hmac_key(handle, &old.public));
                }
            }
            let parent = key::load_parent(tpm, primaries, parent)?;
            let new = Key::load(tpm, &parent, &key.private, hmac_public(&key.public)?)?;
            parent.release(tpm)?;
            if let Some(old) = old {
                old.evict(tpm, primaries)?;
            }
            new.persist(tpm, primaries, handle)
        })
    }

    fn remove_key(&mut self, handle: u32, public: &[u8]) -> Result<(), TpmError> {
        self.run("removing a key", |tpm, primaries| match Key::persistent(tpm, handle)? {
            Some(found) if object::encoded(&found.public) == public => found.evict(tpm, primaries),
            _ => Ok(()),
        })
    }

    fn properties(&mut self, first: u32) -> Result<Vec<(u32, u32)>, TpmError> {
        self.run("asking the TPM for its properties", |tpm, _| Ok(tpm.properties(first)?))
    }

    fn self_test(&mut self) -> Result<(), TpmError> {
        self.run("testing itself", |tpm, _| Ok(tpm.self_test()?))
    }

    fn hmac(&mut self, handle: u32, data: &[u8]) -> Result<Vec<u8>, TpmError> {
        self.run("computing an HMAC", |tpm, _| {
            tpm.hmac(handle, data).map_err(|error| used(handle, KeyPurpose::Hmac, error))
        })
    }
}

/// Whether an EK has the shape of TCG's default template for its kind. The CA assumes that shape if
/// the device sends only the certificate's NV index.
pub(crate) fn is_of_default_template(kind: EkKind, ek: &PublicArea) -> bool {
    object::decoded(&ek.bytes).is_none_or(|ek| template::fits(&ek, &template::ek(kind)))
}

/// Flushes what an earlier process left in the TPM when it was killed: keys with our templates, and
/// all sessions, because nothing marks them as ours. Without a resource manager a TPM has room for
/// about three of each and serves one user only.
fn flush_leftovers(tpm: &mut Connection<'_>) -> Result<(), CommandError> {
    for handle in tpm.handles(TRANSIENT_FIRST)? {
        if key::read(tpm, handle)?.is_some_and(|public| template::is_ours(&public)) {
            tpm.flush_context(handle)?;
        }
    }
    for handle in tpm.handles(LOADED_SESSION_FIRST)? {
        tpm.flush_context(handle)?;
    }
    Ok(())
}

/// Decodes a public area that was sent. Refuses any other than that of an HMAC key, because nothing
/// else may be imported.
fn hmac_public(bytes: &[u8]) -> Result<TpmtPublic, Fault> {
    let public =
        object::decoded(bytes).filter(|public| template::fits(public, &template::hmac_key()));
    let reason = || "what was sent is not an HMAC key of the agreed form".into();
    public.ok_or_else(|| Fault::NotForThisTpm { reason: reason() })
}

fn no_key(handle: u32) -> Fault {
    CommandError::BadArgument(format!("there is no key at {handle:#010x}")).into()
}

fn no_hmac_key(handle: u32, found: &TpmtPublic) -> Fault {
    let (wanted, found) = ("the HMAC key of this device".into(), template::describe(found));
    Fault::Occupied { handle, wanted, found, key: KeyPurpose::Hmac }
}

/// The first handles of their types (TPM 2.0 Part 2, 7.2).
const TRANSIENT_FIRST: u32 = 0x8000_0000;
const LOADED_SESSION_FIRST: u32 = 0x0200_0000;
