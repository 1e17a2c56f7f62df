//! What is no longer good, and lists of it.

use assay_ca_core::{RevocationReason, Revoked};
use rusqlite::{Connection, params};
use time::{Duration, OffsetDateTime};

use super::{Store, StoreError, Transaction, time};

impl Transaction<'_> {
    /// Revokes what was sealed and not confirmed in time, of which nobody needs the certificate any
    /// more. Returns how many.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revoke_unconfirmed(&self, now: OffsetDateTime) -> Result<usize, StoreError> {
        Ok(self.0.prepare_cached(REVOKE_OVERDUE)?.execute(params![now.unix_timestamp()])?)
    }

    /// Forgets certificates that ended and have expired: those that were never confirmed at once,
    /// for anybody can have such made; the others after 30 days. Five hundred of each at a time,
    /// for others wait to write. Returns how many.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn prune_expired(&self, now: OffsetDateTime) -> Result<usize, StoreError> {
        Ok(self.0.prepare_cached(PRUNE)?.execute(expiries(now))?)
    }

    /// The number of the next revocation list: each is given once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn next_revocation_list(&self) -> Result<u32, StoreError> {
        let query = "UPDATE revocation_lists SET number = number + 1 RETURNING number";
        Ok(self.0.prepare_cached(query)?.query_row([], |row| row.get(0))?)
    }
}

impl Store {
    /// Every certificate of a device that is no longer good and has not expired, with the reason
    /// (RFC 5280 §5.3.1): *superseded*; *certificate hold* while its device is disabled; *cessation
    /// of operation* if nobody confirmed it or its device was removed.
    ///
    /// There may be many, which takes a second for half a million. It keeps nobody from writing.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revoked(&self, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError> {
        revoked(&self.connection, now)
    }

    /// What a list names as things are, with its number: later numbers stand for later states. What
    /// is overdue is revoked first.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revocation_list(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<(RevokedCertificates, u32), StoreError> {
        if self.has_overdue_confirmations(now)? {
            self.transaction(|transaction| transaction.revoke_unconfirmed(now))?;
        }
        for _ in 0..OPTIMISM {
            let (changes, revoked) = (self.list_changes()?, self.revoked(now)?);
            let number = self.transaction(|transaction| {
                let is_as_it_was = list_changes(transaction.0)? == changes;
                is_as_it_was.then(|| transaction.next_revocation_list()).transpose()
            })?;
            if let Some(number) = number {
                return Ok((revoked, number));
            }
        }
        // It changes faster than it is read, so nobody may write meanwhile.
        self.transaction(|transaction| {
            Ok((revoked(transaction.0, now)?, transaction.next_revocation_list()?))
        })
    }

    /// The same of operators and workers.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revoked_credentials(&self, now: OffsetDateTime) -> Result<Vec<Revoked>, StoreError> {
        self.list(REVOKED_CREDENTIALS, &[&now.unix_timestamp()], |row| {
            let reason = RevocationReason::CessationOfOperation;
            Ok(Revoked { serial: row.get(0)?, since: time(1, row.get(1)?)?, reason })
        })
    }

    /// How often something happened that may have made a certificate or token in use worthless.
    /// Cheap enough to ask every second.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revocations(&self) -> Result<i64, StoreError> {
        Ok(self
            .connection
            .prepare_cached("SELECT connections FROM revocations")?
            .query_row([], |row| row.get(0))?)
    }

    /// How often something happened that changes the [revocation list](Self::revoked) of devices.
    /// As cheap.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn list_changes(&self) -> Result<i64, StoreError> {
        list_changes(&self.connection)
    }

    /// Whether something waits for [`Transaction::prune_expired`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn has_what_to_prune(&self, now: OffsetDateTime) -> Result<bool, StoreError> {
        let mut statement = self.connection.prepare_cached(HAS_TO_PRUNE)?;
        Ok(statement.query_row(expiries(now), |row| row.get(0))?)
    }

    /// Whether something waits for [`Transaction::revoke_unconfirmed`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn has_overdue_confirmations(&self, now: OffsetDateTime) -> Result<bool, StoreError> {
        let mut statement = self.connection.prepare_cached(HAS_OVERDUE)?;
        Ok(statement.query_row(params![now.unix_timestamp()], |row| row.get(0))?)
    }
}

/// What a revocation list of devices names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedCertificates {
    /// Certificates that relying parties may have seen.
    pub once_in_force: Vec<Revoked>,
    /// Certificates that were sealed and never confirmed: nobody but the TPM can have read them.
    pub never_in_force: Vec<Revoked>,
}

