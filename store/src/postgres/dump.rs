//! Whole tables, to copy them.

use fallible_iterator::FallibleIterator;
use postgres::Row;
use postgres::types::ToSql;

use super::migrations;
use super::session::Session;
use super::settings::Settings;
use crate::error::{SCHEMA_VERSION, StoreError};
use crate::tables::{Kind, Order, Sink, Source, Table, Value};

/// The tables of a CA that is copied.
pub(crate) struct Tables(Session);

impl Tables {
    pub(crate) fn read(settings: &Settings) -> Result<Self, StoreError> {
        Self::begin(settings, BEGIN)
    }

    /// The tables as they are at this moment. Others may write meanwhile.
    pub(crate) fn snapshot(settings: &Settings) -> Result<Self, StoreError> {
        Self::begin(settings, BEGIN_SNAPSHOT)
    }

    fn begin(settings: &Settings, begin: &str) -> Result<Self, StoreError> {
        let mut session = Session::open(settings)?;
        match migrations::version(&mut session)? {
            (0, _) => return Err(StoreError::Empty),
            (found, writer) if found > SCHEMA_VERSION => {
                return Err(StoreError::Newer { found, writer });
            }
            (found, _) if found < SCHEMA_VERSION => return Err(StoreError::Older(found)),
            _ => {}
        }
        session.client.batch_execute(begin)?;
        migrations::refuse_if_moved(&mut session)?;
        Ok(Self(session))
    }
}

impl Source for Tables {
    fn count(&mut self, table: &Table) -> Result<u64, StoreError> {
        let query = format!("SELECT count(*) FROM {}", table.name);
        Ok(self.0.client.query_one(&query, &[])?.get::<_, i64>(0) as u64)
    }

    fn last_id(&mut self, table: &Table) -> Result<i64, StoreError> {
        let query =
            "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence($1::text, 'id')), 0)";
        Ok(self.0.client.query_one(query, &[&table.name])?.get(0))
    }

    fn rows(
        &mut self,
        table: &Table,
        each: &mut dyn FnMut(Vec<Value>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let order = match table.order {
            Order::Id => "id",
            Order::Key => table.columns[0].name,
            Order::Made => "number",
        };
        let query = format!("SELECT {} FROM {} ORDER BY {order}", table.list(), table.name);
        let mut rows = self.0.client.query_raw(&query, std::iter::empty::<&str>())?;
        while let Some(row) = rows.next()? {
            each(values(table, &row))?;
        }
        Ok(())
    }

    fn leave(&mut self, place: &str) -> Result<(), StoreError> {
        self.0.execute("INSERT INTO moved_to VALUES ($1)", &[&place])?;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        Ok(self.0.client.batch_execute("COMMIT")?)
    }
}

/// The tables of a new CA, which is there once they are finished.
pub(crate) struct NewTables(Session);

impl NewTables {
    pub(crate) fn make(settings: &Settings) -> Result<Self, StoreError> {
        let mut session = Session::open(settings)?;
        if migrations::version(&mut session)?.0 == 0 {
            drop(session);
            migrations::upgrade(settings)?;
            session = Session::open(settings)?;
        }
        session.client.batch_execute(BEGIN)?;
        // A new CA gets identities when it is made, and a scope when it first serves.
        let is_used = "SELECT EXISTS (SELECT FROM scope) OR EXISTS (SELECT FROM identities)
            OR EXISTS (SELECT FROM enrolments) OR EXISTS (SELECT FROM certificates)
            OR EXISTS (SELECT FROM shared_keys) OR EXISTS (SELECT FROM anchors)";
        if session.client.query_one(is_used, &[])?.get(0) {
            return Err(StoreError::NotEmpty(settings.shown()));
        }
        Ok(Self(session))
    }
}

impl Sink for NewTables {
    fn clear(&mut self, table: &Table) -> Result<(), StoreError> {
        self.0.client.batch_execute(&format!("DELETE FROM {}", table.name))?;
        Ok(())
    }

    fn add(&mut self, table: &Table, rows: &[Vec<Value>]) -> Result<(), StoreError> {
        let kinds = (1..).zip(table.columns).map(|(place, column)| {
            let kind = match column.kind {
                Kind::Bytes => "bytea",
                Kind::Number => "int8",
                Kind::Text => "text",
                Kind::Truth => "bool",
            };
            format!("${place}::{kind}[]")
        });
        let kinds = kinds.collect::<Vec<_>>().join(", ");
        let query =
            format!("INSERT INTO {} ({}) SELECT * FROM unnest({kinds})", table.name, table.list());
        let columns: Vec<_> = (0..table.columns.len())
            .map(|place| column(table.columns[place].kind, place, rows))
            .collect();
        let parameters: Vec<&(dyn ToSql + Sync)> =
            columns.iter().map(|column| &**column as &(dyn ToSql + Sync)).collect();
        self.0.client.execute(&query, &parameters)?;
        Ok(())
    }

    fn set_last_id(&mut self, table: &Table, id: i64) -> Result<(), StoreError> {
        // If the sequence never gave a number, its next one is the first.
        let query = "SELECT setval(pg_get_serial_sequence($1::text, 'id'), greatest($2::int8, 1), $2::int8 > 0)";
        self.0.client.query_one(query, &[&table.name, &id])?;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), StoreError> {
        self.0.client.batch_execute("COMMIT; ANALYZE")?;
        Ok(())
    }
}

fn values(table: &Table, row: &Row) -> Vec<Value> {
    let value = |(place, kind): (usize, Kind)| match kind {
        Kind::Bytes => Value::Bytes(row.get(place)),
        Kind::Number => Value::Number(row.get(place)),
        Kind::Text => Value::Text(row.get(place)),
        Kind::Truth => Value::Truth(row.get(place)),
    };
    table.columns.iter().map(|column| column.kind).enumerate().map(value).collect()
}

/// One column of the rows, as an array.
fn column<'a>(kind: Kind, place: usize, rows: &'a [Vec<Value>]) -> Box<dyn ToSql + Sync + 'a> {
    let cells = rows.iter().map(move |row| &row[place]);
    match kind {
        Kind::Bytes => Box::new(cells.map(bytes).collect::<Vec<_>>()),
        Kind::Number => Box::new(cells.map(number).collect::<Vec<_>>()),
        Kind::Text => Box::new(cells.map(text).collect::<Vec<_>>()),
        Kind::Truth => Box::new(cells.map(truth).collect::<Vec<_>>()),
    }
}

fn bytes(value: &Value) -> Option<&[u8]> {
    match value {
        Value::Bytes(bytes) => bytes.as_deref(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => *number,
        _ => None,
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => text.as_deref(),
        _ => None,
    }
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Truth(truth) => *truth,
        _ => None,
    }
}

/// Every table as it is at the first statement after this.
const BEGIN_SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL plan_cache_mode = auto;
    SET LOCAL enable_seqscan = on";
/// Takes the lock of a transaction that writes, and has no time limit.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE;
    LOCK TABLE write_lock IN EXCLUSIVE MODE;
    SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL plan_cache_mode = auto;
    SET LOCAL enable_seqscan = on";
