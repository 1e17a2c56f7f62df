//! Devices and their certificates.

use std::fmt;

use assay_ca_core::{
    Assurance, CertificateFacts, Confirmation, Confirmed, Issued, Proven, SealedOnRecord,
    Unconfirmed, Unproven,
};
use assay_wire::{DeviceId, EkId};
use rusqlite::{OptionalExtension, params};
use time::OffsetDateTime;

use super::record::{UNCONFIRMED, snapshot, unconfirmed};
use super::{Question, Store, StoreError, Transaction, ek_id, parsed};

impl Transaction<'_> {
    /// Records the certificate of a proven device as its only active one.
    ///
    /// # Errors
    /// The file cannot be written, or the device id and the EK do not belong together.
    pub(super) fn certify(&self, certificate: &Issued<Proven>) -> Result<(), StoreError> {
        let CertificateFacts { device_id, ek_id, assurance, issued_at, .. } = certificate.facts();
        self.register(device_id, ek_id, *assurance, *issued_at)?;
        self.supersede(ek_id, *issued_at)?;
        self.add(certificate, Some(*issued_at))
    }

    /// Records a certificate that waits to be confirmed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn seal(&self, certificate: &Issued<Unproven>) -> Result<(), StoreError> {
        self.add(certificate, None)
    }

    fn add<P>(
        &self,
        certificate: &Issued<P>,
        confirmed_at: Option<OffsetDateTime>,
    ) -> Result<(), StoreError> {
        let facts = certificate.facts();
        self.0
            .prepare_cached(
                "INSERT INTO certificates (serial, device_id, ek_id, ik_id, assurance, status,
                                           not_before, not_after, issued_at, confirm_by,
                                           confirmed_at, sha256, der)
                 VALUES (?1, ?2, ?3, ?4, ?5, iif(?10 IS NULL, 'unconfirmed', 'active'), ?6, ?7, ?8,
                         ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                facts.serial,
                facts.device_id.as_str(),
                facts.ek_id.as_bytes(),
                facts.ik_id,
                facts.assurance.to_string(),
                facts.not_before.unix_timestamp(),
                facts.not_after.unix_timestamp(),
                facts.issued_at.unix_timestamp(),
                facts.confirm_by.map(OffsetDateTime::unix_timestamp),
                confirmed_at.map(OffsetDateTime::unix_timestamp),
                certificate.sha256(),
                certificate.stored(),
            ])?;
        Ok(())
    }

    /// Makes a confirmed certificate its device's only active one, and registers the device if it
    /// is new; `false` if the certificate does not wait any more.
    ///
    /// # Errors
    /// The file cannot be written, or the device id and the EK do not belong together.
    pub(super) fn activate(&self, confirmed: &Confirmed) -> Result<bool, StoreError> {
        let waits = self
            .0
            .prepare_cached(
                "SELECT 1 FROM certificates WHERE serial = ?1 AND status = 'unconfirmed'",
            )?
            .exists([confirmed.serial()])?;
        if !waits {
            return Ok(false);
        }
        let (ek, now) = (confirmed.ek_id(), confirmed.decided_at());
        self.register(confirmed.device_id(), &ek, confirmed.assurance(), now)?;
        self.supersede(&ek, now)?;
        self.0
            .prepare_cached(
                "UPDATE certificates SET status = 'active', confirmed_at = ?2, der = ?3
                 WHERE serial = ?1",
            )?
            .execute(params![confirmed.serial(), now.unix_timestamp(), confirmed.der()])?;
        Ok(true)
    }

    /// Records that an EK proved itself under a device id.
    pub(super) fn register(
        &self,
        device: &DeviceId,
        ek: &EkId,
        assurance: Assurance,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let rows = self
            .0
            .prepare_cached(
                "INSERT INTO devices (device_id, ek_id, assurance, registered_at) VALUES (?1, ?2, \
                 ?3, ?4)
                 ON CONFLICT (device_id) DO UPDATE SET assurance = excluded.assurance WHERE ek_id \
                 = excluded.ek_id",
            )?
            .execute(params![
                device.as_str(),
                ek.as_bytes(),
                assurance.to_string(),
                now.unix_timestamp()
            ])?;
        if rows == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(rows).into()) }
    }

    fn supersede(&self, ek: &EkId, now: OffsetDateTime) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "UPDATE certificates SET status = 'superseded', ended_at = ?2 WHERE ek_id = ?1 \
                 AND status = 'active'",
            )?
            .execute(params![ek.as_bytes(), now.unix_timestamp()])?;
        Ok(())
    }
}

/// A device that proved itself.
#[derive(Clone, Debug)]
pub struct DeviceRow {
    /// Its name.
    pub device_id: DeviceId,
    /// Its EK.
    pub ek_id: EkId,
    /// What made the CA trust the EK.
    pub assurance: String,
    /// Whether an operator disabled it.
    pub disabled: bool,
    /// When it first proved itself, in seconds since 1970.
    pub registered_at: i64,
    /// The serial number of its active certificate.
    pub serial: Option<Vec<u8>>,
    /// When that expires, in seconds since 1970.
    pub not_after: Option<i64>,
    /// The generation of its shared key, if it has used one.
    pub shared_key: Option<u32>,
}

/// A certificate that was issued.
#[derive(Clone, Debug)]
pub struct CertificateRow {
    /// Its serial number, unique for the CA.
    pub serial: Vec<u8>,
    /// Whose it is.
    pub device_id: DeviceId,
    /// `unconfirmed`, `active`, `superseded` or `revoked`.
    pub status: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Seconds since 1970.
    pub issued_at: i64,
    /// Until when it must be confirmed, if it was sealed; in seconds since 1970.
    pub confirm_by: Option<i64>,
    /// The certificate itself; `None` if it was never confirmed, for then it is nobody's to see.
    pub der: Option<Vec<u8>>,
}

