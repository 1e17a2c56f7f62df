//! The shared key flow: one round trip. The CA sends an HMAC key that only the TPM can open.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use assay_wire::{ActivationReply, DeviceId, Flow, ParentBundle, ReplyBody, RequestBody};

use crate::answer::AnswerError;
use crate::certificate::check_device_id;
use crate::failure::Failure;
use crate::kinds::{EkKind, ParentKind};
use crate::line::{Ended, Line};
use crate::memory::{Attempt, Grant, HmacPublic, HmacRecord, Memory, Rotation, SharedKeyGrant};
use crate::rotate;
use crate::run::{
    Credential, DEFAULT_HMAC_HANDLE, ProvisionRequest, Provisioned, RenewalOutcome, Run,
};
use crate::step::Step;
use crate::tpm::{OpenedKey, TpmAnswer, TpmFailure, TpmFailureKind, TpmOperation, WrappedKey};

pub(crate) async fn provision(run: &Run, instead: Option<EkKind>) -> Result<Provisioned, Failure> {
    if let Some(grant) = good_grant(run).await? {
        return rotate::keep_good(run, grant).await;
    }
    if run.request.again
        && let Some(provisioned) = rotate::begin_again(run).await?
    {
        return Ok(provisioned);
    }
    let memory = run.memory();
    let before = memory.hmac();
    // A plain storage root key is an exception that every request has to name.
    let parent = run.request.parent.or_else(|| Some(before.as_ref()?.parent.import_parent()));
    let parent = parent.unwrap_or(ParentKind::P256);
    let wanted = run.request.hmac_handle;
    let meant = before.filter(|before| wanted.is_none_or(|wanted| wanted == before.first_handle));
    let (hmac_handle, first_handle) = match &meant {
        Some(before) => (before.hmac_handle, before.first_handle),
        None => [wanted.unwrap_or(DEFAULT_HMAC_HANDLE); 2].into(),
    };
    // Any other key of this shape belongs to somebody else, e.g. to Azure's SDK.
    let own = key_at(run, hmac_handle).await?.filter(|found| memory.knows(found));

    let (ek, shown) = run.find_ek(instead).await?;
    let parent_public = parent_public(run, parent).await?;
    run.line.begin_to_connect().await;
    let keys = own.iter().cloned().collect();
    let record = HmacRecord { shown, parent, hmac_handle, first_handle, keys };
    run.remember(asking_for(&memory, &record)).await;
    run.desk().progress(Step::Parent(parent));

    let registrant = Registrant {
        bundle: ParentBundle {
            device_id: run.request.device_id.clone(),
            ek_public: ek.public_area()?,
            ek_certificates: ek.certificate_list()?,
            parent_public: parent_public.try_into()?,
            other_eks: ek.other_ids()?,
        },
        ek: ek.kind,
        replaced: own.map(|HmacPublic(public)| public),
        record,
    };
    let grant = run.line.insist(async || {
        let received = registrant.receive(run, &run.line).await?;
        registrant.keep(run, received).await
    });
    let grant = grant.await?;
    let in_use = Some(Grant::SharedKey(grant.clone()));
    run.remember(Memory { in_use, attempt: None }).await;
    Ok(provisioned(&grant, false, None))
}

/// What the device signs in with, if the TPM holds its key and it is what the request asks for.
async fn good_grant(run: &Run) -> Result<Option<SharedKeyGrant>, Failure> {
    if run.request.again {
        return Ok(None);
    }
    for grant in run.memory().credentials() {
        let Grant::SharedKey(grant) = grant else { continue };
        if suits(&run.request, &grant) && is_held(run, &grant).await? {
            return Ok(Some(grant));
        }
    }
    Ok(None)
}

/// Whether the TPM holds the key.
pub(crate) async fn is_held(run: &Run, grant: &SharedKeyGrant) -> Result<bool, Failure> {
    let found = key_at(run, grant.record.hmac_handle).await?;
    Ok(found.is_some_and(|found| grant.record.keys == [found]))
}

/// Whether it is what the request asks for.
pub(crate) fn suits(request: &ProvisionRequest, grant: &SharedKeyGrant) -> bool {
    let SharedKeyGrant { record, device_id, .. } = grant;
    let handles = [record.hmac_handle, record.first_handle];
    record.shown.scope == request.scope
        && request.parent.is_none_or(|wanted| wanted == record.parent)
        && request.hmac_handle.is_none_or(|wanted| handles.contains(&wanted))
        && request.takes_ek(record.shown.ek)
        && request.device_id.as_ref().is_none_or(|wanted| wanted == device_id)
}

/// The HMAC key at a persistent handle, whoever it belongs to.
pub(crate) async fn key_at(run: &Run, handle: u32) -> Result<Option<HmacPublic>, TpmFailure> {
    let found = run.desk().tpm(TpmOperation::HmacKey { handle }, |answer| match answer {
        TpmAnswer::HmacKey(key) => Some(key),
        _ => None,
    });
    Ok(found.await?.map(HmacPublic))
}

