//! Certificates that are no longer good, and lists of them.

use assay_ca_core::{RevocationReason, Revoked};
use rusqlite::{Connection, params};
use time::OffsetDateTime;

use super::columns::time;
use super::connection::{Sqlite, Transaction};
use crate::error::StoreError;
use crate::retention::{AUDIT_BATCH, BATCH, Expiries, Pruned, Retention};
use crate::revocation::{Changes, RevokedCertificates, UNLOCKED_READS, in_order, reason};

impl Transaction<'_> {
    fn prune_ended(&self, retention: &Retention, now: OffsetDateTime) -> Result<usize, StoreError> {
        let Expiries { never_confirmed, once_in_force } = retention.expiries(now);
        Ok(self.0.prepare_cached(PRUNE)?.execute([never_confirmed, once_in_force, BATCH])?)
    }

    /// The number of the next revocation list. Each number is given once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn next_revocation_list(&self) -> Result<u32, StoreError> {
        let query = "UPDATE revocation_lists SET number = number + 1 RETURNING number";
        Ok(self.0.prepare_cached(query)?.query_row([], |row| row.get(0))?)
    }
}

impl Sqlite {
    /// Every certificate of a device that is no longer good and has not expired, with the reason
    /// (RFC 5280 §5.3.1): *superseded*; *certificate hold* while its device is disabled; *cessation
    /// of operation* if nobody confirmed it or its device was removed.
    ///
    /// Half a million certificates take a second. Others can write meanwhile.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revoked(&self, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError> {
        revoked(&self.connection, now)
    }

    /// What a revocation list of devices must name now, and the number of that list. A higher
    /// number stands for a later state. First this revokes certificates that were not confirmed in
    /// time.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revocation_list(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<(RevokedCertificates, u32), StoreError> {
        while self.has_overdue_confirmations(now)? {
            self.transaction(|Transaction(connection)| revoke_overdue(connection, now))?;
        }
        for _ in 0..UNLOCKED_READS {
            let (changes, revoked) = (list_changes(&self.connection)?, self.revoked(now)?);
            let number = self.transaction(|transaction| {
                let is_as_it_was = list_changes(transaction.0)? == changes;
                is_as_it_was.then(|| transaction.next_revocation_list()).transpose()
            })?;
            if let Some(number) = number {
                return Ok((revoked, number));
            }
        }
        // The list changes faster than it is read, so nobody else may write meanwhile.
        self.transaction(|transaction| {
            Ok((revoked(transaction.0, now)?, transaction.next_revocation_list()?))
        })
    }

    /// The same for identities.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revoked_identities(&self, now: OffsetDateTime) -> Result<Vec<Revoked>, StoreError> {
        self.list(REVOKED_IDENTITIES, &[&now.unix_timestamp()], |row| {
            let reason = RevocationReason::CessationOfOperation;
            Ok(Revoked { serial: row.get(0)?, since: time(1, row.get(1)?)?, reason })
        })
    }

    /// How often something happened that revokes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn changes(&self) -> Result<Changes, StoreError> {
        let mut statement =
            self.connection.prepare_cached("SELECT connections, list FROM revocations")?;
        Ok(statement
            .query_row([], |row| Ok(Changes { connections: row.get(0)?, list: row.get(1)? }))?)
    }

    /// See [`Store::prune`](crate::contract::Store::prune).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn prune(
        &mut self,
        retention: &Retention,
        now: OffsetDateTime,
    ) -> Result<Pruned, StoreError> {
        // Most often there is nothing to do, and this look keeps nobody from writing.
        if !self.has_overdue_confirmations(now)? && !self.has_to_prune(retention, now)? {
            return Ok(Pruned::default());
        }
        self.transaction(|transaction| {
            let overdue = revoke_overdue(transaction.0, now)?;
            let certificates = transaction.prune_ended(retention, now)?;
            let offers = transaction
                .0
                .prepare_cached(PRUNE_OFFERS)?
                .execute([(now - retention.unused_offers()).unix_timestamp(), BATCH])?;
            let audit = transaction.prune_audit(&retention.audit_bounds(now))?;
            let is_full = |rows: usize| rows as i64 >= BATCH;
            Ok(Pruned {
                overdue: overdue as u64,
                certificates: certificates as u64,
                offers: offers as u64,
                audit: audit.iter().sum::<usize>() as u64,
                more: [overdue, certificates, offers].into_iter().any(is_full)
                    || audit.into_iter().any(|rows| rows as i64 >= AUDIT_BATCH),
            })
        })
    }

    fn has_to_prune(&self, retention: &Retention, now: OffsetDateTime) -> Result<bool, StoreError> {
        let Expiries { never_confirmed, once_in_force } = retention.expiries(now);
        let offered = (now - retention.unused_offers()).unix_timestamp();
        let bounds = retention.audit_bounds(now);
        let mut statement = self.connection.prepare_cached(HAS_TO_PRUNE)?;
        Ok(statement.query_row(
            [
                never_confirmed,
                once_in_force,
                offered,
                bounds.kept,
                bounds.decisions_us,
                bounds.acts_us,
            ],
            |row| row.get(0),
        )?)
    }

    fn has_overdue_confirmations(&self, now: OffsetDateTime) -> Result<bool, StoreError> {
        let mut statement = self.connection.prepare_cached(HAS_OVERDUE)?;
        Ok(statement.query_row(params![now.unix_timestamp()], |row| row.get(0))?)
    }
}

