//! Plays operations: on two devices, a CA, the link between them, and time.

use std::collections::HashMap;
use std::time::Duration;

use assay_broker_plugin::certificate::ClientCertificate;
use assay_ca_core::Reprovision;
use assay_device_core::{
    Action, Attempt, CertificateGrant, Event, Failure, Grant, HmacPublic, Memory, Pinning,
    ProvisionRequest, Provisioned, SharedKeyGrant, TpmOperation, Trouble, Verdict,
};
use assay_store::{CertificateStatus, NewEnrolment, Tags};
use assay_wire::{
    Adoption, Bundle, CertificateList, DeviceId, EkId, EkPublic, Flow, Identity, ParentBundle,
    Proof, Renewal, Reply, ReplyBody, Request, RequestBody, Scope, SealedCertificate, Ticket,
};
use memchr::memmem;
use rcgen::SigningKey;
use rustls_pki_types::UnixTime;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::ca::{Ca, Decision, Done, Written};
use crate::chance::Chance;
use crate::device::{Device, Run, request, token};
use crate::factory::{BEGIN, DEVICES, FACTORY, time};
use crate::link::{Arrival, Link, To};
use crate::op::{Name, Op, Step};
use crate::rules::{Broken, Rules, rule};
use crate::tpm::{HmacKey, Secret, certificate_request};

pub(crate) struct World {
    /// Time since the beginning, by a correct clock.
    now: Duration,
    scope: Scope,
    devices: [Device; DEVICES],
    ca: Ca,
    /// By how much the CA's clock is wrong, in seconds.
    ca_clock_error: i64,
    /// The latest time that the CA's clock ever showed.
    latest: OffsetDateTime,
    link: Link,
    /// How long the CA takes to sign what it decides next.
    signing: Duration,
    rules: Rules,
    /// The number of changes at the last check of what brokers decide.
    checked: u64,
    /// When each challenge was made, by its credential.
    challenges: HashMap<Vec<u8>, OffsetDateTime>,
    /// The name that each shared key was offered under, by its TPMT_PUBLIC.
    names: HashMap<Vec<u8>, DeviceId>,
    secrets: Vec<Kept>,
    chance: Chance,
    next_ik: usize,
    is_told: bool,
}

/// A secret that may not be on the link.
struct Kept {
    secret: Vec<u8>,
    /// Whether a device may send it to the CA, as a proof.
    is_ticket: bool,
}

impl World {
    pub(crate) fn new(is_told: bool) -> Self {
        let scope: Scope = "pair".parse().expect("a scope");
        Self {
            now: Duration::ZERO,
            devices: std::array::from_fn(Device::new),
            ca: Ca::new(&scope),
            ca_clock_error: 0,
            latest: time(BEGIN),
            link: Link::default(),
            signing: SIGNING,
            rules: Rules::default(),
            checked: 0,
            challenges: HashMap::new(),
            names: HashMap::new(),
            secrets: Vec::new(),
            chance: Chance::new(2),
            next_ik: 0,
            is_told,
            scope,
        }
    }

    pub(crate) fn play(mut self, sequence: &[Op]) -> Result<(), Broken> {
        for op in sequence {
            self.tell(|| format!("== {op:?}"));
            self.happen(op)?;
            if op.may_change_the_record() {
                self.check()?;
            }
        }
        self.tell(|| "== all faults end".into());
        self.make_good()?;
        for device in 0..DEVICES {
            self.come_to_an_end(device)?;
            self.check()?;
        }
        Ok(())
    }

    fn tell(&self, words: impl FnOnce() -> String) {
        if self.is_told {
            eprintln!("{:>12.3} {}", self.now.as_secs_f64(), words());
        }
    }

    /// Checks the record, and what devices believe. Checks also what brokers would decide, if that
    /// may have changed.
    fn check(&mut self) -> Result<(), Broken> {
        self.rules.check(&self.ca.dump())?;
        for device in &mut self.devices {
            self.rules.check_belief(device.tpm.ek_id(), &device.memory)?;
            device.has_good_key = self.rules.check_key(device)?;
            device.has_good_shared_key = self.rules.check_shared_key(device)?;
        }
        if std::mem::replace(&mut self.checked, self.rules.changes) != self.rules.changes {
            self.check_brokers()?;
        }
        Ok(())
    }

