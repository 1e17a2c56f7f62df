//! Reads values from the columns of a row.

use std::str::FromStr;

use assay_ca_core::EkFacts;
use assay_wire::{DeviceId, EkId};
use rusqlite::Row;
use time::OffsetDateTime;

use crate::facts;

/// Reads a value that is stored as text.
pub(super) fn parsed<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<T> {
    row.get::<_, String>(column)?.parse().map_err(|error| unreadable(column, error))
}

pub(super) fn optional_device_id(
    row: &Row<'_>,
    column: usize,
) -> rusqlite::Result<Option<DeviceId>> {
    row.get::<_, Option<String>>(column)?
        .map(|id| id.parse().map_err(|error| unreadable(column, error)))
        .transpose()
}

pub(super) fn ek_id(row: &Row<'_>, column: usize) -> rusqlite::Result<EkId> {
    row.get::<_, [u8; EkId::LEN]>(column).map(EkId::from)
}

pub(super) fn ek_facts(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<EkFacts>> {
    let json: Option<String> = row.get(column)?;
    json.map(|json| facts::read(&json).map_err(|error| unreadable(column, error))).transpose()
}

pub(super) fn time(column: usize, seconds: i64) -> rusqlite::Result<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| unreadable(column, error))
}

pub(super) fn optional_time(
    column: usize,
    seconds: Option<i64>,
) -> rusqlite::Result<Option<OffsetDateTime>> {
    seconds.map(|seconds| time(column, seconds)).transpose()
}

pub(super) fn unreadable(
    column: usize,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}
