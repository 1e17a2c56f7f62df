//! What the clock of a worker is compared with.

use time::OffsetDateTime;

/// What the clock of a worker is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The latest time that is on record, to the minute.
    pub latest: OffsetDateTime,
    /// How often an operator accepted another time.
    pub accepted: i64,
    /// The time of the store's server, if it has one with a clock of its own.
    pub server: Option<OffsetDateTime>,
}
