//! `assay-device inspect` and `cleanup`: what a device has, and the end of it.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use assay_device::{AttestedBy, Device, Error, Inspection, OwnKey};
use clap::Args;
use serde_json::json;

use super::device::{DeviceArgs, TpmArgs, open, options};
use super::print::{print_json, print_line};
use super::status::{json_of_status, print_revision, print_status, revision};

pub(super) const INSPECT_EXAMPLES: &str = "Examples:
  assay-device inspect --ca-root root.pem --state /var/lib/assay-device
  assay-device inspect --ca-root root.pem --state /var/lib/assay-device --json | jq .usable

Exit codes: 0 the device can sign in; otherwise that of the reason, as of the other commands.";

pub(super) const CLEANUP_EXAMPLES: &str = "Examples:
  assay-device cleanup --state /var/lib/assay-device
  assay-device cleanup --state /var/lib/assay-device --yes";

#[derive(Args)]
pub(super) struct InspectArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// Print one JSON object on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct CleanupArgs {
    /// The state directory.
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    #[command(flatten)]
    tpm: TpmArgs,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

pub(super) fn inspect(args: InspectArgs) -> Result<(), Error> {
    let state = args.device.state.clone();
    let Inspection { status, issuer, attested_by, pinned_roots, usable } =
        open(args.device)?.inspect()?;
    let attested_by = attested_by.map(|by| match by {
        AttestedBy::Vendor => "vendor",
        AttestedBy::Operator => "operator",
    });
    if args.json {
        let mut json = json_of_status(&status, revision(&state)?);
        json["issuer"] = json!(issuer);
        json["attested_by"] = json!(attested_by);
        json["pinned_roots"] = json!(pinned_roots);
        json["usable"] = json!(usable.is_ok());
        json["signature_ms"] = json!(usable.as_ref().ok().map(|took| took.as_millis() as u64));
        print_json(&json)?;
    } else {
        print_status(&status)?;
        print_revision(&state)?;
        if let Some(issuer) = issuer {
            print_line(&format!("issuer        {issuer}"))?;
        }
        match attested_by {
            Some("vendor") => print_line("attestation   the EK certificate, by a trusted vendor")?,
            Some(_) => print_line("attestation   the EK, which an operator enrolled")?,
            None => {}
        }
        for root in pinned_roots {
            print_line(&format!("new root      {root}, pinned"))?;
        }
        if let Ok(took) = usable {
            print_line(&format!("usable        yes; the TPM took {} ms", took.as_millis()))?;
        }
    }
    usable.map(drop)
}

pub(super) fn cleanup(args: CleanupArgs) -> Result<(), Error> {
    let state = args.state.display().to_string();
    if !args.state.is_dir() {
        return Err(Error::NotProvisioned(format!("there is no directory {state}")));
    }
    let device = Device::open(options(args.state, args.tpm)?)?;
    let keys = device.keys()?;
    for found in &keys {
        let kind = match found.key {
            OwnKey::Identity { ik, .. } => format!("identity key {ik}"),
            OwnKey::Hmac { .. } => "HMAC key".into(),
        };
        eprintln!("the {kind} at {:#010x} of the TPM", found.handle());
    }
    eprintln!("the files of assay-device in {state}");
    if !args.yes && !agrees()? {
        return Err(Error::Usage("nothing was removed".into()));
    }
    device.clean_up(&keys)?;
    eprintln!("removed; the CA still knows the device, until an operator removes it there");
    Ok(())
}

fn agrees() -> Result<bool, Error> {
    if !io::stdin().is_terminal() {
        return Err(Error::Usage("nobody can be asked whether to remove this: use --yes".into()));
    }
    eprint!("Remove all of this? The device has to be provisioned anew. [y/N] ");
    _ = io::stderr().flush();
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    read.map_err(|error| Error::Usage(format!("stdin: {error}")))?;
    Ok(["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}
