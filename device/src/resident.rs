//! The resident agent: gets a device its certificate or key, keeps it good, and holds one
//! connection to the operational listener that says whether the device is there.

mod heard;
mod lines;
mod meaning;
mod plan;
mod program;
mod programs;
mod session;
mod systemd;
mod timer;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use assay_device_core::{HmacPublic, Verdict, rfc3339};
use assay_mqtt::BrokerUrl;
use assay_wire::DeviceId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::heard::Heard;
use self::lines::Lines;
pub use self::lines::{Change, Changes};
use self::meaning::{obstacle, refuse_what_nobody_can_mend, stored};
use self::plan::{Action, Event, Job, Notice, Now, Obstacle, Plan, Stored};
use self::programs::{Occasion, Programs};
use self::session::Session;
use self::systemd::Systemd;
use self::timer::Timer;
use crate::clock::Clock;
use crate::configuration::{DeviceConfiguration, configuration};
use crate::credentials::SignIn;
use crate::device::{Device, ProvisionRequest, Provisioned};
use crate::error::Error;
use crate::probe;
use crate::random::random;
use crate::runtime::runtime;
use crate::state;
use crate::trouble::Trouble;

/// What the resident agent is told.
#[derive(Clone, Debug)]
pub struct ResidentOptions {
    /// What the device asks for, and at which bootstrap listener. `again` is not used.
    pub request: ProvisionRequest,
    /// The operational listener.
    pub operational: BrokerUrl,
    /// The state directory, as of the devices that are opened.
    pub state: PathBuf,
    /// The program to run, with its arguments, whenever the device has another certificate or HMAC
    /// key than before: the first one, a renewed one, or one for another key. It runs without a
    /// shell, for a minute at most, with PATH, `ASSAY_STATE`, `ASSAY_CERTIFICATE` and
    /// `ASSAY_DEVICE_ID` as its whole environment.
    pub on_renewed: Vec<String>,
    /// The program to run, with its arguments, for each message on a command topic of the device.
    /// It gets the message on its standard input, and in `ASSAY_COMMAND` the topic below
    /// `command/`. The rest is as for `on_renewed`. One runs at a time.
    pub on_command: Vec<String>,
    /// The program to run, with its arguments, whenever the device has a new configuration. It gets
    /// the document on its standard input, nothing if the operator removed it, and in
    /// `ASSAY_REVISION` the revision. The rest is as for `on_renewed`. Until it ends with success,
    /// each start of the agent runs it again.
    pub on_configuration: Vec<String>,
}

/// Runs the resident agent until SIGTERM or SIGINT comes.
///
/// It opens a device, by `open`, for each thing that it does, and holds none in between: other
/// programs can use the state directory and the TPM, and what `open` reads may change, e.g. the
/// root certificate.
///
/// # Errors
/// Only what no waiting mends: a setting that cannot be right ([`Error::Usage`]), and a TPM that
/// does not come back from a command, because only another process can reach it again.
///
/// Runs an event loop of its own: call it from a thread, not from an async task.
pub fn run_resident(
    open: &dyn Fn() -> Result<Device, Error>,
    options: &ResidentOptions,
    changes: Changes<'_>,
) -> Result<(), Error> {
    let device = Arc::new(open()?);
    let _only_agent = state::hold_for_agent(&options.state)?;
    let clock = device.clock();
    let (sender, heard) = mpsc::channel(HEARD);
    let now = timer::now(clock.now().as_secs());
    let plan = Plan::new(stored(&options.state), now, || u32::from_ne_bytes(random()));
    let mut agent = Agent {
        open,
        options,
        device: Arc::downgrade(&device),
        clock,
        plan,
        session: None,
        attempt: None,
        connections: 0,
        programs: Programs::new(
            options.state.clone(),
            options.on_renewed.clone(),
            options.on_command.clone(),
            options.on_configuration.clone(),
            sender.clone(),
        ),
        configuration: None,
        sender,
        lines: Lines::new(changes),
        systemd: Systemd::new(),
    };
    drop(device);
    // If it cannot be read, the CA sends it again.
    agent.configuration = configuration(&options.state).unwrap_or_default();
    runtime()?.block_on(agent.run(heard))
}

struct Agent<'a> {
    open: &'a dyn Fn() -> Result<Device, Error>,
    options: &'a ResidentOptions,
    /// The device that a conversation with the CA uses, if there is one: nobody else can open it
    /// meanwhile.
    device: Weak<Device>,
    clock: Clock,
    plan: Plan,
    /// The connection that is there.
    session: Option<Session>,
    /// The one that is on its way.
    attempt: Option<Dialled>,
    connections: u64,
    programs: Programs,
    /// The newest one that was noticed.
    configuration: Option<DeviceConfiguration>,
    sender: mpsc::Sender<Heard>,
    lines: Lines<'a>,
    systemd: Systemd,
}

