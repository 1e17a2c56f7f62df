//! The procedures of docs/operations.md after `issuing.key` was read, as they are written there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, AssayServer, Device, EkKind, run, tool, trusted_vendor};
use serde_json::Value;

use crate::lab::Lab;
use crate::roots::World;

/// What somebody does who has `issuing.key`: a certificate for `device:SCOPE:ID` or another.
pub(crate) fn forge(stolen: &Path, whom: &str, place: &Path) -> Result<PathBuf> {
    let [key, request, extensions, leaf] =
        ["key", "csr", "ext", "pem"].map(|name| place.join(name));
    run(tool("openssl")?
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=forged", "-keyout"])
        .arg(key)
        .arg("-out")
        .arg(&request))?;
    let names = format!("subjectAltName=URI:urn:assay:{whom}\n");
    fs::write(&extensions, names + "extendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n")?;
    let mut sign = tool("openssl")?;
    sign.args(["x509", "-req", "-days", "1", "-set_serial", "7", "-in"]).arg(&request);
    sign.arg("-CA").arg(stolen.join("issuing.pem")).arg("-CAkey").arg(stolen.join("issuing.key"));
    run(sign.arg("-extfile").arg(&extensions).arg("-out").arg(&leaf))?;
    Ok(leaf)
}

/// What a relying party does that trusts a root and nothing else.
fn relying_party(root: &Path, issuing: &Path, leaf: &Path) -> Result<Command> {
    let mut verify = tool("openssl")?;
    verify.args(["verify", "-purpose", "sslclient", "-CAfile"]).arg(root);
    verify.arg("-untrusted").arg(issuing).arg(leaf);
    Ok(verify)
}

#[test]
fn a_stolen_issuing_key_is_worth_nothing_after_the_ca_was_made_anew() -> Result<()> {
    let mut old = Lab::open()?;
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let [device, disabled] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    old.enroll(&tpms[0], EkKind::P256, "pump-17", &[])?;
    let first = old.provision(&device, &[])?;
    let locked_out = old.provision(&disabled, &[])?;
    let locked_out = locked_out["device_id"].as_str().context("an id")?;
    old.assay(&["enroll", "disable", locked_out])?;
    let place = tempfile::tempdir()?;
    let forged = forge(&old.dir.path(), "device:default:pump-17", place.path())?;
    let issuing = old.dir.path().join("issuing.pem");
    run(&mut relying_party(&old.dir.root_pem(), &issuing, &forged)?)
        .context("it is worth a lot")?;

    // Steps 1 and 2.
    old.server.kill9()?;
    let enrolled = old.assay(&["enroll", "list", "--json"])?.stdout;
    // Steps 4 and 5.
    let dir = AssayDir::init()?;
    dir.trust(&vendor)?;
    let ek = tpms[0].work_dir().join("ek.der");
    run(dir.assay(&["enroll", "add", "--device-id", "pump-17"])?.arg(ek))?;
    let rows = serde_json::Deserializer::from_slice(&enrolled).into_iter::<Value>();
    for row in rows.collect::<Result<Vec<_>, _>>()? {
        if row["disabled"] == true {
            let ek_id = row["ek_id"].as_str().context("an EK")?;
            run(&mut dir.assay(&["enroll", "disable", ek_id])?)?;
        }
    }
    // Step 6: a relying party with the new root.
    let verdict = relying_party(&dir.root_pem(), &issuing, &forged)?.output()?;
    ensure!(!verdict.status.success(), "the forged certificate is worth nothing");
    // Steps 7 and 8: a device with the old root does not take the new CA for its own.
    let lab = Lab { server: AssayServer::start(&dir)?, dir };
    let (root, at) = (old.dir.root_pem(), &lab.server.operational);
    let with_old = device.publish_at(at, &root, "telemetry", "21.5")?.output()?;
    ensure!(with_old.status.code() == Some(3), "{}", with_old.status);
    let provisioned = lab.provision(&device, &[])?;
    ensure!(provisioned["device_id"] == "pump-17" && provisioned["serial"] != first["serial"]);
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    let chain = PathBuf::from(provisioned["certificate"].as_str().context("a file")?);
    lab.openssl_verifies(&chain)?;
    lab.refused(&disabled, &[], "device-disabled")?;
    Ok(())
}

/// "The keys of a worker's machine were read": without `service.key`.
#[test]
fn a_stolen_issuing_key_is_worth_nothing_to_who_trusts_the_new_root_alone() -> Result<()> {
    let world = World::open()?;
    let (given, vendor) = (world.given(), trusted_vendor()?);
    let tpms = vendor.devices(EkKind::P256, 2)?;
    let [device, sleeper] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    let id = world.provision(&device, &given)?["device_id"].as_str().context("an id")?.to_owned();
    world.provision(&sleeper, &given)?;
    let place = tempfile::tempdir()?;
    let stolen = place.path().join("stolen");
    fs::create_dir(&stolen)?;
    for file in ["issuing.pem", "issuing.key"] {
        fs::copy(world.lab.dir.path().join(file), stolen.join(file))?;
    }
    let forged = forge(&stolen, &format!("device:default:{id}"), place.path())?;
    let issuing = stolen.join("issuing.pem");
    run(&mut relying_party(&given, &issuing, &forged)?).context("it is worth a lot")?;

    // Steps 1 and 2.
    world.new_root_takes_over()?;
    for secret in ["ticket", "master"] {
        world.lab.assay(&["keys", "rotate", secret, "--from", "now"])?;
        world.lab.assay(&["keys", "retire", secret, "--force"])?;
    }
    world.lab.reload()?;
    // Step 3: a relying party with the new root alone. The thief knows all that is public.
    let new_root = world.new_root()?;
    world.renews(&device, &given)?;
    let chain = device.state().join("certificate.pem");
    let public = place.path().join("public.pem");
    fs::write(&public, [fs::read(&issuing)?, fs::read(&chain)?].concat())?;
    let verdict = relying_party(&new_root, &public, &forged)?.output()?;
    ensure!(!verdict.status.success(), "the forged certificate is worth nothing");
    run(&mut relying_party(&new_root, &chain, &chain)?)?;
    let slept = sleeper.state().join("certificate.pem");
    ensure!(!relying_party(&new_root, &slept, &slept)?.output()?.status.success());
    // Both are served all the time, and the second follows when it wakes.
    for device in [&device, &sleeper] {
        run(&mut world.publish(device, &given)?)?;
    }
    world.renews(&sleeper, &given)?;
    run(&mut relying_party(&new_root, &slept, &slept)?).map(drop)
}