    /// Checks that the active certificates of devices that are not disabled let a device in, that
    /// no other certificate does, and that no retired key does.
    fn check_brokers(&mut self) -> Result<(), Broken> {
        let now = self.ca_time();
        for worth in self.rules.certificates() {
            let status = self.ca.status(&worth.device_id, &worth.serial, &worth.sha256);
            let is_let_in = status == CertificateStatus::Active;
            rule!(
                is_let_in == worth.is_good,
                "a certificate that is {status} should be good: {}",
                worth.is_good
            );
        }
        for device in 0..DEVICES {
            let ek = self.ek(device);
            if let Some(generation) = self.ca.generation(&ek) {
                self.rules.check_generation(ek, generation)?;
            }
            for key in &self.devices[device].keys {
                if self.rules.is_retired(&key.public) {
                    let name = &self.names[&key.public];
                    let password = token(key, &self.scope, name, now.unix_timestamp() + 3600);
                    let is_let_in = self.ca.login(name.as_str(), &password, now).is_some();
                    rule!(!is_let_in, "a retired key was accepted");
                }
            }
        }
        Ok(())
    }

    fn happen(&mut self, op: &Op) -> Result<(), Broken> {
        let ca_time = self.ca_time();
        match *op {
            Op::Provision { device, want, pause } => {
                let request = request(&self.scope, want);
                self.devices[device].begin(request, want.connects, self.now);
                self.drive(device, pause)?;
            }
            Op::Renew { device, waits, pause, connects } => {
                if waits {
                    self.wait_until_due(device)?;
                }
                let request =
                    ProvisionRequest { renew: true, ..ProvisionRequest::new(self.scope.clone()) };
                self.devices[device].begin(request, false, self.now);
                self.drive(device, pause)?;
                if connects {
                    self.sign_in(device)?;
                }
            }
            Op::Rekey { device, pause, connects } => {
                let request =
                    ProvisionRequest { rekey: true, ..ProvisionRequest::new(self.scope.clone()) };
                self.devices[device].begin(request, false, self.now);
                self.drive(device, pause)?;
                if connects {
                    self.sign_in(device)?;
                }
            }
            Op::WaitUntilDue(device) => self.wait_until_due(device)?,
            Op::GoOn(device, pause) => _ = self.drive(device, pause)?,
            Op::PowerFails(device) => self.devices[device].run = None,
            Op::ClearTpm(device) => {
                self.devices[device].run = None;
                self.devices[device].clear_tpm();
                self.rules.tpm_cleared(self.ek(device));
            }
            Op::LoseState(device) => {
                self.devices[device].run = None;
                self.remember(device, Memory::default())?;
            }
            Op::SignIn(device) => _ = self.sign_in(device)?,
            Op::SignInUnconfirmed(device) => self.sign_in_unconfirmed(device)?,
            Op::SignInWithOldKey(device, age) => {
                let keys = &self.devices[device].keys;
                let index = keys.len().checked_sub(1 + usize::from(age));
                if let Some(key) = index.map(|index| keys[index].clone()) {
                    let name = self.names[&key.public].clone();
                    // A TPM has opened it, but does not keep it.
                    let Device { tpm, has_good_shared_key, .. } = &mut self.devices[device];
                    *has_good_shared_key &= tpm.hmac_publics().any(|held| held == key.public);
                    self.sign_in_by_token(device, &key, &name)?;
                }
            }
            Op::Enrol { device, name, reprovision, plain_srk } => {
                self.enrol(device, name, reprovision, plain_srk)?;
            }
            Op::Remove(device) => {
                let ek = self.ek(device);
                self.ca.remove(&ek, ca_time);
                self.rules.removed(ek);
                self.devices[device].has_good_key = false;
                self.devices[device].has_good_shared_key = false;
            }
            Op::Disable(device) => self.set_disabled(device, true),
            Op::Enable(device) => self.set_disabled(device, false),
            Op::SetPolicy(device, policy) => self.set_policy(device, policy),
            Op::RotateKey(device) => {
                let ek = self.ek(device);
                if self.ca.retire_shared_key(&ek) {
                    self.rules.key_retired(ek);
                    self.devices[device].has_good_shared_key = false;
                }
            }
            Op::ChangeTicketKey => {
                self.ca.change_ticket_key();
                self.rules.ticket_key_changed();
                self.link.planned().for_each(|planned| planned.is_of_old_key = true);
                self.devices.iter_mut().for_each(|device| device.has_good_key = false);
            }
            Op::RestartCa => self.link.forget_signatures(),
            Op::Prune => self.prune(),
            Op::SlowSigner(duration) => self.signing = duration,
            Op::StepCa(step) => step_clock(&mut self.ca_clock_error, step),
            Op::StepDevice(device, step) => {
                step_clock(&mut self.devices[device].clock_error, step);
            }
            Op::Wait(duration) => self.pass(duration)?,
            Op::Fault(after, fate) => self.link.fault(after, fate),
            Op::Replay(age) => {
                let mut sent = self.link.history.iter().rev().filter(|sent| sent.to == To::Ca);
                if let Some(sent) = sent.nth(age.into()) {
                    let message = sent.message.clone();
                    self.stranger_sends(message)?;
                }
            }
            Op::Forge(age) => {
                if let Some(message) = self.forged(age.into()) {
                    self.stranger_sends(message)?;
                }
            }
            Op::ImpostorRenews(device) => {
                for message in self.forged_renewals(device) {
                    self.stranger_sends(message)?;
                }
            }
            Op::Impostor(device, flow) => {
                let message = self.imposture(device, flow);
                self.stranger_sends(message)?;
            }
        }
        Ok(())
    }

