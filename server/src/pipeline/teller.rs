//! Tells others what is in the audit, as events: each at least once, in the order of the record.
//!
//! The audit is the outbox. What was told is put on record once the broker has acknowledged it, so
//! a crash at any point loses no event: the next worker tells again what may not have been told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_broker_plugin::access::WORKER_PREFIX;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason};
use assay_mqtt::rumqttc::v5::{AsyncClient, Event as Packets, EventLoop};
use assay_mqtt::{Backoff, BrokerUrl, Client};
use assay_store::{Store, StoreError, Teller as TellerId, Told};
use crossbeam_channel::{Receiver, TryRecvError};
use time::OffsetDateTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, warn};

use super::Outfit;
use super::events::{Event, Events};

/// Tells events of one store on one broker.
pub(super) struct Teller {
    pub(super) broker: BrokerUrl,
    pub(super) outfit: watch::Receiver<Outfit>,
    pub(super) store: Box<dyn Store>,
}

/// Tells until `stop` is closed.
pub(super) fn run(mut teller: Teller, stop: &Receiver<()>) {
    if !teller.broker.is_tls() {
        warn!(
            broker = %teller.broker,
            "no events are told: they name devices, and this connection is not encrypted"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    // Unwrap safety: at start-up only, as for threads.
    runtime.unwrap().block_on(async {
        // Whatever is dropped here is told again by the next worker.
        tokio::select! {
            () = teller.tell() => {}
            () = stopped(stop) => {}
        }
    });
}

async fn stopped(stop: &Receiver<()>) {
    while stop.try_recv() != Err(TryRecvError::Disconnected) {
        sleep(POLL).await;
    }
}

impl Teller {
    /// Tells for ever.
    async fn tell(&mut self) {
        let id: TellerId = crate::random_bytes();
        let (mut events, mut link, mut from) = (Events::default(), None, Told::default());
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        let mut silent_since: Option<Instant> = None;
        loop {
            let pause = match self.tell_some(&id, &mut events, &mut link, &mut from).await {
                Ok(true) => {
                    silent_since = None;
                    backoff.reset();
                    continue;
                }
                Ok(false) => {
                    silent_since = None;
                    POLL
                }
                Err(error) => {
                    link = None;
                    let pause = backoff.next(Duration::ZERO, crate::random_u32());
                    let error = format!("{error:#}");
                    if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENCE {
                        silent_since = Some(Instant::now());
                        warn!(%error, "no events were told for a minute");
                    } else {
                        debug!(%error, retry_in = ?pause, "no events are told");
                    }
                    pause
                }
            };
            sleep(pause).await;
        }
    }

    /// Tells a batch. Returns whether there may be more.
    async fn tell_some(
        &mut self,
        id: &TellerId,
        events: &mut Events,
        link: &mut Option<Link>,
        from: &mut Told,
    ) -> Result<bool> {
        let untold = self.store.untold(*from, BATCH).map_err(fault)?;
        let is_due = !untold.rows.is_empty() || untold.more;
        if !is_due || !untold.may_be_turn_of(id, OffsetDateTime::now_utc()) {
            // What nobody needs to hear of is not looked at again.
            *from = if untold.rows.is_empty() { untold.told } else { *from };
            return Ok(false);
        }
        // Nobody else tells the same meanwhile.
        let now = OffsetDateTime::now_utc();
        let is_turn = untold.is_turn_of(id, now)
            || self.store.mark_told(Told::default(), id, now).map_err(fault)?;
        if !is_turn {
            return Ok(false);
        }
        let (now, scope) = (Instant::now(), self.outfit.borrow().ca.scope.clone());
        let told: Vec<_> = untold.rows.iter().flat_map(|row| events.of(row, &scope, now)).collect();
        if self.broker.is_tls() && !told.is_empty() {
            let link = match link {
                Some(link) => link,
                none => none.insert(Link::open(&self.broker, &self.outfit)),
            };
            link.publish(&told).await?;
        }
        // If it is somebody else's turn by now, they told it again, and go on.
        let is_turn = self.store.mark_told(untold.told, id, OffsetDateTime::now_utc());
        Ok(is_turn.map_err(fault)? && untold.more)
    }
}

fn fault(fault: StoreError) -> anyhow::Error {
    error!(error = %fault, "events are not told; trying again");
    fault.into()
}

/// A connection of its own, on which the broker's acknowledgements are counted.
struct Link {
    client: AsyncClient,
    /// How many messages the broker has acknowledged. Closed once the connection is lost.
    acknowledged: watch::Receiver<u64>,
    published: u64,
    pump: JoinHandle<()>,
}

impl Link {
    fn open(broker: &BrokerUrl, outfit: &watch::Receiver<Outfit>) -> Self {
        let client = Client {
            // Nobody can guess it: another client under the same id would end the connection.
            id: format!("{WORKER_PREFIX}{}", hex::encode(crate::random_bytes::<16>())),
            window: WINDOW,
            receive_maximum: 1,
            manual_acks: false,
        };
        let tls = Arc::clone(&outfit.borrow().tls);
        let (client, events) = assay_mqtt::connect(broker, &tls, client);
        let (count, acknowledged) = watch::channel(0);
        let pump = tokio::spawn(pump(events, count));
        Self { client, acknowledged, published: 0, pump }
    }

    /// Publishes events, in order, and waits until the broker has them.
    async fn publish(&mut self, events: &[Event]) -> Result<()> {
        for Event { topic, content } in events {
            if content.len() > LONGEST {
                warn!(%topic, bytes = content.len(), "an event is too long for a message, and is left out");
                continue;
            }
            let publish = self.client.publish(
                topic.to_string(),
                QoS::AtLeastOnce,
                false,
                content.clone().into_bytes(),
            );
            timeout(PATIENCE, publish).await.context("the broker takes no events")??;
            self.published += 1;
        }
        let published = self.published;
        let all = self.acknowledged.wait_for(|acknowledged| *acknowledged >= published);
        let acknowledged = timeout(PATIENCE, all).await.context("the broker is silent")?;
        ensure!(acknowledged.is_ok(), "the connection was lost");
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

async fn pump(mut events: EventLoop, acknowledged: watch::Sender<u64>) {
    let mut is_refused = false;
    loop {
        match events.poll().await {
            Ok(Packets::Incoming(Packet::PubAck(ack))) => {
                let is_taken = matches!(
                    ack.reason,
                    PubAckReason::Success | PubAckReason::NoMatchingSubscribers
                );
                // These pass; the others do not, and must not keep all later events back.
                if matches!(
                    ack.reason,
                    PubAckReason::UnspecifiedError
                        | PubAckReason::ImplementationSpecificError
                        | PubAckReason::QuotaExceeded
                ) {
                    warn!(reason = ?ack.reason, "the broker takes no events now; they are told again");
                    return;
                }
                // Told once a connection: it would be so with each event.
                if !is_taken && !std::mem::replace(&mut is_refused, true) {
                    warn!(reason = ?ack.reason, "the broker refuses events; see `assay broker check`");
                }
                acknowledged.send_modify(|count| *count += 1);
            }
            Ok(_) => {}
            Err(error) => {
                debug!(%error, "the connection for events is lost");
                return;
            }
        }
    }
}

/// The longest event: half of what the built-in broker takes.
const LONGEST: usize = 32 * 1024;
/// How often it is said that events are not told.
const SILENCE: Duration = Duration::from_secs(60);
/// Entries that are told at once. They are as many as one transaction of the recorder has.
const BATCH: u32 = 256;
/// Events on their way to the broker.
const WINDOW: u16 = 128;
/// How late an event is told.
const POLL: Duration = Duration::from_millis(200);
/// For one event, or for the acknowledgement of all.
const PATIENCE: Duration = Duration::from_secs(10);
