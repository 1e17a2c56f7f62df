//! From the queue to a decision, on threads of their own: examine, plan, sign.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use assay_wire::ReplyBody;
use crossbeam_channel::{Receiver, Sender};
use tokio::sync::watch;
use tracing::debug;

use super::Outfit;
use super::decision_log::DecisionLog;
use super::examine::{Examined, NotExamined, examine};
use super::job::Job;
use super::outbox::Outbox;
use super::outcome::{About, Outcome, internal};
use super::plan::Planner;
use super::planned::Planned;
use super::pulse::Pulse;
use super::queues::{Queues, Work};
use super::record::{Write, announce};
use super::sign::sign;
use crate::ca::Ca;

/// What the threads take from, and where they put what they decide.
pub(super) struct Ends {
    pub(super) outfit: watch::Receiver<Outfit>,
    pub(super) jobs: Queues<Receiver<Box<Job>>>,
    pub(super) again: Receiver<Box<Planned>>,
    pub(super) pulses: Receiver<Pulse>,
    pub(super) writes: Sender<Write>,
    pub(super) outbox: Outbox,
    pub(super) log: DecisionLog,
}

/// Decides until the queues are closed.
pub(super) fn run(mut planner: Planner, ends: &Ends) {
    for taken in 0.. {
        match ends.jobs.take(taken, &ends.pulses, &ends.again) {
            Some(Work::Job(job)) => {
                // The one that this request is decided with to its end, whatever is reread
                // meanwhile.
                let ca = Arc::clone(&ends.outfit.borrow().ca);
                decide(&mut planner, ends, ca, *job, None, 1);
            }
            Some(Work::Again(planned)) => {
                let Planned { ca, job, examined, attempts, .. } = *planned;
                decide(&mut planner, ends, ca, job, Some(examined), attempts + 1);
            }
            Some(Work::Pulse(pulse)) => _ = ends.writes.send(Write::Pulse(pulse)),
            None => break,
        }
    }
}

fn decide(
    planner: &mut Planner,
    ends: &Ends,
    ca: Arc<Ca>,
    job: Job,
    examined: Option<Examined>,
    attempts: u32,
) {
    let Ends { writes, outbox, log, .. } = ends;
    // A panic would be a bug of ours, but one that a stranger's bytes found must not take a thread
    // from everybody else.
    let decided = catch_unwind(AssertUnwindSafe(|| outcome(planner, &ca, &job, examined, log)));
    let (outcome, about, examined) = decided.unwrap_or_else(|_| {
        log.fault("deciding on a request panicked", &job.client);
        (Outcome::Refused(internal()), About::unreadable(), None)
    });
    match outcome {
        Outcome::Pong => {
            debug!(client = %job.client, "ping answered");
            outbox.reply(job, ReplyBody::Pong);
        }
        Outcome::Answered(reply) => {
            let audit = about.audit(&job, None);
            log.decision(&audit);
            announce(&reply, &audit, outbox);
            outbox.reply(job, reply);
            _ = writes.send(Write::Audit(audit));
        }
        Outcome::Refused(problem) => {
            let audit = about.audit(&job, Some(&problem));
            log.decision(&audit);
            outbox.reply(job, ReplyBody::Problem(problem));
            _ = writes.send(Write::Audit(audit));
        }
        Outcome::Issued { act, basis, reply } => {
            let audit = about.audit(&job, None);
            let Some(examined) = examined else { return };
            let planned = Planned { ca, job, examined, act, basis, reply, audit, attempts };
            _ = writes.send(Write::Planned(Box::new(planned)));
        }
    }
}

/// Examines a request unless that was done before, plans and signs.
fn outcome(
    planner: &mut Planner,
    ca: &Ca,
    job: &Job,
    examined: Option<Examined>,
    log: &DecisionLog,
) -> (Outcome, About, Option<Examined>) {
    let mut about = About::unreadable();
    let examined = match examined.map_or_else(|| examine(ca, job, &mut about), Ok) {
        Ok(examined) => examined,
        Err(NotExamined::Unreadable(problem)) => return (Outcome::Refused(problem), about, None),
        Err(NotExamined::Refused(refusal)) => {
            return (Outcome::Refused(refusal.problem(log)), about, None);
        }
    };
    let now = job.received_at;
    let outcome = planner
        .plan(ca, &examined, now, &mut about)
        .and_then(|plan| sign(ca, plan, now, &mut about))
        .unwrap_or_else(|refusal| Outcome::Refused(refusal.problem(log)));
    (outcome, about, Some(examined))
}
