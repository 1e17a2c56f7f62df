//! The way to the CA over the operational connection that the resident agent holds.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assay_device_core::REPLY_LIMIT;
use assay_mqtt::rumqttc::v5::AsyncClient;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::PublishProperties;

use crate::link::Heard;
use crate::trouble::Trouble;

/// One conversation with the CA over a connection that somebody else holds and ends. The device
/// asks under its device id there, which the access rules let it do with a certificate.
pub(crate) struct OperationalLine {
    client: AsyncClient,
    request_topic: String,
    heard: Receiver<Heard>,
    exchange: Exchange,
}

impl OperationalLine {
    /// `exchange` is that of the connection, which is there.
    pub(crate) fn open(client: AsyncClient, request_topic: String, exchange: &Exchange) -> Self {
        let exchange = exchange.clone();
        let heard = exchange.begin();
        Self { client, request_topic, heard, exchange }
    }

    /// Publishes a request. The broker drops it if no CA takes it in time.
    pub(crate) fn publish(&self, message: Vec<u8>) -> Result<(), Trouble> {
        let properties = PublishProperties {
            message_expiry_interval: Some(REPLY_LIMIT.as_secs() as u32),
            ..PublishProperties::default()
        };
        let (topic, qos) = (self.request_topic.clone(), QoS::AtLeastOnce);
        self.client
            .try_publish_with_properties(topic, qos, false, message, properties)
            .map_err(|error| Trouble::Passing(format!("nothing more can be sent: {error}")))
    }

    /// The next report; `None` if none comes within `limit`.
    pub(crate) fn hear(&self, limit: Duration) -> Option<Heard> {
        match self.heard.recv_timeout(limit) {
            Ok(heard) => Some(heard),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(Heard::Lost(Trouble::Passing("the connection ended".into())))
            }
        }
    }
}

impl Drop for OperationalLine {
    fn drop(&mut self) {
        self.exchange.end();
    }
}

/// Where the connection puts what it hears for the conversation, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Exchange(Arc<Mutex<Option<Sender<Heard>>>>);

impl Exchange {
    /// Passes something on. Returns it if there is no conversation.
    pub(crate) fn tell(&self, heard: Heard) -> Result<(), Heard> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(sender) => sender.send(heard).map_err(|error| error.0),
            None => Err(heard),
        }
    }

    /// Whether there is a conversation.
    pub(crate) fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn begin(&self) -> Receiver<Heard> {
        let (sender, heard) = mpsc::channel();
        // The connection is there.
        _ = sender.send(Heard::Connected);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        heard
    }

    /// Ends the conversation, or the connection under it.
    pub(crate) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
