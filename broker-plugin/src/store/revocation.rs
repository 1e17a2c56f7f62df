//! What is no longer good, and lists of it.

use assay_ca_core::{RevocationReason, Revoked};
use rusqlite::params;
use time::OffsetDateTime;

use super::{Store, StoreError, Transaction, time};

impl Transaction<'_> {
    /// Revokes what was sealed and not confirmed in time, and forgets what of it has expired, for anybody can have such certificates
    /// made. Returns how many were revoked.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revoke_unconfirmed(&self, now: OffsetDateTime) -> Result<usize, StoreError> {
        self.0
            .prepare_cached(
                "DELETE FROM certificates WHERE status = 'revoked' AND confirmed_at IS NULL AND not_after <= ?1",
            )?
            .execute(params![now.unix_timestamp()])?;
        let mut statement = self.0.prepare_cached(
            "UPDATE certificates SET status = 'revoked', ended_at = ?1 WHERE status = 'unconfirmed' AND confirm_by <= ?1",
        )?;
        Ok(statement.execute(params![now.unix_timestamp()])?)
    }

    /// The number of the next revocation list: each is given once.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn next_revocation_list(&self) -> Result<u32, StoreError> {
        let query = "UPDATE revocation_lists SET number = number + 1 RETURNING number";
        Ok(self.0.prepare_cached(query)?.query_row([], |row| row.get(0))?)
    }

    /// Every certificate that is no longer good and has not expired, with the reason (RFC 5280 §5.3.1): *superseded*; *certificate hold*
    /// while its device is disabled; *cessation of operation* if nobody confirmed it or its device was removed.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revoked(&self, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError> {
        let mut statement = self.0.prepare_cached(
            // Two halves with an index each, for most certificates are neither.
            "SELECT serial, status, ended_at AS since, confirmed_at IS NOT NULL, rowid AS position FROM certificates
             WHERE status IN ('superseded', 'revoked') AND not_after > ?1
             UNION ALL
             SELECT c.serial, c.status, l.since, c.confirmed_at IS NOT NULL, c.rowid
             FROM disabled_eks l JOIN certificates c USING (ek_id)
             WHERE c.status IN ('unconfirmed', 'active') AND c.not_after > ?1 ORDER BY position",
        )?;
        let mut rows = statement.query(params![now.unix_timestamp()])?;
        let mut revoked = RevokedCertificates::default();
        while let Some(row) = rows.next()? {
            let reason = match row.get::<_, String>(1)?.as_str() {
                "superseded" => RevocationReason::Superseded,
                "revoked" => RevocationReason::CessationOfOperation,
                _ => RevocationReason::CertificateHold,
            };
            let was_in_force = row.get(3)?;
            let part = if was_in_force { &mut revoked.once_in_force } else { &mut revoked.never_in_force };
            part.push(Revoked { serial: row.get(0)?, since: time(2, row.get(2)?)?, reason });
        }
        Ok(revoked)
    }
}

/// What a revocation list names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedCertificates {
    /// Certificates that relying parties may have seen.
    pub once_in_force: Vec<Revoked>,
    /// Certificates that were sealed and never confirmed: nobody but the TPM can have read them.
    pub never_in_force: Vec<Revoked>,
}

impl Store {
    /// How often something happened that may have made a certificate or token in use worthless. Cheap enough to ask every second.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn revocations(&self) -> Result<i64, StoreError> {
        Ok(self.connection.prepare_cached("SELECT connections FROM revocations")?.query_row([], |row| row.get(0))?)
    }

    /// How often something happened that changes the [revocation list](Transaction::revoked). As cheap.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn list_changes(&self) -> Result<i64, StoreError> {
        Ok(self.connection.prepare_cached("SELECT list FROM revocations")?.query_row([], |row| row.get(0))?)
    }

    /// Whether something waits for [`Transaction::revoke_unconfirmed`].
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn has_overdue_confirmations(&self, now: OffsetDateTime) -> Result<bool, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM certificates WHERE status = 'unconfirmed' AND confirm_by <= ?1)",
        )?;
        Ok(statement.query_row(params![now.unix_timestamp()], |row| row.get(0))?)
    }
}
