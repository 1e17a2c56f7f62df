//! Devices and their certificates.

use std::ops::Range;

use assay_ca_core::{Assurance, EncryptedCertificate, SealedOnRecord, Unconfirmed};
use assay_wire::{DeviceId, EkId};
use rusqlite::{Connection, OptionalExtension, Row, params};
use time::OffsetDateTime;

use super::columns::{ek_id, parsed, time};
use super::connection::{Sqlite, Transaction};
use super::records::records;
use crate::act::Question;
use crate::audit::Waited;
use crate::certificates::{CertificateRow, CertificateStatus, Counts, DeviceRow, InForce};
use crate::error::StoreError;
use crate::writes::{NewCertificate, NewDevice};

/// The serial number and the IK of a certificate that ended.
type Superseded = (Vec<u8>, Vec<u8>);

impl Transaction<'_> {
    /// Adds a certificate: as active, or as unconfirmed if it has no time of confirmation.
    pub(super) fn insert_certificate(&self, new: &NewCertificate<'_>) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "INSERT INTO certificates (serial, device_id, ek_id, ik_id, assurance, status,
                                           not_before, not_after, issued_at, confirm_by,
                                           confirmed_at, sha256, der)
                 VALUES (?1, ?2, ?3, ?4, ?5, iif(?10 IS NULL, 'unconfirmed', 'active'), ?6, ?7, ?8,
                         ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                new.serial,
                new.device_id.as_str(),
                new.ek_id.as_bytes(),
                new.ik_id,
                new.assurance.to_string(),
                new.not_before.unix_timestamp(),
                new.not_after.unix_timestamp(),
                new.issued_at.unix_timestamp(),
                new.confirm_by.map(OffsetDateTime::unix_timestamp),
                new.confirmed_at.map(OffsetDateTime::unix_timestamp),
                new.sha256,
                new.stored,
            ])?;
        Ok(())
    }

    /// A certificate, if it waits to be confirmed or adopted. One that waits for its whole life was
    /// renewed; the others were sealed.
    pub(super) fn waits(&self, serial: &[u8]) -> Result<Option<Waited>, StoreError> {
        let query = "SELECT coalesce(confirm_by < not_after, 1), ik_id FROM certificates
                     WHERE serial = ?1 AND status = 'unconfirmed'";
        let mut statement = self.0.prepare_cached(query)?;
        let waited = |row: &Row<'_>| Ok(Waited { sealed: row.get(0)?, ik_id: row.get(1)? });
        Ok(statement.query_row([serial], waited).optional()?)
    }

    /// Makes a certificate active that waited to be confirmed.
    pub(super) fn put_into_force(
        &self,
        serial: &[u8],
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let rows = self
            .0
            .prepare_cached(
                "UPDATE certificates SET status = 'active', confirmed_at = ?2, der = ?3
                 WHERE serial = ?1 AND status = 'unconfirmed'",
            )?
            .execute(params![serial, now.unix_timestamp(), der])?;
        if rows == 1 {
            return Ok(());
        }
        Err(StoreError::Inconsistent("the certificate does not wait"))
    }

    /// Revokes whatever waits for the EK and the IK of a new certificate.
    pub(super) fn end_waiting(&self, new: &NewCertificate<'_>) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "UPDATE certificates SET status = 'revoked', ended_at = ?3, der = x''
                 WHERE ek_id = ?1 AND ik_id = ?2 AND status = 'unconfirmed'",
            )?
            .execute(params![new.ek_id.as_bytes(), new.ik_id, new.issued_at.unix_timestamp()])?;
        Ok(())
    }

    /// Revokes whatever waits for the EK of a new certificate, except for the IK of the certificate
    /// in force if that is another.
    pub(super) fn end_other_waiting(&self, new: &NewCertificate<'_>) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "UPDATE certificates SET status = 'revoked', ended_at = ?2, der = x''
                 WHERE ek_id = ?1 AND status = 'unconfirmed' AND (ik_id = ?3 OR ik_id IS NOT
                   (SELECT ik_id FROM certificates WHERE ek_id = ?1 AND status = 'active'))",
            )?
            .execute(params![new.ek_id.as_bytes(), new.issued_at.unix_timestamp(), new.ik_id])?;
        Ok(())
    }

    /// Revokes what waits for the EK, but can no longer come into force because the certificate
    /// with this serial number did: what was issued before that, and what renews the certificates that
    /// it ended at this moment. A renewal of a key that was replaced must not bring the key back.
    pub(super) fn end_outdated(
        &self,
        ek: &EkId,
        serial: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.0
            .prepare_cached(
                "UPDATE certificates SET status = 'revoked', ended_at = ?3, der = x''
                 FROM (SELECT ik_id AS ik, max(coalesce(confirmed_at, 0), issued_at) AS at
                       FROM certificates WHERE serial = ?2)
                 WHERE ek_id = ?1 AND status = 'unconfirmed' AND ik_id <> ik
                   AND (issued_at <= at OR ik_id IN
                     (SELECT o.ik_id FROM certificates o WHERE o.ek_id = ?1
                      AND o.status = 'superseded' AND o.ended_at = ?3))",
            )?
            .execute(params![ek.as_bytes(), serial, now.unix_timestamp()])?;
        Ok(())
    }

    /// Records that an EK proved itself under a device id. Returns whether that is new.
    pub(super) fn register(&self, new: &NewDevice<'_>) -> Result<bool, StoreError> {
        let assurance = new.assurance.to_string();
        // Most are registered already, and the same row need not be written again.
        let is_known = self
            .0
            .prepare_cached(
                "SELECT 1 FROM devices WHERE device_id = ?1 AND ek_id = ?2 AND assurance = ?3",
            )?
            .exists(params![new.device_id.as_str(), new.ek_id.as_bytes(), assurance])?;
        if is_known {
            return Ok(false);
        }
        let rows = self
            .0
            .prepare_cached(
                "UPDATE devices SET assurance = ?3 WHERE device_id = ?1 AND ek_id = ?2",
            )?
            .execute(params![new.device_id.as_str(), new.ek_id.as_bytes(), assurance])?;
        if rows == 1 {
            return Ok(false);
        }
        let rows = self
            .0
            .prepare_cached(
                "INSERT INTO devices (device_id, ek_id, assurance, registered_at)
                 VALUES (?1, ?2, ?3, ?4) ON CONFLICT (device_id) DO NOTHING",
            )?
            .execute(params![
                new.device_id.as_str(),
                new.ek_id.as_bytes(),
                assurance,
                new.at.unix_timestamp()
            ])?;
        if rows == 1 {
            return Ok(true);
        }
        Err(StoreError::Inconsistent("the device id belongs to another EK"))
    }

    /// Ends the EK's active certificate. Returns its serial number and its IK, if there was one.
    pub(super) fn supersede(
        &self,
        ek: &EkId,
        now: OffsetDateTime,
    ) -> Result<Option<Superseded>, StoreError> {
        let mut statement = self.0.prepare_cached(
            "UPDATE certificates SET status = 'superseded', ended_at = ?2
             WHERE ek_id = ?1 AND status = 'active' RETURNING serial, ik_id",
        )?;
        let ended = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
        Ok(statement.query_row(params![ek.as_bytes(), now.unix_timestamp()], ended).optional()?)
    }
}

