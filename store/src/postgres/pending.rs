//! EKs about which an operator is asked.

use std::collections::{HashMap, HashSet};

use assay_wire::{DeviceId, EkId};
use postgres::Row;
use time::OffsetDateTime;

use super::columns::{device_id, ek_facts, ek_id, parsed, time};
use super::connection::Postgres;
use super::enrolments::DISABLE;
use super::session::Session;
use crate::deeds;
use crate::error::StoreError;
use crate::facts;
use crate::pending::{MAX_PENDING, PendingRow, Waiting};

impl Postgres {
    pub(super) fn all_pending(&mut self) -> Result<Vec<PendingRow>, StoreError> {
        self.read_together(|session| session.query(ALL, &[])?.iter().map(row_of).collect())
    }

    pub(super) fn turn_eks_away(
        &mut self,
        eks: &[EkId],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let bytes: Vec<_> = eks.iter().map(|ek| &ek.as_bytes()[..]).collect();
        let times = vec![now.unix_timestamp(); eks.len()];
        self.act(|session, done| {
            session.execute(DISABLE, &[&bytes, &times])?;
            done.extend(deeds::turned_away(eks));
            forget(session, eks)
        })
    }
}

/// Notes what was asked, of each EK the last, but the device id that was asked for first. Those that
/// were not heard of for longest make way. Returns those that are new.
pub(super) fn ask(
    session: &mut Session,
    waiting: &[&Waiting],
) -> Result<HashSet<EkId>, StoreError> {
    if waiting.is_empty() {
        return Ok(HashSet::new());
    }
    let last: HashMap<_, _> =
        waiting.iter().map(|waiting| (&waiting.ek_id.as_bytes()[..], *waiting)).collect();
    let first: HashMap<_, _> =
        waiting.iter().rev().map(|waiting| (&waiting.ek_id.as_bytes()[..], *waiting)).collect();
    let (mut eks, mut known, mut flows) = (vec![], vec![], vec![]);
    let (mut devices, mut times) = (vec![], vec![]);
    for (ek, waiting) in last {
        eks.push(ek);
        known.push(facts::json(&waiting.facts));
        flows.push(waiting.flow.to_string());
        devices.push(first[ek].device_id.as_ref().map(DeviceId::as_str));
        times.push(waiting.asked_at.unix_timestamp());
    }
    let rows = session.query(ASK, &[&eks, &known, &flows, &devices, &times])?;
    session.execute(MAKE_WAY, &[&MAX_PENDING])?;
    rows.iter().filter(|row| row.get(1)).map(|row| ek_id(row, 0)).collect()
}

/// Nobody is asked about these EKs any more.
pub(super) fn forget(session: &mut Session, eks: &[EkId]) -> Result<(), StoreError> {
    let eks: Vec<_> = eks.iter().map(|ek| &ek.as_bytes()[..]).collect();
    session.execute("DELETE FROM pending WHERE ek_id = ANY($1::bytea[])", &[&eks])?;
    Ok(())
}

fn row_of(row: &Row) -> Result<PendingRow, StoreError> {
    Ok(PendingRow {
        waiting: Waiting {
            ek_id: ek_id(row, 0)?,
            facts: ek_facts(row, 1)?.unwrap_or_default(),
            flow: parsed(row, 2)?,
            device_id: device_id(row, 3)?,
            asked_at: time(row.get(5))?,
        },
        first_seen: row.get(4),
    })
}

const ALL: &str = "SELECT ek_id, facts, flow, device_id, first_seen, last_seen
    FROM pending p
    WHERE NOT EXISTS (SELECT FROM enrolments x WHERE x.ek_id = p.ek_id)
      AND NOT EXISTS (SELECT FROM devices x WHERE x.ek_id = p.ek_id)
      AND NOT EXISTS (SELECT FROM disabled_eks x WHERE x.ek_id = p.ek_id)
    ORDER BY first_seen, ek_id";
/// A row that was there is locked before it is changed, so it has an `xmax`.
const ASK: &str = "INSERT INTO pending (ek_id, facts, flow, device_id, first_seen, last_seen)
    SELECT ek, facts, flow, device, at, at
    FROM unnest($1::bytea[], $2::text[], $3::text[], $4::text[], $5::int8[])
         n(ek, facts, flow, device, at)
    ON CONFLICT (ek_id) DO UPDATE SET facts = excluded.facts, flow = excluded.flow,
        last_seen = excluded.last_seen
    RETURNING ek_id, xmax = 0";
const MAKE_WAY: &str = "DELETE FROM pending WHERE ek_id IN (
        SELECT ek_id FROM pending ORDER BY last_seen, first_seen
        LIMIT greatest(0, (SELECT count(*) FROM pending) - $1::int8))";
