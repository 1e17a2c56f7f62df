//! A device: its TPM, its state directory, and the CA it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_mqtt::BrokerUrl;
use assay_wire::{Bundle, Bytes, CertificateList, ClientId, DeviceId, Limit, Scope, Topic};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{ClientConfig, RootCertStore};

use crate::ek::EndorsementKey;
use crate::error::Error;
use crate::key::IdentityKey;
use crate::provision::{Applicant, Progress, Step};
use crate::state::{self, DeviceRecord, Grant, Memory, StateDirectory};
use crate::tpm::{EkKind, EsapiTpm, HierarchyPasswords, IkKind, PublicKey, Tcti, TpmThread};
use crate::transport;
use crate::verify::{self, AnswerError, DeviceCertificate};

/// Where a device's things are.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// How to reach the TPM.
    pub tcti: Tcti,
    /// The passwords of the TPM's hierarchies; empty ones where none is set.
    pub passwords: HierarchyPasswords,
    /// How long one call to the TPM may take. Real chips take up to half a minute to make an RSA key.
    pub tpm_timeout: Duration,
    /// The state directory; made if it is not there.
    pub state: PathBuf,
    /// The CA's root certificates: what both the broker and the device's own certificate must lead to.
    pub ca_roots: Vec<CertificateDer<'static>>,
}

/// What a device asks for, and where.
#[derive(Clone, Debug)]
pub struct ProvisionRequest {
    /// The bootstrap listener of the broker.
    pub broker: BrokerUrl,
    /// The CA's provisioning domain.
    pub scope: Scope,
    /// The kind of EK to show; `None` takes the first with a certificate.
    pub ek: Option<EkKind>,
    /// The EK certificate and its issuers, leaf first; if empty, those in the TPM's NV memory are used.
    pub ek_certificates: Vec<CertificateDer<'static>>,
    /// The kind of identity key; `None` is the kind used before, or P-256.
    pub ik: Option<IkKind>,
    /// The persistent handle of the identity key; `None` is the handle used before, or [`DEFAULT_IK_HANDLE`].
    pub ik_handle: Option<u32>,
    /// The name to ask for; `None` takes the one that is due to this EK.
    pub device_id: Option<DeviceId>,
    /// Whether to ask the CA even if there is a valid certificate: it may have superseded or lost that one.
    pub again: bool,
    /// How long all of it may take.
    pub deadline: Duration,
}

/// Where the identity key is kept if nobody says otherwise (owner range, TCG Registry of Reserved TPM 2.0 Handles, 2.3.1).
pub const DEFAULT_IK_HANDLE: u32 = 0x8100_0200;

/// A provisioned device, and what it took.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// The certificate in use.
    pub certificate: DeviceCertificate,
    /// Where it is stored.
    pub certificate_path: PathBuf,
    /// The kind of EK it was granted for.
    pub ek: EkKind,
    /// The kind of identity key it is for.
    pub ik: IkKind,
    /// Whether a valid certificate was there already, so that the CA was not asked.
    pub was_provisioned: bool,
    /// Time spent in the TPM.
    pub tpm_time: Duration,
    /// Time spent connecting, and waiting for broker and CA.
    pub wire_time: Duration,
    /// Time spent altogether.
    pub total_time: Duration,
}

/// One device. While it lives, no other process can use its state directory.
pub struct Device {
    tpm: TpmThread,
    state: StateDirectory,
    roots: RootCertStore,
}