impl Sqlite {
    /// The status of the certificate with this serial number and digest, which somebody shows as
    /// this device's.
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
            "SELECT c.status, c.ek_id, l.since IS NOT NULL FROM certificates c
             LEFT JOIN disabled_eks l USING (ek_id)
             WHERE c.serial = ?1 AND c.device_id = ?2 AND c.sha256 = ?3",
        )?;
        let found = statement.query_row(params![serial, device.as_str(), sha256], |row| {
            let status: String = row.get(0)?;
            Ok(CertificateStatus::of(&status, ek_id(row, 1)?, row.get(2)?))
        });
        Ok(found.optional()?.unwrap_or(CertificateStatus::Unknown))
    }

    /// Every device, in the order of registration.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn devices(&self) -> Result<Vec<DeviceRow>, StoreError> {
        self.list(&format!("{DEVICES} ORDER BY d.registered_at, d.device_id"), &[], device)
    }

    /// Devices in the order of their ids.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn devices_from(&self, from: &str, count: u32) -> Result<Vec<DeviceRow>, StoreError> {
        let query = format!("{DEVICES} WHERE d.device_id >= ?1 ORDER BY d.device_id LIMIT ?2");
        self.list(&query, params![from, count], device)
    }

    /// The certificates in force of an issuing CA.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn in_force(
        &self,
        key_id: &[u8],
        at_work: &Range<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<InForce, StoreError> {
        let [since, until] = [at_work.start, at_work.end].map(OffsetDateTime::unix_timestamp);
        let query = "SELECT count(*) FILTER (WHERE status = 'active'),
                            count(*) FILTER (WHERE status = 'unconfirmed'),
                            count(*) FILTER (WHERE status IN ('superseded', 'revoked')),
                            max(not_after)
                     FROM certificates
                     WHERE not_after > ?1
                           AND (status <> 'unconfirmed' AND instr(der, ?2) > 0
                                OR status = 'unconfirmed' AND confirm_by > ?1
                                   AND issued_at >= ?3 AND issued_at < ?4)";
        let parameters = params![now.unix_timestamp(), key_id, since, until];
        Ok(self.connection.query_row(query, parameters, |row| {
            let counts: [i64; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
            let [active, waiting, listed] = counts.map(i64::unsigned_abs);
            Ok(InForce { active, waiting, listed, last_ends: row.get(3)? })
        })?)
    }

    /// Every certificate, in the order of issuance.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificates(&self) -> Result<Vec<CertificateRow>, StoreError> {
        self.list(&format!("{CERTIFICATES} ORDER BY rowid"), &[], certificate)
    }

    /// Certificates in the order of their serial numbers.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificates_from(
        &self,
        from: &[u8],
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        let query = format!("{CERTIFICATES} WHERE serial >= ?1 ORDER BY serial LIMIT ?2");
        self.list(&query, params![from, count], certificate)
    }

    /// The newest certificates of an EK, the newest first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn certificates_of(
        &self,
        ek: &EkId,
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        let query = format!("{CERTIFICATES} WHERE ek_id = ?1 ORDER BY rowid DESC LIMIT ?2");
        self.list(&query, params![ek.as_bytes(), count], certificate)
    }

    /// How many there are of what there may be many of.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn counts(&self) -> Result<Counts, StoreError> {
        let moment = self.connection.unchecked_transaction()?;
        let counts = moment.prepare_cached(COUNTS)?.query_row([], |row| {
            let mut counts = [0; 5];
            for (column, count) in counts.iter_mut().enumerate() {
                *count = row.get::<_, i64>(column)?.unsigned_abs();
            }
            Ok(counts)
        })?;
        Ok(Counts::of(counts))
    }
}

