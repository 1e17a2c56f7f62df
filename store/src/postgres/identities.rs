//! Identities: which there are, what they may do, and which of their certificates are good.

use assay_wire::{Identity, Rights};
use time::OffsetDateTime;

use super::columns::array;
use super::connection::Postgres;
use super::session::Session;
use crate::certificates::CertificateStatus;
use crate::deeds;
use crate::error::StoreError;
use crate::identities::{
    IdentityCertificate, IdentityCertificateRow, IdentityRole, IdentityRow, NewIdentity, Renewed,
    Which, columns, joined, status,
};

impl Postgres {
    pub(super) fn put_identity(
        &mut self,
        identity: &NewIdentity,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let NewIdentity { name, role, rights, certificate } = identity;
        let [publish, subscribe] = columns(rights);
        self.act(|session, done| {
            let rows = session.execute(ADD, &[name, &role.name(), &publish, &subscribe])?;
            if rows == 1 {
                add_certificate(session, name, certificate, now)?;
                done.push(deeds::identity_added(identity));
            }
            Ok(rows == 1)
        })
    }

    pub(super) fn put_renewed_identity(
        &mut self,
        name: &str,
        certificate: &IdentityCertificate,
        now: OffsetDateTime,
    ) -> Result<Renewed, StoreError> {
        self.act(|session, done| {
            let good = session.query_opt(GOOD, &[&name])?.map(|row| row.get::<_, i64>(0));
            match good {
                None => Ok(Renewed::Unknown),
                Some(0) => Ok(Renewed::Revoked),
                Some(_) => {
                    add_certificate(session, name, certificate, now)?;
                    done.push(deeds::identity_renewed(name, certificate));
                    Ok(Renewed::Done)
                }
            }
        })
    }

    pub(super) fn put_rights(&mut self, name: &str, rights: &Rights) -> Result<bool, StoreError> {
        let [publish, subscribe] = columns(rights);
        self.act(|session, done| {
            let is_set = session.execute(SET_RIGHTS, &[&name, &publish, &subscribe])? == 1;
            if is_set {
                done.push(deeds::rights_set(name, rights));
            }
            Ok(is_set)
        })
    }

    pub(super) fn end_identity(
        &mut self,
        name: &str,
        which: Which<'_>,
        now: OffsetDateTime,
    ) -> Result<Option<usize>, StoreError> {
        let [except, only] = which.digests().map(|digest| digest.map(|sha256| &sha256[..]));
        self.act(|session, done| {
            if !session.query_one(EXISTS, &[&name])?.get::<_, bool>(0) {
                return Ok(None);
            }
            let rows = session.execute(REVOKE, &[&name, &except, &now.unix_timestamp(), &only])?;
            let rows = usize::try_from(rows).map_err(StoreError::unreadable)?;
            done.push(deeds::identity_revoked(name, which, rows));
            Ok(Some(rows))
        })
    }

    pub(super) fn all_identities(&mut self) -> Result<Vec<IdentityRow>, StoreError> {
        self.read_together(|session| {
            let rows = session.query(ALL, &[])?;
            let row = |row: &postgres::Row| {
                let certificate = IdentityCertificateRow {
                    sha256: array(row.get(4))?,
                    serial: row.get(5),
                    issued_at: row.get(6),
                    not_after: row.get(7),
                    revoked_at: row.get(8),
                };
                Ok((row.get(0), row.get(1), [row.get(2), row.get(3)], certificate))
            };
            joined(rows.iter().map(row).collect::<Result<Vec<_>, StoreError>>()?)
        })
    }

    pub(super) fn status_of_identity(
        &mut self,
        identity: &Identity,
        sha256: &[u8; 32],
    ) -> Result<(CertificateStatus, Rights), StoreError> {
        let Some((role, name)) = IdentityRole::of(identity) else { return status(None) };
        self.read(|session| {
            let row = session.query_opt(STATUS, &[&&sha256[..], &role.name(), &name])?;
            status(row.map(|row| (row.get(0), row.get(1), row.get(2))))
        })
    }

    pub(super) fn name_of_identity(
        &mut self,
        sha256: &[u8; 32],
    ) -> Result<Option<String>, StoreError> {
        self.read(|session| Ok(session.query_opt(NAMED, &[&&sha256[..]])?.map(|row| row.get(0))))
    }
}

fn add_certificate(
    session: &mut Session,
    name: &str,
    certificate: &IdentityCertificate,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let IdentityCertificate { sha256, serial, not_after } = certificate;
    let values: [&(dyn postgres::types::ToSql + Sync); 5] =
        [&&sha256[..], &name, serial, &now.unix_timestamp(), not_after];
    session.execute(ADD_CERTIFICATE, &values)?;
    Ok(())
}

const NAMED: &str = "SELECT name FROM identity_certificates WHERE sha256 = $1";
const ADD: &str = "INSERT INTO identities (name, role, publish, subscribe)
    VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO NOTHING";
const ADD_CERTIFICATE: &str =
    "INSERT INTO identity_certificates (sha256, name, serial, issued_at, not_after)
    VALUES ($1, $2, $3, $4, $5)";
const GOOD: &str = "SELECT count(*) FILTER (WHERE revoked_at IS NULL) FROM identity_certificates
    WHERE name = $1 GROUP BY name";
const SET_RIGHTS: &str = "UPDATE identities SET publish = $2, subscribe = $3
    WHERE name = $1 AND role = 'backend'";
const EXISTS: &str = "SELECT EXISTS (SELECT FROM identities WHERE name = $1)";
const REVOKE: &str = "UPDATE identity_certificates SET revoked_at = $3
    WHERE name = $1 AND revoked_at IS NULL AND sha256 IS DISTINCT FROM $2
          AND sha256 = coalesce($4, sha256)";
const ALL: &str = "SELECT i.name, i.role, i.publish, i.subscribe, c.sha256, c.serial, c.issued_at,
           c.not_after, c.revoked_at
    FROM identities i JOIN identity_certificates c USING (name) ORDER BY i.number, c.number";
const STATUS: &str = "SELECT c.revoked_at, i.publish, i.subscribe
    FROM identity_certificates c JOIN identities i USING (name)
    WHERE c.sha256 = $1 AND i.role = $2 AND i.name = coalesce($3, i.name)";
