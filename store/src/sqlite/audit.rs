//! The audit: the record of every decision, and of what operators do.

use std::ops::ControlFlow;

use assay_wire::EkId;
use rusqlite::{Row, params};

use super::connection::{Sqlite, Transaction};
use crate::audit::{Actor, AuditEntry, AuditRow, Deed, Effect};
use crate::chain::{Chain, Heads, Link, Walked};
use crate::error::StoreError;
use crate::retention::{AUDIT_BATCH, AuditBounds};

impl Transaction<'_> {
    /// Appends to the audit, which [`prune`](crate::contract::Store::prune) keeps in bounds.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn audit(&self, entries: &[&AuditEntry]) -> Result<(), StoreError> {
        let row = |entry: &&AuditEntry| AuditRow::of_decision(entry, Effect::default());
        self.append(entries.iter().map(row).collect())
    }

    /// Puts on record what an operator did.
    pub(super) fn note(&self, actor: &Actor, deeds: Vec<Deed>) -> Result<(), StoreError> {
        self.append(deeds.into_iter().map(|deed| AuditRow::of_deed(deed, actor)).collect())
    }

    /// Gives entries their places in the chains, in order, and writes them.
    pub(super) fn append(&self, rows: Vec<AuditRow>) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut statement = self.0.prepare_cached(HEADS)?;
        let found = statement.query_map([], |row| Ok((link(row)?, row.get(3)?)))?;
        let mut heads = Heads::of(found.collect::<Result<Vec<_>, _>>()?);
        for mut row in rows {
            heads.append(&mut row);
            self.0.prepare_cached(add_to(row.chain))?.execute(params![
                row.id,
                row.number,
                row.time_us,
                row.client,
                row.action,
                row.ek_id.as_ref().map(EkId::as_bytes),
                row.proven.as_ref().or(row.due.as_ref()),
                row.proven.is_some(),
                row.code,
                row.detail,
                row.duration_us,
                row.serial,
                row.replaced,
                row.event,
                row.hash,
            ])?;
        }
        Ok(())
    }

    /// Forgets a batch of the oldest entries of each chain, if they are out of bounds. Returns how
    /// many entries of each it forgot.
    pub(super) fn prune_audit(&self, bounds: &AuditBounds) -> Result<[usize; 3], StoreError> {
        let mut forgotten = [0; 3];
        let told: [i64; 2] = self
            .0
            .prepare_cached("SELECT acts, changes FROM event_cursor")?
            .query_row([], |row| Ok([row.get(0)?, row.get(1)?]))?;
        for (chain, forgotten) in Chain::ALL.into_iter().zip(&mut forgotten) {
            let told = match chain {
                Chain::Acts => told[0],
                Chain::Changes => told[1],
                // Strangers must not fill the disk while nobody tells anything.
                Chain::Others => i64::MAX,
            };
            let mut statement = self.0.prepare_cached(oldest_of(chain))?;
            let mut rows = statement.query([AUDIT_BATCH])?;
            let mut cut = None;
            // A chain is cut at its beginning, and nowhere else.
            while let Some(row) = rows.next()? {
                let id = row.get(0)?;
                if id > told || !bounds.are_passed(chain, id, row.get(4)?, row.get(1)?) {
                    break;
                }
                let hash: Option<[u8; 32]> = row.get(2)?;
                cut = Some((row.get::<_, i64>(0)?, row.get::<_, i64>(3)?, hash));
                *forgotten += 1;
            }
            drop(rows);
            if let Some((id, number, hash)) = cut {
                self.0.prepare_cached(forget_of(chain))?.execute([id])?;
                // Entries from before there were chains are no part of one.
                if let Some(hash) = hash {
                    self.0.prepare_cached(CUT)?.execute(params![chain.name(), id, number, hash])?;
                }
            }
        }
        Ok(forgotten)
    }
}

impl Sqlite {
    /// Runs `work` in one transaction that writes, and puts on record in it what an operator did,
    /// if this is an operator's connection.
    pub(super) fn act<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>, &mut Vec<Deed>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let actor = self.actor.clone();
        self.transaction(|transaction| {
            let mut deeds = Vec::new();
            let value = work(transaction, &mut deeds)?;
            if let Some(actor) = actor {
                transaction.note(&actor, deeds)?;
            }
            Ok(value)
        })
    }

    /// The newest `count` entries, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn audit(&self, count: u32) -> Result<Vec<AuditRow>, StoreError> {
        let mut rows = self.list(NEWEST, &[&count], audit_row)?;
        rows.reverse();
        Ok(rows)
    }

    /// See [`Store::walk_audit`](crate::contract::Store::walk_audit).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn walk_audit(
        &self,
        each: &mut dyn FnMut(Walked) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        // All of it is of one moment, whatever is appended or forgotten meanwhile.
        let moment = self.connection.unchecked_transaction()?;
        let mut statement = moment.prepare("SELECT chain, id, hash FROM audit_cuts")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if each(Walked::Cut(link(row)?)).is_break() {
                return Ok(());
            }
        }
        let mut statement = moment.prepare(WALK)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if each(Walked::Row(Box::new(audit_row(row)?))).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

