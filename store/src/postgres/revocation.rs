//! Certificates that are no longer good, lists of them, and news of revocations.

use std::time::{Duration, Instant};

use assay_ca_core::{CLOCK_SKEW, RevocationReason, Revoked};
use fallible_iterator::FallibleIterator;
use time::OffsetDateTime;

use super::audit::prune_audit;
use super::columns::{array, small, time};
use super::connection::{Postgres, apart};
use super::session::Session;
use crate::error::StoreError;
use crate::retention::{AUDIT_BATCH, BATCH, Expiries, Pruned, Retention};
use crate::revocation::{Changes, RevokedCertificates, UNLOCKED_READS, in_order, reason};

impl Postgres {
    pub(super) fn all_revoked(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<RevokedCertificates, StoreError> {
        self.read_together(|session| revoked(session, now))
    }

    pub(super) fn list_of_revoked(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<(RevokedCertificates, u32), StoreError> {
        while self.read(|session| has_overdue(session, now))? {
            self.write(|session| revoke_overdue(session, now))?;
        }
        for _ in 0..UNLOCKED_READS {
            let (seen, found) =
                self.read_together(|session| Ok((changes(session)?.list, revoked(session, now)?)))?;
            let number = self.write(|session| {
                let is_as_it_was = changes(session)?.list == seen;
                is_as_it_was.then(|| next_number(session)).transpose()
            })?;
            if let Some(number) = number {
                return Ok((found, number));
            }
        }
        // The list changes faster than it is read, so nobody else may write meanwhile.
        self.write(|session| Ok((revoked(session, now)?, next_number(session)?)))
    }

    pub(super) fn all_revoked_identities(
        &mut self,
        now: OffsetDateTime,
    ) -> Result<Vec<Revoked>, StoreError> {
        let reason = RevocationReason::CessationOfOperation;
        self.read_together(|session| {
            let rows = session.query(REVOKED_IDENTITIES, &[&now.unix_timestamp()])?;
            let revoked = |row: &postgres::Row| {
                Ok(Revoked { serial: array(row.get(0))?, since: time(row.get(1))?, reason })
            };
            rows.iter().map(revoked).collect()
        })
    }

    pub(super) fn next_list(&mut self) -> Result<u32, StoreError> {
        self.write(next_number)
    }

    pub(super) fn all_changes(&mut self) -> Result<Changes, StoreError> {
        self.read(changes)
    }

    /// The server notifies its clients of each commit that revokes. A notification is missed if it
    /// came before this listened, or over a connection that was lost. So this also looks every now
    /// and then.
    pub(super) fn wait(&mut self, seen: Changes, timeout: Duration) -> Result<Changes, StoreError> {
        let deadline = Instant::now() + timeout;
        loop {
            let changes = self.read(|session| {
                if !session.listens {
                    let listen = session.query_one(LISTEN, &[])?;
                    session.client.batch_execute(listen.get(0))?;
                    session.listens = true;
                }
                changes(session)
            })?;
            let left = deadline.saturating_duration_since(Instant::now());
            if changes != seen || left.is_zero() {
                return Ok(changes);
            }
            apart(|| self.hear(left.min(POLL)));
        }
    }

    /// Waits until the server notifies, the connection is lost, or the time is over.
    fn hear(&mut self, timeout: Duration) {
        let Ok(session) = self.session() else { return };
        let mut notifications = session.client.notifications();
        let _ = notifications.timeout_iter(timeout).next();
        // One look suffices for all notifications that came meanwhile.
        while let Ok(Some(_)) = notifications.iter().next() {}
    }

    pub(super) fn prune_all(
        &mut self,
        retention: &Retention,
        now: OffsetDateTime,
    ) -> Result<Pruned, StoreError> {
        let Expiries { never_confirmed, once_in_force } = retention.expiries(now);
        let offered = (now - retention.unused_offers()).unix_timestamp();
        let bounds = retention.audit_bounds(now);
        // Most often there is nothing to do, and this look keeps nobody from writing.
        let has_to = self.read(|session| {
            Ok(has_overdue(session, now)?
                || session
                    .query_one(
                        HAS_TO_PRUNE,
                        &[
                            &never_confirmed,
                            &once_in_force,
                            &offered,
                            &bounds.kept,
                            &bounds.decisions_us,
                            &bounds.acts_us,
                        ],
                    )?
                    .get(0))
        })?;
        if !has_to {
            return Ok(Pruned::default());
        }
        self.write(|session| {
            check_clock(session)?;
            let overdue = revoke_overdue(session, now)?;
            let never = session.execute(PRUNE_NEVER_CONFIRMED, &[&never_confirmed, &BATCH])?;
            let ended = session.execute(PRUNE_ENDED, &[&once_in_force, &BATCH])?;
            let offers = session.execute(PRUNE_OFFERS, &[&offered, &BATCH])?;
            let audit = prune_audit(session, &bounds)?;
            let is_full = |rows: u64| rows >= BATCH as u64;
            Ok(Pruned {
                overdue,
                certificates: never + ended,
                offers,
                audit: audit.iter().sum(),
                more: [overdue, never, ended, offers].into_iter().any(is_full)
                    || audit.into_iter().any(|rows| rows >= AUDIT_BATCH as u64),
            })
        })
    }
}

/// What is forgotten does not come back, so a machine with a wrong clock must not prune for all.
fn check_clock(session: &mut Session) -> Result<(), StoreError> {
    let servers: i64 = session.query_one(CLOCK, &[])?.get(0);
    let ahead = OffsetDateTime::now_utc().unix_timestamp() - servers;
    if ahead > CLOCK_SKEW.whole_seconds() { Err(StoreError::Clock(ahead)) } else { Ok(()) }
}

fn has_overdue(session: &mut Session, now: OffsetDateTime) -> Result<bool, StoreError> {
    Ok(session.query_one(HAS_OVERDUE, &[&now.unix_timestamp()])?.get(0))
}

fn revoke_overdue(session: &mut Session, now: OffsetDateTime) -> Result<u64, StoreError> {
    session.execute(REVOKE_OVERDUE, &[&now.unix_timestamp(), &BATCH])
}

fn revoked(session: &mut Session, now: OffsetDateTime) -> Result<RevokedCertificates, StoreError> {
    let rows = session.query(REVOKED, &[&now.unix_timestamp()])?;
    let certificate = |row: &postgres::Row| {
        let (reason, since) = (reason(row.get(1)), time(row.get(2))?);
        Ok((row.get(4), row.get(3), Revoked { serial: array(row.get(0))?, since, reason }))
    };
    Ok(in_order(rows.iter().map(certificate).collect::<Result<_, StoreError>>()?))
}

fn changes(session: &mut Session) -> Result<Changes, StoreError> {
    let row = session.query_one("SELECT connections, list FROM revocations", &[])?;
    Ok(Changes { connections: row.get(0), list: row.get(1) })
}

fn next_number(session: &mut Session) -> Result<u32, StoreError> {
    let query = "UPDATE revocation_lists SET number = number + 1 RETURNING number";
    small(&session.query_one(query, &[])?, 0)
}

const CLOCK: &str = "SELECT extract(epoch FROM clock_timestamp())::int8";
const LISTEN: &str = "SELECT format('LISTEN %I', 'assay_' || current_schema())";
/// How late a revocation is noticed if the server's notification was lost.
const POLL: Duration = Duration::from_millis(900);

// All of these statements find by an index the few certificates that matter among a million.
const HAS_OVERDUE: &str = "SELECT EXISTS (SELECT FROM certificates
    WHERE status = 'unconfirmed' AND confirm_by <= $1)";
const REVOKE_OVERDUE: &str = "UPDATE certificates SET status = 'revoked', ended_at = $1, der = ''
    WHERE serial IN (SELECT serial FROM certificates
                     WHERE status = 'unconfirmed' AND confirm_by <= $1 LIMIT $2)";
/// The fourth column says whether anybody but the TPM may have the certificate. One that waits for
/// its whole life was renewed, and sent in clear; the others were sealed.
const REVOKED: &str = "SELECT serial, status, ended_at,
        confirmed_at IS NOT NULL OR coalesce(confirm_by >= not_after, false), number
    FROM certificates WHERE status IN ('superseded', 'revoked') AND not_after > $1
    UNION ALL
    SELECT c.serial, c.status, l.since,
        c.confirmed_at IS NOT NULL OR coalesce(c.confirm_by >= c.not_after, false), c.number
    FROM disabled_eks l JOIN certificates c USING (ek_id)
    WHERE c.status IN ('unconfirmed', 'active') AND c.not_after > $1";
const REVOKED_IDENTITIES: &str = "SELECT serial, revoked_at FROM identity_certificates
    WHERE revoked_at IS NOT NULL AND not_after > $1 ORDER BY number";
const HAS_TO_PRUNE: &str = "SELECT
    EXISTS (SELECT FROM certificates
            WHERE status = 'revoked' AND confirmed_at IS NULL AND not_after <= $1)
    OR EXISTS (SELECT FROM certificates
               WHERE status IN ('superseded', 'revoked') AND not_after <= $2)
    OR EXISTS (SELECT FROM shared_keys WHERE NOT is_used AND generation = 1
               AND plain_srk_generation = 0 AND offered_at <= $3)
    OR coalesce((SELECT min(id) FROM audit_changes)
                <= (SELECT max(id) FROM audit_changes) - $4, false)
    OR coalesce((SELECT min(id) FROM audit_others)
                <= (SELECT max(id) FROM audit_others) - $4, false)
    OR EXISTS (SELECT FROM audit_changes
               WHERE id = (SELECT min(id) FROM audit_changes) AND time_us <= $5)
    OR EXISTS (SELECT FROM audit_others
               WHERE id = (SELECT min(id) FROM audit_others) AND time_us <= $5)
    OR EXISTS (SELECT FROM audit_acts
               WHERE id = (SELECT min(id) FROM audit_acts) AND time_us <= $6)";
const PRUNE_NEVER_CONFIRMED: &str = "DELETE FROM certificates WHERE serial IN (
    SELECT serial FROM certificates
    WHERE status = 'revoked' AND confirmed_at IS NULL AND not_after <= $1 LIMIT $2)";
const PRUNE_ENDED: &str = "DELETE FROM certificates WHERE serial IN (
    SELECT serial FROM certificates
    WHERE status IN ('superseded', 'revoked') AND not_after <= $1 LIMIT $2)";
const PRUNE_OFFERS: &str = "DELETE FROM shared_keys WHERE ek_id IN (
    SELECT ek_id FROM shared_keys WHERE NOT is_used AND generation = 1
    AND plain_srk_generation = 0 AND offered_at <= $1 LIMIT $2)";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::session::{assert_indexed, plan_of};

    #[test]
    fn every_row_is_found_by_an_index() {
        assert_indexed(&[
            HAS_OVERDUE,
            REVOKE_OVERDUE,
            HAS_TO_PRUNE,
            PRUNE_NEVER_CONFIRMED,
            PRUNE_ENDED,
            PRUNE_OFFERS,
        ]);
        assert!(plan_of(REVOKED).contains("using certificates_ended"));
    }
}
