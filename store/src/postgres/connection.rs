//! A store's connection: it is made again after a loss, and failed work is tried again.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use postgres::error::SqlState;

use super::session::{Attempt, Mark, Session};
use super::settings::Settings;
use crate::audit::Actor;
use crate::error::StoreError;

/// One connection to PostgreSQL. Each thread has its own.
pub struct Postgres {
    settings: Settings,
    session: Option<Session>,
    /// Who acts with it, if an operator does.
    pub(super) actor: Option<Actor>,
}

impl Postgres {
    /// The connection is made when it is first used.
    pub(super) fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone(), session: None, actor: None }
    }

    /// Reads with one statement.
    pub(super) fn read<T: Send>(
        &mut self,
        mut work: impl FnMut(&mut Session) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        apart(move || {
            let mut patience = Patience::default();
            loop {
                match self.with_session(&mut work) {
                    Ok(value) => return Ok(value),
                    Err(error) => self.recover(error, &mut patience)?,
                }
            }
        })
    }

    /// Reads several things at one moment, or one thing that is long.
    pub(super) fn read_together<T: Send>(
        &mut self,
        mut work: impl FnMut(&mut Session) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        self.read(|session| session.read_together(&mut work))
    }

    /// Runs `work` in one transaction that writes, and again after an error that may pass. If this
    /// returns `Ok`, all of the transaction is durable. After an error none of it happened, except
    /// after [`StoreError::Undecided`].
    pub(super) fn write<T: Send>(
        &mut self,
        mut work: impl FnMut(&mut Session) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        apart(move || {
            let mut patience = Patience::default();
            loop {
                match self.with_session(|session| session.try_write(&mut work)) {
                    Ok(Attempt::Committed(value)) => return Ok(value),
                    Ok(Attempt::Undecided { value, mark }) => {
                        self.session = None;
                        if self.was_committed(&mark, &mut patience)? {
                            return Ok(value);
                        }
                    }
                    Err(error) => self.recover(error, &mut patience)?,
                }
            }
        })
    }

    /// If `work` panics, the connection ends, and with it the transaction that may be open.
    fn with_session<T>(
        &mut self,
        work: impl FnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.session()?;
        let mut session = self.session.take().expect("it was made");
        let result = work(&mut session);
        self.session = Some(session);
        result
    }

    /// The connection, made if there is none.
    pub(super) fn session(&mut self) -> Result<&mut Session, StoreError> {
        if self.session.as_ref().is_some_and(|session| session.client.is_closed()) {
            self.session = None;
        }
        match &mut self.session {
            Some(session) => Ok(session),
            none => Ok(none.insert(Session::open(&self.settings)?)),
        }
    }

    /// Finds out whether a transaction was committed whose commit got no answer. Waits until that
    /// transaction has ended.
    fn was_committed(&mut self, mark: &Mark, patience: &mut Patience) -> Result<bool, StoreError> {
        loop {
            let is_there = |session: &mut Session| mark.is_there(session);
            match self.with_session(|session| session.try_write(is_there)) {
                Ok(Attempt::Committed(is_there)) => return Ok(is_there),
                Ok(Attempt::Undecided { value: is_there, .. }) => return Ok(is_there),
                Err(error) => {
                    self.recover(error, patience).map_err(|_| StoreError::Undecided)?;
                }
            }
        }
    }

    /// Waits before another attempt, if that may help. If not, returns the error.
    fn recover(&mut self, error: StoreError, patience: &mut Patience) -> Result<(), StoreError> {
        let again = match &error {
            StoreError::Postgres(error) => remedy(error),
            _ => None,
        };
        let Some(remedy) = again else { return Err(error) };
        if remedy == Remedy::NewConnection {
            self.session = None;
        }
        if patience.wait() { Ok(()) } else { Err(error) }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            apart(move || drop(session));
        }
    }
}

/// Runs `work` on a thread that runs no asynchronous tasks, as the client demands. If this thread
/// runs such tasks, `work` runs on another one, which takes some 50 µs more.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if tokio::runtime::Handle::try_current().is_err() {
        return work();
    }
    thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What helps against an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    SameConnection,
    NewConnection,
}

