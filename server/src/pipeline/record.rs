//! Records what was decided: one transaction for as many requests as are waiting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use assay_ca_core::EkFacts;
use assay_store::{
    Act, AuditEntry, Entry, Recorded, Retention, Store, StoreError, Waiting, record_each,
};
use assay_wire::{EkId, ReplyBody};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tracing::{error, info};

use super::decision_log::DecisionLog;
use super::outbox::Outbox;
use super::outcome::{contended, internal};
use super::planned::Planned;
use super::pulse::Pulse;
use crate::clock::Gate;

/// Something to be written.
pub(super) enum Write {
    /// A decision that needs nothing else on record.
    Audit(AuditEntry),
    /// The decision to ask an operator about an EK.
    Ask(Box<Waiting>, AuditEntry),
    Planned(Box<Planned>),
    /// What a certificate says of an EK.
    Learn(EkId, Box<EkFacts>),
    Pulse(Pulse),
}

/// Writes until every planner is gone. Requests whose basis is stale go to `again`.
pub(super) fn run(
    mut store: Box<dyn Store>,
    pruning: &Pruning,
    writes: &Receiver<Write>,
    again: &Sender<Box<Planned>>,
    outbox: &Outbox,
    log: &DecisionLog,
) {
    let (mut alone, mut pause) = (Vec::new(), Duration::ZERO);
    // Since when the first of those that stand alone waits.
    let mut since: Option<Instant> = None;
    let mut due = Instant::now() + OVERDUE_POLL;
    loop {
        let first = match writes.recv_timeout(AUDIT_DELAY) {
            Ok(write) => Some(write),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => break,
        };
        let idle = first.is_none();
        let (mut waiting, mut pulses) = (Vec::new(), Vec::new());
        for write in first.into_iter().chain(gather(writes, pause)) {
            match write {
                Write::Audit(entry) => alone.push(entry_alone(Act::None, Some(entry))),
                Write::Ask(waiting, entry) => {
                    alone.push(entry_alone(Act::Ask(*waiting), Some(entry)));
                }
                Write::Learn(ek, facts) => alone.push(entry_alone(Act::Learn(ek, *facts), None)),
                Write::Planned(planned) => waiting.push(*planned),
                Write::Pulse(pulse) => pulses.push(pulse),
            }
        }
        if !alone.is_empty() {
            since.get_or_insert_with(Instant::now);
        }
        let is_overdue = since.is_some_and(|since| idle || since.elapsed() >= LONGEST_DELAY);
        if !waiting.is_empty() || alone.len() >= BATCH || is_overdue {
            since = None;
            // Where a transaction is expensive, others wait for company as long as this one took.
            // A request that is alone does not wait.
            let (started, has_company) = (Instant::now(), waiting.len() > 1);
            commit(&mut *store, waiting, std::mem::take(&mut alone), again, outbox, log);
            let shared = if has_company { started.elapsed() } else { Duration::ZERO };
            pause = shared.min(store.longest_pause());
        }
        pulses.into_iter().for_each(Pulse::end);
        if Instant::now() >= due {
            log.tell_left_out();
            let is_more = pruning.once(&mut *store).unwrap_or_else(|error| {
                error!(%error, "unconfirmed certificates could not be revoked, and expired rows could not be deleted");
                false
            });
            due = Instant::now() + if is_more { MORE_POLL } else { OVERDUE_POLL };
        }
    }
    commit(&mut *store, Vec::new(), alone, again, outbox, log);
    log.tell_left_out();
}

/// An entry whose reply does not wait for it.
fn entry_alone(act: Act, audit: Option<AuditEntry>) -> Entry {
    Entry { act, basis: None, audit }
}

/// What arrives within the pause, up to the size of a batch.
fn gather(writes: &Receiver<Write>, pause: Duration) -> impl Iterator<Item = Write> {
    let until = Instant::now() + pause;
    std::iter::from_fn(move || writes.recv_deadline(until).ok()).take(BATCH)
}

/// Records everything in one transaction, and only then sends the replies. If a request cannot be
/// recorded, nothing of it has happened, and the device is told to try again.
fn commit(
    store: &mut dyn Store,
    waiting: Vec<Planned>,
    alone: Vec<Entry>,
    again: &Sender<Box<Planned>>,
    outbox: &Outbox,
    log: &DecisionLog,
) {
    let (mut entries, mut owed) = (Vec::new(), Vec::new());
    for mut planned in waiting {
        let act = std::mem::replace(&mut planned.issued.act, Act::None);
        let basis = planned.issued.basis.take();
        let audit = Some(planned.audit.clone());
        entries.push(Entry { act, basis, audit });
        owed.push(planned);
    }
    entries.extend(alone);
    let began = Instant::now();
    let recorded = record_each(store, &outbox.scope, &entries, |error| {
        log.fault("decisions could not be written", error);
    });
    outbox.metrics.took("record", began.elapsed());
    for (planned, recorded) in owed.into_iter().zip(recorded) {
        match recorded {
            Some(Recorded::Done) => answer(planned, outbox, log),
            Some(Recorded::Stale) => plan_again(planned, again, outbox),
            None => outbox.reply(planned.job, ReplyBody::Problem(internal())),
        }
    }
}

fn answer(planned: Planned, outbox: &Outbox, log: &DecisionLog) {
    let Planned { job, issued, audit, .. } = planned;
    log.decision(&audit);
    outbox.reply(job, issued.reply);
}