fn revoked(
    connection: &Connection,
    now: OffsetDateTime,
) -> Result<RevokedCertificates, StoreError> {
    let mut statement = connection.prepare_cached(REVOKED)?;
    let mut rows = statement.query(params![now.unix_timestamp()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let reason = match row.get::<_, String>(1)?.as_str() {
            "superseded" => RevocationReason::Superseded,
            "revoked" => RevocationReason::CessationOfOperation,
            _ => RevocationReason::CertificateHold,
        };
        let (was_in_force, position): (bool, i64) = (row.get(3)?, row.get(4)?);
        found.push((
            position,
            was_in_force,
            Revoked { serial: row.get(0)?, since: time(2, row.get(2)?)?, reason },
        ));
    }
    // Not by the query: SQLite would rather read the whole table in that order.
    found.sort_unstable_by_key(|(position, ..)| *position);
    let mut revoked = RevokedCertificates::default();
    for (_, was_in_force, certificate) in found {
        let part =
            if was_in_force { &mut revoked.once_in_force } else { &mut revoked.never_in_force };
        part.push(certificate);
    }
    Ok(revoked)
}

fn list_changes(connection: &Connection) -> Result<i64, StoreError> {
    Ok(connection
        .prepare_cached("SELECT list FROM revocations")?
        .query_row([], |row| row.get(0))?)
}

/// The parameters of [`PRUNE`]: what expired before the first goes if it was never confirmed,
/// before the second whatever it was.
fn expiries(now: OffsetDateTime) -> [i64; 2] {
    [now.unix_timestamp(), (now - KEPT).unix_timestamp()]
}

/// How often a list that changes while it is read is read anew, before it is read with everybody
/// else kept from writing.
const OPTIMISM: usize = 3;
/// How long a certificate that was in force stays on record after it ended and expired, so that who
/// looks into something that happened finds whose it was.
const KEPT: Duration = Duration::days(30);

// All of these find the few certificates that matter by an index, among a million that do not. A
// partial index is used only if the query says its condition word for word.
const PRUNE: &str = "DELETE FROM certificates WHERE rowid IN (
    SELECT * FROM (SELECT rowid FROM certificates
                   WHERE status = 'revoked' AND confirmed_at IS NULL AND not_after <= ?1 LIMIT 500)
    UNION ALL
    SELECT * FROM (SELECT rowid FROM certificates
                   WHERE status IN ('superseded', 'revoked') AND not_after <= ?2 LIMIT 500))";
const HAS_TO_PRUNE: &str = "SELECT
    EXISTS (SELECT 1 FROM certificates WHERE status = 'revoked' AND confirmed_at IS NULL AND \
                            not_after <= ?1)
    OR EXISTS (SELECT 1 FROM certificates WHERE status IN ('superseded', 'revoked') AND not_after \
                            <= ?2)";
const HAS_OVERDUE: &str =
    "SELECT EXISTS (SELECT 1 FROM certificates WHERE status = 'unconfirmed' AND confirm_by <= ?1)";
const REVOKE_OVERDUE: &str = "UPDATE certificates SET status = 'revoked', ended_at = ?1, der = \
                              x'' WHERE status = 'unconfirmed' AND confirm_by <= ?1";
const REVOKED: &str = "SELECT serial, status, ended_at, confirmed_at IS NOT NULL, rowid FROM \
                       certificates
    WHERE status IN ('superseded', 'revoked') AND not_after > ?1
    UNION ALL
    SELECT c.serial, c.status, l.since, c.confirmed_at IS NOT NULL, c.rowid
    FROM disabled_eks l CROSS JOIN certificates c USING (ek_id)
    WHERE c.status IN ('unconfirmed', 'active') AND c.not_after > ?1";
const REVOKED_CREDENTIALS: &str = "SELECT serial, revoked_at FROM credentials WHERE revoked_at IS \
                                   NOT NULL AND not_after > ?1 ORDER BY rowid";

#[cfg(test)]
mod tests {
    use rusqlite::params_from_iter;

    use super::*;

    #[test]
    fn what_is_no_longer_good_is_found_without_reading_every_certificate() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(&directory.path().join("assay.db")).unwrap();
        for query in [PRUNE, HAS_TO_PRUNE, HAS_OVERDUE, REVOKE_OVERDUE, REVOKED] {
            let mut statement =
                store.connection.prepare(&format!("EXPLAIN QUERY PLAN {query}")).unwrap();
            let parameters = vec![0; statement.parameter_count()];
            let steps = statement
                .query_map(params_from_iter(parameters), |row| row.get::<_, String>("detail"))
                .unwrap();
            let plan: Vec<_> = steps.map(Result::unwrap).collect();
            let scans = |step: &String| step == "SCAN certificates" || step == "SCAN c";
            assert!(plan.iter().any(|step| step.contains("SEARCH")), "{query}: {plan:?}");
            assert!(!plan.iter().any(scans), "{query}: {plan:?}");
        }
    }
}
