//! `assay watch`: an operator's subscriber.

use std::time::Duration;

use anyhow::{Result, bail};
use assay_broker_plugin::access::OPERATOR_PREFIX;
use assay_mqtt::rumqttc::v5::Event;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, SubscribeReasonCode};
use assay_mqtt::{BrokerUrl, Client};
use assay_server::directory::Directory;
use clap::Args;
use tokio::time::sleep;

use super::outfit::{client_tls, local_url};
use super::table;

#[derive(Args)]
pub(crate) struct Watch {
    /// Where the operational listener is [default: what assay.toml says, on this machine]
    #[arg(long)]
    broker: Option<BrokerUrl>,
    /// Stop after this many messages
    #[arg(long)]
    count: Option<u64>,
    /// Topic filters, e.g. fleet/v1/+/+/event for what the CA says of devices
    #[arg(default_value = "device/v1/+/+/#")]
    filters: Vec<String>,
}

/// The longest packet that is heard, in bytes; a broker drops longer ones. Our own takes 64 KiB
/// from a device.
const LONGEST: u32 = 1024 * 1024;

impl Watch {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?
            .block_on(self.watch(directory))
    }

    async fn watch(self, directory: &Directory) -> Result<()> {
        let broker = match self.broker {
            Some(broker) => broker,
            None => local_url(directory.config().operational)?,
        };
        let tls = client_tls(directory.credentials("operator")?, directory.roots()?, "operator")?;
        let id = format!("{OPERATOR_PREFIX}{:08x}", assay_server::random_u32());
        let (mut left, mut pause) = (self.count.unwrap_or(u64::MAX), FIRST_PAUSE);
        let mut has_watched = false;
        loop {
            let options =
                Client { id: id.clone(), window: 16, receive_maximum: 256, manual_acks: false };
            let (client, mut events) = assay_mqtt::connect(&broker, &tls, options);
            events.options.set_max_packet_size(Some(LONGEST));
            for filter in &self.filters {
                client.try_subscribe(filter, QoS::AtLeastOnce)?;
            }
            let mut is_watching = false;
            let lost = loop {
                if left == 0 {
                    return Ok(());
                }
                match events.poll().await {
                    Ok(Event::Incoming(Packet::SubAck(granted))) => {
                        if !granted.return_codes.iter().all(is_granted) {
                            bail!("the broker refused a filter of {:?}", self.filters);
                        }
                        eprintln!("watching {} on {broker}", self.filters.join(" "));
                        is_watching = true;
                    }
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        let topic = String::from_utf8_lossy(&message.topic);
                        let payload = String::from_utf8_lossy(&message.payload);
                        table::print_line(table::printable(&format!("{topic} {payload}")));
                        left -= 1;
                    }
                    Ok(_) => {}
                    Err(error) => break anyhow::Error::from(error).context(broker.to_string()),
                }
            };
            has_watched |= is_watching;
            // What is wrong from the beginning is told; what worked once comes back.
            if !has_watched {
                return Err(lost);
            }
            if is_watching {
                pause = FIRST_PAUSE;
            }
            eprintln!(
                "{}",
                table::printable(&format!("{lost:#}; connecting again in {} s", pause.as_secs()))
            );
            sleep(pause).await;
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }
}

fn is_granted(code: &SubscribeReasonCode) -> bool {
    matches!(code, SubscribeReasonCode::Success(_))
}

/// Before a lost connection is made again, the first time and in the end.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
