//! Takes requests from the broker into the queues, and never waits.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use assay_mqtt::rumqttc::Outgoing;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, Publish, SubscribeReasonCode};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event, EventLoop};
use assay_wire::{ReplyBody, Topic};
use crossbeam_channel::{Sender, TrySendError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::debug;

use super::asked_to_stop;
use super::job::{Delivery, Job, Received};
use super::outbox::Outbox;
use super::outcome::busy;
use super::pressure::Pressure;
use super::queues::Queues;

/// Takes requests from one connection.
pub(super) struct Intake<'a> {
    pub(super) connection: u32,
    pub(super) queues: &'a Queues<Sender<Box<Job>>>,
    pub(super) outbox: &'a Outbox,
}

/// How far a connection is.
enum Stage {
    Connecting,
    Serving,
    /// The subscription is being given up.
    Leaving(Leaving),
    /// No more requests come; those that came are being answered.
    Finishing,
    /// DISCONNECT is queued.
    Gone,
}

/// MQTT 5 lets a broker send the messages that it has queued for us after it has acknowledged our
/// UNSUBSCRIBE (§3.10.4). So once all that came is answered, the worker sends UNSUBSCRIBE again,
/// only to get an answer. If nothing came before that answer, nothing is left.
#[derive(Default)]
struct Leaving {
    /// The first UNSUBSCRIBE was acknowledged.
    released: bool,
    /// An UNSUBSCRIBE is under way.
    asked: bool,
    /// No request came since the last UNSUBSCRIBE was sent.
    quiet: bool,
}

impl Intake<'_> {
    /// Runs until the connection fails. Once it is to `stop`, runs until all that the broker has
    /// for us is answered and DISCONNECT is sent. Calls `ready` once the broker has granted the
    /// subscription.
    pub(super) async fn run(
        &self,
        client: &AsyncClient,
        events: &mut EventLoop,
        mut stop: watch::Receiver<Option<tokio::time::Instant>>,
        mut ready: impl FnMut(),
    ) -> Result<()> {
        let mut pressure = Pressure::new(Instant::now());
        let (mut stage, mut stopping) = (Stage::Connecting, false);
        let mut tick = tokio::time::interval(TICK);
        // Nothing waits for ticks before the stop, so many are missed by then. `Delay` keeps the
        // period between the steps of the end.
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = {
                // Polled to its end, because a message of ours may be lost if this is dropped
                // earlier.
                let mut poll = pin!(events.poll());
                loop {
                    tokio::select! {
                        event = &mut poll => break event?,
                        _ = asked_to_stop(&mut stop), if !stopping => stopping = true,
                        _ = tick.tick(), if stopping => match stage {
                            Stage::Connecting if self.owed() == 0 => return Ok(()),
                            _ => stage = self.leave(client, stage),
                        },
                    }
                }
            };
            match event {
                Event::Incoming(Packet::ConnAck(_)) if stopping => stage = Stage::Finishing,
                Event::Incoming(Packet::ConnAck(_)) => {
                    client.try_subscribe(self.filter(), QoS::AtLeastOnce)?;
                    stage = Stage::Serving;
                }
                Event::Incoming(Packet::SubAck(granted)) => match granted.return_codes.first() {
                    Some(SubscribeReasonCode::Success(_)) => ready(),
                    refused => bail!(
                        "the broker refused the subscription to {}: {refused:?}",
                        self.filter()
                    ),
                },
                Event::Incoming(Packet::Publish(publish)) => {
                    if let Stage::Leaving(leaving) = &mut stage {
                        leaving.quiet = false;
                    }
                    self.take(publish, &mut pressure);
                }
                Event::Incoming(Packet::UnsubAck(_)) => {
                    if let Stage::Leaving(leaving) = &mut stage {
                        if leaving.released && leaving.quiet && self.owed() == 0 {
                            stage = Stage::Finishing;
                        } else {
                            (leaving.released, leaving.asked) = (true, false);
                        }
                    }
                }
                Event::Outgoing(Outgoing::Disconnect) => return Ok(()),
                _ => {}
            }
        }
    }

    /// The next step towards the end. If the client's queue has no room, the next tick tries again.
    fn leave(&self, client: &AsyncClient, stage: Stage) -> Stage {
        match stage {
            Stage::Serving => self.leave(client, Stage::Leaving(Leaving::default())),
            Stage::Leaving(leaving)
                if !leaving.asked && (!leaving.released || self.owed() == 0) =>
            {
                let asked = client.try_unsubscribe(self.filter()).is_ok();
                Stage::Leaving(Leaving { asked, quiet: true, ..leaving })
            }
            Stage::Finishing if self.owed() == 0 && client.try_disconnect().is_ok() => Stage::Gone,
            stage => stage,
        }
    }

    fn owed(&self) -> usize {
        self.outbox.ledger.owed()
    }

    fn filter(&self) -> String {
        Topic::shared_requests(&self.outbox.scope)
    }

    fn take(&self, publish: Publish, pressure: &mut Pressure) {
        if publish.qos != QoS::AtLeastOnce {
            // The receive maximum bounds only messages that must be acknowledged.
            return debug!(topic = ?publish.topic, "request ignored: it was not sent at QoS 1");
        }
        let since = Instant::now();
        let delivery = Delivery {
            packet_id: publish.pkid,
            connection: self.connection,
            since,
            _debt: self.outbox.ledger.owe(),
        };
        let topic = str::from_utf8(&publish.topic).ok().and_then(Topic::parse);
        let Some(Topic::Request(_, client)) = topic else {
            debug!(topic = ?publish.topic, "message on a topic that is not for requests");
            return self.outbox.acknowledge(delivery);
        };
        if publish.retain {
            debug!(%client, "retained request ignored: nobody may be waiting for its reply");
            return self.outbox.acknowledge(delivery);
        }
        let response_topic = publish.properties.and_then(|properties| properties.response_topic);
        let now = OffsetDateTime::now_utc();
        let received = Received::new(client, publish.payload, response_topic, now);
        match self.queues.put(Box::new(Job { received, delivery })) {
            Ok(()) => pressure.take(since),
            Err(TrySendError::Full(job)) => {
                let retry_after = pressure.send_away(since, crate::random_u32());
                self.outbox.reply(*job, ReplyBody::Problem(busy(retry_after)));
            }
            Err(TrySendError::Disconnected(_)) => debug!("no planner is left"),
        }
    }
}

/// How often a worker that ends checks whether it is done. A near broker has sent everything within
/// this time.
const TICK: Duration = Duration::from_millis(50);
