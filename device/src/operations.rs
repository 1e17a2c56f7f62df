//! What the core asks of a TPM, done by a [`TpmThread`].

use crate::ek_certificate;
use crate::error::Error;
use crate::key::IdentityKey;
use crate::tpm::{IkKind, PublicArea, Tpm, TpmError, TpmThread, is_of_default_template};
use assay_device_core::{
    EkCertificates, EkKind, EndorsementKey, KeyPublic, TpmAnswer, TpmFailure, TpmFailureKind,
    TpmOperation,
};

/// Does the TPM operations of one run.
pub(crate) struct Operations {
    tpm: TpmThread,
    /// The identity key that was found or made last.
    identity: Option<PublicArea>,
    /// The EKs that were made.
    eks: Vec<(EkKind, PublicArea)>,
    /// The handle and the private part of an identity key that was created.
    created: Option<(u32, Vec<u8>)>,
    /// Why the last operation failed. The core knows only the kind of failure.
    error: Option<Error>,
}

impl Operations {
    pub(crate) fn new(tpm: &TpmThread) -> Self {
        Self { tpm: tpm.clone(), identity: None, eks: Vec::new(), created: None, error: None }
    }

    pub(crate) fn run(&mut self, operation: TpmOperation) -> Result<TpmAnswer, TpmFailure> {
        self.answer(operation).map_err(|error| {
            let kind = match &error {
                Error::Tpm(error) => error.kind(),
                _ => TpmFailureKind::Other,
            };
            let reason = error.to_string();
            self.error = Some(error);
            TpmFailure { kind, reason }
        })
    }

    /// The handle and the private part of the identity key that the last operation created.
    pub(crate) fn take_created(&mut self) -> Option<(u32, Vec<u8>)> {
        self.created.take()
    }

    /// Why the last operation failed, in full.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// The public area of an EK that was made.
    pub(crate) fn ek(&self, kind: EkKind) -> Option<&PublicArea> {
        self.eks.iter().find(|(found, _)| *found == kind).map(|(_, public)| public)
    }

    fn answer(&mut self, operation: TpmOperation) -> Result<TpmAnswer, Error> {
        let tpm = &self.tpm;
        Ok(match operation {
            TpmOperation::EkCertificates(kind) => {
                TpmAnswer::EkCertificates(ek_certificates(tpm, kind)?)
            }
            TpmOperation::EndorsementKey(kind) => {
                let public = tpm.call("making the EK", move |tpm| tpm.endorsement_key(kind))?;
                TpmAnswer::EndorsementKey(public.map(|public| self.keep_ek(kind, public)))
            }
            TpmOperation::IdentityKey { kind, handle } => {
                let found = tpm.call("looking for the identity key", move |tpm| {
                    tpm.identity_key(kind, handle)
                })?;
                TpmAnswer::IdentityKey(found.map(|public| self.keep_identity(public)))
            }
            TpmOperation::CreateIdentityKey { kind, handle } => {
                let (public, private) = tpm.call("creating the identity key", move |tpm| {
                    let public = tpm.create_identity_key(kind, handle)?;
                    Ok((public, tpm.private_of_created(handle)))
                })?;
                self.created = private.map(|private| (handle, private));
                TpmAnswer::IdentityKey(Some(self.keep_identity(public)))
            }
            TpmOperation::FreeHandle { first } => TpmAnswer::FreeHandle(
                tpm.call("looking for a free handle", move |tpm| free_handle(tpm, first))?,
            ),
            TpmOperation::RemoveKey { handle, public } => {
                tpm.call("removing a key", move |tpm| tpm.remove_key(handle, &public))?;
                TpmAnswer::Removed
            }
            TpmOperation::SignRequest { kind, handle, device_id } => {
                let key = self.identity(kind, handle)?;
                TpmAnswer::CertificateRequest(key.certificate_request(device_id.as_ref())?)
            }
            TpmOperation::Sign { kind, handle, message } => {
                TpmAnswer::Signature(self.identity(kind, handle)?.sign_statement(&message)?)
            }
            TpmOperation::Activate { ek, handle, blob, seed } => {
                TpmAnswer::Secret(tpm.call("activating the credential", move |tpm| {
                    tpm.activate(ek, handle, &blob, &seed)
                })?)
            }
            TpmOperation::Parent(kind) => {
                let parent = tpm.call("making the parent", move |tpm| tpm.parent(kind))?;
                TpmAnswer::Parent(parent.map(|public| public.bytes))
            }
            TpmOperation::HmacKey { handle } => TpmAnswer::HmacKey(
                tpm.call("looking for the HMAC key", move |tpm| tpm.hmac_key(handle))?,
            ),
            TpmOperation::OpenHmacKey { ek, parent, key } => TpmAnswer::Opened(
                tpm.call("opening the HMAC key", move |tpm| tpm.open_hmac_key(ek, parent, &key))?,
            ),
            TpmOperation::KeepHmacKey { parent, handle, key, replaced } => {
                tpm.call("loading the HMAC key", move |tpm| {
                    tpm.keep_hmac_key(parent, handle, &key, replaced.as_deref())
                })?;
                TpmAnswer::Kept
            }
        })
    }

    fn keep_ek(&mut self, kind: EkKind, public: PublicArea) -> EndorsementKey {
        let key = EndorsementKey {
            public: public.bytes.clone(),
            id: public.key.id().into(),
            is_of_default_template: is_of_default_template(kind, &public),
        };
        self.eks.retain(|(found, _)| *found != kind);
        self.eks.push((kind, public));
        key
    }

    fn keep_identity(&mut self, public: PublicArea) -> KeyPublic {
        let key = KeyPublic { public: public.bytes.clone(), id: public.key.id() };
        self.identity = Some(public);
        key
    }

    fn identity(&self, kind: IkKind, handle: u32) -> Result<IdentityKey, Error> {
        let Some(PublicArea { key: public, .. }) = self.identity.clone() else {
            return Err(Error::Internal("a signature without an identity key".into()));
        };
        Ok(IdentityKey { tpm: self.tpm.clone(), handle, kind, public })
    }
}

fn ek_certificates(tpm: &TpmThread, kind: EkKind) -> Result<EkCertificates, TpmError> {
    let chain = tpm.call("reading the EK certificate", move |tpm| tpm.ek_certificates(kind))?;
    Ok(ek_certificate::read(chain))
}

/// A persistent handle where nothing is, whatever may be at others.
///
/// # Errors
/// [`TpmError::Other`] if none of the handles that this device may take is free.
fn free_handle(tpm: &mut dyn Tpm, first: u32) -> Result<u32, TpmError> {
    for handle in first..first + OWN_HANDLES {
        match tpm.identity_key(IkKind::P256, handle) {
            Ok(None) => return Ok(handle),
            Ok(Some(_)) | Err(TpmError::HandleOccupied { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let last = first + OWN_HANDLES - 1;
    Err(TpmError::Other {
        operation: "looking for a free handle",
        reason: format!("every persistent handle from {first:#010x} to {last:#010x} is taken"),
    })
}

/// How many persistent handles a device tries. A TPM has room for some seven keys.
const OWN_HANDLES: u32 = 8;
