//! The command line `assay-device`.

use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs};

use assay_device::tpm::{EkKind, HierarchyPasswords, IkKind, Password, Tcti};
use assay_device::{Device, DeviceOptions, Error, KeyStatus, ProvisionRequest, Provisioned, Status, read_certificates};
use assay_mqtt::BrokerUrl;
use assay_wire::{DeviceId, Scope};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

/// Proves this device's TPM to an Assay CA over MQTT, and speaks MQTT with the certificate it gets for a key in the TPM.
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Gets a certificate for a key in the TPM. Safe to run again: with a valid certificate it does nothing.
    #[command(after_help = PROVISION_EXAMPLES)]
    Provision(ProvisionArgs),
    /// Shows what the state directory says, without asking the TPM or the CA.
    #[command(after_help = "Example:\n  assay-device status --state /var/lib/assay --json")]
    Status {
        /// The state directory.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// Print one JSON object on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Publishes one message over mutual TLS with the key in the TPM.
    #[command(after_help = PUBLISH_EXAMPLE)]
    Publish {
        /// The operational listener of the broker.
        #[arg(long, value_name = "URL")]
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
}

#[derive(Args)]
struct ProvisionArgs {
    /// The bootstrap listener of the broker: mqtts://host[:port], verified against --ca-root, or mqtt://… in laboratories.
    #[arg(long, value_name = "URL")]
    broker: BrokerUrl,
    /// The CA's provisioning domain.
    #[arg(long, default_value = "default")]
    scope: Scope,
    #[command(flatten)]
    device: DeviceArgs,
    /// The endorsement key to show: auto, p-256, p-384, rsa-2048 or rsa-3072. auto takes the first with a certificate.
    #[arg(long, value_name = "KIND", default_value = "auto", value_parser = parse_ek_choice)]
    ek: EkChoice,
    /// The EK certificate, then its issuers, PEM or DER, instead of those in the TPM's NV memory. May be given more than once.
    #[arg(long, value_name = "FILE")]
    ek_certificate: Vec<PathBuf>,
    /// The identity key to make: p-256, p-384 or rsa-2048. [default: the kind used before, or p-256]
    #[arg(long, value_name = "KIND")]
    ik: Option<IkKind>,
    /// The persistent handle of the identity key. [default: the handle used before, or 0x81000200]
    #[arg(long, value_name = "HANDLE", value_parser = parse_handle)]
    ik_handle: Option<u32>,
    /// The name to ask for. [default: the one that the CA gives this EK]
    #[arg(long, value_name = "ID")]
    device_id: Option<DeviceId>,
    /// Ask the CA even though there is a valid certificate here; for a CA that superseded or lost it.
    #[arg(long)]
    again: bool,
    /// How long all of it may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    deadline: u64,
    /// Print one JSON object on stdout instead of the path of the certificate.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct DeviceArgs {
    /// The CA's root certificate, PEM or DER: what the broker and the device's certificate must lead to.
    #[arg(long, value_name = "FILE")]
    ca_root: PathBuf,
    /// How to reach the TPM: device:PATH, swtpm:host=H,port=P, mssim:host=H,port=P or tabrmd.
    #[arg(long, default_value_t = Tcti::default())]
    tcti: Tcti,
    /// The state directory; made if it is not there.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// File with the TPM's owner password; a newline at its end does not count. Else the environment's ASSAY_OWNER_AUTH.
    #[arg(long, value_name = "FILE")]
    owner_auth_file: Option<PathBuf>,
    /// File with the TPM's endorsement password. Else the environment's ASSAY_ENDORSEMENT_AUTH.
    #[arg(long, value_name = "FILE")]
    endorsement_auth_file: Option<PathBuf>,
    /// How long one call to the TPM may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    tpm_timeout: u64,
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 unexpected; 2 usage; 3 refused by the CA; 4 broker or CA not reached before the deadline; 5 TPM \
failed or timed out; 6 state directory or file; 7 the answer of the CA failed verification.

TSS2_LOG=all+NONE in the environment silences libtss2's own error lines.";

const PROVISION_EXAMPLES: &str = "Examples:
  assay-device provision --broker mqtts://ca.example.com:8883 --ca-root root.pem --state /var/lib/assay
  assay-device provision --broker mqtts://localhost:8883 --ca-root root.pem --state ./state \\
      --tcti swtpm:host=127.0.0.1,port=2321 --ek rsa-2048 --json";

const PUBLISH_EXAMPLE: &str = "Example:
  assay-device publish --broker mqtts://mqtt.example.com:8884 --ca-root root.pem --state /var/lib/assay \\
      --topic telemetry --message '{\"temperature\":21.5}'";

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Provision(args) => provision(args),
        Command::Status { state, json } => status(&state, json),
        Command::Publish { broker, device, topic, message } => publish(&broker, device, &topic, message),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("assay-device: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn provision(args: ProvisionArgs) -> Result<(), Error> {
    let mut ek_certificates = Vec::new();
    for file in &args.ek_certificate {
        ek_certificates.extend(read_certificates(file)?);
    }
    let request = ProvisionRequest {
        broker: args.broker,
        scope: args.scope,
        ek: args.ek.0,
        ek_certificates,
        ik: args.ik,
        ik_handle: args.ik_handle,
        device_id: args.device_id,
        again: args.again,
        deadline: Duration::from_secs(args.deadline),
    };
    let device = open(args.device)?;
    let provisioned = device.provision(&request, &mut |step, took| {
        eprintln!("{:>8.1} ms  {step}", took.as_secs_f64() * 1e3);
    })?;
    if provisioned.was_provisioned {
        eprintln!("already provisioned as {}", provisioned.certificate.device_id);
    } else {
        eprintln!("provisioned as {}", provisioned.certificate.device_id);
    }
    if args.json {
        print_line(&json_of(&provisioned).to_string())
    } else {
        print_line(&provisioned.certificate_path.display().to_string())
    }
}

fn json_of(provisioned: &Provisioned) -> Value {
    let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
    let certificate = &provisioned.certificate;
    json!({
        "device_id": certificate.device_id.as_str(),
        "scope": certificate.scope.as_str(),
        "ek": provisioned.ek.to_string(),
        "ik": provisioned.ik.to_string(),
        "serial": certificate.serial,
        "not_after": certificate.not_after,
        "certificate": provisioned.certificate_path,
        "tpm_ms": ms(provisioned.tpm_time),
        "wire_ms": ms(provisioned.wire_time),
        "total_ms": ms(provisioned.total_time),
    })
}

fn status(state: &Path, json: bool) -> Result<(), Error> {
    let status = Status::read(state)?;
    if json {
        let status = status.map(|status| {
            let certificate = status.certificate.as_ref();
            let mut json = json_of_keys(&status.keys);
            json["device_id"] = json!(certificate.map(|(_, summary)| &summary.common_name));
            json["serial"] = json!(certificate.map(|(_, summary)| &summary.serial));
            json["not_after"] = json!(certificate.map(|(_, summary)| &summary.not_after));
            json["certificate"] = json!(certificate.map(|(path, _)| path));
            json["attempt"] = json!(status.attempt.as_ref().map(json_of_keys));
            json
        });
        return print_line(&status.unwrap_or(Value::Null).to_string());
    }
    let Some(status) = status else {
        return print_line("not provisioned");
    };
    let KeyStatus { scope, ek, ek_id, ik, ik_handle } = status.keys;
    print_line(&format!("scope         {scope}"))?;
    print_line(&format!("EK            {ek}, id {ek_id}"))?;
    print_line(&format!("identity key  {ik} at {ik_handle:#010x}"))?;
    match status.certificate {
        None => print_line("certificate   none yet")?,
        Some((path, summary)) => {
            print_line(&format!("device id     {}", summary.common_name))?;
            print_line(&format!("serial        {}", summary.serial))?;
            print_line(&format!("valid until   {}", summary.not_after))?;
            print_line(&format!("certificate   {}", path.display()))?;
        }
    }
    match status.attempt {
        None => Ok(()),
        Some(KeyStatus { scope, ek, ik, ik_handle, .. }) => {
            print_line(&format!("not granted   scope {scope}, EK {ek}, identity key {ik} at {ik_handle:#010x}"))
        }
    }
}

fn json_of_keys(keys: &KeyStatus) -> Value {
    json!({
        "scope": keys.scope.as_str(),
        "ek": keys.ek.to_string(),
        "ek_id": keys.ek_id,
        "ik": keys.ik.to_string(),
        "ik_handle": format!("{:#010x}", keys.ik_handle),
    })
}

fn publish(broker: &BrokerUrl, device: DeviceArgs, topic: &str, message: String) -> Result<(), Error> {
    if !broker.is_tls() {
        return Err(Error::Usage("a device authenticates by TLS: the broker's URL must begin with mqtts://".into()));
    }
    let topic = open(device)?.publish(broker, topic, message.into_bytes())?;
    eprintln!("published to {topic}");
    Ok(())
}

fn open(args: DeviceArgs) -> Result<Device, Error> {
    Device::open(DeviceOptions {
        tcti: args.tcti,
        passwords: HierarchyPasswords {
            owner: password(args.owner_auth_file.as_deref(), "ASSAY_OWNER_AUTH")?,
            endorsement: password(args.endorsement_auth_file.as_deref(), "ASSAY_ENDORSEMENT_AUTH")?,
        },
        tpm_timeout: Duration::from_secs(args.tpm_timeout),
        state: args.state,
        ca_roots: read_certificates(&args.ca_root)?,
    })
}

/// From a file or the environment, never from the command line, which every user of the machine can read.
fn password(file: Option<&Path>, variable: &str) -> Result<Password, Error> {
    let (source, mut password) = match file {
        Some(file) => {
            let unreadable = |error: io::Error| Error::Usage(format!("{}: {error}", file.display()));
            (file.display().to_string(), fs::read(file).map_err(unreadable)?)
        }
        None => (variable.into(), env::var_os(variable).unwrap_or_default().into_vec()),
    };
    if file.is_some() && password.ends_with(b"\n") {
        password.pop();
    }
    Password::new(password)
        .ok_or_else(|| Error::Usage(format!("{source}: a TPM password has at most {} bytes", Password::MAX)))
}

#[derive(Clone)]
struct EkChoice(Option<EkKind>);

fn parse_ek_choice(text: &str) -> Result<EkChoice, String> {
    if text == "auto" { Ok(EkChoice(None)) } else { text.parse().map(|kind| EkChoice(Some(kind))) }
}

fn parse_handle(text: &str) -> Result<u32, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    match number {
        Ok(handle) if (0x8100_0000..=0x8100_FFFF).contains(&handle) => Ok(handle),
        _ => Err("expected a persistent handle of the owner, 0x81000000 to 0x8100ffff".into()),
    }
}

/// Like `println!`, but a closed pipe is an error and not a panic.
fn print_line(line: &str) -> Result<(), Error> {
    writeln!(io::stdout(), "{line}").map_err(|error| Error::Internal(format!("stdout: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn only_persistent_handles_of_the_owner_are_taken() {
        assert_eq!(parse_handle("0x81000200"), Ok(0x8100_0200));
        assert_eq!(parse_handle("2164261120"), Ok(0x8100_0100));
        for text in ["0x81010001", "0x80000000", "81000200", "0x", ""] {
            assert!(parse_handle(text).is_err(), "{text}");
        }
    }
}