/// See [`Store::sealed_certificate`](crate::contract::Store::sealed_certificate).
pub(super) fn sealed(
    connection: &Connection,
    ek: &EkId,
    sha256: &[u8; 32],
    now: OffsetDateTime,
) -> Result<SealedOnRecord, StoreError> {
    enum Found {
        Waiting(Unconfirmed),
        Active(DeviceId, Assurance, Vec<u8>),
        Ended,
    }
    // The newest comes first, because it is most likely the right one: an EK may have thousands of
    // certificates that ended.
    let query = format!(
        "SELECT {UNCONFIRMED}, status FROM certificates
         WHERE ek_id = ?1 AND sha256 = ?2 AND (status = 'active' OR confirm_by > ?3)
         ORDER BY rowid DESC"
    );
    let moment = connection.unchecked_transaction()?;
    let mut statement = moment.prepare_cached(&query)?;
    let found = statement.query_row(params![ek.as_bytes(), sha256, now.unix_timestamp()], |row| {
        Ok(match row.get::<_, String>(9)?.as_str() {
            "unconfirmed" => Found::Waiting(unconfirmed(row)?),
            "active" => Found::Active(parsed(row, 1)?, parsed(row, 4)?, row.get(8)?),
            _ => Found::Ended,
        })
    });
    Ok(match found.optional()?.unwrap_or(Found::Ended) {
        Found::Waiting(certificate) => {
            let (records, _) =
                records(&moment, &Question::about(*ek, &certificate.device_id, now))?;
            SealedOnRecord::waiting(certificate, records)
        }
        Found::Active(device_id, assurance, der) => {
            let (records, _) = records(&moment, &Question::about(*ek, &device_id, now))?;
            SealedOnRecord::Active { device_id, assurance, records: Box::new(records), der }
        }
        Found::Ended => SealedOnRecord::Ended,
    })
}

/// What [`device`] reads.
const DEVICES: &str =
    "SELECT d.device_id, d.ek_id, d.assurance, l.since IS NOT NULL, d.registered_at, c.serial,
            c.not_after, iif(s.is_used, s.generation, NULL)
     FROM devices d LEFT JOIN disabled_eks l USING (ek_id) LEFT JOIN shared_keys s USING (ek_id)
          LEFT JOIN certificates c ON c.ek_id = d.ek_id AND c.status = 'active'";

fn device(row: &Row<'_>) -> rusqlite::Result<DeviceRow> {
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
}

/// What [`certificate`] reads.
const CERTIFICATES: &str =
    "SELECT serial, device_id, status, not_before, not_after, issued_at, confirm_by,
            iif(confirmed_at IS NULL, NULL, der)
     FROM certificates";

fn certificate(row: &Row<'_>) -> rusqlite::Result<CertificateRow> {
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
}

// Each is counted in an index, which is small beside the certificates.
const COUNTS: &str = "SELECT (SELECT count(*) FROM devices),
    (SELECT count(*) FROM disabled_eks),
    (SELECT count(*) FROM certificates),
    (SELECT count(*) FROM certificates WHERE status = 'unconfirmed'),
    (SELECT count(*) FROM certificates WHERE status IN ('superseded', 'revoked'))";

/// The unconfirmed certificates of this EK, for this IK or for any, newest first.
pub(super) fn waiting(
    connection: &Connection,
    ek: &EkId,
    ik_id: Option<&[u8; 32]>,
) -> Result<Vec<Unconfirmed>, StoreError> {
    let query = format!(
        "SELECT {UNCONFIRMED} FROM certificates
         WHERE ek_id = ?1 AND coalesce(ik_id = ?2, ?2 IS NULL) AND status = 'unconfirmed'
         ORDER BY issued_at DESC, rowid DESC"
    );
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement.query_map(params![ek.as_bytes(), ik_id], unconfirmed)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The columns that [`unconfirmed`] reads.
const UNCONFIRMED: &str =
    "serial, device_id, ek_id, ik_id, assurance, issued_at, confirm_by, sha256, der";

fn unconfirmed(row: &Row<'_>) -> rusqlite::Result<Unconfirmed> {
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
