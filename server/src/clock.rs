//! Whether this machine's clock can be right, compared with the record, with the store's server and
//! with the time that this process has run. A worker whose clock is wrong answers nothing.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use assay_ca_core::CLOCK_SKEW;
use assay_store::{Clocks, Store, StoreError};
use rustix::time::{ClockId, clock_gettime};
use time::{Duration, OffsetDateTime};
use tracing::{debug, error, info, warn};

/// Why nothing is answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The clock is behind the record, so it went back, or the record's times are wrong.
    #[error(
        "the clock of this machine is {} behind what is on record: set it. If it is right, the \
         times on record are wrong: then run `assay clock --accept`", shown(.0)
    )]
    Behind(Duration),
    /// The clock differs from the server's.
    #[error(
        "the clock of this machine is {} {} that of PostgreSQL: set the one that is wrong",
        shown(&.0.abs()),
        if .0.is_negative() { "behind" } else { "ahead of" }
    )]
    FromServer(Duration),
    /// The clock went forward while this process ran.
    #[error(
        "the clock of this machine went forward by {} at once: set it back. If it is right now, \
         run `assay clock --accept`", shown(.0)
    )]
    Forward(Duration),
    /// The CA was restored from a backup, and an operator has to say what was revoked since.
    #[error("this CA was restored from a backup: see `assay resume`")]
    Held,
    /// The store could not be asked.
    #[error("the clock could not be compared with the record: {0}")]
    Unknown(String),
}

/// Judges the clock, look after look.
#[derive(Debug, Default)]
struct Judge {
    /// When the machine would have started by the clock, as of the last look that found it right;
    /// and how often an operator had accepted the clock by then.
    began: Option<(OffsetDateTime, i64)>,
}

impl Judge {
    /// `ran` is the time since the machine started, which no clock that is set changes.
    fn judge(&mut self, now: OffsetDateTime, ran: Duration, clocks: &Clocks) -> Result<(), Unfit> {
        let behind = clocks.latest - now;
        // Beside a server, another worker may have marked a time that was ahead of the server's by
        // the tolerance, while this clock is behind it by as much.
        let allowed = CLOCK_SKEW * if clocks.server.is_some() { 2 } else { 1 };
        if behind > allowed {
            return Err(Unfit::Behind(behind));
        }
        let began = now - ran;
        if let Some(server) = clocks.server {
            let ahead = now - server;
            if ahead.abs() > CLOCK_SKEW {
                return Err(Unfit::FromServer(ahead));
            }
        } else if let Some((before, accepted)) = self.began
            && accepted == clocks.accepted
            && began - before > CLOCK_SKEW
        {
            return Err(Unfit::Forward(began - before));
        }
        // From look to look, so that a clock that is slewed is followed.
        self.began = Some((began, clocks.accepted));
        Ok(())
    }
}

/// Lets a worker answer, or not.
#[derive(Debug)]
pub struct Gate(RwLock<State>);

#[derive(Clone, Debug)]
enum State {
    /// The clock was right at this moment, which was so long after the machine's start.
    Right(OffsetDateTime, Duration),
    Closed(Unfit),
}

impl Default for Gate {
    /// Closed until the first look.
    fn default() -> Self {
        Self(RwLock::new(State::Closed(Unfit::Unknown("it was not looked at yet".into()))))
    }
}

impl Gate {
    /// As after a look that found the clock right.
    #[cfg(test)]
    pub(crate) fn open() -> Self {
        Self(RwLock::new(State::Right(OffsetDateTime::now_utc(), since_boot())))
    }

    /// The time, if the clock can be right.
    pub fn now(&self) -> Option<OffsetDateTime> {
        let now = OffsetDateTime::now_utc();
        self.allows(now).is_ok().then_some(now)
    }

    /// Whether something may be decided that came at this time, some seconds ago at most. The clock
    /// may have been set since the last look, so that does not suffice.
    ///
    /// # Errors
    /// Nothing may be decided now.
    pub fn allows(&self, at: OffsetDateTime) -> Result<(), Unfit> {
        let (right, since) = match self.state() {
            State::Closed(unfit) => return Err(unfit),
            State::Right(right, since) => (right, since),
        };
        let step = at - right - (since_boot() - since);
        match step {
            _ if step.abs() <= CLOCK_SKEW => Ok(()),
            _ if step.is_positive() => Err(Unfit::Forward(step)),
            _ => Err(Unfit::Behind(step.abs())),
        }
    }

