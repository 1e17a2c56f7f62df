//! The shared key flow: one round trip. The CA sends an HMAC key that only the TPM can open.

use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

use assay_wire::{ActivationReply, DeviceId, Flow, ParentBundle, ReplyBody, RequestBody};

use crate::answer::AnswerError;
use crate::certificate::check_device_id;
use crate::failure::Failure;
use crate::kinds::{EkKind, ParentKind};
use crate::line::Ended;
use crate::memory::{Attempt, Grant, HmacPublic, HmacRecord, Memory, SharedKeyGrant};
use crate::run::{Credential, DEFAULT_HMAC_HANDLE, ProvisionRequest, Provisioned, Run};
use crate::step::Step;
use crate::tpm::{OpenedKey, TpmAnswer, TpmFailureKind, TpmOperation, WrappedKey};

pub(crate) async fn provision(run: &Run, instead: Option<EkKind>) -> Result<Provisioned, Failure> {
    let memory = run.memory();
    let before = memory.hmac();
    // A plain storage root key is an exception that every request has to name.
    let parent = run.request.parent.or_else(|| Some(before.as_ref()?.parent.import_parent()));
    let parent = parent.unwrap_or(ParentKind::P256);
    let hmac_handle = run
        .request
        .hmac_handle
        .or_else(|| Some(before.as_ref()?.hmac_handle))
        .unwrap_or(DEFAULT_HMAC_HANDLE);
    let operation = TpmOperation::HmacKey { handle: hmac_handle };
    let found = run.desk().tpm(operation, |answer| match answer {
        TpmAnswer::HmacKey(key) => Some(key),
        _ => None,
    });
    // Any other key of this shape belongs to somebody else, e.g. to Azure's SDK.
    let own = found.await?.map(HmacPublic).filter(|found| memory.knows(found));
    if let Some(grant) = good_grant(&run.request, &memory, own.as_ref(), hmac_handle) {
        run.desk().progress(Step::HmacKeyIsThere);
        return Ok(provisioned(&grant.record, grant.device_id.clone(), true));
    }

    let (ek, shown) = run.find_ek(instead).await?;
    let parent_public = run.desk().tpm(TpmOperation::Parent(parent), |answer| match answer {
        TpmAnswer::Parent(public) => Some(public),
        _ => None,
    });
    let parent_public =
        parent_public.await?.ok_or_else(|| Failure::Unsupported(format!("{parent} storage")))?;
    run.line.begin_to_connect().await;
    let keys = own.iter().cloned().collect();
    let record = HmacRecord { shown, parent, hmac_handle, keys };
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
    let (device_id, public) = run.line.insist(async || registrant.register(run).await).await?;
    let record = HmacRecord { keys: vec![HmacPublic(public)], ..registrant.record };
    let grant = SharedKeyGrant { record: record.clone(), device_id: device_id.clone() };
    run.remember(Memory { in_use: Some(Grant::SharedKey(grant)), attempt: None }).await;
    Ok(provisioned(&record, device_id, false))
}

/// The grant in use, if the TPM holds its key and it is what the request asks for.
fn good_grant<'a>(
    request: &ProvisionRequest,
    memory: &'a Memory,
    own: Option<&HmacPublic>,
    hmac_handle: u32,
) -> Option<&'a SharedKeyGrant> {
    match &memory.in_use {
        Some(Grant::SharedKey(grant))
            if !request.again
                && own.is_some_and(|own| grant.record.keys == [own.clone()])
                && grant.record.shown.scope == request.scope
                && request.parent.is_none_or(|wanted| wanted == grant.record.parent)
                && grant.record.hmac_handle == hmac_handle
                && request.takes_ek(grant.record.shown.ek)
                && request.device_id.as_ref().is_none_or(|wanted| *wanted == grant.device_id) =>
        {
            Some(grant)
        }
        _ => None,
    }
}

fn asking_for(memory: &Memory, record: &HmacRecord) -> Memory {
    memory.attempting(Attempt::Hmac(record.clone()))
}

/// A device that is ready to ask the CA for an HMAC key.
struct Registrant {
    bundle: ParentBundle,
    ek: EkKind,
    record: HmacRecord,
    /// The device's own key at the handle. The new key takes its place.
    replaced: Option<Vec<u8>>,
}

impl Registrant {
    /// Asks for a key, and has the TPM open and keep it. Returns the device id under which the CA
    /// registered the key, and the key's TPMT_PUBLIC.
    async fn register(&self, run: &Run) -> Result<(DeviceId, Vec<u8>), Ended> {
        let request = RequestBody::Register(self.bundle.clone());
        let reply = match run.line.ask(request).await? {
            ReplyBody::Activation(reply) => reply,
            other => return Err(Ended::out_of_turn("shared key", other)),
        };
        run.desk().progress(Step::HmacKeyReceived);
        let device_id = reply.device_id.clone();
        if let Some(wanted) = &self.bundle.device_id {
            check_device_id(wanted, &device_id)?;
        }
        let key = self.open(run, wrapped(reply)).await?;
        run.desk().progress(Step::HmacKeyOpened);
        let public = key.public.clone();
        // The device stores the public area before the TPM keeps the key. A run that follows a stop
        // in between must recognise the key, because the CA may send another key the next time. The
        // device stores it only after the TPM opened the key, because a key that a reply only names
        // may be somebody else's.
        let mut record = self.record.clone();
        record.keys.push(HmacPublic(public.clone()));
        run.remember(asking_for(&run.memory(), &record)).await;
        self.keep(run, key).await?;
        run.desk().progress(Step::HmacKeyKept(self.record.hmac_handle));
        Ok((device_id, public))
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

    async fn keep(&self, run: &Run, key: OpenedKey) -> Result<(), Failure> {
        let operation = TpmOperation::KeepHmacKey {
            parent: self.record.parent,
            handle: self.record.hmac_handle,
            key,
            replaced: self.replaced.clone(),
        };
        let kept = run.desk().tpm(operation, |answer| (answer == TpmAnswer::Kept).then_some(()));
        Ok(kept.await?)
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

fn provisioned(record: &HmacRecord, device_id: DeviceId, was_provisioned: bool) -> Provisioned {
    Provisioned {
        flow: Flow::SharedKey,
        scope: record.shown.scope.clone(),
        device_id,
        ek: record.shown.ek,
        credential: Credential::SharedKey {
            parent: record.parent,
            hmac_handle: record.hmac_handle,
        },
        was_provisioned,
        renewal: None,
    }
}
