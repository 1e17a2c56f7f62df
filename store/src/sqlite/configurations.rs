//! Documents that operators attach to devices or to the scope.

use assay_wire::{ConfigurationNews, DeviceId};
use rusqlite::{OptionalExtension, params};
use time::OffsetDateTime;

use super::columns::time;
use super::connection::Sqlite;
use crate::configurations::{
    ConfigurationChanges, ConfigurationRow, DueConfiguration, device, due, key, least_revision,
    news, revision,
};
use crate::deeds;
use crate::error::StoreError;

impl Sqlite {
    /// See [`Store::set_configuration`](crate::contract::Store::set_configuration).
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_configuration(
        &mut self,
        target: Option<&DeviceId>,
        document: Option<&[u8]>,
        now: OffsetDateTime,
    ) -> Result<Option<u64>, StoreError> {
        self.act(|transaction, done| {
            let exists = "SELECT EXISTS (SELECT 1 FROM configurations
                          WHERE device_id = ?1 AND document IS NOT NULL)";
            let is_there: bool =
                transaction.0.query_row(exists, [key(target)], |row| row.get(0))?;
            if document.is_none() && !is_there {
                return Ok(None);
            }
            let next = "UPDATE configuration_revisions SET newest = max(newest + 1, ?1)
                        RETURNING newest";
            let next: i64 =
                transaction.0.query_row(next, [least_revision(now)], |row| row.get(0))?;
            transaction.0.execute(
                "INSERT INTO configurations (device_id, revision, document, set_at)
                 VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (device_id) DO UPDATE
                 SET revision = ?2, document = ?3, set_at = ?4",
                params![key(target), next, document, now.unix_timestamp()],
            )?;
            done.push(deeds::configured(target, document, next));
            revision(next).map(Some)
        })
    }

    /// See [`Store::configuration`](crate::contract::Store::configuration).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn configuration(&self, device: &DeviceId) -> Result<Option<DueConfiguration>, StoreError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT device_id = '', revision, document FROM configurations
             WHERE device_id IN ('', ?1)",
        )?;
        let (mut own, mut scope) = (None, None);
        let mut rows = statement.query([device.as_str()])?;
        while let Some(row) = rows.next()? {
            let place = if row.get(0)? { &mut scope } else { &mut own };
            *place = Some((revision(row.get(1)?)?, row.get(2)?));
        }
        Ok(due(own, scope))
    }

    /// See [`Store::configurations`](crate::contract::Store::configurations).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn configurations(&self) -> Result<Vec<ConfigurationRow>, StoreError> {
        let rows = self.list(
            "SELECT device_id, revision, document, set_at FROM configurations ORDER BY device_id",
            &[],
            |row| {
                let set_at = time(3, row.get(3)?)?;
                Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?, set_at))
            },
        )?;
        rows.into_iter()
            .map(|(key, number, document, set_at)| {
                let (device_id, revision) = (device(&key)?, revision(number)?);
                Ok(ConfigurationRow { device_id, revision, document, set_at })
            })
            .collect()
    }

    /// See [`Store::newest_configuration`](crate::contract::Store::newest_configuration).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn newest_configuration(&self) -> Result<u64, StoreError> {
        let query = "SELECT newest FROM configuration_revisions";
        let mut statement = self.connection.prepare_cached(query)?;
        revision(statement.query_row([], |row| row.get(0))?)
    }

    /// See [`Store::configuration_changes`](crate::contract::Store::configuration_changes).
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn configuration_changes(&self) -> Result<ConfigurationChanges, StoreError> {
        let scope = "SELECT revision FROM configurations WHERE device_id = ''";
        let scope = self.connection.query_row(scope, [], |row| row.get(0)).optional()?;
        let newest = self.list(
            "SELECT device_id, revision FROM configurations WHERE device_id <> ''
             ORDER BY revision DESC LIMIT ?1",
            &[&(ConfigurationNews::MAX_DEVICES as i64 + 1)],
            |row| Ok((super::columns::parsed(row, 0)?, row.get::<_, i64>(1)?)),
        )?;
        let newest = newest.into_iter().map(|(id, number)| Ok((id, revision(number)?)));
        let newest = newest.collect::<Result<Vec<_>, StoreError>>()?;
        let devices = "SELECT count(*) FROM devices";
        let devices: i64 = self.connection.query_row(devices, [], |row| row.get(0))?;
        let news = news(revision(scope.unwrap_or_default())?, newest);
        Ok(ConfigurationChanges { news, devices: revision(devices)? })
    }
}
