//! TPM vendors' certificates: which roots an EK certificate may lead to.

use assay_ca_core::Role;
use postgres::Row;

use super::columns::{array, parsed};
use super::connection::Postgres;
use super::session::Session;
use crate::deeds;
use crate::error::StoreError;
use crate::trust::{AnchorRow, Trusted};

impl Postgres {
    pub(super) fn put_anchor(&mut self, anchor: &AnchorRow) -> Result<Trusted, StoreError> {
        self.act(|session, done| {
            let known = session.query_opt(KNOWN, &[&&anchor.fingerprint[..]])?;
            let known = known.map(|row| role(&row, 0)).transpose()?;
            let result = match known {
                None => Trusted::Added,
                Some(known) if known.becomes(anchor.role) => {
                    // A new row has a new number, so the version changes.
                    remove(session, &anchor.fingerprint)?;
                    Trusted::Changed
                }
                Some(_) => return Ok(Trusted::Already),
            };
            let (kind, allowances) = anchor.kind();
            session.execute(
                ADD,
                &[
                    &&anchor.fingerprint[..],
                    &anchor.certificate,
                    &anchor.subject,
                    &kind,
                    &allowances,
                    &anchor.not_after,
                    &anchor.added_at,
                ],
            )?;
            done.push(deeds::trusted(anchor));
            Ok(result)
        })
    }

    pub(super) fn take_anchor(&mut self, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
        self.act(|session, done| {
            session.execute("DELETE FROM pending", &[])?;
            let is_removed = remove(session, fingerprint)?;
            if is_removed {
                done.push(deeds::distrusted(fingerprint));
            }
            Ok(is_removed)
        })
    }

    pub(super) fn all_anchors(&mut self) -> Result<Vec<AnchorRow>, StoreError> {
        self.read_together(|session| {
            let rows = session.query(ALL, &[])?;
            let anchor = |row: &Row| {
                Ok(AnchorRow {
                    fingerprint: array(row.get(0))?,
                    certificate: row.get(1),
                    subject: row.get(2),
                    role: role(row, 3)?,
                    not_after: row.get(5),
                    added_at: row.get(6),
                })
            };
            rows.iter().map(anchor).collect()
        })
    }
}

fn remove(session: &mut Session, fingerprint: &[u8; 32]) -> Result<bool, StoreError> {
    let rows =
        session.execute("DELETE FROM anchors WHERE fingerprint = $1", &[&&fingerprint[..]])?;
    Ok(rows == 1)
}

/// Reads a column `kind` and the next one, `allowances`.
fn role(row: &Row, column: usize) -> Result<Role, StoreError> {
    Ok(match row.get(column) {
        "root" => Role::Root,
        "anchor" => Role::Anchor(parsed(row, column + 1)?),
        // The schema allows no other kind.
        _ => Role::Issuer,
    })
}

const KNOWN: &str = "SELECT kind, allowances FROM anchors WHERE fingerprint = $1";
const ADD: &str = "INSERT INTO anchors
    (fingerprint, certificate, subject, kind, allowances, not_after, added_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7)";
const ALL: &str = "SELECT fingerprint, certificate, subject, kind, allowances, not_after, added_at
    FROM anchors ORDER BY id";
