//! `assay-device status`: what the state directory says.

use std::path::Path;

use assay_device::{CredentialStatus, Error, KeyStatus, OwnKey, Status, Validity, configuration};
use serde_json::{Value, json};

use super::print::{hexadecimal, print_bytes, print_json, print_line};

pub(super) const STATUS_EXAMPLE: &str = "Examples:
  assay-device status --state /var/lib/assay-device --json
  assay-device status --state /var/lib/assay-device --json | jq -e '.days_left > 7'
  assay-device status --state /var/lib/assay-device || assay-device provision ...

Exit codes: 0 the device can sign in; 3 the clock is wrong; 6 the state is broken;
8 no state, or nothing granted yet; 9 the certificate has expired.";

pub(super) const CONFIGURATION_EXAMPLE: &str = "Example:
  assay-device configuration --state /var/lib/assay-device | jq .interval

Exit codes: 0 printed; 6 the state is broken; 8 there is none, or the operator removed it.";

pub(super) fn status(state: &Path, json: bool) -> Result<(), Error> {
    let Some(status) = Status::read(state)? else {
        print_line(if json { r#"{"state":"no-state"}"# } else { "no state" })?;
        return Err(Error::NotProvisioned(format!("no state in {}", state.display())));
    };
    if json {
        print_json(&json_of_status(&status, revision(state)?))?;
    } else {
        print_status(&status)?;
        print_revision(state)?;
    }
    status.usable().map(drop)
}

pub(super) fn print_status(status: &Status) -> Result<(), Error> {
    let KeyStatus { scope, flow, ek, ek_id, key } = &status.keys;
    print_line(&format!("scope         {scope}"))?;
    print_line(&format!("flow          {flow}"))?;
    print_line(&format!("EK            {ek}, id {ek_id}"))?;
    match key {
        OwnKey::Identity { ik, ik_handle } => {
            print_line(&format!("identity key  {ik} at {ik_handle:#010x}"))?
        }
        OwnKey::Hmac { parent, hmac_handle } => {
            print_line(&format!("HMAC key      at {hmac_handle:#010x}, sent to parent {parent}"))?;
        }
    }
    match &status.credential {
        None => print_line("granted       nothing yet")?,
        Some(CredentialStatus::SharedKey { device_id, rotate_at, is_due, is_settled }) => {
            print_line(&format!("device id     {device_id}"))?;
            let remark = if *is_due { "  due" } else { "" };
            print_line(&format!("rotation      {rotate_at}{remark}"))?;
            if !*is_settled {
                print_line("next key      the one before it stays until a broker takes this one")?;
            }
        }
        Some(CredentialStatus::Certificate { path, summary, is_confirmed }) => {
            print_line(&format!("device id     {}", summary.common_name))?;
            print_line(&format!("serial        {}", summary.serial))?;
            let remark = match summary.validity {
                Validity::Valid => "",
                Validity::Expired => "  expired",
                Validity::NotYet => "  not valid yet: the clock is wrong",
            };
            print_line(&format!(
                "valid         {} to {}{remark}",
                summary.not_before, summary.not_after
            ))?;
            let remark = if summary.is_due { "  due" } else { "" };
            print_line(&format!("renewal       {}{remark}", summary.renew_at))?;
            print_line(&format!("certificate   {}", path.display()))?;
            if !*is_confirmed {
                print_line("unconfirmed   run assay-device provision, so that the CA hears of it")?;
            }
        }
    }
    match &status.attempt {
        None => Ok(()),
        Some(KeyStatus { scope, flow, ek, key, .. }) => {
            let key = match key {
                OwnKey::Identity { ik, ik_handle } => {
                    format!("identity key {ik} at {ik_handle:#010x}")
                }
                OwnKey::Hmac { parent, hmac_handle } => {
                    format!("HMAC key at {hmac_handle:#010x} by parent {parent}")
                }
            };
            print_line(&format!("not granted   scope {scope}, flow {flow}, EK {ek}, {key}"))
        }
    }
}

/// The revision of the configuration, if the device has one.
pub(super) fn revision(state: &Path) -> Result<Option<u64>, Error> {
    Ok(configuration(state)?.map(|configuration| configuration.revision))
}

pub(super) fn print_revision(state: &Path) -> Result<(), Error> {
    match revision(state)? {
        Some(revision) => print_line(&format!("configuration {revision}")),
        None => Ok(()),
    }
}

/// Prints the document alone.
pub(super) fn print_configuration(state: &Path) -> Result<(), Error> {
    let found = configuration(state)?.and_then(|configuration| configuration.document);
    let Some(document) = found else {
        return Err(Error::NotProvisioned(format!("no configuration in {}", state.display())));
    };
    print_bytes(&document)
}

pub(super) fn json_of_status(status: &Status, revision: Option<u64>) -> Value {
    let mut json = json_of_keys(&status.keys);
    json["configuration"] = json!(revision);
    let (mut device_id, mut serial, mut not_before, mut not_after) = Default::default();
    let (mut renew_at, mut file, mut confirmed) = Default::default();
    let (mut days_left, mut renewal_due) = Default::default();
    let (mut rotate_at, mut rotation_due) = Default::default();
    match &status.credential {
        None => {}
        Some(CredentialStatus::SharedKey { device_id: id, rotate_at: at, is_due, is_settled }) => {
            device_id = Some(id);
            rotate_at = Some(at);
            rotation_due = Some(is_due);
            confirmed = Some(is_settled);
        }
        Some(CredentialStatus::Certificate { path, summary, is_confirmed }) => {
            device_id = Some(&summary.common_name);
            serial = Some(&summary.serial);
            not_before = Some(&summary.not_before);
            not_after = Some(&summary.not_after);
            days_left = Some(summary.seconds_left / SECONDS_A_DAY);
            renew_at = Some(&summary.renew_at);
            renewal_due = Some(summary.is_due);
            file = Some(path);
            confirmed = Some(is_confirmed);
        }
    }
    json["state"] = json!(match &status.credential {
        None => "nothing-granted",
        Some(CredentialStatus::Certificate { summary, .. }) => match summary.validity {
            Validity::Valid => "provisioned",
            Validity::Expired => "expired",
            Validity::NotYet => "clock-wrong",
        },
        Some(CredentialStatus::SharedKey { .. }) => "provisioned",
    });
    json["device_id"] = json!(device_id);
    json["serial"] = json!(serial);
    json["not_before"] = json!(not_before);
    json["not_after"] = json!(not_after);
    json["days_left"] = json!(days_left);
    json["renew_at"] = json!(renew_at);
    json["renewal_due"] = json!(renewal_due);
    json["rotate_at"] = json!(rotate_at);
    json["rotation_due"] = json!(rotation_due);
    json["certificate"] = json!(file);
    json["confirmed"] = json!(confirmed);
    json["attempt"] = json!(status.attempt.as_ref().map(json_of_keys));
    json
}

fn json_of_keys(keys: &KeyStatus) -> Value {
    let mut json = json!({
        "scope": keys.scope.as_str(),
        "flow": keys.flow.to_string(),
        "ek": keys.ek.to_string(),
        "ek_id": keys.ek_id,
    });
    match keys.key {
        OwnKey::Identity { ik, ik_handle } => {
            json["ik"] = json!(ik.to_string());
            json["ik_handle"] = json!(hexadecimal(ik_handle));
        }
        OwnKey::Hmac { parent, hmac_handle } => {
            json["parent"] = json!(parent.to_string());
            json["hmac_handle"] = json!(hexadecimal(hmac_handle));
        }
    }
    json
}

const SECONDS_A_DAY: u64 = 86_400;
