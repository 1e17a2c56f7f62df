//! A request on its way to the record.

use std::sync::Arc;

use assay_store::AuditEntry;

use super::decide::Examination;
use super::job::Job;
use super::outcome::Issued;
use crate::ca::Ca;

/// A request that is planned and signed, and waits for its record.
pub(super) struct Planned {
    /// The CA that it was planned with.
    pub(super) ca: Arc<Ca>,
    pub(super) job: Job,
    pub(super) examination: Box<Examination>,
    pub(super) issued: Box<Issued>,
    pub(super) audit: AuditEntry,
    /// How often it was planned.
    pub(super) attempts: u32,
}
