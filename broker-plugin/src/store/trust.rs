//! TPM vendors' certificates: which roots an EK certificate may lead to.

use rusqlite::params;

use super::{Store, StoreError};

/// A vendor's certificate.
#[derive(Clone, Debug)]
pub struct AnchorRow {
    /// SHA-256 of the certificate.
    pub fingerprint: [u8; 32],
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// Its subject, for people.
    pub subject: String,
    /// Whether it is self-signed. Others never become anchors, they only help to build a path.
    pub root: bool,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
    /// When an operator added it, in seconds since 1970.
    pub added_at: i64,
}

/// Changes whenever the set of vendors' certificates does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnchorsVersion {
    newest: i64,
    count: i64,
}

impl Store {
    /// Adds a vendor's certificate; `false` if it was there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_anchor(&self, anchor: &AnchorRow) -> Result<bool, StoreError> {
        let added = self.connection.execute(
            "INSERT OR IGNORE INTO anchors (fingerprint, certificate, subject, root, not_after, added_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                anchor.fingerprint,
                anchor.certificate,
                anchor.subject,
                anchor.root,
                anchor.not_after,
                anchor.added_at
            ],
        )?;
        Ok(added == 1)
    }

    /// Removes a vendor's certificate; `false` if it was not there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn remove_anchor(&self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        Ok(self.connection.execute("DELETE FROM anchors WHERE fingerprint = ?1", params![fingerprint])? == 1)
    }

    /// Every vendor's certificate, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn anchors(&self) -> Result<Vec<AnchorRow>, StoreError> {
        let query = "SELECT fingerprint, certificate, subject, root, not_after, added_at FROM anchors ORDER BY id";
        self.list(query, &[], |row| {
            Ok(AnchorRow {
                fingerprint: row.get(0)?,
                certificate: row.get(1)?,
                subject: row.get(2)?,
                root: row.get(3)?,
                not_after: row.get(4)?,
                added_at: row.get(5)?,
            })
        })
    }

    /// Which set of vendors' certificates the file holds now, without reading them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn anchors_version(&self) -> Result<AnchorsVersion, StoreError> {
        let mut statement = self.connection.prepare_cached("SELECT coalesce(max(id), 0), count(*) FROM anchors")?;
        Ok(statement.query_row([], |row| Ok(AnchorsVersion { newest: row.get(0)?, count: row.get(1)? }))?)
    }
}
