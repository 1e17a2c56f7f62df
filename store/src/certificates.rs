//! Devices and their certificates.

use std::fmt;

use assay_ca_core::{
    Assurance, Confirmation, Confirmed, EncryptedCertificate, IssuedCertificate, TicketKey,
    Unconfirmed,
};
use assay_wire::{DeviceId, EkId};
use rusqlite::{OptionalExtension, Row, params};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{Store, StoreError, Transaction, ek_id, parsed, time};
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
        let query = format!(
            "SELECT {UNCONFIRMED}, der FROM certificates WHERE ek_id = ?1 AND ik_id = ?2 AND \
             status = 'unconfirmed'
             ORDER BY issued_at DESC"
        );
        let mut statement = self.0.prepare_cached(&query)?;
        let rows = statement.query_map(params![ek.as_bytes(), ik_id], |row| {
            let certificate = unconfirmed(row)?;
            let der = key.decrypt(&EncryptedCertificate::new(row.get(7)?), &certificate.serial);
            Ok((certificate, der))
        })?;
        let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
        Ok(rows.into_iter().filter_map(|(certificate, der)| Some((certificate, der?))).collect())
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
        let (device, ek) = (&certificate.device_id, &certificate.ek_id);
        let (confirmed_at, stored) = match certificate.confirm_by {
            None => {
                self.register(device, ek, certificate.assurance, now)?;
                self.supersede(ek, now)?;
                (Some(now.unix_timestamp()), certificate.der.to_vec())
            }
            Some(_) => {
                let encrypted = key.encrypt(&certificate.der, &certificate.serial, &mut random());
                (None, encrypted.map_err(StoreError::Encrypt)?.as_bytes().to_vec())
            }
        };
        self.0
            .prepare_cached(
                "INSERT INTO certificates (serial, device_id, ek_id, ik_id, assurance, status, \
                 not_before, not_after, issued_at,
                                           confirm_by, confirmed_at, sha256, der)
                 VALUES (?1, ?2, ?3, ?4, ?5, iif(?10 IS NULL, 'unconfirmed', 'active'), ?6, ?7, \
                 ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                certificate.serial,
                device.as_str(),
                ek.as_bytes(),
                sha256(&certificate.ik_spki),
                certificate.assurance.to_string(),
                certificate.not_before.unix_timestamp(),
                certificate.not_after.unix_timestamp(),
                now.unix_timestamp(),
                certificate.confirm_by.map(OffsetDateTime::unix_timestamp),
                confirmed_at,
                sha256(&certificate.der),
                stored,
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
        // The newest first, which it most likely is: an EK may have thousands that are over.
        let query = format!(
            "SELECT {UNCONFIRMED}, status FROM certificates
             WHERE ek_id = ?1 AND sha256 = ?2 AND (status = 'active' OR confirm_by > ?3) ORDER BY \
             rowid DESC"
        );
        let mut statement = self.0.prepare_cached(&query)?;
        let (ek, sha256) = (confirmation.ek_id(), confirmation.certificate_sha256());
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
        let rows = self
            .0
            .prepare_cached(
                "UPDATE certificates SET status = 'active', confirmed_at = ?2, der = ?3
                 WHERE serial = ?1 AND status = 'unconfirmed'",
            )?
            .execute(params![certificate.serial, now.unix_timestamp(), der])?;
        if rows == 1 { Ok(true) } else { Err(rusqlite::Error::StatementChangedRows(rows).into()) }
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

/// What became of a certificate that was sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToConfirm {
    /// It waits.
    Unconfirmed(Unconfirmed),
    /// It was confirmed before, or is what the device had in force; its device.
    Active(DeviceId),
    /// It was superseded or revoked.
    Ended,
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
