//! The enrolment list: EKs that an operator vouches for, and devices that an operator disabled or
//! removed.

use assay_ca_core::{EkFacts, Reprovision, SharedKeyOnRecord};
use assay_wire::{DeviceId, EkId};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use time::OffsetDateTime;

use super::columns::{ek_facts, ek_id, optional_device_id, parsed, unreadable};
use super::connection::{Sqlite, Transaction};
use super::pending::forget;
use super::records::holder;
use crate::audit::Deed;
use crate::deeds;
use crate::enrolments::{
    EnrolError, EnrolResults, Enrolled, EnrolmentRow, NewEnrolment, Removed, Replaced, Replacement,
    Tags, Tenure, decide,
};
use crate::error::StoreError;
use crate::facts;

impl Sqlite {
    /// Puts EKs on the enrolment list: all of them, or none if one of them cannot be enrolled. The
    /// results are in the order of the EKs.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        let actor = self.actor.clone();
        let (transaction, results) = self.try_enroll(new)?;
        if results.iter().all(Result::is_ok) {
            if let Some(actor) = actor {
                Transaction(&transaction).note(&actor, deeds::enrolled(new, &results))?;
            }
            transaction.commit()?;
        }
        Ok(results)
    }

    /// See [`Store::approve`](crate::contract::Store::approve).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn approve(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        let actor = self.actor.clone();
        let (transaction, results) = self.try_enroll(new)?;
        if results.iter().all(Result::is_ok) {
            for new in new {
                forget(&transaction, &new.ek_id)?;
            }
            if let Some(actor) = actor {
                Transaction(&transaction).note(&actor, deeds::approved(new, &results))?;
            }
            transaction.commit()?;
        }
        Ok(results)
    }

    /// Says what [`enroll`](Self::enroll) would do.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn rehearse_enroll(&mut self, new: &[NewEnrolment]) -> Result<EnrolResults, StoreError> {
        // Dropping the transaction rolls it back.
        self.try_enroll(new).map(|(_, results)| results)
    }

    fn try_enroll(
        &mut self,
        new: &[NewEnrolment],
    ) -> Result<(rusqlite::Transaction<'_>, EnrolResults), StoreError> {
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let results = new.iter().map(|new| enroll(&transaction, new)).collect::<Result<_, _>>()?;
        Ok((transaction, results))
    }

    /// Changes what happens when a device asks again, and whether its shared key may be sent to a
    /// plain storage root key. What is `None` stays as it is. Returns `false` if the EK is not on
    /// the list.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn update_enrolment(
        &mut self,
        ek: &EkId,
        reprovision: Option<Reprovision>,
        plain_srk: Option<bool>,
    ) -> Result<bool, StoreError> {
        self.act(|transaction, done| {
            let changed = transaction.0.execute(
                "UPDATE enrolments SET reprovision = coalesce(?2, reprovision), plain_srk = \
                 coalesce(?3, plain_srk)
                 WHERE ek_id = ?1",
                params![ek.as_bytes(), reprovision.map(Reprovision::name), plain_srk],
            )?;
            if changed == 1 {
                done.push(deeds::updated(ek, reprovision, plain_srk));
            }
            Ok(changed == 1)
        })
    }

    /// Forgets an EK: its enrolment and its registration go, its certificates are revoked, its
    /// shared key is retired, and its device id is free. A disabled EK remains disabled.
    /// Certificates and shared keys that were only offered to the EK are withdrawn too. Returns
    /// `None` if there is nothing to forget.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn remove(
        &mut self,
        ek: &EkId,
        now: OffsetDateTime,
    ) -> Result<Option<Removed>, StoreError> {
        self.act(|transaction, done| transaction.remove(ek, now, done))
    }

    /// See [`Store::replace`](crate::contract::Store::replace).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn replace(
        &mut self,
        replacement: &Replacement,
    ) -> Result<Result<Replaced, EnrolError>, StoreError> {
        let Replacement { device_id, old, new } = replacement;
        let actor = self.actor.clone();
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if holder(&transaction, device_id)? != Some(*old) || new.ek_id == *old {
            return Ok(Ok(Replaced::NotHeld));
        }
        let enrolment = replacement.enrolment(enrolment(&transaction, old)?.as_ref());
        let (writing, ended) = (Transaction(&transaction), in_force(&transaction, old)?);
        let removed = writing.remove(old, new.added_at, &mut Vec::new())?.unwrap_or_default();
        if let Err(error) = enroll(&transaction, &enrolment)? {
            // Dropping the transaction rolls it back.
            return Ok(Err(error));
        }
        set_disabled(&transaction, old, true, new.added_at)?;
        forget(&transaction, &new.ek_id)?;
        if let Some(actor) = actor {
            writing.note(&actor, deeds::replaced(replacement, ended))?;
        }
        transaction.commit()?;
        Ok(Ok(Replaced::Done(removed)))
    }

    /// See [`Store::history`](crate::contract::Store::history).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn history(&self, device: &DeviceId) -> Result<Vec<Tenure>, StoreError> {
        self.list(HISTORY, &[&device.as_str()], |row| {
            Ok(Tenure { ek_id: ek_id(row, 0)?, since: row.get(1)?, until: row.get(2)? })
        })
    }

    /// Every EK that the CA knows, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn enrolments(&self) -> Result<Vec<EnrolmentRow>, StoreError> {
        let all = "SELECT ek_id FROM enrolments UNION SELECT ek_id FROM devices UNION SELECT \
                   ek_id FROM disabled_eks";
        self.list(
            &format!("{} ORDER BY added_at, k.ek_id", what_is_known_of(all)),
            &[],
            enrolment_row,
        )
    }

    /// The EK with this id, if the CA knows it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn enrolment(&self, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError> {
        enrolment(&self.connection, ek)
    }

    /// Whether an EK is on the enrolment list.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_enrolled(&self, ek: &EkId) -> Result<bool, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT 1 FROM enrolments WHERE ek_id = ?1")?;
        Ok(statement.exists(params![ek.as_bytes()])?)
    }

    /// The EK that holds a device id, by registration or by enrolment.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn ek_of_device(&self, device: &DeviceId) -> Result<Option<EkId>, StoreError> {
        holder(&self.connection, device)
    }

    /// Disables or enables an EK, whether the CA knows it or not. Returns `false` if it was so
    /// before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_disabled(
        &mut self,
        ek: &EkId,
        disabled: bool,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.act(|transaction, done| {
            let is_changed = set_disabled(transaction.0, ek, disabled, now)?;
            if is_changed {
                done.push(deeds::switched(ek, device_of(transaction.0, ek)?, disabled));
            }
            Ok(is_changed)
        })
    }
}

