//! Certificates of operators and workers: which there are, and which are no longer good.

use assay_wire::Identity;
use rusqlite::{OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::connection::Sqlite;
use crate::certificates::CertificateStatus;
use crate::credentials::{Credential, CredentialRow, role};
use crate::error::StoreError;

impl Sqlite {
    /// Puts the certificate of an operator or a worker on record. A certificate that is not on
    /// record lets nobody in. Returns `false` if there is one of this name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_credential(
        &mut self,
        name: &str,
        credential: &Credential,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let rows = self.connection.execute(
            "INSERT INTO credentials (sha256, name, role, serial, issued_at, not_after) VALUES \
             (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (name) DO NOTHING",
            params![
                credential.sha256,
                name,
                role(&credential.role),
                credential.serial,
                now.unix_timestamp(),
                credential.not_after
            ],
        )?;
        Ok(rows == 1)
    }

    /// Every certificate of an operator or a worker, in the order of issuance.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn credentials(&self) -> Result<Vec<CredentialRow>, StoreError> {
        self.list(
            "SELECT name, role, sha256, issued_at, not_after, revoked_at FROM credentials ORDER \
             BY rowid",
            &[],
            |row: &Row<'_>| {
                Ok(CredentialRow {
                    name: row.get(0)?,
                    role: row.get(1)?,
                    sha256: row.get(2)?,
                    issued_at: row.get(3)?,
                    not_after: row.get(4)?,
                    revoked_at: row.get(5)?,
                })
            },
        )
    }

    /// Revokes the operator's or worker's certificate of this name. Returns `None` if there is
    /// none, `false` if it was revoked before.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revoke_credential(
        &mut self,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<Option<bool>, StoreError> {
        self.transaction(|transaction| {
            let revoked_at = transaction.0.query_row(
                "SELECT revoked_at FROM credentials WHERE name = ?1",
                params![name],
                |row| row.get::<_, Option<i64>>(0),
            );
            let Some(revoked_at) = revoked_at.optional()? else { return Ok(None) };
            if revoked_at.is_none() {
                transaction.0.execute(
                    "UPDATE credentials SET revoked_at = ?2 WHERE name = ?1",
                    params![name, now.unix_timestamp()],
                )?;
            }
            Ok(Some(revoked_at.is_none()))
        })
    }

    /// The status of the certificate with this digest, which somebody shows as an operator's or a
    /// worker's.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn credential_status(
        &self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT revoked_at FROM credentials WHERE sha256 = ?1 AND role = ?2")?;
        let found = statement
            .query_row(params![sha256, role(identity)], |row| row.get::<_, Option<i64>>(0));
        Ok(match found.optional()? {
            None => CertificateStatus::Unknown,
            Some(None) => CertificateStatus::Active,
            Some(Some(_)) => CertificateStatus::Revoked,
        })
    }
}
