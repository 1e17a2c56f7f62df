//! Takes requests from the queues and decides on them, on threads of their own. What needs the
//! issuing key, and that is elsewhere, is signed on other threads: no request that needs no
//! signature waits for one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use assay_wire::ReplyBody;
use crossbeam_channel::{Receiver, Sender};
use tokio::sync::watch;
use tracing::debug;

use super::Outfit;
use super::authorise::{BeingAsked, ToAuthorise, is_being_asked};
use super::decide::{self, Examination, Outcome, Step, Unsigned};
use super::decision_log::DecisionLog;
use super::job::Job;
use super::key_watch::KeyWatch;
use super::outbox::Outbox;
use super::outcome::{About, a_key_is_away, busy, internal, not_now};
use super::plan::Planner;
use super::planned::Planned;
use super::pulse::Pulse;
use super::queues::{Queues, Work};
use super::record::Write;
use super::signatures::{Placed, Signatures, ToBeSigned};
use crate::ca::Ca;
use crate::clock::Gate;

/// What the threads take from, and where they put what they decide.
pub(super) struct Ends {
    pub(super) outfit: watch::Receiver<Outfit>,
    pub(super) jobs: Queues<Receiver<Box<Job>>>,
    pub(super) again: Receiver<Box<Planned>>,
    pub(super) pulses: Receiver<Pulse>,
    pub(super) doubtful: Sender<Box<ToAuthorise>>,
    pub(super) being_asked: BeingAsked,
    pub(super) signers: Signers,
    pub(super) decided: Decided,
    pub(super) gate: Arc<Gate>,
}

/// Those who sign with keys that are elsewhere.
pub(super) type Signers = Signatures<Box<ToSign>>;

/// Where decisions go.
#[derive(Clone)]
pub(super) struct Decided {
    pub(super) writes: Sender<Write>,
    pub(super) outbox: Outbox,
    pub(super) log: DecisionLog,
    pub(super) keys: KeyWatch,
}

/// A request that waits for a signature.
pub(super) struct ToSign {
    ca: Arc<Ca>,
    job: Job,
    unsigned: Box<Unsigned>,
    attempts: u32,
}

/// Signs until nobody plans any more. `taken` counts what any thread took.
pub(super) fn sign(waiting: &ToBeSigned<Box<ToSign>>, taken: &AtomicUsize, decided: &Decided) {
    while let Some(Placed { item, place }) = waiting.next(taken.fetch_add(1, Ordering::Relaxed)) {
        let ToSign { ca, job, unsigned, attempts } = *item;
        let (at, log) = (job.received.at, &decided.log);
        let began = Instant::now();
        let (outcome, about) = caught(&job, log, || unsigned.sign(&ca, at, log))
            .unwrap_or_else(|| (Outcome::Refused(internal()), About::unreadable()));
        decided.outbox.metrics.took("sign", began.elapsed());
        drop(place);
        decided.take(ca, job, outcome, about, attempts);
    }
}

/// Decides until the queues are closed.
pub(super) fn run(mut planner: Planner, ends: &Ends) {
    let outbox = &ends.decided.outbox;
    for taken in 0.. {
        match ends.jobs.take(taken, &ends.pulses, &ends.again) {
            Some(Work::Job(job)) if ends.gate.allows(job.received.at).is_err() => {
                outbox.reply(*job, ReplyBody::Problem(not_now()));
            }
            Some(Work::Job(job)) => {
                outbox.metrics.took("wait", job.delivery.since.elapsed());
                // This request is decided with this CA to its end, even if the files are reread
                // meanwhile.
                let ca = Arc::clone(&ends.outfit.borrow().ca);
                decide(&mut planner, ends, ca, *job, None, 1);
            }
            // The clock may have become wrong since, and nothing of this request is on record.
            Some(Work::Again(planned)) if ends.gate.allows(planned.job.received.at).is_err() => {
                outbox.reply(planned.job, ReplyBody::Problem(not_now()));
            }
            Some(Work::Again(planned)) => {
                let Planned { ca, job, examination, attempts, .. } = *planned;
                decide(&mut planner, ends, ca, job, Some(examination), attempts + 1);
            }
            Some(Work::Pulse(pulse)) => _ = ends.decided.writes.send(Write::Pulse(pulse)),
            None => break,
        }
    }
}

