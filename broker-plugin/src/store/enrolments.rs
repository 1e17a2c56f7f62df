//! The enrolment list: EKs that an operator vouches for, and devices that an operator switched off.

use assay_wire::{DeviceId, EkId};
use rusqlite::{OptionalExtension, params};
use time::OffsetDateTime;

use super::{Store, StoreError, ek_id, optional_device_id};

/// An EK to put on the list.
#[derive(Clone, Debug)]
pub struct NewEnrolment {
    /// The EK.
    pub ek_id: EkId,
    /// The device id it is to have; without one, the id that follows from the EK.
    pub device_id: Option<DeviceId>,
    /// The encoding that the operator's file had.
    pub recognised: String,
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
    /// Puts an EK on the list.
    ///
    /// # Errors
    /// See [`EnrolError`].
    pub fn enroll(&mut self, new: &NewEnrolment) -> Result<(), EnrolError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let records = super::records(&transaction, &new.ek_id, new.added_at, |_, _| new.device_id.clone())?;
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
        transaction.execute(
            "INSERT INTO enrolments (ek_id, device_id, recognised, added_at) VALUES (?1, ?2, ?3, ?4)",
            params![
                new.ek_id.as_bytes(),
                new.device_id.as_ref().map(DeviceId::as_str),
                new.recognised,
                new.added_at.unix_timestamp()
            ],
        )?;
        transaction.commit()?;
        Ok(())
    }

    /// Every EK that the CA knows, oldest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn enrolments(&self) -> Result<Vec<EnrolmentRow>, StoreError> {
        let mut statement = self.connection.prepare(&format!("{KNOWN_EKS} ORDER BY added_at, ek_id"))?;
        let rows = statement.query_map([], enrolment_row)?;
        Ok(rows.collect::<Result<_, _>>()?)
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
    pub fn set_disabled(&mut self, ek: &EkId, disabled: bool) -> Result<bool, StoreError> {
        let transaction = self.connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        let mut changed = 0;
        for table in ["enrolments", "devices"] {
            changed += transaction.execute(
                &format!("UPDATE {table} SET disabled = ?2 WHERE ek_id = ?1"),
                params![ek.as_bytes(), disabled],
            )?;
        }
        transaction.commit()?;
        Ok(changed > 0)
    }
}

const KNOWN_EKS: &str = "
    SELECT coalesce(e.ek_id, d.ek_id) AS ek_id, coalesce(d.device_id, e.device_id) AS device_id, e.recognised AS recognised,
           coalesce(e.disabled, 0) OR coalesce(d.disabled, 0) AS disabled, d.ek_id IS NOT NULL AS registered,
           coalesce(e.added_at, d.registered_at) AS added_at
    FROM enrolments e FULL OUTER JOIN devices d ON d.ek_id = e.ek_id";

fn enrolment_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<EnrolmentRow> {
    Ok(EnrolmentRow {
        ek_id: ek_id(row, 0)?,
        device_id: optional_device_id(row, 1)?,
        recognised: row.get(2)?,
        disabled: row.get(3)?,
        registered: row.get(4)?,
        added_at: row.get(5)?,
    })
}
