//! Publishes what everybody may know of the CA as retained messages: its certificates and its
//! revocation lists. It does so when they change, before a list is out of date, and to each new
//! broker.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_ca_core::{Issuer, REVOCATION_LIST_LIFETIME};
use assay_wire::Topic;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{error, warn};

use super::Outfit;
use super::outbox::Outbox;
use crate::ca::{Ca, ListError, SignedList};
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
        match publish(ca, &mut *store, last, outbox, now) {
            Ok(Some(now_published)) => published = Some(now_published),
            Ok(None) => {}
            Err(refusal) => {
                error!(error = %refusal, "the revocation lists could not be published; trying again")
            }
        }
        match arrived.recv_timeout(POLL) {
            Ok(()) => published = None,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// What subscribers have.
struct Published {
    /// The CA that signed the lists.
    ca: Arc<Ca>,
    /// The issuing CA whose list is the first.
    in_use: Arc<Issuer>,
    changes: i64,
    at: Instant,
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
        && last.changes == changes
        && Arc::ptr_eq(&last.in_use, &in_use)
        && last.at.elapsed() < REVOCATION_LIST_LIFETIME.unsigned_abs() / 2
    {
        return Ok(None);
    }
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
    Ok(Some(Published { ca, in_use, changes, at: Instant::now() }))
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

/// How late a revocation is published at most.
const POLL: Duration = Duration::from_secs(1);
/// Brokers take packets of 64 KiB. This leaves some room for the head of the packet, and holds
/// about 1,300 certificates.
pub const MAX_LIST: usize = 63 * 1024;
