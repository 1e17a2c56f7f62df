//! A store's connection, which is made anew when it was lost, and what is tried again.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use postgres::error::SqlState;

use super::session::{Attempt, Session};
use super::settings::Settings;
use crate::error::StoreError;

/// One connection to PostgreSQL. Each thread has its own.
pub struct Postgres {
    settings: Settings,
    session: Option<Session>,
}

impl Postgres {
    /// A connection that is made when it is first used.
    pub(super) fn new(settings: &Settings) -> Self {
        Self { settings: settings.clone(), session: None }
    }

    /// Reads by one statement.
    pub(super) fn read<T: Send>(
        &mut self,
        mut work: impl FnMut(&mut Session) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        apart(move || {
            let mut patience = Patience::default();
            loop {
                match self.session().and_then(&mut work) {
                    Ok(value) => return Ok(value),
                    Err(error) => self.recover(error, &mut patience)?,
                }
            }
        })
    }

    /// Reads several things of one moment, or one thing that is long.
    pub(super) fn read_together<T: Send>(
        &mut self,
        mut work: impl FnMut(&mut Session) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        self.read(|session| session.read_together(&mut work))
    }

    /// Runs `work` in one write transaction, again if it must be; all of it is durable when this
    /// returns `Ok`, or none of it happened.
    pub(super) fn write<T: Send>(
        &mut self,
        mut work: impl FnMut(&mut Session) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        apart(move || {
            let mut patience = Patience::default();
            loop {
                match self.session().and_then(|session| session.try_write(&mut work)) {
                    Ok(Attempt::Committed(value)) => return Ok(value),
                    Ok(Attempt::Undecided { value, transaction }) => {
                        self.session = None;
                        if self.was_committed(&transaction, &mut patience)? {
                            return Ok(value);
                        }
                    }
                    Err(error) => self.recover(error, &mut patience)?,
                }
            }
        })
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

    /// Asks what became of a transaction whose commit nobody answered.
    fn was_committed(
        &mut self,
        transaction: &str,
        patience: &mut Patience,
    ) -> Result<bool, StoreError> {
        loop {
            let status = self.session().and_then(|session| {
                let row = session.query_one(STATUS, &[&transaction])?;
                Ok(row.get::<_, Option<String>>(0))
            });
            match status {
                Ok(status) if status.as_deref() == Some("committed") => return Ok(true),
                // Its old connection is still at it.
                Ok(status) if status.as_deref() == Some("in progress") => {
                    if !patience.wait() {
                        return Err(StoreError::Undecided);
                    }
                }
                Ok(_) => return Ok(false),
                // A server that crashed before it wrote the number anywhere knows it not.
                Err(StoreError::Postgres(error))
                    if error.code() == Some(&SqlState::INVALID_PARAMETER_VALUE) =>
                {
                    return Ok(false);
                }
                Err(error) => {
                    self.recover(error, patience).map_err(|_| StoreError::Undecided)?;
                }
            }
        }
    }

    /// Waits before another attempt, if that may help.
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

/// Runs `work` on a thread that runs no asynchronous tasks, as the client demands: this one, or
/// another, which takes some 50 µs more.
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
        // Not the server's words: the connection was lost, or there was none.
        // What TLS finds wrong with a certificate stays so.
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
        // It became a standby, and another is the one that is written to.
        SqlState::READ_ONLY_SQL_TRANSACTION,
    ];
    let is_lost = is_away.contains(code) || code.code().starts_with("08");
    is_lost.then_some(Remedy::NewConnection)
}

/// How long something is tried: twice as long between attempts each time, and never as long as
/// others who began together.
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
    /// `false` if it is at its end.
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

const STATUS: &str = "SELECT pg_xact_status($1::text::xid8)";
/// As long as SQLite waits for whoever writes. A server restarts in a second or two; a standby
/// takes over in about as long as this.
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
        let mut number = |commits: bool| {
            let mut number = String::new();
            let result = store.write(|session| {
                let query = "SELECT pg_current_xact_id()::text";
                number = session.query_one(query, &[])?.get(0);
                // What wrote nothing may be forgotten by a crash.
                session.execute("UPDATE revocation_lists SET number = number", &[])?;
                if commits { Ok(()) } else { Err(StoreError::Empty) }
            });
            assert_eq!(result.is_ok(), commits);
            number
        };
        let (committed, undone) = (number(true), number(false));
        let never = (undone.parse::<u64>().unwrap() + 1_000_000).to_string();
        let expected = [(&committed, true), (&undone, false), (&never, false)];
        for (transaction, expected) in expected {
            let was = store.was_committed(transaction, &mut Patience::default()).unwrap();
            assert_eq!(was, expected, "{transaction}");
        }
        server.crash().unwrap();
        store.session = None;
        assert!(store.was_committed(&committed, &mut Patience::default()).unwrap());
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
