//! `assay-device tunnel`.

use std::io::{self, Write};

use assay_device::{DeviceOptions, Error, ListenAddress, TunnelOptions, read_certificates};
use assay_mqtt::BrokerUrl;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{DeviceArgs, options};

#[derive(Args)]
pub(super) struct TunnelArgs {
    /// The operational listener of the broker: mqtts://host[:port], by default port 8884.
    #[arg(long, value_name = "URL", value_parser = BrokerUrl::operational)]
    broker: BrokerUrl,
    /// Where local clients connect: a loopback address, which every user of this machine can
    /// connect to, or unix:PATH, a socket for its owner and its group.
    #[arg(long, value_name = "ADDRESS")]
    listen: ListenAddress,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) const EXAMPLES: &str = "Examples:
  assay-device tunnel --listen 127.0.0.1:1883 --broker mqtts://mqtt.example.com:8884 \\
      --ca-root root.pem --state /var/lib/assay-device
  mosquitto_pub -p 1883 -i logger -t device/v1/default/pump-17/telemetry -m 21.5

  assay-device tunnel --listen unix:/run/assay-device/mqtt --broker mqtts://mqtt.example.com:8884 \\
      --ca-root root.pem --state /var/lib/assay-device
  mosquitto_pub --unix /run/assay-device/mqtt -t device/v1/default/pump-17/telemetry -m 21.5

Everybody who can connect speaks as this device. The broker sees each local client under the client
id {device id}/{client id of the local client}.";

pub(super) fn run(args: TunnelArgs) -> Result<(), Error> {
    let TunnelArgs { broker, listen, device } = args;
    let ca_roots = read_certificates(&device.ca_root)?;
    let no_clock = device.no_clock;
    let device = DeviceOptions { ca_roots, no_clock, ..options(device.state, device.tpm)? };
    assay_device::tunnel(TunnelOptions { device, broker, listen }, show, until_told_to_stop())
}

fn show(line: &str) {
    // Written in one piece, because stderr has no buffer.
    _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Returns at SIGTERM, by which supervisors stop a service, and at SIGINT, by which people do.
async fn until_told_to_stop() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers, the signals end the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
