//! A device: its TPM, its state directory, and the CA it trusts.

mod sign_in;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use assay_device_core::{
    self as core, Attempt, DeviceCertificate, EkChoice, Grant, HmacPublic, Machine, Memory,
    RenewalOutcome, Verdict,
};
use assay_mqtt::BrokerUrl;
use assay_wire::{DeviceId, Flow, Scope};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

use crate::agent::{Agent, Cost};
use crate::broker_certificate::server_authenticated_tls;
use crate::clock::Clock;
use crate::ek_certificate;
use crate::error::Error;
use crate::link::Broker;
use crate::operational_line::OperationalLine;
use crate::progress::Progress;
use crate::roots;
use crate::state::StateDirectory;
use crate::tpm::{EkKind, HierarchyPasswords, IkKind, ParentKind, Tcti, Tpm, Tpm2, TpmThread};

/// Where the TPM and the state of a device are, and whom it trusts.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// How to reach the TPM.
    pub tcti: Tcti,
    /// The passwords of the TPM's hierarchies; empty if none is set.
    pub passwords: HierarchyPasswords,
    /// How long one call to the TPM may take. Real chips take up to half a minute to make an RSA
    /// key.
    pub tpm_timeout: Duration,
    /// The state directory; made if it is not there.
    pub state: PathBuf,
    /// The CA's root certificates. The broker's certificate and the device's own one must lead to
    /// one of them, or to a new root that one of them certified and the CA sent.
    pub ca_roots: Vec<CertificateDer<'static>>,
    /// Whether the device has no clock. Then it takes the time to be no earlier than the first day
    /// of the CA's roots, and of any certificate that they lead to. It may accept an expired
    /// certificate.
    pub no_clock: bool,
}

/// What a device asks for, and where.
#[derive(Clone, Debug)]
pub struct ProvisionRequest {
    /// The bootstrap listener of the broker.
    pub broker: BrokerUrl,
    /// The CA's provisioning domain.
    pub scope: Scope,
    /// Which flow to use; `None` is the flow used before, or [`Flow::Ticket`].
    pub flow: Option<Flow>,
    /// The EK to show; `None` is the kind used before, or [`EkChoice::Auto`].
    pub ek: Option<EkChoice>,
    /// The EK certificate and its issuers, leaf first; if empty, those in the TPM's NV memory are
    /// used.
    pub ek_certificates: Vec<CertificateDer<'static>>,
    /// The kind of identity key; `None` is the kind used before, or P-256.
    pub ik: Option<IkKind>,
    /// The persistent handle of the identity key; `None` is the handle used before, or
    /// [`DEFAULT_IK_HANDLE`](crate::DEFAULT_IK_HANDLE).
    pub ik_handle: Option<u32>,
    /// The parent that an HMAC key is sent to; `None` is the one used before, or P-256. Every
    /// request has to name a plain storage root key anew: otherwise the device takes the import
    /// parent whose key is of the same kind.
    pub parent: Option<ParentKind>,
    /// The persistent handle of the HMAC key; `None` is the handle used before, or
    /// [`DEFAULT_HMAC_HANDLE`](crate::DEFAULT_HMAC_HANDLE).
    pub hmac_handle: Option<u32>,
    /// The name to ask for; `None` takes the one that is due to this EK.
    pub device_id: Option<DeviceId>,
    /// Whether to ask the CA even if there is a valid certificate or an HMAC key. The CA may have
    /// superseded or lost that one.
    pub again: bool,
    /// How long the whole run may take.
    pub deadline: Duration,
}

impl ProvisionRequest {
    fn to_core(&self) -> core::ProvisionRequest {
        let given = self.ek_certificates.iter().map(|certificate| certificate.to_vec()).collect();
        core::ProvisionRequest {
            flow: self.flow,
            ek: self.ek,
            ek_certificates: (!self.ek_certificates.is_empty())
                .then(|| ek_certificate::read(given)),
            ik: self.ik,
            ik_handle: self.ik_handle,
            parent: self.parent,
            hmac_handle: self.hmac_handle,
            device_id: self.device_id.clone(),
            again: self.again,
            deadline: self.deadline,
            ..core::ProvisionRequest::new(self.scope.clone())
        }
    }
}

/// A provisioned device, and what the run took.
#[derive(Clone, Debug)]
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
    /// Whether the credential was there already and is valid.
    pub was_provisioned: bool,
    /// What became of the renewal, if one was due or asked for and the CA did not refuse it.
    pub renewal: Option<RenewalOutcome>,
    /// What the run took.
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
        /// Its persistent handle.
        hmac_handle: u32,
    },
}

/// One device. While this value lives, no other process can use its state directory.
pub struct Device {
    tpm: TpmThread,
    state: StateDirectory,
    /// Those that the device was given.
    roots: Vec<CertificateDer<'static>>,
    clock: Clock,
}

