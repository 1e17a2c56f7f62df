//! The command line: its commands, and what they print.

pub(crate) mod advice;
mod device;
mod inspect;
mod key;
mod print;
mod provision;
mod run;
mod status;
mod tunnel;

use std::env;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::Duration;

use assay_device::tpm::EkKind;
use assay_device::{
    Check, Device, DoctorOptions, EkCertificate, EkChoice, EkDescription, Error, Outcome,
    endorsement_keys, examine, read_certificates,
};
use assay_mqtt::BrokerUrl;
use assay_wire::Scope;
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use self::device::{DeviceArgs, TpmArgs, open, options, passwords};
use self::print::{print_json, print_line, show_step};

/// Proves this device's TPM to an Assay CA over MQTT, and speaks MQTT with what it gets: a
/// certificate for a key in the TPM, or an HMAC key that only the TPM can open.
#[derive(Parser)]
#[command(version = env!("ASSAY_VERSION"), after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Gets a certificate for a key in the TPM, or an HMAC key. It is safe to run it again: if the
    /// device has a valid one, it does nothing.
    #[command(after_help = provision::PROVISION_EXAMPLES)]
    Provision(provision::ProvisionArgs),
    /// Has the CA renew the certificate now, if the CA agrees that it is time. provision renews by
    /// itself when it is due.
    #[command(after_help = provision::RENEW_EXAMPLE)]
    Renew(provision::RenewArgs),
    /// Has the TPM make another identity key, and gets a certificate for it. The certificate in use
    /// stays good until the new one is adopted; then the old key is removed from the TPM.
    #[command(after_help = provision::REKEY_EXAMPLES)]
    Rekey(provision::RekeyArgs),
    /// Stays: gets a certificate or key, keeps it good, holds a connection to the operational
    /// listener, and says there whether the device is online, on the topic presence.
    #[command(after_help = run::RUN_EXAMPLES)]
    Run(Box<run::RunArgs>),
    /// Shows the contents of the state directory, without asking the TPM or the CA. The exit code
    /// says whether the device can sign in.
    #[command(after_help = status::STATUS_EXAMPLE)]
    Status {
        /// The state directory.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Print one JSON object on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Prints the document that the operator attached to this device: JSON or CBOR.
    #[command(after_help = status::CONFIGURATION_EXAMPLE)]
    Configuration {
        /// The state directory.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
    },
    /// Shows what the device has, verified and asked of the TPM: certificate, key, how the CA
    /// trusted the TPM, and when the certificate is renewed.
    #[command(after_help = inspect::INSPECT_EXAMPLES)]
    Inspect(inspect::InspectArgs),
    /// Removes the device's keys from the TPM, and the files of its state directory. It asks first.
    #[command(after_help = inspect::CLEANUP_EXAMPLES)]
    Cleanup(inspect::CleanupArgs),
    /// Publishes one message: over mutual TLS with the key in the TPM, or with a token of the HMAC
    /// key there.
    #[command(after_help = PUBLISH_EXAMPLE)]
    Publish {
        /// The operational listener of the broker: mqtts://host[:port], by default port 8884.
        #[arg(long, value_name = "URL", value_parser = BrokerUrl::operational)]
        broker: BrokerUrl,
        #[command(flatten)]
        device: DeviceArgs,
        /// Topic below device/v1/{scope}/{device id}/.
        #[arg(long, value_name = "SUB")]
        topic: String,
        /// What to publish.
        #[arg(long)]
        message: String,
    },
    /// Lets other programs of this machine speak MQTT as the device, without TLS and without a
    /// password: any MQTT client connects to this command, which connects to the broker with the
    /// key in the TPM. It runs until it is stopped.
    #[command(after_help = tunnel::EXAMPLES)]
    Tunnel(tunnel::TunnelArgs),
    /// Lets programs that can use a TPM themselves use the identity key.
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Checks everything that provisioning needs, and says what to do about each fault. It changes
    /// nothing and shows no secret.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Prints the endorsement keys of the TPM, for `assay enroll add`. It asks only the TPM.
    #[command(after_help = EK_EXAMPLES)]
    Ek {
        /// Only this one: auto, p-256, p-384, rsa-2048, rsa-3072 or legacy-dps. auto is the one
        /// that provision shows if you name none. [default: every one that the TPM has]
        #[arg(long, value_name = "KIND")]
        kind: Option<EkChoice>,
        #[command(flatten)]
        tpm: TpmArgs,
        /// Print JSON on stdout, one object per line.
        #[arg(long)]
        json: bool,
    },
    /// Prints a password for another MQTT client, made with the HMAC key in the TPM. Client id and
    /// user name are the device id.
    #[command(after_help = TOKEN_EXAMPLES)]
    Token {
        /// The state directory.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        #[command(flatten)]
        tpm: TpmArgs,
        /// How long the password is valid, at most 86400.
        #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
        lifetime: u64,
        /// Print one JSON object on stdout instead of the password alone.
        #[arg(long)]
        json: bool,
    },
}

