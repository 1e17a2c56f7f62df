//! The sealed flow with real TPMs and brokers: what is secret, what counts when, and what a
//! stranger cannot do with it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{
    AssayDir, Device, EkKind, Mosquitto, Tap, Worker, json, run, tool, trusted_vendor,
};
use assay_wire::{Bundle, ProblemCode, Proof, ReplyBody, RequestBody, SealedReply};
use ring::digest::{SHA256, digest};

use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::tools_device::{ToolsDevice, named};

#[test]
fn nothing_on_an_open_wire_tells_of_a_sealed_certificate() -> Result<()> {
    let dir = AssayDir::init()?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let file = tpm.work_dir().join("ek.der");
    fs::write(&file, tpm.ek_certificate(EkKind::P256)?)?;
    run(dir.assay(&["enroll", "add", "--device-id", "secret-pump-17"])?.arg(&file))?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let tap = Tap::before(mosquitto.port(0))?;
    let broker = format!("mqtt://127.0.0.1:{}", tap.port());
    let _worker = Worker::start(&dir, &broker)?;
    let device = Device::new(&tpm)?;
    let sealed = json(device.provision_at(&broker, &dir.root_pem())?.args(["--flow", "sealed"]))?;
    ensure!(sealed["device_id"] == "secret-pump-17");

    let leaf = leaf(sealed["certificate"].as_str().context("a path")?)?;
    ensure!(tap.heard(b"provision/v1/default/") > 4, "the tap hears what is not encrypted");
    let serial = hex::decode(sealed["serial"].as_str().context("a serial")?)?;
    let signature = leaf.last_chunk::<48>().context("a signature")?;
    for (name, hidden) in [
        ("subject", &b"secret-pump-17"[..]),
        ("serial number", &serial),
        ("serial number in text", sealed["serial"].as_str().context("a serial")?.as_bytes()),
        ("beginning", &leaf[..64]),
        ("signature", signature),
    ] {
        ensure!(tap.heard(hidden) == 0, "the {name} was on the wire");
    }

    // The ticket flow shows all of this on the same wire. So the search above would have found it.
    let ticket =
        json(device.provision_at(&broker, &dir.root_pem())?.args(["--flow", "ticket", "--again"]))?;
    ensure!(ticket["serial"] == sealed["serial"], "the device has one certificate for this key");
    for shown in [&b"secret-pump-17"[..], &serial, &leaf[..64], signature] {
        ensure!(tap.heard(shown) > 0);
    }
    Ok(())
}

#[test]
fn a_device_of_tpm2_tools_opens_and_confirms_for_every_kind_of_ek() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for kind in [EkKind::Rsa2048, EkKind::P256, EkKind::P384] {
        let tpm = vendor.device(kind, 0)?;
        let device = ToolsDevice::new(&tpm, kind)?;
        let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
        let reply = enrolled(&mut mqtt, device.evidence()?)?;
        let sealed = device.open(&reply)?;
        let id = &named(&sealed.chain)?;
        ensure!(lab.statuses(id)? == ["unconfirmed"]);
        ensure!(registered(&lab, id)? == 0, "nobody has proven anything yet");

        let again = device.open(&enrolled(&mut mqtt, device.evidence()?)?)?;
        ensure!(again.chain == sealed.chain, "a repeated request gets the same certificate");
        let proof = Proof { claim: reply.claim, ticket: sealed.ticket.clone() };
        for _ in 0..2 {
            let ReplyBody::Confirmed(reply) = mqtt.ask(RequestBody::Confirm(proof.clone()))? else {
                bail!("{kind:?}: not confirmed")
            };
            ensure!(
                digest(&SHA256, reply.receipt.as_bytes()).as_ref() == sealed.receipt_sha256,
                "{kind:?}: the receipt"
            );
            ensure!(lab.statuses(id)? == ["active"] && registered(&lab, id)? == 1);
        }
    }
    Ok(())
}

#[test]
fn a_certificate_that_nobody_confirms_is_revoked_and_the_device_may_enrol_again() -> Result<()> {
    let lab = Lab::with_settings("[certificates]\nconfirm_within_seconds = 1")?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let reply = enrolled(&mut mqtt, device.evidence()?)?;
    let sealed = device.open(&reply)?;
    let id = &named(&sealed.chain)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while lab.statuses(id)? != ["revoked"] {
        ensure!(Instant::now() < deadline, "{:?}", lab.statuses(id)?);
        thread::sleep(Duration::from_millis(100));
    }
    let late = Proof { claim: reply.claim, ticket: sealed.ticket };
    mqtt.refused(RequestBody::Confirm(late), ProblemCode::ClaimExpired)?;
    let serial = lab.dir.list("certs")?[0]["serial"].as_str().context("a serial")?.to_uppercase();
    ensure!(crl(&lab)?.contains(&serial), "the revocation list has it");

    let provisioned = lab.provision(&Device::new(&tpm)?, &["--flow", "sealed"])?;
    ensure!(provisioned["device_id"] == *id && lab.statuses(id)? == ["revoked", "active"]);
    Ok(())
}

