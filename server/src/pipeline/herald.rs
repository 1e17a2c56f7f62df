//! Publishes what everybody may know of the CA as retained messages: its certificates, its
//! revocation lists, and which configurations are new. It does so when they change, before a list
//! is out of date, and to each new broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_ca_core::{Fault, Issuer, REVOCATION_LIST_LIFETIME};
use assay_wire::Topic;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{error, warn};

use super::Outfit;
use super::outbox::Outbox;
use crate::ca::{Ca, ListError, SignedList};
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
            // Whoever holds the key has said so once.
            Err(ListError::Fault(Fault::KeyAway)) => {}
            Err(refusal) => {
                error!(error = %refusal, "the revocation lists could not be published; trying again")
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

/// What subscribers have.
struct Published {
    /// The CA that signed the lists.
    ca: Arc<Ca>,
    /// The issuing CA whose list is the first.
    in_use: Arc<Issuer>,
    changes: i64,
    at: Instant,
    /// How long it took to make the lists.
    took: Duration,
}

/// Whether lists are good enough that are so old and took so long to make. Each renewal ends a
/// certificate, so the list of a large fleet is long and changes all the time. Nobody is to wait for
/// it much of the time.
fn is_good_enough(has_changed: bool, age: Duration, took: Duration) -> bool {
    let rest = (REST * took).min(LONGEST_REST);
    age < if has_changed { rest } else { REVOCATION_LIST_LIFETIME.unsigned_abs() / 2 }
}

/// Publishes certificates and lists; `None` if the `last` ones are still good.
fn publish(
    ca: Arc<Ca>,
    store: &mut dyn Store,
    last: Option<&Published>,
    outbox: &Outbox,
    now: OffsetDateTime,
) -> Result<Option<Published>, ListError> {
    let (changes, in_use) = (store.changes()?.list, Arc::clone(ca.issuers.current(now)));
    if let Some(last) = last
        && Arc::ptr_eq(&last.in_use, &in_use)
        && is_good_enough(last.changes != changes, last.at.elapsed(), last.took)
    {
        return Ok(None);
    }
    let began = Instant::now();
    // A subscriber of another CA's or of none: whoever verifies a list needs its issuer.
    if last.is_none() {
        let certificates = ca.certificates.clone().into_bytes();
        proclaim(outbox, Topic::Chain(outbox.scope.clone()), certificates);
    }
    for SignedList { key_id, in_use, der } in ca.revocation_lists(store, MAX_LIST, now)? {
        if in_use {
            proclaim(outbox, Topic::Crl(outbox.scope.clone()), der.clone());
        }
        proclaim(outbox, Topic::CrlOf(outbox.scope.clone(), key_id), der);
    }
    Ok(Some(Published { ca, in_use, changes, at: Instant::now(), took: began.elapsed() }))
}

fn proclaim(outbox: &Outbox, topic: Topic, content: Vec<u8>) {
    if content.len() > MAX_LIST {
        warn!(
            %topic,
            length = content.len(),
            limit = MAX_LIST,
            "too long for one message; `assay crl` writes a revocation list to a file"
        );
    } else {
        outbox.proclaim(topic, content);
    }
}

/// As many devices as should ask for a new configuration in a second, out of the two thousand that
/// a small CA answers.
const REQUESTS_A_SECOND: u64 = 500;
/// How late a revocation is published at most, unless the list takes long.
const POLL: Duration = Duration::from_secs(1);
/// For so many times as long as lists took, there are no others: they take 5 % of the time at most.
const REST: u32 = 20;
/// A store that stood still once must not keep a revocation back for long.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// Brokers take packets of 64 KiB. This leaves some room for the head of the packet, and holds
/// about 1,300 certificates.
pub const MAX_LIST: usize = 63 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_takes_long_is_made_less_often() {
        let (short, long) = (Duration::from_millis(3), Duration::from_millis(700));
        assert!(!is_good_enough(true, POLL, short));
        assert!(is_good_enough(true, POLL, long));
        assert!(!is_good_enough(true, Duration::from_secs(15), long));
        assert!(is_good_enough(false, Duration::from_hours(11), short));
        assert!(!is_good_enough(false, Duration::from_hours(13), short));
    }
}
