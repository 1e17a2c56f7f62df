//! `assay devices`, `assay certs`, `assay audit`

use anyhow::Result;
use assay_server::directory::Directory;
use assay_server::operations::documents;
use assay_server::rfc3339;
use assay_wire::ProblemCode;
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
        devices.iter().for_each(|row| table::print_json(&documents::device(row)));
        return Ok(());
    }
    let rows = devices.into_iter().map(|device| {
        [
            device.device_id.to_string(),
            device.ek_id.to_string()[..table::SHORT_ID].to_owned(),
            device.assurance,
            table::status(device.disabled).into(),
            device.serial.map_or_else(|| "-".into(), hex::encode),
            device.not_after.map_or_else(|| "-".into(), rfc3339::seconds),
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
        certificates.iter().for_each(|row| table::print_json(&documents::certificate(row)));
        return Ok(());
    }
    let rows = certificates.into_iter().map(|certificate| {
        let waits = certificate.status == "unconfirmed";
        [
            hex::encode(&certificate.serial),
            certificate.device_id.to_string(),
            certificate.status,
            rfc3339::seconds(certificate.issued_at),
            rfc3339::seconds(certificate.not_after),
            certificate.confirm_by.filter(|_| waits).map_or_else(|| "-".into(), rfc3339::seconds),
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
        decisions.iter().for_each(|row| table::print_json(&documents::decision(row)));
        return Ok(());
    }
    let rows = decisions.into_iter().map(|decision| {
        let subject = decision.proven.or_else(|| decision.ek_id.map(|ek| ek.to_string()));
        let outcome = match (decision.code, decision.detail, decision.due) {
            (Some(code), Some(detail), _) => format!("refused: {}: {detail}", code_name(code)),
            (_, _, due) if decision.action == "approve" => {
                let due = due.map_or_else(String::new, |due| format!(", as {due}"));
                format!("approved by {}{due}", decision.client)
            }
            _ if decision.action == "turn-away" => format!("disabled by {}", decision.client),
            (_, _, Some(due)) if decision.action == "replaced" => {
                format!("removed and disabled by {}: {due} has another TPM", decision.client)
            }
            (_, _, Some(due)) if decision.action == "replace" => {
                format!("enrolled by {} as the next TPM of {due}", decision.client)
            }
            (_, _, Some(due)) => format!("granted, for this EK's TPM to prove that it is {due}"),
            _ => "granted".into(),
        };
        let time = rfc3339::seconds(decision.time_us.div_euclid(1_000_000));
        [time, decision.action, subject.unwrap_or(decision.client), outcome]
    });
    table::print(["TIME", "ACTION", "DEVICE, EK OR CLIENT", "OUTCOME"], rows);
    Ok(())
}
