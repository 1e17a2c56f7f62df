//! The hot path: snapshots to plan by, and the record of what was planned.

use assay_ca_core::{
    ActiveCertificate, CertificateOnRecord, EncryptedCertificate, Enrolment, QUOTA_PERIOD, Records,
    Registration, SharedKeyOnRecord, Unconfirmed, due_device_id,
};
use assay_wire::{EkId, Scope};
use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::{
    Act, Entry, IdInQuestion, Question, Recorded, Snapshot, Store, StoreError, Transaction, ek_id,
    holder, optional_device_id, parsed, time,
};

impl Store {
    /// What is on record about an EK and a device id.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn snapshot(&self, question: &Question) -> Result<Snapshot, StoreError> {
        // Of one moment, and with one lock for all of it.
        let moment = self.connection.unchecked_transaction()?;
        snapshot(&moment, question)
    }

    /// Records each entry whole or not at all, all that are not stale in one transaction, which is
    /// durable when this returns.
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
            entries.iter().map(|entry| transaction.enter(entry)).collect()
        })
    }
}

impl Transaction<'_> {
    fn enter(&self, entry: &Entry) -> Result<Recorded, StoreError> {
        if let Some(basis) = &entry.basis
            && snapshot(self.0, &basis.question)? != basis.snapshot
        {
            return Ok(Recorded::Stale);
        }
        match &entry.act {
            Act::None => {}
            Act::Certify(certificate) => self.certify(certificate)?,
            Act::Seal(certificate) => self.seal(certificate)?,
            Act::Activate(confirmed) => {
                if !self.activate(confirmed)? {
                    return Ok(Recorded::Stale);
                }
            }
            Act::Offer(offer) => self.offer_shared_key(offer)?,
            Act::Accept(first_use) => self.accept_shared_key(first_use)?,
        }
        if let Some(audit) = &entry.audit {
            self.audit(audit)?;
        }
        Ok(Recorded::Done)
    }
}

pub(super) fn snapshot(
    connection: &Connection,
    question: &Question,
) -> Result<Snapshot, StoreError> {
    let Question { ek, device, ik_id, waiting, now } = question;
    let (records, active) = records(connection, ek, device, ik_id.as_ref(), *now)?;
    let waiting = match ik_id.as_ref().filter(|_| *waiting) {
        Some(ik_id) => waiting_certificates(connection, ek, ik_id)?,
        None => Vec::new(),
    };
    Ok(Snapshot { records, active, waiting })
}

/// Reads all parts of the records, and the certificate in force if it is for this IK and valid.
fn records(
    connection: &Connection,
    ek: &EkId,
    about: &IdInQuestion,
    ik_id: Option<&[u8; 32]>,
    now: OffsetDateTime,
) -> Result<(Records, Option<ActiveCertificate>), StoreError> {
    let disabled = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM disabled_eks WHERE ek_id = ?1)")?
        .query_row(params![ek.as_bytes()], |row| row.get(0))?;
    let enrolment = granted(connection, ek)?;
    let quota_from = now - QUOTA_PERIOD;
    let registered = connection
        .prepare_cached(
            "SELECT d.device_id, c.ik_id, c.issued_at, c.serial,
                    iif(c.ik_id = ?3 AND c.not_after > ?4, c.der, NULL),
                    (SELECT count(*) FROM certificates r
                     WHERE r.ek_id = d.ek_id AND r.confirmed_at > ?2)
             FROM devices d LEFT JOIN certificates c ON c.ek_id = d.ek_id AND c.status = 'active'
             WHERE d.ek_id = ?1",
        )?
        .query_row(
            params![ek.as_bytes(), quota_from.unix_timestamp(), ik_id, now.unix_timestamp()],
            |row| {
                let (mut certificate, mut active) = (None, None);
                if let Some(ik_id) = row.get(1)? {
                    let issued_at = time(2, row.get(2)?)?;
                    certificate = Some(CertificateOnRecord { ik_id, issued_at });
                    let der: Option<_> = row.get(4)?;
                    let serial = row.get(3)?;
                    active = der.map(|der| ActiveCertificate { serial, ik_id, der });
                }
                let registration = Registration {
                    device_id: parsed(row, 0)?,
                    certificate,
                    recent_certificates: row.get(5)?,
                };
                Ok((registration, active))
            },
        )
        .optional()?;
    let (registration, active) = registered.map_or((None, None), |(it, active)| (Some(it), active));
    let recent_unconfirmed = connection
        .prepare_cached(
            "SELECT count(*) FROM certificates WHERE ek_id = ?1 AND confirmed_at IS NULL AND \
             issued_at > ?2",
        )?
        .query_row(params![ek.as_bytes(), quota_from.unix_timestamp()], |row| row.get(0))?;
    let shared_key = connection
        .prepare_cached(
            "SELECT generation, is_used, plain_srk_generation, iif(day > ?2, today, 0) FROM \
             shared_keys WHERE ek_id = ?1",
        )?
        .query_row(params![ek.as_bytes(), quota_from.unix_timestamp()], |row| {
            let (generation, is_used, plain_srk_generation) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok((SharedKeyOnRecord { generation, is_used, plain_srk_generation }, row.get(3)?))
        })
        .optional()?;
    let (shared_key, recent_generations) =
        shared_key.map_or((None, 0), |(key, recent)| (Some(key), recent));
    let (id_holder, other_ek) = match about {
        IdInQuestion::Is(device) => (holder(connection, device)?, None),
        IdInQuestion::Due { derived, other_eks } => {
            let device = due_device_id(derived, enrolment.as_ref(), registration.as_ref());
            (holder(connection, device)?, first_on_record(connection, other_eks)?)
        }
    };
    let records = Records {
        disabled,
        enrolment,
        registration,
        recent_unconfirmed,
        shared_key,
        recent_generations,
        id_holder,
        other_ek,
    };
    Ok((records, active))
}

