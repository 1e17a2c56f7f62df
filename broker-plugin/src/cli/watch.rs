//! `assay watch`: an operator's subscriber.

use anyhow::{Context, Result, bail};
use assay_broker_plugin::access::OPERATOR_PREFIX;
use assay_broker_plugin::directory::Directory;
use assay_mqtt::rumqttc::v5::Event;
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_mqtt::rumqttc::v5::mqttbytes::v5::{Packet, SubscribeReasonCode};
use assay_mqtt::{BrokerUrl, Client};
use clap::Args;

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

impl Watch {
    pub(crate) fn run(self, directory: &Directory) -> Result<()> {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(self.watch(directory))
    }

    async fn watch(self, directory: &Directory) -> Result<()> {
        let broker = match self.broker {
            Some(broker) => broker,
            None => local_url(directory.config().operational)?,
        };
        let tls = client_tls(directory.credentials("operator")?, directory.roots()?, "operator")?;
        let id = format!("{OPERATOR_PREFIX}{:08x}", assay_broker_plugin::random_u32());
        let options = Client { id, window: 16, receive_maximum: 256, manual_acks: false };
        let (client, mut events) = assay_mqtt::connect(&broker, &tls, options);
        for filter in &self.filters {
            client.try_subscribe(filter, QoS::AtLeastOnce)?;
        }
        let mut left = self.count.unwrap_or(u64::MAX);
        let mut refused = 0;
        while left > 0 {
            match events.poll().await.with_context(|| format!("{broker}"))? {
                Event::Incoming(Packet::SubAck(granted)) => {
                    refused += granted.return_codes.iter().filter(|code| !is_granted(code)).count();
                    if refused > 0 {
                        bail!("the broker refused a filter of {:?}", self.filters);
                    }
                    eprintln!("watching {} on {broker}", self.filters.join(" "));
                }
                Event::Incoming(Packet::Publish(message)) => {
                    let topic = String::from_utf8_lossy(&message.topic);
                    println!("{}", table::printable(&format!("{topic} {}", String::from_utf8_lossy(&message.payload))));
                    left -= 1;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn is_granted(code: &SubscribeReasonCode) -> bool {
    matches!(code, SubscribeReasonCode::Success(_))
}
