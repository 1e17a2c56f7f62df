//! A request on its way through the worker.

use std::time::Instant;

use assay_wire::{ClientId, DecodeError, Head, RequestId};
use bytes::Bytes;
use time::OffsetDateTime;

use super::ledger::Debt;

/// A request as it came in.
pub(super) struct Job {
    pub(super) client: ClientId,
    /// Its beginning, which is read once.
    pub(super) head: Result<Head, DecodeError>,
    pub(super) message: Bytes,
    /// Where the client wants the reply; [`assay_wire::Topic::Reply`] is where it goes.
    pub(super) response_topic: Option<String>,
    /// When it came. The clock is read once a request: everything is decided as of this time.
    pub(super) received_at: OffsetDateTime,
    pub(super) delivery: Delivery,
}

impl Job {
    /// The request's id, or [`RequestId::NIL`] if that could not be read.
    pub(super) fn id(&self) -> RequestId {
        self.head.as_ref().map_or(RequestId::NIL, Head::id)
    }
}

/// What is owed to the broker for a request, and since when.
pub(super) struct Delivery {
    pub(super) packet_id: u16,
    pub(super) connection: u32,
    pub(super) since: Instant,
    pub(super) _debt: Debt,
}
