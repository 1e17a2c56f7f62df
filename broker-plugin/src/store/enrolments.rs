//! The enrolment list: EKs that an operator vouches for, and devices that an operator switched off or removed.

use assay_ca_core::Reprovision;
use assay_wire::{DeviceId, EkId};
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
use time::OffsetDateTime;

use super::{IdInQuestion, Store, StoreError, ek_id, optional_device_id, parsed};

/// An EK to put on the list.
#[derive(Clone, Debug)]
pub struct NewEnrolment {
    /// The EK.
    pub ek_id: EkId,
    /// The device id it is to have; without one, the id that follows from the EK.
    pub device_id: Option<DeviceId>,
    /// The encoding that the operator's file had.
    pub recognised: String,
    /// What happens when the device asks again.
    pub reprovision: Reprovision,
    /// Whether it is an EK of Azure's SDKs, which no vendor certified.
    pub legacy_dps_ek: bool,
    /// Now.
    pub added_at: OffsetDateTime,
}

/// An EK that the CA knows: enrolled, registered, or both.
#[derive(Clone, Debug)]
pub struct EnrolmentRow {
    /// The EK.
    pub ek_id: EkId,
    /// The device id that its enrolment grants or under which it is registered.
    pub device_id: Option<DeviceId>,
    /// The encoding that the operator's file had; `None` if a vendor's certificate brought the EK here.
    pub recognised: Option<String>,
    /// What happens when the device asks again; `None` without an enrolment, which is [`Reprovision::Reissue`].
    pub reprovision: Option<Reprovision>,
    /// Whether it was enrolled as an EK of Azure's SDKs.
    pub legacy_dps_ek: bool,
    /// Whether an operator disabled it.
    pub disabled: bool,
    /// Whether a device with this EK was certified.
    pub registered: bool,
    /// When it was enrolled or, without an enrolment, registered; in seconds since 1970.
    pub added_at: i64,
}

/// Why an EK cannot be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// It is on the list.
    #[error("EK {0} is enrolled already; see `assay enroll show {0}`")]
    Enrolled(EkId),
    /// It was certified under another id.
    #[error("EK {0} is registered as {1}; enrol it under that id or leave --device-id out")]
    Registered(EkId, DeviceId),
    /// The id is another EK's.
    #[error("device id {0} belongs to EK {1}")]
    DeviceIdTaken(DeviceId, EkId),
    /// The file failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for EnrolError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Puts EKs on the list: all of them, or none if one cannot be.
    ///
    /// # Errors
    /// See [`EnrolError`]; the number is the position of the EK that cannot be enrolled.
    pub fn enroll(&mut self, new: &[NewEnrolment]) -> Result<(), (usize, EnrolError)> {
        let begin = self.connection.transaction_with_behavior(TransactionBehavior::Immediate);
        let transaction = begin.map_err(|error| (0, error.into()))?;
        for (position, new) in new.iter().enumerate() {
            enroll(&transaction, new).map_err(|error| (position, error))?;
        }
        transaction.commit().map_err(|error| (0, error.into()))
    }

    /// Changes what happens when a device asks again; `false` if the EK is not on the list.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_reprovision(&mut self, ek: &EkId, reprovision: Reprovision) -> Result<bool, StoreError> {
        let changed = self.connection.execute(
            "UPDATE enrolments SET reprovision = ?2 WHERE ek_id = ?1",
            params![ek.as_bytes(), reprovision.name()],
        )?;
        Ok(changed == 1)
    }

    /// Forgets an EK: its enrolment and its registration go, its certificates are revoked, its shared key is retired, and its device id
    /// is free. `false` if the CA did not know it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn remove(&mut self, ek: &EkId, now: OffsetDateTime) -> Result<bool, StoreError> {
        self.transaction(|transaction| {
            transaction.0.execute(
                "UPDATE certificates SET status = 'revoked', ended_at = ?2 WHERE ek_id = ?1 AND status IN ('unconfirmed', 'active')",
                params![ek.as_bytes(), now.unix_timestamp()],
            )?;
            transaction.retire_shared_key(ek)?;
            let mut removed = 0;
            for table in ["enrolments", "devices"] {
                let delete = format!("DELETE FROM {table} WHERE ek_id = ?1");
                removed += transaction.0.execute(&delete, params![ek.as_bytes()])?;
            }
            Ok(removed > 0)
        })
    }

    /// Every EK that the CA knows, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn enrolments(&self) -> Result<Vec<EnrolmentRow>, StoreError> {
        self.list(&format!("{KNOWN_EKS} ORDER BY added_at, ek_id"), &[], enrolment_row)
    }

    /// The EK with this id, if the CA knows it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn enrolment(&self, ek: &EkId) -> Result<Option<EnrolmentRow>, StoreError> {
        let mut statement = self.connection.prepare(&format!("SELECT * FROM ({KNOWN_EKS}) WHERE ek_id = ?1"))?;
        Ok(statement.query_row(params![ek.as_bytes()], enrolment_row).optional()?)
    }

    /// The EK that holds a device id, by registration or by enrolment.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn ek_of_device(&self, device: &DeviceId) -> Result<Option<EkId>, StoreError> {
        super::holder(&self.connection, device)
    }

    /// Switches an EK off or on, wherever the CA knows it from; `false` if it does not.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_disabled(&mut self, ek: &EkId, disabled: bool, now: OffsetDateTime) -> Result<bool, StoreError> {
        let since = disabled.then(|| now.unix_timestamp());
        self.transaction(|transaction| {
            let mut changed = 0;
            for table in ["enrolments", "devices"] {
                let update = format!(
                    "UPDATE {table} SET disabled_at = iif(?2 IS NULL, NULL, coalesce(disabled_at, ?2)) WHERE ek_id = ?1"
                );
                changed += transaction.0.execute(&update, params![ek.as_bytes(), since])?;
            }
            Ok(changed > 0)
        })
    }
}