#[test]
fn an_active_certificate_is_sealed_and_confirmed_again_however_it_came_and_whenever_that_was()
-> Result<()> {
    let lab = Lab::with_settings("[certificates]\nconfirm_within_seconds = 3")?;
    for (number, flow) in ["ticket", "sealed"].into_iter().enumerate() {
        let tpm = trusted_vendor()?.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        let id = lab.provision(&device, &["--flow", flow])?["device_id"].clone();
        thread::sleep(Duration::from_secs(4));
        let again = lab.provision(&device, &["--flow", "sealed", "--again"]).context(flow)?;
        let id = id.as_str().context("an id")?;
        ensure!(
            again["device_id"] == *id && lab.statuses(id)? == ["active"],
            "{flow}: {:?}",
            lab.statuses(id)?
        );
        ensure!(json(&mut device.status()?)?["confirmed"] == true, "{flow}");
    }
    Ok(())
}

#[test]
fn certificate_that_is_not_confirmed_is_confirmed_by_connecting_with_it() -> Result<()> {
    let mut lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let mut running = run_until(&lab, &device, "opened and verified")?;
    lab.server.kill9()?;
    let deadline = Instant::now() + Duration::from_secs(10);
    // `status` fails while nothing is granted.
    while !device.status()?.output()?.status.success() {
        ensure!(Instant::now() < deadline, "the device does not store what it cannot confirm");
        thread::sleep(Duration::from_millis(10));
    }
    running.kill()?;
    running.wait()?;
    lab.server.restart()?;
    let status = json(&mut device.status()?)?;
    let id = status["device_id"].as_str().context("an id")?;
    ensure!(status["confirmed"] == false && lab.statuses(id)? == ["unconfirmed"], "{status}");

    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    ensure!(lab.statuses(id)? == ["active"] && registered(&lab, id)? == 1);
    let audit = lab.dir.list("audit")?;
    let connected = audit.iter().find(|row| row["action"] == "connect").context("in the audit")?;
    ensure!(connected["device_id"] == id && connected["code"].is_null(), "{connected}");

    // The device has no receipt yet.
    ensure!(json(&mut device.status()?)?["confirmed"] == false);
    ensure!(lab.provision(&device, &[])?["device_id"] == id);
    ensure!(json(&mut device.status()?)?["confirmed"] == true && lab.statuses(id)? == ["active"]);
    Ok(())
}

#[test]
fn a_device_killed_at_any_step_of_the_sealed_flow_ends_with_one_active_certificate() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, step) in ["connected", "received", "activated", "opened and verified", "confirmed"]
        .into_iter()
        .enumerate()
    {
        let tpm = vendor.device(EkKind::P256, number)?;
        let device = Device::new(&tpm)?;
        kill_at(&lab, &device, step)?;
        let provisioned = lab.provision(&device, &["--flow", "sealed"]).context(step)?;
        let id = provisioned["device_id"].as_str().context("an id")?;
        ensure!(lab.statuses(id)? == ["active"], "killed when {step}: {:?}", lab.statuses(id)?);
    }
    Ok(())
}

#[test]
fn a_device_id_granted_before_the_confirmation_stands_in_the_next_certificate() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let first = device.open(&enrolled(&mut mqtt, device.evidence()?)?)?;
    lab.enroll(&tpm, EkKind::P256, "pump-9", &[])?;
    let second = device.open(&enrolled(&mut mqtt, device.evidence()?)?)?;
    ensure!(named(&second.chain)? == "pump-9" && first.chain != second.chain);
    ensure!(lab.statuses("pump-9")? == ["unconfirmed"]);
    Ok(())
}

#[test]
fn nobody_confirms_the_certificate_of_another_device() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let (tpm, other_tpm) = (vendor.device(EkKind::P256, 0)?, vendor.device(EkKind::P256, 1)?);
    let (device, other) =
        (ToolsDevice::new(&tpm, EkKind::P256)?, ToolsDevice::new(&other_tpm, EkKind::P256)?);
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let (reply, others) =
        (enrolled(&mut mqtt, device.evidence()?)?, enrolled(&mut mqtt, other.evidence()?)?);
    ensure!(device.open(&others).is_err() && other.open(&reply).is_err(), "each TPM opens its own");
    let ticket = device.open(&reply)?.ticket;
    let mixed = Proof { claim: others.claim, ticket };
    mqtt.refused(RequestBody::Confirm(mixed), ProblemCode::TicketRefused)?;
    ensure!(lab.dir.list("certs")?.iter().all(|row| row["status"] == "unconfirmed"));
    Ok(())
}