    /// Lets time pass. Meanwhile, what is on its way arrives.
    fn pass(&mut self, duration: Duration) -> Result<(), Broken> {
        let until = self.now + duration;
        while let Some((at, arrival)) = self.link.next(until) {
            self.now = self.now.max(at);
            self.arrive(arrival)?;
        }
        self.now = until;
        Ok(())
    }

    fn wait_until_due(&mut self, device: usize) -> Result<(), Broken> {
        let first = self.devices[device].memory.credentials().next();
        let left = match first {
            Some(Grant::SharedKey(SharedKeyGrant { rotation, .. })) => {
                time(rotation.at.cast_signed()) - time(self.device_time(device))
            }
            _ => {
                let Some(due) = self.rules.due(self.ek(device)) else { return Ok(()) };
                due - self.ca_time()
            }
        };
        if left.is_positive() && self.now < LONGEST {
            self.pass(left.unsigned_abs())?;
        }
        Ok(())
    }

    fn ek(&self, device: usize) -> EkId {
        self.devices[device].tpm.ek_id()
    }

    fn ca_time(&mut self) -> OffsetDateTime {
        let now = time(BEGIN + self.ca_clock_error) + self.now;
        self.latest = self.latest.max(now);
        now
    }

    /// What a device's clock shows, in seconds since 1970.
    fn device_time(&self, device: usize) -> i64 {
        BEGIN + self.devices[device].clock_error + self.now.as_secs().cast_signed()
    }
}

/// The devices.
impl World {
    /// Goes on with a run, for `pause` actions or to its end. Returns how the run ended, if it did.
    fn drive(
        &mut self,
        device: usize,
        pause: Option<u8>,
    ) -> Result<Option<Result<Provisioned, Failure>>, Broken> {
        for count in 0.. {
            rule!(count < 20_000, "a run does not end");
            if pause.is_some_and(|pause| count >= u32::from(pause)) {
                break;
            }
            let Some(run) = &mut self.devices[device].run else { break };
            let Some(action) = run.machine.poll_action() else {
                let Some(run) = self.devices[device].run.take() else { break };
                let (connects, result) = (run.connects, run.machine.into_result());
                self.tell(|| format!("device {device}: {result:?}"));
                if result.is_ok() {
                    // The CA takes what waits to be adopted, as it takes a confirmed one.
                    let is_confirmed = match self.devices[device].memory.credentials().next() {
                        Some(Grant::Certificate(grant)) => grant.unconfirmed.is_none(),
                        Some(Grant::SharedKey(_)) => true,
                        None => false,
                    };
                    rule!(is_confirmed, "a run succeeded without a confirmed credential");
                    if connects {
                        self.sign_in(device)?;
                    }
                }
                return Ok(Some(result));
            };
            if let Some(event) = self.perform(device, action)?
                && let Some(run) = &mut self.devices[device].run
            {
                run.machine.handle(self.now, event);
            }
        }
        Ok(None)
    }

