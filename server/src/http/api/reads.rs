//! What is on record, as `assay … --json` shows it.

use std::sync::Arc;

use assay_ca_core::Manufacturer;
use assay_store::{CertificateRow, DeviceRow, PendingRow, Store};
use assay_wire::{DeviceId, EkId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::Face;
use super::super::caller::Operator;
use super::super::problem::Problem;
use super::pages::Size;
use super::{Answer, Answered, Asked, not_found};
use crate::operations::documents;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfDevices {
    cursor: Option<String>,
    limit: Option<u16>,
    status: Option<DeviceStatus>,
    assurance: Option<String>,
    #[serde(default, deserialize_with = "time")]
    expiring_before: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DeviceStatus {
    Enabled,
    Disabled,
}

pub(super) async fn devices(
    _: Operator,
    State(face): State<Face>,
    Asked(asked): Asked<OfDevices>,
) -> Answered {
    let OfDevices { cursor, limit, status, assurance, expiring_before } = asked;
    let is_filtered = status.is_some() || assurance.is_some() || expiring_before.is_some();
    let (size, from) = (Size::new(limit, is_filtered), cursor.unwrap_or_default());
    let is_wanted = move |row: &DeviceRow| {
        let is = if row.disabled { DeviceStatus::Disabled } else { DeviceStatus::Enabled };
        status.is_none_or(|wanted| wanted == is)
            && assurance.as_ref().is_none_or(|wanted| *wanted == row.assurance)
            && expiring_before.is_none_or(|time| row.not_after.is_some_and(|ends| ends < time))
    };
    face.read(move |store| {
        let rows = store.devices_from(&from, size.rows())?;
        Ok(size.page(rows, |row| row.device_id.to_string(), is_wanted, documents::device))
    })
    .await
}

/// A device with all that is on record of it.
pub(super) async fn device(
    _: Operator,
    State(face): State<Face>,
    Path(which): Path<String>,
) -> Answered {
    let ca = Arc::clone(&face.outfit.borrow().ca);
    let found = face.read_if(move |store| {
        let Some(ek) = ek_of(store, &which)? else { return Ok(None) };
        let Some(row) = store.enrolment(&ek)? else { return Ok(None) };
        let certificates = store.certificates_of(&ek, NEWEST)?;
        let (mut device, mut history) = (None, Vec::new());
        if let Some(id) = &row.device_id {
            device = store.devices_from(id.as_str(), 1)?.pop().filter(|row| row.device_id == *id);
            history = store.history(id)?;
        }
        Ok(Some(json!({
            "ek": documents::ek(&row, &ca.flaws),
            "device": device.as_ref().map(documents::device),
            "certificates": shown(&certificates, documents::certificate),
            "tpms": shown(&history, documents::tenure),
        })))
    });
    found.await?.ok_or_else(|| not_found("device of this id, and no EK"))
}

/// The EK of a device id, or the one that is named itself.
pub(super) fn ek_of(store: &mut dyn Store, which: &str) -> anyhow::Result<Option<EkId>> {
    if let Ok(ek) = which.parse() {
        return Ok(Some(ek));
    }
    Ok(match which.parse::<DeviceId>() {
        Ok(device) => store.ek_of_device(&device)?,
        Err(_) => None,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfCertificates {
    cursor: Option<String>,
    limit: Option<u16>,
    status: Option<CertificateStatus>,
    #[serde(default, deserialize_with = "time")]
    expiring_before: Option<i64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CertificateStatus {
    Unconfirmed,
    Active,
    Superseded,
    Revoked,
}

impl CertificateStatus {
    fn name(self) -> &'static str {
        match self {
            Self::Unconfirmed => "unconfirmed",
            Self::Active => "active",
            Self::Superseded => "superseded",
            Self::Revoked => "revoked",
        }
    }
}

pub(super) async fn certificates(
    _: Operator,
    State(face): State<Face>,
    Asked(asked): Asked<OfCertificates>,
) -> Answered {
    let OfCertificates { cursor, limit, status, expiring_before } = asked;
    let size = Size::new(limit, status.is_some() || expiring_before.is_some());
    let from = serial(&cursor.unwrap_or_default())?;
    let is_wanted = move |row: &CertificateRow| {
        status.is_none_or(|wanted| wanted.name() == row.status)
            && expiring_before.is_none_or(|time| row.not_after < time)
    };
    face.read(move |store| {
        let rows = store.certificates_from(&from, size.rows())?;
        Ok(size.page(rows, |row| hex::encode(&row.serial), is_wanted, documents::certificate))
    })
    .await
}

pub(super) async fn certificate(
    _: Operator,
    State(face): State<Face>,
    Path(which): Path<String>,
) -> Answered {
    let wanted = serial(&which)?;
    let found = face.read_if(move |store| {
        let row = store.certificates_from(&wanted, 1)?.pop().filter(|row| row.serial == wanted);
        Ok(row.as_ref().map(documents::certificate))
    });
    found.await?.ok_or_else(|| not_found("certificate of this serial number"))
}

fn serial(text: &str) -> Result<Vec<u8>, Problem> {
    hex::decode(text).map_err(|_| {
        Problem::of(StatusCode::BAD_REQUEST, "a serial number is written in hexadecimal digits")
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfPending {
    cursor: Option<String>,
    limit: Option<u16>,
    manufacturer: Option<String>,
}

pub(super) async fn pending(
    _: Operator,
    State(face): State<Face>,
    Asked(asked): Asked<OfPending>,
) -> Answered {
    let OfPending { cursor, limit, manufacturer } = asked;
    let wanted = manufacturer.as_deref().map(manufacturer_of).transpose()?;
    // The store has ten thousand at most, and reads them all.
    let size = Size::new(limit, false);
    let ca = Arc::clone(&face.outfit.borrow().ca);
    let show = move |row: &PendingRow| documents::pending(row, &ca.flaws);
    let key = |row: &PendingRow| format!("{:020}.{}", row.first_seen, row.waiting.ek_id);
    face.read(move |store| {
        let mut rows = store.pending()?;
        rows.sort_by_key(key);
        rows.retain(|row| {
            let its = row.waiting.facts.tpm.as_ref().and_then(|tpm| tpm.manufacturer.parse().ok());
            cursor.as_ref().is_none_or(|from| key(row) >= *from)
                && wanted.is_none_or(|wanted| its == Some(wanted))
        });
        Ok(size.page(rows, key, |_| true, show))
    })
    .await
}

pub(super) fn manufacturer_of(text: &str) -> Result<Manufacturer, Problem> {
    text.parse()
        .map_err(|error| Problem::of(StatusCode::BAD_REQUEST, format!("manufacturer: {error}")))
}

pub(super) async fn groups(_: Operator, State(face): State<Face>) -> Answered {
    face.read(|store| {
        let (_, groups) = store.groups()?;
        let numbered = groups.all().iter().zip(1..);
        let groups = numbered.map(|(group, place)| documents::group(place, group));
        Ok(json!({ "items": groups.collect::<Vec<_>>() }))
    })
    .await
}

pub(super) async fn trust(_: Operator, State(face): State<Face>) -> Answered {
    face.read(|store| Ok(json!({ "items": shown(&store.anchors()?, documents::anchor) }))).await
}

pub(super) async fn identities(_: Operator, State(face): State<Face>) -> Answered {
    let (scope, now) = (face.outfit.borrow().ca.scope.clone(), OffsetDateTime::now_utc());
    face.read(move |store| {
        let rows = store.identities()?;
        let each = rows.iter().flat_map(|row| row.certificates.iter().map(move |it| (row, it)));
        let shown = each.map(|(row, it)| documents::identity(row, it, &scope, now));
        Ok(json!({ "items": shown.collect::<Vec<_>>() }))
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfAudit {
    count: Option<u16>,
}

/// The newest decisions, oldest first.
pub(super) async fn audit(
    _: Operator,
    State(face): State<Face>,
    Asked(OfAudit { count }): Asked<OfAudit>,
) -> Answered {
    let count = u32::from(count.unwrap_or(50)).min(NEWEST);
    face.read(move |store| Ok(json!({ "items": shown(&store.audit(count)?, documents::decision) })))
        .await
}

fn shown<R>(rows: &[R], show: impl Fn(&R) -> Value) -> Vec<Value> {
    rows.iter().map(show).collect()
}

fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<i64>, D::Error> {
    let text = String::deserialize(from)?;
    let time = OffsetDateTime::parse(&text, &Rfc3339).map_err(|_| {
        serde::de::Error::custom("a time is written as in RFC 3339, e.g. 2027-01-15T00:00:00Z")
    })?;
    Ok(Some(time.unix_timestamp()))
}

impl Face {
    async fn read(
        &self,
        look: impl FnOnce(&mut dyn Store) -> anyhow::Result<Value> + Send + 'static,
    ) -> Answered {
        self.records.with(look).await.map(Answer).map_err(|error| Problem::ours(&error))
    }

    async fn read_if(
        &self,
        look: impl FnOnce(&mut dyn Store) -> anyhow::Result<Option<Value>> + Send + 'static,
    ) -> Result<Option<Answer>, Problem> {
        let found = self.records.with(look).await.map_err(|error| Problem::ours(&error))?;
        Ok(found.map(Answer))
    }
}

/// Certificates of one device, and decisions, that are shown at once.
const NEWEST: u32 = 1000;
