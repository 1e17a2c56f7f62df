//! The record of every decision.

use assay_wire::{ClientId, DeviceId, EkId, ProblemCode};
use time::OffsetDateTime;

/// One decision of the CA.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// When it was made.
    pub time: OffsetDateTime,
    /// The MQTT client that asked.
    pub client: ClientId,
    /// The kind of request, e.g. `challenge`; `unreadable` if that could not be read.
    pub action: &'static str,
    /// The EK that it claimed to have.
    pub ek_id: Option<EkId>,
    /// Whom it is about, once that is settled.
    pub device: Option<Whom>,
    /// Whether it changed what the device has.
    pub change: Change,
    /// Why it was refused, if it was.
    pub refusal: Option<(ProblemCode, String)>,
    /// From the request's receipt to the decision.
    pub duration_us: u32,
}

/// Whether a decision changed what a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It has what it had: it asked again.
    None,
    /// A certificate came into force.
    Made,
}

/// A device, as far as a decision knew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// It had proved itself, by a ticket or a confirmation.
    Proven(DeviceId),
    /// The id is due to the EK that was shown, by whomever: an EK certificate is no secret.
    Due(DeviceId),
}

impl AuditEntry {
    /// That a certificate was made for a device that does not exist.
    pub(crate) fn of_throw_away(device: &DeviceId, time: OffsetDateTime) -> Self {
        Self {
            time,
            client: ClientId::from(device),
            action: "check",
            ek_id: None,
            device: None,
            change: Change::Made,
            refusal: None,
            duration_us: 0,
        }
    }

    /// When it was made, in microseconds since 1970.
    pub(crate) fn microseconds(&self) -> i64 {
        // Until the year 294,000.
        (self.time.unix_timestamp_nanos() / 1000) as i64
    }

    /// The device, if it had proved itself.
    pub fn proven(&self) -> Option<&DeviceId> {
        match &self.device {
            Some(Whom::Proven(device)) => Some(device),
            Some(Whom::Due(_)) | None => None,
        }
    }

    /// The device id due to the EK that was shown, if nothing was proven.
    pub fn due(&self) -> Option<&DeviceId> {
        match &self.device {
            Some(Whom::Due(device)) => Some(device),
            Some(Whom::Proven(_)) | None => None,
        }
    }
}

/// An [`AuditEntry`] as it is read back.
#[derive(Clone, Debug)]
pub struct AuditRow {
    /// When, in microseconds since 1970.
    pub time_us: i64,
    /// The MQTT client that asked.
    pub client: String,
    /// What it asked for.
    pub action: String,
    /// The EK that it claimed to have.
    pub ek_id: Option<EkId>,
    /// The device, if it had proved itself.
    pub proven: Option<String>,
    /// The device id due to the EK that was shown, if nothing was proven.
    pub due: Option<String>,
    /// The problem's code, if it was refused.
    pub code: Option<u16>,
    /// The problem's detail, if it was refused.
    pub detail: Option<String>,
    /// From the request's receipt to the decision.
    pub duration_us: u32,
}
