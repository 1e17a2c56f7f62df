//! The way to the CA over the operational connection that the resident agent holds.

use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use assay_mqtt::rumqttc::v5::AsyncClient;

use crate::link::{self, Heard};
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
        link::publish(&self.client, &self.request_topic, message)
    }

    /// The next report; `None` if none comes within `limit`.
    pub(crate) fn hear(&self, limit: Duration) -> Option<Heard> {
        link::hear(&self.heard, limit)
    }
}

impl Drop for OperationalLine {
    fn drop(&mut self) {
        self.exchange.end();
    }
}

/// Where the connection puts what it hears for the conversation, if there is one.
#[derive(Clone, Default)]
pub(crate) struct Exchange(Arc<Mutex<Option<SyncSender<Heard>>>>);

impl Exchange {
    /// Passes something on. Returns it if there is no conversation, or if that has too much to hear
    /// already: then somebody sends what no CA sends, and the device asks again.
    pub(crate) fn tell(&self, heard: Heard) -> Result<(), Heard> {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = &*slot else { return Err(heard) };
        sender.try_send(heard).map_err(|error| match error {
            TrySendError::Full(heard) | TrySendError::Disconnected(heard) => heard,
        })
    }

    /// Whether there is a conversation.
    pub(crate) fn is_open(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn begin(&self) -> Receiver<Heard> {
        let (sender, heard) = mpsc::sync_channel(MOST_HEARD);
        // The connection is there.
        _ = sender.try_send(Heard::Connected);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        heard
    }

    /// Ends the conversation, or the connection under it.
    pub(crate) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// A conversation waits for one reply at a time, and another one may be late. With the longest
/// messages, this is a quarter of a megabyte.
const MOST_HEARD: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_nobody_reads_are_dropped_and_the_end_of_the_connection_is_heard_all_the_same() {
        let exchange = Exchange::default();
        assert!(exchange.tell(Heard::Reply(vec![])).is_err(), "there is no conversation");
        let heard = exchange.begin();
        let taken = (0..100).filter(|_| exchange.tell(Heard::Reply(vec![7])).is_ok()).count();
        assert_eq!(taken, MOST_HEARD - 1);
        exchange.end();
        let next = || link::hear(&heard, Duration::ZERO);
        assert!(matches!(next(), Some(Heard::Connected)));
        for _ in 0..taken {
            assert!(matches!(next(), Some(Heard::Reply(_))));
        }
        assert!(matches!(next(), Some(Heard::Lost(_))));
    }
}
