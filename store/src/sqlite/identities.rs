//! Identities: which there are, what they may do, and which of their certificates are good.

use assay_wire::{Identity, Rights};
use rusqlite::{OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::connection::{Sqlite, Transaction};
use crate::certificates::CertificateStatus;
use crate::deeds;
use crate::error::StoreError;
use crate::identities::{
    IdentityCertificate, IdentityCertificateRow, IdentityRole, IdentityRow, NewIdentity, Renewed,
    Which, columns, joined, status,
};

impl Sqlite {
    /// Puts an identity on record. Returns `false` if there is one of this name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_identity(
        &mut self,
        identity: &NewIdentity,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let NewIdentity { name, role, rights, certificate } = identity;
        let [publish, subscribe] = columns(rights);
        self.act(|transaction, done| {
            let rows = transaction.0.execute(
                "INSERT INTO identities (name, role, publish, subscribe) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO NOTHING",
                params![name, role.name(), publish, subscribe],
            )?;
            if rows == 1 {
                add_certificate(transaction, name, certificate, now)?;
                done.push(deeds::identity_added(identity));
            }
            Ok(rows == 1)
        })
    }

    /// Puts another certificate of an identity on record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn renew_identity(
        &mut self,
        name: &str,
        certificate: &IdentityCertificate,
        now: OffsetDateTime,
    ) -> Result<Renewed, StoreError> {
        self.act(|transaction, done| {
            let good = transaction.0.query_row(
                "SELECT count(*) FILTER (WHERE revoked_at IS NULL) FROM identity_certificates
                 WHERE name = ?1 GROUP BY name",
                params![name],
                |row| row.get::<_, i64>(0),
            );
            match good.optional()? {
                None => Ok(Renewed::Unknown),
                Some(0) => Ok(Renewed::Revoked),
                Some(_) => {
                    add_certificate(transaction, name, certificate, now)?;
                    done.push(deeds::identity_renewed(name, certificate));
                    Ok(Renewed::Done)
                }
            }
        })
    }

    /// Gives a backend these rights in place of those that it has. Returns `false` if there is no
    /// backend of this name.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_rights(&mut self, name: &str, rights: &Rights) -> Result<bool, StoreError> {
        let [publish, subscribe] = columns(rights);
        self.act(|transaction, done| {
            let rows = transaction.0.execute(
                "UPDATE identities SET publish = ?2, subscribe = ?3
                 WHERE name = ?1 AND role = 'backend'",
                params![name, publish, subscribe],
            )?;
            if rows == 1 {
                done.push(deeds::rights_set(name, rights));
            }
            Ok(rows == 1)
        })
    }

    /// Revokes certificates of an identity. Returns how many of them were good before, and `None`
    /// if there is no such identity.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revoke_identity(
        &mut self,
        name: &str,
        which: Which<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<usize>, StoreError> {
        let [except, only] = which.digests();
        self.act(|transaction, done| {
            let exists = "SELECT EXISTS (SELECT 1 FROM identities WHERE name = ?1)";
            if !transaction.0.query_row(exists, [name], |row| row.get::<_, bool>(0))? {
                return Ok(None);
            }
            let rows = transaction.0.execute(
                "UPDATE identity_certificates SET revoked_at = ?3
                 WHERE name = ?1 AND revoked_at IS NULL AND sha256 IS NOT ?2
                       AND sha256 = coalesce(?4, sha256)",
                params![name, except, now.unix_timestamp(), only],
            )?;
            done.push(deeds::identity_revoked(name, which, rows));
            Ok(Some(rows))
        })
    }

    /// Every identity, in the order in which they were made.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn identities(&self) -> Result<Vec<IdentityRow>, StoreError> {
        let rows = self.list(
            "SELECT i.name, i.role, i.publish, i.subscribe, c.sha256, c.serial, c.issued_at,
                    c.not_after, c.revoked_at
             FROM identities i JOIN identity_certificates c USING (name)
             ORDER BY i.rowid, c.rowid",
            &[],
            |row: &Row<'_>| {
                let certificate = IdentityCertificateRow {
                    sha256: row.get(4)?,
                    serial: row.get(5)?,
                    issued_at: row.get(6)?,
                    not_after: row.get(7)?,
                    revoked_at: row.get(8)?,
                };
                Ok((row.get(0)?, row.get(1)?, [row.get(2)?, row.get(3)?], certificate))
            },
        )?;
        joined(rows)
    }

    /// The status of the certificate with this digest, which somebody shows as this identity's, and
    /// what the identity may do.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn identity_status(
        &self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<(CertificateStatus, Rights), StoreError> {
        let Some((role, name)) = IdentityRole::of(identity) else { return status(None) };
        let mut statement = self.connection.prepare_cached(
            "SELECT c.revoked_at, i.publish, i.subscribe
             FROM identity_certificates c JOIN identities i USING (name)
             WHERE c.sha256 = ?1 AND i.role = ?2 AND i.name = coalesce(?3, i.name)",
        )?;
        let found = statement.query_row(params![sha256, role.name(), name], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        });
        status(found.optional()?)
    }

    /// The name of the identity whose certificate has this digest.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn identity_named(&self, sha256: &[u8; 32]) -> Result<Option<String>, StoreError> {
        let query = "SELECT name FROM identity_certificates WHERE sha256 = ?1";
        let mut statement = self.connection.prepare_cached(query)?;
        Ok(statement.query_row([sha256], |row| row.get(0)).optional()?)
    }
}

fn add_certificate(
    transaction: &Transaction<'_>,
    name: &str,
    certificate: &IdentityCertificate,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let IdentityCertificate { sha256, serial, not_after } = certificate;
    transaction.0.execute(
        "INSERT INTO identity_certificates (sha256, name, serial, issued_at, not_after)
         VALUES (?1, ?2, ?3, ?4, ?5)",
        params![sha256, name, serial, now.unix_timestamp(), not_after],
    )?;
    Ok(())
}