    fn state(&self) -> State {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens or closes it after a look at this moment, and says so.
    fn set(&self, found: Result<(), Unfit>, now: OffsetDateTime, at: Duration) {
        let before = self.state();
        let after = match (&before, found) {
            (State::Closed(Unfit::Unknown(_)), Ok(())) => State::Right(now, at),
            (State::Closed(_), Ok(())) => {
                info!("the clock is right again: requests are answered");
                State::Right(now, at)
            }
            (_, Ok(())) => State::Right(now, at),
            // The store says itself what is wrong with it. Nothing can be answered wrongly by a
            // store that is away.
            (_, Err(Unfit::Unknown(reason))) => {
                debug!(%reason, "the clock cannot be judged");
                return;
            }
            (State::Closed(was), Err(is)) if kind(was) == kind(&is) => State::Closed(is),
            (_, Err(is)) => {
                error!(reason = %is, "nothing is answered");
                State::Closed(is)
            }
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = after;
    }
}

/// Looks at the clock.
pub struct Look {
    store: Box<dyn Store>,
    gate: Arc<Gate>,
    judge: Judge,
    /// When it last put the time on record.
    marked: Option<Duration>,
}

impl Look {
    /// What looks by this store, and opens or closes this gate.
    pub fn new(store: Box<dyn Store>, gate: Arc<Gate>) -> Self {
        Self { store, gate, judge: Judge::default(), marked: None }
    }

    /// Looks once.
    pub fn once(&mut self) {
        let (now, at) = (OffsetDateTime::now_utc(), since_boot());
        let found =
            self.find(now, at).unwrap_or_else(|error| Err(Unfit::Unknown(error.to_string())));
        self.gate.set(found, now, at);
    }

    fn find(&mut self, now: OffsetDateTime, at: Duration) -> Result<Result<(), Unfit>, StoreError> {
        if self.store.epoch()?.is_held() {
            return Ok(Err(Unfit::Held));
        }
        let clocks = self.store.clocks()?;
        let found = self.judge.judge(now, at, &clocks);
        if found.is_ok() && self.marked.is_none_or(|marked| at - marked >= MARK) {
            // On a full disk, the clock is right all the same.
            if let Err(error) = self.store.mark_clock(now) {
                warn!(%error, "the time could not be put on record");
            }
            self.marked = Some(at);
        }
        Ok(found)
    }
}

fn kind(unfit: &Unfit) -> std::mem::Discriminant<Unfit> {
    std::mem::discriminant(unfit)
}

/// The time since the machine started, the time that it slept included. Nobody can set it.
fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec, i32::try_from(time.tv_nsec).unwrap_or_default())
}

fn shown(time: &Duration) -> impl fmt::Display {
    format!("{} s", time.whole_seconds())
}

/// How often the time is put on record. A step back of more than this and the tolerance is noticed
/// after a restart, too.
const MARK: Duration = Duration::MINUTE;

#[cfg(test)]
mod tests {
    use assay_store::sqlite::Sqlite;
    use assay_store::{Database, SharedKeys};

    use super::*;
    use crate::directory::Directory;

    const STEPS: [Duration; 3] = [Duration::HOUR, Duration::DAY, Duration::days(365)];

