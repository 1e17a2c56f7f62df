//! Certificates of operators and workers: which there are, and which are no longer good.

use assay_wire::Identity;
use rusqlite::{OptionalExtension, Row, params};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CertificateStatus, Store, StoreError};

/// A certificate of an operator or a worker, as it is put on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    role: Identity,
    sha256: [u8; 32],
    serial: Vec<u8>,
    not_after: i64,
}

impl Credential {
    /// Reads it in DER, for the role that it names; `None` if it is a device's, or cannot be read.
    pub fn read(role: Identity, der: &[u8]) -> Option<Self> {
        if matches!(role, Identity::Device { .. }) {
            return None;
        }
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        Some(Self {
            role,
            sha256: Sha256::digest(der).into(),
            serial: certificate.raw_serial().to_vec(),
            not_after: certificate.validity().not_after.timestamp(),
        })
    }
}

/// The certificate of an operator or a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRow {
    /// What the operators of the CA call it.
    pub name: String,
    /// `operator` or `worker`.
    pub role: String,
    /// SHA-256 of the certificate.
    pub sha256: [u8; 32],
    /// When it was issued, in seconds since 1970.
    pub issued_at: i64,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
    /// Since when it is revoked, in seconds since 1970.
    pub revoked_at: Option<i64>,
}

impl Store {
    /// Puts a certificate on record, without which it lets nobody in; `false` if there is one of
    /// this name.
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

    /// Every such certificate, in the order of issuance.
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

    /// Revokes the certificate of this name; `None` if there is none, `false` if it was revoked
    /// before.
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

    /// What a certificate with this digest, which somebody shows as an operator's or a worker's is worth now.
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

/// A device has no credential; no row has its role.
fn role(identity: &Identity) -> &'static str {
    match identity {
        Identity::Operator => "operator",
        Identity::Worker => "worker",
        Identity::Device { .. } => "device",
    }
}
