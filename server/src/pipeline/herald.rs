//! Publishes as retained messages, to each new broker and when they change: the revocation list,
//! also before it is out of date, and which configurations are new.

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
use assay_store::{ConfigurationChanges, Store, StoreError};

/// Publishes until no more connections to brokers are made; `arrived` hears of each connection.
pub(super) fn run(
    outfit: &watch::Receiver<Outfit>,
    mut store: Box<dyn Store>,
    gate: &Gate,
    arrived: &Receiver<()>,
    outbox: &Outbox,
) {
    let mut published: Option<Published> = None;
    let mut newest: Option<u64> = None;
    // Before the first connection there is nobody to publish to.
    if arrived.recv().is_err() {
        return;
    }
    loop {
        let Some(now) = gate.now() else {
            // A list with a wrong date would be believed for too short or too long.
            match arrived.recv_timeout(POLL) {
                Ok(()) => (published, newest) = (None, None),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            continue;
        };
        let ca = Arc::clone(&outfit.borrow().ca);
        // Another CA signs another list.
        let last = published.as_ref().filter(|published| Arc::ptr_eq(&published.ca, &ca));
        match publish(ca, &mut *store, last, outbox, now) {
            Ok(Some(now_published)) => published = Some(now_published),
            Ok(None) => {}
            Err(refusal) => {
                error!(error = %refusal, "the revocation list could not be published; trying again")
            }
        }
        match publish_news(&mut *store, newest, outbox) {
            Ok(now_newest) => newest = now_newest,
            Err(error) => {
                error!(%error, "devices are not told of new configurations; trying again")
            }
        }
        match arrived.recv_timeout(POLL) {
            Ok(()) => (published, newest) = (None, None),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Tells devices what changed since `last` was the newest revision. Returns the newest one. As long
/// as there never was a configuration, there is nothing to tell.
fn publish_news(
    store: &mut dyn Store,
    last: Option<u64>,
    outbox: &Outbox,
) -> Result<Option<u64>, StoreError> {
    let newest = store.newest_configuration()?;
    if newest > 0 && last != Some(newest) {
        let ConfigurationChanges { mut news, devices } = store.configuration_changes()?;
        news.spread = u32::try_from(devices / REQUESTS_A_SECOND).unwrap_or(u32::MAX);
        outbox.proclaim(Topic::Configuration(outbox.scope.clone()), news.encode());
    }
    Ok(Some(newest))
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

/// As many devices as should ask for a new configuration in a second, out of the two thousand that
/// a small CA answers.
const REQUESTS_A_SECOND: u64 = 500;
/// How late a revocation is published at most.
const POLL: Duration = Duration::from_secs(1);
/// Brokers take packets of 64 KiB. This leaves some room for the head of the packet, and holds
/// about 1,300 certificates.
pub const MAX_LIST: usize = 63 * 1024;
