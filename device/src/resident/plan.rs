//! Decides what the resident agent does next, and when it has to look again. No I/O and no clock:
//! the time is an argument, so tests simulate it.

use std::time::Duration;

use assay_device_core::Rotation;
use assay_mqtt::Backoff;

/// The time, by the clocks of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    /// What the device takes the time to be, in seconds since 1970.
    pub(super) wall: u64,
    /// What the machine's clock says, in seconds since 1970. People and NTP set it.
    pub(super) system: u64,
    /// Since the machine started, with the time that it was suspended. All delays count by it.
    pub(super) boot: Duration,
    /// The same without the time that it was suspended.
    pub(super) awake: Duration,
}

/// What the state directory says that the device signs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// The CA has granted nothing yet, or what it granted cannot be read any more.
    Nothing,
    /// A certificate. Times are in seconds since 1970.
    Certificate {
        serial: String,
        not_before: u64,
        not_after: u64,
        renew_at: u64,
        /// Whether the CA knows that the device has it: nothing is left to adopt or to confirm.
        is_finished: bool,
    },
    /// An HMAC key in the TPM.
    SharedKey {
        /// Its TPMT_PUBLIC.
        key: Vec<u8>,
        /// When to ask for the next one, and when that was decided, in seconds since 1970.
        rotation: Rotation,
        /// Whether the device has settled that this key stays. If not, the one before it stays,
        /// too, until a broker has taken a token of this one.
        is_settled: bool,
    },
}

/// A conversation with the CA. It takes seconds, or minutes if the CA is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// Makes sure that the device can sign in.
    Provision,
    /// Proves the TPM anew, because the broker refused what the device has.
    ProvisionAgain,
    /// Renews the certificate. The device's clock is not asked.
    Renew,
    /// Gets the next HMAC key. The device's clock is not asked.
    Rotate,
    /// Removes the HMAC key before this one. The CA is not asked.
    Settle,
}

impl Stored {
    /// From when on it is good, and when to ask for the next one.
    fn next_one(&self) -> Option<Rotation> {
        match *self {
            Self::Nothing => None,
            Self::Certificate { not_before, renew_at, .. } => {
                Some(Rotation { from: not_before, at: renew_at })
            }
            // Not before the device has settled that this key stays.
            Self::SharedKey { rotation, is_settled, .. } => is_settled.then_some(rotation),
        }
    }
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Begin a conversation with the CA. Its end is to be reported as [`Event::JobEnded`].
    Start(Job),
    /// Begin to connect to the operational listener. What comes of it is to be reported as
    /// [`Event::Connected`] or [`Event::NotConnected`]. A connection that is there stays until the
    /// new one takes its place.
    Connect,
}

/// What came of an action, or what happened by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The connection is there. A token is good for this long, and is of this HMAC key.
    Connected { good_for: Option<Duration>, key: Option<Vec<u8>> },
    /// The attempt to connect failed.
    NotConnected(Obstacle),
    /// The connection that was there has ended.
    Lost,
    /// The broker says which configurations are new.
    News(News),
    /// Another process has put this into the state directory, and the device has signed in with it.
    Found(Stored),
    /// A conversation with the CA has ended. The state directory says this now.
    JobEnded(Result<(), Obstacle>, Stored),
}

/// Which configurations are new, as far as it matters to this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    /// The newest revision that may concern this device.
    pub(super) concerns: u64,
    /// The newest revision of all.
    pub(super) newest: u64,
    /// How long devices should spread their requests over.
    pub(super) spread: Duration,
}

/// Why something failed, as far as it matters to what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It passes by itself, soon: the network, a broker that restarts, a TPM that is reset.
    Passing,
    /// It lasts until a person does something, or at least for this long.
    Lasting { retry_after: Duration },
    /// The broker does not take the device's certificate or token.
    Refused,
    /// The device has nothing usable to show: the key is not in the TPM, or the state is gone.
    Gone,
}

/// Something about time that people may want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// The clock was set forward by so many seconds, or back.
    ClockSet(i64),
    /// The machine was suspended for this long.
    Resumed(Duration),
}