struct Dialled {
    session: Session,
    device_id: DeviceId,
    /// What to tell when it is there.
    online: String,
    good_for: Option<Duration>,
    /// The HMAC key that signed its token.
    key: Option<HmacPublic>,
}

impl Agent<'_> {
    async fn run(&mut self, mut heard: mpsc::Receiver<Heard>) -> Result<(), Error> {
        let timer = Timer::new()?;
        let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        self.begin_with_configuration();
        loop {
            let now = self.now();
            if let Some(notice) = self.plan.observe(now) {
                self.lines.note(&self.systemd, &text_of(notice, now));
            }
            while let Some(action) = self.plan.next(now) {
                match action {
                    Action::Start(job) => self.start(job)?,
                    Action::Connect => self.connect()?,
                }
            }
            if self.plan.is_provisioned() {
                self.systemd.ready();
            }
            let wake = self.plan.wake(now);
            tokio::select! {
                Some(heard) = heard.recv() => self.hear(heard)?,
                woken = timer.wait(wake, now) => woken?,
                () = self.systemd.pulse() => {}
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
            }
        }
        self.systemd.stopping();
        if let Some(session) = self.session.take() {
            session.close().await;
        }
        self.lines.note(&self.systemd, "stopped");
        Ok(())
    }

    fn now(&self) -> Now {
        timer::now(self.clock.now().as_secs())
    }

    /// The device, with its state directory locked until it is dropped.
    fn device(&mut self) -> Result<Arc<Device>, Error> {
        if let Some(device) = self.device.upgrade() {
            return Ok(device);
        }
        let device = Arc::new((self.open)()?);
        (self.device, self.clock) = (Arc::downgrade(&device), device.clock());
        Ok(device)
    }

    /// Begins a conversation with the CA, on a thread of its own.
    fn start(&mut self, job: Job) -> Result<(), Error> {
        let device = match self.device() {
            Ok(device) => device,
            Err(error) => return self.job_ended(Err(error)),
        };
        let request =
            ProvisionRequest { again: job == Job::ProvisionAgain, ..self.options.request.clone() };
        if stored(&self.options.state) == Stored::Nothing {
            let text = format!("asking the CA at {}", request.broker);
            self.lines.trouble(&self.systemd, &text, None);
        }
        let session = self.session.as_ref().filter(|_| job == Job::Renew);
        let line = session.map(Session::line);
        let sender = self.sender.clone();
        thread::spawn(move || {
            let mut progress = |step: &str, _| {
                if let Some(reason) = reason_of_retry(step) {
                    _ = sender.blocking_send(Heard::Retrying(reason.into()));
                }
                if REFUSALS.iter().any(|refusal| step.starts_with(refusal)) {
                    _ = sender.blocking_send(Heard::Refusal(step.into()));
                }
            };
            let outcome = match job {
                // The broker may not take the newer of two HMAC keys because somebody else than the
                // CA sent it.
                Job::ProvisionAgain if matches!(device.key_to_prove(), Ok(Some(_))) => {
                    let request = ProvisionRequest { again: false, ..request };
                    device.settle(Verdict::Refused, &request, &mut progress)
                }
                Job::Provision | Job::ProvisionAgain => device.provision(&request, &mut progress),
                Job::Rotate => device.rotate(&request, &mut progress),
                Job::Settle => device.settle(Verdict::Accepted, &request, &mut progress),
                Job::Renew => device.renew_over(line, &request, &mut progress),
            };
            // What comes next may open it again.
            drop(device);
            _ = sender.blocking_send(Heard::JobEnded(Box::new(outcome)));
        });
        Ok(())
    }

    fn connect(&mut self) -> Result<(), Error> {
        let broker = &self.options.operational;
        let signed_in = self.device().and_then(|device| device.sign_in(broker, TOKEN_LIFETIME));
        let sign_in = match signed_in {
            Ok(sign_in) => sign_in,
            Err(error) => return self.not_connected("not connected", error),
        };
        let online = text_of_sign_in(&sign_in, broker);
        let good_for = sign_in.password.is_some().then_some(TOKEN_LIFETIME);
        let (device_id, key) = (sign_in.device_id.clone(), sign_in.key.clone());
        self.connections += 1;
        let sender = self.sender.clone();
        let takes_commands = !self.options.on_command.is_empty();
        let session = Session::open(self.connections, broker, sign_in, takes_commands, sender);
        self.attempt = Some(Dialled { session, device_id, online, good_for, key });
        Ok(())
    }

    fn hear(&mut self, heard: Heard) -> Result<(), Error> {
        match heard {
            Heard::Up(number) => self.up(number),
            Heard::NoPresence(number, reason) => {
                if self.session.as_ref().is_some_and(|session| session.number == number) {
                    let text =
                        format!("the broker does not take this device's presence: {reason:?}");
                    self.lines.trouble(&self.systemd, &text, None);
                }
            }
            Heard::Over(number, trouble) => return self.over(number, trouble),
            Heard::Retrying(reason) => {
                let text = format!("not done yet, and the CA is asked again: {reason}");
                self.lines.trouble(&self.systemd, &text, None);
            }
            Heard::Refusal(text) => self.lines.trouble(&self.systemd, &text, None),
            Heard::News(number, news) => {
                if self.session.as_ref().is_some_and(|session| session.number == number) {
                    self.plan.handle(self.now(), Event::News(news));
                }
            }
            Heard::JobEnded(outcome) => return self.job_ended(*outcome),
            Heard::NotSubscribed(number, filter, reason) => {
                if self.session.as_ref().is_some_and(|session| session.number == number) {
                    let text = format!("the broker lets nobody hear of {filter}: {reason:?}");
                    self.lines.trouble(&self.systemd, &text, None);
                }
            }
            Heard::Command(device_id, occasion) => self.run_program(device_id, occasion),
            Heard::ProgramEnded(occasion, outcome) => {
                for line in self.programs.ended(&occasion, outcome) {
                    self.lines.note(&self.systemd, &line);
                }
            }
        }
        Ok(())
    }

    fn up(&mut self, number: u64) {
        let Some(dialled) = self.attempt.take_if(|it| it.session.number == number) else { return };
        let Dialled { session, device_id, online, good_for, key } = dialled;
        // The broker has ended an earlier connection of this device (MQTT 5.0, 3.1.4).
        self.session = Some(session);
        let key = key.map(|HmacPublic(key)| key);
        self.plan.handle(self.now(), Event::Connected { good_for, key });
        self.lines.well(&self.systemd, &online);
        // Another process may have got the device another certificate meanwhile.
        let stored = stored(&self.options.state);
        if self.plan.is_anothers(&stored) {
            self.plan.handle(self.now(), Event::Found(stored));
            self.run_program(device_id, Occasion::Renewed);
        }
    }

    fn over(&mut self, number: u64, trouble: Trouble) -> Result<(), Error> {
        if self.session.take_if(|session| session.number == number).is_some() {
            let reason = trouble.examined(|| None).unwrap_or_else(|error| error.to_string());
            self.lines.trouble(&self.systemd, &format!("offline: {reason}"), None);
            self.plan.handle(self.now(), Event::Lost);
        } else if self.attempt.take_if(|it| it.session.number == number).is_some() {
            // It takes a few seconds, and a broker that is away closes connections too.
            let probe = || if self.connections == 1 { self.probe() } else { None };
            match trouble.examined(probe) {
                Ok(reason) => {
                    let text = format!("not connected: {reason}");
                    self.lines.trouble(&self.systemd, &text, None);
                    self.plan.handle(self.now(), Event::NotConnected(Obstacle::Passing));
                }
                Err(error) => return self.not_connected("not connected", error),
            }
        }
        Ok(())
    }

    /// What is wrong if the operational listener speaks another protocol.
    fn probe(&self) -> Option<Error> {
        let device = self.device.upgrade().map(Ok).unwrap_or_else(|| (self.open)().map(Arc::new));
        let tls = device.ok()?.bootstrap_tls().ok()?;
        probe::other_protocol(&self.options.operational, &tls)
    }

    fn not_connected(&mut self, text: &str, error: Error) -> Result<(), Error> {
        refuse_what_nobody_can_mend(&error)?;
        self.lines.trouble(&self.systemd, text, Some(&error));
        self.plan.handle(self.now(), Event::NotConnected(obstacle(&error)));
        Ok(())
    }

    fn job_ended(&mut self, outcome: Result<Provisioned, Error>) -> Result<(), Error> {
        let stored = stored(&self.options.state);
        let is_another = self.plan.is_another(&stored);
        // Also of a conversation that did not end well.
        self.notice_configuration();
        let outcome = match outcome {
            Ok(provisioned) => {
                if is_another {
                    self.tell_of(&provisioned, &stored);
                    self.run_program(provisioned.device_id, Occasion::Renewed);
                }
                Ok(())
            }
            Err(error) => {
                refuse_what_nobody_can_mend(&error)?;
                let what =
                    if self.plan.is_provisioned() { "not renewed" } else { "not provisioned" };
                self.lines.trouble(&self.systemd, what, Some(&error));
                Err(obstacle(&error))
            }
        };
        self.plan.handle(self.now(), Event::JobEnded(outcome, stored));
        Ok(())
    }

    fn tell_of(&mut self, provisioned: &Provisioned, stored: &Stored) {
        let id = &provisioned.device_id;
        let text = match stored {
            Stored::Certificate { serial, renew_at, .. } => {
                format!("{id} has certificate {serial}, to be renewed at {}", rfc3339(*renew_at))
            }
            Stored::SharedKey { rotation, .. } => {
                format!("{id} has its key, to be rotated at {}", rfc3339(rotation.at))
            }
            Stored::Nothing => format!("{id} has nothing"),
        };
        self.lines.note(&self.systemd, &text);
    }

    /// An earlier agent may have ended before the program had taken what was kept.
    fn begin_with_configuration(&mut self) {
        let Some(kept) = self.configuration.clone() else { return };
        self.plan.has_configuration(kept.revision);
        if kept.revision != state::told(&self.options.state) {
            self.run_program(kept.device_id.clone(), Occasion::Configuration(kept));
        }
    }

    fn notice_configuration(&mut self) {
        // Whoever broke the file since it was written hears of that from other commands.
        let Ok(Some(kept)) = configuration(&self.options.state) else { return };
        self.plan.has_configuration(kept.revision);
        if self.configuration.as_ref() == Some(&kept) {
            return;
        }
        let what = match &kept.document {
            Some(document) => format!("{} bytes", document.len()),
            None => "removed".into(),
        };
        let text = format!("{} has configuration {}: {what}", kept.device_id, kept.revision);
        self.lines.note(&self.systemd, &text);
        self.configuration = Some(kept.clone());
        self.run_program(kept.device_id.clone(), Occasion::Configuration(kept));
    }

    fn run_program(&mut self, device_id: DeviceId, occasion: Occasion) {
        if let Some(line) = self.programs.on(device_id, occasion, Instant::now()) {
            self.lines.note(&self.systemd, &line);
        }
    }
}

