//! What every flow of one run shares: what was asked for, what is remembered, and the way to the
//! CA.

use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;

use assay_wire::{Bytes, DeviceId, Flow, MAX_SIGNED_CONFIGURATION, Scope};

use crate::certificate::DeviceCertificate;
use crate::desk::Desk;
use crate::ek::ShownEk;
use crate::event::ReceivedConfiguration;
use crate::failure::Failure;
use crate::kinds::{EkChoice, EkKind, IkKind, ParentKind};
use crate::line::Line;
use crate::memory::{KeyPurpose, Memory, Shown};
use crate::step::Step;
use crate::tpm::EkCertificates;

/// What a device asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvisionRequest {
    /// The CA's provisioning domain.
    pub scope: Scope,
    /// The flow; `None` is the flow used before, or [`Flow::Ticket`].
    pub flow: Option<Flow>,
    /// The EK to show; `None` is the kind used before, or [`EkChoice::Auto`].
    pub ek: Option<EkChoice>,
    /// The EK certificate and its issuers; `None` takes those in the TPM's NV memory.
    pub ek_certificates: Option<EkCertificates>,
    /// The kind of identity key; `None` is the kind used before, or P-256.
    pub ik: Option<IkKind>,
    /// The persistent handle of the identity key; `None` is the handle used before, or
    /// [`DEFAULT_IK_HANDLE`].
    pub ik_handle: Option<u32>,
    /// The parent that an HMAC key is sent to; `None` is the one used before, or P-256. Every
    /// request has to name a plain storage root key anew: otherwise the device takes the import
    /// parent whose key is of the same kind.
    pub parent: Option<ParentKind>,
    /// The persistent handle of the HMAC key; `None` is the handle used before, or
    /// [`DEFAULT_HMAC_HANDLE`].
    pub hmac_handle: Option<u32>,
    /// The name to ask for; `None` takes the one that is due to this EK.
    pub device_id: Option<DeviceId>,
    /// Whether to ask the CA even if there is a valid certificate or an HMAC key.
    pub again: bool,
    /// Whether to have the CA renew a valid certificate, or rotate an HMAC key, even if that is not
    /// due by this device's clock. Then the run ends well only if the CA answers.
    pub renew: bool,
    /// Whether to get a certificate for another identity key, in place of the one in use. That one
    /// stays good until the new one is adopted or used.
    pub rekey: bool,
    /// What a broker said to a token of an HMAC key that waits for its first use. The run settles
    /// which of the two keys stays, and asks nobody.
    pub broker_said: Option<Verdict>,
    /// How long the whole run may take.
    pub deadline: Duration,
}

/// What a broker said to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It let the device in.
    Accepted,
    /// It did not take the token.
    Refused,
}

impl ProvisionRequest {
    /// Asks for what the device had before, or for a certificate by the ticket flow, within five
    /// minutes.
    pub fn new(scope: Scope) -> Self {
        Self {
            scope,
            flow: None,
            ek: None,
            ek_certificates: None,
            ik: None,
            ik_handle: None,
            parent: None,
            hmac_handle: None,
            device_id: None,
            again: false,
            renew: false,
            rekey: false,
            broker_said: None,
            deadline: Duration::from_secs(300),
        }
    }

    /// Whether the request can be met by what was granted for an EK of this kind.
    pub(crate) fn takes_ek(&self, granted: EkKind) -> bool {
        !matches!(self.ek, Some(EkChoice::Kind(kind)) if kind != granted)
    }

    /// Whether the request does not say which EK to show.
    pub(crate) fn leaves_the_ek_open(&self) -> bool {
        matches!(self.ek, None | Some(EkChoice::Auto)) && self.ek_certificates.is_none()
    }
}

/// Where the identity key is kept if the request names no handle (owner range, TCG Registry of
/// Reserved TPM 2.0 Handles, 2.3.1).
pub const DEFAULT_IK_HANDLE: u32 = 0x8100_0200;
/// Where the HMAC key is kept if the request names no handle. Azure's SDKs for device provisioning
/// keep theirs there.
pub const DEFAULT_HMAC_HANDLE: u32 = 0x8100_0100;

/// A provisioned device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provisioned {
    /// How the credential was obtained.
    pub flow: Flow,
    /// The provisioning domain.
    pub scope: Scope,
    /// The name under which the device is registered; its MQTT client id.
    pub device_id: DeviceId,
    /// The kind of EK that the credential was granted for.
    pub ek: EkKind,
    /// What the device signs in with.
    pub credential: Credential,
    /// Whether the credential was there already and is good.
    pub was_provisioned: bool,
    /// What became of the renewal, if one was due or asked for and the CA did not refuse it.
    pub renewal: Option<RenewalOutcome>,
}

/// What became of a renewal that was due or asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewalOutcome {
    /// The certificate is a new one.
    Renewed,
    /// The certificate is a new one, for another key. The key before it is forgotten.
    Rekeyed,
    /// The HMAC key is the next one. The one before it stays until a broker accepts this one.
    Rotated,
    /// The CA says that the renewal is not due. The certificate or key is the one that was there.
    NotDue,
    /// The CA was not reached, or its answer could not be used. The device signs in with what it
    /// has, and the next run tries again.
    Postponed,
}