/// Has a request planned again, of which nothing is on record. The recorder never waits for the
/// planners, because they may wait for it.
fn plan_again(planned: Planned, again: &Sender<Box<Planned>>, outbox: &Outbox) {
    let planned = if planned.attempts >= ATTEMPTS {
        Box::new(planned)
    } else {
        match again.try_send(Box::new(planned)) {
            Ok(()) => return,
            Err(error) => error.into_inner(),
        }
    };
    outbox.reply(planned.job, ReplyBody::Problem(contended()));
}

/// What is revoked and forgotten, and when.
pub(super) struct Pruning {
    pub(super) retention: Retention,
    pub(super) gate: Arc<Gate>,
}

impl Pruning {
    /// Revokes and forgets what is due, if the clock can be right: neither can be undone. Returns
    /// whether there is more to do.
    fn once(&self, store: &mut dyn Store) -> Result<bool, StoreError> {
        let Some(now) = self.gate.now() else { return Ok(false) };
        let pruned = store.prune(&self.retention, now)?;
        if pruned.overdue > 0 {
            info!(count = pruned.overdue, "revoked what was not confirmed in time");
        }
        Ok(pruned.more)
    }
}

/// Requests in one transaction. A longer batch gains nothing, and only delays the first request in
/// it.
const BATCH: usize = 256;
/// How long a refusal may wait for other entries before it is written. Certificates never wait.
const AUDIT_DELAY: Duration = Duration::from_millis(100);
/// The same, while others come all the time.
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// How late an unconfirmed certificate is revoked at most. It is refused before that too, because
/// its deadline is checked.
const OVERDUE_POLL: Duration = Duration::from_secs(1);
/// The same, while there is more to do than one call does. A call takes some 10 ms, so others wait
/// for a tenth of the time at most.
const MORE_POLL: Duration = Duration::from_millis(100);
/// How often a request is planned at most. Its basis changes while it is signed only if somebody
/// asks for the same EK at the same time, or an operator acts on it.
const ATTEMPTS: u32 = 5;

#[cfg(test)]
mod tests {
    use assay_store::{Change, Database};
    use time::OffsetDateTime;

    use super::super::metrics::Metrics;
    use super::*;
    use crate::directory::Directory;

    #[test]
    fn nothing_is_forgotten_while_the_clock_is_wrong() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let database = Database::Sqlite(parent.path().join("ca/assay.db"));
        let mut store = database.open().unwrap();
        let entries: Vec<_> = (0..1_500)
            .map(|_| Entry { act: Act::None, basis: None, audit: Some(an_entry()) })
            .collect();
        store.record(&"default".parse().unwrap(), &entries).unwrap();
        let retention = Retention::default().with_audit(1_000).unwrap();
        for (gate, left) in [(Gate::default(), 1_500), (Gate::open(), 1_000)] {
            let pruning = Pruning { retention, gate: Arc::new(gate) };
            assert!(!pruning.once(&mut *store).unwrap());
            assert_eq!(store.audit(u32::MAX).unwrap().len(), left);
        }
    }

    fn an_entry() -> AuditEntry {
        AuditEntry {
            time: OffsetDateTime::now_utc(),
            client: "c".repeat(64).parse().unwrap(),
            action: "challenge",
            ek_id: None,
            device: None,
            change: Change::None,
            refusal: None,
            duration_us: 1,
        }
    }

    /// Otherwise whoever is refused a few times a second keeps all refusals from the audit.
    #[test]
    fn refusals_are_in_the_audit_soon_although_others_come_all_the_time() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let database = Database::Sqlite(parent.path().join("ca/assay.db"));
        let mut store = database.open().unwrap();
        let pruning = Pruning { retention: Retention::default(), gate: Arc::new(Gate::default()) };
        let (writes, written) = crossbeam_channel::unbounded();
        let (again, _stale) = crossbeam_channel::bounded(1);
        let outbox = Outbox::new(
            "default".parse().unwrap(),
            tokio::sync::mpsc::channel(1).0,
            Metrics::default(),
        );
        let recorder = database.open().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                run(recorder, &pruning, &written, &again, &outbox, &DecisionLog::default());
            });
            let until = Instant::now() + 2 * LONGEST_DELAY;
            while Instant::now() < until {
                writes.send(Write::Audit(an_entry())).unwrap();
                std::thread::sleep(AUDIT_DELAY / 4);
            }
            let found = store.audit(u32::MAX).unwrap().len();
            drop(writes);
            assert!(found > 0);
        });
    }

    #[test]
    fn what_is_too_much_for_one_call_is_forgotten_by_calls_soon_after() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let database = Database::Sqlite(parent.path().join("ca/assay.db"));
        let mut store = database.open().unwrap();
        let scope: assay_wire::Scope = "default".parse().unwrap();
        let entries: Vec<_> = (0..26_000)
            .map(|_| Entry { act: Act::None, basis: None, audit: Some(an_entry()) })
            .collect();
        assert!(store.record(&scope, &entries).is_ok());

        let retention = Retention::default().with_audit(1_000).unwrap();
        let pruning = Pruning { retention, gate: Arc::new(Gate::open()) };
        let (writes, written) = crossbeam_channel::unbounded();
        let (again, _stale) = crossbeam_channel::bounded(1);
        let outbox = Outbox::new(scope, tokio::sync::mpsc::channel(1).0, Metrics::default());
        let recorder = database.open().unwrap();
        let started = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                run(recorder, &pruning, &written, &again, &outbox, &DecisionLog::default());
            });
            while store.audit(u32::MAX).unwrap().len() > 1_000
                && started.elapsed() < Duration::from_secs(60)
            {
                std::thread::sleep(Duration::from_millis(100));
            }
            drop(writes);
        });
        // Five calls of 5,000 rows.
        assert!(started.elapsed() < 4 * OVERDUE_POLL, "{:?}", started.elapsed());
    }
}
