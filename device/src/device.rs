//! A device: its TPM, its state directory, and the CA it trusts.

mod certificate;
mod shared_key;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_mqtt::BrokerUrl;
use assay_wire::{ClientId, DeviceId, Flow, Limit, Problem, ProblemCode, Scope, Topic};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Runtime;

use crate::broker_certificate;
use crate::clock::Clock;
use crate::ek::{EkChoice, EndorsementKey};
use crate::error::Error;
use crate::key::IdentityKey;
use crate::provision::{Line, Progress, Step};
use crate::state::{Grant, Memory, Shown, StateDirectory};
use crate::token::{DEFAULT_LIFETIME, Token};
use crate::tpm::{EkKind, HierarchyPasswords, IkKind, ParentKind, Tcti, Tpm2, TpmError, TpmThread};
use crate::transport::{self, Traffic};
use crate::verify::DeviceCertificate;

/// Where a device's things are.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// How to reach the TPM.
    pub tcti: Tcti,
    /// The passwords of the TPM's hierarchies; empty ones where none is set.
    pub passwords: HierarchyPasswords,
    /// How long one call to the TPM may take. Real chips take up to half a minute to make an RSA
    /// key.
    pub tpm_timeout: Duration,
    /// The state directory; made if it is not there.
    pub state: PathBuf,
    /// The CA's root certificates: what both the broker and the device's own certificate must lead
    /// to.
    pub ca_roots: Vec<CertificateDer<'static>>,
    /// Whether the device has no clock to go by. Then the time is taken to be no earlier than the
    /// first day of the CA's roots, nor of any certificate that they lead to; an expired one may
    /// pass for a good one.
    pub no_clock: bool,
}

/// What a device asks for, and where.
#[derive(Clone, Debug)]
pub struct ProvisionRequest {
    /// The bootstrap listener of the broker.
    pub broker: BrokerUrl,
    /// The CA's provisioning domain.
    pub scope: Scope,
    /// How to get what; `None` is the flow used before, or [`Flow::Ticket`].
    pub flow: Option<Flow>,
    /// The EK to show; `None` is the kind used before, or [`EkChoice::Auto`].
    pub ek: Option<EkChoice>,
    /// The EK certificate and its issuers, leaf first; if empty, those in the TPM's NV memory are
    /// used.
    pub ek_certificates: Vec<CertificateDer<'static>>,
    /// The kind of identity key; `None` is the kind used before, or P-256.
    pub ik: Option<IkKind>,
    /// The persistent handle of the identity key; `None` is the handle used before, or
    /// [`DEFAULT_IK_HANDLE`].
    pub ik_handle: Option<u32>,
    /// The parent to have an HMAC key sent to; `None` is the one used before, or P-256. A plain
    /// storage root key is taken only if it is asked for: else it is an import parent of that kind
    /// of key.
    pub parent: Option<ParentKind>,
    /// The persistent handle of the HMAC key; `None` is the handle used before, or
    /// [`DEFAULT_HMAC_HANDLE`].
    pub hmac_handle: Option<u32>,
    /// The name to ask for; `None` takes the one that is due to this EK.
    pub device_id: Option<DeviceId>,
    /// Whether to ask the CA even if there is a valid certificate or an HMAC key: it may have
    /// superseded or lost that one.
    pub again: bool,
    /// How long all of it may take.
    pub deadline: Duration,
}

impl ProvisionRequest {
    /// Whether the request goes with what was granted for an EK of this kind.
    fn takes_ek(&self, granted: EkKind) -> bool {
        !matches!(self.ek, Some(EkChoice::Kind(kind)) if kind != granted)
    }

    /// Whether nobody has said which EK it is to be.
    fn leaves_the_ek_open(&self) -> bool {
        matches!(self.ek, None | Some(EkChoice::Auto)) && self.ek_certificates.is_empty()
    }
}

/// Where the identity key is kept if nobody says otherwise (owner range, TCG Registry of Reserved
/// TPM 2.0 Handles, 2.3.1).
pub const DEFAULT_IK_HANDLE: u32 = 0x8100_0200;
/// Where the HMAC key is kept if nobody says otherwise: where Azure's SDKs for device provisioning
/// keep theirs.
pub const DEFAULT_HMAC_HANDLE: u32 = 0x8100_0100;