/// The device id that an EK has, by registration or by enrolment.
pub(super) fn device_of(
    connection: &Connection,
    ek: &EkId,
) -> Result<Option<DeviceId>, StoreError> {
    Ok(enrolment(connection, ek)?.and_then(|known| known.device_id))
}

/// The serial number of an EK's certificate in force.
fn in_force(connection: &Connection, ek: &EkId) -> Result<Option<Vec<u8>>, StoreError> {
    let query = "SELECT serial FROM certificates WHERE ek_id = ?1 AND status = 'active'";
    Ok(connection.query_row(query, params![ek.as_bytes()], |row| row.get(0)).optional()?)
}

impl Transaction<'_> {
    fn remove(
        &self,
        ek: &EkId,
        now: OffsetDateTime,
        done: &mut Vec<Deed>,
    ) -> Result<Option<Removed>, StoreError> {
        let (device, ended) = (device_of(self.0, ek)?, in_force(self.0, ek)?);
        let mut rows = 0;
        // Its place is free, too; but a place alone is nothing to forget.
        let places = "DELETE FROM places WHERE ek_id = ?1";
        self.0.execute(places, params![ek.as_bytes()])?;
        self.0.execute(LEAVE, params![ek.as_bytes(), now.unix_timestamp()])?;
        for table in ["enrolments", "devices"] {
            let delete = format!("DELETE FROM {table} WHERE ek_id = ?1");
            rows += self.0.execute(&delete, params![ek.as_bytes()])?;
        }
        let certificates = self.0.execute(REVOKE, params![ek.as_bytes(), now.unix_timestamp()])?;
        let removed = Removed { certificates, shared_key: self.retire_shared_key(ek)? };
        let is_known = rows > 0 || removed != Removed::default();
        if is_known {
            done.push(deeds::removed(ek, device, removed, ended));
        }
        Ok(is_known.then_some(removed))
    }

    pub(super) fn learn(&self, ek: &EkId, learnt: &EkFacts) -> Result<(), StoreError> {
        let update = "UPDATE enrolments SET facts = ?2 WHERE ek_id = ?1";
        self.0.prepare_cached(update)?.execute(params![ek.as_bytes(), facts::json(learnt)])?;
        Ok(())
    }
}

pub(super) fn set_disabled(
    connection: &Connection,
    ek: &EkId,
    disabled: bool,
    now: OffsetDateTime,
) -> rusqlite::Result<bool> {
    let changed = if disabled {
        connection
            .prepare_cached("INSERT OR IGNORE INTO disabled_eks (ek_id, since) VALUES (?1, ?2)")?
            .execute(params![ek.as_bytes(), now.unix_timestamp()])?
    } else {
        connection
            .prepare_cached("DELETE FROM disabled_eks WHERE ek_id = ?1")?
            .execute(params![ek.as_bytes()])?
    };
    Ok(changed == 1)
}

