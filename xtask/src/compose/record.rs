//! What a CA has on record, and what must hold of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Devices, certificates and enrolments, as `assay … --json` lists them.
pub(super) struct Record {
    /// By device id.
    devices: BTreeMap<String, Device>,
    /// Status and device id by serial number.
    certificates: BTreeMap<String, (String, String)>,
    /// By EK id.
    enrolments: BTreeSet<String>,
}

#[derive(PartialEq, Eq)]
struct Device {
    ek_id: String,
    has_shared_key: bool,
}

impl Record {
    pub(super) fn parse(devices: &str, certificates: &str, enrolments: &str) -> Result<Self> {
        let device = |row: &Value| -> Result<_> {
            let device =
                Device { ek_id: text(row, "ek_id")?, has_shared_key: !row["shared_key"].is_null() };
            Ok((text(row, "device_id")?, device))
        };
        let certificate = |row: &Value| -> Result<_> {
            Ok((text(row, "serial")?, (text(row, "status")?, text(row, "device_id")?)))
        };
        Ok(Self {
            devices: rows(devices)?.iter().map(device).collect::<Result<_>>()?,
            certificates: rows(certificates)?.iter().map(certificate).collect::<Result<_>>()?,
            enrolments: rows(enrolments)?
                .iter()
                .map(|row| text(row, "ek_id"))
                .collect::<Result<_>>()?,
        })
    }

    pub(super) fn knows(&self, device_id: &str) -> bool {
        self.devices.contains_key(device_id)
    }

    /// Counts the entries of `before`; an error if one of them is no longer on record.
    pub(super) fn keeps(&self, before: &Self) -> Result<usize> {
        for (id, device) in &before.devices {
            match self.devices.get(id) {
                None => bail!("device {id} is lost"),
                Some(now) => ensure!(now.ek_id == device.ek_id, "device {id} has another EK"),
            }
        }
        for (serial, (_, device)) in &before.certificates {
            let now = self.certificates.get(serial).map(|(_, device)| device);
            ensure!(now == Some(device), "certificate {serial} of device {device} is lost");
        }
        let lost = before.enrolments.difference(&self.enrolments).next();
        ensure!(lost.is_none(), "the enrolment of EK {lost:?} is lost");
        Ok(before.devices.len() + before.certificates.len() + before.enrolments.len())
    }

    /// An error unless each device has one active certificate, or none and a shared key.
    pub(super) fn each_has_one(&self) -> Result<()> {
        for (id, device) in &self.devices {
            match (self.active(id).len(), device.has_shared_key) {
                (1, _) | (0, true) => {}
                (active, _) => bail!("device {id} has {active} active certificates"),
            }
        }
        Ok(())
    }

    /// The serial numbers of a device's active certificates.
    pub(super) fn active(&self, device_id: &str) -> Vec<&str> {
        let of_device = |(_, (status, device)): &(&String, &(String, String))| {
            device == device_id && status == "active"
        };
        self.certificates.iter().filter(of_device).map(|(serial, _)| serial.as_str()).collect()
    }
}

fn rows(lines: &str) -> Result<Vec<Value>> {
    lines
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line:?}")))
        .collect()
}

fn text(row: &Value, name: &str) -> Result<String> {
    Ok(row[name].as_str().with_context(|| format!("{name} of {row}"))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICES: &str = r#"{"device_id":"a","ek_id":"1","shared_key":null}
{"device_id":"b","ek_id":"2","shared_key":1}"#;
    const ENROLMENT: &str = r#"{"ek_id":"9"}"#;

    fn certificate(serial: &str, status: &str) -> String {
        format!("{{\"serial\":\"{serial}\",\"device_id\":\"a\",\"status\":\"{status}\"}}\n")
    }

    fn record(certificates: &[String]) -> Record {
        Record::parse(DEVICES, &certificates.concat(), ENROLMENT).unwrap()
    }

    #[test]
    fn a_device_with_no_or_two_active_certificates_is_found() {
        let active = certificate("01", "active");
        assert!(record(&[active.clone(), certificate("02", "superseded")]).each_has_one().is_ok());
        assert!(record(&[active, certificate("02", "active")]).each_has_one().is_err());
        assert!(record(&[certificate("02", "unconfirmed")]).each_has_one().is_err());
    }

    #[test]
    fn what_is_no_longer_on_record_is_found() {
        let before = record(&[certificate("01", "active")]);
        assert!(record(&[certificate("01", "revoked")]).keeps(&before).is_ok());
        assert!(record(&[]).keeps(&before).is_err());
        for (devices, enrolments) in [("", ENROLMENT), (DEVICES, "")] {
            let now = Record::parse(devices, &certificate("01", "active"), enrolments).unwrap();
            assert!(now.keeps(&before).is_err());
        }
    }
}
