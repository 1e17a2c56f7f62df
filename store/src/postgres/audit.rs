//! The audit: the record of every decision, and of what operators do.

use std::ops::ControlFlow;

use assay_wire::EkId;
use fallible_iterator::FallibleIterator;
use postgres::Row;

use super::columns::{array, optional_ek_id, optional_small, parsed, small};
use super::connection::{Postgres, apart};
use super::session::Session;
use crate::audit::{Actor, AuditEntry, AuditRow, Deed, Effect};
use crate::chain::{Chain, Heads, Link, Walked};
use crate::error::StoreError;
use crate::retention::{AUDIT_BATCH, AuditBounds};

/// Appends to the audit, which pruning keeps in bounds.
pub(super) fn add_to_audit(
    session: &mut Session,
    entries: &[&AuditEntry],
) -> Result<(), StoreError> {
    let row = |entry: &&AuditEntry| AuditRow::of_decision(entry, Effect::default());
    append(session, entries.iter().map(row).collect())
}

/// Puts on record what an operator did.
fn note(session: &mut Session, actor: &Actor, deeds: Vec<Deed>) -> Result<(), StoreError> {
    append(session, deeds.into_iter().map(|deed| AuditRow::of_deed(deed, actor)).collect())
}

/// Gives entries their places in the chains, in order, and writes them.
pub(super) fn append(session: &mut Session, mut rows: Vec<AuditRow>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let found = session.query(HEADS, &[])?;
    let found = found.iter().map(|row| Ok((link(row)?, row.get(3))));
    let mut heads = Heads::of(found.collect::<Result<Vec<_>, StoreError>>()?);
    rows.iter_mut().for_each(|row| heads.append(row));

    let chains: Vec<_> = rows.iter().map(|row| row.chain.name()).collect();
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    let numbers: Vec<_> = rows.iter().map(|row| row.number).collect();
    let times: Vec<_> = rows.iter().map(|row| row.time_us).collect();
    let clients: Vec<_> = rows.iter().map(|row| &*row.client).collect();
    let actions: Vec<_> = rows.iter().map(|row| &*row.action).collect();
    let ek = |row: &AuditRow| row.ek_id.map(|ek: EkId| ek.as_bytes().to_vec());
    let eks: Vec<_> = rows.iter().map(ek).collect();
    let devices: Vec<_> =
        rows.iter().map(|row| row.proven.as_deref().or(row.due.as_deref())).collect();
    let proven: Vec<_> = rows.iter().map(|row| row.proven.is_some()).collect();
    let codes: Vec<_> = rows.iter().map(|row| row.code.map(i64::from)).collect();
    let details: Vec<_> = rows.iter().map(|row| row.detail.as_deref()).collect();
    let durations: Vec<_> = rows.iter().map(|row| i64::from(row.duration_us)).collect();
    let serials: Vec<_> = rows.iter().map(|row| row.serial.as_deref()).collect();
    let replaced: Vec<_> = rows.iter().map(|row| row.replaced.as_deref()).collect();
    let events: Vec<_> = rows.iter().map(|row| row.event.as_deref()).collect();
    let hashes: Vec<_> = rows.iter().map(|row| row.hash.map(|hash| hash.to_vec())).collect();
    session.execute(
        ADD,
        &[
            &chains, &ids, &numbers, &times, &clients, &actions, &eks, &devices, &proven, &codes,
            &details, &durations, &serials, &replaced, &events, &hashes,
        ],
    )?;
    Ok(())
}

/// Forgets a batch of the oldest entries of each chain, if they are out of bounds. Returns how many
/// entries of each it forgot.
pub(super) fn prune_audit(
    session: &mut Session,
    bounds: &AuditBounds,
) -> Result<[u64; 3], StoreError> {
    let mut forgotten = [0; 3];
    let told = session.query_one("SELECT acts, changes FROM event_cursor", &[])?;
    for (chain, forgotten) in Chain::ALL.into_iter().zip(&mut forgotten) {
        let told: i64 = match chain {
            Chain::Acts => told.get(0),
            Chain::Changes => told.get(1),
            // Strangers must not fill the disk while nobody tells anything.
            Chain::Others => i64::MAX,
        };
        let rows = session.query(oldest_of(chain), &[&AUDIT_BATCH])?;
        let is_passed = |row: &&Row| {
            row.get::<_, i64>(0) <= told
                && bounds.are_passed(chain, row.get(0), row.get(4), row.get(1))
        };
        // A chain is cut at its beginning, and nowhere else.
        let passed: Vec<_> = rows.iter().take_while(is_passed).collect();
        let Some(last) = passed.last() else { continue };
        let (id, number): (i64, i64) = (last.get(0), last.get(3));
        *forgotten = session.execute(forget_of(chain), &[&id])?;
        // Entries from before there were chains are no part of one.
        if let Some(hash) = last.get::<_, Option<&[u8]>>(2) {
            session.execute(CUT, &[&chain.name(), &id, &number, &hash])?;
        }
    }
    Ok(forgotten)
}

