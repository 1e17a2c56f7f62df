//! What is known of an EK, and of the device id in question.

use assay_ca_core::{
    ActiveCertificate, CertificateOnRecord, Enrolment, QUOTA_PERIOD, Records, Registration,
    SharedKeyOnRecord, due_device_id,
};
use assay_wire::{DeviceId, EkId};
use rusqlite::{Connection, OptionalExtension, params};

use super::columns::{ek_facts, ek_id, optional_device_id, parsed, time};
use crate::act::{IdInQuestion, IkInQuestion, Question};
use crate::error::StoreError;

/// Reads all parts of the records, and the active certificate if it is for the IK in question and
/// has not expired.
pub(super) fn records(
    connection: &Connection,
    question: &Question,
) -> Result<(Records, Option<ActiveCertificate>), StoreError> {
    let Question { ek, device: about, ik, now, .. } = question;
    let (ik_id, is_any) = match ik {
        IkInQuestion::None => (None, false),
        IkInQuestion::Is(ik_id) => (Some(ik_id), false),
        IkInQuestion::OfActive => (None, true),
    };
    let disabled = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM disabled_eks WHERE ek_id = ?1)")?
        .query_row(params![ek.as_bytes()], |row| row.get(0))?;
    let enrolment = granted(connection, ek)?;
    let quota_from = *now - QUOTA_PERIOD;
    let registered = connection
        .prepare_cached(REGISTERED)?
        .query_row(
            params![
                ek.as_bytes(),
                quota_from.unix_timestamp(),
                ik_id,
                now.unix_timestamp(),
                is_any
            ],
            |row| {
                let (mut certificate, mut active) = (None, None);
                if let Some(ik_id) = row.get(1)? {
                    let issued_at = time(2, row.get(2)?)?;
                    let in_force_since = time(6, row.get(6)?)?;
                    certificate = Some(CertificateOnRecord { ik_id, issued_at, in_force_since });
                    let (der, serial): (Option<_>, _) = (row.get(4)?, row.get(3)?);
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
            "SELECT generation, is_used, plain_srk_generation, iif(day > ?2, today, 0), \
             nullif(day, 0) FROM shared_keys WHERE ek_id = ?1",
        )?
        .query_row(params![ek.as_bytes(), quota_from.unix_timestamp()], |row| {
            let (generation, is_used, plain_srk_generation) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let used_since: Option<i64> = row.get(4)?;
            let used_since = used_since.map(|since| time(4, since)).transpose()?;
            let key = SharedKeyOnRecord { generation, is_used, plain_srk_generation };
            Ok((Some(key), row.get(3)?, used_since))
        })
        .optional()?;
    let (shared_key, recent_generations, key_used_since) = shared_key.unwrap_or_default();
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
        key_used_since,
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
        "SELECT device_id, reprovision, legacy_dps_ek, plain_srk, facts FROM enrolments WHERE \
         ek_id = ?1",
    )?;
    let enrolment = statement.query_row(params![ek.as_bytes()], |row| {
        Ok(Enrolment {
            device_id: optional_device_id(row, 0)?,
            reprovision: parsed(row, 1)?,
            legacy_dps_ek: row.get(2)?,
            plain_srk: row.get(3)?,
            facts: ek_facts(row, 4)?,
        })
    });
    Ok(enrolment.optional()?)
}

/// The EK that is registered or enrolled under a device id.
pub(super) fn holder(
    connection: &Connection,
    device: &DeviceId,
) -> Result<Option<EkId>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT ek_id FROM devices WHERE device_id = ?1
         UNION ALL SELECT ek_id FROM enrolments WHERE device_id = ?1 LIMIT 1",
    )?;
    Ok(statement.query_row(params![device.as_str()], |row| ek_id(row, 0)).optional()?)
}

const REGISTERED: &str = "
    SELECT d.device_id, c.ik_id, c.issued_at, c.serial,
           iif((?5 OR c.ik_id = ?3) AND c.not_after > ?4, c.der, NULL),
           (SELECT count(*) FROM certificates r WHERE r.ek_id = d.ek_id AND r.confirmed_at > ?2),
           (SELECT max(max(r.confirmed_at, r.issued_at)) FROM certificates r
            WHERE r.ek_id = d.ek_id AND r.confirmed_at IS NOT NULL)
    FROM devices d LEFT JOIN certificates c ON c.ek_id = d.ek_id AND c.status = 'active'
    WHERE d.ek_id = ?1";

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;
    use time::{Duration, OffsetDateTime};

    use super::*;
    use crate::sqlite::Sqlite;

    #[test]
    fn query_is_not_parsed_again_for_other_values() {
        let store = Sqlite::in_memory().unwrap();
        let now = OffsetDateTime::now_utc();
        for n in 1..4 {
            let ek = hex::encode([n; 32]).parse().unwrap();
            let device = format!("dev-{n}").parse().unwrap();
            let question = Question {
                ik: IkInQuestion::Is([n; 32]),
                ..Question::about(ek, &device, now + Duration::seconds(n.into()))
            };
            store.snapshot(&question).unwrap();
        }
        let statement = store.connection.prepare_cached(REGISTERED).unwrap();
        assert_eq!(statement.get_status(StatementStatus::Run), 3);
        assert_eq!(statement.get_status(StatementStatus::RePrepare), 0);
    }
}
