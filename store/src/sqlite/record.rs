//! The hot path: what is on record about an EK, and acts that were planned by it.

use assay_wire::Scope;
use rusqlite::Connection;

use super::certificates::{active, waiting};
use super::connection::{Sqlite, Transaction};
use super::records::{self, IdInQuestion as Borrowed};
use crate::act::{Entry, Recorded, Write};
use crate::error::StoreError;
use crate::snapshot::{IdInQuestion, Question, Snapshot};

impl Sqlite {
    pub(super) fn snapshot(&self, question: &Question) -> Result<Snapshot, StoreError> {
        // Of one moment, and with one lock for all of it.
        let moment = self.connection.unchecked_transaction()?;
        snapshot(&moment, question)
    }

    pub(super) fn record(
        &mut self,
        scope: &Scope,
        entries: &[Entry],
    ) -> Result<Vec<Recorded>, StoreError> {
        self.transaction(|transaction| {
            transaction.check_scope(scope)?;
            entries.iter().map(|entry| transaction.record(entry)).collect()
        })
    }
}

impl Transaction<'_> {
    fn record(&self, entry: &Entry) -> Result<Recorded, StoreError> {
        if let Some((basis, write)) = entry.act.write()? {
            if snapshot(self.0, &basis.question)? != basis.snapshot {
                return Ok(Recorded::Stale);
            }
            if let Write::Activation(activation) = &write
                && !self.waits(activation.serial)?
            {
                return Ok(Recorded::Stale);
            }
            self.write(&write, basis.snapshot.active.is_some())?;
        }
        entry.audit.as_ref().map_or(Ok(()), |audit| self.audit(audit))?;
        Ok(Recorded::Done)
    }

    fn write(&self, write: &Write<'_>, supersedes: bool) -> Result<(), StoreError> {
        if let Some((device, ek, assurance, now)) = write.registration() {
            self.register(device, ek, assurance, now)?;
        }
        match write {
            Write::Certificate(new) => {
                if supersedes {
                    self.supersede(new.ek_id, new.issued_at)?;
                }
                self.insert_certificate(new)
            }
            Write::Waiting(new) => self.insert_certificate(new),
            Write::Activation(activation) => {
                let at = activation.confirmed_at;
                if supersedes {
                    self.supersede(activation.ek_id, at)?;
                }
                let waited = self.put_into_force(activation.serial, activation.der, at)?;
                if waited {
                    return Ok(());
                }
                Err(StoreError::Inconsistent("the certificate does not wait"))
            }
            Write::Offer(offer) => self.offer(offer),
            Write::Use(new) => self.take_into_use(new.ek_id, new.generation, new.used_at),
        }
    }
}

fn snapshot(connection: &Connection, question: &Question) -> Result<Snapshot, StoreError> {
    let about = match &question.device {
        IdInQuestion::Is(device) => Borrowed::Is(device),
        IdInQuestion::Due { derived, other_eks } => Borrowed::Due { derived, other_eks },
    };
    let waiting = match question.ik_id {
        Some(ik_id) if question.waiting => waiting(connection, &question.ek, &ik_id)?,
        _ => Vec::new(),
    };
    Ok(Snapshot {
        records: records::records(connection, &question.ek, about, question.now)?,
        active: active(connection, question)?,
        waiting,
    })
}
