//! The flow that gives an HMAC key.

use assay_wire::{ActivationReply, DeviceId, ParentBundle, ReplyBody, RequestBody};

use super::{Failure, Line, Progress, Step};
use crate::error::Error;
use crate::tpm::{EkKind, OpenedKey, ParentKind, TpmError, TpmThread, WrappedKey};
use crate::transport::Bootstrap;
use crate::verify::{self, AnswerError};

/// A device with its case written, about to ask the CA for an HMAC key.
pub(crate) struct Registrant<'a> {
    pub(crate) line: &'a Line<'a>,
    pub(crate) tpm: &'a TpmThread,
    pub(crate) bundle: ParentBundle,
    pub(crate) ek: EkKind,
    pub(crate) parent: ParentKind,
    pub(crate) handle: u32,
    /// The TPMT_PUBLIC of the device's own key at that handle, which the new one takes the place
    /// of.
    pub(crate) replaced: Option<Vec<u8>>,
}

/// The key is in the TPM.
pub(crate) struct Registration {
    pub(crate) device_id: DeviceId,
    /// The key's TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
}

impl Registrant<'_> {
    /// Talks to the CA until it grants a key that the TPM can open, and makes that key persistent.
    ///
    /// `remember` is told the key's TPMT_PUBLIC once the TPM has opened the key, and before the TPM
    /// keeps it: whoever is killed in between must know it again, for the CA may send another key
    /// the next time. A key that a reply only names is not remembered, for it may be somebody
    /// else's.
    pub(crate) async fn obtain(
        &self,
        mut remember: impl FnMut(&[u8]) -> Result<(), Error>,
        progress: Progress<'_>,
    ) -> Result<Registration, Error> {
        self.line
            .insist(progress, async |ca, step| self.register(ca, &mut remember, step).await)
            .await
    }

    async fn register(
        &self,
        ca: &mut Bootstrap,
        remember: &mut impl FnMut(&[u8]) -> Result<(), Error>,
        step: &mut Step<'_>,
    ) -> Result<Registration, Failure> {
        let reply = match ca.ask(RequestBody::Register(self.bundle.clone())).await? {
            ReplyBody::Activation(reply) => reply,
            other => return Err(Failure::out_of_turn("shared key", other)),
        };
        step.done("key received: the CA accepts the EK and the parent");
        let ActivationReply {
            credential_blob,
            encrypted_seed,
            duplicate,
            symmetric_seed,
            key_public,
            device_id,
        } = reply;
        if let Some(wanted) = &self.bundle.device_id {
            verify::device_id(wanted, &device_id)?;
        }
        let key = WrappedKey {
            credential_blob: credential_blob.into_vec(),
            encrypted_seed: encrypted_seed.into_vec(),
            duplicate: duplicate.into_vec(),
            symmetric_seed: symmetric_seed.into_vec(),
            public: key_public.into_vec(),
        };
        let opened = self.open(key)?;
        step.done("HMAC key opened by the TPM");
        let public = opened.public().to_vec();
        remember(&public)?;
        self.keep(opened).map_err(Error::from)?;
        step.done(&format!("HMAC key kept at {:#010x}", self.handle));
        Ok(Registration { device_id, public })
    }

    fn open(&self, key: WrappedKey) -> Result<OpenedKey, Error> {
        let (ek, parent) = (self.ek, self.parent);
        let opened =
            self.tpm.call("opening the HMAC key", move |tpm| tpm.open_hmac_key(ek, parent, &key));
        opened.map_err(|error| match error {
            TpmError::NotForThisTpm { .. } => AnswerError::SharedKey(error).into(),
            error => error.into(),
        })
    }

    fn keep(&self, key: OpenedKey) -> Result<(), TpmError> {
        let (parent, handle, replaced) = (self.parent, self.handle, self.replaced.clone());
        self.tpm.call("loading the HMAC key", move |tpm| {
            tpm.keep_hmac_key(parent, handle, &key, replaced.as_deref())
        })
    }
}
