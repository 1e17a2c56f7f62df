//! Certificates for devices that do not exist, to try a broker with.

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
    /// Puts on record, and into the audit, a certificate for a device that does not exist. A
    /// certificate that is not on record lets nobody in. The device is not registered, and the
    /// certificate counts as one that never came into force: it is
    /// [forgotten](crate::contract::Store::prune) when it has been revoked and has expired.
    ///
    /// # Errors
    /// The file cannot be written, or the certificate cannot be read.
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
                    // The id of no EK.
                    random_bytes::<32>(),
                    Sha256::digest(certificate.public_key().raw).as_slice(),
                    validity.not_before.timestamp(),
                    validity.not_after.timestamp(),
                    now.unix_timestamp(),
                    Sha256::digest(der).as_slice(),
                    der,
                ],
            )?;
            transaction.audit(&[&audit])
        })
    }

    /// Revokes certificates that [`add_throw_away`](Self::add_throw_away) put on record, and never
    /// one of a device that exists.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn revoke_throw_away<'a>(
        &mut self,
        ders: impl IntoIterator<Item = &'a [u8]>,
        now: OffsetDateTime,
    ) -> Result<(), StoreError> {
        self.transaction(|transaction| {
            for der in ders {
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
