//! One connection to the server, and transactions on it.

use std::collections::HashMap;

use postgres::types::ToSql;
use postgres::{Client, Row, Statement};

use super::settings::Settings;
use crate::error::StoreError;
use crate::random::random_bytes;

/// One connection. It can only read, except in [`try_write`](Self::try_write).
pub(super) struct Session {
    pub(super) client: Client,
    /// Prepared statements, by their text.
    statements: HashMap<&'static str, Statement>,
    /// Whether the server notifies it of changes.
    pub(super) listens: bool,
    /// The scope on record when the last transaction that writes began.
    pub(super) scope: Option<String>,
}

/// The parameters of a statement.
pub(super) type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What became of a transaction.
pub(super) enum Attempt<T> {
    Committed(T),
    /// The connection was lost while the server committed. The mark tells whether it did.
    Undecided {
        value: T,
        mark: Mark,
    },
}

/// What a transaction writes to the table `commits`. It is there only if the transaction was
/// committed. The number of the transaction would not tell this: a server that crashed, or a
/// standby that took over, gives the numbers of lost transactions to others.
pub(super) struct Mark {
    place: i64,
    token: Vec<u8>,
}

impl Mark {
    /// Call this in a transaction that writes: such a transaction gets the lock only when the one
    /// in question has ended.
    pub(super) fn is_there(&self, session: &mut Session) -> Result<bool, StoreError> {
        let query = "SELECT FROM commits WHERE place = $1 AND token = $2";
        Ok(session.query_opt(query, &[&self.place, &self.token])?.is_some())
    }
}

impl Session {
    pub(super) fn open(settings: &Settings) -> Result<Self, StoreError> {
        let mut client = settings.connect()?;
        client.batch_execute(SETUP)?;
        Ok(Self { client, statements: HashMap::new(), listens: false, scope: None })
    }

    pub(super) fn query(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let statement = self.prepared(sql)?;
        Ok(self.client.query(&statement, parameters)?)
    }

    pub(super) fn query_one(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Row, StoreError> {
        let statement = self.prepared(sql)?;
        Ok(self.client.query_one(&statement, parameters)?)
    }

    pub(super) fn query_opt(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<Option<Row>, StoreError> {
        let statement = self.prepared(sql)?;
        Ok(self.client.query_opt(&statement, parameters)?)
    }

    pub(super) fn execute(
        &mut self,
        sql: &'static str,
        parameters: Parameters<'_>,
    ) -> Result<u64, StoreError> {
        let statement = self.prepared(sql)?;
        Ok(self.client.execute(&statement, parameters)?)
    }

    fn prepared(&mut self, sql: &'static str) -> Result<Statement, StoreError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql)?;
        self.statements.insert(sql, statement.clone());
        Ok(statement)
    }

    /// Reads several things at one moment, or one thing that is long.
    pub(super) fn read_together<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.client.batch_execute(BEGIN_READING)?;
        let result = work(self);
        self.client.batch_execute("ROLLBACK")?;
        result
    }

    /// Runs `work` in a transaction that writes. Only one such transaction runs at a time.
    pub(super) fn try_write<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, StoreError>,
    ) -> Result<Attempt<T>, StoreError> {
        let done = self.begin_writing().and_then(|mark| Ok((mark, work(self)?)));
        let (mark, value) = match done {
            Ok(done) => done,
            Err(error) => {
                // If the connection is lost, the server rolls back by itself.
                let _ = self.client.batch_execute("ROLLBACK");
                return Err(error);
            }
        };
        match self.client.batch_execute("COMMIT") {
            Ok(()) => Ok(Attempt::Committed(value)),
            Err(error) if error.as_db_error().is_some_and(|error| !ends_session(error)) => {
                Err(error.into())
            }
            Err(_) => Ok(Attempt::Undecided { value, mark }),
        }
    }

    pub(super) fn begin_writing(&mut self) -> Result<Mark, StoreError> {
        self.client.batch_execute(BEGIN_WRITING)?;
        let token = random_bytes::<16>().to_vec();
        let row = self.query_one(MARK, &[&token])?;
        self.scope = row.get(2);
        match row.get(1) {
            Some(place) => Err(StoreError::Moved(place)),
            None => Ok(Mark { place: row.get(0), token }),
        }
    }
}

/// Whether the server ended the connection with this error. Then a commit may have happened all the
/// same.
fn ends_session(error: &postgres::error::DbError) -> bool {
    matches!(error.severity(), "FATAL" | "PANIC")
}