fn decide(
    planner: &mut Planner,
    ends: &Ends,
    ca: Arc<Ca>,
    job: Job,
    examination: Option<Box<Examination>>,
    attempts: u32,
) {
    let (decided, log) = (&ends.decided, &ends.decided.log);
    let began = Instant::now();
    let step = caught(&job, log, || decide::plan(planner, &ca, &job.received, examination, log));
    decided.outbox.metrics.took("decide", began.elapsed());
    match step.unwrap_or_else(|| Step::refused(internal(), About::unreadable())) {
        Step::Unsigned(unsigned) if unsigned.about().asking.is_some() => {
            authorise(ends, ca, job, unsigned, attempts);
        }
        step => ends.signers.finish(ca, job, step, attempts, decided),
    }
}

/// Has the operator's own service asked about a request.
fn authorise(ends: &Ends, ca: Arc<Ca>, job: Job, unsigned: Box<Unsigned>, attempts: u32) {
    let refuse = |ca, job, unsigned: Box<Unsigned>, problem| {
        let about = unsigned.into_about();
        ends.decided.take(ca, job, Outcome::Refused(problem), about, attempts);
    };
    let asking = unsigned.about().ek_id.zip(unsigned.about().asking.as_ref());
    let place = asking.and_then(|(ek, asking)| ends.being_asked.take(ek, asking.wish));
    let Some(place) = place else { return refuse(ca, job, unsigned, is_being_asked()) };
    let to_authorise = ToAuthorise { ca, job, unsigned, attempts, place };
    if let Err(error) = ends.doubtful.try_send(Box::new(to_authorise)) {
        let ToAuthorise { ca, job, unsigned, .. } = *error.into_inner();
        refuse(ca, job, unsigned, busy(RETRY_AFTER_QUESTIONS_S));
    }
}

impl Signers {
    /// Signs what needs a key of ours at once: nobody else waits meanwhile. Has the rest signed.
    pub(super) fn finish(
        &self,
        ca: Arc<Ca>,
        job: Job,
        step: Step,
        attempts: u32,
        decided: &Decided,
    ) {
        let (at, log) = (job.received.at, &decided.log);
        let unsigned = match step {
            Step::Unsigned(unsigned) => unsigned,
            Step::Decided(done) => {
                let (outcome, about) = *done;
                return decided.take(ca, job, outcome, about, attempts);
            }
        };
        match unsigned.waits_for_a_key() {
            None => {
                let began = Instant::now();
                let (outcome, about) = caught(&job, log, || unsigned.sign(&ca, at, log))
                    .unwrap_or_else(|| (Outcome::Refused(internal()), About::unreadable()));
                decided.outbox.metrics.took("sign", began.elapsed());
                decided.take(ca, job, outcome, about, attempts);
            }
            Some((ek, standing)) => {
                let to_sign = Box::new(ToSign { ca, job, unsigned, attempts });
                let Err((to_sign, problem)) = self.put(to_sign, ek, standing) else { return };
                let ToSign { ca, job, unsigned, attempts } = *to_sign;
                let about = unsigned.into_about();
                decided.take(ca, job, Outcome::Refused(problem), about, attempts);
            }
        }
    }
}

/// `None` after a panic, which would be a bug of ours. But if a stranger's bytes cause one, that
/// must not take a thread from everybody else.
pub(super) fn caught<T>(job: &Job, log: &DecisionLog, work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.inspect_err(|_| log.fault("deciding on a request panicked", &job.received.client)).ok()
}

