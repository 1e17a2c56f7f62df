//! The hot path: reads what is on record about an EK, and records acts that were planned on it.

use assay_wire::Scope;
use rusqlite::Connection;

use super::certificates::waiting;
use super::connection::{Sqlite, Transaction};
use super::groups::groups_version;
use super::pending::waits_since;
use super::records::records;
use super::trust::anchors_version;
use crate::act::{
    Act, Entry, IdInQuestion, IkInQuestion, Question, Recorded, Snapshot, WaitingInQuestion,
};
use crate::audit::{AuditRow, Effect, Waited};
use crate::error::StoreError;
use crate::writes::{Planned, Write, active_ik, is_same};

impl Sqlite {
    /// See [`Store::snapshot`](crate::contract::Store::snapshot).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn snapshot(&self, question: &Question) -> Result<Snapshot, StoreError> {
        // In one transaction, all of it is of one moment and needs one lock.
        let moment = self.connection.unchecked_transaction()?;
        snapshot(&moment, question)
    }

    /// See [`Store::record`](crate::contract::Store::record).
    ///
    /// # Errors
    /// The file cannot be written, or devices know the CA by another scope; nothing is recorded.
    pub fn record(
        &mut self,
        scope: &Scope,
        entries: &[Entry],
    ) -> Result<Vec<Recorded>, StoreError> {
        self.transaction(|transaction| {
            transaction.check_scope(scope)?;
            let mut audit = Vec::new();
            let recorded = entries.iter().map(|entry| transaction.enter(entry, &mut audit));
            let recorded = recorded.collect::<Result<_, _>>()?;
            transaction.append(audit)?;
            Ok(recorded)
        })
    }
}

impl Transaction<'_> {
    /// Records an entry, except its audit.
    fn enter(&self, entry: &Entry, audit: &mut Vec<AuditRow>) -> Result<Recorded, StoreError> {
        let mut effect = Effect::default();
        if let Some(Planned { basis, write, .. }) = entry.planned()? {
            if let Some(basis) = basis
                && !is_same(&snapshot(self.0, &basis.question)?, &basis.snapshot)
            {
                return Ok(Recorded::Stale);
            }
            let waited = match &write {
                Write::Activation(activation) => self.waits(&activation.serial)?,
                _ => None,
            };
            if matches!(&write, Write::Activation(_)) && waited.is_none() {
                return Ok(Recorded::Stale);
            }
            effect = self.write(&write, waited)?;
        }
        match &entry.act {
            Act::Ask(waiting) if self.ask(waiting)? => effect.event = Some("pending"),
            Act::Learn(ek, facts) => self.learn(ek, facts)?,
            _ => {}
        }
        audit.extend(entry.audit.as_ref().map(|entry| AuditRow::of_decision(entry, effect)));
        Ok(Recorded::Done)
    }

    fn write(&self, write: &Write<'_>, waited: Option<Waited>) -> Result<Effect, StoreError> {
        let is_new = match write.device() {
            Some(device) => self.register(&device)?,
            None => false,
        };
        let replaced = match write.in_force() {
            Some((_, at)) => self.supersede(&write.ek_id(), at)?,
            None => None,
        };
        match write {
            Write::Renewal(new) => self.end_waiting(new)?,
            Write::Rekey(new) => self.end_other_waiting(new)?,
            _ => {}
        }
        match write {
            Write::Certificate(new)
            | Write::Waiting(new)
            | Write::Renewal(new)
            | Write::Rekey(new) => {
                self.insert_certificate(new)?;
            }
            Write::Activation(new) => {
                self.put_into_force(&new.serial, new.der, new.confirmed_at)?;
            }
            Write::Offer(offer) => self.offer(offer)?,
            Write::Use(new) => self.take_into_use(new)?,
        }
        if let Some((serial, at)) = write.in_force() {
            self.end_outdated(&write.ek_id(), serial, at)?;
        }
        Ok(write.effect(is_new, waited.as_ref(), replaced))
    }
}

fn snapshot(connection: &Connection, question: &Question) -> Result<Snapshot, StoreError> {
    let (records, active) = records(connection, question)?;
    let ik_id = match question.ik {
        IkInQuestion::None => None,
        IkInQuestion::Is(ik_id) => Some(ik_id),
        IkInQuestion::OfActive => active_ik(&records),
    };
    let waiting = match ik_id {
        _ if question.waiting == WaitingInQuestion::OfEk => {
            waiting(connection, &question.ek, None)?
        }
        Some(ik_id) if question.waiting == WaitingInQuestion::OfIk => {
            waiting(connection, &question.ek, Some(&ik_id))?
        }
        _ => Vec::new(),
    };
    let (anchors, groups, waits_since) = match question.device {
        IdInQuestion::Due { .. } => (
            Some(anchors_version(connection)?),
            Some(groups_version(connection)?),
            waits_since(connection, &question.ek)?,
        ),
        IdInQuestion::Is(_) => (None, None, None),
    };
    Ok(Snapshot { records, active, waiting, anchors, groups, waits_since })
}
