//! Replies, and what is retained for everybody, on their way to the broker.

use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::Publish;
use assay_mqtt::rumqttc::v5::{AsyncClient, ClientError};
use assay_wire::{Reply, ReplyBody, Scope, Topic};
use bytes::Bytes;
use tokio::sync::mpsc;
use tracing::warn;

use super::job::{Delivery, Job};
use super::ledger::{Debt, Ledger};
use super::metrics::Metrics;

/// Hands messages to whichever connection is up.
#[derive(Clone)]
pub(super) struct Outbox {
    pub(super) scope: Scope,
    letters: mpsc::Sender<Letter>,
    pub(super) ledger: Ledger,
    pub(super) metrics: Metrics,
}

pub(super) struct Letter {
    /// None if nothing is to be said, only acknowledged.
    message: Option<Message>,
    cause: Cause,
}

struct Message {
    topic: Topic,
    payload: Vec<u8>,
    retain: bool,
}

/// Why a letter is sent.
enum Cause {
    /// A request came.
    Request(Delivery),
    /// The worker sends it by itself.
    Own { _debt: Debt },
}

#[cfg(test)]
impl Letter {
    /// The reply in it, if it is one.
    pub(super) fn reply(&self) -> Option<ReplyBody> {
        let message = self.message.as_ref()?;
        Reply::decode(&message.payload).ok().map(|reply| reply.body)
    }

    /// The topic and the content, if it is retained.
    pub(super) fn retained(&self) -> Option<(String, &[u8])> {
        let message = self.message.as_ref().filter(|message| message.retain)?;
        Some((message.topic.to_string(), &message.payload))
    }
}

impl Outbox {
    pub(super) fn new(scope: Scope, letters: mpsc::Sender<Letter>, metrics: Metrics) -> Self {
        Self { scope, letters, ledger: Ledger::default(), metrics }
    }

    pub(super) fn reply(&self, job: Job, body: ReplyBody) {
        self.metrics.answered(&body, job.delivery.since.elapsed());
        let id = job.received.id();
        let topic = Topic::Reply(self.scope.clone(), job.received.client);
        let payload = Reply { id, body }.encode();
        self.post(Letter {
            message: Some(Message { topic, payload, retain: false }),
            cause: Cause::Request(job.delivery),
        });
    }

    /// Acknowledges a request that gets no reply. Otherwise it would count among the unacknowledged
    /// requests, whose number is limited.
    pub(super) fn acknowledge(&self, delivery: Delivery) {
        self.post(Letter { message: None, cause: Cause::Request(delivery) });
    }

    /// Publishes a retained message: for all subscribers, and for those who come later. An empty
    /// one removes what is retained (MQTT 5 §3.3.1.3).
    ///
    /// Returns `false` if there is no room for it now: nobody asks for it again, so the caller
    /// tries again.
    #[must_use]
    pub(super) fn proclaim(&self, topic: Topic, payload: Vec<u8>) -> bool {
        let message = Some(Message { topic, payload, retain: true });
        self.letters.try_send(Letter { message, cause: self.own() }).is_ok()
    }

    /// Whether so many letters have room now.
    pub(super) fn has_room_for(&self, letters: usize) -> bool {
        self.letters.capacity() >= letters
    }

    fn own(&self) -> Cause {
        Cause::Own { _debt: self.ledger.owe() }
    }

    /// Never waits: the intake must not wait, and the other threads should not wait for a broker
    /// that is gone.
    fn post(&self, letter: Letter) {
        if let Err(error) = self.letters.try_send(letter) {
            warn!(%error, "a message to the broker is dropped; its device will ask again");
        }
    }
}

/// Publishes letters and acknowledges the requests they answer, until the connection fails.
pub(super) async fn deliver(
    client: &AsyncClient,
    connection: u32,
    posted: &mut mpsc::Receiver<Letter>,
) -> anyhow::Error {
    while let Some(letter) = posted.recv().await {
        if let Err(error) = publish(client, connection, letter).await {
            return error.into();
        }
    }
    anyhow::anyhow!("the worker is stopping")
}

async fn publish(client: &AsyncClient, connection: u32, letter: Letter) -> Result<(), ClientError> {
    if let Some(Message { topic, payload, retain }) = letter.message {
        client.publish(topic.to_string(), QoS::AtLeastOnce, retain, payload).await?;
    }
    match letter.cause {
        Cause::Request(delivery) if delivery.connection == connection => {
            let mut request = Publish::new("", QoS::AtLeastOnce, Bytes::new(), None);
            request.pkid = delivery.packet_id;
            client.ack(&request).await
        }
        Cause::Request(_) | Cause::Own { .. } => Ok(()),
    }
}
