//! A request on its way through the worker.

use std::time::Instant;

use assay_wire::{ClientId, DecodeError, Head, RequestId};
use bytes::Bytes;
use time::OffsetDateTime;

use super::ledger::Debt;

/// A request as it came in.
pub struct Received {
    pub(super) client: ClientId,
    /// Its beginning, which is read once.
    pub(super) head: Result<Head, DecodeError>,
    pub(super) message: Bytes,
    pub(super) response_topic: Option<String>,
    pub(super) at: OffsetDateTime,
}

impl Received {
    /// Reads the beginning of the message. Everything is decided as of the time `at`, when the
    /// request came: the clock is read once a request.
    ///
    /// `response_topic` is where the client wants the reply. The reply always goes to
    /// [`assay_wire::Topic::Reply`].
    pub fn new(
        client: ClientId,
        message: Bytes,
        response_topic: Option<String>,
        at: OffsetDateTime,
    ) -> Self {
        Self { client, head: Head::read(&message), message, response_topic, at }
    }

    /// The request's id, or [`RequestId::NIL`] if that could not be read.
    pub fn id(&self) -> RequestId {
        self.head.as_ref().map_or(RequestId::NIL, Head::id)
    }
}

/// A request, and what the broker is owed for it.
pub(super) struct Job {
    pub(super) received: Received,
    pub(super) delivery: Delivery,
}

/// What is owed to the broker for a request, and since when.
pub(super) struct Delivery {
    pub(super) packet_id: u16,
    pub(super) connection: u32,
    pub(super) since: Instant,
    pub(super) _debt: Debt,
}