    fn perform(&mut self, device: usize, action: Action) -> Result<Option<Event>, Broken> {
        Ok(Some(match action {
            Action::Tpm(operation) => Event::Tpm(self.use_tpm(device, operation)?),
            Action::Store(memory) => {
                self.remember(device, *memory)?;
                Event::Stored
            }
            Action::VerifyPath(chain) => {
                let now = Duration::from_secs(self.device_time(device).unsigned_abs());
                let now = UnixTime::since_unix_epoch(now);
                Event::PathVerified(assay_device::shell::verify_path(&chain, &FACTORY.roots, now))
            }
            // This CA has one root.
            Action::Pin(_) => Event::Pinned(Pinning::Known),
            Action::Unseal(sealed) => {
                let contents = assay_device::shell::unseal(&sealed);
                if let Some(contents) = &contents {
                    self.box_opened(device, &sealed.sealed, contents)?;
                }
                Event::Unsealed(contents)
            }
            Action::Digest(bytes) => Event::Digest(Sha256::digest(bytes).into()),
            // These CAs have no documents.
            Action::Configuration(_) => Event::Configuration(Ok(None)),
            Action::Draw => Event::Random(self.chance.bytes()),
            Action::Clock => Event::Clock(self.device_time(device).unsigned_abs()),
            Action::Connect(connection) => {
                self.run(device).client = Some(connection.client.to_string());
                Event::Connected
            }
            Action::Send(message) => {
                self.check_stored(device, &message)?;
                if let Some(client) = self.run(device).client.clone() {
                    self.send(To::Ca, &client, message)?;
                }
                return Ok(None);
            }
            Action::Disconnect => {
                self.run(device).client = None;
                return Ok(None);
            }
            Action::Progress(step) => {
                self.tell(|| format!("device {device}: {step}"));
                return Ok(None);
            }
            Action::Wait { until } => match self.link.next(until) {
                Some((at, arrival)) => {
                    self.now = self.now.max(at);
                    self.arrive(arrival)?;
                    return Ok(None);
                }
                None => {
                    rule!(until < Duration::MAX, "a run waits although nothing can happen");
                    self.now = self.now.max(until);
                    Event::Time
                }
            },
        }))
    }

    fn remember(&mut self, device: usize, memory: Memory) -> Result<(), Broken> {
        let before = std::mem::replace(&mut self.devices[device].memory, memory);
        let after = &self.devices[device].memory;
        self.rules.remembers(self.devices[device].tpm.ek_id(), &before, after)
    }

    /// The run of a device that performs an action.
    fn run(&mut self, device: usize) -> &mut Run {
        self.devices[device].run.as_mut().expect("its run asks for it")
    }

    fn use_tpm(
        &mut self,
        device: usize,
        operation: TpmOperation,
    ) -> Result<Result<assay_device_core::TpmAnswer, assay_device_core::TpmFailure>, Broken> {
        let Device { tpm, memory, has_good_shared_key, .. } = &mut self.devices[device];
        let blob = match &operation {
            TpmOperation::Activate { blob, .. } => blob.clone(),
            TpmOperation::Sign { message, .. } => {
                self.rules.stated(tpm.ek_id(), message.clone());
                Vec::new()
            }
            TpmOperation::KeepHmacKey { key, .. } => {
                let knows = |record: &assay_device_core::HmacRecord| {
                    record.keys.iter().any(|known| known.0 == key.public)
                };
                let is_stored = matches!(&memory.attempt, Some(Attempt::Hmac(it)) if knows(it));
                rule!(is_stored, "the TPM kept a key before the device stored which key it is");
                Vec::new()
            }
            _ => Vec::new(),
        };
        let mut learned = Vec::new();
        let removes =
            matches!(operation, TpmOperation::RemoveKey { .. } | TpmOperation::KeepHmacKey { .. });
        if let TpmOperation::KeepHmacKey { key, replaced: Some(replaced), .. } = &operation
            && self.rules.takes(replaced)
            && !self.rules.takes(&key.public)
        {
            // A device that registers again, because a broker did not take its key, believes the
            // answer. One that rotates its key does not.
            *has_good_shared_key = false;
        }
        let answer = tpm.run(operation, &mut self.next_ik, |secret| learned.push(secret));
        if removes {
            self.rules.check_key(&self.devices[device])?;
            self.rules.check_shared_key(&self.devices[device])?;
        }
        let Device { tpm, keys, .. } = &mut self.devices[device];
        let ek = tpm.ek_id();
        for secret in learned {
            match secret {
                Secret::OfCredential { secret, ik_id } => {
                    let made_at = self.challenges.get(&blob).copied();
                    if let Some(made_at) = made_at {
                        self.rules.claim_opened(ek, ik_id, made_at);
                    }
                    self.secrets.push(Kept { secret, is_ticket: made_at.is_some() });
                }
                Secret::OfSharedKey { hmac, key, inner_key } => {
                    self.rules.key_opened(ek, &hmac.public)?;
                    keys.push(hmac);
                    for secret in [key, inner_key] {
                        self.secrets.push(Kept { secret, is_ticket: false });
                    }
                }
            }
            for sent in &self.link.history {
                check_clear(&self.secrets[self.secrets.len() - 1..], sent.to, &sent.message)?;
            }
        }
        Ok(answer)
    }

