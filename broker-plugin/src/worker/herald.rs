//! Publishes the revocation list, retained: when it changes, before it is out of date, and to each broker that is new.

use std::time::{Duration, Instant};

use assay_ca_core::REVOCATION_LIST_LIFETIME;
use assay_wire::Topic;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use time::OffsetDateTime;
use tracing::{error, warn};

use super::Outbox;
use crate::ca::{Ca, Refusal};
use crate::store::Store;

/// Publishes until nobody connects to brokers any more; `arrived` hears of each connection.
pub(super) fn run(ca: &Ca, mut store: Store, arrived: &Receiver<()>, outbox: &Outbox) {
    let mut published: Option<(i64, Instant)> = None;
    // Before the first connection there is nobody to publish to.
    if arrived.recv().is_err() {
        return;
    }
    loop {
        match publish(ca, &mut store, published, outbox) {
            Ok(now_published) => published = Some(now_published),
            Err(refusal) => error!(error = %refusal, "the revocation list could not be published; trying again"),
        }
        match arrived.recv_timeout(POLL) {
            Ok(()) => published = None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn publish(
    ca: &Ca,
    store: &mut Store,
    published: Option<(i64, Instant)>,
    outbox: &Outbox,
) -> Result<(i64, Instant), Refusal> {
    let changes = store.list_changes()?;
    if let Some((seen, at)) = published
        && seen == changes
        && at.elapsed() < REVOCATION_LIST_LIFETIME.unsigned_abs() / 2
    {
        return Ok((seen, at));
    }
    let list = ca.revocation_list(store, MAX_LIST, OffsetDateTime::now_utc())?;
    if list.len() > MAX_LIST {
        warn!(
            length = list.len(),
            limit = MAX_LIST,
            "the revocation list is too long for one message; `assay crl` writes it to a file"
        );
    } else {
        outbox.proclaim(Topic::Crl(ca.scope.clone()), list);
    }
    Ok((changes, Instant::now()))
}

/// How late a revocation is published.
const POLL: Duration = Duration::from_secs(1);
/// Brokers take 64 KiB in one packet, with some room for its head: about 1,300 certificates.
const MAX_LIST: usize = 63 * 1024;