impl Device {
    /// Takes the state directory. The TPM is not asked anything yet.
    pub fn open(options: DeviceOptions) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for root in options.ca_roots {
            roots.add(root).map_err(|error| Error::Usage(format!("unusable CA root certificate: {error}")))?;
        }
        let state = StateDirectory::open(&options.state)?;
        let tpm = TpmThread::start(EsapiTpm::new(options.tcti, options.passwords), options.tpm_timeout);
        Ok(Self { tpm, state, roots })
    }

    /// Sees to it that this device has a valid certificate for an identity key in its TPM.
    ///
    /// If it has one already, the CA is not asked, unless the request says so. It may be killed at any moment and called again: the identity key is kept
    /// before anything is sent, and for one key the CA issues one certificate. If the TPM was cleared, a new key is made.
    ///
    /// Until the CA agrees, the certificate that this device has stays in use, with its key. Keys that are no longer used are
    /// not removed from the TPM, for others may use them; the progress says where they are.
    ///
    /// Blocks, and runs an event loop of its own: call it from a thread, not from an async task.
    pub fn provision(&self, request: &ProvisionRequest, progress: Progress<'_>) -> Result<Provisioned, Error> {
        let started = Instant::now();
        let tpm_before = self.tpm.spent();
        let memory = self.state.memory()?;
        let kind = request.ik.or_else(|| Some(memory.record()?.ik)).unwrap_or(IkKind::P256);
        let handle = request.ik_handle.or_else(|| Some(memory.record()?.ik_handle)).unwrap_or(DEFAULT_IK_HANDLE);
        let mut step = Step { started, progress };

        let found = self.tpm.call("looking for the identity key", move |tpm| tpm.identity_key(kind, handle))?;
        if !request.again
            && let (Some(grant), Some(public)) = (&memory.in_use, &found)
            && let Ok(certificate) = self.verify(grant, &request.scope, &public.key)
            && request.device_id.as_ref().is_none_or(|wanted| *wanted == certificate.device_id)
        {
            step.done("provisioned already: the certificate is valid and the TPM holds its key");
            return Ok(Provisioned {
                certificate,
                certificate_path: self.state.certificate_path(),
                ek: grant.record.ek,
                ik: kind,
                was_provisioned: true,
                tpm_time: self.tpm.spent() - tpm_before,
                wire_time: Duration::ZERO,
                total_time: started.elapsed(),
            });
        }

        let ek = EndorsementKey::find(&self.tpm, request.ek, &request.ek_certificates)?;
        step.done(&format!("EK {} {}, id {}", ek.kind, ek.certificate_source, ek.id()));
        let (ik, origin) = match found {
            Some(public) => (public, "found"),
            None => {
                let create =
                    self.tpm.call("creating the identity key", move |tpm| tpm.create_identity_key(kind, handle));
                (create?, "created")
            }
        };
        let key = IdentityKey { tpm: self.tpm.clone(), handle, kind, public: ik.key };
        let record =
            DeviceRecord { scope: request.scope.clone(), ek: ek.kind, ek_id: ek.id(), ik: kind, ik_handle: handle };
        let attempted = Memory { in_use: memory.in_use.clone(), attempt: Some(record.clone()) };
        self.remember(&memory, &attempted, &mut step)?;
        step.done(&format!("identity key {kind} {origin} at {handle:#010x}"));
        let challenge = challenge_request(request.device_id.clone(), &ek, ik.bytes, &key)?;
        step.done("certificate request signed");

        let applicant = Applicant {
            broker: &request.broker,
            tls: Arc::new(self.server_authenticated_tls()?),
            roots: &self.roots,
            scope: &request.scope,
            challenge,
            ek: ek.kind,
            ik: &key,
        };
        let (talk_started, tpm_before_talk) = (Instant::now(), self.tpm.spent());
        let certificate = block_on(applicant.obtain(started, request.deadline, &mut *step.progress))?;
        let wire_time = talk_started.elapsed().saturating_sub(self.tpm.spent() - tpm_before_talk);
        let granted = Memory { in_use: Some(Grant { record, chain: certificate.chain.clone() }), attempt: None };
        self.remember(&attempted, &granted, &mut Step { started: Instant::now(), progress: step.progress })?;
        Ok(Provisioned {
            certificate,
            certificate_path: self.state.certificate_path(),
            ek: ek.kind,
            ik: kind,
            was_provisioned: false,
            tpm_time: self.tpm.spent() - tpm_before,
            wire_time,
            total_time: started.elapsed(),
        })
    }

    /// The stored certificate, verified against the CA's root and the key that the TPM holds now.
    ///
    /// # Errors
    /// [`Error::Usage`] if this device has to be provisioned first.
    pub fn certificate(&self) -> Result<DeviceCertificate, Error> {
        self.identity().map(|(_, certificate)| certificate)
    }

    /// A TLS configuration for MQTT over mutual TLS with the key in the TPM, for rumqttc or whatever else takes rustls.
    ///
    /// Each handshake makes the TPM sign, in the thread that polls the connection; a chip takes up to some hundred
    /// milliseconds for it.
    ///
    /// # Errors
    /// [`Error::Usage`] if this device has to be provisioned first.
    pub fn mqtt_tls_config(&self) -> Result<ClientConfig, Error> {
        let (key, certificate) = self.identity()?;
        key.tls_config(self.roots.clone(), certificate.chain)
    }

    /// Publishes one message, QoS 1, over mutual TLS, on a topic below `device/v1/{scope}/{device id}/`.
    ///
    /// Blocks, and runs an event loop of its own: call it from a thread, not from an async task.
    pub fn publish(&self, broker: &BrokerUrl, sub_topic: &str, message: Vec<u8>) -> Result<String, Error> {
        let (key, certificate) = self.identity()?;
        let topic = Topic::Device(certificate.scope, certificate.device_id.clone(), sub_topic.into());
        if Topic::parse(&topic.to_string()).as_ref() != Some(&topic) {
            return Err(Error::Usage(format!(
                "{sub_topic:?} is no topic to publish to: it is empty or has + or # in it"
            )));
        }
        let tls = Arc::new(key.tls_config(self.roots.clone(), certificate.chain)?);
        let client = ClientId::from(&certificate.device_id);
        block_on(transport::publish(broker, &tls, &topic, &client, message))?;
        Ok(topic.to_string())
    }

    fn identity(&self) -> Result<(IdentityKey, DeviceCertificate), Error> {
        let unprovisioned = || Error::Usage("this device has no certificate yet: run `assay-device provision`".into());
        let grant = self.state.memory()?.in_use.ok_or_else(unprovisioned)?;
        let (kind, handle) = (grant.record.ik, grant.record.ik_handle);
        let found = self.tpm.call("looking for the identity key", move |tpm| tpm.identity_key(kind, handle))?;
        let public = found.ok_or_else(|| {
            Error::Usage(format!(
                "the TPM no longer holds an identity key at {handle:#010x}: it was cleared, or it is another TPM; run \
                 `assay-device provision`"
            ))
        })?;
        let certificate =
            self.verify(&grant, &grant.record.scope, &public.key).map_err(|error| self.unusable(&error))?;
        Ok((IdentityKey { tpm: self.tpm.clone(), handle, kind, public: public.key }, certificate))
    }

    fn unusable(&self, error: &AnswerError) -> Error {
        let reason = format!("{error}; run `assay-device provision`");
        Error::State { path: self.state.certificate_path(), reason }
    }

    fn verify(&self, grant: &Grant, scope: &Scope, key: &PublicKey) -> Result<DeviceCertificate, AnswerError> {
        verify::device_certificate(grant.chain.clone(), &self.roots, key, scope, UnixTime::now())
    }

    fn remember(&self, before: &Memory, now: &Memory, step: &mut Step<'_>) -> Result<(), Error> {
        self.state.store(now)?;
        for handle in before.handles_dropped_by(now) {
            step.done(&format!(
                "the identity key at {handle:#010x} is no longer used; if nobody else uses it: tpm2_evictcontrol -c {handle:#010x}"
            ));
        }
        Ok(())
    }

    fn server_authenticated_tls(&self) -> Result<ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        assay_mqtt::tls_config(provider, self.roots.clone(), None).map_err(|error| Error::Internal(error.to_string()))
    }
}

