//! The decision on a request, from its bytes to what is signed: examine, plan, sign.

use assay_ca_core::Rejection;
use assay_store::Waiting;
use assay_wire::{Bytes, MAX_SIGNED_CONFIGURATION, Problem, ReplyBody};
use time::OffsetDateTime;

use super::decision_log::DecisionLog;
use super::examine::{Examined, NotExamined, examine};
use super::job::Received;
use super::outcome::{About, Issued, Refusal};
use super::plan::{Plan, Planner};
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
    match plan(planner, ca, received, examination, log) {
        Step::Unsigned(unsigned) => unsigned.sign(ca, received.at, log),
        Step::Decided(decided) => *decided,
    }
}

/// How far a decision is.
pub(super) enum Step {
    Decided(Box<(Outcome, About)>),
    Unsigned(Box<Unsigned>),
}

impl Step {
    pub(super) fn refused(problem: Problem, about: About) -> Self {
        Self::Decided(Box::new((Outcome::Refused(problem), about)))
    }
}

/// A decision that is complete except for its signatures.
pub(super) struct Unsigned {
    plan: Plan,
    configuration: Option<Bytes<MAX_SIGNED_CONFIGURATION>>,
    examination: Examination,
    about: About,
}

/// The first part of [`decide`], up to the signatures.
pub(super) fn plan(
    planner: &mut Planner,
    ca: &Ca,
    received: &Received,
    examination: Option<Box<Examination>>,
    log: &DecisionLog,
) -> Step {
    let examination = match examination {
        Some(before) => *before,
        None => {
            let mut about = About::unreadable();
            match examine(ca, received, &mut about) {
                Ok(examined) => Examination { examined, about },
                Err(NotExamined::Unreadable(problem)) => {
                    return Step::refused(problem, about);
                }
                Err(NotExamined::Refused(refusal)) => {
                    return Step::refused(refusal.problem(log), about);
                }
            }
        }
    };
    let mut about = examination.about.clone();
    let mut planned = || {
        about = examination.about.clone();
        let plan = planner.plan(ca, &examination.examined, received.at, &mut about)?;
        let configuration = planner.configuration(ca, &plan, &about)?;
        Ok((plan, configuration))
    };
    let planned = match planned() {
        // The device was named. It has its name now.
        Err(Refusal::PlanAgain) => planned(),
        planned => planned,
    };
    match planned {
        Ok((plan, configuration)) => {
            Step::Unsigned(Box::new(Unsigned { plan, configuration, examination, about }))
        }
        Err(Refusal::Rejection(Rejection::Pending(applicant))) => {
            let waiting = Box::new(Waiting::of(&applicant, received.at));
            let problem = Refusal::Rejection(Rejection::Pending(applicant)).problem(log);
            Step::Decided(Box::new((Outcome::Waits(problem, waiting), about)))
        }
        Err(refusal) => Step::refused(refusal.problem(log), about),
    }
}

impl Unsigned {
    /// Whether a key that is elsewhere has to sign.
    pub(super) fn signs_elsewhere(&self) -> bool {
        match &self.plan {
            Plan::Certify(certification, _) => certification.signs_elsewhere(),
            Plan::Enroll(sealing, _) => sealing.signs_elsewhere(),
            Plan::Renew(renewing, _) | Plan::Rekey(renewing, _) => renewing.signs_elsewhere(),
            Plan::Pong
            | Plan::Challenge(..)
            | Plan::Confirm(..)
            | Plan::Register(..)
            | Plan::Adopt(..) => false,
        }
    }

    /// Whom it is about.
    pub(super) fn about(&self) -> &About {
        &self.about
    }

    /// Whom it is about, for whoever does not sign it.
    pub(super) fn into_about(self) -> About {
        self.about
    }

    /// For whoever has it planned again.
    pub(super) fn into_examination(self) -> Examination {
        self.examination
    }

    /// The second part of [`decide`]. This may be slow if a key is elsewhere.
    pub(super) fn sign(self, ca: &Ca, now: OffsetDateTime, log: &DecisionLog) -> (Outcome, About) {
        let Self { plan, configuration, examination, mut about } = self;
        let outcome = match sign(ca, plan, configuration, now, &mut about) {
            Ok(Signed::Pong) => Outcome::Pong,
            Ok(Signed::Answer(reply)) => Outcome::Answered(reply),
            Ok(Signed::Issued(issued)) => Outcome::Issued(issued, Box::new(examination)),
            Err(refusal) => Outcome::Refused(refusal.problem(log)),
        };
        (outcome, about)
    }
}