/// A provisioned device, and what it took.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// How the credential was obtained.
    pub flow: Flow,
    /// The provisioning domain.
    pub scope: Scope,
    /// The name under which the device is registered; its MQTT client id.
    pub device_id: DeviceId,
    /// The kind of EK it was granted for.
    pub ek: EkKind,
    /// What the device signs in with.
    pub credential: Credential,
    /// Whether the credential was there already and is valid, so that the CA was not asked.
    pub was_provisioned: bool,
    /// What it took.
    pub cost: Cost,
}

/// What a device signs in with.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A certificate for a key in the TPM.
    Certificate {
        /// The certificate in use.
        certificate: DeviceCertificate,
        /// Where it is stored.
        path: PathBuf,
        /// The kind of identity key it is for.
        ik: IkKind,
    },
    /// An HMAC key in the TPM.
    SharedKey {
        /// The parent that it was sent to.
        parent: ParentKind,
        /// Where it is.
        hmac_handle: u32,
    },
}

/// What provisioning took, all attempts together.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Time spent in the TPM.
    pub tpm_time: Duration,
    /// Time spent connecting, as far as nothing else was done meanwhile, and waiting for broker and
    /// CA.
    pub wire_time: Duration,
    /// Time spent altogether.
    pub total_time: Duration,
    /// How many requests were sent to the CA.
    pub requests: u32,
    /// The requests' length together, in bytes, as MQTT payloads: without topics, TLS and TCP.
    pub bytes_sent: usize,
    /// The replies' length together, in bytes, likewise.
    pub bytes_received: usize,
}

/// One device. While it lives, no other process can use its state directory.
pub struct Device {
    tpm: TpmThread,
    state: StateDirectory,
    roots: RootCertStore,
    clock: Clock,
}

impl Device {
    /// Takes the state directory. The TPM is not asked anything yet.
    pub fn open(options: DeviceOptions) -> Result<Self, Error> {
        let clock = Clock::new(!options.no_clock, &options.ca_roots);
        let mut roots = RootCertStore::empty();
        for root in options.ca_roots {
            roots
                .add(root)
                .map_err(|error| Error::Usage(format!("unusable CA root certificate: {error}")))?;
        }
        let state = StateDirectory::open(&options.state)?;
        let mut tpm = Tpm2::new(options.tcti, options.passwords);
        // A state that cannot be read is the business of whoever needs it.
        if let Some(shown) = state.memory().ok().and_then(|memory| memory.granted_for()) {
            tpm.expect_ek(shown.ek, *shown.ek_id.as_bytes());
        }
        let tpm = TpmThread::start(tpm, options.tpm_timeout);
        Ok(Self { tpm, state, roots, clock })
    }

    /// Sees to it that this device can sign in: with a valid certificate for an identity key in its
    /// TPM, or with an HMAC key there.
    ///
    /// If it can already, the CA is not asked, unless the request says so. It may be killed at any
    /// moment and called again: what is needed to go on is kept before anything is sent, and for
    /// one key the CA issues one certificate. If the TPM was cleared, a new key is made or asked
    /// for.
    ///
    /// If nobody says which EK to show and no CA has agreed to one, the others are tried in turn
    /// while the CA refuses each for its certificate, its enrolment or its device id.
    ///
    /// Until the CA agrees, what this device has stays in use. Keys that are no longer used are not
    /// removed from the TPM, for others may use them; the progress says where they are. Only a new
    /// HMAC key takes the place of this device's old one at the same handle.
    ///
    /// Blocks, and runs an event loop of its own: call it from a thread, not from an async task.
    pub fn provision(
        &self,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        self.clock.refuse_if_behind()?;
        if let Some(assumption) = self.clock.assumption() {
            progress(&assumption, Duration::ZERO);
        }
        if let Some(copy) = self.state.set_broken_aside()? {
            progress(&copy, Duration::ZERO);
        }
        let outcome = self.provision_with(None, request, progress);
        match outcome {
            Err(Error::Refused { problem })
                if is_about_the_ek(problem.code) && self.may_try_other_eks(request)? =>
            {
                self.provision_with_another_ek(problem, request, progress)
            }
            outcome => outcome,
        }
    }