    fn box_opened(&mut self, device: usize, sealed: &[u8], contents: &[u8]) -> Result<(), Broken> {
        let Ok(contents) = SealedCertificate::decode(contents) else { return Ok(()) };
        self.rules.box_opened(self.ek(device), &contents.chain[0])?;
        let carried = |sent: &&crate::link::Sent| memmem::find(&sent.message, sealed).is_some();
        let mut history = self.link.history.iter().rev();
        let is_clear = history
            .find(carried)
            .is_some_and(|sent| memmem::find(&sent.message, &contents.chain[0]).is_some());
        rule!(!is_clear, "a sealed certificate was on the link in clear, beside its box");
        let secret = contents.ticket.as_bytes().to_vec();
        self.secrets.push(Kept { secret, is_ticket: true });
        Ok(())
    }

    /// Checks that a device stored what a later run needs before it sends the request that depends
    /// on it.
    fn check_stored(&self, device: usize, message: &[u8]) -> Result<(), Broken> {
        let Memory { in_use, attempt } = &self.devices[device].memory;
        let request = Request::decode(message);
        let is_stored = match request.map(|request| request.body) {
            Ok(RequestBody::Challenge(_) | RequestBody::Enroll(_)) => {
                matches!(attempt, Some(Attempt::Identity(_) | Attempt::Unconfirmed(_)))
                    || matches!(in_use, Some(Grant::Certificate(_)))
            }
            Ok(RequestBody::Rekey(_)) => matches!(attempt, Some(Attempt::Rekey(_))),
            Ok(RequestBody::Register(_)) => matches!(attempt, Some(Attempt::Hmac(_))),
            Ok(RequestBody::Renew(renewal)) => matches!(
                in_use, Some(Grant::Certificate(grant)) if is_of(grant, &renewal.certificate)
            ),
            Ok(RequestBody::Adopt(adoption)) => matches!(
                attempt, Some(Attempt::Renewed(grant)) if is_of(grant, &adoption.certificate)
            ),
            Ok(RequestBody::Confirm(proof)) => {
                let grants = [
                    match attempt {
                        Some(Attempt::Unconfirmed(grant)) => Some(grant),
                        _ => None,
                    },
                    match in_use {
                        Some(Grant::Certificate(grant)) => Some(grant),
                        _ => None,
                    },
                ];
                let stored = grants.into_iter().flatten();
                stored
                    .filter_map(|grant| grant.unconfirmed.as_ref())
                    .any(|stored| stored.proof == proof)
            }
            Ok(RequestBody::Certify(_) | RequestBody::Ping) => true,
            Err(_) => false,
        };
        rule!(is_stored, "a request was sent before what it needs was stored");
        Ok(())
    }

    /// Connects to a broker with what is in use. Returns whether the device is let in.
    fn sign_in(&mut self, device: usize) -> Result<bool, Broken> {
        let first = self.devices[device].memory.credentials().next();
        match first {
            None => Ok(false),
            Some(Grant::Certificate(grant)) => self.sign_in_by_certificate(device, &grant),
            Some(Grant::SharedKey(_)) => self.sign_in_by_key(device),
        }
    }

    /// Connects with the first shared key that is in the TPM. If that waits for its first use, the
    /// device settles what the broker said.
    fn sign_in_by_key(&mut self, device: usize) -> Result<bool, Broken> {
        let Device { tpm, memory, .. } = &self.devices[device];
        let found = memory.credentials().find_map(|grant| {
            let Grant::SharedKey(grant) = grant else { return None };
            let key = tpm.hmac_key(grant.record.hmac_handle)?.clone();
            grant.record.keys.contains(&HmacPublic(key.public.clone())).then_some((grant, key))
        });
        let Some((grant, key)) = found else { return Ok(false) };
        let waits = memory.attempt == Some(Attempt::Rotated(grant.clone()));
        let is_let_in = self.sign_in_by_token(device, &key, &grant.device_id)?;
        if waits && self.devices[device].run.is_none() {
            let verdict = if is_let_in { Verdict::Accepted } else { Verdict::Refused };
            let broker_said = Some(verdict);
            let plain = ProvisionRequest::new(self.scope.clone());
            let request = ProvisionRequest { broker_said, ..plain };
            self.devices[device].begin(request, false, self.now);
            self.drive(device, None)?;
        }
        Ok(is_let_in)
    }

    /// Connects to a broker with a certificate that is not confirmed yet.
    fn sign_in_unconfirmed(&mut self, device: usize) -> Result<(), Broken> {
        match self.devices[device].memory.attempt.clone() {
            Some(Attempt::Unconfirmed(grant)) => {
                self.sign_in_by_certificate(device, &grant).map(drop)
            }
            _ => Ok(()),
        }
    }