impl Cli {
    pub(crate) fn run(self) -> Result<(), Error> {
        match self.command {
            Command::Provision(args) => provision::provision(args),
            Command::Renew(args) => provision::renew(args),
            Command::Rekey(args) => provision::rekey(args),
            Command::Run(args) => run::run(*args),
            Command::Status { state, json } => status::status(&state, json),
            Command::Configuration { state } => status::print_configuration(&state),
            Command::Inspect(args) => inspect::inspect(args),
            Command::Cleanup(args) => inspect::cleanup(args),
            Command::Publish { broker, device, topic, message } => {
                publish(&broker, device, &topic, message)
            }
            Command::Tunnel(args) => tunnel::run(args),
            Command::Key(command) => command.run(),
            Command::Doctor(args) => doctor(args),
            Command::Ek { kind, tpm, json } => ek(kind, tpm, json),
            Command::Token { state, tpm, lifetime, json } => {
                token(state, tpm, Duration::from_secs(lifetime), json)
            }
        }
    }
}

#[derive(Args)]
struct DoctorArgs {
    /// The bootstrap listener of the broker. Without it, the network is not checked.
    #[arg(long, value_name = "URL")]
    broker: Option<BrokerUrl>,
    /// The CA's provisioning domain.
    #[arg(long, default_value = "default")]
    scope: Scope,
    /// The CA's root certificate, PEM or DER. The broker and the clock are checked by it.
    #[arg(long, value_name = "FILE")]
    ca_root: Option<PathBuf>,
    /// The state directory. It is only read.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// As for provision.
    #[arg(long)]
    no_clock: bool,
    #[command(flatten)]
    tpm: TpmArgs,
    /// Print JSON on stdout, one object per line, with check, outcome, found and advice.
    #[arg(long)]
    json: bool,
}

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  unexpected
  2  usage
  3  refused by the CA or the broker, or a wrong setting: broker, root, scope, clock; a retry
     does not help
  4  broker or CA not reached before the deadline
  5  the TPM failed or timed out
  6  state directory or file
  7  the answer of the CA failed verification
  8  not provisioned: no state, or nothing granted yet
  9  the certificate has expired
  10 doctor: something failed
  11 an operator of the CA has not admitted this device yet: come back";

const PUBLISH_EXAMPLE: &str = "Example:
  assay-device publish --broker mqtts://mqtt.example.com:8884 --ca-root root.pem --state \
                               /var/lib/assay-device \\
      --topic telemetry --message '{\"temperature\":21.5}'";

const DOCTOR_EXAMPLES: &str = "Examples:
  assay-device doctor
  assay-device doctor --broker mqtts://ca.example.com:8883 --ca-root root.pem --state \
                               /var/lib/assay-device
  assay-device doctor --json | jq 'select(.outcome != \"pass\")'

Exit codes: 0 nothing failed; 2 usage; 10 something failed.";

const EK_EXAMPLES: &str = "Examples:
  assay-device ek
  assay-device ek --kind auto > ek.pem    # then, at the CA: assay enroll add ek.pem --device-id \
                           pump-17
  assay-device ek --json | jq -r .ek_id";

const TOKEN_EXAMPLES: &str = "Examples:
  assay-device token --state /var/lib/assay-device --lifetime 600 --json
  # mosquitto_pub reads options from this file, because every user can see a command line.
  umask 077; export XDG_CONFIG_HOME=$(mktemp -d)
  assay-device token --state /var/lib/assay-device --lifetime 60 |
      sed 's/^/-P /' > $XDG_CONFIG_HOME/mosquitto_pub
  mosquitto_pub -V mqttv5 -h mqtt.example.com -p 8884 --cafile root.pem \\
      -i pump-17 -u pump-17 -t device/v1/default/pump-17/telemetry -m 21.5";

fn publish(
    broker: &BrokerUrl,
    device: DeviceArgs,
    topic: &str,
    message: String,
) -> Result<(), Error> {
    let topic = open(device)?.publish(broker, topic, message.into_bytes())?;
    eprintln!("published to {topic}");
    Ok(())
}