impl Device {
    /// Takes the state directory. Sends nothing to the TPM yet.
    pub fn open(options: DeviceOptions) -> Result<Self, Error> {
        let tpm = Tpm2::new(options.tcti.clone(), options.passwords.clone());
        Self::with_tpm(tpm, options)
    }

    /// Like [`open`](Self::open), with a TPM of the caller's own: `tcti` and `passwords` of the
    /// options are not used.
    pub fn with_tpm(
        mut tpm: impl Tpm + Send + 'static,
        options: DeviceOptions,
    ) -> Result<Self, Error> {
        let clock = Clock::new(!options.no_clock, &options.ca_roots);
        let (roots, state) = (options.ca_roots, StateDirectory::open(&options.state)?);
        // Says at once if one cannot be used.
        _ = roots::trusted(&roots, state.path())?;
        // If the state cannot be read, the function that needs it reports that.
        if let Some(shown) = state.memory().ok().and_then(|memory| memory.granted_for()) {
            tpm.expect_ek(shown.ek, *shown.ek_id.as_bytes());
        }
        let tpm = TpmThread::start(tpm, options.tpm_timeout);
        Ok(Self { tpm, state, roots, clock })
    }

    /// Makes this device able to sign in: with a valid certificate for an identity key in its TPM,
    /// or with an HMAC key there.
    ///
    /// If the device can sign in already, it does not ask the CA, unless the request says so, or
    /// the certificate or the HMAC key is due. Then the CA gives another certificate for the same
    /// key, or another HMAC key. If it cannot be asked, the device signs in with what it has, and
    /// the next call tries again. If the CA refuses to renew, the device proves its TPM anew. The
    /// process may be killed at any moment, and the next call goes on: everything that it needs is
    /// stored before anything is sent, and the CA issues one certificate for one key. If somebody
    /// cleared the TPM, the device makes a new key or asks for one.
    ///
    /// After a broker refused the credential, the device asks the CA, and fails if that is not
    /// reached: see [`login_was_refused`](Self::login_was_refused).
    ///
    /// If the request names no EK and no CA has agreed to one, the device tries the other EKs in
    /// turn, as long as the CA refuses each because of its certificate, its enrolment or its device
    /// id.
    ///
    /// Until the CA agrees, what this device has stays in use. Keys that are no longer used stay in
    /// the TPM, because others may use them; the progress says where they are. Only an HMAC key
    /// goes once another one has taken its place.
    ///
    /// Blocks, and runs an event loop of its own: call it from a thread, not from an async task.
    pub fn provision(
        &self,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        self.judge_clock(progress)?;
        if let Some(copy) = self.state.set_broken_aside()? {
            progress(&copy, Duration::ZERO);
        }
        if !self.state.was_refused() {
            return self.run_to_the_end(request.to_core(), None, request, progress);
        }
        if self.key_to_prove()?.is_some() {
            // The key before it may be good.
            let provisioned = self.settle(Verdict::Refused, request, progress)?;
            self.state.set_refused(false)?;
            return Ok(provisioned);
        }
        progress("a broker refused the credential in use: asking the CA", Duration::ZERO);
        let has_key = matches!(self.state.memory()?.in_use, Some(Grant::SharedKey(_)));
        let to_core = core::ProvisionRequest { renew: !has_key, ..request.to_core() };
        let to_core = core::ProvisionRequest { again: has_key || request.again, ..to_core };
        let provisioned = self.run_to_the_end(to_core, None, request, progress)?;
        self.state.set_refused(false)?;
        Ok(provisioned)
    }

    /// Has the CA renew the certificate, if the CA agrees that this is due. This device's clock is
    /// not asked. Except for that, this is [`provision`](Self::provision): a certificate that the
    /// CA does not renew, because it has expired or for another reason, is replaced in the flow of
    /// the request.
    ///
    /// Unlike `provision`, it fails if the CA is not reached.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has nothing to renew, [`Error::NoCertificate`] if
    /// it has a shared key instead, and all errors of `provision`.
    pub fn renew(
        &self,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        self.renew_over(None, request, progress)
    }

    /// The same, over the operational connection that is there. If the CA does not answer there, it
    /// is asked at the bootstrap listener.
    pub(crate) fn renew_over(
        &self,
        operational: Option<OperationalLine>,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        self.refuse_without_certificate("there is no certificate to renew")?;
        self.judge_clock(progress)?;
        let to_renew = core::ProvisionRequest { renew: true, ..request.to_core() };
        self.run_to_the_end(to_renew, operational, request, progress)
    }

    /// Has the TPM make another identity key, of the kind that the request names or of the kind in
    /// use, and gets a certificate for it by the ticket flow. The certificate in use stays good
    /// until the new one is adopted, or used to connect; then its key is removed from the TPM. The
    /// request's handle and flow are not used: the new key gets a free handle.
    ///
    /// The process may be killed at any moment: the device can sign in with one of the two, and the
    /// next [`provision`](Self::provision) finishes what was begun. It fails if the CA is not
    /// reached, or refuses: then what is in use stays.
    ///
    /// # Errors
    /// [`Error::NotProvisioned`] if this device has no certificate, [`Error::NoCertificate`] if it
    /// has a shared key instead, and all errors of `provision`.
    pub fn rekey(
        &self,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        self.refuse_without_certificate("there is no certificate to replace")?;
        self.judge_clock(progress)?;
        let to_rekey = core::ProvisionRequest { rekey: true, ..request.to_core() };
        self.run_to_the_end(to_rekey, None, request, progress)
    }

