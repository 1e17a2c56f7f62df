//! What the flows that give a certificate share: the identity key, and the request for it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use assay_wire::{Bundle, CertificateList, EkId, Flow};
use zeroize::Zeroizing;

use crate::answer::AnswerError;
use crate::certificate::DeviceCertificate;
use crate::desk::Desk;
use crate::ek::ShownEk;
use crate::failure::Failure;
use crate::granted::{IdentityKey, der, grant, granted_certificate, provisioned, verify};
use crate::kinds::{EkKind, IkKind};
use crate::line::Ended;
use crate::memory::{CertificateGrant, Confirmation, Grant, IdentityRecord, Memory};
use crate::renew;
use crate::run::{DEFAULT_IK_HANDLE, Provisioned, Run};
use crate::step::Step;
use crate::tpm::{KeyPublic, TpmAnswer, TpmFailureKind, TpmOperation};

/// How far a run has come before it talks to the CA.
pub(crate) enum Ready {
    /// The certificate in use is good.
    Provisioned(Box<Provisioned>),
    /// The keys are made, the request is written, and the memory says so.
    ToAsk(Box<Applicant>),
}

/// A device that is ready to ask the CA for a certificate.
pub(crate) struct Applicant {
    pub(crate) bundle: Bundle,
    pub(crate) ek: EkKind,
    pub(crate) ek_id: EkId,
    pub(crate) ik: KeyPublic,
    pub(crate) record: IdentityRecord,
    /// A sealed certificate that an earlier run verified, and that is still to be confirmed.
    pub(crate) pending: Option<(DeviceCertificate, Confirmation)>,
}

/// Finds or makes the keys, and signs the request, unless the certificate in use is good.
pub(crate) async fn prepare(
    run: &Run,
    flow: Flow,
    instead: Option<EkKind>,
) -> Result<Ready, Failure> {
    let memory = run.memory();
    let before = memory.identity();
    let ik = run.request.ik.or_else(|| Some(before.as_ref()?.ik)).unwrap_or(IkKind::P256);
    let ik_handle = run
        .request
        .ik_handle
        .or_else(|| Some(before.as_ref()?.ik_handle))
        .unwrap_or(DEFAULT_IK_HANDLE);
    let operation = TpmOperation::IdentityKey { kind: ik, handle: ik_handle };
    let found = run.desk().tpm(operation, identity_key).await?;

    let mut pending = None;
    if !run.request.again
        && let Some(found) = &found
        && let Some(granted) = granted_certificate(run, &memory, flow, &found.id).await
    {
        match granted.grant.unconfirmed.clone() {
            None => {
                let key = IdentityKey { kind: ik, handle: ik_handle, id: found.id };
                if let Some(provisioned) = renew::keep_good(run, granted, key).await? {
                    return Ok(Ready::Provisioned(Box::new(provisioned)));
                }
            }
            Some(confirmation) if flow == Flow::Sealed => {
                pending = Some((granted.grant.record.shown.ek, granted.certificate, confirmation));
            }
            // The ticket flow asks the CA, and gets the same certificate.
            Some(_) => {}
        }
    }

    let (ek, shown) = run.find_ek(instead).await?;
    // To the CA, another EK is another device, and this certificate is not for that device.
    let pending = pending
        .filter(|(ek, ..)| *ek == shown.ek)
        .map(|(_, certificate, confirmation)| (certificate, confirmation));
    let is_new = found.is_none();
    let key = match found {
        Some(key) => key,
        None => create_identity_key(run.desk(), ik, ik_handle).await?,
    };
    let record = IdentityRecord { shown, flow, ik, ik_handle };
    run.line.begin_to_connect().await;
    run.remember(run.memory().asking_for(&record)).await;
    run.desk().progress(Step::IdentityKey { kind: ik, handle: ik_handle, is_new });
    let bundle = bundle(run, &ek, &key, &record).await?;
    run.desk().progress(Step::RequestSigned);
    if pending.is_some() {
        run.desk().progress(Step::Unconfirmed);
    }
    Ok(Ready::ToAsk(Box::new(Applicant {
        bundle,
        ek: ek.kind,
        ek_id: ek.key.id,
        ik: key,
        record,
        pending,
    })))
}

pub(crate) async fn create_identity_key(
    desk: &Desk,
    kind: IkKind,
    handle: u32,
) -> Result<KeyPublic, Failure> {
    let operation = TpmOperation::CreateIdentityKey { kind, handle };
    // An answer without a key is no answer to this operation.
    Ok(desk.tpm(operation, |answer| identity_key(answer).flatten()).await?)
}

pub(crate) fn identity_key(answer: TpmAnswer) -> Option<Option<KeyPublic>> {
    match answer {
        TpmAnswer::IdentityKey(key) => Some(key),
        _ => None,
    }
}

pub(crate) async fn bundle(
    run: &Run,
    ek: &ShownEk,
    ik: &KeyPublic,
    record: &IdentityRecord,
) -> Result<Bundle, Failure> {
    let device_id = run.request.device_id.clone();
    let operation = TpmOperation::SignRequest {
        kind: record.ik,
        handle: record.ik_handle,
        device_id: device_id.clone(),
    };
    let csr = run.desk().tpm(operation, |answer| match answer {
        TpmAnswer::CertificateRequest(csr) => Some(csr),
        _ => None,
    });
    Ok(Bundle {
        device_id,
        csr: csr.await?.try_into()?,
        ek_public: ek.public_area()?,
        ek_certificates: ek.certificate_list()?,
        ik_public: ik.public.clone().try_into()?,
        other_eks: ek.other_ids()?,
    })
}

impl Applicant {
    /// Has the TPM open a credential that the CA made for its EK and IK.
    pub(crate) async fn activate(
        &self,
        desk: &Desk,
        blob: Vec<u8>,
        seed: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, Ended> {
        let handle = self.record.ik_handle;
        let operation = TpmOperation::Activate { ek: self.ek, handle, blob, seed };
        let secret = desk.tpm(operation, |answer| match answer {
            TpmAnswer::Secret(secret) => Some(secret),
            _ => None,
        });
        let secret = secret.await.map_err(|failure| match failure.kind {
            TpmFailureKind::Refused => AnswerError::Challenge(failure.reason).into(),
            _ => Failure::Tpm(failure),
        })?;
        desk.progress(Step::CredentialActivated);
        Ok(secret)
    }

    /// Checks that a chain from the CA is a certificate for this device.
    pub(crate) async fn verify(
        &self,
        run: &Run,
        chain: &CertificateList<1>,
        renew_at: Option<u64>,
    ) -> Result<DeviceCertificate, AnswerError> {
        verify(run, der(chain), renew_at, &self.ik.id).await
    }

    /// Remembers the certificate as what is in use.
    pub(crate) async fn finish(self, run: &Run, certificate: DeviceCertificate) -> Provisioned {
        let grant = self.grant(&certificate, None);
        let granted = Memory { in_use: Some(Grant::Certificate(grant)), attempt: None };
        run.remember(granted).await;
        provisioned(&self.record, certificate, false, None)
    }

    pub(crate) fn grant(
        &self,
        certificate: &DeviceCertificate,
        unconfirmed: Option<Confirmation>,
    ) -> CertificateGrant {
        grant(self.record.clone(), certificate, unconfirmed)
    }
}