fn text_of_sign_in(sign_in: &SignIn, broker: &BrokerUrl) -> String {
    let SignIn { device_id, serial, .. } = sign_in;
    match serial {
        Some(serial) => format!("online as {device_id} at {broker}, by certificate {serial}"),
        None => format!("online as {device_id} at {broker}, by a token"),
    }
}

fn text_of(notice: Notice, now: Now) -> String {
    match notice {
        Notice::ClockSet(by) => {
            let direction = if by < 0 { "back" } else { "forward" };
            let time = rfc3339(now.wall);
            format!("the clock was set {direction} by {} s: it says {time}", by.unsigned_abs())
        }
        Notice::Resumed(slept) => format!("the machine was suspended for {} s", slept.as_secs()),
    }
}

/// Why an attempt failed, if the step of a conversation with the CA is about that.
fn reason_of_retry(step: &str) -> Option<&str> {
    step.strip_prefix("trying again in ")?.split_once(": ").map(|(_, reason)| reason)
}

fn no_signals(error: std::io::Error) -> Error {
    Error::Internal(format!("signals: {error}"))
}

/// Half of what the CA takes at most, so that clocks may disagree. The agent connects anew, with
/// another token, before this one ends.
const TOKEN_LIFETIME: Duration = Duration::from_hours(12);
/// How the steps of a conversation begin that say what is not done, although it ends well.
const REFUSALS: [&str; 2] = ["the configuration is not taken", "the HMAC key is not rotated"];
/// Few reports come at once: of two connections, a conversation and a program.
const HEARD: usize = 16;

#[cfg(test)]
mod tests {
    use assay_device_core::Step;

    use super::*;

    #[test]
    fn reason_of_a_retry_is_told_and_other_steps_are_not() {
        let step = Step::Retry { delay: Duration::from_millis(300), reason: "gone: 1".into() };
        assert_eq!(reason_of_retry(&step.to_string()), Some("gone: 1"));
        assert_eq!(reason_of_retry(&Step::Connected.to_string()), None);
        let refusals =
            [Step::ConfigurationRefused("older".into()), Step::NotRotated("never".into())];
        for (step, beginning) in refusals.into_iter().zip(REFUSALS) {
            assert!(step.to_string().starts_with(beginning));
        }
    }
}
