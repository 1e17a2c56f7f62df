//! TPM vendors' certificates: which roots an EK certificate may lead to.

use assay_ca_core::Role;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::columns::parsed;
use super::connection::Sqlite;
use crate::deeds;
use crate::error::StoreError;
use crate::trust::{AnchorRow, AnchorsVersion, Trusted};

impl Sqlite {
    /// Adds a vendor's certificate, or makes an anchor of one that is there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn add_anchor(&mut self, anchor: &AnchorRow) -> Result<Trusted, StoreError> {
        self.act(|transaction, done| {
            let known = transaction
                .0
                .prepare_cached("SELECT kind, allowances FROM anchors WHERE fingerprint = ?1")?
                .query_row(params![anchor.fingerprint], |row| role(row, 0))
                .optional()?;
            let result = match known {
                None => Trusted::Added,
                Some(known) if known.becomes(anchor.role) => {
                    // A new row has a new number, so the version changes.
                    remove(transaction.0, &anchor.fingerprint)?;
                    Trusted::Changed
                }
                Some(_) => return Ok(Trusted::Already),
            };
            let (kind, allowances) = anchor.kind();
            transaction.0.execute(
                "INSERT INTO anchors (fingerprint, certificate, subject, kind, allowances, \
                 not_after, added_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    anchor.fingerprint,
                    anchor.certificate,
                    anchor.subject,
                    kind,
                    allowances,
                    anchor.not_after,
                    anchor.added_at
                ],
            )?;
            done.push(deeds::trusted(anchor));
            Ok(result)
        })
    }

    /// See [`Store::remove_anchor`](crate::contract::Store::remove_anchor).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn remove_anchor(&mut self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        self.act(|transaction, done| {
            transaction.0.execute("DELETE FROM pending", [])?;
            let is_removed = remove(transaction.0, fingerprint)?;
            if is_removed {
                done.push(deeds::distrusted(fingerprint));
            }
            Ok(is_removed)
        })
    }

    /// Every vendor's certificate, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn anchors(&self) -> Result<Vec<AnchorRow>, StoreError> {
        let query = "SELECT fingerprint, certificate, subject, kind, allowances, not_after, \
                     added_at FROM anchors ORDER BY id";
        self.list(query, &[], |row| {
            Ok(AnchorRow {
                fingerprint: row.get(0)?,
                certificate: row.get(1)?,
                subject: row.get(2)?,
                role: role(row, 3)?,
                not_after: row.get(5)?,
                added_at: row.get(6)?,
            })
        })
    }
}

/// See [`Snapshot::anchors`](crate::act::Snapshot::anchors).
pub(super) fn anchors_version(connection: &Connection) -> Result<AnchorsVersion, StoreError> {
    let mut statement =
        connection.prepare_cached("SELECT coalesce(max(id), 0), count(*) FROM anchors")?;
    Ok(statement
        .query_row([], |row| Ok(AnchorsVersion { newest: row.get(0)?, count: row.get(1)? }))?)
}

fn remove(connection: &Connection, fingerprint: &[u8; 32]) -> rusqlite::Result<bool> {
    Ok(connection.execute("DELETE FROM anchors WHERE fingerprint = ?1", params![fingerprint])? == 1)
}

/// Reads a column `kind` and the next one, `allowances`.
fn role(row: &Row<'_>, column: usize) -> rusqlite::Result<Role> {
    Ok(match row.get::<_, String>(column)?.as_str() {
        "root" => Role::Root,
        "anchor" => Role::Anchor(parsed(row, column + 1)?),
        // The schema allows no other kind.
        _ => Role::Issuer,
    })
}