fn revoked(
    connection: &Connection,
    now: OffsetDateTime,
) -> Result<RevokedCertificates, StoreError> {
    let mut statement = connection.prepare_cached(REVOKED)?;
    let mut rows = statement.query(params![now.unix_timestamp()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (status, since): (String, _) = (row.get(1)?, time(2, row.get(2)?)?);
        let certificate = Revoked { serial: row.get(0)?, since, reason: reason(&status) };
        found.push((row.get(4)?, row.get(3)?, certificate));
    }
    Ok(in_order(found))
}

fn list_changes(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection
        .prepare_cached("SELECT list FROM revocations")?
        .query_row([], |row| row.get(0))?)
}

/// Revokes up to a batch of certificates that were not confirmed in time.
fn revoke_overdue(connection: &Connection, now: OffsetDateTime) -> Result<usize, StoreError> {
    Ok(connection.prepare_cached(REVOKE_OVERDUE)?.execute([now.unix_timestamp(), BATCH])?)
}

// All of these statements find by an index the few certificates that matter among a million. SQLite
// uses a partial index only if the query repeats its condition word for word.
const PRUNE: &str = "DELETE FROM certificates WHERE rowid IN (
    SELECT * FROM (SELECT rowid FROM certificates
                   WHERE status = 'revoked' AND confirmed_at IS NULL AND not_after <= ?1 LIMIT ?3)
    UNION ALL
    SELECT * FROM (SELECT rowid FROM certificates
                   WHERE status IN ('superseded', 'revoked') AND not_after <= ?2 LIMIT ?3))";
const PRUNE_OFFERS: &str = "DELETE FROM shared_keys WHERE rowid IN (SELECT rowid FROM shared_keys
    WHERE is_used = 0 AND generation = 1 AND plain_srk_generation = 0 AND offered_at <= ?1
    LIMIT ?2)";
const HAS_TO_PRUNE: &str = "SELECT
    EXISTS (SELECT 1 FROM certificates
            WHERE status = 'revoked' AND confirmed_at IS NULL AND not_after <= ?1)
    OR EXISTS (SELECT 1 FROM certificates
               WHERE status IN ('superseded', 'revoked') AND not_after <= ?2)
    OR EXISTS (SELECT 1 FROM shared_keys
               WHERE is_used = 0 AND generation = 1 AND plain_srk_generation = 0
                     AND offered_at <= ?3)
    OR coalesce((SELECT min(id) FROM audit_changes) <= (SELECT max(id) FROM audit_changes) - ?4, 0)
    OR coalesce((SELECT min(id) FROM audit_others) <= (SELECT max(id) FROM audit_others) - ?4, 0)
    OR coalesce((SELECT time_us FROM audit_changes ORDER BY id LIMIT 1) <= ?5, 0)
    OR coalesce((SELECT time_us FROM audit_others ORDER BY id LIMIT 1) <= ?5, 0)
    OR coalesce((SELECT time_us FROM audit_acts ORDER BY id LIMIT 1) <= ?6, 0)";
const HAS_OVERDUE: &str =
    "SELECT EXISTS (SELECT 1 FROM certificates WHERE status = 'unconfirmed' AND confirm_by <= ?1)";
const REVOKE_OVERDUE: &str = "UPDATE certificates SET status = 'revoked', ended_at = ?1, der = x''
    WHERE rowid IN (SELECT rowid FROM certificates
                    WHERE status = 'unconfirmed' AND confirm_by <= ?1 LIMIT ?2)";
/// The fourth column says whether anybody but the TPM may have the certificate. One that waits for
/// its whole life was renewed, and sent in clear; the others were sealed.
const REVOKED: &str = "SELECT serial, status, ended_at,
        confirmed_at IS NOT NULL OR coalesce(confirm_by >= not_after, 0), rowid
    FROM certificates
    WHERE status IN ('superseded', 'revoked') AND not_after > ?1
    UNION ALL
    SELECT c.serial, c.status, l.since,
        c.confirmed_at IS NOT NULL OR coalesce(c.confirm_by >= c.not_after, 0), c.rowid
    FROM disabled_eks l CROSS JOIN certificates c USING (ek_id)
    WHERE c.status IN ('unconfirmed', 'active') AND c.not_after > ?1";
const REVOKED_IDENTITIES: &str = "SELECT serial, revoked_at FROM identity_certificates WHERE \
                                  revoked_at IS NOT NULL AND not_after > ?1 ORDER BY rowid";

#[cfg(test)]
mod tests {
    use rusqlite::params_from_iter;

    use super::*;

    #[test]
    fn what_is_no_longer_good_is_found_without_reading_every_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let store = Sqlite::create(&directory.path().join("assay.db")).unwrap();
        for query in [PRUNE, PRUNE_OFFERS, HAS_TO_PRUNE, HAS_OVERDUE, REVOKE_OVERDUE, REVOKED] {
            let mut statement =
                store.connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let parameters = vec![0; statement.parameter_count()];
            let steps = statement
                .query_map(params_from_iter(parameters), |row| row.get::<_, String>("detail"))
                .unwrap();
            let plan: Vec<_> = steps.map(Result::unwrap).collect();
            let scans = |step: &String| {
                ["SCAN certificates", "SCAN c", "SCAN shared_keys"].contains(&step.as_str())
            };
            assert!(plan.iter().any(|step| step.contains("SEARCH")), "{query}: {plan:?}");
            assert!(!plan.iter().any(scans), "{query}: {plan:?}");
        }
    }
}