/// The TPMT_PUBLIC of the parent of this kind.
pub(crate) async fn parent_public(run: &Run, parent: ParentKind) -> Result<Vec<u8>, Failure> {
    let public = run.desk().tpm(TpmOperation::Parent(parent), |answer| match answer {
        TpmAnswer::Parent(public) => Some(public),
        _ => None,
    });
    public.await?.ok_or_else(|| Failure::Unsupported(format!("{parent} storage")))
}

pub(crate) fn asking_for(memory: &Memory, record: &HmacRecord) -> Memory {
    memory.attempting(Attempt::Hmac(record.clone()))
}

/// A device that is ready to ask the CA for an HMAC key.
pub(crate) struct Registrant {
    pub(crate) bundle: ParentBundle,
    pub(crate) ek: EkKind,
    pub(crate) record: HmacRecord,
    /// The device's own key at the handle. The new key takes its place.
    pub(crate) replaced: Option<Vec<u8>>,
}

/// A key that has come, and that the TPM opened.
pub(crate) struct Received {
    pub(crate) key: OpenedKey,
    /// The name under which the CA registered it.
    pub(crate) device_id: DeviceId,
    pub(crate) rotation: Rotation,
}

impl Registrant {
    /// Asks for a key, and has the TPM open it.
    pub(crate) async fn receive(&self, run: &Run, line: &Line) -> Result<Received, Ended> {
        let request = RequestBody::Register(self.bundle.clone());
        let reply = match line.ask(request).await? {
            ReplyBody::Activation(reply) => reply,
            other => return Err(Ended::out_of_turn("shared key", other)),
        };
        run.desk().progress(Step::HmacKeyReceived);
        let (device_id, rotate_after) = (reply.device_id.clone(), reply.rotate_after);
        if let Some(wanted) = &self.bundle.device_id {
            check_device_id(wanted, &device_id)?;
        }
        let key = self.open(run, wrapped(reply)).await?;
        run.desk().progress(Step::HmacKeyOpened);
        let rotation = Rotation::advised(rotate_after, run.desk().clock().await);
        Ok(Received { key, device_id, rotation })
    }

    async fn open(&self, run: &Run, key: WrappedKey) -> Result<OpenedKey, Failure> {
        let operation = TpmOperation::OpenHmacKey { ek: self.ek, parent: self.record.parent, key };
        let opened = run.desk().tpm(operation, |answer| match answer {
            TpmAnswer::Opened(key) => Some(key),
            _ => None,
        });
        opened.await.map_err(|failure| match failure.kind {
            TpmFailureKind::NotForThisTpm => AnswerError::SharedKey(failure.reason).into(),
            _ => Failure::Tpm(failure),
        })
    }

    /// Has the TPM keep the key. Returns what the CA granted.
    pub(crate) async fn keep(
        &self,
        run: &Run,
        received: Received,
    ) -> Result<SharedKeyGrant, Ended> {
        let Received { key, device_id, rotation } = received;
        let public = HmacPublic(key.public.clone());
        // The device stores the public area before the TPM keeps the key. A run that follows a stop
        // in between must recognise the key, because the CA may send another key the next time. The
        // device stores it only after the TPM opened the key, because a key that a reply only names
        // may be somebody else's.
        let mut record = self.record.clone();
        record.keys.push(public.clone());
        run.remember(asking_for(&run.memory(), &record)).await;
        let operation = TpmOperation::KeepHmacKey {
            parent: self.record.parent,
            handle: self.record.hmac_handle,
            key,
            replaced: self.replaced.clone(),
        };
        let kept = run.desk().tpm(operation, |answer| (answer == TpmAnswer::Kept).then_some(()));
        kept.await?;
        run.desk().progress(Step::HmacKeyKept(self.record.hmac_handle));
        let record = HmacRecord { keys: vec![public], ..self.record.clone() };
        Ok(SharedKeyGrant { record, device_id, rotation })
    }
}

fn wrapped(reply: ActivationReply) -> WrappedKey {
    WrappedKey {
        credential_blob: reply.credential_blob.into_vec(),
        encrypted_seed: reply.encrypted_seed.into_vec(),
        duplicate: reply.duplicate.into_vec(),
        symmetric_seed: reply.symmetric_seed.into_vec(),
        public: reply.key_public.into_vec(),
    }
}

pub(crate) fn provisioned(
    grant: &SharedKeyGrant,
    was_provisioned: bool,
    renewal: Option<RenewalOutcome>,
) -> Provisioned {
    let SharedKeyGrant { record, device_id, .. } = grant;
    Provisioned {
        flow: Flow::SharedKey,
        scope: record.shown.scope.clone(),
        device_id: device_id.clone(),
        ek: record.shown.ek,
        credential: Credential::SharedKey {
            parent: record.parent,
            hmac_handle: record.hmac_handle,
        },
        was_provisioned,
        renewal,
    }
}
