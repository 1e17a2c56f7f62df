//! How far the audit was told as events.

use rusqlite::params;
use time::OffsetDateTime;

use super::audit::{after, audit_row};
use super::connection::{Sqlite, Transaction};
use crate::chain::Chain;
use crate::error::StoreError;
use crate::events::{Teller, Told, Untold, milliseconds, turn_ends};

impl Sqlite {
    pub(super) fn not_told(&self, from: Told, count: u32) -> Result<Untold, StoreError> {
        let moment = self.connection.unchecked_transaction()?;
        let cursor = "SELECT acts, changes, others, teller, until FROM event_cursor";
        let (told, turn) = moment.prepare_cached(cursor)?.query_row([], |row| {
            let teller: Option<Teller> = row.get(3)?;
            let turn = teller.zip(Some(row.get(4)?));
            Ok((Told([row.get(0)?, row.get(1)?, row.get(2)?]), turn))
        })?;
        let (from, mut rows) = (from.max(told), Vec::new());
        for chain in Chain::ALL {
            let mut statement = moment.prepare_cached(after(chain))?;
            let found = statement.query_map([from.of(chain), count.into()], audit_row)?;
            rows.extend(found.collect::<Result<Vec<_>, _>>()?);
        }
        Ok(Untold::of(rows, from, count as usize, turn))
    }

    pub(super) fn have_told(
        &mut self,
        Told([acts, changes, others]): Told,
        teller: &Teller,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.transaction(|Transaction(connection)| {
            let rows = connection.prepare_cached(MARK)?.execute(params![
                acts,
                changes,
                others,
                teller,
                turn_ends(now),
                milliseconds(now)
            ])?;
            Ok(rows == 1)
        })
    }
}

const MARK: &str = "UPDATE event_cursor SET acts = max(acts, ?1), changes = max(changes, ?2),
        others = max(others, ?3), teller = ?4, until = ?5
    WHERE teller IS NULL OR teller = ?4 OR until <= ?6";