fn remedy(error: &postgres::Error) -> Option<Remedy> {
    let Some(code) = error.code() else {
        // The error does not come from the server: the connection was lost, or could not be made.
        // If TLS refused a certificate, another attempt would not help.
        let is_of_the_network = std::error::Error::source(error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .is_some_and(|error| error.kind() != io::ErrorKind::InvalidData);
        return (error.is_closed() || is_of_the_network).then_some(Remedy::NewConnection);
    };
    if [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code) {
        return Some(Remedy::SameConnection);
    }
    let is_away = [
        SqlState::ADMIN_SHUTDOWN,
        SqlState::CRASH_SHUTDOWN,
        SqlState::CANNOT_CONNECT_NOW,
        SqlState::TOO_MANY_CONNECTIONS,
        SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
        // The server became a standby, and another server takes writes.
        SqlState::READ_ONLY_SQL_TRANSACTION,
        // What a standby answers to a transaction that wants to write.
        SqlState::FEATURE_NOT_SUPPORTED,
    ];
    let is_lost = is_away.contains(code) || code.code().starts_with("08");
    is_lost.then_some(Remedy::NewConnection)
}

/// How long something is tried. The pause doubles after each attempt, and has a random part so that
/// processes that began together do not try together.
struct Patience {
    deadline: Instant,
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { deadline: Instant::now() + PATIENCE, pause: FIRST_PAUSE }
    }
}

impl Patience {
    /// Waits for the next attempt. Returns `false` if there is no time left.
    fn wait(&mut self) -> bool {
        let pause = self.pause.mul_f64(0.5 + fastrand::f64() / 2.0);
        if Instant::now() + pause > self.deadline {
            return false;
        }
        thread::sleep(pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        true
    }
}

/// As long as SQLite waits for a process that writes. A server restarts in a second or two; a
/// standby takes over in about this time.
const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::contract::Store;

    fn store(server: &assay_tests::Postgres) -> Postgres {
        let settings = Settings::new(&server.address().unwrap(), None, None).unwrap();
        Postgres::upgrade(&settings).unwrap();
        Postgres::open(&settings).unwrap()
    }

    #[test]
    fn connection_that_was_lost_is_made_anew() {
        let server = assay_tests::Postgres::start().unwrap();
        let mut store = store(&server);
        assert_eq!(store.next_revocation_list().unwrap(), 1);
        server.crash().unwrap();
        assert_eq!(store.changes().unwrap(), store.changes().unwrap());
        server.crash().unwrap();
        assert_eq!(store.next_revocation_list().unwrap(), 2);
    }

