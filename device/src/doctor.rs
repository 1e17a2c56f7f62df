//! Checks everything that provisioning needs, and says what to do about each fault.

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_device_core::{CONNECT_LIMIT, DEFAULT_IK_HANDLE, Failure, REPLY_LIMIT, ping, rfc3339};
use assay_mqtt::BrokerUrl;
use assay_wire::Scope;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use self::CheckedSetting::{CaRoot, EkCertificate, IdentityKey as Ik, Tcti as Address};
use crate::broker_certificate;
use crate::clock::Clock;
use crate::ek::{EkDescription, FoundEk};
use crate::error::Error;
use crate::key::IdentityKey;
use crate::link::Broker;
use crate::probe;
use crate::roots;
use crate::status::{OwnKey, Status};
use crate::talk::Talk;
use crate::tpm::{EkKind, HierarchyPasswords, IkKind, ParentKind, Tcti, Tpm2, TpmThread};
use crate::trouble::{Purpose, Trouble};

/// What to check.
#[derive(Clone, Debug)]
pub struct DoctorOptions {
    /// How to reach the TPM.
    pub tcti: Tcti,
    /// The passwords of the TPM's hierarchies.
    pub passwords: HierarchyPasswords,
    /// How long one call to the TPM may take.
    pub tpm_timeout: Duration,
    /// The state directory, if the device has one. It is only read.
    pub state: Option<PathBuf>,
    /// The CA's root certificates; empty if they are not to be checked.
    pub ca_roots: Vec<CertificateDer<'static>>,
    /// Whether the device has no clock.
    pub no_clock: bool,
    /// The bootstrap listener and the scope, if the network is to be checked.
    pub broker: Option<(BrokerUrl, Scope)>,
}

/// One check.
#[derive(Clone, Debug)]
pub struct Check {
    /// Its name, e.g. `self-test`.
    pub name: &'static str,
    /// Its outcome.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What to do; `None` if all is well.
    pub advice: Option<Advice>,
}

/// What people can do about the finding of a check.
#[derive(Clone, Debug)]
pub enum Advice {
    /// A sentence.
    Do(&'static str),
    /// A sentence that ends with a setting of the program.
    Set(&'static str, CheckedSetting),
    /// What the program advises about this error.
    Error(Error),
}

/// A setting that a check looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckedSetting {
    /// How to reach the TPM.
    Tcti,
    /// The EK certificate.
    EkCertificate,
    /// The kind of identity key.
    IdentityKey,
    /// The CA's root certificate.
    CaRoot,
    /// The broker's URL.
    Broker,
}

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is as it should be.
    Pass,
    /// Provisioning may work, but somebody should know of this.
    Warn,
    /// Provisioning cannot work.
    Fail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// Checks everything, and tells `hear` of each check once it is done.
///
/// The checks contain no password and no key, and the broker gets only a ping. But the checks
/// contain ids and names from certificates, by which somebody can recognise the device.
pub fn examine(options: DoctorOptions, hear: &mut dyn FnMut(&Check)) -> Vec<Check> {
    let status = options.state.as_deref().map(Status::read);
    let mut examination = Examination { checks: Vec::new(), hear };
    if examination.device_node(&options.tcti) {
        examination.resource_manager(&options.tcti);
        let tpm = TpmThread::start(Tpm2::new(options.tcti, options.passwords), options.tpm_timeout);
        examination.tpm(&tpm, status.as_ref().and_then(|status| status.as_ref().ok()?.as_ref()));
    }
    let clock = Clock::new(!options.no_clock, &options.ca_roots);
    examination.clock(&clock, &options.ca_roots, status);
    // What cannot be read was said above.
    let state = options.state.as_deref();
    let pinned = state.and_then(|state| roots::pinned(&options.ca_roots, state).ok());
    let trusted = [options.ca_roots, pinned.unwrap_or_default()].concat();
    if let Some((broker, scope)) = options.broker {
        examination.network(&broker, &scope, &trusted, &clock);
    }
    examination.checks
}

struct Examination<'a> {
    checks: Vec<Check>,
    hear: &'a mut dyn FnMut(&Check),
}

