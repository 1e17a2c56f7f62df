//! What a decision says: what is new, whom it is about, why it was refused.

use assay_ca_core::{EkFacts, Failure, Fault, Rejection};
use assay_store::{Act, AuditEntry, Basis, Change, StoreError, Whom};
use assay_wire::{DeviceId, EkId, Problem, ProblemCode, ReplyBody};

use super::authorise::Asking;
use super::decision_log::DecisionLog;
use super::job::Job;

/// What is new for a device.
pub struct Issued {
    /// What is to be recorded.
    pub act: Act,
    /// The question and the snapshot by which it was planned.
    pub basis: Option<Basis>,
    /// What the device gets once that is on record.
    pub reply: ReplyBody,
}

/// Whom a decision is about, as far as that is known.
#[derive(Clone)]
pub struct About {
    pub(super) action: &'static str,
    /// The EK that the request claims to come from.
    pub ek_id: Option<EkId>,
    pub(super) device: Option<Whom>,
    pub(super) change: Change,
    /// What a certificate says of the EK, if it is enrolled and that is not on record.
    pub(super) facts: Option<EkFacts>,
    /// What the operator's own service is to be asked, if there is one.
    pub(super) asking: Option<Asking>,
}

impl About {
    pub(super) fn new(action: &'static str) -> Self {
        Self { action, ek_id: None, device: None, change: Change::None, facts: None, asking: None }
    }

    pub(super) fn unreadable() -> Self {
        Self::new("unreadable")
    }

    /// The device, whether it had proved itself or not.
    pub(super) fn device_id(&self) -> Option<&DeviceId> {
        match self.device.as_ref()? {
            Whom::Proven(device_id) | Whom::Due(device_id) => Some(device_id),
        }
    }

    /// What is to be put on record of an EK, whatever the decision is.
    pub(super) fn take_facts(&mut self) -> Option<(EkId, EkFacts)> {
        self.ek_id.zip(self.facts.take())
    }

    /// The record of a decision.
    pub(super) fn audit(self, job: &Job, refusal: Option<&Problem>) -> AuditEntry {
        let elapsed = job.delivery.since.elapsed();
        AuditEntry {
            time: job.received.at,
            client: job.received.client.clone(),
            action: self.action,
            ek_id: self.ek_id,
            device: self.device,
            change: self.change,
            refusal: refusal.map(|problem| (problem.code, problem.detail.clone())),
            duration_us: elapsed.as_micros().try_into().unwrap_or(u32::MAX),
        }
    }
}

/// Why a request gets no other answer than a problem.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The device's fault. The device is told which.
    #[error(transparent)]
    Rejection(#[from] Rejection),
    /// Our fault. The device learns no more than that.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Our fault. The device learns no more than that.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the plan depends on was changed by the planner itself.
    #[error("planned again")]
    PlanAgain,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Rejection(rejection) => Self::Rejection(rejection),
            Failure::Fault(fault) => Self::Fault(fault),
        }
    }
}

impl Refusal {
    /// What the device is told. Of our own faults, it learns only that there was one.
    pub(super) fn problem(&self, log: &DecisionLog) -> Problem {
        match self {
            Self::Rejection(rejection) => rejection.problem(),
            // Whoever holds the key says once what is wrong.
            Self::Fault(Fault::KeyAway) => key_away(),
            Self::Fault(_) | Self::Store(_) | Self::PlanAgain => {
                log.fault("the CA failed", self);
                internal()
            }
        }
    }
}

pub(super) fn busy(retry_after: u32) -> Problem {
    Problem::new(ProblemCode::Busy, "the request queue is full".into()).retry_after(retry_after)
}

/// The answer if the basis of the plan changed each time before the plan could be recorded.
pub(super) fn contended() -> Problem {
    let detail = "what is on record about this TPM changed while the CA decided";
    Problem::new(ProblemCode::Busy, detail.into()).retry_after(RETRY_AFTER_CONTENTION_S)
}

/// The answer while the issuing key is elsewhere and does not sign.
pub(super) fn key_away() -> Problem {
    let detail = "the key that signs certificates cannot be reached";
    Problem::new(ProblemCode::Busy, detail.into()).retry_after(RETRY_AFTER_INTERNAL_S)
}

/// The answer if more signatures wait for a slow key than it makes soon.
pub(super) fn signatures_wait(retry_after: u32) -> Problem {
    let detail = "many certificates wait for their signature";
    Problem::new(ProblemCode::Busy, detail.into()).retry_after(retry_after)
}

/// The answer while the CA's clock is wrong, or the CA is held.
pub(super) fn not_now() -> Problem {
    let detail = "the CA answers nothing until its operator acts; its log says why";
    Problem::new(ProblemCode::Internal, detail.into()).retry_after(RETRY_AFTER_INTERNAL_S)
}

pub(super) fn internal() -> Problem {
    Problem::new(ProblemCode::Internal, "the CA could not decide; its log says why".into())
        .retry_after(RETRY_AFTER_INTERNAL_S)
}

/// A full disk or a stopped signer is not repaired faster.
const RETRY_AFTER_INTERNAL_S: u32 = 10;
/// Whatever changes one TPM's record several times within milliseconds has ended by then.
const RETRY_AFTER_CONTENTION_S: u32 = 1;
