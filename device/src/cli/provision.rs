//! `assay-device provision` and `renew`: what they ask for, and what they print.

use std::path::PathBuf;
use std::time::Duration;

use assay_device::tpm::{IkKind, ParentKind};
use assay_device::{
    Credential, EkChoice, Error, Flow, ProvisionRequest, Provisioned, RenewalOutcome,
    read_certificates, rfc3339,
};
use assay_mqtt::BrokerUrl;
use assay_wire::{DeviceId, Scope};
use clap::Args;
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::device::{DeviceArgs, open};
use super::print::{hexadecimal, print_json, print_line, show_step};

/// What a device asks for.
#[derive(Args)]
pub(super) struct RequestArgs {
    /// The bootstrap listener of the broker: mqtts://host[:port], verified by --ca-root; or
    /// mqtt://… in laboratories.
    #[arg(long, value_name = "URL")]
    pub(super) broker: BrokerUrl,
    /// The CA's provisioning domain.
    #[arg(long, default_value = "default")]
    scope: Scope,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
    /// Which flow to use. ticket and sealed get a certificate: ticket in two round trips, sealed in
    /// one and a confirmation. shared-key gets an HMAC key. [default: the flow used before, or
    /// ticket]
    #[arg(long)]
    flow: Option<Flow>,
    /// The endorsement key to show: auto, p-256, p-384, rsa-2048, rsa-3072 or legacy-dps. auto
    /// takes the first one with a certificate. legacy-dps is the one that Azure's C SDK makes, for
    /// which there is no certificate. [default: the kind used before, or auto]
    #[arg(long, value_name = "KIND")]
    ek: Option<EkChoice>,
    /// The EK certificate, then its issuers, PEM or DER, instead of those in the TPM's NV memory.
    /// May be given more than once.
    #[arg(long, value_name = "FILE")]
    ek_certificate: Vec<PathBuf>,
    /// The identity key to make: p-256, p-384 or rsa-2048. [default: the kind used before, or
    /// p-256]
    #[arg(long, value_name = "KIND")]
    ik: Option<IkKind>,
    /// The persistent handle of the identity key. [default: the handle used before, or 0x81000200]
    #[arg(long, value_name = "HANDLE", value_parser = parse_handle)]
    ik_handle: Option<u32>,
    /// The parent that the CA sends an HMAC key to: p-256 or rsa-2048. Or a plain storage root key,
    /// srk-p-256 or srk-rsa-2048, if the CA allows it: from that, an attacker who controls this
    /// device's software can get the HMAC key. [default: p-256 or rsa-2048, as before]
    #[arg(long, value_name = "KIND")]
    parent: Option<ParentKind>,
    /// The persistent handle of the HMAC key. [default: the handle used before, or 0x81000100]
    #[arg(long, value_name = "HANDLE", value_parser = parse_handle)]
    hmac_handle: Option<u32>,
    /// The name to ask for. [default: the one that the CA gives this EK]
    #[arg(long, value_name = "ID")]
    device_id: Option<DeviceId>,
}

#[derive(Args)]
pub(super) struct ProvisionArgs {
    #[command(flatten)]
    request: RequestArgs,
    /// Ask the CA even if there is a valid certificate or an HMAC key here. Use it if the CA
    /// superseded or lost that one.
    #[arg(long)]
    again: bool,
    /// How long provisioning may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    deadline: u64,
    /// Print one JSON object on stdout, instead of the path of the certificate or, with a shared
    /// key, the device id.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct RenewArgs {
    /// The bootstrap listener of the broker, as for provision.
    #[arg(long, value_name = "URL")]
    broker: BrokerUrl,
    /// The CA's provisioning domain.
    #[arg(long, default_value = "default")]
    scope: Scope,
    #[command(flatten)]
    device: DeviceArgs,
    /// The EK certificate, then its issuers, as for provision.
    #[arg(long, value_name = "FILE")]
    ek_certificate: Vec<PathBuf>,
    /// How long all of it may take.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    deadline: u64,
    /// Print one JSON object on stdout, instead of the path of the certificate.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct RekeyArgs {
    #[command(flatten)]
    renewal: RenewArgs,
    /// The kind of the new identity key: p-256, p-384 or rsa-2048. [default: the kind in use]
    #[arg(long, value_name = "KIND")]
    ik: Option<IkKind>,
}

pub(super) const PROVISION_EXAMPLES: &str = "Examples:
  assay-device provision --broker mqtts://ca.example.com:8883 \\
      --ca-root root.pem --state /var/lib/assay-device
  assay-device provision --broker mqtts://ca.example.com:8883 \\
      --ca-root root.pem --state /var/lib/assay-device --flow sealed
  assay-device provision --broker mqtts://ca.example.com:8883 \\
      --ca-root root.pem --state /var/lib/assay-device --flow shared-key --parent rsa-2048
  assay-device provision --broker mqtts://localhost:8883 \\
      --ca-root root.pem --state ./state \\
      --tcti swtpm:host=127.0.0.1,port=2321 --ek rsa-2048 --json";

pub(super) const RENEW_EXAMPLE: &str = "Example:
  assay-device renew --broker mqtts://ca.example.com:8883 \\
      --ca-root root.pem --state /var/lib/assay-device";

pub(super) const REKEY_EXAMPLES: &str = "Examples:
  assay-device rekey --broker mqtts://ca.example.com:8883 \\
      --ca-root root.pem --state /var/lib/assay-device
  assay-device rekey --broker mqtts://ca.example.com:8883 \\
      --ca-root root.pem --state /var/lib/assay-device --ik p-384";

