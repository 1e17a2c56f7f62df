//! `assay-device run`: the resident agent.

use std::path::PathBuf;

use assay_device::{Change, Error, ResidentOptions, run_resident};
use assay_mqtt::BrokerUrl;
use clap::Args;

use super::advice;
use super::device::open;
use super::provision::RequestArgs;

#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// The operational listener of the broker: mqtts://host[:port], by default port 8884.
    /// [default: the host of --broker, port 8884]
    #[arg(long, value_name = "URL", value_parser = BrokerUrl::operational)]
    operational: Option<BrokerUrl>,
    /// A program to run whenever the device has another certificate or shared key than before.
    /// COMMAND is split at spaces into the program and its arguments; there is no shell, and there
    /// are no quotes. Its environment is PATH, ASSAY_STATE, ASSAY_CERTIFICATE and ASSAY_DEVICE_ID.
    /// It may take a minute, and what it leaves in the background is killed.
    #[arg(long, value_name = "COMMAND", default_value = "", hide_default_value = true)]
    on_renewed: String,
    /// A program to run for each message that an operator or a backend publishes on
    /// device/v1/SCOPE/DEVICE/command or below. COMMAND and its environment are as for
    /// --on-renewed. The message is on its standard input, and ASSAY_COMMAND is the topic below
    /// command/. One runs at a time, and 16 more may wait.
    #[arg(long, value_name = "COMMAND", default_value = "", hide_default_value = true)]
    on_command: String,
    /// A program to run whenever the device has a new configuration. COMMAND and its environment
    /// are as for --on-renewed. The document is on its standard input, nothing if the operator
    /// removed it, and ASSAY_REVISION is its revision. If it does not end with exit code 0, the
    /// next start runs it again.
    #[arg(long, value_name = "COMMAND", default_value = "", hide_default_value = true)]
    on_configuration: String,
}

pub(super) const RUN_EXAMPLES: &str = "Examples:
  assay-device run --broker mqtts://ca.example.com:8883 \\
      --ca-root root.pem --state /var/lib/assay-device
  assay-device run --broker mqtts://ca.example.com:8883 \\
      --operational mqtts://mqtt.example.com:8884 \\
      --ca-root root.pem --state /var/lib/assay-device \\
      --on-renewed '/usr/local/bin/new-certificate --quiet' \\
      --on-command /usr/local/bin/command --on-configuration /usr/local/bin/configure

It ends on SIGTERM and SIGINT with exit code 0. Otherwise it ends only if its options are wrong (2),
if its state directory cannot be used when it starts (6), or if the TPM does not come back from a
command (5). To every other trouble it has an answer: it waits, for 15 minutes at most.";

pub(super) fn run(args: RunArgs) -> Result<(), Error> {
    let RunArgs { request, operational, on_renewed, on_command, on_configuration } = args;
    let state: PathBuf = request.device.state.clone();
    let options = ResidentOptions {
        operational: operational.unwrap_or_else(|| request.broker.beside_operational()),
        on_renewed: words(&on_renewed),
        on_command: words(&on_command),
        on_configuration: words(&on_configuration),
        request: request.request(false, PATIENCE)?,
        state,
    };
    run_resident(&|| open(request.device.clone()), &options, &mut print_change)
}

/// A program and its arguments. There are no quotes.
fn words(command: &str) -> Vec<String> {
    command.split_whitespace().map(str::to_owned).collect()
}

/// One line: whoever reads logs counts lines.
fn print_change(change: Change<'_>) {
    let Change { text, error } = change;
    let error = error.map(|error| format!(": {}", advice::with_advice(error))).unwrap_or_default();
    let lines: Vec<_> =
        format!("{text}{error}").lines().map(|line| line.trim().to_owned()).collect();
    eprintln!("{}", lines.join(" "));
}

/// For one conversation with the CA, in seconds. It is the default of `provision`.
const PATIENCE: u64 = 300;
