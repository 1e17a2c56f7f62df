//! What the resident agent hears from what it began.

use std::process::ExitStatus;

use assay_mqtt::rumqttc::v5::mqttbytes::v5::{PubAckReason, SubscribeReasonCode};
use assay_wire::DeviceId;

use super::plan::News;
use super::program::NotRun;
use super::programs::Occasion;
use crate::device::Provisioned;
use crate::error::Error;
use crate::trouble::Trouble;

/// A report of a connection, of a conversation with the CA, or of a program that was started.
#[derive(Debug)]
pub(super) enum Heard {
    /// The broker has let the device in, on the connection of this number.
    Up(u64),
    /// The broker does not take the presence, for this reason. The connection stays.
    NoPresence(u64, PubAckReason),
    /// The attempt to connect, or the connection, is over.
    Over(u64, Trouble),
    /// The conversation goes on, but an attempt failed for this reason.
    Retrying(String),
    /// The conversation goes on, but a configuration is not taken, or an HMAC key not rotated.
    Refusal(String),
    /// The conversation has ended.
    JobEnded(Box<Result<Provisioned, Error>>),
    /// The broker does not grant a subscription to this filter, for this reason. The connection
    /// stays.
    NotSubscribed(u64, String, SubscribeReasonCode),
    /// The broker says which configurations are new, on the connection of this number.
    News(u64, News),
    /// Somebody published this on a command topic of the device.
    Command(DeviceId, Occasion),
    /// A program has ended.
    ProgramEnded(Occasion, Result<ExitStatus, NotRun>),
}
