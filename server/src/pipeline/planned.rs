//! A request on its way to the record.

use std::sync::Arc;

use assay_store::{Act, AuditEntry, Basis};
use assay_wire::ReplyBody;

use super::examine::Examined;
use super::job::Job;
use crate::ca::Ca;

/// A request that is planned and signed, and waits for its record.
pub(super) struct Planned {
    /// What it was planned with.
    pub(super) ca: Arc<Ca>,
    pub(super) job: Job,
    pub(super) examined: Examined,
    pub(super) act: Box<Act>,
    pub(super) basis: Option<Box<Basis>>,
    pub(super) reply: ReplyBody,
    pub(super) audit: AuditEntry,
    /// How often it was planned.
    pub(super) attempts: u32,
}