impl Decided {
    pub(super) fn take(
        &self,
        ca: Arc<Ca>,
        job: Job,
        outcome: Outcome,
        mut about: About,
        attempts: u32,
    ) {
        let Self { writes, outbox, log, keys } = self;
        let learnt = about.take_facts();
        match outcome {
            Outcome::Pong => {
                debug!(client = %job.received.client, "ping answered");
                let reply = match keys.misses_one() {
                    true => ReplyBody::Problem(a_key_is_away()),
                    false => ReplyBody::Pong,
                };
                outbox.reply(job, reply);
            }
            Outcome::Answered(reply) => {
                let audit = about.audit(&job, None);
                log.decision(&audit);
                outbox.reply(job, reply);
                _ = writes.send(Write::Audit(audit));
            }
            Outcome::Waits(problem, waiting) => {
                let audit = about.audit(&job, Some(&problem));
                log.decision(&audit);
                outbox.reply(job, ReplyBody::Problem(problem));
                _ = writes.send(Write::Ask(waiting, audit));
            }
            Outcome::Refused(problem) => {
                let audit = about.audit(&job, Some(&problem));
                log.decision(&audit);
                outbox.reply(job, ReplyBody::Problem(problem));
                _ = writes.send(Write::Audit(audit));
            }
            Outcome::Issued(issued, examination) => {
                let audit = about.audit(&job, None);
                let planned = Planned { ca, job, examination, issued, audit, attempts };
                _ = writes.send(Write::Planned(Box::new(planned)));
            }
        }
        // Last, so that no plan is stale because of it.
        if let Some((ek, facts)) = learnt {
            _ = writes.send(Write::Learn(ek, Box::new(facts)));
        }
    }
}

/// Most services answer within a second, and eight are asked at once.
const RETRY_AFTER_QUESTIONS_S: u32 = 5;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use assay_store::{Act, Database};
    use assay_wire::{ClientId, ProblemCode, Request, RequestBody, RequestId};
    use crossbeam_channel::{never, unbounded};
    use time::OffsetDateTime;
    use tokio::sync::mpsc;

    use super::super::examine::Examined;
    use super::super::job::{Delivery, Received};
    use super::super::metrics::Metrics;
    use super::super::outcome::Issued;
    use super::*;
    use crate::directory::Directory;

    #[test]
    fn a_request_is_not_planned_again_while_the_clock_is_wrong() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("ca");
        Directory::create(&path, "Test", &[]).unwrap();
        let ca = Arc::new(Directory::open(&path).unwrap().ca().unwrap());
        let database = Database::Sqlite(path.join("assay.db"));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let roots = rustls::RootCertStore::empty();
        let tls = assay_mqtt::tls_config(provider, roots, None).unwrap();
        for (gate, is_open) in [(Gate::open(), true), (Gate::default(), false)] {
            let (letters, mut posted) = mpsc::channel(1);
            let outbox = Outbox::new(ca.scope.clone(), letters, Metrics::default());
            let (again, planned) = unbounded();
            let ends = Ends {
                outfit: watch::channel(Outfit { ca: Arc::clone(&ca), tls: Arc::new(tls.clone()) })
                    .1,
                jobs: Queues::new().1,
                again: planned,
                pulses: never(),
                doubtful: unbounded().0,
                being_asked: BeingAsked::default(),
                signers: Signatures::new().0,
                decided: Decided {
                    writes: unbounded().0,
                    outbox,
                    log: DecisionLog::default(),
                    keys: KeyWatch::default(),
                },
                gate: Arc::new(gate),
            };
            again.send(Box::new(a_ping_to_plan_again(&ca, &ends))).unwrap();
            drop(again);
            run(Planner::open(database.open().unwrap()).unwrap(), &ends);
            let reply = posted.try_recv().unwrap().reply().unwrap();
            let is_decided = matches!(reply, ReplyBody::Pong);
            let is_put_off = matches!(
                reply,
                ReplyBody::Problem(problem) if problem.code == ProblemCode::Internal
            );
            assert_eq!((is_decided, is_put_off), (is_open, !is_open));
        }
    }

    /// The basis of a plan for it changed, if it had one.
    fn a_ping_to_plan_again(ca: &Arc<Ca>, ends: &Ends) -> Planned {
        let message = Request { id: RequestId::NIL, body: RequestBody::Ping }.encode();
        let client = ClientId::bootstrap([0; 16]);
        let at = OffsetDateTime::now_utc();
        let job = Job {
            received: Received::new(client, message.into(), None, at),
            delivery: Delivery {
                packet_id: 1,
                connection: 0,
                since: Instant::now(),
                _debt: ends.decided.outbox.ledger.owe(),
            },
        };
        let about = About::new("ping");
        Planned {
            ca: Arc::clone(ca),
            audit: about.clone().audit(&job, None),
            job,
            examination: Box::new(Examination::of(Examined::Ping, about)),
            issued: Box::new(Issued { act: Act::None, basis: None, reply: ReplyBody::Pong }),
            attempts: 1,
        }
    }
}
