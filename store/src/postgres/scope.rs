//! The scope by which devices know the CA.

use assay_wire::Scope;

use super::columns::parsed;
use super::connection::Postgres;
use super::session::Session;
use crate::error::StoreError;

impl Postgres {
    pub(super) fn put_scope(&mut self, scope: &Scope) -> Result<(), StoreError> {
        // Most often it is this scope, and this look keeps nobody from writing.
        if self.read(on_record)?.as_ref() == Some(scope) {
            return Ok(());
        }
        self.write(|session| {
            may_serve(session, scope)?;
            session.execute("DELETE FROM scope", &[])?;
            session.execute("INSERT INTO scope VALUES ($1)", &[&scope.as_str()])?;
            Ok(())
        })
    }

    pub(super) fn could_serve(&mut self, scope: &Scope) -> Result<(), StoreError> {
        self.read_together(|session| may_serve(session, scope))
    }
}

/// Refuses another scope than the one on record. Another process may have changed the scope on
/// record since this one began to serve.
pub(super) fn check_scope(session: &Session, scope: &Scope) -> Result<(), StoreError> {
    let on_record = session.scope.as_ref().map(|name| name.parse().map_err(StoreError::unreadable));
    match on_record.transpose()? {
        Some(was) if was != *scope => Err(StoreError::Scope { was, is: scope.clone() }),
        _ => Ok(()),
    }
}

/// Refuses another scope than the one on record, once something was granted in the one on record.
/// Certificates that were made to try brokers do not count.
fn may_serve(session: &mut Session, scope: &Scope) -> Result<(), StoreError> {
    match on_record(session)? {
        Some(was) if was != *scope && session.query_one(HAS_GRANTED, &[])?.get(0) => {
            Err(StoreError::Scope { was, is: scope.clone() })
        }
        _ => Ok(()),
    }
}

fn on_record(session: &mut Session) -> Result<Option<Scope>, StoreError> {
    session.query_opt("SELECT name FROM scope", &[])?.map(|row| parsed(&row, 0)).transpose()
}

const HAS_GRANTED: &str = "SELECT EXISTS (SELECT FROM devices) OR EXISTS (SELECT FROM shared_keys)
    OR EXISTS (SELECT FROM certificates WHERE assurance <> 'none')";
