//! The command line: its commands, and what they print.

pub(crate) mod advice;
mod inspect;
mod key;
mod provision;
mod run;
mod status;
mod tunnel;

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::Duration;
use std::{env, fs};

use assay_device::tpm::{EkKind, HierarchyPasswords, Password, Tcti, TctiError};
use assay_device::{
    Check, Device, DeviceOptions, DoctorOptions, EkCertificate, EkChoice, EkDescription, Error,
    Outcome, endorsement_keys, examine, read_certificates,
};
use assay_mqtt::BrokerUrl;
use assay_wire::{Scope, printable_json};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

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
            Command::Run(args) => run::run(*args),
            Command::Status { state, json } => status::status(&state, json),
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

#[derive(Args, Clone)]
struct DeviceArgs {
    /// The CA's root certificate, PEM or DER. The certificates of the broker and of the device must
    /// lead to it.
    #[arg(long, value_name = "FILE")]
    ca_root: PathBuf,
    /// For a device without a clock. The device assumes that the time is not before the first day
    /// of the CA's root, and of any certificate that the CA signed. It may accept an expired
    /// certificate.
    #[arg(long)]
    no_clock: bool,
    /// The state directory; made if it is not there.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    #[command(flatten)]
    tpm: TpmArgs,
}

#[derive(Args, Clone)]
struct TpmArgs {
    /// How to reach the TPM: device:PATH, swtpm:host=H,port=P or swtpm:path=PATH. An agent built
    /// with libtss2 also takes tabrmd, mssim:host=H,port=P, and tss2: before any of these.
    #[arg(long, default_value_t = Tcti::default(), value_parser = parse_tcti)]
    tcti: Tcti,
    /// File with the TPM's owner password. A newline at its end does not count. Without the file,
    /// the environment variable ASSAY_OWNER_AUTH is used.
    #[arg(long, value_name = "FILE")]
    owner_auth_file: Option<PathBuf>,
    /// File with the TPM's endorsement password. Without the file, the environment variable
    /// ASSAY_ENDORSEMENT_AUTH is used.
    #[arg(long, value_name = "FILE")]
    endorsement_auth_file: Option<PathBuf>,
    /// How long one call to the TPM may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    tpm_timeout: u64,
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
  10 doctor: something failed";

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

fn show_step(step: &str, took: Duration) {
    // Written in one piece, because stderr has no buffer.
    let line = format!("{:>8.1} ms  {step}\n", took.as_secs_f64() * 1e3);
    _ = io::stderr().write_all(line.as_bytes());
}

fn hexadecimal(handle: u32) -> String {
    format!("{handle:#010x}")
}

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

fn open(args: DeviceArgs) -> Result<Device, Error> {
    let ca_roots = read_certificates(&args.ca_root)?;
    Device::open(DeviceOptions {
        ca_roots,
        no_clock: args.no_clock,
        ..options(args.state, args.tpm)?
    })
}

fn options(state: PathBuf, args: TpmArgs) -> Result<DeviceOptions, Error> {
    Ok(DeviceOptions {
        passwords: passwords(&args)?,
        tcti: args.tcti,
        tpm_timeout: Duration::from_secs(args.tpm_timeout),
        state,
        ca_roots: Vec::new(),
        no_clock: false,
    })
}

fn passwords(args: &TpmArgs) -> Result<HierarchyPasswords, Error> {
    Ok(HierarchyPasswords {
        owner: password(args.owner_auth_file.as_deref(), "ASSAY_OWNER_AUTH")?,
        endorsement: password(args.endorsement_auth_file.as_deref(), "ASSAY_ENDORSEMENT_AUTH")?,
    })
}

/// Reads a password from a file or the environment. It is never on the command line, which every
/// user of the machine can read.
fn password(file: Option<&Path>, variable: &str) -> Result<Password, Error> {
    let (source, mut password) = match file {
        Some(file) => {
            let unreadable =
                |error: io::Error| Error::Usage(format!("{}: {error}", file.display()));
            (file.display().to_string(), fs::read(file).map_err(unreadable)?)
        }
        None => (variable.into(), env::var_os(variable).unwrap_or_default().into_vec()),
    };
    if file.is_some() && password.ends_with(b"\n") {
        password.pop();
    }
    Password::new(password).ok_or_else(|| {
        Error::Usage(format!("{source}: a TPM password has at most {} bytes", Password::MAX))
    })
}

fn parse_tcti(text: &str) -> Result<Tcti, String> {
    text.parse().map_err(|error| match error {
        TctiError::WithoutLibrary(_) => {
            format!("{error}: cargo build --release -p assay-device --features tss2")
        }
        error => error.to_string(),
    })
}

/// Prints a JSON value in one line.
fn print_json(json: &Value) -> Result<(), Error> {
    print_line(&printable_json(&json.to_string()))
}

/// Like `println!`. But if the reader closes the pipe, as `head` does, the process ends silently,
/// as if by SIGPIPE.
fn print_line(line: &str) -> Result<(), Error> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => exit(128 + 13),
        outcome => outcome.map_err(|error| Error::Internal(format!("stdout: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[cfg(not(feature = "tss2"))]
    #[test]
    fn way_through_libtss2_that_is_not_built_in_is_refused_with_the_command_that_builds_it() {
        let error = parse_tcti("tabrmd").unwrap_err();
        assert!(error.contains("cargo build --release -p assay-device --features tss2"), "{error}");
        assert_eq!(parse_tcti("device:/dev/tpm0").unwrap().as_str(), "device:/dev/tpm0");
    }
}
