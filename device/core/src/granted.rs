//! A certificate that the CA granted: whether it is good for this device, and what the device keeps
//! of it.

use alloc::vec::Vec;

use assay_wire::{CertificateList, Flow};
use rustls_pki_types::CertificateDer;

use crate::answer::AnswerError;
use crate::certificate::{DeviceCertificate, check_device_id};
use crate::event::Pinning;
use crate::kinds::IkKind;
use crate::memory::{Attempt, CertificateGrant, Confirmation, Grant, IdentityRecord, Memory};
use crate::run::{Credential, Provisioned, RenewalOutcome, Run};
use crate::step::Step;

/// A stored certificate that is good.
pub(crate) struct Granted {
    pub(crate) grant: CertificateGrant,
    pub(crate) certificate: DeviceCertificate,
    /// Whether it is a renewed one that is not adopted.
    pub(crate) is_renewed: bool,
}

/// Where the TPM keeps the identity key, and which key it is.
#[derive(Clone, Copy)]
pub(crate) struct IdentityKey {
    pub(crate) kind: IkKind,
    pub(crate) handle: u32,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub(crate) id: [u8; 32],
}

/// The stored certificate, if it is what the request asks for and good for the key that is in the
/// TPM. A renewed certificate comes first, and in the sealed flow one that waits for its
/// confirmation.
pub(crate) async fn granted_certificate(
    run: &Run,
    memory: &Memory,
    flow: Flow,
    key_id: &[u8; 32],
) -> Option<Granted> {
    let waiting = match &memory.attempt {
        Some(Attempt::Unconfirmed(grant)) if flow == Flow::Sealed => Some((grant, false)),
        Some(Attempt::Renewed(grant)) => Some((grant, true)),
        _ => None,
    };
    let in_use = match &memory.in_use {
        Some(Grant::Certificate(grant)) => Some((grant, false)),
        _ => None,
    };
    for (grant, is_renewed) in waiting.into_iter().chain(in_use) {
        let verified = verify(run, grant.chain.clone(), grant.renew_at, key_id).await;
        let Ok(certificate) = verified else { continue };
        if run.request.takes_ek(grant.record.shown.ek) {
            return Some(Granted { grant: grant.clone(), certificate, is_renewed });
        }
    }
    None
}

pub(crate) fn grant(
    record: IdentityRecord,
    certificate: &DeviceCertificate,
    unconfirmed: Option<Confirmation>,
) -> CertificateGrant {
    let DeviceCertificate { chain, advice, .. } = certificate.clone();
    CertificateGrant { record, chain, renew_at: advice, unconfirmed }
}

/// The certificates of a reply.
pub(crate) fn der(chain: &CertificateList<1>) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|certificate| certificate.to_vec().into()).collect()
}

/// Checks a chain: its path to a pinned root, and that it is for this key, for this scope, and for
/// the device that the request names.
pub(crate) async fn verify(
    run: &Run,
    chain: Vec<CertificateDer<'static>>,
    renew_at: Option<u64>,
    key_id: &[u8; 32],
) -> Result<DeviceCertificate, AnswerError> {
    let path = run.desk().verify_path(chain.clone()).await?;
    let certificate = DeviceCertificate::check(chain, path, renew_at, key_id, &run.request.scope)?;
    if let Some(wanted) = &run.request.device_id {
        check_device_id(wanted, &certificate.device_id)?;
    }
    Ok(certificate)
}

/// Has the root pinned that came with a certificate. The certificate does not depend on it: if the
/// root is refused, the device goes on with those that it has.
pub(crate) async fn pin(run: &Run, new_root: Option<assay_wire::CertificateDer>) {
    let Some(root) = new_root else { return };
    match run.desk().pin(root.into_vec().into()).await {
        Pinning::New(name) => run.desk().progress(Step::RootPinned(name)),
        Pinning::Known => {}
        Pinning::Refused(reason) => run.desk().progress(Step::RootRefused(reason)),
    }
}

pub(crate) fn provisioned(
    record: &IdentityRecord,
    certificate: DeviceCertificate,
    was_provisioned: bool,
    renewal: Option<RenewalOutcome>,
) -> Provisioned {
    Provisioned {
        flow: record.flow,
        scope: certificate.scope.clone(),
        device_id: certificate.device_id.clone(),
        ek: record.shown.ek,
        credential: Credential::Certificate { certificate, ik: record.ik },
        was_provisioned,
        renewal,
    }
}
