//! The link: it loses, repeats, delays and corrupts messages, and keeps each message for a replay.

use std::time::Duration;

use assay_wire::{
    ConfirmedReply, Problem, ProblemCode, Receipt, Reply, ReplyBody, Request, RequestBody,
};

use crate::ca::Planned;
use crate::op::Fate;

/// The messages on their way, and all messages that were sent.
#[derive(Default)]
pub(crate) struct Link {
    in_flight: Vec<InFlight>,
    number: u64,
    /// The fate of a later message. The number says how many other messages come before it.
    faults: Vec<(u8, Fate)>,
    /// Every message, as it was sent.
    pub(crate) history: Vec<Sent>,
}

pub(crate) struct Sent {
    pub(crate) to: To,
    pub(crate) message: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Ca,
    Device,
}

struct InFlight {
    at: Duration,
    number: u64,
    arrival: Arrival,
}

/// Something that happens at a certain time.
pub(crate) enum Arrival {
    AtCa {
        client: String,
        message: Vec<u8>,
    },
    AtDevice {
        client: String,
        message: Vec<u8>,
    },
    ConnectionLost {
        client: String,
    },
    /// The CA has signed what it planned for a request of this client.
    Signed {
        client: String,
        planned: Box<Planned>,
    },
}

impl Link {
    pub(crate) fn fault(&mut self, after: u8, fate: Fate) {
        self.faults.push((after, fate));
    }

    /// Removes all faults, and everything that is on its way.
    pub(crate) fn heal(&mut self) {
        self.faults.clear();
        self.in_flight.clear();
    }

    pub(crate) fn send(&mut self, now: Duration, to: To, client: &str, message: Vec<u8>) {
        self.history.push(Sent { to, message: message.clone() });
        let arrival = |message| {
            let client = client.to_owned();
            match to {
                To::Ca => Arrival::AtCa { client, message },
                To::Device => Arrival::AtDevice { client, message },
            }
        };
        let soon = now + LATENCY;
        match self.next_fate() {
            None => self.schedule(soon, arrival(message)),
            Some(Fate::Lost) => {}
            Some(Fate::Twice(later)) => {
                self.schedule(soon, arrival(message.clone()));
                self.schedule(soon + later, arrival(message));
            }
            Some(Fate::Late(later)) => self.schedule(soon + later, arrival(message)),
            Some(Fate::Corrupted(at)) => {
                let mut message = message;
                let at = usize::from(at) * message.len() / 256;
                message[at] ^= 1;
                self.schedule(soon, arrival(message));
            }
            Some(Fate::Answered) => {
                if let Some(message) = self.forged_answer(to, &message) {
                    let client = client.to_owned();
                    self.schedule(soon, Arrival::AtDevice { client, message });
                }
            }
            Some(Fate::BreaksConnection) => {
                self.schedule(soon, Arrival::ConnectionLost { client: client.to_owned() });
            }
        }
    }

    fn next_fate(&mut self) -> Option<Fate> {
        let due = self.faults.iter().position(|(after, _)| *after == 0);
        let fate = due.map(|due| self.faults.remove(due).1);
        for (after, _) in &mut self.faults {
            *after = after.saturating_sub(1);
        }
        fate
    }

    pub(crate) fn schedule(&mut self, at: Duration, arrival: Arrival) {
        self.number += 1;
        self.in_flight.push(InFlight { at, number: self.number, arrival });
    }

    /// What happens next, if it is not after `until`.
    pub(crate) fn next(&mut self, until: Duration) -> Option<(Duration, Arrival)> {
        let first = self.in_flight.iter().enumerate().min_by_key(|(_, it)| (it.at, it.number));
        let (index, first) = first?;
        if first.at > until {
            return None;
        }
        let InFlight { at, arrival, .. } = self.in_flight.swap_remove(index);
        Some((at, arrival))
    }

    /// The lie that a dishonest broker sends to a device in answer to its request.
    fn forged_answer(&self, to: To, message: &[u8]) -> Option<Vec<u8>> {
        let Request { id, body } = Request::decode(message).ok().filter(|_| to == To::Ca)?;
        let refusal =
            || ReplyBody::Problem(Problem::new(ProblemCode::TicketRefused, "a lie".into()));
        let body = match body {
            RequestBody::Confirm(_) => {
                ReplyBody::Confirmed(ConfirmedReply { receipt: [0; Receipt::LEN].into() })
            }
            // The oldest certificate that was ever on the link.
            RequestBody::Renew(_) => self
                .oldest(|body| matches!(body, ReplyBody::Certificate(_)))
                .unwrap_or_else(refusal),
            // The oldest shared key.
            RequestBody::Register(_) => {
                self.oldest(|body| matches!(body, ReplyBody::Activation(_))).unwrap_or_else(refusal)
            }
            RequestBody::Adopt(_) => ReplyBody::Adopted,
            _ => refusal(),
        };
        Some(Reply { id, body }.encode())
    }

    fn oldest(&self, is_it: impl Fn(&ReplyBody) -> bool) -> Option<ReplyBody> {
        let replies = self.history.iter().filter(|sent| sent.to == To::Device);
        let bodies = replies.filter_map(|sent| Some(Reply::decode(&sent.message).ok()?.body));
        bodies.into_iter().find(is_it)
    }

    /// What the CA has planned and signed, but not recorded.
    pub(crate) fn planned(&mut self) -> impl Iterator<Item = &mut Planned> {
        self.in_flight.iter_mut().filter_map(|it| match &mut it.arrival {
            Arrival::Signed { planned, .. } => Some(&mut **planned),
            _ => None,
        })
    }

    /// A restarted CA forgets what it has not recorded.
    pub(crate) fn forget_signatures(&mut self) {
        self.in_flight.retain(|it| !matches!(it.arrival, Arrival::Signed { .. }));
    }
}

/// The time that a message takes in one direction.
const LATENCY: Duration = Duration::from_millis(10);
