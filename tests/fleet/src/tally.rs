//! What happened in a run, counted while it happens.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::bad::Bad;

/// Counts of one run; shared by all devices.
pub(crate) struct Tally {
    counts: Mutex<Counts>,
}

/// See the fields of the report with these names.
pub(crate) struct Counts {
    pub(crate) done: usize,
    pub(crate) refused: BTreeMap<&'static str, usize>,
    pub(crate) failed: BTreeMap<String, usize>,
    pub(crate) churned: usize,
    pub(crate) came_back: usize,
    pub(crate) problems: BTreeMap<&'static str, usize>,
    pub(crate) lost: BTreeMap<String, usize>,
    pub(crate) connections: usize,
    /// From the first publish of a device, or from when it was due in an open loop, to its last
    /// verified reply.
    pub(crate) device: Histogram<u64>,
    /// From publish to reply, by request.
    pub(crate) requests: BTreeMap<&'static str, Histogram<u64>>,
    /// TCP, TLS, CONNECT and SUBSCRIBE.
    pub(crate) connect: Histogram<u64>,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            counts: Mutex::new(Counts {
                done: 0,
                refused: BTreeMap::new(),
                failed: BTreeMap::new(),
                churned: 0,
                came_back: 0,
                problems: BTreeMap::new(),
                lost: BTreeMap::new(),
                connections: 0,
                device: histogram(),
                requests: BTreeMap::new(),
                connect: histogram(),
            }),
        }
    }

    /// A device has what it asked for, `latency` after it began.
    pub(crate) fn done(&self, latency: Duration) {
        let mut counts = self.counts();
        counts.done += 1;
        record(&mut counts.device, latency);
    }

    /// A bad request was refused as it should be.
    pub(crate) fn refused(&self, bad: Option<Bad>) {
        *self.counts().refused.entry(bad.map_or("", Bad::name)).or_default() += 1;
    }

    /// A device did not get what was due to it.
    pub(crate) fn failed(&self, reason: String) {
        *self.counts().failed.entry(reason).or_default() += 1;
    }

    /// A device dropped its connection on purpose.
    pub(crate) fn churned(&self) {
        self.counts().churned += 1;
    }

    /// A device that could not renew what it had proved its TPM anew.
    pub(crate) fn came_back(&self) {
        self.counts().came_back += 1;
    }

    /// A problem came as the answer to a request.
    pub(crate) fn problem(&self, name: &'static str) {
        *self.counts().problems.entry(name).or_default() += 1;
    }

    /// A connection was lost, or a request not answered.
    pub(crate) fn lost(&self, reason: String) {
        *self.counts().lost.entry(reason).or_default() += 1;
    }

    pub(crate) fn connected(&self, took: Duration) {
        let mut counts = self.counts();
        counts.connections += 1;
        record(&mut counts.connect, took);
    }

    /// A request of this kind was answered.
    pub(crate) fn answered(&self, request: &'static str, took: Duration) {
        record(self.counts().requests.entry(request).or_insert_with(histogram), took);
    }

    pub(crate) fn counts(&self) -> MutexGuard<'_, Counts> {
        // A poisoned lock is usable, because each statement above leaves the counts whole.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A histogram of microseconds, to three digits. It grows as needed.
fn histogram() -> Histogram<u64> {
    // Unwrap safety: three digits are among the allowed five.
    Histogram::new(3).unwrap()
}

fn record(histogram: &mut Histogram<u64>, took: Duration) {
    // Unwrap safety: a histogram that resizes itself takes any value, unless memory runs out.
    histogram.record(took.as_micros() as u64).unwrap();
}
