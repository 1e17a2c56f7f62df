//! What the core asks of the network, done by a [`Link`] or an [`OperationalLine`].

use std::thread;
use std::time::{Duration, Instant};

use assay_device_core::{self as core, Action, Event};

use crate::error::Error;
use crate::link::{Broker, Closing, Heard, Link};
use crate::operational_line::OperationalLine;
use crate::probe;
use crate::random::random;
use crate::trouble::Trouble;

/// Does what one machine asks of the network. The machine's time counts from its start.
pub(crate) struct Talk {
    broker: Broker,
    start: Instant,
    /// A connection that is there. It is used first, and once: whatever goes wrong on it, the
    /// bootstrap listener is asked next.
    operational: Option<OperationalLine>,
    link: Option<Way>,
    closing: Option<Closing>,
    waited: Duration,
    is_probed: bool,
    /// Why no other attempt can succeed. The core knows only that there is such a reason.
    error: Option<Error>,
}

/// What requests and replies go over.
enum Way {
    Bootstrap(Link),
    Operational(OperationalLine),
}

impl Talk {
    pub(crate) fn start(broker: Broker) -> Self {
        Self {
            broker,
            start: Instant::now(),
            operational: None,
            link: None,
            closing: None,
            waited: Duration::ZERO,
            is_probed: false,
            error: None,
        }
    }

    /// The same, by a connection that is there.
    pub(crate) fn by(self, operational: Option<OperationalLine>) -> Self {
        Self { operational, ..self }
    }

    /// The machine's time.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// How long the machine has waited for the broker and the CA so far.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    /// Why no other attempt can succeed, in full.
    pub(crate) fn take_error(&mut self) -> Option<Error> {
        self.error.take()
    }

    /// Does what the action says. Returns the event that answers it, if there is one already.
    pub(crate) fn perform(&mut self, action: Action) -> Result<Option<Event>, Error> {
        match action {
            Action::Draw => return Ok(Some(Event::Random(random()))),
            Action::Connect(connection) => {
                // A broker has few places for strangers, so an earlier connection ends before the
                // next.
                self.closing = None;
                self.link = Some(match self.operational.take() {
                    Some(line) => Way::Operational(line),
                    None => Way::Bootstrap(Link::open(&self.broker, connection)?),
                });
            }
            Action::Send(message) => {
                if let Some(Err(trouble)) = self.link.as_ref().map(|way| way.publish(message)) {
                    return Ok(Some(self.lost(trouble)));
                }
            }
            Action::Disconnect => self.closing = self.link.take().and_then(Way::close),
            Action::Wait { until } => {
                let begin = Instant::now();
                let event = self.wait(until.saturating_sub(self.now()));
                self.waited += begin.elapsed();
                return Ok(Some(event));
            }
            // This is for people only.
            Action::Progress(_) => {}
            other => {
                return Err(Error::Internal(format!("{other:?} is not an action of the network")));
            }
        }
        Ok(None)
    }

    fn wait(&mut self, limit: Duration) -> Event {
        let Some(link) = &self.link else {
            thread::sleep(limit);
            return Event::Time;
        };
        match link.hear(limit) {
            None => Event::Time,
            Some(Heard::Connected) => Event::Connected,
            Some(Heard::Reply(message)) => Event::Reply(message),
            Some(Heard::Lost(trouble)) => self.lost(trouble),
        }
    }

    fn lost(&mut self, trouble: Trouble) -> Event {
        if matches!(self.link, Some(Way::Operational(_))) {
            // It says nothing of the bootstrap listener, which is asked next.
            let reason = trouble.examined(|| None).unwrap_or_else(|error| error.to_string());
            return Event::Lost(core::Trouble::Passing(reason));
        }
        // A full broker closes connections too, so it is probed only once.
        let is_first = !std::mem::replace(&mut self.is_probed, true);
        let Broker { url, tls, .. } = &self.broker;
        let reason =
            trouble.examined(|| if is_first { probe::other_protocol(url, tls) } else { None });
        Event::Lost(match reason {
            Ok(reason) => core::Trouble::Passing(reason),
            Err(error) => {
                self.error = Some(error);
                core::Trouble::Lasting
            }
        })
    }
}

impl Way {
    fn publish(&self, message: Vec<u8>) -> Result<(), Trouble> {
        match self {
            Self::Bootstrap(link) => link.publish(message),
            Self::Operational(line) => line.publish(message),
        }
    }

    fn hear(&self, limit: Duration) -> Option<Heard> {
        match self {
            Self::Bootstrap(link) => link.hear(limit),
            Self::Operational(line) => line.hear(limit),
        }
    }

    /// The operational connection stays.
    fn close(self) -> Option<Closing> {
        match self {
            Self::Bootstrap(link) => Some(link.close()),
            Self::Operational(_) => None,
        }
    }
}