impl Postgres {
    /// Runs `work` in one transaction that writes, and puts on record in it what an operator did,
    /// if this is an operator's connection.
    pub(super) fn act<T: Send>(
        &mut self,
        mut work: impl FnMut(&mut Session, &mut Vec<Deed>) -> Result<T, StoreError> + Send,
    ) -> Result<T, StoreError> {
        let actor = self.actor.clone();
        self.write(|session| {
            let mut deeds = Vec::new();
            let value = work(session, &mut deeds)?;
            if let Some(actor) = &actor {
                note(session, actor, deeds)?;
            }
            Ok(value)
        })
    }

    pub(super) fn newest_entries(&mut self, count: u32) -> Result<Vec<AuditRow>, StoreError> {
        let count = i64::from(count);
        self.read_together(|session| {
            let mut rows = session
                .query(NEWEST, &[&count])?
                .iter()
                .map(audit_row)
                .collect::<Result<Vec<_>, _>>()?;
            rows.reverse();
            Ok(rows)
        })
    }

    /// This is not tried again after an error: `each` has heard of some entries.
    pub(super) fn walk(
        &mut self,
        each: &mut (dyn FnMut(Walked) -> ControlFlow<()> + Send),
    ) -> Result<(), StoreError> {
        apart(|| {
            let session = self.session()?;
            session.read_together(|session| {
                for row in session.query("SELECT chain, id, hash FROM audit_cuts", &[])? {
                    if each(Walked::Cut(link(&row)?)).is_break() {
                        return Ok(());
                    }
                }
                let mut rows = session.client.query_raw(WALK, std::iter::empty::<&str>())?;
                while let Some(row) = rows.next()? {
                    if each(Walked::Row(Box::new(audit_row(&row)?))).is_break() {
                        break;
                    }
                }
                Ok(())
            })
        })
    }
}

pub(super) fn audit_row(row: &Row) -> Result<AuditRow, StoreError> {
    let (device_id, is_proven): (Option<String>, bool) = (row.get(7), row.get(8));
    let (proven, due) = if is_proven { (device_id, None) } else { (None, device_id) };
    Ok(AuditRow {
        chain: parsed(row, 0)?,
        id: row.get(1),
        number: row.get(2),
        time_us: row.get(3),
        client: row.get(4),
        action: row.get(5),
        ek_id: optional_ek_id(row, 6)?,
        proven,
        due,
        code: optional_small(row, 9)?,
        detail: row.get(10),
        duration_us: small(row, 11)?,
        serial: row.get(12),
        replaced: row.get(13),
        event: row.get(14),
        hash: row.get::<_, Option<&[u8]>>(15).map(array).transpose()?,
    })
}

fn link(row: &Row) -> Result<Link, StoreError> {
    let hash = row.get::<_, Option<&[u8]>>(2).map(array).transpose()?;
    Ok(Link { chain: parsed(row, 0)?, id: row.get(1), hash: hash.unwrap_or_default() })
}

fn oldest_of(chain: Chain) -> &'static str {
    match chain {
        Chain::Acts => OLDEST_ACTS,
        Chain::Changes => OLDEST_CHANGES,
        Chain::Others => OLDEST_OTHERS,
    }
}

fn forget_of(chain: Chain) -> &'static str {
    match chain {
        Chain::Acts => "DELETE FROM audit_acts WHERE id <= $1",
        Chain::Changes => "DELETE FROM audit_changes WHERE id <= $1",
        Chain::Others => "DELETE FROM audit_others WHERE id <= $1",
    }
}