    fn sign_in_by_certificate(
        &mut self,
        device: usize,
        grant: &CertificateGrant,
    ) -> Result<bool, Broken> {
        let sha256: [u8; 32] = Sha256::digest(&grant.chain[0]).into();
        let Some(worth) = self.rules.certificates().find(|known| known.sha256 == sha256) else {
            return Ok(false);
        };
        let now = self.ca_time();
        let certificate = ClientCertificate {
            identity: Identity::Device { scope: self.scope.clone(), device_id: worth.device_id },
            serial: worth.serial.to_vec(),
            sha256,
            not_after: now.into(),
        };
        let ek = self.ek(device);
        self.rules.shown(ek, sha256);
        let entered = self.ca.handshake(&certificate, now);
        let is_let_in = entered.is_some();
        self.tell(|| format!("device {device}: its certificate lets it in: {is_let_in}"));
        if let Some(deed) = entered.flatten() {
            self.rules.done(deed, None, now)?;
        }
        let is_good = self.rules.certificates().any(|it| it.sha256 == sha256 && it.is_good);
        rule!(!is_let_in || is_good, "a certificate that is not good let its device in");
        Ok(is_let_in)
    }

    fn sign_in_by_token(
        &mut self,
        device: usize,
        key: &HmacKey,
        name: &DeviceId,
    ) -> Result<bool, Broken> {
        let password = token(key, &self.scope, name, self.device_time(device) + 3600);
        let now = self.ca_time();
        let Some((_, deed)) = self.ca.login(name.as_str(), &password, now) else {
            return Ok(false);
        };
        self.tell(|| format!("device {device}: its token is accepted"));
        if let Some(deed) = deed {
            self.rules.done(deed, None, now)?;
        }
        self.rules.signed_in(&key.public)?;
        Ok(true)
    }
}

/// The CA, and the messages from and to it.
impl World {
    fn send(&mut self, to: To, client: &str, message: Vec<u8>) -> Result<(), Broken> {
        check_clear(&self.secrets, to, &message)?;
        let now = self.ca_time();
        for secret in self.ca.secrets(now) {
            let is_clear = memmem::find(&message, secret).is_some();
            rule!(!is_clear, "a secret of the CA was on the link in clear");
        }
        self.link.send(self.now, to, client, message);
        Ok(())
    }

    fn arrive(&mut self, arrival: Arrival) -> Result<(), Broken> {
        match arrival {
            Arrival::AtCa { client, message } => {
                let now = self.ca_time();
                let decision = self.ca.decide(client.parse().unwrap(), message, now);
                self.decided(client, decision, now)
            }
            Arrival::Signed { client, planned } => {
                let now = self.ca_time();
                match self.ca.record(*planned) {
                    Written::Again(decision) => self.decided(client, decision, now),
                    Written::Recorded(done) => {
                        let Done { deed, received_at, about, reply, is_of_old_key } = *done;
                        self.tell(|| format!("the CA: on record is {deed:?}"));
                        let issued = deed.issued().filter(|_| is_of_old_key);
                        self.rules.done(deed, Some(&reply.body), received_at)?;
                        if let Some(serial) = issued {
                            self.rules.was_of_old_ticket_key(serial);
                        }
                        self.answer(&client, about, &reply)
                    }
                }
            }
            Arrival::AtDevice { client, message } => {
                self.hear(&client, Event::Reply(message));
                Ok(())
            }
            Arrival::ConnectionLost { client } => {
                self.hear(&client, Event::Lost(Trouble::Passing("broken".into())));
                Ok(())
            }
        }
    }

    fn decided(
        &mut self,
        client: String,
        decision: Decision,
        now: OffsetDateTime,
    ) -> Result<(), Broken> {
        match decision {
            Decision::Answered { about, reply } => {
                if let ReplyBody::Challenge(challenge) = &reply.body {
                    self.challenges.insert(challenge.credential_blob.to_vec(), now);
                }
                self.answer(&client, about, &reply)
            }
            Decision::Planned(planned) => {
                let at = self.now + std::mem::replace(&mut self.signing, SIGNING);
                self.link.schedule(at, Arrival::Signed { client, planned });
                Ok(())
            }
        }
    }

    fn answer(&mut self, client: &str, about: Option<EkId>, reply: &Reply) -> Result<(), Broken> {
        self.tell(|| format!("the CA: {:?}", reply.body));
        self.rules.answered(about, &reply.body)?;
        if let ReplyBody::Activation(activation) = &reply.body {
            self.names.insert(activation.key_public.to_vec(), activation.device_id.clone());
        }
        self.send(To::Device, client, reply.encode())
    }