fn enroll(connection: &Connection, new: &NewEnrolment) -> Result<(), EnrolError> {
    let about = new.device_id.as_ref().map_or(IdInQuestion::None, IdInQuestion::Is);
    let records = super::records(connection, &new.ek_id, about, new.added_at)?;
    if records.enrolment.is_some() {
        return Err(EnrolError::Enrolled(new.ek_id));
    }
    match (&records.registration, &new.device_id, records.id_holder) {
        (Some(registration), Some(wanted), _) if registration.device_id != *wanted => {
            return Err(EnrolError::Registered(new.ek_id, registration.device_id.clone()));
        }
        (_, Some(wanted), Some(holder)) if holder != new.ek_id => {
            return Err(EnrolError::DeviceIdTaken(wanted.clone(), holder));
        }
        _ => {}
    }
    connection
        .prepare_cached(
            "INSERT INTO enrolments (ek_id, device_id, recognised, reprovision, legacy_dps_ek, added_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            new.ek_id.as_bytes(),
            new.device_id.as_ref().map(DeviceId::as_str),
            new.recognised,
            new.reprovision.name(),
            new.legacy_dps_ek,
            new.added_at.unix_timestamp()
        ])?;
    Ok(())
}

const KNOWN_EKS: &str = "
    SELECT coalesce(e.ek_id, d.ek_id) AS ek_id, coalesce(d.device_id, e.device_id) AS device_id, e.recognised AS recognised,
           e.disabled_at IS NOT NULL OR d.disabled_at IS NOT NULL AS disabled, d.ek_id IS NOT NULL AS registered,
           coalesce(e.added_at, d.registered_at) AS added_at, e.reprovision, coalesce(e.legacy_dps_ek, 0)
    FROM enrolments e FULL OUTER JOIN devices d ON d.ek_id = e.ek_id";

fn enrolment_row(row: &Row<'_>) -> rusqlite::Result<EnrolmentRow> {
    Ok(EnrolmentRow {
        ek_id: ek_id(row, 0)?,
        device_id: optional_device_id(row, 1)?,
        recognised: row.get(2)?,
        disabled: row.get(3)?,
        registered: row.get(4)?,
        added_at: row.get(5)?,
        reprovision: row.get::<_, Option<String>>(6)?.map(|_| parsed(row, 6)).transpose()?,
        legacy_dps_ek: row.get(7)?,
    })
}