/// When to look again, if nothing happens before. Whichever comes first counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wake {
    /// By the clock of delays.
    pub(super) boot: Option<Duration>,
    /// By the clock that people set, in seconds since 1970.
    pub(super) wall: Option<u64>,
}

/// The resident agent's decisions.
pub(super) struct Plan {
    stored: Stored,
    /// Since when the device has the certificate or key, or has heard of the CA that it is not due.
    stored_since: Duration,
    /// Whether it is another one than the connection began with, and nobody has acted on that.
    has_changed: bool,
    /// What the broker or the TPM said against `stored`.
    doubt: Option<Doubt>,
    link: Link,
    job: Option<Job>,
    /// No conversation with the CA before this time.
    job_after: Duration,
    job_delays: Delays,
    configuration: Configuration,
    last: Now,
    /// When delays were last cut short because of a [`Notice`].
    hurried: Option<Duration>,
    random: fn() -> u32,
}

/// What the device knows of configurations. Revisions only grow.
#[derive(Debug, Default)]
struct Configuration {
    /// The device has what concerns it up to this revision.
    known: u64,
    /// The newest revision that may concern it, and the newest of all, by the last news.
    concerns: u64,
    newest: u64,
    /// The newest of all when the CA was asked last, and when that was.
    newest_asked: u64,
    asked: Option<Duration>,
    /// When to ask the CA, if it has to be asked.
    ask_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    Refused,
    Gone,
}

/// The operational connection.
struct Link {
    up_since: Option<Duration>,
    /// The HMAC key that the connection which is there began with.
    key: Option<Vec<u8>>,
    is_connecting: bool,
    /// Whether another connection is to take the place of the one that is there.
    is_to_be_replaced: bool,
    /// When the token that the connection began with is too old.
    good_until: Option<Duration>,
    /// No attempt before this time.
    after: Duration,
    delays: Delays,
}

/// Delays that grow with each failure. Each is random below its ceiling, so that devices that were
/// cut off together do not come back together.
struct Delays {
    passing: Backoff,
    lasting: Backoff,
}

impl Delays {
    fn new() -> Self {
        Self {
            passing: Backoff::new(FIRST_DELAY, LONGEST_DELAY),
            lasting: Backoff::new(FIRST_LASTING, LONGEST_LASTING),
        }
    }

    fn after(&mut self, obstacle: Obstacle, random: u32) -> Duration {
        match obstacle {
            Obstacle::Passing | Obstacle::Gone => self.passing.next(Duration::ZERO, random),
            Obstacle::Refused => self.lasting.next(Duration::ZERO, random),
            // Anybody on the way can put a time into an answer.
            Obstacle::Lasting { retry_after } => {
                self.lasting.next(retry_after.min(LONGEST_RETRY_AFTER), random)
            }
        }
    }
}

impl Plan {
    /// Begins with what the state directory says. `random` is uniform over all values of its type.
    pub(super) fn new(stored: Stored, now: Now, random: fn() -> u32) -> Self {
        Self {
            stored,
            stored_since: now.boot,
            has_changed: false,
            doubt: None,
            link: Link {
                up_since: None,
                key: None,
                is_connecting: false,
                is_to_be_replaced: false,
                good_until: None,
                after: now.boot,
                delays: Delays::new(),
            },
            job: None,
            job_after: now.boot,
            job_delays: Delays::new(),
            configuration: Configuration::default(),
            last: now,
            hurried: None,
            random,
        }
    }

    /// The device has the configuration of this revision.
    pub(super) fn has_configuration(&mut self, revision: u64) {
        self.configuration.known = self.configuration.known.max(revision);
    }

    /// Whether the device can sign in, as far as it knows.
    pub(super) fn is_provisioned(&self) -> bool {
        self.stored != Stored::Nothing && self.doubt.is_none()
    }

    /// Whether this is another certificate or key than the device had when it last could say that
    /// all is done.
    pub(super) fn is_another(&self, stored: &Stored) -> bool {
        let is_first = self.stored == Stored::Nothing;
        let is_other = is_first || name(stored) != name(&self.stored);
        *stored != Stored::Nothing && (is_other || self.has_changed)
    }