    fn start() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_780_000_000).unwrap()
    }

    fn file(latest: OffsetDateTime, accepted: i64) -> Clocks {
        Clocks { latest, accepted, server: None }
    }

    fn seconds(n: i64) -> Duration {
        Duration::seconds(n)
    }

    #[test]
    fn a_clock_that_goes_back_is_wrong_until_it_is_set_again() {
        for step in STEPS {
            let mut judge = Judge::default();
            let clocks = file(start(), 0);
            assert_eq!(judge.judge(start(), seconds(0), &clocks), Ok(()));
            let back = judge.judge(start() - step, seconds(1), &clocks);
            assert_eq!(back, Err(Unfit::Behind(step)));
            // After a restart, the record still knows.
            assert!(Judge::default().judge(start() - step, seconds(0), &clocks).is_err());
            assert_eq!(judge.judge(start() + seconds(2), seconds(2), &clocks), Ok(()));
        }
    }

    #[test]
    fn a_clock_that_goes_forward_is_wrong_until_it_is_set_back_or_accepted() {
        for step in STEPS {
            let mut judge = Judge::default();
            assert_eq!(judge.judge(start(), seconds(0), &file(start(), 0)), Ok(()));
            for n in 1..5 {
                let found = judge.judge(start() + step + seconds(n), seconds(n), &file(start(), 0));
                assert_eq!(found, Err(Unfit::Forward(step)));
            }
            let mut other = Judge { began: judge.began };
            assert_eq!(other.judge(start() + seconds(5), seconds(5), &file(start(), 0)), Ok(()));
            let accepted = file(start() + step, 1);
            assert_eq!(judge.judge(start() + step + seconds(6), seconds(6), &accepted), Ok(()));
            assert_eq!(judge.judge(start() + step + seconds(7), seconds(7), &accepted), Ok(()));
        }
    }

    #[test]
    fn the_tolerance_is_that_of_the_clocks_of_workers() {
        let mut judge = Judge::default();
        assert_eq!(judge.judge(start(), seconds(0), &file(start() + CLOCK_SKEW, 0)), Ok(()));
        assert_eq!(judge.judge(start() + CLOCK_SKEW, seconds(0), &file(start(), 0)), Ok(()));
        let more = CLOCK_SKEW + seconds(1);
        assert!(judge.judge(start(), seconds(0), &file(start() + more, 0)).is_err());
        // A clock that is slewed for long is followed.
        for n in 1..1_000 {
            let now = start() + CLOCK_SKEW + seconds(n) + Duration::milliseconds(500 * n);
            assert_eq!(judge.judge(now, seconds(n), &file(start(), 0)), Ok(()), "{n}");
        }
    }

    #[test]
    fn with_a_server_its_clock_decides_and_not_whether_this_one_was_set() {
        for step in STEPS {
            let mut judge = Judge::default();
            let with = |server| Clocks { latest: start(), accepted: 0, server: Some(server) };
            assert_eq!(judge.judge(start(), seconds(0), &with(start())), Ok(()));
            let now = start() + step;
            let ahead = judge.judge(now, seconds(1), &with(start() + seconds(1)));
            assert_eq!(ahead, Err(Unfit::FromServer(step - seconds(1))));
            // Both were set: they were wrong before.
            assert_eq!(judge.judge(now, seconds(2), &with(now)), Ok(()));
            let behind = judge.judge(start(), seconds(3), &with(start() + step));
            assert_eq!(behind, Err(Unfit::FromServer(-step)));
        }
    }

    #[test]
    fn workers_on_both_sides_of_the_servers_clock_do_not_close_each_others_gate() {
        let (ahead, behind) = (start() + CLOCK_SKEW, start() - CLOCK_SKEW);
        let with = |latest| Clocks { latest, accepted: 0, server: Some(start()) };
        assert_eq!(Judge::default().judge(ahead, seconds(0), &with(start())), Ok(()));
        assert_eq!(Judge::default().judge(behind, seconds(0), &with(ahead)), Ok(()));
        let more = CLOCK_SKEW * 2 + seconds(1);
        let found = Judge::default().judge(behind, seconds(0), &with(behind + more));
        assert_eq!(found, Err(Unfit::Behind(more)));
    }

    #[test]
    fn a_gate_is_closed_until_the_first_look_and_stays_as_it_is_while_the_store_is_away() {
        let (gate, at) = (Gate::default(), since_boot());
        let is_open = || gate.allows(start()).is_ok();
        let set = |found| gate.set(found, start(), at);
        assert!(!is_open());
        set(Ok(()));
        assert!(is_open());
        set(Err(Unfit::Unknown("away".into())));
        assert!(is_open());
        set(Err(Unfit::Behind(Duration::HOUR)));
        set(Err(Unfit::Unknown("away".into())));
        assert!(!is_open());
        set(Ok(()));
        assert!(is_open());
    }

    #[test]
    fn a_worker_at_work_answers_nothing_once_its_record_is_a_restored_one() {
        let parent = tempfile::tempdir().unwrap();
        Directory::create(&parent.path().join("ca"), "Test", &[]).unwrap();
        let path = parent.path().join("ca/assay.db");
        let (gate, database) = (Arc::new(Gate::default()), Database::Sqlite(path.clone()));
        let mut look = Look::new(database.open().unwrap(), Arc::clone(&gate));
        look.once();
        let now = gate.now().expect("all is well");
        let mut record = Sqlite::open(&path).unwrap();
        record.raise_epoch(now - Duration::HOUR, SharedKeys::Keep, now).unwrap();
        look.once();
        assert_eq!(gate.allows(now), Err(Unfit::Held));
        record.resume(now).unwrap();
        look.once();
        assert_eq!(gate.allows(now), Ok(()));
    }

    #[test]
    fn a_clock_that_was_set_since_the_last_look_is_found_at_once() {
        let gate = Gate::default();
        gate.set(Ok(()), start(), since_boot());
        assert_eq!(gate.allows(start() + seconds(10)), Ok(()), "it waited in a queue");
        for step in STEPS {
            assert!(matches!(gate.allows(start() + step), Err(Unfit::Forward(_))));
            assert!(matches!(gate.allows(start() - step), Err(Unfit::Behind(_))));
        }
        assert_eq!(gate.now(), None, "it is not the year of this test");
    }
}
