//! `assay devices`, `assay certs`

use anyhow::Result;
use assay_server::directory::Directory;
use assay_server::operations::documents;
use assay_server::rfc3339;
use clap::Args;

use super::table;

#[derive(Args)]
pub(crate) struct Json {
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
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