    /// A device that lost its state, or never had one, may be registered under another EK than the
    /// first with a certificate: the operator may have enrolled any of them. The CA says which it
    /// does not take.
    fn provision_with_another_ek(
        &self,
        refusal: Problem,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        let mut code = refusal.code;
        let refused = self.state.memory()?.attempt.map(|attempt| attempt.record().into_shown().ek);
        for kind in EkKind::CERTIFIED.into_iter().filter(|kind| Some(*kind) != refused) {
            // Without a certificate it is rarely enrolled, and some chips take minutes to make it.
            if kind == EkKind::Rsa3072 && !self.has_ek_certificate(kind)? {
                continue;
            }
            progress(
                &format!("the CA does not take this EK ({code}): trying the one of kind {kind}"),
                Duration::ZERO,
            );
            match self.provision_with(Some(kind), request, progress) {
                Err(Error::Refused { problem }) if is_about_the_ek(problem.code) => {
                    code = problem.code
                }
                Err(Error::Tpm(TpmError::Unsupported(_))) => {}
                outcome => return outcome,
            }
        }
        Err(Error::Refused { problem: refusal })
    }

    fn has_ek_certificate(&self, kind: EkKind) -> Result<bool, TpmError> {
        let certificates =
            self.tpm.call("reading the EK certificate", move |tpm| tpm.ek_certificates(kind))?;
        Ok(!certificates.is_empty())
    }

    /// Whether nobody has said which EK it is to be, nor a CA agreed to one.
    fn may_try_other_eks(&self, request: &ProvisionRequest) -> Result<bool, Error> {
        Ok(request.leaves_the_ek_open() && self.state.memory()?.shown().is_none())
    }

    fn provision_with(
        &self,
        ek: Option<EkKind>,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        let memory = self.state.memory()?;
        match request.flow.or_else(|| memory.flow()).unwrap_or(Flow::Ticket) {
            flow @ (Flow::Ticket | Flow::Sealed) => {
                self.provision_certificate(flow, ek, request, &memory, progress)
            }
            Flow::SharedKey => self.provision_shared_key(ek, request, &memory, progress),
        }
    }

    /// Publishes one message, QoS 1, on a topic below `device/v1/{scope}/{device id}/`: over mutual
    /// TLS with the certificate, or over TLS with a fresh token of the shared key.
    ///
    /// Blocks, and runs an event loop of its own: call it from a thread, not from an async task.
    pub fn publish(
        &self,
        broker: &BrokerUrl,
        sub_topic: &str,
        message: Vec<u8>,
    ) -> Result<String, Error> {
        if !broker.is_tls() {
            return Err(Error::Usage(
                "a device signs in over TLS: the broker's URL must begin with mqtts://".into(),
            ));
        }
        self.clock.refuse_if_behind()?;
        let (scope, device_id, tls, password) = match self.state.memory()?.in_use {
            Some(Grant::SharedKey(grant)) => {
                let Token { device_id, password, .. } = self.token(DEFAULT_LIFETIME)?;
                (
                    grant.record.shown.scope,
                    device_id,
                    self.server_authenticated_tls()?,
                    Some(password),
                )
            }
            _ => {
                let (key, certificate) = self.identity()?;
                let tls = self.mutual_tls(&key, certificate.chain)?;
                (certificate.scope, certificate.device_id, tls, None)
            }
        };
        let topic = Topic::Device(scope, device_id.clone(), sub_topic.into());
        if Topic::parse(&topic.to_string()).as_ref() != Some(&topic) {
            return Err(Error::Usage(format!(
                "{sub_topic:?} is no topic to publish to: it is empty or has + or # in it"
            )));
        }
        let client = ClientId::from(&device_id);
        runtime()?.block_on(transport::publish(
            broker,
            &Arc::new(tls),
            &topic,
            &client,
            password,
            message,
        ))?;
        Ok(topic.to_string())
    }