const ADD: &str = "WITH new AS (
        SELECT * FROM unnest($1::text[], $2::int8[], $3::int8[], $4::int8[], $5::text[],
                             $6::text[], $7::bytea[], $8::text[], $9::bool[], $10::int8[],
                             $11::text[], $12::int8[], $13::bytea[], $14::bytea[], $15::text[],
                             $16::bytea[])
        n(chain, id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail,
          duration_us, serial, replaced, event, hash)),
    acts AS (INSERT INTO audit_acts
        (id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail,
         duration_us, serial, replaced, event, hash)
        SELECT id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail,
               duration_us, serial, replaced, event, hash FROM new WHERE chain = 'acts'),
    changes AS (INSERT INTO audit_changes
        (id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail,
         duration_us, serial, replaced, event, hash)
        SELECT id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail,
               duration_us, serial, replaced, event, hash FROM new WHERE chain = 'changes')
    INSERT INTO audit_others
        (id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail,
         duration_us, serial, replaced, event, hash)
        SELECT id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail,
               duration_us, serial, replaced, event, hash FROM new WHERE chain = 'others'";
/// Each part reads one row, at the end of an index.
const HEADS: &str = "SELECT 'acts', id, hash, coalesce(number, 0) FROM audit_acts
        WHERE id = (SELECT max(id) FROM audit_acts)
    UNION ALL
    SELECT 'changes', id, hash, coalesce(number, 0) FROM audit_changes
        WHERE id = (SELECT max(id) FROM audit_changes)
    UNION ALL
    SELECT 'others', id, hash, coalesce(number, 0) FROM audit_others
        WHERE id = (SELECT max(id) FROM audit_others)
    UNION ALL
    SELECT chain, id, hash, number FROM audit_cuts
        WHERE chain = ANY('{acts,changes,others}')";
const OLDEST_ACTS: &str = "SELECT id, time_us, hash, coalesce(number, 0),
        (SELECT max(id) FROM audit_acts) FROM audit_acts ORDER BY id LIMIT $1";
const OLDEST_CHANGES: &str = "SELECT id, time_us, hash, coalesce(number, 0),
        (SELECT max(id) FROM audit_changes) FROM audit_changes ORDER BY id LIMIT $1";
const OLDEST_OTHERS: &str = "SELECT id, time_us, hash, coalesce(number, 0),
        (SELECT max(id) FROM audit_others) FROM audit_others ORDER BY id LIMIT $1";
const CUT: &str = "INSERT INTO audit_cuts (chain, id, number, hash) VALUES ($1, $2, $3, $4)
    ON CONFLICT (chain) DO UPDATE SET id = $2, number = $3, hash = $4";
const NEWEST: &str = "SELECT chain, id, number, time_us, client, action, ek_id, device_id,
        is_proven, code, detail, duration_us, serial, replaced, event, hash
    FROM ((SELECT 'acts' AS chain, id, coalesce(number, 0) AS number, time_us, client, action,
                  ek_id, device_id, is_proven, code, detail, duration_us, serial, replaced, event,
                  hash FROM audit_acts ORDER BY id DESC LIMIT $1::int8)
          UNION ALL
          (SELECT 'changes', id, coalesce(number, 0), time_us, client, action,
                  ek_id, device_id, is_proven, code, detail, duration_us, serial, replaced, event,
                  hash FROM audit_changes ORDER BY id DESC LIMIT $1::int8)
          UNION ALL
          (SELECT 'others', id, coalesce(number, 0), time_us, client, action,
                  ek_id, device_id, is_proven, code, detail, duration_us, serial, replaced, event,
                  hash FROM audit_others ORDER BY id DESC LIMIT $1::int8)) all_chains
    ORDER BY time_us DESC, number DESC, chain, id DESC LIMIT $1::int8";
const WALK: &str = "SELECT 'acts', id, number, time_us, client, action, ek_id, device_id,
        is_proven, code, detail, duration_us, serial, replaced, event, hash
    FROM audit_acts WHERE number IS NOT NULL
    UNION ALL
    SELECT 'changes', id, number, time_us, client, action, ek_id, device_id,
        is_proven, code, detail, duration_us, serial, replaced, event, hash
    FROM audit_changes WHERE number IS NOT NULL
    UNION ALL
    SELECT 'others', id, number, time_us, client, action, ek_id, device_id,
        is_proven, code, detail, duration_us, serial, replaced, event, hash
    FROM audit_others WHERE number IS NOT NULL
    ORDER BY number";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::session::assert_indexed;

    #[test]
    fn every_row_is_found_by_an_index() {
        assert_indexed(&[HEADS]);
    }
}
