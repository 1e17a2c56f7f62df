//! Certificates of operators and workers: which there are, and which are no longer good.

use assay_wire::Identity;
use time::OffsetDateTime;

use super::columns::array;
use super::connection::Postgres;
use crate::certificates::CertificateStatus;
use crate::credentials::{Credential, CredentialRow, role};
use crate::error::StoreError;

impl Postgres {
    pub(super) fn put_credential(
        &mut self,
        name: &str,
        credential: &Credential,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        self.write(|session| {
            let rows = session.execute(
                ADD,
                &[
                    &&credential.sha256[..],
                    &name,
                    &role(&credential.role),
                    &credential.serial,
                    &now.unix_timestamp(),
                    &credential.not_after,
                ],
            )?;
            Ok(rows == 1)
        })
    }

    pub(super) fn all_credentials(&mut self) -> Result<Vec<CredentialRow>, StoreError> {
        self.read_together(|session| {
            let rows = session.query(ALL, &[])?;
            let credential = |row: &postgres::Row| {
                Ok(CredentialRow {
                    name: row.get(0),
                    role: row.get(1),
                    sha256: array(row.get(2))?,
                    issued_at: row.get(3),
                    not_after: row.get(4),
                    revoked_at: row.get(5),
                })
            };
            rows.iter().map(credential).collect()
        })
    }

    pub(super) fn end_credential(
        &mut self,
        name: &str,
        now: OffsetDateTime,
    ) -> Result<Option<bool>, StoreError> {
        self.write(|session| {
            let row = session
                .query_opt("SELECT revoked_at FROM credentials WHERE name = $1", &[&name])?;
            let Some(row) = row else { return Ok(None) };
            let is_good = row.get::<_, Option<i64>>(0).is_none();
            if is_good {
                session.execute(REVOKE, &[&name, &now.unix_timestamp()])?;
            }
            Ok(Some(is_good))
        })
    }

    pub(super) fn status_of_credential(
        &mut self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError> {
        self.read(|session| {
            let row = session.query_opt(STATUS, &[&&sha256[..], &role(identity)])?;
            Ok(match row.map(|row| row.get::<_, Option<i64>>(0)) {
                None => CertificateStatus::Unknown,
                Some(None) => CertificateStatus::Active,
                Some(Some(_)) => CertificateStatus::Revoked,
            })
        })
    }
}

const ADD: &str = "INSERT INTO credentials (sha256, name, role, serial, issued_at, not_after)
    VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (name) DO NOTHING";
const ALL: &str = "SELECT name, role, sha256, issued_at, not_after, revoked_at FROM credentials
    ORDER BY number";
const REVOKE: &str = "UPDATE credentials SET revoked_at = $2 WHERE name = $1";
const STATUS: &str = "SELECT revoked_at FROM credentials WHERE sha256 = $1 AND role = $2";