    /// The broker passes an event on to each run that is connected under this client id.
    fn hear(&mut self, client: &str, event: Event) {
        let runs = self.devices.iter_mut().filter_map(|device| device.run.as_mut());
        for run in runs.filter(|run| run.client.as_deref() == Some(client)) {
            run.machine.handle(self.now, event.clone());
        }
    }
}

/// Strangers.
impl World {
    fn stranger_sends(&mut self, message: Vec<u8>) -> Result<(), Broken> {
        self.send(To::Ca, "stranger", message)?;
        self.pass(MOMENT)
    }

    /// An answer to a claim that was on the link, with an invented ticket.
    fn forged(&mut self, age: usize) -> Option<Vec<u8>> {
        let replies = self.link.history.iter().rev().filter(|sent| sent.to == To::Device);
        let ticket = Ticket::from([0; Ticket::LEN]);
        let forged = replies.filter_map(|sent| match Reply::decode(&sent.message).ok()?.body {
            ReplyBody::Challenge(reply) => {
                Some(RequestBody::Certify(Proof { claim: reply.claim, ticket: ticket.clone() }))
            }
            ReplyBody::Sealed(reply) => {
                Some(RequestBody::Confirm(Proof { claim: reply.claim, ticket: ticket.clone() }))
            }
            _ => None,
        });
        let body = forged.into_iter().nth(age)?;
        Some(Request { id: self.chance.bytes().into(), body }.encode())
    }

    /// A request to renew a device's certificate, and adoptions of all that it might become.
    /// Another key signed them.
    fn forged_renewals(&mut self, device: usize) -> Vec<Vec<u8>> {
        let (ek_id, time) = (self.ek(device), self.ca_time().unix_timestamp().unsigned_abs());
        let sign = |message: Vec<u8>| {
            let signature = FACTORY.ik(IMPOSTOR).key.sign(&message).expect("a signature");
            signature.try_into().expect("a short signature")
        };
        let (ek_public, ek_certificates) = ek_as_shown(device);
        let of_device = self.rules.certificates_of(ek_id);
        let bodies = of_device.into_iter().flat_map(|certificate| {
            let signature = sign(Renewal::signed(&self.scope, &certificate, time));
            let (ek_public, ek_certificates) = (ek_public.clone(), ek_certificates.clone());
            let renewal = Renewal { ek_public, ek_certificates, certificate, time, signature };
            let signature = sign(Adoption::signed(&self.scope, &certificate, time));
            let adoption = Adoption { certificate, time, signature, ek_id };
            [RequestBody::Renew(renewal), RequestBody::Adopt(adoption)]
        });
        let bodies: Vec<_> = bodies.collect();
        let requests = bodies.into_iter();
        requests.map(|body| Request { id: self.chance.bytes().into(), body }.encode()).collect()
    }

    /// A request that shows a device's EK beside keys of an impostor.
    fn imposture(&mut self, device: usize, flow: Flow) -> Vec<u8> {
        let (ek_public, ek_certificates) = ek_as_shown(device);
        let body = if flow == Flow::SharedKey {
            let parent = FACTORY.import_parent(IMPOSTOR).public.clone();
            let parent_public = parent.try_into().expect("a public area");
            let (device_id, other_eks) = (None, None);
            RequestBody::Register(ParentBundle {
                device_id,
                ek_public,
                ek_certificates,
                parent_public,
                other_eks,
            })
        } else {
            let ik = FACTORY.ik(IMPOSTOR);
            let bundle = Bundle {
                device_id: None,
                ek_public,
                ek_certificates,
                ik_public: ik.public.clone().try_into().expect("a public area"),
                csr: certificate_request(ik, None).try_into().expect("a request"),
                other_eks: None,
            };
            match flow {
                Flow::Ticket => RequestBody::Challenge(bundle),
                _ => RequestBody::Enroll(bundle),
            }
        };
        Request { id: self.chance.bytes().into(), body }.encode()
    }
}

/// The operator.
impl World {
    fn enrol(
        &mut self,
        device: usize,
        name: Option<Name>,
        reprovision: Reprovision,
        plain_srk: bool,
    ) -> Result<(), Broken> {
        let device_id: Option<DeviceId> =
            name.map(|name| name.text().parse().expect("a device id"));
        let ek_id = self.ek(device);
        let is_new = self.ca.enrol(NewEnrolment {
            ek_id,
            device_id: device_id.clone(),
            recognised: "played".into(),
            reprovision: Some(reprovision),
            legacy_dps_ek: None,
            plain_srk: Some(plain_srk),
            disabled: None,
            tags: Tags::new(),
            facts: None,
            added_at: time(BEGIN),
        });
        if is_new { self.rules.enrolled(ek_id, device_id, reprovision) } else { Ok(()) }
    }

