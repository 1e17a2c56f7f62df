//! What a worker counts: its replies, how long each stage took, and what waits in its queues.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use assay_wire::ReplyBody;
use crossbeam_channel::Receiver;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use super::job::Job;
use super::process::ToSign;
use super::queues::Queues;
use super::record::Write;
use super::signatures::ToBeSigned;

/// What a worker counts. Copies count together.
#[derive(Clone)]
pub struct Metrics(Arc<Counted>);

struct Counted {
    replies: Family<Outcome, Counter>,
    stages: Family<Stage, Histogram>,
    waiting: Family<Queue, Gauge>,
    queues: OnceLock<Waiting>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Queue {
    queue: &'static str,
}

/// The ends of the queues from which the threads take.
pub(super) struct Waiting {
    pub(super) jobs: Queues<Receiver<Box<Job>>>,
    pub(super) writes: Receiver<Write>,
    pub(super) unsigned: ToBeSigned<Box<ToSign>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Counted {
            replies: Family::default(),
            stages: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            waiting: Family::default(),
            queues: OnceLock::new(),
        }))
    }
}

impl Metrics {
    /// Has them appear in what a registry writes.
    pub fn register(&self, registry: &mut Registry) {
        let Counted { replies, stages, waiting, .. } = &*self.0;
        registry.register(
            "assay_requests",
            "Requests that were answered, by the reply",
            replies.clone(),
        );
        registry.register_with_unit(
            "assay_stage",
            "How long requests were in each stage; of record, how long a transaction took",
            Unit::Seconds,
            stages.clone(),
        );
        registry.register("assay_queue_length", "Requests that wait, by queue", waiting.clone());
    }

    /// Looks at the queues, for the next time that a registry writes.
    pub fn refresh(&self) {
        let Some(Waiting { jobs, writes, unsigned }) = self.0.queues.get() else { return };
        let [first, last] = jobs.lengths();
        for (queue, length) in
            [("first", first), ("last", last), ("record", writes.len()), ("sign", unsigned.len())]
        {
            self.0
                .waiting
                .get_or_create(&Queue { queue })
                .set(length.try_into().unwrap_or(i64::MAX));
        }
    }

    /// The queues to look at. Later ones do not count.
    pub(super) fn watch(&self, queues: Waiting) {
        _ = self.0.queues.set(queues);
    }

    pub(super) fn answered(&self, reply: &ReplyBody, after: Duration) {
        let outcome = match reply {
            ReplyBody::Problem(problem) => problem.code.name(),
            ReplyBody::Challenge(_) => "challenge",
            ReplyBody::Certificate(_) => "certificate",
            ReplyBody::Sealed(_) => "sealed",
            ReplyBody::Confirmed(_) => "confirmed",
            ReplyBody::Activation(_) => "activation",
            ReplyBody::Pong => "pong",
            ReplyBody::Adopted => "adopted",
        };
        self.0.replies.get_or_create(&Outcome { outcome }).inc();
        self.took("all", after);
    }

    pub(super) fn took(&self, stage: &'static str, time: Duration) {
        self.0.stages.get_or_create(&Stage { stage }).observe(time.as_secs_f64());
    }
}

/// From less than a decision takes to more than a device waits for an answer, in seconds.
const BUCKETS: [f64; 12] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 20.0];
