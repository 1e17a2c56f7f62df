//! The decision on a request, from its bytes to what is signed: examine, plan, sign.

use assay_ca_core::Rejection;
use assay_store::Waiting;
use assay_wire::{Problem, ReplyBody};

use super::decision_log::DecisionLog;
use super::examine::{Examined, NotExamined, examine};
use super::job::Received;
use super::outcome::{About, Issued, Refusal};
use super::plan::Planner;
use super::sign::{Signed, sign};
use crate::ca::Ca;

/// Everything that can become of a request.
pub enum Outcome {
    /// The answer to a ping. It is not recorded, because it says nothing of any device.
    Pong,
    /// The device gets this at once: nothing new was issued.
    Answered(ReplyBody),
    /// Something new was signed, and is to be recorded. If its basis is stale by then, the request
    /// is decided again.
    Issued(Box<Issued>, Box<Examination>),
    /// The device is told to come back, because an operator is asked about it.
    Waits(Problem, Box<Waiting>),
    /// The device is told why not.
    Refused(Problem),
}

/// A request that passed its examination, which is not repeated when it is planned again.
pub struct Examination {
    examined: Examined,
    /// Whom the request is about. This stays the same if the request is planned again.
    about: About,
}

#[cfg(test)]
impl Examination {
    pub(super) fn of(examined: Examined, about: About) -> Self {
        Self { examined, about }
    }
}

/// Decides on a request. If the request is decided again, `examination` is the one that it passed
/// before. Returns the outcome, and whom the decision is about.
pub fn decide(
    planner: &mut Planner,
    ca: &Ca,
    received: &Received,
    examination: Option<Box<Examination>>,
    log: &DecisionLog,
) -> (Outcome, About) {
    let examination = match examination {
        Some(before) => *before,
        None => {
            let mut about = About::unreadable();
            match examine(ca, received, &mut about) {
                Ok(examined) => Examination { examined, about },
                Err(NotExamined::Unreadable(problem)) => return (Outcome::Refused(problem), about),
                Err(NotExamined::Refused(refusal)) => {
                    return (Outcome::Refused(refusal.problem(log)), about);
                }
            }
        }
    };
    let mut about = examination.about.clone();
    let signed =
        planner.plan(ca, &examination.examined, received.at, &mut about).and_then(|plan| {
            let configuration = planner.configuration(ca, &plan, &about)?;
            sign(ca, plan, configuration, received.at, &mut about)
        });
    let outcome = match signed {
        Ok(Signed::Pong) => Outcome::Pong,
        Ok(Signed::Answer(reply)) => Outcome::Answered(reply),
        Ok(Signed::Issued(issued)) => Outcome::Issued(issued, Box::new(examination)),
        Err(refusal) => match &refusal {
            Refusal::Rejection(Rejection::Pending(applicant)) => {
                let waiting = Waiting::of(applicant, received.at);
                Outcome::Waits(refusal.problem(log), Box::new(waiting))
            }
            _ => Outcome::Refused(refusal.problem(log)),
        },
    };
    (outcome, about)
}
