//! Which entries of the audit are still to be told as events, and who tells them.
//!
//! The audit is the outbox: an entry is written in the transaction that does what it says, so no
//! event is lost and none is told of what did not happen. What was told is a cursor over the chains.

use time::{Duration, OffsetDateTime};

use crate::audit::AuditRow;
use crate::chain::Chain;

/// How far the audit was told: of each chain, the last entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told(pub(crate) [i64; 3]);

impl Told {
    pub(crate) fn of(&self, chain: Chain) -> i64 {
        self.0[chain as usize]
    }

    /// The farther one of each chain.
    #[must_use]
    pub(crate) fn max(self, other: Self) -> Self {
        Self(std::array::from_fn(|chain| self.0[chain].max(other.0[chain])))
    }
}

/// A worker that tells events, by a number that it chose at random.
pub type Teller = [u8; 16];

/// What is to be told next.
#[derive(Clone, Debug)]
pub struct Untold {
    /// Entries of which others should hear, in order.
    pub rows: Vec<AuditRow>,
    /// How far they go, with entries of which nobody needs to hear.
    pub told: Told,
    /// Whether there may be more.
    pub more: bool,
    /// The worker whose turn it is, if it is one's.
    pub(crate) turn: Option<(Teller, i64)>,
}

impl Untold {
    /// Joins what was read of each chain, in the order of all: at most `count` entries each.
    pub(crate) fn of(
        read: Vec<AuditRow>,
        from: Told,
        count: usize,
        turn: Option<(Teller, i64)>,
    ) -> Self {
        let (mut rows, mut told) = (read, from);
        rows.sort_by_key(|row| row.number);
        let more = rows.len() >= count;
        rows.truncate(count);
        for row in &rows {
            told.0[row.chain as usize] = row.id;
        }
        rows.retain(is_event);
        Self { rows, told, more, turn }
    }

    /// Whether it is this worker's turn, and will be for long enough to tell some events.
    pub fn is_turn_of(&self, teller: &Teller, now: OffsetDateTime) -> bool {
        self.turn.is_some_and(|(holder, until)| {
            holder == *teller && until > milliseconds(now + TURN / 2)
        })
    }

    /// Whether it may be this worker's turn, so that it is worth a try to take it.
    pub fn may_be_turn_of(&self, teller: &Teller, now: OffsetDateTime) -> bool {
        self.turn.is_none_or(|(holder, until)| holder == *teller || until <= milliseconds(now))
    }
}

/// Whether others should hear of it.
fn is_event(row: &AuditRow) -> bool {
    match row.chain {
        // The list of an operator may have any number of EKs, and says nothing of a device.
        Chain::Acts => !matches!(&*row.action, "enroll" | "retag"),
        Chain::Changes | Chain::Others => row.event.is_some(),
    }
}

/// Until when it is the turn of a worker that tells now.
pub(crate) fn turn_ends(now: OffsetDateTime) -> i64 {
    milliseconds(now + TURN)
}

pub(crate) fn milliseconds(time: OffsetDateTime) -> i64 {
    // They fit for longer than anything here is used.
    (time.unix_timestamp_nanos() / 1_000_000) as i64
}

/// How long events wait after a worker died that told them. If clocks of several machines differ by
/// more, two workers may tell the same events.
const TURN: Duration = Duration::seconds(12);
