//! What the resident agent hears from what it began.

use assay_mqtt::rumqttc::v5::mqttbytes::v5::PubAckReason;

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
    /// The conversation has ended.
    JobEnded(Box<Result<Provisioned, Error>>),
    /// The program that hears of new certificates has ended.
    HookEnded(Result<(), String>),
}
