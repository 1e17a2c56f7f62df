//! Devices and their certificates.

use assay_ca_core::{
    Assurance, Confirmation, Confirmed, EncryptedCertificate, IssuedCertificate, TicketKey,
    Unconfirmed,
};
use assay_wire::{DeviceId, EkId};
use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::columns::{ek_id, parsed, time};
use super::connection::{Sqlite, Transaction};
use crate::act::NewCertificate;
use crate::certificates::{CertificateRow, CertificateStatus, DeviceRow, ToConfirm};
use crate::error::StoreError;
use crate::snapshot::{ActiveCertificate, Question, WaitingCertificate};
use crate::random::random;

impl Transaction<'_> {
    /// The active certificate of an EK, if it is for this IK and still valid.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn active_certificate(
        &self,
        ek: &EkId,
        ik_id: &[u8; 32],
        now: OffsetDateTime,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut statement = self.0.prepare_cached(
            "SELECT der FROM certificates WHERE ek_id = ?1 AND ik_id = ?2 AND status = 'active' \
             AND not_after > ?3",
        )?;
        let found = statement
            .query_row(params![ek.as_bytes(), ik_id, now.unix_timestamp()], |row| row.get(0));
        Ok(found.optional()?)
    }

    /// The certificates that were sealed to an EK for this IK and wait to be confirmed, the newest
    /// first, each with its DER. What waits under another ticket key can never be confirmed, and is
    /// left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn waiting_certificates(
        &self,
        ek: &EkId,
        ik_id: &[u8; 32],
        key: &TicketKey,
    ) -> Result<Vec<(Unconfirmed, Vec<u8>)>, StoreError> {
        let decrypted = waiting(self.0, ek, ik_id)?.into_iter().filter_map(|waiting| {
            let der = key.decrypt(&waiting.stored, &waiting.certificate.serial)?;
            Some((waiting.certificate, der))
        });
        Ok(decrypted.collect())
    }

    /// Records a certificate: of a proven device as its only active one, of another as one that
    /// waits to be confirmed, which nobody finds here who has not `key`.
    ///
    /// # Errors
    /// The file cannot be written, or the device id and the EK do not belong together.
    pub fn add_certificate(
        &self,
        certificate: &IssuedCertificate,
        key: &TicketKey,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let encrypted = match certificate.confirm_by {
            None => None,
            Some(_) => {
                let encrypted = key.encrypt(&certificate.der, &certificate.serial, &mut random());
                Some(encrypted.map_err(StoreError::Encrypt)?)
            }
        };
        let new = NewCertificate {
            serial: &certificate.serial,
            device_id: &certificate.device_id,
            ek_id: &certificate.ek_id,
            ik_id: sha256(&certificate.ik_spki),
            assurance: certificate.assurance,
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            issued_at: now,
            confirm_by: certificate.confirm_by,
            sha256: sha256(&certificate.der),
            stored: encrypted.as_ref().map_or(&*certificate.der, EncryptedCertificate::as_bytes),
        };
        if new.confirm_by.is_none() {
            self.register(new.device_id, new.ek_id, new.assurance, now)?;
            self.supersede(new.ek_id, now)?;
        }
        self.insert_certificate(&new)
    }

    /// Puts a row into the table: of a certificate in force, unless it has a time to be confirmed.
    pub(super) fn insert_certificate(&self, new: &NewCertificate<'_>) -> Result<(), StoreError> {
        let issued_at = new.issued_at.unix_timestamp();
        let confirmed_at = new.confirm_by.is_none().then_some(issued_at);
        self.0
            .prepare_cached(
                "INSERT INTO certificates (serial, device_id, ek_id, ik_id, assurance, status, \
                 not_before, not_after, issued_at,
                                           confirm_by, confirmed_at, sha256, der)
                 VALUES (?1, ?2, ?3, ?4, ?5, iif(?10 IS NULL, 'unconfirmed', 'active'), ?6, ?7, \
                 ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                new.serial,
                new.device_id.as_str(),
                new.ek_id.as_bytes(),
                new.ik_id,
                new.assurance.to_string(),
                new.not_before.unix_timestamp(),
                new.not_after.unix_timestamp(),
                issued_at,
                new.confirm_by.map(OffsetDateTime::unix_timestamp),
                confirmed_at,
                new.sha256,
                new.stored,
            ])?;
        Ok(())
    }

    /// What became of the certificate that a device confirms. One whose time to be confirmed is
    /// over has ended, unless it is in force: an active one is sealed to a device that asks again.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificate_to_confirm(
        &self,
        confirmation: &Confirmation,
        now: OffsetDateTime,
    ) -> Result<ToConfirm, StoreError> {
        to_confirm(self.0, &confirmation.ek_id(), confirmation.certificate_sha256(), now)
    }

    /// Makes a confirmed certificate its device's only active one, and registers the device if it
    /// is new; `false` if it does not wait under `key`.
    ///
    /// # Errors
    /// The file cannot be written, or the device id and the EK do not belong together.
    pub fn activate(
        &self,
        confirmed: &Confirmed,
        key: &TicketKey,
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let certificate = confirmed.certificate();
        let waiting = "SELECT der FROM certificates WHERE serial = ?1 AND status = 'unconfirmed'";
        let waiting = self
            .0
            .prepare_cached(waiting)?
            .query_row([certificate.serial], |row| row.get(0))
            .optional()?;
        let der = waiting.and_then(|waiting| {
            key.decrypt(&EncryptedCertificate::new(waiting), &certificate.serial)
        });
        let Some(der) = der else { return Ok(false) };
        self.register(&certificate.device_id, &certificate.ek_id, certificate.assurance, now)?;
        self.supersede(&certificate.ek_id, now)?;
        if self.put_into_force(&certificate.serial, &der, now)? {
            return Ok(true);
        }
        Err(StoreError::Inconsistent("the certificate does not wait"))
    }

    /// Whether a certificate waits to be confirmed.
    pub(super) fn waits(&self, serial: &[u8]) -> Result<bool, StoreError> {
        let query = "SELECT EXISTS (SELECT 1 FROM certificates WHERE serial = ?1 AND status = \
                     'unconfirmed')";
        Ok(self.0.prepare_cached(query)?.query_row([serial], |row| row.get(0))?)
    }

    /// Makes a certificate active that waits; `false` if it does not.
    pub(super) fn put_into_force(
        &self,
        serial: &[u8],
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<bool, StoreError> {
        let rows = self
            .0
            .prepare_cached(
                "UPDATE certificates SET status = 'active', confirmed_at = ?2, der = ?3
                 WHERE serial = ?1 AND status = 'unconfirmed'",
            )?
            .execute(params![serial, now.unix_timestamp(), der])?;
        Ok(rows == 1)
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
        if rows == 1 {
            return Ok(());
        }
        Err(StoreError::Inconsistent("the device id is another EK's"))
    }

    pub(super) fn supersede(&self, ek: &EkId, now: OffsetDateTime) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "UPDATE certificates SET status = 'superseded', ended_at = ?2 WHERE ek_id = ?1 \
                 AND status = 'active'",
            )?
            .execute(params![ek.as_bytes(), now.unix_timestamp()])?;
        Ok(())
    }
}