/// What a device signs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A certificate for a key in the TPM.
    Certificate {
        /// The certificate.
        certificate: DeviceCertificate,
        /// The kind of identity key that it is for.
        ik: IkKind,
    },
    /// An HMAC key in the TPM.
    SharedKey {
        /// The parent that it was sent to.
        parent: ParentKind,
        /// Its persistent handle.
        hmac_handle: u32,
    },
}

/// One run, in any flow.
pub(crate) struct Run {
    pub(crate) request: ProvisionRequest,
    pub(crate) line: Line,
    /// What is stored.
    memory: RefCell<Memory>,
    /// A certificate that is still good, although the CA refused to renew it.
    good: RefCell<Option<Provisioned>>,
    /// Whether what this run gets may be superseded soon: see [`renew_soon`](Self::renew_soon).
    is_doubtful: Cell<bool>,
}

impl Run {
    pub(crate) fn new(request: ProvisionRequest, memory: Memory, line: Line) -> Self {
        Self {
            request,
            line,
            memory: RefCell::new(memory),
            good: RefCell::default(),
            is_doubtful: Cell::default(),
        }
    }

    /// Keeps a certificate for the case that the device gets nothing better in this run.
    pub(crate) fn keep(&self, good: Provisioned) {
        self.good.replace(Some(good));
    }

    /// From now on, a certificate that this run gets is renewed by the next run, whatever the CA
    /// advises. If the CA seemed to refuse an adoption, a broker may hold the adoption back and
    /// deliver it later. Then the CA supersedes the certificate that it gave again meanwhile.
    pub(crate) fn renew_soon(&self) {
        self.is_doubtful.set(true);
    }

    /// What was [kept](Self::keep).
    pub(crate) fn kept(&self) -> Option<Provisioned> {
        self.good.take()
    }

    /// What is stored.
    pub(crate) fn memory(&self) -> Memory {
        self.memory.borrow().clone()
    }

    pub(crate) fn desk(&self) -> &Desk {
        &self.line.desk
    }

    /// Stores `next` in place of what was stored, and reports the keys that `next` no longer knows.
    ///
    /// Everything that the device needs to go on after a loss of power is stored before the request
    /// that depends on it is sent.
    pub(crate) async fn remember(&self, next: Memory) {
        self.remember_without(next, None).await;
    }

    /// The same, after the TPM removed a key that `next` no longer knows.
    pub(crate) async fn remember_without(&self, next: Memory, removed: Option<(KeyPurpose, u32)>) {
        let next = if self.is_doubtful.get() { next.due_at_once() } else { next };
        self.desk().store(next.clone()).await;
        let dropped: Vec<_> = self.memory().keys_dropped_by(&next);
        self.memory.replace(next);
        for (key, handle) in dropped.into_iter().filter(|key| Some(*key) != removed) {
            self.desk().progress(Step::Unused { key, handle });
        }
    }

    /// Keeps the document that came with a certificate for this device. Whatever is wrong with it,
    /// the certificate is good.
    pub(crate) async fn keep_configuration(
        &self,
        signed: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
        certificate: &DeviceCertificate,
    ) {
        let Some(signed) = signed else { return };
        let received = ReceivedConfiguration {
            signed: signed.into_vec(),
            scope: certificate.scope.clone(),
            device_id: certificate.device_id.clone(),
            not_after: certificate.validity.1,
        };
        match self.desk().keep_configuration(received).await {
            Ok(Some(revision)) => self.desk().progress(Step::ConfigurationKept(revision)),
            Ok(None) => {}
            Err(reason) => self.desk().progress(Step::ConfigurationRefused(reason)),
        }
    }

    /// Looks for the EK to show: the EK of kind `instead`, if the CA did not take another, else the
    /// EK that the request or an earlier run chose.
    pub(crate) async fn find_ek(
        &self,
        instead: Option<EkKind>,
    ) -> Result<(ShownEk, Shown), Failure> {
        let request = &self.request;
        let given = request.ek_certificates.as_ref();
        let before = self.memory().shown();
        let (wanted, ek_was_named) = match (request.ek, &before) {
            _ if instead.is_some() => (instead, false),
            (Some(EkChoice::Kind(kind)), _) => (Some(kind), true),
            // A certificate in the request says which kind of EK it is for.
            (None, Some(before)) if given.is_none() => (Some(before.ek), before.ek_was_named),
            (Some(EkChoice::Auto) | None, _) => (None, false),
        };
        let mut ek = ShownEk::find(self.desk(), wanted, given).await?;
        let (kind, id) = (ek.kind, ek.key.id);
        self.desk().progress(Step::Ek { kind, source: ek.source, id });
        if request.leaves_the_ek_open() && request.device_id.is_none() && before.is_none() {
            ek.find_others(self.desk()).await;
            if !ek.others.is_empty() {
                self.desk().progress(Step::OtherEks(ek.others.len()));
            }
        }
        if let Some(before) = before
            && before.ek != kind
        {
            self.desk().progress(Step::NotTheEkBefore(before.ek));
        }
        let shown = Shown { scope: request.scope.clone(), ek: kind, ek_was_named, ek_id: id };
        Ok((ek, shown))
    }
}
