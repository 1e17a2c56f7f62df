//! What the CA has on record, month by month.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::world::World;

/// The certificates in force, by device.
pub(super) struct InForce(BTreeMap<String, Certificate>);

struct Certificate {
    serial: String,
    issued_at: i64,
    not_after: i64,
}

impl InForce {
    /// Checks that no device has two.
    pub(super) fn read(world: &World) -> Result<Self> {
        let mut all = BTreeMap::new();
        for row in world.certificates()? {
            if row["status"] != "active" {
                continue;
            }
            let (id, serial) = (text(&row, "device_id")?, text(&row, "serial")?);
            let (issued_at, not_after) = (time(&row, "issued_at")?, time(&row, "not_after")?);
            let before = all.insert(id.clone(), Certificate { serial, issued_at, not_after });
            ensure!(before.is_none(), "month {}, device {id}: two certificates", world.month);
        }
        Ok(Self(all))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn serial_of(&self, id: &str) -> Option<&str> {
        self.0.get(id).map(|certificate| &*certificate.serial)
    }

    /// Devices whose certificate has ended by now.
    pub(super) fn ended(&self, now: i64) -> Vec<&str> {
        self.which(|certificate| certificate.not_after <= now)
    }

    /// Devices that got no new certificate since then.
    pub(super) fn older_than(&self, since: i64) -> Vec<&str> {
        self.which(|certificate| certificate.issued_at < since)
    }

    fn which(&self, is_such: impl Fn(&Certificate) -> bool) -> Vec<&str> {
        let such = self.0.iter().filter(|(_, certificate)| is_such(certificate));
        such.map(|(id, _)| id.as_str()).collect()
    }
}

/// In how many months each device renewed, by the CA's audit.
pub(super) fn months_of_renewals(world: &World) -> Result<BTreeMap<String, usize>> {
    let audit = world.assay(&["audit", "--json", "--count", "1000000"])?.stdout;
    let rows = serde_json::Deserializer::from_slice(&audit).into_iter::<Value>();
    let mut months = BTreeMap::<_, BTreeSet<_>>::new();
    for row in rows {
        let row = row?;
        if row["action"] == "adopt" && row["problem"].is_null() {
            let month = world.month_of(time(&row, "time")?)?;
            months.entry(text(&row, "device_id")?).or_default().insert(month);
        }
    }
    Ok(months.into_iter().map(|(id, months)| (id, months.len())).collect())
}

pub(super) fn text(row: &Value, field: &str) -> Result<String> {
    Ok(row[field].as_str().with_context(|| format!("no {field} in {row}"))?.to_owned())
}

fn time(row: &Value, field: &str) -> Result<i64> {
    Ok(OffsetDateTime::parse(&text(row, field)?, &Rfc3339)?.unix_timestamp())
}
