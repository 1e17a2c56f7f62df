//! Devices and their certificates.

use std::ops::Range;

use assay_ca_core::{EncryptedCertificate, SealedOnRecord, Unconfirmed};
use assay_wire::{DeviceId, EkId};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::audit::add_to_audit;
use super::columns::{array, ek_id, optional_small, parsed, time};
use super::connection::Postgres;
use super::snapshots::{Der, answers};
use crate::act::Question;
use crate::audit::AuditEntry;
use crate::certificates::{CertificateRow, CertificateStatus, Counts, DeviceRow, InForce};
use crate::error::StoreError;
use crate::random::random_bytes;

impl Postgres {
    pub(super) fn sealed(
        &mut self,
        ek: &EkId,
        sha256: &[u8; 32],
        now: OffsetDateTime,
    ) -> Result<SealedOnRecord, StoreError> {
        let seconds = now.unix_timestamp();
        self.read_together(|session| {
            let row = session.query_opt(SEALED, &[&&ek.as_bytes()[..], &&sha256[..], &seconds])?;
            let Some(row) = row else { return Ok(SealedOnRecord::Ended) };
            let device_id = parsed(&row, 1)?;
            let question = Question::about(*ek, &device_id, now);
            let mut records = || {
                let answers = answers(session, &[&question], Der::Without);
                Ok::<_, StoreError>(answers?.remove(0).snapshot.records)
            };
            Ok(match row.get(7) {
                "unconfirmed" => {
                    let records = records()?;
                    let certificate = Unconfirmed {
                        serial: array(row.get(0))?,
                        device_id,
                        ek_id: *ek,
                        ik_id: array(row.get(2))?,
                        assurance: parsed(&row, 3)?,
                        issued_at: time(row.get(4))?,
                        confirm_by: time(row.get(5))?,
                        sha256: *sha256,
                        encrypted: EncryptedCertificate::new(row.get(6)),
                    };
                    SealedOnRecord::waiting(certificate, records)
                }
                "active" => {
                    let (assurance, records) = (parsed(&row, 3)?, Box::new(records()?));
                    SealedOnRecord::Active { device_id, assurance, records, der: row.get(6) }
                }
                _ => SealedOnRecord::Ended,
            })
        })
    }

    pub(super) fn status(
        &mut self,
        device: &DeviceId,
        serial: &[u8],
        sha256: &[u8; 32],
    ) -> Result<CertificateStatus, StoreError> {
        self.read(|session| {
            let found = session.query_opt(STATUS, &[&serial, &device.as_str(), &&sha256[..]])?;
            let Some(row) = found else { return Ok(CertificateStatus::Unknown) };
            Ok(CertificateStatus::of(row.get(0), ek_id(&row, 1)?, row.get(2)))
        })
    }

    pub(super) fn all_devices(&mut self) -> Result<Vec<DeviceRow>, StoreError> {
        self.read_together(|session| session.query(DEVICES, &[])?.iter().map(device).collect())
    }

    pub(super) fn page_of_devices(
        &mut self,
        from: &str,
        count: u32,
    ) -> Result<Vec<DeviceRow>, StoreError> {
        self.read(|session| {
            let rows = session.query(DEVICES_FROM, &[&from, &i64::from(count)])?;
            rows.iter().map(device).collect()
        })
    }

    pub(super) fn page_of_certificates(
        &mut self,
        from: &[u8],
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        self.read(|session| {
            let rows = session.query(CERTIFICATES_FROM, &[&from, &i64::from(count)])?;
            rows.iter().map(certificate).collect()
        })
    }

    pub(super) fn newest_certificates_of(
        &mut self,
        ek: &EkId,
        count: u32,
    ) -> Result<Vec<CertificateRow>, StoreError> {
        self.read(|session| {
            let rows = session.query(CERTIFICATES_OF, &[&&ek.as_bytes()[..], &i64::from(count)])?;
            rows.iter().map(certificate).collect()
        })
    }

    pub(super) fn count(&mut self) -> Result<Counts, StoreError> {
        self.read(|session| {
            let row = session.query_one(COUNTS, &[])?;
            Ok(Counts::of([0, 1, 2, 3, 4].map(|column| row.get::<_, i64>(column).unsigned_abs())))
        })
    }

