//! Publishes the revocation list as a retained message: when it changes, before it is out of date,
//! and to each new broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_ca_core::REVOCATION_LIST_LIFETIME;
use assay_wire::Topic;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{error, warn};

use super::Outfit;
use super::outbox::Outbox;
use crate::ca::{Ca, ListError};
use crate::clock::Gate;
use assay_store::Store;

/// Publishes until no more connections to brokers are made; `arrived` hears of each connection.
pub(super) fn run(
    outfit: &watch::Receiver<Outfit>,
    mut store: Box<dyn Store>,
    gate: &Gate,
    arrived: &Receiver<()>,
    outbox: &Outbox,
) {
    let mut published: Option<Published> = None;
    // Before the first connection there is nobody to publish to.
    if arrived.recv().is_err() {
        return;
    }
    loop {
        let Some(now) = gate.now() else {
            // A list with a wrong date would be believed for too short or too long.
            match arrived.recv_timeout(POLL) {
                Ok(()) => published = None,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            continue;
        };
        let ca = Arc::clone(&outfit.borrow().ca);
        // Another CA signs another list.
        let last = published.as_ref().filter(|published| Arc::ptr_eq(&published.ca, &ca));
        let started = Instant::now();
        match publish(ca, &mut *store, last, outbox, now) {
            Ok(Some(now_published)) => published = Some(now_published),
            Ok(None) => {}
            Err(refusal) => {
                error!(error = %refusal, "the revocation list could not be published; trying again")
            }
        }
        match arrived.recv_timeout(pause_after(started.elapsed())) {
            Ok(()) => published = None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The list that subscribers have.
struct Published {
    /// The CA that signed it.
    ca: Arc<Ca>,
    changes: i64,
    at: Instant,
}

/// Publishes the list; `None` if the `last` one is still good.
fn publish(
    ca: Arc<Ca>,
    store: &mut dyn Store,
    last: Option<&Published>,
    outbox: &Outbox,
    now: OffsetDateTime,
) -> Result<Option<Published>, ListError> {
    let changes = store.changes()?.list;
    if let Some(last) = last
        && last.changes == changes
        && last.at.elapsed() < REVOCATION_LIST_LIFETIME.unsigned_abs() / 2
    {
        return Ok(None);
    }
    let list = ca.revocation_list(store, MAX_LIST, now)?;
    if list.len() > MAX_LIST {
        warn!(
            length = list.len(),
            limit = MAX_LIST,
            "the revocation list is too long for one message; `assay crl` writes it to a file"
        );
    } else {
        outbox.proclaim(Topic::Crl(outbox.scope.clone()), list);
    }
    Ok(Some(Published { ca, changes, at: Instant::now() }))
}

/// How long to wait before the next look, after one that took so long. Each renewal ends a
/// certificate, so the list of a large fleet is long and changes all the time; nobody is to wait for
/// it much of the time.
fn pause_after(took: Duration) -> Duration {
    POLL.max(REST * took)
}

/// How late a revocation is published at most, unless the list takes long.
const POLL: Duration = Duration::from_secs(1);
/// For so many times as long as a list took, there is no other one: it takes 5 % of the time at most.
const REST: u32 = 20;
/// Brokers take packets of 64 KiB. This leaves some room for the head of the packet, and holds
/// about 1,300 certificates.
pub const MAX_LIST: usize = 63 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_takes_long_is_made_less_often() {
        assert_eq!(pause_after(Duration::from_millis(3)), POLL);
        assert_eq!(pause_after(Duration::from_millis(700)), Duration::from_secs(14));
    }
}