    /// Looks for the EK `instead` of others that the CA did not take, or that the request or else
    /// an earlier run chose.
    fn endorsement_key(
        &self,
        instead: Option<EkKind>,
        request: &ProvisionRequest,
        memory: &Memory,
        step: &mut Step<'_>,
    ) -> Result<(EndorsementKey, Shown), Error> {
        let before = memory.shown();
        let (wanted, ek_was_named) = match (request.ek, &before) {
            _ if instead.is_some() => (instead, false),
            (Some(EkChoice::Kind(kind)), _) => (Some(kind), true),
            // A certificate that is given says which kind of EK it is for.
            (None, Some(before)) if request.ek_certificates.is_empty() => {
                (Some(before.ek), before.ek_was_named)
            }
            (Some(EkChoice::Auto) | None, _) => (None, false),
        };
        let mut ek = EndorsementKey::find(&self.tpm, wanted, &request.ek_certificates)?;
        step.done(&format!("EK {} {}, id {}", ek.kind, ek.certificate_source, ek.id()));
        if request.leaves_the_ek_open() && request.device_id.is_none() && before.is_none() {
            ek.name_others(&self.tpm);
            if !ek.others.is_empty() {
                step.done(&format!(
                    "{} other EKs of this TPM found, for the CA to say whether it knows one",
                    ek.others.len()
                ));
            }
        }
        if let Some(before) = before
            && before.ek != ek.kind
        {
            step.done(&format!(
                "this is another EK than the one of kind {} shown before: to the CA it is another \
                 device",
                before.ek
            ));
        }
        let shown =
            Shown { scope: request.scope.clone(), ek: ek.kind, ek_was_named, ek_id: ek.id() };
        Ok((ek, shown))
    }

    fn line<'a>(&self, request: &'a ProvisionRequest, started: Instant) -> Result<Line<'a>, Error> {
        Ok(Line {
            broker: &request.broker,
            tls: Arc::new(self.server_authenticated_tls()?),
            scope: &request.scope,
            started,
            deadline: request.deadline,
            runtime: runtime()?,
            first: Cell::default(),
            waited: Cell::default(),
            traffic: Cell::default(),
        })
    }

    fn remember(&self, before: &Memory, now: &Memory, step: &mut Step<'_>) -> Result<(), Error> {
        self.state.store(now)?;
        for (what, handle) in before.keys_dropped_by(now) {
            step.done(&format!(
                "the {what} at {handle:#010x} is no longer used; if nobody else uses it: \
                 tpm2_evictcontrol -c {handle:#010x}"
            ));
        }
        Ok(())
    }

    fn server_authenticated_tls(&self) -> Result<ClientConfig, Error> {
        broker_certificate::server_authenticated_tls(self.roots.clone(), self.clock.clone())
    }

    fn mutual_tls(
        &self,
        key: &IdentityKey,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<ClientConfig, Error> {
        let mut config = key.tls_config(self.roots.clone(), chain)?;
        broker_certificate::judge_by(&mut config, self.roots.clone(), self.clock.clone())?;
        Ok(config)
    }
}

/// Measures what provisioning takes.
struct Meter<'a> {
    tpm: &'a TpmThread,
    started: Instant,
    tpm_before: Duration,
    wire_time: Duration,
    traffic: Traffic,
}

impl<'a> Meter<'a> {
    fn start(tpm: &'a TpmThread) -> Self {
        let tpm_before = tpm.spent();
        Self {
            tpm,
            started: Instant::now(),
            tpm_before,
            wire_time: Duration::ZERO,
            traffic: Traffic::default(),
        }
    }

    /// Waits for a conversation on `line`.
    fn talk<T>(
        &mut self,
        line: &Line<'_>,
        conversation: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let (started, tpm_before) = (Instant::now(), self.tpm.spent());
        let outcome = line.runtime.block_on(conversation);
        self.wire_time +=
            line.waited.take() + started.elapsed().saturating_sub(self.tpm.spent() - tpm_before);
        self.traffic = line.traffic.get();
        outcome
    }

    fn cost(&self) -> Cost {
        let Traffic { requests, bytes_sent, bytes_received } = self.traffic;
        Cost {
            tpm_time: self.tpm.spent() - self.tpm_before,
            wire_time: self.wire_time,
            total_time: self.started.elapsed(),
            requests,
            bytes_sent,
            bytes_received,
        }
    }
}

/// Whether another EK of the same TPM may be what the CA wants.
fn is_about_the_ek(code: ProblemCode) -> bool {
    matches!(
        code,
        ProblemCode::EkNotEnrolled
            | ProblemCode::EkCertificateUntrusted
            | ProblemCode::EkCertificateInvalid
            | ProblemCode::EkCertificateExpired
            | ProblemCode::EkCertificateMismatch
            | ProblemCode::OtherEkOnRecord
            | ProblemCode::DeviceIdNotEnrolled
            | ProblemCode::DeviceIdTaken
            | ProblemCode::EkRegistered
    )
}

fn too_long(limit: Limit) -> Error {
    Error::Usage(format!("this does not fit into a request: {limit}"))
}

pub(crate) fn runtime() -> Result<Runtime, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Internal(format!("event loop: {error}")))
}