impl Examination<'_> {
    fn add(
        &mut self,
        name: &'static str,
        outcome: Outcome,
        found: impl Into<String>,
        advice: Option<Advice>,
    ) {
        let check = Check { name, outcome, found: found.into(), advice };
        (self.hear)(&check);
        self.checks.push(check);
    }

    fn pass(&mut self, name: &'static str, found: impl Into<String>) {
        self.add(name, Outcome::Pass, found, None);
    }

    fn warn(&mut self, name: &'static str, found: impl Into<String>, advice: impl Into<Advice>) {
        self.add(name, Outcome::Warn, found, Some(advice.into()));
    }

    fn fail(&mut self, name: &'static str, found: impl Into<String>, advice: impl Into<Advice>) {
        self.add(name, Outcome::Fail, found, Some(advice.into()));
    }

    fn error(&mut self, name: &'static str, error: &Error) {
        self.fail(name, error.to_string(), Advice::Error(error.clone()));
    }

    /// Checks whether the TPM can be reached, and returns the answer.
    fn device_node(&mut self, tcti: &Tcti) -> bool {
        const NAME: &str = "TPM reached";
        let Some(path) = tcti.device_path() else {
            match Tpm2::reaches(tcti) {
                Ok(()) => self.pass(NAME, format!("{tcti}")),
                Err(error) => self.fail(
                    NAME,
                    format!("{tcti}: {error}"),
                    Advice::Set("start the TPM, or correct its address", Address),
                ),
            }
            return self.checks.last().is_some_and(|check| check.outcome == Outcome::Pass);
        };
        let path_text = path.display();
        match open_device(path) {
            Ok(()) => {
                self.pass(NAME, format!("{path_text} can be opened by this user"));
                return true;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.fail(
                NAME,
                format!("{path_text} is not there"),
                Advice::Set(
                    "switch the TPM on in the firmware, load its driver (tpm_tis, tpm_crb), or \
                     correct its address",
                    Address,
                ),
            ),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.fail(
                NAME,
                format!("{path_text} may not be opened by this user"),
                "add the user to the group that owns it, on most systems tss: usermod -aG tss \
                 USER.",
            ),
            Err(error) => self.fail(
                NAME,
                format!("{path_text}: {error}"),
                Advice::Set(
                    "end the other program that uses the TPM, or correct the TPM's address",
                    Address,
                ),
            ),
        }
        false
    }

    fn resource_manager(&mut self, tcti: &Tcti) {
        const NAME: &str = "resource manager";
        if tcti.has_resource_manager() {
            self.pass(NAME, "the kernel's");
        } else if tcti.is_device() {
            self.warn(
                NAME,
                "none: one user at a time",
                Advice::Set("use the kernel's, device:/dev/tpmrm0", Address),
            );
        } else {
            self.pass(NAME, "none; a software TPM with one user needs none");
        }
    }

    fn tpm(&mut self, tpm: &TpmThread, status: Option<&Status>) {
        let properties = tpm.call("asking the TPM for its properties", |tpm| {
            let mut all = tpm.properties(PT_FIXED)?;
            all.extend(tpm.properties(PT_VAR)?);
            Ok(all)
        });
        match properties {
            Err(error) => return self.error("TPM", &error.into()),
            Ok(properties) => {
                let properties = Properties(properties);
                self.pass("TPM", properties.model());
                self.self_test(tpm);
                self.lockout(&properties);
                self.hierarchies(&properties);
            }
        }
        self.eks(tpm);
        self.storage_root_key(tpm);
        self.identity_key(tpm, status);
    }

    fn self_test(&mut self, tpm: &TpmThread) {
        let started = Instant::now();
        match tpm.call("testing itself", |tpm| tpm.self_test()) {
            Ok(()) => self.pass("self-test", format!("passed, {}", ms(started.elapsed()))),
            Err(error) => self.fail(
                "self-test",
                error.to_string(),
                "switch the machine off and on; if that does not help, replace the TPM.",
            ),
        }
    }

    fn lockout(&mut self, properties: &Properties) {
        const NAME: &str = "lockout";
        let (counter, limit) =
            (properties.get(PT_LOCKOUT_COUNTER), properties.get(PT_MAX_AUTH_FAIL));
        let found = format!("{counter} of {limit} wrong passwords");
        if properties.get(PT_PERMANENT) & IN_LOCKOUT != 0 {
            let recovery = properties.get(PT_LOCKOUT_INTERVAL);
            let found = format!("{found}: the TPM is locked, and forgets one in {recovery} s");
            // Keys of this program are exempt (noDA). EKs of some vendors are not.
            self.warn(
                NAME,
                found,
                "wait, or unlock the TPM: tpm2_dictionarylockout --clear-lockout.",
            );
        } else if counter > 0 {
            self.warn(
                NAME,
                found,
                "find out who gives wrong passwords; at the limit the TPM refuses for a while.",
            );
        } else {
            self.pass(NAME, found);
        }
    }

    fn hierarchies(&mut self, properties: &Properties) {
        const NAME: &str = "hierarchies";
        let (permanent, startup) = (properties.get(PT_PERMANENT), properties.get(PT_STARTUP_CLEAR));
        let password =
            |bit| if permanent & bit != 0 { "has a password" } else { "has no password" };
        let found = format!(
            "owner {}, endorsement {}",
            password(OWNER_AUTH_SET),
            password(ENDORSEMENT_AUTH_SET)
        );
        match (startup & SH_ENABLE != 0, startup & EH_ENABLE != 0) {
            (true, true) => self.pass(NAME, found),
            (owner, endorsement) => {
                let off = |is_on| if is_on { "on" } else { "off" };
                let found =
                    format!("{found}; owner {}, endorsement {}", off(owner), off(endorsement));
                self.fail(
                    NAME,
                    found,
                    "switch the hierarchies on in the firmware, and restart the machine.",
                );
            }
        }
    }

    fn eks(&mut self, tpm: &TpmThread) {
        const NAME: &str = "EK";
        let mut has_certificate = false;
        for kind in EkKind::CERTIFIED {
            let certificates =
                tpm.call("reading the EK certificate", move |tpm| tpm.ek_certificates(kind));
            match certificates {
                Ok(certificates) if certificates.is_empty() => continue,
                Err(error) => {
                    self.error("EK certificate", &error.into());
                    continue;
                }
                Ok(_) => has_certificate = true,
            }
            match FoundEk::find(tpm, Some(kind)).map(|ek| ek.describe(false)) {
                Ok(ek) => self.ek(&ek),
                Err(error) => self.error(NAME, &error),
            }
        }
        if has_certificate {
            return;
        }
        match FoundEk::find(tpm, None) {
            Ok(ek) => self.warn(
                NAME,
                format!("{}, id {}; no certificate in NV memory", ek.shown.kind, ek.shown.key.id),
                Advice::Set(
                    "have the operator enrol the EK (`assay-device ek` prints it), or give the \
                     certificate in a file",
                    EkCertificate,
                ),
            ),
            Err(error) => self.error(NAME, &error),
        }
    }

    fn ek(&mut self, ek: &EkDescription) {
        const NAME: &str = "EK certificate";
        let Some(certificate) = &ek.certificate else {
            return self.fail(
                NAME,
                format!("the certificate of the EK {} cannot be read", ek.kind),
                Advice::Set("give it in a file", EkCertificate),
            );
        };
        let found = format!(
            "{}, id {}, issued by {}, until {}, {} issuers beside it",
            ek.kind, ek.ek_id, certificate.issuer, certificate.not_after, certificate.issuers
        );
        if certificate.is_for_this_key {
            self.pass(NAME, found);
        } else {
            let advice = "this EK was made from another template: report the TPM's model, and \
                          enrol what assay-device ek prints.";
            self.warn(NAME, format!("{found}; it is for another key"), advice);
        }
    }

    fn storage_root_key(&mut self, tpm: &TpmThread) {
        const NAME: &str = "SRK";
        let started = Instant::now();
        for kind in ParentKind::SRKS {
            match tpm.call("making the storage root key", move |tpm| tpm.parent(kind)) {
                Ok(Some(_)) => {
                    return self.pass(NAME, format!("{kind}, {}", ms(started.elapsed())));
                }
                Ok(None) => {}
                Err(error) => return self.error(NAME, &error.into()),
            }
        }
        self.fail(
            NAME,
            "this TPM has no storage root key of a known kind",
            "report the TPM's model.",
        );
    }

    fn identity_key(&mut self, tpm: &TpmThread, status: Option<&Status>) {
        const NAME: &str = "identity key";
        let (kind, handle) = match status.map(|status| status.keys.key) {
            Some(OwnKey::Hmac { .. }) => {
                return self.pass(NAME, "none: this device has a shared key");
            }
            Some(OwnKey::Identity { ik, ik_handle }) => (ik, ik_handle),
            None => (IkKind::P256, DEFAULT_IK_HANDLE),
        };
        let found =
            tpm.call("looking for the identity key", move |tpm| tpm.identity_key(kind, handle));
        let public = match found {
            Ok(Some(public)) => public.key,
            Ok(None) if status.is_some_and(|status| status.credential.is_some()) => {
                return self.fail(
                    NAME,
                    format!(
                        "the TPM no longer holds the key at {handle:#010x}: the TPM was cleared, \
                         or it is another TPM"
                    ),
                    "run assay-device provision.",
                );
            }
            Ok(None) => {
                return self.pass(NAME, format!("none yet at {handle:#010x}; provision makes one"));
            }
            Err(error) => return self.error(NAME, &error.into()),
        };
        let key = IdentityKey { tpm: tpm.clone(), handle, kind, public };
        match key.test_signature() {
            Ok(took) => self.pass(NAME, format!("{kind} at {handle:#010x} signs in {}", ms(took))),
            Err(error) => self.error(NAME, &error),
        }
        if kind == IkKind::Rsa2048 {
            match key.pss_suits_tls() {
                Ok(true) => self.pass("RSA-PSS salt", "as long as the digest, as TLS 1.3 requires"),
                Ok(false) => self.warn(
                    "RSA-PSS salt",
                    "longer than the digest, which TLS 1.3 refuses: this key is limited to TLS 1.2",
                    Advice::Set("use p-256 where the broker speaks TLS 1.3 alone", Ik),
                ),
                Err(error) => self.error("RSA-PSS salt", &error.into()),
            }
        }
    }

    fn clock(
        &mut self,
        clock: &Clock,
        roots: &[CertificateDer<'_>],
        status: Option<Result<Option<Status>, Error>>,
    ) {
        let now = rfc3339(clock.now().as_secs());
        match (clock.refuse_if_behind(), clock.assumption()) {
            (Err(error), _) => self.error("clock", &error),
            (Ok(()), Some(assumption)) => {
                self.warn(
                    "clock",
                    assumption,
                    "set the clock if there is one: without it, expired certificates may be \
                     accepted.",
                );
            }
            (Ok(()), None) if roots.is_empty() => {
                self.warn(
                    "clock",
                    format!("{now}, but nothing to compare it with"),
                    Advice::Set("give the CA's root", CaRoot),
                );
            }
            (Ok(()), None) => self.pass("clock", format!("{now}, not before the pinned root")),
        }
        match status {
            None => {}
            Some(Err(error)) => self.error("state", &error),
            Some(Ok(None)) => self.warn("state", "none", "run assay-device provision."),
            Some(Ok(Some(status))) => match status.usable() {
                Ok(_) => self.pass("state", "provisioned"),
                Err(error @ Error::NotProvisioned(_)) => {
                    self.warn("state", error.to_string(), "run assay-device provision.")
                }
                Err(error) => self.error("state", &error),
            },
        }
    }

    fn network(
        &mut self,
        broker: &BrokerUrl,
        scope: &Scope,
        roots: &[CertificateDer<'static>],
        clock: &Clock,
    ) {
        let Some(stream) = self.broker(broker) else { return };
        let tls = match tls_config(roots, clock) {
            Ok(tls) => Arc::new(tls),
            Err(error) => return self.error("TLS", &error),
        };
        if !broker.is_tls() {
            // Not every broker serves two connections at a time.
            drop(stream);
            self.warn(
                "TLS",
                "none: anybody on the way can read and change the messages",
                "use mqtts:// except in laboratories.",
            );
        } else if !self.tls(broker, &tls, stream) {
            return;
        }
        let broker = Broker { url: broker.clone(), tls, scope: scope.clone() };
        match ask(broker) {
            Ok(took) => {
                self.pass("scope", format!("a CA answers for scope {scope} in {}", ms(took)))
            }
            Err(error) => self.error("scope", &error),
        }
    }

    fn broker(&mut self, broker: &BrokerUrl) -> Option<TcpStream> {
        const NAME: &str = "broker reached";
        let started = Instant::now();
        match connect(broker) {
            Ok(stream) => {
                let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
                self.pass(NAME, format!("{broker} at {peer}, {}", ms(started.elapsed())));
                Some(stream)
            }
            Err(error) => {
                let advice = "check the name, the port and the network; the broker may be down, \
                              or a firewall may block the connection.";
                self.fail(NAME, format!("{broker}: {error}"), advice);
                None
            }
        }
    }

    fn tls(&mut self, broker: &BrokerUrl, tls: &Arc<ClientConfig>, mut stream: TcpStream) -> bool {
        const NAME: &str = "TLS";
        let started = Instant::now();
        let name = match ServerName::try_from(broker.host().to_owned()) {
            Ok(name) => name,
            Err(error) => {
                self.fail(
                    NAME,
                    format!("{}: {error}", broker.host()),
                    Advice::Set("use a DNS name or an address", CheckedSetting::Broker),
                );
                return false;
            }
        };
        let shaken = ClientConnection::new(Arc::clone(tls), name)
            .map_err(io::Error::other)
            .and_then(|mut connection| {
                while connection.is_handshaking() {
                    connection.complete_io(&mut stream)?;
                }
                Ok(connection.protocol_version())
            });
        match shaken {
            Ok(version) => {
                let version = version.map(|version| format!("{version:?}")).unwrap_or_default();
                self.pass(
                    NAME,
                    format!("{version}, broker's certificate verified, {}", ms(started.elapsed())),
                );
                true
            }
            Err(error) => {
                let reason = Trouble::of_stream(&error, broker, Purpose::Bootstrap)
                    .examined(|| probe::other_protocol(broker, tls));
                match reason {
                    Ok(reason) => self.fail(
                        NAME,
                        reason,
                        "try again; if it fails again, look at the broker's log.",
                    ),
                    Err(error) => self.error(NAME, &error),
                }
                false
            }
        }
    }
}

/// Asks whether a CA answers, and tells how long that took.
fn ask(broker: Broker) -> Result<Duration, Error> {
    let deadline = CONNECT_LIMIT + REPLY_LIMIT;
    let mut machine = ping(broker.scope.clone(), deadline, Duration::ZERO);
    let mut talk = Talk::start(broker);
    while let Some(action) = machine.poll_action() {
        if let Some(event) = talk.perform(action)? {
            machine.handle(talk.now(), event);
        }
    }
    machine.into_result().map_err(|failure| match failure {
        Failure::NotReached { reason } => Error::NotReached { deadline, reason },
        Failure::Lasting => talk
            .take_error()
            .unwrap_or_else(|| Error::Internal("no reason why the broker was not reached".into())),
        failure => Error::Internal(failure.to_string()),
    })
}

fn connect(broker: &BrokerUrl) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
    for address in (broker.host(), broker.port()).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, NETWORK_LIMIT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(NETWORK_LIMIT))?;
                stream.set_write_timeout(Some(NETWORK_LIMIT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn tls_config(roots: &[CertificateDer<'static>], clock: &Clock) -> Result<ClientConfig, Error> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone())
            .map_err(|error| Error::Usage(format!("unusable CA root certificate: {error}")))?;
    }
    broker_certificate::server_authenticated_tls(store, clock.clone())
}

fn open_device(path: &Path) -> io::Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(path)?;
    if device.metadata()?.file_type().is_char_device() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a device"))
}

/// What TPM2_GetCapability says: tags (TPM 2.0 Part 2, 6.13) and values.
struct Properties(Vec<(u32, u32)>);

impl Properties {
    /// A property that the TPM does not have counts as 0.
    fn get(&self, tag: u32) -> u32 {
        self.0.iter().find(|(found, _)| *found == tag).map(|(_, value)| *value).unwrap_or_default()
    }

    fn text(&self, tags: impl IntoIterator<Item = u32>) -> String {
        let bytes = tags.into_iter().flat_map(|tag| self.get(tag).to_be_bytes());
        let is_shown = |byte: &u8| byte.is_ascii_graphic() || *byte == b' ';
        bytes.filter(is_shown).map(char::from).collect::<String>().trim().to_owned()
    }

    fn model(&self) -> String {
        let [major, minor] =
            [PT_FIRMWARE_VERSION_1, PT_FIRMWARE_VERSION_1 + 1].map(|tag| self.get(tag));
        let revision = self.get(PT_REVISION);
        format!(
            "{} {}, firmware {}.{}.{}.{}, specification 2.0 revision {}.{:02} of day {} of {}",
            self.text([PT_MANUFACTURER]),
            self.text(PT_VENDOR_STRING_1..PT_VENDOR_STRING_1 + 4),
            major >> 16,
            major & 0xFFFF,
            minor >> 16,
            minor & 0xFFFF,
            revision / 100,
            revision % 100,
            self.get(PT_DAY_OF_YEAR),
            self.get(PT_YEAR)
        )
    }
}

impl From<&'static str> for Advice {
    fn from(text: &'static str) -> Self {
        Self::Do(text)
    }
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// TPM_PT (TPM 2.0 Part 2, 6.13).
const PT_FIXED: u32 = 0x100;
const PT_REVISION: u32 = 0x102;
const PT_DAY_OF_YEAR: u32 = 0x103;
const PT_YEAR: u32 = 0x104;
const PT_MANUFACTURER: u32 = 0x105;
const PT_VENDOR_STRING_1: u32 = 0x106;
const PT_FIRMWARE_VERSION_1: u32 = 0x10B;
const PT_VAR: u32 = 0x200;
const PT_PERMANENT: u32 = 0x200;
const PT_STARTUP_CLEAR: u32 = 0x201;
const PT_LOCKOUT_COUNTER: u32 = 0x20E;
const PT_MAX_AUTH_FAIL: u32 = 0x20F;
const PT_LOCKOUT_INTERVAL: u32 = 0x210;
/// TPMA_PERMANENT (TPM 2.0 Part 2, 8.6).
const OWNER_AUTH_SET: u32 = 1;
const ENDORSEMENT_AUTH_SET: u32 = 1 << 1;
const IN_LOCKOUT: u32 = 1 << 9;
/// TPMA_STARTUP_CLEAR (TPM 2.0 Part 2, 8.7).
const SH_ENABLE: u32 = 1 << 1;
const EH_ENABLE: u32 = 1 << 2;
/// The limit for each step on the network. A distant broker answers in some hundreds of
/// milliseconds.
const NETWORK_LIMIT: Duration = Duration::from_secs(10);