fn enroll(
    connection: &Connection,
    new: &NewEnrolment,
) -> Result<Result<Enrolled, EnrolError>, StoreError> {
    let known = enrolment(connection, &new.ek_id)?;
    let decided = decide(known.as_ref(), new, |device| holder(connection, device))?;
    let tags = serde_json::to_string(&new.tags).expect("text has a form in JSON");
    match decided {
        Ok(Enrolled::Added) => {}
        Ok(Enrolled::Retagged) => {
            connection
                .prepare_cached("UPDATE enrolments SET tags = ?2 WHERE ek_id = ?1")?
                .execute(params![new.ek_id.as_bytes(), tags])?;
            return Ok(decided);
        }
        Ok(Enrolled::Unchanged) | Err(_) => return Ok(decided),
    }
    connection
        .prepare_cached(
            "INSERT INTO enrolments (ek_id, device_id, recognised, reprovision, legacy_dps_ek, \
             added_at, tags, plain_srk, facts)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            new.ek_id.as_bytes(),
            new.device_id.as_ref().map(DeviceId::as_str),
            new.recognised,
            new.reprovision.unwrap_or_default().name(),
            new.legacy_dps_ek.unwrap_or_default(),
            new.added_at.unix_timestamp(),
            tags,
            new.plain_srk.unwrap_or_default(),
            new.facts.as_ref().map(facts::json)
        ])?;
    if new.disabled == Some(true) {
        set_disabled(connection, &new.ek_id, true, new.added_at)?;
    }
    Ok(Ok(Enrolled::Added))
}

fn enrolment(connection: &Connection, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError> {
    let this_one = "SELECT ?1 AS ek_id";
    let query = format!(
        "{} WHERE coalesce(e.ek_id, d.ek_id, l.ek_id) IS NOT NULL",
        what_is_known_of(this_one)
    );
    Ok(connection
        .prepare_cached(&query)?
        .query_row(params![ek.as_bytes()], enrolment_row)
        .optional()?)
}

/// The query for what [`enrolment_row`] reads, about the EKs that the query `eks` names.
fn what_is_known_of(eks: &str) -> String {
    format!(
        "SELECT k.ek_id, coalesce(d.device_id, e.device_id), e.recognised, e.reprovision, \
         coalesce(e.legacy_dps_ek, 0),
                l.since IS NOT NULL, d.ek_id IS NOT NULL, s.generation, s.is_used,
                coalesce(e.added_at, d.registered_at, l.since) AS added_at, e.tags, \
         coalesce(e.plain_srk, 0),
                s.plain_srk_generation, e.facts
         FROM ({eks}) k LEFT JOIN enrolments e USING (ek_id) LEFT JOIN devices d USING (ek_id)
              LEFT JOIN disabled_eks l USING (ek_id) LEFT JOIN shared_keys s USING (ek_id)"
    )
}

fn enrolment_row(row: &Row<'_>) -> rusqlite::Result<EnrolmentRow> {
    let shared_key = match (row.get(7)?, row.get(8)?, row.get(12)?) {
        (Some(generation), Some(is_used), Some(plain_srk_generation)) => {
            Some(SharedKeyOnRecord { generation, is_used, plain_srk_generation })
        }
        _ => None,
    };
    Ok(EnrolmentRow {
        ek_id: ek_id(row, 0)?,
        device_id: optional_device_id(row, 1)?,
        recognised: row.get(2)?,
        reprovision: row.get::<_, Option<String>>(3)?.map(|_| parsed(row, 3)).transpose()?,
        legacy_dps_ek: row.get(4)?,
        plain_srk: row.get(11)?,
        disabled: row.get(5)?,
        registered: row.get(6)?,
        shared_key,
        added_at: row.get(9)?,
        tags: match row.get::<_, Option<String>>(10)? {
            Some(tags) => serde_json::from_str(&tags).map_err(|error| unreadable(10, error))?,
            None => Tags::new(),
        },
        facts: ek_facts(row, 13)?,
    })
}

const LEAVE: &str = "INSERT INTO former_eks (device_id, ek_id, since, until)
    SELECT device_id, ek_id, registered_at, ?2 FROM devices WHERE ek_id = ?1";
const HISTORY: &str = "SELECT ek_id, since, until FROM (
        SELECT ek_id, since, until, rowid AS number FROM former_eks WHERE device_id = ?1
        UNION ALL SELECT ek_id, registered_at, NULL, NULL FROM devices WHERE device_id = ?1)
    ORDER BY number IS NULL, number";
const REVOKE: &str = "UPDATE certificates SET der = iif(status = 'active', der, x''),
    status = 'revoked', ended_at = ?2
    WHERE ek_id = ?1 AND status IN ('unconfirmed', 'active')";