    fn set_disabled(&mut self, device: usize, disabled: bool) {
        let (ek, now) = (self.ek(device), self.ca_time());
        self.ca.set_disabled(&ek, disabled, now);
        self.rules.of(ek).disabled = disabled;
    }

    fn set_policy(&mut self, device: usize, policy: Reprovision) {
        let ek = self.ek(device);
        if self.ca.update(&ek, policy)
            && let Some(enrolment) = &mut self.rules.of(ek).enrolment
        {
            enrolment.reprovision = policy;
        }
    }

    fn prune(&mut self) {
        let now = self.ca_time();
        self.ca.prune(now);
        self.rules.pruned(now);
        // By a clock that was set forward, what waits has ended.
        self.devices.iter_mut().for_each(|device| device.has_good_key = false);
    }

    /// Stops all faults, and lets the operator allow everything.
    fn make_good(&mut self) -> Result<(), Broken> {
        self.link.heal();
        self.signing = SIGNING;
        // The CA may have recorded times while its clock was ahead. Those must pass, and quotas
        // last for a day.
        let ahead = self.latest - self.ca_time();
        self.now += ahead.unsigned_abs() + 2 * DAY;
        self.prune();
        for device in 0..DEVICES {
            self.devices[device].run = None;
            self.devices[device].clock_error = self.ca_clock_error;
            self.set_disabled(device, false);
            self.enrol(device, None, Reprovision::Reissue, false)?;
            self.set_policy(device, Reprovision::Reissue);
        }
        self.check()
    }

    /// Provisions a device until it has a credential that lets it in.
    fn come_to_an_end(&mut self, device: usize) -> Result<(), Broken> {
        let mut again = false;
        for _ in 0..3 {
            let request = ProvisionRequest { again, ..ProvisionRequest::new(self.scope.clone()) };
            self.devices[device].begin(request, false, self.now);
            match self.drive(device, None)? {
                Some(Ok(_)) if self.sign_in(device)? => return Ok(()),
                // An agent asks again if its broker does not let it in.
                Some(Ok(_)) => again = true,
                // A device that lost its state leaves the key at the handle alone. Somebody has to
                // clear the TPM.
                Some(Err(Failure::Tpm(_))) => self.devices[device].clear_tpm(),
                outcome => return Err(Broken(format!("device {device} ends with {outcome:?}"))),
            }
        }
        Err(Broken(format!("device {device} is not let in after three runs without faults")))
    }
}

fn ek_as_shown(device: usize) -> (EkPublic, CertificateList<0>) {
    let ek_public = FACTORY.eks[device].public.clone().try_into().expect("a public area");
    let certificates = FACTORY.ek_certificates[device].iter();
    let certificates = certificates.map(|it| it.clone().try_into().expect("a certificate"));
    let certificates = certificates.collect::<Vec<_>>().try_into().expect("one or none of them");
    (ek_public, certificates)
}

fn check_clear(secrets: &[Kept], to: To, message: &[u8]) -> Result<(), Broken> {
    for Kept { secret, is_ticket } in secrets {
        let is_clear = memmem::find(message, secret).is_some();
        let is_proof = || {
            let body = Request::decode(message).map(|request| request.body);
            matches!(body, Ok(RequestBody::Certify(_) | RequestBody::Confirm(_)))
        };
        let is_due = is_clear && *is_ticket && to == To::Ca && is_proof();
        rule!(!is_clear || is_due, "a secret was on the link in clear");
    }
    Ok(())
}

fn is_of(grant: &CertificateGrant, sha256: &[u8; 32]) -> bool {
    Sha256::digest(&grant.chain[0])[..] == *sha256
}

fn step_clock(error: &mut i64, step: Step) {
    match step {
        Step::Forwards(by) => *error += by.as_secs().cast_signed(),
        Step::Backwards(by) => *error -= by.as_secs().cast_signed(),
    }
}

/// How long a signature takes.
const SIGNING: Duration = Duration::from_millis(1);
/// The time until a stranger's message is answered.
const MOMENT: Duration = Duration::from_millis(50);
const DAY: Duration = Duration::from_hours(24);
/// After this time, nobody waits for a renewal any more: the certificates of EKs and of the CA must
/// not end.
const LONGEST: Duration = Duration::from_hours(5 * 365 * 24);
/// The factory's number of keys that no TPM makes.
const IMPOSTOR: usize = 63;
