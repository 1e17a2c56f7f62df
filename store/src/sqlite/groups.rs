//! Who is admitted: the operator's groups, in order.

use assay_ca_core::{Groups, Place};
use assay_wire::EkId;
use rusqlite::{Connection, params};
use time::OffsetDateTime;

use super::connection::Sqlite;
use crate::deeds;
use crate::error::StoreError;
use crate::groups::{Columns, GroupsVersion, PLACE_FRESH, PLACE_KEPT, read};

impl Sqlite {
    /// See [`Store::groups`](crate::contract::Store::groups).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn groups(&self) -> Result<(GroupsVersion, Groups), StoreError> {
        // Both are of one moment.
        let moment = self.connection.unchecked_transaction()?;
        let version = groups_version(&moment)?;
        let query = "SELECT name, answer, rule FROM admission_groups ORDER BY place";
        let rows = self.list(query, &[], |row| {
            Ok(Columns { name: row.get(0)?, answer: row.get(1)?, rule: row.get(2)? })
        });
        Ok((version, read(&rows?)?))
    }

    /// See [`Store::set_groups`](crate::contract::Store::set_groups).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_groups(&mut self, seen: GroupsVersion, groups: &Groups) -> Result<bool, StoreError> {
        self.act(|transaction, done| {
            let next = "UPDATE admission_version SET number = number + 1 WHERE number = ?1";
            if transaction.0.execute(next, [seen.0])? == 0 {
                return Ok(false);
            }
            transaction.0.execute("DELETE FROM admission_groups", [])?;
            let mut insert = transaction.0.prepare_cached(
                "INSERT INTO admission_groups (place, name, answer, rule) VALUES (?1, ?2, ?3, ?4)",
            )?;
            for (place, group) in (1_i64..).zip(groups.all()) {
                let Columns { name, answer, rule } = Columns::of(group);
                insert.execute(params![place, name, answer, rule])?;
            }
            done.push(deeds::groups_set(groups));
            Ok(true)
        })
    }
}

impl Sqlite {
    /// See [`Store::take_place`](crate::contract::Store::take_place).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn take_place(
        &mut self,
        ek: &EkId,
        Place { group, quota }: &Place,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let (ek, group, at) = (ek.as_bytes(), group.as_str(), now.unix_timestamp());
        let fresh = "SELECT EXISTS (SELECT 1 FROM places
            WHERE ek_id = ?1 AND group_name = ?2 AND taken_at > ?3)";
        let since = (now - PLACE_FRESH).unix_timestamp();
        let mut statement = self.connection.prepare_cached(fresh)?;
        if statement.query_row(params![ek, group, since], |row| row.get(0))? {
            return Ok(true);
        }
        drop(statement);
        self.transaction(|transaction| {
            let keep = "UPDATE places SET taken_at = ?3 WHERE ek_id = ?1 AND group_name = ?2";
            if transaction.0.prepare_cached(keep)?.execute(params![ek, group, at])? == 1 {
                return Ok(true);
            }
            let until = (now - PLACE_KEPT).unix_timestamp();
            transaction.0.prepare_cached(FREE_PLACES)?.execute(params![group, until])?;
            let count = "SELECT count(*) FROM places WHERE group_name = ?1";
            let taken: i64 =
                transaction.0.prepare_cached(count)?.query_row([group], |row| row.get(0))?;
            if taken >= i64::from(*quota) {
                return Ok(false);
            }
            let take = "INSERT OR REPLACE INTO places (ek_id, group_name, taken_at)
                VALUES (?1, ?2, ?3)";
            transaction.0.prepare_cached(take)?.execute(params![ek, group, at])?;
            Ok(true)
        })
    }

    /// See [`Store::has_place`](crate::contract::Store::has_place).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn has_place(&self, ek: &EkId, place: &Place) -> Result<bool, StoreError> {
        let query = "SELECT 1 FROM places WHERE ek_id = ?1 AND group_name = ?2";
        let mut statement = self.connection.prepare_cached(query)?;
        Ok(statement.exists(params![ek.as_bytes(), place.group.as_str()])?)
    }
}

const FREE_PLACES: &str = "DELETE FROM places WHERE group_name = ?1 AND taken_at <= ?2
    AND NOT EXISTS (SELECT 1 FROM devices d WHERE d.ek_id = places.ek_id)
    AND NOT EXISTS (SELECT 1 FROM enrolments e WHERE e.ek_id = places.ek_id)
    AND NOT EXISTS (SELECT 1 FROM shared_keys s WHERE s.ek_id = places.ek_id AND s.is_used = 1)";

/// See [`Snapshot::groups`](crate::act::Snapshot::groups).
pub(super) fn groups_version(connection: &Connection) -> Result<GroupsVersion, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT number FROM admission_version WHERE id = 1")?;
    Ok(GroupsVersion(statement.query_row([], |row| row.get(0))?))
}