/// What a state directory says, without TPM and unverified.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the certificate is for; without a certificate, what was last asked for.
    pub keys: KeyStatus,
    /// The certificate file, if there is one, and what is in it.
    pub certificate: Option<(PathBuf, verify::Summary)>,
    /// What was asked for since and the CA has not agreed to. The certificate stays in use.
    pub attempt: Option<KeyStatus>,
}

/// The keys that a certificate is for, or is to be for.
#[derive(Clone, Debug)]
pub struct KeyStatus {
    /// The provisioning domain.
    pub scope: Scope,
    /// The kind of EK shown.
    pub ek: EkKind,
    /// The id under which an operator knows that EK.
    pub ek_id: String,
    /// The kind of the identity key.
    pub ik: IkKind,
    /// Its persistent handle.
    pub ik_handle: u32,
}

impl Status {
    /// Reads a state directory; `None` if nothing was ever asked for with it.
    pub fn read(state: &Path) -> Result<Option<Self>, Error> {
        let Memory { in_use, attempt } = state::memory(state)?;
        let attempt = attempt.map(KeyStatus::from);
        let Some(Grant { record, chain }) = in_use else {
            return Ok(attempt.map(|keys| Self { keys, certificate: None, attempt: None }));
        };
        let path = state::certificate_path(state);
        let leaf = chain.first().map(|leaf| leaf.as_ref()).unwrap_or_default();
        match verify::summary(leaf) {
            Ok(summary) => Ok(Some(Self { keys: record.into(), certificate: Some((path, summary)), attempt })),
            Err(error) => Err(Error::State { path, reason: error.to_string() }),
        }
    }
}

impl From<DeviceRecord> for KeyStatus {
    fn from(record: DeviceRecord) -> Self {
        let DeviceRecord { scope, ek, ek_id, ik, ik_handle } = record;
        Self { scope, ek, ek_id: ek_id.to_string(), ik, ik_handle }
    }
}

fn challenge_request(
    device_id: Option<DeviceId>,
    ek: &EndorsementKey,
    ik_public: Vec<u8>,
    key: &IdentityKey,
) -> Result<Bundle, Error> {
    let too_long = |limit: Limit| Error::Usage(format!("this does not fit into a request: {limit}"));
    let csr = key.certificate_request(device_id.as_ref())?;
    let ek_certificates: Result<Vec<_>, _> = ek.certificates.iter().cloned().map(Bytes::try_from).collect();
    Ok(Bundle {
        device_id,
        ek_public: ek.public.bytes.clone().try_into().map_err(too_long)?,
        ek_certificates: ek_certificates.and_then(CertificateList::try_from).map_err(too_long)?,
        ik_public: ik_public.try_into().map_err(too_long)?,
        csr: csr.try_into().map_err(too_long)?,
    })
}

fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Error::Internal(format!("event loop: {error}")))?.block_on(future)
}
