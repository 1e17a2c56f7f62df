//! `assay devices`, `assay certs`, `assay audit`

use anyhow::Result;
use assay_server::directory::Directory;
use assay_wire::{EkId, ProblemCode};
use clap::Args;

use super::table;

#[derive(Args)]
pub(crate) struct Json {
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Args)]
pub(crate) struct Audit {
    #[command(flatten)]
    json: Json,
    /// How many decisions, counted from the newest
    #[arg(long, default_value_t = 1000)]
    count: u32,
}

pub(crate) fn devices(directory: &Directory, Json { json }: Json) -> Result<()> {
    let devices = directory.store()?.devices()?;
    if json {
        for device in devices {
            let line = serde_json::json!({
                "device_id": device.device_id.as_str(),
                "ek_id": device.ek_id.to_string(),
                "assurance": device.assurance,
                "disabled": device.disabled,
                "registered_at": table::time(device.registered_at),
                "serial": device.serial.map(hex::encode),
                "not_after": device.not_after.map(table::time),
                "shared_key": device.shared_key,
            });
            table::print_json(&line);
        }
        return Ok(());
    }
    let rows = devices.into_iter().map(|device| {
        [
            device.device_id.to_string(),
            device.ek_id.to_string()[..table::SHORT_ID].to_owned(),
            device.assurance,
            table::status(device.disabled).into(),
            device.serial.map_or_else(|| "-".into(), hex::encode),
            device.not_after.map_or_else(|| "-".into(), table::time),
            device.shared_key.map_or_else(|| "-".into(), |generation| generation.to_string()),
        ]
    });
    table::print(
        ["DEVICE", "EK", "TRUSTED BY", "STATUS", "CERTIFICATE", "NOT AFTER", "SHARED KEY"],
        rows,
    );
    Ok(())
}

pub(crate) fn certificates(directory: &Directory, Json { json }: Json) -> Result<()> {
    let certificates = directory.store()?.certificates()?;
    if json {
        for certificate in certificates {
            let line = serde_json::json!({
                "serial": hex::encode(&certificate.serial),
                "device_id": certificate.device_id.as_str(),
                "status": certificate.status,
                "not_before": table::time(certificate.not_before),
                "not_after": table::time(certificate.not_after),
                "issued_at": table::time(certificate.issued_at),
                "confirm_by": certificate.confirm_by.map(table::time),
                "der": certificate.der.map(hex::encode),
            });
            table::print_json(&line);
        }
        return Ok(());
    }
    let rows = certificates.into_iter().map(|certificate| {
        let waits = certificate.status == "unconfirmed";
        [
            hex::encode(&certificate.serial),
            certificate.device_id.to_string(),
            certificate.status,
            table::time(certificate.issued_at),
            table::time(certificate.not_after),
            certificate.confirm_by.filter(|_| waits).map_or_else(|| "-".into(), table::time),
        ]
    });
    table::print(["SERIAL", "DEVICE", "STATUS", "ISSUED", "NOT AFTER", "CONFIRM BY"], rows);
    Ok(())
}

pub(crate) fn audit(
    directory: &Directory,
    Audit { json: Json { json }, count }: Audit,
) -> Result<()> {
    let decisions = directory.store()?.audit(count)?;
    let code_name = |number: u16| ProblemCode::from_number(number).name();
    if json {
        for decision in decisions {
            let line = serde_json::json!({
                "time": table::time_us(decision.time_us),
                "client": decision.client,
                "action": decision.action,
                "ek_id": decision.ek_id.as_ref().map(EkId::to_string),
                "device_id": decision.proven,
                "due_device_id": decision.due,
                "code": decision.code,
                "problem": decision.code.map(code_name),
                "detail": decision.detail,
                "duration_us": decision.duration_us,
            });
            table::print_json(&line);
        }
        return Ok(());
    }
    let rows = decisions.into_iter().map(|decision| {
        let subject = decision.proven.or_else(|| decision.ek_id.map(|ek| ek.to_string()));
        let outcome = match (decision.code, decision.detail, decision.due) {
            (Some(code), Some(detail), _) => format!("refused: {}: {detail}", code_name(code)),
            (_, _, Some(due)) => format!("granted, for this EK's TPM to prove that it is {due}"),
            _ => "granted".into(),
        };
        let time = table::time(decision.time_us.div_euclid(1_000_000));
        [time, decision.action, subject.unwrap_or(decision.client), outcome]
    });
    table::print(["TIME", "ACTION", "DEVICE, EK OR CLIENT", "OUTCOME"], rows);
    Ok(())
}