    /// Has the CA rotate the HMAC key. This device's clock is not asked. The next key is kept
    /// beside the one in use, which stays until it is [settled](Self::settle) that a broker takes
    /// the next one.
    pub(crate) fn rotate(
        &self,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        self.judge_clock(progress)?;
        let to_rotate = core::ProvisionRequest { renew: true, ..request.to_core() };
        self.run_to_the_end(to_rotate, None, request, progress)
    }

    /// Settles which of two HMAC keys stays, by what a broker said to a token of the newer one. If
    /// there are no two keys, this is [`provision`](Self::provision).
    pub(crate) fn settle(
        &self,
        verdict: Verdict,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        let broker_said = Some(verdict);
        let to_settle = core::ProvisionRequest { broker_said, ..request.to_core() };
        self.run_to_the_end(to_settle, None, request, progress)
    }

    /// The HMAC key that is to take the place of the one in use, if no broker is known to take it.
    pub(crate) fn key_to_prove(&self) -> Result<Option<HmacPublic>, Error> {
        Ok(match self.state.memory()?.attempt {
            Some(Attempt::Rotated(grant)) => grant.record.keys.into_iter().next(),
            _ => None,
        })
    }

    fn refuse_without_certificate(&self, text: &str) -> Result<(), Error> {
        match self.state.memory()?.credentials().next() {
            Some(Grant::Certificate(_)) => Ok(()),
            Some(Grant::SharedKey(_)) => Err(Error::NoCertificate),
            None => Err(Error::NotProvisioned(text.into())),
        }
    }

    pub(crate) fn clock(&self) -> Clock {
        self.clock.clone()
    }

    pub(crate) fn tpm(&self) -> &TpmThread {
        &self.tpm
    }

    pub(crate) fn memory(&self) -> Result<Memory, Error> {
        self.state.memory()
    }

    pub(crate) fn state_path(&self) -> &Path {
        self.state.path()
    }

    /// What the device expects of a broker that asks for no certificate.
    pub(crate) fn bootstrap_tls(&self) -> Result<Arc<ClientConfig>, Error> {
        server_authenticated_tls(self.trusted_roots()?, self.clock.clone()).map(Arc::new)
    }

    /// The roots that the device was given, and those that they certified since.
    pub(crate) fn trusted_roots(&self) -> Result<RootCertStore, Error> {
        roots::trusted(&self.roots, self.state.path())
    }

    /// The names of the new roots that are pinned besides those that the device was given.
    pub(crate) fn pinned_roots(&self) -> Result<Vec<String>, Error> {
        let pinned = roots::pinned(&self.roots, self.state.path())?;
        Ok(pinned.iter().map(|root| roots::name_of(root)).collect())
    }

    fn judge_clock(&self, progress: Progress<'_>) -> Result<(), Error> {
        self.clock.refuse_if_behind()?;
        if let Some(assumption) = self.clock.assumption() {
            progress(&assumption, Duration::ZERO);
        }
        Ok(())
    }

    fn run_to_the_end(
        &self,
        to_core: core::ProvisionRequest,
        operational: Option<OperationalLine>,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<Provisioned, Error> {
        let machine = core::provision(to_core, self.state.memory()?, Duration::ZERO);
        let (provisioned, cost) = self.run(machine, operational, request, progress)?;
        let core::Provisioned { flow, scope, device_id, ek, .. } = provisioned;
        let core::Provisioned { credential, was_provisioned, renewal, .. } = provisioned;
        let credential = match credential {
            core::Credential::Certificate { certificate, ik } => {
                let path = self.state.certificate_path();
                Credential::Certificate { certificate, path, ik }
            }
            core::Credential::SharedKey { parent, hmac_handle } => {
                Credential::SharedKey { parent, hmac_handle }
            }
        };
        Ok(Provisioned { flow, scope, device_id, ek, credential, was_provisioned, renewal, cost })
    }

    fn run(
        &self,
        machine: Machine<core::Provisioned>,
        operational: Option<OperationalLine>,
        request: &ProvisionRequest,
        progress: Progress<'_>,
    ) -> Result<(core::Provisioned, Cost), Error> {
        let tls = self.bootstrap_tls()?;
        let broker = Broker { url: request.broker.clone(), tls, scope: request.scope.clone() };
        let agent =
            Agent { tpm: &self.tpm, state: &self.state, roots: &self.roots, clock: &self.clock };
        let ek_certificate = request.ek_certificates.first().map(AsRef::as_ref);
        agent.run(machine, broker, operational, request.deadline, ek_certificate, progress)
    }
}