    pub(super) fn count_in_force(
        &mut self,
        key_id: &[u8],
        at_work: &Range<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<InForce, StoreError> {
        let [since, until] = [at_work.start, at_work.end].map(OffsetDateTime::unix_timestamp);
        self.read(|session| {
            let row =
                session.query_one(IN_FORCE, &[&now.unix_timestamp(), &key_id, &since, &until])?;
            let [active, waiting, listed] =
                [0, 1, 2].map(|column| row.get::<_, i64>(column).unsigned_abs());
            Ok(InForce { active, waiting, listed, last_ends: row.get(3) })
        })
    }

    pub(super) fn all_certificates(&mut self) -> Result<Vec<CertificateRow>, StoreError> {
        self.read_together(|session| {
            session.query(CERTIFICATES, &[])?.iter().map(certificate).collect()
        })
    }

    pub(super) fn throw_away(
        &mut self,
        device: &DeviceId,
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(StoreError::unreadable)?;
        let validity = certificate.validity();
        let audit = AuditEntry::of_throw_away(device, now);
        // The id of no EK.
        let ek = random_bytes::<32>();
        let ik = Sha256::digest(certificate.public_key().raw);
        let sha256 = Sha256::digest(der);
        self.write(|session| {
            session.execute(
                THROW_AWAY,
                &[
                    &certificate.raw_serial(),
                    &device.as_str(),
                    &&ek[..],
                    &&ik[..],
                    &validity.not_before.timestamp(),
                    &validity.not_after.timestamp(),
                    &now.unix_timestamp(),
                    &&sha256[..],
                    &der,
                ],
            )?;
            add_to_audit(session, &[&audit])
        })
    }

    pub(super) fn revoke_thrown_away(
        &mut self,
        ders: &[&[u8]],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let serial = |der| {
            let (_, certificate) =
                X509Certificate::from_der(der).map_err(StoreError::unreadable)?;
            Ok(certificate.raw_serial().to_vec())
        };
        let serials = ders.iter().copied().map(serial).collect::<Result<Vec<_>, StoreError>>()?;
        self.write(|session| {
            session.execute(REVOKE_THROWN_AWAY, &[&serials, &now.unix_timestamp()])?;
            Ok(())
        })
    }
}

fn device(row: &postgres::Row) -> Result<DeviceRow, StoreError> {
    Ok(DeviceRow {
        device_id: parsed(row, 0)?,
        ek_id: ek_id(row, 1)?,
        assurance: row.get(2),
        disabled: row.get(3),
        registered_at: row.get(4),
        serial: row.get(5),
        not_after: row.get(6),
        shared_key: optional_small(row, 7)?,
    })
}

fn certificate(row: &postgres::Row) -> Result<CertificateRow, StoreError> {
    Ok(CertificateRow {
        serial: row.get(0),
        device_id: parsed(row, 1)?,
        status: row.get(2),
        not_before: row.get(3),
        not_after: row.get(4),
        issued_at: row.get(5),
        confirm_by: row.get(6),
        der: row.get(7),
    })
}

/// The newest comes first, because it is most likely the right one: an EK may have thousands of
/// certificates that ended.
const SEALED: &str =
    "SELECT serial, device_id, ik_id, assurance, issued_at, confirm_by, der, status
    FROM certificates
    WHERE ek_id = $1 AND sha256 = $2 AND (status = 'active' OR confirm_by > $3)
    ORDER BY number DESC LIMIT 1";
const STATUS: &str = "SELECT c.status, c.ek_id, l.since IS NOT NULL
    FROM certificates c LEFT JOIN disabled_eks l USING (ek_id)
    WHERE c.serial = $1 AND c.device_id = $2 AND c.sha256 = $3";
/// What [`device`] reads.
macro_rules! devices {
    ($of:literal) => {
        concat!(
            "SELECT d.device_id, d.ek_id, d.assurance, l.since IS NOT NULL, d.registered_at,
                    c.serial, c.not_after, CASE WHEN s.is_used THEN s.generation END
             FROM devices d LEFT JOIN disabled_eks l USING (ek_id)
                  LEFT JOIN shared_keys s USING (ek_id)
                  LEFT JOIN certificates c ON c.ek_id = d.ek_id
                       AND (CASE WHEN c.status = 'active' THEN 1 END) = 1 ",
            $of
        )
    };
}
const DEVICES: &str = devices!("ORDER BY d.registered_at, d.device_id");
const DEVICES_FROM: &str = devices!("WHERE d.device_id >= $1 ORDER BY d.device_id LIMIT $2");
/// What [`certificate`] reads.
macro_rules! certificates {
    ($of:literal) => {
        concat!(
            "SELECT serial, device_id, status, not_before, not_after, issued_at, confirm_by,
                    CASE WHEN confirmed_at IS NOT NULL THEN der END
             FROM certificates ",
            $of
        )
    };
}
const CERTIFICATES: &str = certificates!("ORDER BY number");
const CERTIFICATES_FROM: &str = certificates!("WHERE serial >= $1 ORDER BY serial LIMIT $2");
const CERTIFICATES_OF: &str = certificates!("WHERE ek_id = $1 ORDER BY number DESC LIMIT $2");
// Each is counted in an index, which is small beside the certificates.
const COUNTS: &str = "SELECT (SELECT count(*) FROM devices),
    (SELECT count(*) FROM disabled_eks),
    (SELECT count(*) FROM certificates),
    (SELECT count(*) FROM certificates WHERE status = 'unconfirmed'),
    (SELECT count(*) FROM certificates WHERE status IN ('superseded', 'revoked'))";
const IN_FORCE: &str = "SELECT count(*) FILTER (WHERE status = 'active'),
        count(*) FILTER (WHERE status = 'unconfirmed'),
        count(*) FILTER (WHERE status IN ('superseded', 'revoked')), max(not_after)
    FROM certificates
    WHERE not_after > $1
          AND (status <> 'unconfirmed' AND position($2::bytea IN der) > 0
               OR status = 'unconfirmed' AND confirm_by > $1 AND issued_at >= $3 AND issued_at < $4)";
const THROW_AWAY: &str = "INSERT INTO certificates
    (serial, device_id, ek_id, ik_id, assurance, status, not_before, not_after, issued_at, sha256, der)
    VALUES ($1, $2, $3, $4, 'none', 'active', $5, $6, $7, $8, $9)";
const REVOKE_THROWN_AWAY: &str = "UPDATE certificates SET status = 'revoked', ended_at = $2
    WHERE serial = ANY($1::bytea[]) AND status = 'active' AND assurance = 'none'";