/// A stranger who knows the EK certificate of a healthy device, which is no secret, and has a TPM
/// of the same vendor.
#[test]
fn a_stranger_with_anothers_ek_certificate_changes_nothing_and_meets_the_quota() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let (tpm, strangers_tpm) = (vendor.device(EkKind::P256, 0)?, vendor.device(EkKind::P256, 1)?);
    let victim = Device::new(&tpm)?;
    let provisioned = lab.provision(&victim, &["--flow", "sealed"])?;
    let id = provisioned["device_id"].as_str().context("an id")?;

    let victims = ToolsDevice::new(&tpm, EkKind::P256)?.evidence()?;
    let mut refused = None;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    for number in 0..30 {
        // A new IK each time, because for the same IK the CA sends the first certificate again. The
        // claim must be younger than the victim's certificate.
        thread::sleep(Duration::from_millis(if number == 0 { 1100 } else { 0 }));
        let stranger = ToolsDevice::new(&strangers_tpm, EkKind::P256)?;
        let evidence = stranger.evidence()?;
        let mixed = Bundle { ik_public: evidence.ik_public, csr: evidence.csr, ..victims.clone() };
        match mqtt.ask(RequestBody::Enroll(mixed))? {
            ReplyBody::Sealed(reply) => {
                ensure!(stranger.open(&reply).is_err(), "the stranger's TPM opens it")
            }
            ReplyBody::Problem(problem) if problem.code == ProblemCode::QuotaExceeded => {
                ensure!(problem.retry_after.is_some());
                refused = Some(number);
                break;
            }
            other => bail!("{other:?}"),
        }
    }
    ensure!(refused == Some(24), "{refused:?}");
    ensure!(lab.active_certificates(id)? == 1);
    run(&mut victim.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    ensure!(
        lab.provision(&victim, &["--again"])?["serial"] == provisioned["serial"],
        "what it has is not counted"
    );
    Ok(())
}

#[test]
fn a_flow_that_the_scope_does_not_offer_is_refused() -> Result<()> {
    let lab = Lab::with_settings("flows = [\"ticket\"]")?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.refused(&device, &["--flow", "sealed"], "flow-not-offered")?;
    lab.refused(&device, &["--flow", "shared-key"], "flow-not-offered")?;
    lab.provision(&device, &["--flow", "ticket"])?;
    // The settings that `assay init` writes.
    let lab = Lab::with_settings(include_str!("../../server/src/assay.toml"))?;
    lab.refused(&Device::new(&tpm)?, &["--flow", "shared-key"], "flow-not-offered")?;
    let lab = Lab::with_settings("flows = [\"sealed\"]")?;
    lab.refused(&Device::new(&tpm)?, &["--flow", "ticket"], "flow-not-offered")
}

fn enrolled(mqtt: &mut RawClient, bundle: Bundle) -> Result<SealedReply> {
    match mqtt.ask(RequestBody::Enroll(bundle))? {
        ReplyBody::Sealed(reply) => Ok(reply),
        other => bail!("expected a sealed certificate, got {other:?}"),
    }
}

fn registered(lab: &Lab, device_id: &str) -> Result<usize> {
    Ok(lab.dir.list("devices")?.iter().filter(|row| row["device_id"] == device_id).count())
}

fn kill_at(lab: &Lab, device: &Device, step: &str) -> Result<()> {
    let mut running = run_until(lab, device, step)?;
    running.kill()?;
    running.wait()?;
    Ok(())
}

/// Lets a device provision itself by the sealed flow until it has reported this step.
fn run_until(lab: &Lab, device: &Device, step: &str) -> Result<Child> {
    let mut provision = device.provision(&lab.dir, &lab.server)?;
    provision.args(["--flow", "sealed"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut running = provision.spawn()?;
    let mut lines = BufReader::new(running.stderr.take().context("stderr is a pipe")?).lines();
    let reached = lines.by_ref().map_while(Result::ok).any(|line| line.contains(step));
    ensure!(reached, "the flow has no step {step:?}");
    // The device must not die of a closed pipe before it is killed.
    thread::spawn(move || lines.count());
    Ok(running)
}

/// The first certificate of a PEM file, in DER.
fn leaf(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    Ok(run(tool("openssl")?.args(["x509", "-outform", "der", "-in"]).arg(path.as_ref()))?.stdout)
}

/// The revocation list, as OpenSSL prints it.
fn crl(lab: &Lab) -> Result<String> {
    let file = lab.dir.path().join("list.pem");
    lab.assay(&["crl", "--pem", "--out", file.to_str().context("a path")?])?;
    let printed = run(tool("openssl")?.args(["crl", "-noout", "-text", "-in"]).arg(file))?.stdout;
    Ok(String::from_utf8(printed)?)
}