/// What a certificate that somebody presents is worth now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateStatus {
    /// Its device may connect.
    Active,
    /// Its device may connect once it has confirmed it.
    Unconfirmed,
    /// An operator disabled the device.
    Disabled,
    /// The device has a newer one.
    Superseded,
    /// It was not confirmed in time, or an operator removed the device.
    Revoked,
    /// This CA has no record of it.
    Unknown,
}

impl fmt::Display for CertificateStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "good",
            Self::Unconfirmed => "not confirmed",
            Self::Disabled => "that of a disabled device",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
            Self::Unknown => "not on record",
        })
    }
}

impl Store {
    /// What became of the certificate that a device confirms. One whose time to be confirmed is
    /// over has ended, unless it is in force: an active one is sealed to a device that asks again.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sealed_certificate(
        &self,
        confirmation: &Confirmation,
        now: OffsetDateTime,
    ) -> Result<SealedOnRecord, StoreError> {
        // The newest first, which it most likely is: an EK may have thousands that are over.
        let query = format!(
            "SELECT {UNCONFIRMED}, status FROM certificates
             WHERE ek_id = ?1 AND sha256 = ?2 AND (status = 'active' OR confirm_by > ?3)
             ORDER BY rowid DESC"
        );
        enum Found {
            Waiting(Unconfirmed),
            Active(DeviceId, Assurance),
            Ended,
        }
        let moment = self.connection.unchecked_transaction()?;
        let mut statement = moment.prepare_cached(&query)?;
        let (ek, sha256) = (confirmation.ek_id(), confirmation.certificate_sha256());
        let found =
            statement.query_row(params![ek.as_bytes(), sha256, now.unix_timestamp()], |row| {
                Ok(match row.get::<_, String>(9)?.as_str() {
                    "unconfirmed" => Found::Waiting(unconfirmed(row)?),
                    "active" => Found::Active(parsed(row, 1)?, parsed(row, 4)?),
                    _ => Found::Ended,
                })
            });
        let records_of = |device_id| {
            snapshot(&moment, &Question::about(ek, device_id, now)).map(|snapshot| snapshot.records)
        };
        Ok(match found.optional()?.unwrap_or(Found::Ended) {
            Found::Waiting(certificate) => {
                let records = records_of(&certificate.device_id)?;
                SealedOnRecord::Unconfirmed { certificate, records }
            }
            Found::Active(device_id, assurance) => {
                let records = records_of(&device_id)?;
                SealedOnRecord::Active { device_id, assurance, records }
            }
            Found::Ended => SealedOnRecord::Ended,
        })
    }

    /// What a certificate with this serial number and digest, which somebody shows as this
    /// device's, is worth now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificate_status(
        &self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT c.status, l.since IS NOT NULL FROM certificates c LEFT JOIN disabled_eks l \
             USING (ek_id)
             WHERE c.serial = ?1 AND c.device_id = ?2 AND c.sha256 = ?3",
        )?;
        let found = statement.query_row(params![serial, device.as_str(), sha256], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?))
        });
        let found = found.optional()?;
        Ok(match found.as_ref().map(|(status, disabled)| (status.as_str(), *disabled)) {
            None => CertificateStatus::Unknown,
            Some((_, true)) => CertificateStatus::Disabled,
            Some(("active", false)) => CertificateStatus::Active,
            Some(("unconfirmed", false)) => CertificateStatus::Unconfirmed,
            Some(("superseded", false)) => CertificateStatus::Superseded,
            Some((_, false)) => CertificateStatus::Revoked,
        })
    }

    /// Every device, in the order of registration.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn devices(&self) -> Result<Vec<DeviceRow>, StoreError> {
        self.list(
            "SELECT d.device_id, d.ek_id, d.assurance, l.since IS NOT NULL, d.registered_at, \
             c.serial, c.not_after,
                    iif(s.is_used, s.generation, NULL)
             FROM devices d LEFT JOIN disabled_eks l USING (ek_id) LEFT JOIN shared_keys s USING \
             (ek_id)
                  LEFT JOIN certificates c ON c.ek_id = d.ek_id AND c.status = 'active'
             ORDER BY d.registered_at, d.device_id",
            &[],
            |row| {
                Ok(DeviceRow {
                    device_id: parsed(row, 0)?,
                    ek_id: ek_id(row, 1)?,
                    assurance: row.get(2)?,
                    disabled: row.get(3)?,
                    registered_at: row.get(4)?,
                    serial: row.get(5)?,
                    not_after: row.get(6)?,
                    shared_key: row.get(7)?,
                })
            },
        )
    }

    /// Every certificate, in the order of issuance.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        self.list(
            "SELECT serial, device_id, status, not_before, not_after, issued_at, confirm_by,
                    iif(confirmed_at IS NULL, NULL, der)
             FROM certificates ORDER BY rowid",
            &[],
            |row| {
                Ok(CertificateRow {
                    serial: row.get(0)?,
                    device_id: parsed(row, 1)?,
                    status: row.get(2)?,
                    not_before: row.get(3)?,
                    not_after: row.get(4)?,
                    issued_at: row.get(5)?,
                    confirm_by: row.get(6)?,
                    der: row.get(7)?,
                })
            },
        )
    }
}
