//! Reads values from the columns of a row.

use std::fmt::Display;
use std::str::FromStr;

use assay_ca_core::EkFacts;
use assay_wire::{DeviceId, EkId};
use postgres::Row;
use time::OffsetDateTime;

use crate::error::StoreError;
use crate::facts;

/// Reads a value that is stored as text.
pub(super) fn parsed<T: FromStr<Err: Display>>(row: &Row, column: usize) -> Result<T, StoreError> {
    row.get::<_, &str>(column).parse().map_err(StoreError::unreadable)
}

pub(super) fn optional<T: FromStr<Err: Display>>(
    row: &Row,
    column: usize,
) -> Result<Option<T>, StoreError> {
    let text: Option<&str> = row.get(column);
    text.map(|text| text.parse().map_err(StoreError::unreadable)).transpose()
}

pub(super) fn device_id(row: &Row, column: usize) -> Result<Option<DeviceId>, StoreError> {
    optional(row, column)
}

pub(super) fn ek_id(row: &Row, column: usize) -> Result<EkId, StoreError> {
    array(row.get(column)).map(EkId::from)
}

pub(super) fn optional_ek_id(row: &Row, column: usize) -> Result<Option<EkId>, StoreError> {
    let bytes: Option<&[u8]> = row.get(column);
    bytes.map(|bytes| array(bytes).map(EkId::from)).transpose()
}

pub(super) fn ek_facts(row: &Row, column: usize) -> Result<Option<EkFacts>, StoreError> {
    row.get::<_, Option<&str>>(column).map(facts::read).transpose()
}

pub(super) fn array<const LEN: usize>(bytes: &[u8]) -> Result<[u8; LEN], StoreError> {
    bytes.try_into().map_err(StoreError::unreadable)
}

/// Reads a number that is stored as a `bigint`, although a smaller type is enough for it.
pub(super) fn small<T: TryFrom<i64, Error: Display>>(
    row: &Row,
    column: usize,
) -> Result<T, StoreError> {
    row.get::<_, i64>(column).try_into().map_err(StoreError::unreadable)
}

pub(super) fn optional_small<T: TryFrom<i64, Error: Display>>(
    row: &Row,
    column: usize,
) -> Result<Option<T>, StoreError> {
    let number: Option<i64> = row.get(column);
    number.map(|number| number.try_into().map_err(StoreError::unreadable)).transpose()
}

pub(super) fn time(seconds: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(StoreError::unreadable)
}
