//! Requests on their way to a planner.

use crossbeam_channel as channel;

use super::job::Job;
use super::planned::Planned;
use super::pulse::Pulse;

/// What a planner takes.
pub(super) enum Work {
    Job(Box<Job>),
    /// The basis of its plan changed before it was recorded.
    Again(Box<Planned>),
    Pulse(Pulse),
}

/// Bounded queues.
#[derive(Clone)]
pub(super) struct Queues<End> {
    /// Requests that start a flow.
    first: End,
    /// Requests that finish a flow. They go first: if they found no place, the device would start
    /// the whole flow again.
    last: End,
}

impl Queues<channel::Sender<Box<Job>>> {
    pub(super) fn new() -> (Self, Queues<channel::Receiver<Box<Job>>>) {
        let ((first, firsts), (last, lasts)) = (channel::bounded(QUEUE), channel::bounded(QUEUE));
        (Self { first, last }, Queues { first: firsts, last: lasts })
    }

    /// Gives the job back if its queue is full.
    pub(super) fn put(&self, job: Box<Job>) -> Result<(), channel::TrySendError<Box<Job>>> {
        let finishes = job.received.head.as_ref().is_ok_and(|head| head.finishes_a_flow());
        let queue = if finishes { &self.last } else { &self.first };
        queue.try_send(job)
    }
}

impl Queues<channel::Receiver<Box<Job>>> {
    /// How many requests wait that start a flow, and that finish one.
    pub(super) fn lengths(&self) -> [usize; 2] {
        [self.first.len(), self.last.len()]
    }

    /// The next job, or a pulse, or what is to be planned again; `None` when nobody is left to put
    /// a job there.
    ///
    /// `taken` counts the jobs taken before. Every eighth job may be one that starts a flow, so
    /// that nobody can keep new devices out by repeating a good last request.
    pub(super) fn take(
        &self,
        taken: usize,
        pulses: &channel::Receiver<Pulse>,
        again: &channel::Receiver<Box<Planned>>,
    ) -> Option<Work> {
        if taken % LASTS_PER_FIRST == LASTS_PER_FIRST - 1
            && let Ok(job) = self.first.try_recv()
        {
            return Some(Work::Job(job));
        }
        channel::select_biased! {
            recv(pulses) -> pulse => pulse.ok().map(Work::Pulse),
            recv(again) -> planned => planned.ok().map(Work::Again),
            recv(self.last) -> job => job.ok().map(Work::Job),
            recv(self.first) -> job => job.ok().map(Work::Job),
        }
    }
}

/// Requests that wait in either queue: at some thousands a second, a tenth of a second's work.
pub(super) const QUEUE: usize = 256;
/// While requests that finish a flow wait, one job in eight may start a flow. If both kinds come at
/// the rate of normal flows, there are equally many of each.
const LASTS_PER_FIRST: usize = 8;

#[cfg(test)]
mod tests {
    use assay_wire::{ClientId, Proof, Request, RequestBody, RequestId};
    use time::OffsetDateTime;

    use crate::pipeline::job::{Delivery, Received};
    use crate::pipeline::ledger::Ledger;

    use super::*;

    fn job(message: Vec<u8>) -> Job {
        let _debt = Ledger::default().owe();
        let since = std::time::Instant::now();
        let client = ClientId::bootstrap([0; 16]);
        Job {
            received: Received::new(client, message.into(), None, OffsetDateTime::UNIX_EPOCH),
            delivery: Delivery { packet_id: 1, connection: 0, since, _debt },
        }
    }

    #[test]
    fn requests_that_finish_a_flow_go_first_and_those_that_start_one_get_their_turn() {
        let (queues, jobs) = Queues::new();
        let proof = Proof { claim: b"claim".to_vec().try_into().unwrap(), ticket: [0; 32].into() };
        let last = Request { id: RequestId::NIL, body: RequestBody::Certify(proof) }.encode();
        for _ in 0..3 {
            queues.put(job(b"first".to_vec()).into()).unwrap();
        }
        for _ in 0..100 {
            queues.put(job(last.clone()).into()).unwrap();
        }
        let (no_pulse, nothing_again) = (channel::never(), channel::never());
        let is_last = |work| matches!(work, Some(Work::Job(job)) if job.received.message == last);
        let taken: Vec<_> =
            (0..24).map(|taken| is_last(jobs.take(taken, &no_pulse, &nothing_again))).collect();
        assert_eq!(taken[..7], [true; 7]);
        assert_eq!(taken.iter().filter(|is_last| !**is_last).count(), 3);
    }
}
