//! What the operator does at the CA, and nowhere else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{run, tool};
use data_encoding::HEXLOWER;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::record::text;
use super::world::World;
use crate::roots::NEW_ROOT;

/// The next issuing CA is made in this month, and signs from the next month on.
const ISSUING: u32 = 2;
/// A new root takes over in this month, with a service CA and an issuing CA under it.
pub(super) const ROOT: u32 = 7;
/// No certificate needs the two issuing CAs of before any more: four months after the root, all
/// that they signed have ended, also those that were superseded.
const REMOVAL: u32 = 11;

/// Does what is to be done this month. Returns what that is.
pub(super) fn act(world: &World) -> Result<Option<&'static str>> {
    let said = match world.month {
        ISSUING => {
            let from = OffsetDateTime::from_unix_timestamp(world.ends() - 3_600)?;
            world.assay(&["issuing", "new", "--from", &from.format(&Rfc3339)?])?;
            "the next issuing CA is made, for the next month"
        }
        ROOT => {
            for command in NEW_ROOT {
                world.assay(command)?;
            }
            "a new root takes over, with an issuing CA under it"
        }
        REMOVAL => {
            for old in issuing(world)?.iter().filter(|row| row["state"] == "old") {
                ensure!(old["in_force"] == 0, "month {REMOVAL}: it is needed: {old}");
                world.assay(&["issuing", "remove", old["files"].as_str().context("a name")?])?;
            }
            "the two issuing CAs of before are removed"
        }
        _ => return Ok(None),
    };
    world.lab.reload()?;
    Ok(Some(said))
}

/// What `assay issuing list` says.
fn issuing(world: &World) -> Result<Vec<Value>> {
    let listed = world.assay(&["issuing", "list", "--json"])?.stdout;
    let rows = serde_json::Deserializer::from_slice(&listed).into_iter();
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Checks, as a relying party does that trusts the new root alone, every certificate in force.
/// There is one issuing CA left.
pub(super) fn everything_leads_to_the_new_root(world: &World) -> Result<()> {
    let [issuing] = &issuing(world)?[..] else { bail!("several issuing CAs are left") };
    let file = |row: &Value| -> Result<PathBuf> {
        let name = row["files"].as_str().or_else(|| row["file"].as_str()).context("a name")?;
        Ok(world.lab.dir.path().join(format!("{}.pem", name.trim_end_matches(".pem"))))
    };
    let roots = world.assay(&["root", "list", "--json"])?.stdout;
    let mut roots = serde_json::Deserializer::from_slice(&roots).into_iter::<Value>();
    let new = roots.find(|row| row.as_ref().is_ok_and(|row| row["is_new"] == true));
    let new = file(&new.context("no new root")??)?;
    let mut verify = tool("openssl")?;
    verify.args(["verify", "-x509_strict", "-purpose", "sslclient", "-attime"]);
    verify.arg(world.now()?.to_string()).arg("-CAfile").arg(new);
    verify.arg("-untrusted").arg(file(issuing)?);
    for (number, row) in world.certificates()?.iter().enumerate() {
        if row["status"] == "active" {
            let certificate = world.file(&format!("certificate-{number}.der"));
            fs::write(&certificate, HEXLOWER.decode(text(row, "der")?.as_bytes())?)?;
            verify.arg(certificate);
        }
    }
    run(&mut verify).map(drop)
}