    /// Whether another process has put this certificate or key there: no conversation with the CA
    /// is under way here whose end would tell of it.
    pub(super) fn is_anothers(&self, stored: &Stored) -> bool {
        self.job.is_none() && !self.has_changed && self.is_another(stored)
    }

    /// Looks at the clocks: whether somebody set one, or the machine was suspended. Call it first
    /// whenever the agent wakes.
    pub(super) fn observe(&mut self, now: Now) -> Option<Notice> {
        let last = std::mem::replace(&mut self.last, now);
        let asleep = |now: Now| now.boot.saturating_sub(now.awake);
        let slept = asleep(now).saturating_sub(asleep(last));
        let passed = now.boot.saturating_sub(last.boot).as_secs();
        // The machine's clock runs on while it is suspended, as the clock of delays does.
        let set_by = now.system.saturating_sub(last.system) as i64
            - last.system.saturating_sub(now.system) as i64
            - passed as i64;
        let notice = if slept >= LONG_SLEEP {
            Notice::Resumed(slept)
        } else if set_by.abs() > STEP {
            Notice::ClockSet(set_by)
        } else {
            return None;
        };
        // The broker has given up a device that it did not hear of for so long.
        self.link.is_to_be_replaced |=
            matches!(notice, Notice::Resumed(_)) && self.link.up_since.is_some();
        self.hurry(now);
        Some(notice)
    }

    /// A clock that was set, or a machine that was moved, may be just what was missing.
    fn hurry(&mut self, now: Now) {
        if self.hurried.is_some_and(|before| now.boot.saturating_sub(before) < LONGEST_DELAY) {
            return;
        }
        self.hurried = Some(now.boot);
        let soon = now.boot + part(FIRST_DELAY, (self.random)());
        self.job_after = self.job_after.min(soon);
        self.link.after = self.link.after.min(soon);
    }

    /// The next thing to do now, if there is any. Call it until there is none.
    pub(super) fn next(&mut self, now: Now) -> Option<Action> {
        if self.job.is_none()
            && now.boot >= self.job_after
            && let Some(job) = self.due(now)
        {
            self.job = Some(job);
            self.configuration.newest_asked = self.configuration.newest;
            self.configuration.asked = Some(now.boot);
            return Some(Action::Start(job));
        }
        if self.link.good_until.is_some_and(|end| now.boot >= end) {
            self.link.is_to_be_replaced |= self.link.up_since.is_some();
            self.link.good_until = None;
        }
        if self.wants_to_connect(now) && now.boot >= self.link.after {
            self.link.is_connecting = true;
            return Some(Action::Connect);
        }
        None
    }

    /// When to call [`next`](Self::next) again if nothing happens before.
    pub(super) fn wake(&self, now: Now) -> Wake {
        let mut wake = Wake::default();
        let mut at = |time: Duration| wake.boot = Some(wake.boot.map_or(time, |it| it.min(time)));
        if self.wants_to_connect(now) {
            at(self.link.after);
        }
        if let Some(end) = self.link.good_until {
            at(end);
        }
        if self.job.is_none() {
            if self.due(now).is_some() {
                at(self.job_after);
            } else if let Some(Rotation { from, at: due }) = self.stored.next_one() {
                at(self.stored_since + Duration::from_secs(due.saturating_sub(from)));
                wake.wall = Some(due);
                if let Some(ask_at) = self.asks_for_configuration() {
                    at(ask_at);
                }
            }
        }
        wake
    }

    /// Which conversation with the CA is due, whatever it has to wait for.
    fn due(&self, now: Now) -> Option<Job> {
        match (self.doubt, &self.stored) {
            (Some(Doubt::Refused), Stored::Certificate { .. } | Stored::SharedKey { .. }) => {
                Some(Job::ProvisionAgain)
            }
            (Some(Doubt::Gone), _) | (_, Stored::Nothing) => Some(Job::Provision),
            (None, Stored::SharedKey { key, is_settled, .. }) => {
                if !is_settled && self.link.key.as_ref() == Some(key) {
                    Some(Job::Settle)
                } else {
                    self.is_time_for_the_next_one(now).then_some(Job::Rotate)
                }
            }
            (None, Stored::Certificate { not_after, is_finished, .. }) => {
                if now.wall > *not_after || !is_finished {
                    Some(Job::Provision)
                } else if self.is_time_for_the_next_one(now)
                    // The CA answers with the certificate that is there, and with what is new.
                    || self.asks_for_configuration().is_some_and(|ask_at| now.boot >= ask_at)
                {
                    Some(Job::Renew)
                } else {
                    None
                }
            }
        }
    }