fn first_on_record(connection: &Connection, eks: &[EkId]) -> Result<Option<EkId>, StoreError> {
    for ek in eks {
        let is_on_record: bool = connection
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM enrolments WHERE ek_id = ?1) OR EXISTS (SELECT 1 \
                 FROM devices WHERE ek_id = ?1)
                     OR EXISTS (SELECT 1 FROM disabled_eks WHERE ek_id = ?1)",
            )?
            .query_row(params![ek.as_bytes()], |row| row.get(0))?;
        if is_on_record {
            return Ok(Some(*ek));
        }
    }
    Ok(None)
}

fn granted(connection: &Connection, ek: &EkId) -> Result<Option<Enrolment>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT device_id, reprovision, legacy_dps_ek, plain_srk FROM enrolments WHERE ek_id = ?1",
    )?;
    let enrolment = statement.query_row(params![ek.as_bytes()], |row| {
        Ok(Enrolment {
            device_id: optional_device_id(row, 0)?,
            reprovision: parsed(row, 1)?,
            legacy_dps_ek: row.get(2)?,
            plain_srk: row.get(3)?,
        })
    });
    Ok(enrolment.optional()?)
}

/// The certificates that were sealed to an EK for this IK and wait to be confirmed, the newest first.
fn waiting_certificates(
    connection: &Connection,
    ek: &EkId,
    ik_id: &[u8; 32],
) -> Result<Vec<Unconfirmed>, StoreError> {
    let query = format!(
        "SELECT {UNCONFIRMED} FROM certificates
         WHERE ek_id = ?1 AND ik_id = ?2 AND status = 'unconfirmed' ORDER BY issued_at DESC, rowid DESC"
    );
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement.query_map(params![ek.as_bytes(), ik_id], unconfirmed)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The columns that [`unconfirmed`] reads.
pub(super) const UNCONFIRMED: &str =
    "serial, device_id, ek_id, ik_id, assurance, issued_at, confirm_by, sha256, der";

pub(super) fn unconfirmed(row: &Row<'_>) -> rusqlite::Result<Unconfirmed> {
    Ok(Unconfirmed {
        serial: row.get(0)?,
        device_id: parsed(row, 1)?,
        ek_id: ek_id(row, 2)?,
        ik_id: row.get(3)?,
        assurance: parsed(row, 4)?,
        issued_at: time(5, row.get(5)?)?,
        confirm_by: time(6, row.get(6)?)?,
        sha256: row.get(7)?,
        encrypted: EncryptedCertificate::new(row.get(8)?),
    })
}
