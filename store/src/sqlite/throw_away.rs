//! Certificates for devices that do not exist, with which a broker is tried.

use assay_wire::DeviceId;
use rusqlite::params;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::connection::Sqlite;
use crate::audit::AuditEntry;
use crate::error::StoreError;
use crate::random::random_bytes;

impl Sqlite {
    /// Puts the certificate of a device that does not exist on record, without which it lets nobody
    /// in; and in the audit. The device is not registered, and the certificate counts as one that
    /// never came into force: [forgotten](super::Transaction::prune_expired) when it has been
    /// revoked and has expired.
    ///
    /// # Errors
    /// The file cannot be written, or the certificate not be read.
    pub fn add_throw_away(
        &mut self,
        device: &DeviceId,
        der: &[u8],
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let validity = certificate.validity();
        let audit = AuditEntry::of_throw_away(device, now);
        self.transaction(|transaction| {
            transaction.0.execute(
                "INSERT INTO certificates (serial, device_id, ek_id, ik_id, assurance, status, \
                 not_before, not_after, issued_at,
                                           sha256, der)
                 VALUES (?1, ?2, ?3, ?4, 'none', 'active', ?5, ?6, ?7, ?8, ?9)",
                params![
                    certificate.raw_serial(),
                    device.as_str(),
                    // That of no EK.
                    random_bytes::<32>(),
                    Sha256::digest(certificate.public_key().raw).as_slice(),
                    validity.not_before.timestamp(),
                    validity.not_after.timestamp(),
                    now.unix_timestamp(),
                    Sha256::digest(der).as_slice(),
                    der,
                ],
            )?;
            transaction.audit(&audit)
        })
    }

    /// Revokes what [`add_throw_away`](Self::add_throw_away) put on record for these devices.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revoke_throw_away<'a>(
        &mut self,
        devices: impl IntoIterator<Item = &'a [u8]>,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.transaction(|transaction| {
            for der in devices {
                let (_, certificate) = X509Certificate::from_der(der)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
                transaction.0.execute(
                    "UPDATE certificates SET status = 'revoked', ended_at = ?2
                     WHERE serial = ?1 AND status = 'active' AND assurance = 'none'",
                    params![certificate.raw_serial(), now.unix_timestamp()],
                )?;
            }
            Ok(())
        })
    }
}