pub(super) fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    let (device_id, is_proven): (Option<String>, bool) = (row.get(7)?, row.get(8)?);
    let (proven, due) = if is_proven { (device_id, None) } else { (None, device_id) };
    Ok(AuditRow {
        chain: super::columns::parsed(row, 0)?,
        id: row.get(1)?,
        number: row.get(2)?,
        time_us: row.get(3)?,
        client: row.get(4)?,
        action: row.get(5)?,
        ek_id: row.get::<_, Option<[u8; EkId::LEN]>>(6)?.map(EkId::from),
        proven,
        due,
        code: row.get(9)?,
        detail: row.get(10)?,
        duration_us: row.get(11)?,
        serial: row.get(12)?,
        replaced: row.get(13)?,
        event: row.get(14)?,
        hash: row.get(15)?,
    })
}

fn link(row: &Row<'_>) -> rusqlite::Result<Link> {
    let hash: Option<[u8; 32]> = row.get(2)?;
    let chain = super::columns::parsed(row, 0)?;
    Ok(Link { chain, id: row.get(1)?, hash: hash.unwrap_or_default() })
}

/// Text with the name of each chain's table in it.
macro_rules! of_chains {
    ($name:ident, $before:literal, $after:literal) => {
        fn $name(chain: Chain) -> &'static str {
            match chain {
                Chain::Acts => concat!($before, "audit_acts", $after),
                Chain::Changes => concat!($before, "audit_changes", $after),
                Chain::Others => concat!($before, "audit_others", $after),
            }
        }
    };
}

of_chains!(
    add_to,
    "INSERT INTO ",
    " (id, number, time_us, client, action, ek_id, device_id, is_proven, code, detail, \
     duration_us, serial, replaced, event, hash)
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)"
);
of_chains!(
    oldest_of,
    "WITH entries AS (SELECT * FROM ",
    ") SELECT id, time_us, hash, coalesce(number, 0), (SELECT max(id) FROM entries)
     FROM entries ORDER BY id LIMIT ?1"
);
/// The entries of a chain after one.
pub(super) fn after(chain: Chain) -> &'static str {
    match chain {
        Chain::Acts => {
            "SELECT 'acts', id, number, time_us, client, action, ek_id, device_id, is_proven, code, \
             detail, duration_us, serial, replaced, event, hash
             FROM audit_acts WHERE id > ?1 ORDER BY id LIMIT ?2"
        }
        Chain::Changes => {
            "SELECT 'changes', id, number, time_us, client, action, ek_id, device_id, is_proven, \
             code, detail, duration_us, serial, replaced, event, hash
             FROM audit_changes WHERE id > ?1 ORDER BY id LIMIT ?2"
        }
        Chain::Others => {
            "SELECT 'others', id, number, time_us, client, action, ek_id, device_id, is_proven, \
             code, detail, duration_us, serial, replaced, event, hash
             FROM audit_others WHERE id > ?1 ORDER BY id LIMIT ?2"
        }
    }
}

of_chains!(forget_of, "DELETE FROM ", " WHERE id <= ?1");

const HEADS: &str = "SELECT chain, id, hash, coalesce(number, 0) FROM (
        SELECT * FROM (SELECT 'acts' AS chain, id, hash, number FROM audit_acts
                       ORDER BY id DESC LIMIT 1)
        UNION ALL
        SELECT * FROM (SELECT 'changes', id, hash, number FROM audit_changes
                       ORDER BY id DESC LIMIT 1)
        UNION ALL
        SELECT * FROM (SELECT 'others', id, hash, number FROM audit_others
                       ORDER BY id DESC LIMIT 1)
        UNION ALL
        SELECT chain, id, hash, number FROM audit_cuts)";
const CUT: &str = "INSERT INTO audit_cuts (chain, id, number, hash) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (chain) DO UPDATE SET id = ?2, number = ?3, hash = ?4";
const NEWEST: &str = "SELECT * FROM (
        SELECT * FROM (SELECT 'acts' AS chain, id, coalesce(number, 0) AS number, time_us, client,
            action, ek_id, device_id, is_proven, code, detail, duration_us, serial, replaced,
            event, hash FROM audit_acts ORDER BY id DESC LIMIT ?1)
        UNION ALL
        SELECT * FROM (SELECT 'changes', id, coalesce(number, 0), time_us, client,
            action, ek_id, device_id, is_proven, code, detail, duration_us, serial, replaced,
            event, hash FROM audit_changes ORDER BY id DESC LIMIT ?1)
        UNION ALL
        SELECT * FROM (SELECT 'others', id, coalesce(number, 0), time_us, client,
            action, ek_id, device_id, is_proven, code, detail, duration_us, serial, replaced,
            event, hash FROM audit_others ORDER BY id DESC LIMIT ?1))
    ORDER BY time_us DESC, number DESC, chain, id DESC LIMIT ?1";
/// The numbers of all chains together are in order, and so are those of each.
const WALK: &str = "SELECT 'acts' AS chain, id, number, time_us, client, action, ek_id, device_id,
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