    #[test]
    fn server_that_is_away_is_waited_for() {
        let server = Arc::new(assay_tests::Postgres::start().unwrap());
        let mut store = store(&server);
        server.stop().unwrap();
        let restart = {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                thread::sleep(Duration::from_secs(1));
                server.restart().unwrap();
            })
        };
        assert_eq!(store.next_revocation_list().unwrap(), 1);
        restart.join().unwrap();
    }

    #[test]
    fn server_that_stays_away_is_an_error_after_some_seconds() {
        let server = assay_tests::Postgres::start().unwrap();
        let mut store = store(&server);
        server.stop().unwrap();
        let started = Instant::now();
        assert!(matches!(store.next_revocation_list(), Err(StoreError::Postgres(_))));
        assert!(started.elapsed() < 2 * PATIENCE);
    }

    #[test]
    fn what_became_of_a_commit_without_an_answer_is_found_out() {
        let server = assay_tests::Postgres::start().unwrap();
        let mut store = store(&server);
        let committed = begun(&mut store);
        store.session().unwrap().client.batch_execute("COMMIT").unwrap();
        let undone = begun(&mut store);
        store.session().unwrap().client.batch_execute("ROLLBACK").unwrap();
        let ask = |store: &mut Postgres, mark| {
            store.was_committed(mark, &mut Patience::default()).unwrap()
        };
        assert!(ask(&mut store, &committed.0));
        assert!(!ask(&mut store, &undone.0));
        server.crash().unwrap();
        store.session = None;
        assert!(ask(&mut store, &committed.0));
    }

    /// A server gives the number of a transaction that a crash undid to another one.
    #[test]
    fn transaction_that_a_crash_undid_is_not_taken_for_the_next_one() {
        let server = assay_tests::Postgres::start().unwrap();
        let mut store = store(&server);
        let (lost, number) = begun(&mut store);
        server.crash().unwrap();
        store.session = None;
        let next = store.write(number_of).unwrap();
        assert_eq!(next, number, "otherwise this tests nothing");
        assert!(!store.was_committed(&lost, &mut Patience::default()).unwrap());
    }

    /// The server may still work on the transaction for the old connection.
    #[test]
    fn commit_that_is_still_under_way_is_waited_for() {
        let server = assay_tests::Postgres::shared().unwrap();
        let mut store = store(&server);
        let (mark, _) = begun(&mut store);
        let mut old = store.session.take().unwrap();
        let ends = thread::spawn(move || {
            thread::sleep(Duration::from_millis(300));
            old.client.batch_execute("COMMIT").unwrap();
        });
        assert!(store.was_committed(&mark, &mut Patience::default()).unwrap());
        ends.join().unwrap();
    }

    /// Begins a transaction. Returns its mark and its number.
    fn begun(store: &mut Postgres) -> (Mark, String) {
        let session = store.session().unwrap();
        let mark = session.begin_writing().unwrap();
        (mark, number_of(session).unwrap())
    }

    fn number_of(session: &mut Session) -> Result<String, StoreError> {
        Ok(session.query_one("SELECT pg_current_xact_id()::text", &[])?.get(0))
    }

    #[test]
    fn transaction_in_which_somebody_panics_keeps_nobody_waiting() {
        let server = assay_tests::Postgres::shared().unwrap();
        let mut store = store(&server);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            store.write(|session| -> Result<(), StoreError> {
                session.execute("UPDATE revocation_lists SET number = 9", &[])?;
                panic!("as a fault of ours would")
            })
        }));
        assert!(panicked.is_err());
        let mut other = Postgres::open(&store.settings).unwrap();
        let started = Instant::now();
        assert_eq!(other.next_revocation_list().unwrap(), 1);
        assert!(started.elapsed() < Duration::from_secs(3), "the server cuts it after five");
        assert_eq!(store.next_revocation_list().unwrap(), 2);
    }

    #[test]
    fn store_works_on_a_thread_that_runs_asynchronous_tasks() {
        let server = assay_tests::Postgres::shared().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut store = store(&server);
            let seen = store.changes().unwrap();
            assert_eq!(store.next_revocation_list().unwrap(), 1);
            assert_eq!(store.wait_for_changes(seen, Duration::from_millis(1)).unwrap(), seen);
        });
    }

    #[test]
    fn server_that_became_a_standby_is_left_for_another_connection() {
        let server = assay_tests::Postgres::shared().unwrap();
        let mut store = store(&server);
        let mut connections = Vec::new();
        let result = store.write(|session| {
            connections.push(session.query_one("SELECT pg_backend_pid()", &[])?.get::<_, i32>(0));
            if connections.len() == 1 {
                // As `BEGIN READ WRITE` fails on a standby.
                session.client.batch_execute("DO $$ BEGIN RAISE SQLSTATE '0A000'; END $$")?;
            }
            Ok(())
        });
        result.unwrap();
        assert_ne!(connections[0], connections[1]);
    }

    #[test]
    fn failure_to_serialize_is_tried_again() {
        let server = assay_tests::Postgres::shared().unwrap();
        let mut store = store(&server);
        let mut attempts = 0;
        let result = store.write(|session| {
            attempts += 1;
            if attempts < 3 {
                let fail = "DO $$ BEGIN RAISE SQLSTATE '40001'; END $$";
                session.client.batch_execute(fail)?;
            }
            Ok(attempts)
        });
        assert_eq!(result.unwrap(), 3);
    }
}
