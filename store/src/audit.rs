//! The audit: the record of every decision, and of what operators do.

use assay_wire::{ClientId, DeviceId, EkId, ProblemCode};
use time::OffsetDateTime;

use crate::chain::Chain;

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
        microseconds(self.time)
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

/// Who acts by means of a command, and when the command began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// For example `unix:root`.
    pub name: ClientId,
    /// The time of what it does.
    pub at: OffsetDateTime,
}

/// What an operator did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// For example `disable`.
    pub action: &'static str,
    /// The EK that it is about, if it is about one.
    pub ek_id: Option<EkId>,
    /// The device that it is about.
    pub device: Option<DeviceId>,
    /// What there is to say besides.
    pub detail: Option<String>,
    /// The certificate in force that it ended.
    pub ended: Option<Vec<u8>>,
}

impl Deed {
    /// One that is about no device.
    pub fn of_ca(action: &'static str, detail: String) -> Self {
        Self { action, ek_id: None, device: None, detail: Some(detail), ended: None }
    }
}

/// What a decision did to certificates and keys, as far as others should hear of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) event: Option<&'static str>,
    /// The certificate that came into force.
    pub(crate) serial: Option<Vec<u8>>,
    /// The certificate that it superseded.
    pub(crate) replaced: Option<Vec<u8>>,
}

/// An entry of the audit as it is on record: an [`AuditEntry`] or a [`Deed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRow {
    /// The chain that it is in.
    pub chain: Chain,
    /// Its place in the chain.
    pub id: i64,
    /// Its place among the entries of all chains; 0 if it is from before there were chains.
    pub number: i64,
    /// When, in microseconds since 1970.
    pub time_us: i64,
    /// The MQTT client that asked, or the operator.
    pub client: String,
    /// The kind of request, or what the operator did.
    pub action: String,
    /// The EK that the client claimed to have.
    pub ek_id: Option<EkId>,
    /// The device, if it had proved itself.
    pub proven: Option<String>,
    /// The device id due to the EK that was shown, if nothing was proven.
    pub due: Option<String>,
    /// The problem's code, if it was refused.
    pub code: Option<u16>,
    /// The problem's detail, if it was refused; of an operator's act, what there is to say besides.
    pub detail: Option<String>,
    /// The time from the receipt of the request to the decision.
    pub duration_us: u32,
    /// The certificate that came into force.
    pub serial: Option<Vec<u8>>,
    /// The certificate in force that it ended.
    pub replaced: Option<Vec<u8>>,
    /// What became of it, in a word, e.g. `provisioned`.
    pub event: Option<String>,
    /// The hash that links it to the entry before; `None` if it is from before there were chains.
    pub hash: Option<[u8; 32]>,
}

impl Effect {
    /// A certificate that waited came into force: `sealed` if it was encrypted to the TPM, `ik_id` of
    /// this IK, in place of the one with this serial number and IK.
    pub(crate) fn of_activation(
        serial: [u8; 16],
        waited: &Waited,
        replaced: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Self {
        let event = match &replaced {
            _ if waited.sealed => "confirmed",
            Some((_, ik_id)) if *ik_id != waited.ik_id => "rekeyed",
            _ => "renewed",
        };
        let replaced = replaced.map(|(serial, _)| serial);
        Self { event: Some(event), serial: Some(serial.to_vec()), replaced }
    }
}

/// A certificate that waits to come into force.
pub(crate) struct Waited {
    /// Whether it was encrypted to the TPM, and not sent in clear to renew another.
    pub(crate) sealed: bool,
    pub(crate) ik_id: Vec<u8>,
}

impl AuditRow {
    /// A decision, with no place in a chain yet.
    pub(crate) fn of_decision(entry: &AuditEntry, effect: Effect) -> Self {
        let chain = match entry.change {
            Change::Made => Chain::Changes,
            Change::None => Chain::Others,
        };
        let name = |device: &DeviceId| device.as_str().to_owned();
        let (code, detail) = entry.refusal.clone().unzip();
        let is_refused = code.is_some_and(|code| code != ProblemCode::Pending);
        let event = effect.event.or_else(|| is_refused.then_some("refused"));
        Self {
            chain,
            id: 0,
            number: 0,
            time_us: entry.microseconds(),
            client: entry.client.as_str().to_owned(),
            action: entry.action.to_owned(),
            ek_id: entry.ek_id,
            proven: entry.proven().map(name),
            due: entry.due().map(name),
            code: code.map(ProblemCode::number),
            detail,
            duration_us: entry.duration_us,
            serial: effect.serial,
            replaced: effect.replaced,
            event: event.map(str::to_owned),
            hash: None,
        }
    }

    /// An operator's act, with no place in a chain yet.
    pub(crate) fn of_deed(deed: Deed, actor: &Actor) -> Self {
        Self {
            chain: Chain::Acts,
            id: 0,
            number: 0,
            time_us: microseconds(actor.at),
            client: actor.name.as_str().to_owned(),
            action: deed.action.to_owned(),
            ek_id: deed.ek_id,
            proven: None,
            due: deed.device.map(|device| device.as_str().to_owned()),
            code: None,
            detail: deed.detail,
            duration_us: 0,
            serial: None,
            replaced: deed.ended,
            event: None,
            hash: None,
        }
    }
}

/// Microseconds since 1970. They fit until the year 294,000.
pub(crate) fn microseconds(time: OffsetDateTime) -> i64 {
    (time.unix_timestamp_nanos() / 1000) as i64
}
