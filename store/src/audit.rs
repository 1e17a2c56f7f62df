//! The audit: the record of every decision.

use assay_wire::{ClientId, DeviceId, EkId, ProblemCode};
use time::OffsetDateTime;

/// One decision of the CA.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// When it was made.
    pub time: OffsetDateTime,
    /// The MQTT client that asked.
    pub client: ClientId,
    /// The kind of request, e.g. `challenge`; `unreadable` if the kind could not be read.
    pub action: &'static str,
    /// The EK that the client claimed to have.
    pub ek_id: Option<EkId>,
    /// The device that it is about, once that is known.
    pub device: Option<Whom>,
    /// Whether it changed what a device has.
    pub change: Change,
    /// Why it was refused, if it was.
    pub refusal: Option<(ProblemCode, String)>,
    /// The time from the receipt of the request to the decision.
    pub duration_us: u32,
}

/// Whether a decision changed what a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The device has what it had before.
    None,
    /// A certificate came into force.
    Made,
}

/// A device, and whether it had proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The device had proved itself: by a ticket, a confirmation, or a TLS handshake.
    Proven(DeviceId),
    /// The id is due to the EK that was shown. Anybody can show that EK, because an EK certificate
    /// is no secret.
    Due(DeviceId),
}

impl AuditEntry {
    /// The entry for a certificate that was made for a device that does not exist.
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
        // It fits until the year 294,000.
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
    /// The kind of request.
    pub action: String,
    /// The EK that the client claimed to have.
    pub ek_id: Option<EkId>,
    /// The device, if it had proved itself.
    pub proven: Option<String>,
    /// The device id due to the EK that was shown, if nothing was proven.
    pub due: Option<String>,
    /// The problem's code, if it was refused.
    pub code: Option<u16>,
    /// The problem's detail, if it was refused.
    pub detail: Option<String>,
    /// The time from the receipt of the request to the decision.
    pub duration_us: u32,
}
