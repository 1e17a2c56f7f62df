//! From the broker into the queues, without ever waiting.

use std::time::Instant;

use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, Publish, SubscribeReasonCode};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_wire::{ReplyBody, Request, Scope, Topic};
use crossbeam_channel::{Sender, TrySendError};
use tracing::debug;

use super::pressure::Pressure;
use super::{Job, Outbox, Queues, Receipt, busy};

/// Takes requests from one connection.
pub(super) struct Intake<'a> {
    pub(super) scope: &'a Scope,
    pub(super) connection: u64,
    pub(super) queues: &'a Queues<Sender<Job>>,
    pub(super) outbox: &'a Outbox,
}

impl Intake<'_> {
    /// Runs until the connection fails; calls `ready` once the broker has granted the subscription.
    pub(super) async fn run(
        &self,
        client: &AsyncClient,
        events: &mut EventLoop,
        mut ready: impl FnMut(),
    ) -> anyhow::Error {
        let mut pressure = Pressure::new(Instant::now());
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    if let Err(error) = client.try_subscribe(Topic::shared_requests(self.scope), QoS::AtLeastOnce) {
                        return error.into();
                    }
                }
                Ok(Event::Incoming(Packet::SubAck(granted))) => match granted.return_codes.first() {
                    Some(SubscribeReasonCode::Success(_)) => ready(),
                    refused => {
                        return anyhow::anyhow!(
                            "the broker refused the subscription to {}: {refused:?}",
                            Topic::shared_requests(self.scope)
                        );
                    }
                },
                Ok(Event::Incoming(Packet::Publish(publish))) => self.take(publish, &mut pressure),
                Ok(_) => {}
                Err(error) => return error.into(),
            }
        }
    }

    fn take(&self, publish: Publish, pressure: &mut Pressure) {
        let topic = str::from_utf8(&publish.topic).ok().and_then(Topic::parse);
        let Some(Topic::Request(_, client)) = topic else {
            return debug!(topic = ?publish.topic, "message on a topic that is not for requests");
        };
        if publish.retain {
            return debug!(%client, "retained request ignored: nobody may be waiting for its reply");
        }
        if publish.qos != QoS::AtLeastOnce {
            // Only what must be acknowledged is bounded by the receive maximum.
            return debug!(%client, "request ignored: it was not sent at QoS 1");
        }
        let received = Instant::now();
        let job = Job {
            client,
            message: publish.payload,
            response_topic: publish.properties.and_then(|properties| properties.response_topic),
            receipt: Receipt { packet_id: publish.pkid, connection: self.connection, received },
        };
        match self.queues.put(job) {
            Ok(()) => pressure.take(received),
            Err(TrySendError::Full(job)) => {
                let id = Request::id_of(&job.message);
                let retry_after = pressure.send_away(received, crate::random_u32());
                self.outbox.reply(job, id, ReplyBody::Problem(busy(retry_after)));
            }
            Err(TrySendError::Disconnected(_)) => debug!("no examiner is left"),
        }
    }
}