    /// Whether the certificate or key is due, by the clock or because the device has had it for so
    /// long. A clock that was set back, or none at all, must not keep it for ever.
    fn is_time_for_the_next_one(&self, now: Now) -> bool {
        let held = now.boot.saturating_sub(self.stored_since).as_secs();
        self.stored
            .next_one()
            .is_some_and(|Rotation { from, at }| now.wall >= at || held >= at.saturating_sub(from))
    }

    /// When to ask the CA for a configuration, which comes with a certificate.
    fn asks_for_configuration(&self) -> Option<Duration> {
        let has_certificate = matches!(self.stored, Stored::Certificate { .. });
        self.configuration.ask_at.filter(|_| has_certificate)
    }

    fn wants_to_connect(&self, now: Now) -> bool {
        let is_usable = match &self.stored {
            Stored::Nothing => false,
            Stored::Certificate { not_after, .. } => now.wall <= *not_after,
            Stored::SharedKey { .. } => true,
        };
        let is_wanted = self.link.up_since.is_none() || self.link.is_to_be_replaced;
        is_usable && self.doubt.is_none() && is_wanted && !self.link.is_connecting
    }

    /// Takes note of what happened.
    pub(super) fn handle(&mut self, now: Now, event: Event) {
        let random = (self.random)();
        match event {
            Event::Connected { good_for, key } => {
                let link = &mut self.link;
                link.up_since = Some(now.boot);
                link.key = key;
                link.is_connecting = false;
                link.is_to_be_replaced = false;
                link.good_until = good_for.map(|time| now.boot + fresh_for(time, random));
            }
            Event::NotConnected(obstacle) => {
                self.link.is_connecting = false;
                self.link.after = now.boot + self.link.delays.after(obstacle, random);
                self.doubt = match obstacle {
                    Obstacle::Refused => Some(Doubt::Refused),
                    Obstacle::Gone => Some(Doubt::Gone),
                    Obstacle::Passing | Obstacle::Lasting { .. } => self.doubt,
                };
            }
            Event::Lost => {
                let link = &mut self.link;
                let since = link.up_since.take();
                link.key = None;
                link.is_to_be_replaced = false;
                link.good_until = None;
                // Only a connection that lasted shows that the trouble is over.
                if since.is_some_and(|since| now.boot.saturating_sub(since) >= STABLE) {
                    link.delays = Delays::new();
                    self.job_delays = Delays::new();
                }
                link.after = now.boot + link.delays.after(Obstacle::Passing, random);
            }
            Event::News(news) => self.hear_news(now, news, random),
            Event::Found(stored) => {
                self.stored = stored;
                self.stored_since = now.boot;
            }
            Event::JobEnded(outcome, stored) => self.job_ended(now, outcome, stored, random),
        }
    }

    /// Nobody signed the news: whoever can write to the broker can have the device ask, so it asks
    /// seldom.
    fn hear_news(&mut self, now: Now, news: News, random: u32) {
        let News { concerns, newest, spread } = news;
        let configuration = &mut self.configuration;
        if newest < configuration.known {
            // Some of it was not true.
            configuration.known = 0;
        }
        (configuration.concerns, configuration.newest) = (concerns, newest);
        if concerns <= configuration.known {
            configuration.known = newest;
            configuration.ask_at = None;
            return;
        }
        let soon = now.boot + part(spread.clamp(SHORTEST_SPREAD, LONGEST_SPREAD), random);
        let earliest = configuration.asked.map_or(Duration::ZERO, |asked| asked + BETWEEN_ASKING);
        let at = soon.max(earliest);
        configuration.ask_at = Some(configuration.ask_at.map_or(at, |before| before.min(at)));
    }