impl Sqlite {
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

/// See [`Store::certificate_to_confirm`](crate::contract::Store::certificate_to_confirm).
pub(super) fn to_confirm(
    connection: &Connection,
    ek: &EkId,
    sha256: &[u8; 32],
    now: OffsetDateTime,
) -> Result<ToConfirm, StoreError> {
    // The newest first, which it most likely is: an EK may have thousands that are over.
    let query = format!(
        "SELECT {UNCONFIRMED}, status FROM certificates
         WHERE ek_id = ?1 AND sha256 = ?2 AND (status = 'active' OR confirm_by > ?3) ORDER BY \
         rowid DESC"
    );
    let mut statement = connection.prepare_cached(&query)?;
    let found =
        statement.query_row(params![ek.as_bytes(), sha256, now.unix_timestamp()], |row| {
            Ok(match row.get::<_, String>(7)?.as_str() {
                "unconfirmed" => ToConfirm::Unconfirmed(unconfirmed(row)?),
                "active" => ToConfirm::Active(parsed(row, 1)?),
                _ => ToConfirm::Ended,
            })
        });
    Ok(found.optional()?.unwrap_or(ToConfirm::Ended))
}

/// The certificates that wait for this EK and IK, the newest first, as they are stored.
pub(super) fn waiting(
    connection: &Connection,
    ek: &EkId,
    ik_id: &[u8; 32],
) -> Result<Vec<WaitingCertificate>, StoreError> {
    let query = format!(
        "SELECT {UNCONFIRMED}, der FROM certificates WHERE ek_id = ?1 AND ik_id = ?2 AND status = \
         'unconfirmed'
         ORDER BY issued_at DESC, rowid DESC"
    );
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement.query_map(params![ek.as_bytes(), ik_id], |row| {
        let stored = EncryptedCertificate::new(row.get(7)?);
        Ok(WaitingCertificate { certificate: unconfirmed(row)?, stored })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The active certificate of an EK; with its DER if it is for this IK and still valid.
pub(super) fn active(
    connection: &Connection,
    question: &Question,
) -> Result<Option<ActiveCertificate>, StoreError> {
    let mut statement = connection.prepare_cached(
        "SELECT serial, iif(ik_id = ?2 AND not_after > ?3, der, NULL) FROM certificates
         WHERE ek_id = ?1 AND iif(status = 'active', 1, NULL) = 1",
    )?;
    let now = question.now.unix_timestamp();
    let found = statement.query_row(params![question.ek.as_bytes(), question.ik_id, now], |row| {
        Ok(ActiveCertificate { serial: row.get(0)?, der: row.get(1)? })
    });
    Ok(found.optional()?)
}

/// The columns that [`unconfirmed`] reads.
const UNCONFIRMED: &str = "serial, device_id, ek_id, ik_id, assurance, issued_at, confirm_by";

fn unconfirmed(row: &Row<'_>) -> rusqlite::Result<Unconfirmed> {
    Ok(Unconfirmed {
        serial: row.get(0)?,
        device_id: parsed(row, 1)?,
        ek_id: ek_id(row, 2)?,
        ik_id: row.get(3)?,
        assurance: parsed(row, 4)?,
        issued_at: time(5, row.get(5)?)?,
        confirm_by: time(6, row.get(6)?)?,
    })
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
