//! Documents that operators attach to devices or to the scope.

use assay_wire::{ConfigurationNews, DeviceId};
use time::OffsetDateTime;

use super::columns::{parsed, time};
use super::connection::Postgres;
use crate::configurations::{
    ConfigurationChanges, ConfigurationRow, DueConfiguration, device, due, key, least_revision,
    news, revision,
};
use crate::deeds;
use crate::error::StoreError;

impl Postgres {
    pub(super) fn put_configuration(
        &mut self,
        target: Option<&DeviceId>,
        document: Option<&[u8]>,
        now: OffsetDateTime,
    ) -> Result<Option<u64>, StoreError> {
        self.act(|session, done| {
            let key = key(target);
            if document.is_none() && !session.query_one(EXISTS, &[&key])?.get::<_, bool>(0) {
                return Ok(None);
            }
            let next: i64 = session.query_one(NEXT, &[&least_revision(now)])?.get(0);
            session.execute(PUT, &[&key, &next, &document, &now.unix_timestamp()])?;
            done.push(deeds::configured(target, document, next));
            revision(next).map(Some)
        })
    }

    pub(super) fn due_configuration(
        &mut self,
        device: &DeviceId,
    ) -> Result<Option<DueConfiguration>, StoreError> {
        self.read(|session| {
            let (mut own, mut scope) = (None, None);
            for row in session.query(DUE, &[&device.as_str()])? {
                let place = if row.get(0) { &mut scope } else { &mut own };
                *place = Some((revision(row.get(1))?, row.get(2)));
            }
            Ok(due(own, scope))
        })
    }

    pub(super) fn all_configurations(&mut self) -> Result<Vec<ConfigurationRow>, StoreError> {
        self.read(|session| {
            let rows = session.query(ALL, &[])?;
            let row = |row: &postgres::Row| {
                Ok(ConfigurationRow {
                    device_id: device(row.get(0))?,
                    revision: revision(row.get(1))?,
                    document: row.get(2),
                    set_at: time(row.get(3))?,
                })
            };
            rows.iter().map(row).collect()
        })
    }

    pub(super) fn newest_revision(&mut self) -> Result<u64, StoreError> {
        self.read(|session| revision(session.query_one(NEWEST, &[])?.get(0)))
    }

    pub(super) fn changed_configurations(&mut self) -> Result<ConfigurationChanges, StoreError> {
        self.read_together(|session| {
            let most = ConfigurationNews::MAX_DEVICES as i64 + 1;
            let scope = session.query_opt(OF_SCOPE, &[])?.map_or(0, |row| row.get(0));
            let newest = session.query(NEWEST_OF_DEVICES, &[&most])?;
            let newest = newest.iter().map(|row| Ok((parsed(row, 0)?, revision(row.get(1))?)));
            let newest = newest.collect::<Result<Vec<_>, StoreError>>()?;
            let devices = revision(session.query_one(DEVICES, &[])?.get(0))?;
            Ok(ConfigurationChanges { news: news(revision(scope)?, newest), devices })
        })
    }
}

const EXISTS: &str = "SELECT EXISTS (SELECT FROM configurations
    WHERE device_id = $1 AND document IS NOT NULL)";
const NEXT: &str = "UPDATE configuration_revisions SET newest = greatest(newest + 1, $1)
    RETURNING newest";
const PUT: &str = "INSERT INTO configurations (device_id, revision, document, set_at)
    VALUES ($1, $2, $3, $4)
    ON CONFLICT (device_id) DO UPDATE SET revision = $2, document = $3, set_at = $4";
const DUE: &str = "SELECT device_id = '', revision, document FROM configurations
    WHERE device_id IN ('', $1)";
const ALL: &str =
    "SELECT device_id, revision, document, set_at FROM configurations ORDER BY device_id";
const NEWEST: &str = "SELECT newest FROM configuration_revisions";
const OF_SCOPE: &str = "SELECT revision FROM configurations WHERE device_id = ''";
const NEWEST_OF_DEVICES: &str = "SELECT device_id, revision FROM configurations
    WHERE device_id <> '' ORDER BY revision DESC LIMIT $1";
const DEVICES: &str = "SELECT count(*) FROM devices";