    fn job_ended(&mut self, now: Now, outcome: Result<(), Obstacle>, stored: Stored, random: u32) {
        let ended = self.job.take();
        let is_another = self.is_another(&stored);
        let has_asked = matches!(ended, Some(Job::Renew | Job::Rotate)) && outcome.is_ok();
        if is_another || has_asked {
            self.stored_since = now.boot;
        }
        if ended == Some(Job::Renew) && outcome.is_ok() {
            let configuration = &mut self.configuration;
            configuration.known = configuration.known.max(configuration.newest_asked);
            // Perhaps something more has changed since.
            if configuration.concerns <= configuration.known {
                configuration.ask_at = None;
            } else {
                configuration.ask_at = Some(now.boot + BETWEEN_ASKING);
            }
        }
        self.stored = stored;
        self.has_changed = is_another && outcome.is_err();
        match outcome {
            Ok(()) => {
                let was_refused = self.doubt == Some(Doubt::Refused);
                self.doubt = None;
                if is_another {
                    self.link.is_to_be_replaced = self.link.up_since.is_some();
                    if was_refused {
                        let delay = self.link.delays.after(Obstacle::Passing, random);
                        self.link.after = self.link.after.min(now.boot + delay);
                    }
                }
                // What is due again at once, as in a CA whose every certificate is due, waits.
                self.job_after = now.boot;
                if self.due(now).is_some() {
                    let obstacle = Obstacle::Lasting { retry_after: Duration::ZERO };
                    self.job_after += self.job_delays.after(obstacle, random);
                } else {
                    self.job_delays = Delays::new();
                }
            }
            Err(obstacle) => {
                self.job_after = now.boot + self.job_delays.after(obstacle, random);
                // Perhaps the broker has changed its mind. It is asked first, in its own time.
                if self.doubt == Some(Doubt::Refused) {
                    self.doubt = None;
                    self.link.after = self.link.after.max(self.job_after);
                }
            }
        }
    }
}

/// By what a certificate or a key is told from others.
fn name(stored: &Stored) -> Option<&[u8]> {
    match stored {
        Stored::Certificate { serial, .. } => Some(serial.as_bytes()),
        Stored::SharedKey { key, .. } => Some(key),
        Stored::Nothing => None,
    }
}

/// How long a connection that began with a token may stay: between three and four fifths of the
/// token's time.
fn fresh_for(good_for: Duration, random: u32) -> Duration {
    good_for / 5 * 3 + part(good_for / 5, random)
}

/// A random part of a time.
fn part(time: Duration, random: u32) -> Duration {
    time.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// The longest first delay after something that passes by itself. It is short, so that a device
/// soon reaches a broker that only restarts.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// The longest delay after something that passes by itself, as of `assay-device provision`.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// The longest first delay after something that a person has to change.
const FIRST_LASTING: Duration = Duration::from_secs(10);
/// The longest delay after something that a person has to change: one request in about eight
/// minutes costs nobody anything, and an operator who enables a device has it back soon.
const LONGEST_LASTING: Duration = Duration::from_mins(15);
/// The longest time that the CA may ask for: that of a quota. Whoever is on the way can write any
/// time into an answer, and a device must not stay away because of it.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(24);
/// Even if the CA knows of few devices, those that hear at once should not ask at once.
const SHORTEST_SPREAD: Duration = Duration::from_secs(1);
/// Nobody signed the time that the news say. In an hour, a CA answers millions of devices.
const LONGEST_SPREAD: Duration = Duration::from_hours(1);
/// At least this long from one request to the next that only news cause.
const BETWEEN_ASKING: Duration = Duration::from_secs(10);
/// A connection that lasted for so long was a good one. Two devices that share an identity cut each
/// other off: their delays have to grow.
const STABLE: Duration = Duration::from_secs(60);
/// A broker gives up a client that is silent for one and a half keep-alives, and ours are 60 s or more.
const LONG_SLEEP: Duration = Duration::from_secs(60);
/// Seconds by which the machine's clock has to leave the clock of delays, so that somebody has set
/// it. NTP lets both run faster or slower together, as long as it does not set the clock.
const STEP: i64 = 5;

#[cfg(test)]
mod tests;
