//! The latest time that is on record.

use time::OffsetDateTime;

use super::columns::time;
use super::connection::Sqlite;
use crate::clock::Clocks;
use crate::deeds;
use crate::error::StoreError;

impl Sqlite {
    /// What the clock of a worker is compared with.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn clocks(&self) -> Result<Clocks, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT latest, accepted FROM clock")?;
        Ok(statement.query_row([], |row| {
            Ok(Clocks { latest: time(0, row.get(0)?)?, accepted: row.get(1)?, server: None })
        })?)
    }

    /// See [`Store::mark_clock`](crate::contract::Store::mark_clock).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn mark_clock(&self, now: OffsetDateTime) -> Result<(), StoreError> {
        let mark = "UPDATE clock SET latest = ?1 WHERE latest < ?1";
        self.connection.execute(mark, [now.unix_timestamp()])?;
        Ok(())
    }

    /// See [`Store::accept_clock`](crate::contract::Store::accept_clock).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn accept_clock(&mut self, now: OffsetDateTime) -> Result<(), StoreError> {
        self.act(|transaction, done| {
            let accept = "UPDATE clock SET latest = ?1, accepted = accepted + 1";
            transaction.0.execute(accept, [now.unix_timestamp()])?;
            done.push(deeds::clock_accepted());
            Ok(())
        })
    }
}