fn doctor(args: DoctorArgs) -> Result<(), Error> {
    let options = DoctorOptions {
        passwords: passwords(&args.tpm)?,
        tcti: args.tpm.tcti,
        tpm_timeout: Duration::from_secs(args.tpm.tpm_timeout),
        state: args.state,
        ca_roots: args.ca_root.as_deref().map(read_certificates).transpose()?.unwrap_or_default(),
        no_clock: args.no_clock,
        broker: args.broker.map(|broker| (broker, args.scope)),
    };
    if options.broker.as_ref().is_some_and(|(broker, _)| broker.is_tls())
        && options.ca_roots.is_empty()
    {
        return Err(Error::Usage(
            "to check a broker over TLS, give its CA's root: --ca-root".into(),
        ));
    }
    let mut printed = Ok(());
    let checks = examine(options, &mut |check| {
        let line = if args.json { json_of_check(check).to_string() } else { line_of_check(check) };
        let outcome = print_line(&line);
        printed = std::mem::replace(&mut printed, Ok(())).and(outcome);
    });
    printed?;
    match checks.iter().filter(|check| check.outcome == Outcome::Fail).count() {
        0 => Ok(()),
        failed => Err(Error::Unwell { failed }),
    }
}

fn line_of_check(check: &Check) -> String {
    // Only a terminal gets colours.
    let (on, off) = match check.outcome {
        _ if !io::stdout().is_terminal() || env::var_os("NO_COLOR").is_some() => ("", ""),
        Outcome::Pass => ("\x1b[32m", "\x1b[0m"),
        Outcome::Warn => ("\x1b[33m", "\x1b[0m"),
        Outcome::Fail => ("\x1b[31m", "\x1b[0m"),
    };
    let advice =
        advice_on(check).map(|advice| format!("\n      what to do: {advice}")).unwrap_or_default();
    format!("{on}{}{off}  {:<17} {}{advice}", check.outcome, check.name, check.found)
}

fn json_of_check(check: &Check) -> Value {
    json!({
        "check": check.name,
        "outcome": check.outcome.to_string(),
        "found": check.found,
        "advice": advice_on(check),
    })
}

fn advice_on(check: &Check) -> Option<String> {
    check.advice.as_ref().and_then(advice::of_check)
}

fn ek(kind: Option<EkChoice>, tpm: TpmArgs, json: bool) -> Result<(), Error> {
    let (passwords, timeout) = (passwords(&tpm)?, Duration::from_secs(tpm.tpm_timeout));
    let eks = endorsement_keys(tpm.tcti, passwords, timeout, kind, &mut show_step)?;
    for (number, ek) in eks.iter().enumerate() {
        if json {
            print_json(&json_of_ek(ek))?;
            continue;
        }
        if number > 0 {
            print_line("")?;
        }
        print_ek(ek)?;
    }
    Ok(())
}

/// RFC 7468 §2 allows other text before and between PEM blocks. So the output for one EK is a file
/// for `assay enroll add`.
fn print_ek(ek: &EkDescription) -> Result<(), Error> {
    let default = if ek.is_default { "; provision shows this one by default" } else { "" };
    print_line(&format!("EK            {}, template {}{default}", ek.kind, ek.kind.template()))?;
    print_line(&format!("id            {}", ek.ek_id))?;
    print_line(&format!("device id     {}, unless an enrolment names another", ek.device_id))?;
    match &ek.certificate {
        None => print_line("certificate   none in the TPM")?,
        Some(EkCertificate { subject, issuer, not_after, is_for_this_key, issuers, .. }) => {
            let subject = if subject.is_empty() { "no subject" } else { subject };
            print_line(&format!("certificate   {subject}, issued by {issuer}, until {not_after}"))?;
            if *issuers > 0 {
                print_line(&format!("issuers       {issuers} in the TPM"))?;
            }
            if !is_for_this_key {
                print_line("              it is for another key than this EK")?;
            }
        }
    }
    let legacy = if ek.kind == EkKind::LegacyDps { " --legacy-dps-ek" } else { "" };
    print_line(&format!(
        "to enrol it   assay enroll add FILE{legacy}, where FILE has what follows"
    ))?;
    let pem = ek.enrolment();
    print_line(pem.trim_end())
}

fn json_of_ek(ek: &EkDescription) -> Value {
    let certificate = ek.certificate.as_ref().map(|certificate| {
        json!({
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "not_after": certificate.not_after,
            "is_for_this_key": certificate.is_for_this_key,
            "issuers": certificate.issuers,
            "pem": certificate.pem,
        })
    });
    json!({
        "ek": ek.kind.to_string(),
        "template": ek.kind.template(),
        "default": ek.is_default,
        "ek_id": ek.ek_id,
        "device_id": ek.device_id,
        "public_key": ek.public_key,
        "certificate": certificate,
        "enrolment": ek.enrolment(),
    })
}

fn token(state: PathBuf, tpm: TpmArgs, lifetime: Duration, json: bool) -> Result<(), Error> {
    // No certificate is verified here, so no root is needed.
    let token = Device::open(options(state, tpm)?)?.token(lifetime)?;
    if !json {
        return print_line(&token.password);
    }
    let json = json!({
        "client_id": token.device_id.as_str(),
        "user_name": token.device_id.as_str(),
        "password": token.password,
        "expires_at": token.expires_at,
    });
    print_json(&json)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