/// A transaction only reads unless it says otherwise, so nothing is written without the lock. The
/// server makes each plan once, whatever the number of rows at that time: each statement of the hot
/// path must find its rows by an index.
const SETUP: &str = "SET default_transaction_read_only = on;
    SET statement_timeout = '30s';
    SET lock_timeout = '10s';
    SET idle_in_transaction_session_timeout = '5s';
    SET synchronous_commit = on;
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET enable_material = off;
    SET jit = off";
/// A list of a million rows takes seconds, and is best read from one end to the other.
const BEGIN_READING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = '10min';
    SET LOCAL idle_in_transaction_session_timeout = '10min';
    SET LOCAL enable_seqscan = on;
    SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on;
    SET LOCAL enable_material = on";
/// The lock comes before the first query. `LOCK TABLE` takes no snapshot, so the transaction reads
/// what the transactions before it left.
const BEGIN_WRITING: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE;
    LOCK TABLE write_lock IN EXCLUSIVE MODE";
/// See [`Mark`]. The table keeps as many marks as a fast disk commits in half a minute.
const MARK: &str = "INSERT INTO commits (place, token)
    VALUES (nextval('commit_places') % 16384, $1)
    ON CONFLICT (place) DO UPDATE SET token = excluded.token
    RETURNING place, (SELECT place FROM moved_to), (SELECT name FROM scope)";

/// Asserts that each statement, planned once for all parameters, finds every row by an index.
#[cfg(test)]
pub(super) fn assert_indexed(statements: &[&str]) {
    for sql in statements {
        let plan = plan_of(sql);
        let lines: Vec<_> = plan.lines().collect();
        // Without a condition, the whole index is read.
        let is_search = |at: usize| lines.get(at + 1).is_some_and(|it| it.contains("Index Cond"));
        let is_scan = |line: &str| line.contains("Scan using") || line.contains("Index Scan on");
        let mut scans = lines.iter().enumerate().filter(|(_, line)| is_scan(line));
        assert!(!plan.contains("Seq Scan") && scans.all(|(at, _)| is_search(at)), "{sql}: {plan}");
    }
}

/// The plan of a statement, made while all tables are empty.
#[cfg(test)]
pub(super) fn plan_of(sql: &str) -> String {
    let server = assay_tests::Postgres::shared().unwrap();
    let settings = Settings::new(&server.address().unwrap(), None, None).unwrap();
    super::Postgres::upgrade(&settings).unwrap();
    plan(&mut Session::open(&settings).unwrap(), sql)
}

#[cfg(test)]
fn plan(session: &mut Session, sql: &str) -> String {
    let count = (1..99).take_while(|place| sql.contains(&format!("${place}"))).count();
    let nulls = vec!["NULL"; count].join(", ");
    let nulls = if count == 0 { String::new() } else { format!("({nulls})") };
    let ask =
        format!("DEALLOCATE ALL; PREPARE asked AS {sql}; EXPLAIN (COSTS off) EXECUTE asked{nulls}");
    // The server plans statements that write only in a transaction that may write.
    session.client.batch_execute("SET default_transaction_read_only = off").unwrap();
    let messages = session.client.simple_query(&ask).unwrap();
    let lines = messages.iter().filter_map(|message| match message {
        postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use postgres::error::SqlState;

    use super::*;
    use crate::contract::Store;
    use crate::postgres::Postgres;

    fn settings(server: &assay_tests::Postgres) -> Settings {
        let settings = Settings::new(&server.address().unwrap(), None, None).unwrap();
        Postgres::upgrade(&settings).unwrap();
        settings
    }

    #[test]
    fn connection_cannot_write_without_the_lock() {
        let server = assay_tests::Postgres::shared().unwrap();
        let mut session = Session::open(&settings(&server)).unwrap();
        let write = "UPDATE revocation_lists SET number = 9";
        let error = session.execute(write, &[]).unwrap_err();
        let StoreError::Postgres(error) = error else { panic!("{error}") };
        assert_eq!(error.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
        assert!(session.read_together(|session| session.execute(write, &[])).is_err());
        assert!(session.try_write(|session| session.execute(write, &[])).is_ok());
    }

    #[test]
    fn a_client_that_stops_during_a_write_delays_others_for_seconds_only() {
        let server = assay_tests::Postgres::shared().unwrap();
        let settings = settings(&server);
        let mut asleep = Session::open(&settings).unwrap();
        asleep.client.simple_query(BEGIN_WRITING).unwrap();
        let (mut store, started) = (Postgres::open(&settings).unwrap(), Instant::now());
        assert_eq!(store.next_revocation_list().unwrap(), 1);
        let waited = started.elapsed();
        assert!((Duration::from_secs(4)..Duration::from_secs(9)).contains(&waited), "{waited:?}");
        assert!(asleep.client.batch_execute("COMMIT").is_err());
    }
}
