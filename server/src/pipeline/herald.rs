//! Publishes what everybody may know of the CA as retained messages: its certificates, its
//! revocation lists, and which configurations are new. It does so when they change, before a list
//! is out of date, and to each new broker.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_ca_core::{Issuer, REVOCATION_LIST_LIFETIME};
use assay_wire::{KeyId, Topic};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tracing::{debug, error, warn};

use super::Outfit;
use super::bulletin::Bulletin;
use super::outbox::Outbox;
use crate::ca::{Ca, ListError, Lists, SignedList};
use crate::clock::Gate;
use assay_store::{ConfigurationChanges, Store, StoreError};

/// Publishes until no more connections to brokers are made; `arrived` hears of each connection.
pub(super) fn run(
    outfit: &watch::Receiver<Outfit>,
    mut store: Box<dyn Store>,
    gate: &Gate,
    arrived: &Receiver<()>,
    outbox: &Outbox,
    bulletin: &Bulletin,
) {
    let mut published: Option<Published> = None;
    let mut listed = BTreeSet::new();
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
        match publish(ca, &mut *store, last, &listed, outbox, bulletin, now) {
            Ok(Some(now_published)) => {
                listed.extend(now_published.listed.iter().cloned());
                published = Some(now_published);
            }
            Ok(None) => {}
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

/// Tells devices what changed since `last` was the newest revision. Returns the newest one that
/// they were told of. As long as there never was a configuration, there is nothing to tell.
fn publish_news(
    store: &mut dyn Store,
    last: Option<u64>,
    outbox: &Outbox,
) -> Result<Option<u64>, StoreError> {
    let newest = store.newest_configuration()?;
    if newest > 0 && last != Some(newest) {
        let ConfigurationChanges { mut news, devices } = store.configuration_changes()?;
        news.spread = u32::try_from(devices / REQUESTS_A_SECOND).unwrap_or(u32::MAX);
        if !outbox.proclaim(Topic::Configuration(outbox.scope.clone()), news.encode()) {
            return Ok(last);
        }
    }
    Ok(Some(newest))
}

/// What subscribers have.
struct Published {
    /// The CA that signed the lists.
    ca: Arc<Ca>,
    /// The issuing CA whose list is the first.
    in_use: Arc<Issuer>,
    /// The issuing CAs that have a list, by their keys.
    listed: BTreeSet<KeyId>,
    /// Whether some are missing, because their keys are elsewhere and did not sign.
    is_part: bool,
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

/// Publishes certificates and lists; `None` if the `last` ones are still good, or if not all could
/// be sent. The list of an issuing CA that is among `ever_listed` and signs none any more is
/// removed from the broker.
fn publish(
    ca: Arc<Ca>,
    store: &mut dyn Store,
    last: Option<&Published>,
    ever_listed: &BTreeSet<KeyId>,
    outbox: &Outbox,
    bulletin: &Bulletin,
    now: OffsetDateTime,
) -> Result<Option<Published>, ListError> {
    let (changes, in_use) = (store.changes()?.list, Arc::clone(ca.issuers.current(now)));
    if let Some(last) = last
        && Arc::ptr_eq(&last.in_use, &in_use)
        && match last.is_part {
            true => last.at.elapsed() < AWAY_POLL,
            false => is_good_enough(last.changes != changes, last.at.elapsed(), last.took),
        }
    {
        return Ok(None);
    }
    // The certificates, the list of the one in use, and a list or its removal for each.
    if !outbox.has_room_for(2 + ca.issuers.all().len() + ever_listed.len()) {
        debug!("the revocation lists wait until the broker has taken what was sent before");
        return Ok(None);
    }
    let (began, mut is_sent) = (Instant::now(), true);
    // A subscriber of another CA's or of none: whoever verifies a list needs its issuer.
    if last.is_none() {
        let certificates = ca.certificates.clone().into_bytes();
        is_sent &= proclaim(outbox, Topic::Chain(outbox.scope.clone()), certificates);
    }
    let mut listed = BTreeSet::new();
    let Lists { signed, away } = ca.revocation_lists(store, MAX_LIST, now)?;
    bulletin.post(&signed, &away);
    for key in &away {
        warn!(%key, "a revocation list is not published: the key that signs it does not sign now");
    }
    let is_part = !away.is_empty();
    // What subscribers have of these is as good as it was.
    listed.extend(away);
    for SignedList { key_id, in_use, der } in signed {
        if in_use {
            is_sent &= proclaim(outbox, Topic::Crl(outbox.scope.clone()), der.clone());
        }
        is_sent &= proclaim(outbox, Topic::CrlOf(outbox.scope.clone(), key_id.clone()), der);
        listed.insert(key_id);
    }
    let was_there = |key_id: &&KeyId| last.is_none_or(|last| last.listed.contains(*key_id));
    for key_id in ever_listed.difference(&listed).filter(was_there) {
        is_sent &= proclaim(outbox, Topic::CrlOf(outbox.scope.clone(), key_id.clone()), Vec::new());
    }
    let (at, took) = (Instant::now(), began.elapsed());
    Ok(is_sent.then_some(Published { ca, in_use, listed, is_part, changes, at, took }))
}

/// Returns `false` if it is to be tried again.
fn proclaim(outbox: &Outbox, topic: Topic, content: Vec<u8>) -> bool {
    if content.len() > MAX_LIST {
        warn!(
            %topic,
            length = content.len(),
            limit = MAX_LIST,
            "too long for one message; `assay crl` writes a revocation list to a file"
        );
        return true;
    }
    outbox.proclaim(topic, content)
}

/// As many devices as should ask for a new configuration in a second, out of the two thousand that
/// a small CA answers.
const REQUESTS_A_SECOND: u64 = 500;
/// How late a list is published whose key did not sign.
const AWAY_POLL: Duration = Duration::from_secs(30);
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
    use tokio::sync::mpsc;

    use super::super::metrics::Metrics;
    use super::super::outbox::Letter;
    use super::*;
    use crate::directory::Directory;
    use crate::operations::{configurations, issuing};

    /// A CA, and a broker that takes so many letters and then none.
    struct Case {
        directory: Directory,
        store: Box<dyn Store>,
        outbox: Outbox,
        letters: mpsc::Receiver<Letter>,
        bulletin: Bulletin,
        _parent: tempfile::TempDir,
    }

    impl Case {
        fn new(room: usize) -> Self {
            let parent = tempfile::tempdir().unwrap();
            Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
            let directory = Directory::open(&parent.path().join("ca")).unwrap();
            let (sender, letters) = mpsc::channel(room);
            let outbox = Outbox::new(directory.config().scope.clone(), sender, Metrics::default());
            let store = directory.store().unwrap();
            let bulletin = Bulletin::default();
            Self { directory, store, outbox, letters, bulletin, _parent: parent }
        }

        fn publish(
            &mut self,
            last: Option<&Published>,
            ever_listed: &BTreeSet<KeyId>,
        ) -> Option<Published> {
            let ca = Arc::new(self.directory.ca().unwrap());
            let now = OffsetDateTime::now_utc();
            publish(ca, &mut *self.store, last, ever_listed, &self.outbox, &self.bulletin, now)
                .unwrap()
        }

        /// The topics on which something is retained, and whether it is removed.
        fn sent(&mut self) -> Vec<(String, bool)> {
            let letters = std::iter::from_fn(|| self.letters.try_recv().ok());
            let retained = letters.filter_map(|letter| {
                let (topic, content) = letter.retained()?;
                Some((topic, content.is_empty()))
            });
            retained.collect()
        }
    }

    #[test]
    fn list_of_an_issuing_ca_that_was_removed_is_removed_from_the_broker() {
        let mut case = Case::new(32);
        let now = OffsetDateTime::now_utc();
        let next =
            issuing::make(&case.directory, now + time::Duration::DAY, None, None, now).unwrap();
        let topic = format!("ca/v1/default/crl/{}", next.key_id);
        let first = case.publish(None, &BTreeSet::new()).unwrap();
        assert!(case.sent().contains(&(topic.clone(), false)));
        assert_eq!(first.listed.len(), 2);

        issuing::remove(&case.directory, &next.name.to_string(), false, now).unwrap();
        let second = case.publish(None, &first.listed).unwrap();
        assert!(case.sent().contains(&(topic.clone(), true)));
        // Once, unless a broker comes that may have it.
        let aged = Published { changes: -1, took: Duration::ZERO, ..second };
        assert!(case.publish(Some(&aged), &first.listed).is_some());
        assert!(case.sent().iter().all(|(_, is_removed)| !is_removed));
        case.publish(None, &first.listed).unwrap();
        assert!(case.sent().contains(&(topic, true)));
    }

    #[test]
    fn what_the_broker_has_no_room_for_counts_as_not_published() {
        let mut case = Case::new(2);
        assert!(case.publish(None, &BTreeSet::new()).is_none());
        assert_eq!(case.sent(), [], "no list is signed that nobody takes");
        let topic = || Topic::Chain(case.outbox.scope.clone());
        assert!(proclaim(&case.outbox, topic(), vec![7]));
        assert!(proclaim(&case.outbox, topic(), vec![7]));
        assert!(!proclaim(&case.outbox, topic(), vec![7]));

        let document = configurations::Document::read(b"{}".to_vec()).unwrap();
        let now = OffsetDateTime::now_utc();
        let newest = configurations::set(&case.directory, None, &document, now).unwrap();
        let news = |case: &mut Case| publish_news(&mut *case.store, Some(0), &case.outbox).unwrap();
        assert_eq!(news(&mut case), Some(0));
        case.sent();
        assert_eq!(news(&mut case), Some(newest));
    }

    #[test]
    fn a_store_that_stood_still_once_holds_no_revocation_back_for_more_than_a_minute() {
        let stood_still = Duration::from_hours(1);
        assert!(is_good_enough(true, Duration::from_secs(59), stood_still));
        assert!(!is_good_enough(true, Duration::from_secs(60), stood_still));
    }

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