impl RenewArgs {
    fn request(self, ik: Option<IkKind>) -> Result<(ProvisionRequest, DeviceArgs, bool), Error> {
        let request = ProvisionRequest {
            broker: self.broker,
            scope: self.scope,
            flow: None,
            ek: None,
            ek_certificates: read_all(&self.ek_certificate)?,
            ik,
            ik_handle: None,
            parent: None,
            hmac_handle: None,
            device_id: None,
            again: false,
            deadline: Duration::from_secs(self.deadline),
        };
        Ok((request, self.device, self.json))
    }
}

impl RequestArgs {
    pub(super) fn request(&self, again: bool, deadline: u64) -> Result<ProvisionRequest, Error> {
        Ok(ProvisionRequest {
            broker: self.broker.clone(),
            scope: self.scope.clone(),
            flow: self.flow,
            ek: self.ek,
            ek_certificates: read_all(&self.ek_certificate)?,
            ik: self.ik,
            ik_handle: self.ik_handle,
            parent: self.parent,
            hmac_handle: self.hmac_handle,
            device_id: self.device_id.clone(),
            again,
            deadline: Duration::from_secs(deadline),
        })
    }
}

pub(super) fn provision(args: ProvisionArgs) -> Result<(), Error> {
    let request = args.request.request(args.again, args.deadline)?;
    let device = open(args.request.device)?;
    let provisioned = device.provision(&request, &mut show_step)?;
    print_provisioned(&provisioned, args.json)
}

pub(super) fn renew(args: RenewArgs) -> Result<(), Error> {
    let (request, device, json) = args.request(None)?;
    let provisioned = open(device)?.renew(&request, &mut show_step)?;
    print_provisioned(&provisioned, json)
}

pub(super) fn rekey(args: RekeyArgs) -> Result<(), Error> {
    let (request, device, json) = args.renewal.request(args.ik)?;
    let provisioned = open(device)?.rekey(&request, &mut show_step)?;
    print_provisioned(&provisioned, json)
}

fn read_all(files: &[PathBuf]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let mut certificates = Vec::new();
    for file in files {
        certificates.extend(read_certificates(file)?);
    }
    Ok(certificates)
}

fn print_provisioned(provisioned: &Provisioned, json: bool) -> Result<(), Error> {
    let already = if provisioned.was_provisioned { "already " } else { "" };
    let is_key = matches!(provisioned.credential, Credential::SharedKey { .. });
    let renewal = match provisioned.renewal {
        Some(RenewalOutcome::NotDue) if is_key => "; the key is not due to be rotated",
        Some(RenewalOutcome::Postponed) if is_key => "; the key is still to be rotated",
        None => "",
        Some(RenewalOutcome::Renewed) => ", with a renewed certificate",
        Some(RenewalOutcome::Rekeyed) => ", with a certificate for another key",
        Some(RenewalOutcome::Rotated) => ", with its next key",
        Some(RenewalOutcome::NotDue) => "; the certificate is not due for renewal",
        Some(RenewalOutcome::Postponed) => "; the certificate is still to be renewed",
    };
    eprintln!("{already}provisioned as {}{renewal}", provisioned.device_id);
    if json {
        return print_json(&json_of(provisioned));
    }
    match &provisioned.credential {
        Credential::Certificate { path, .. } => print_line(&path.display().to_string()),
        Credential::SharedKey { .. } => print_line(provisioned.device_id.as_str()),
    }
}

fn json_of(provisioned: &Provisioned) -> Value {
    let ms = |time: Duration| (time.as_secs_f64() * 1e4).round() / 10.0;
    let cost = provisioned.cost;
    let mut json = json!({
        "flow": provisioned.flow.to_string(),
        "device_id": provisioned.device_id.as_str(),
        "scope": provisioned.scope.as_str(),
        "ek": provisioned.ek.to_string(),
        "tpm_ms": ms(cost.tpm_time),
        "wire_ms": ms(cost.wire_time),
        "total_ms": ms(cost.total_time),
        "requests": cost.requests,
        "bytes_sent": cost.bytes_sent,
        "bytes_received": cost.bytes_received,
        "renewal": provisioned.renewal.map(|renewal| match renewal {
            RenewalOutcome::Renewed => "renewed",
            RenewalOutcome::Rekeyed => "rekeyed",
            RenewalOutcome::Rotated => "rotated",
            RenewalOutcome::NotDue => "not-due",
            RenewalOutcome::Postponed => "postponed",
        }),
    });
    match &provisioned.credential {
        Credential::Certificate { certificate, path, ik } => {
            json["ik"] = json!(ik.to_string());
            json["serial"] = json!(certificate.serial);
            json["not_after"] = json!(certificate.not_after);
            json["renew_at"] = json!(rfc3339(certificate.renew_at));
            json["certificate"] = json!(path);
        }
        Credential::SharedKey { parent, hmac_handle } => {
            json["parent"] = json!(parent.to_string());
            json["hmac_handle"] = json!(hexadecimal(*hmac_handle));
        }
    }
    json
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_persistent_handles_of_the_owner_are_taken() {
        assert_eq!(parse_handle("0x81000200"), Ok(0x8100_0200));
        assert_eq!(parse_handle("2164261120"), Ok(0x8100_0100));
        for text in ["0x81010001", "0x80000000", "81000200", "0x", ""] {
            assert!(parse_handle(text).is_err(), "{text}");
        }
    }
}
