//! Renewal with real TPMs and brokers: what a device gets, when it counts, and what nobody else can
//! do with it.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{AssayDir, Device, EkKind, Mosquitto, Swtpm, Worker, run, trusted_vendor};
use assay_wire::{CertificateReply, ProblemCode, Proof, ReplyBody, RequestBody};
use data_encoding::BASE64;
use serde_json::json;

use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::tools_device::{ToolsDevice, named};

/// With this, every certificate is due. A renewed one must end later than the one before it.
const ALWAYS_DUE: &str = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1";
const A_SECOND: Duration = Duration::from_millis(1100);

#[test]
fn a_device_of_tpm2_tools_renews_and_adopts_with_every_kind_of_ek() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    for kind in [EkKind::Rsa2048, EkKind::P256, EkKind::P384] {
        let tpm = trusted_vendor()?.device(kind, 0)?;
        let device = ToolsDevice::new(&tpm, kind)?;
        let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
        let old = certified(&mut mqtt, &device)?;
        let id = &named(&old.chain)?;
        ensure!(old.renew_at.is_some());
        thread::sleep(A_SECOND);

        let new = renewed(&mut mqtt, &device, &old)?;
        ensure!(new.chain[0] != old.chain[0] && named(&new.chain)? == *id);
        ensure!(new.renew_at > old.renew_at || new.renew_at.is_some());
        ensure!(lab.statuses(id)? == ["active", "unconfirmed"]);
        let file = tpm.work_dir().join("renewed.pem");
        fs::write(&file, pem(&new))?;
        lab.openssl_verifies(&file)?;
        for _ in 0..2 {
            ensure!(mqtt.ask(adopt(&device, &new)?)? == ReplyBody::Adopted, "{kind:?}");
            ensure!(lab.statuses(id)? == ["superseded", "active"], "{kind:?}");
        }
        let audit = lab.dir.list("audit")?;
        for action in ["renew", "adopt"] {
            let decision = audit.iter().find(|row| row["action"] == action).context(action)?;
            ensure!(decision["problem"].is_null(), "{decision}");
        }
    }
    Ok(())
}

#[test]
fn a_worker_on_mosquitto_renews() -> Result<()> {
    let dir = AssayDir::init()?;
    fs::write(dir.path().join("assay.toml"), ALWAYS_DUE)?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let _worker = Worker::start(&dir, &broker)?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&broker, &dir.root_pem())?;
    let old = certified(&mut mqtt, &device)?;
    thread::sleep(A_SECOND);
    let new = renewed(&mut mqtt, &device, &old)?;
    ensure!(mqtt.ask(adopt(&device, &new)?)? == ReplyBody::Adopted);
    let mut statuses = dir.list("certs")?.into_iter().map(|row| row["status"].clone());
    ensure!(statuses.by_ref().eq(["superseded", "active"]));
    Ok(())
}

#[test]
fn a_lost_reply_and_a_killed_ca_cost_nothing_and_a_replay_gives_nothing_new() -> Result<()> {
    let mut lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let old = certified(&mut mqtt, &device)?;
    let id = &named(&old.chain)?;
    thread::sleep(A_SECOND);

    let request = RequestBody::Renew(device.renewal(&old.chain[0])?);
    let new = certificate(mqtt.ask(request.clone())?)?;
    lab.server.kill9()?;
    lab.server.restart()?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    // A replay, and the device that asks again.
    ensure!(certificate(mqtt.ask(request.clone())?)? == new);
    ensure!(renewed(&mut mqtt, &device, &old)? == new);
    ensure!(lab.statuses(id)? == ["active", "unconfirmed"]);

    let adoption = adopt(&device, &new)?;
    ensure!(mqtt.ask(adoption.clone())? == ReplyBody::Adopted);
    lab.server.kill9()?;
    lab.server.restart()?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    ensure!(mqtt.ask(adoption)? == ReplyBody::Adopted);
    // The old certificate is in force no more, so the old request renews nothing.
    mqtt.refused(request, ProblemCode::CertificateNotInForce)?;
    ensure!(lab.statuses(id)? == ["superseded", "active"]);
    Ok(())
}

#[test]
fn the_old_certificate_is_good_until_the_new_one_is_adopted_or_used() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let vendor = trusted_vendor()?;
    for (number, is_adopted) in [true, false].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P256, number)?;
        let device = ToolsDevice::new(&tpm, EkKind::P256)?;
        tpm.tpm2(&["evictcontrol", "-C", "o", "-c", "ik.ctx", IK])?;
        let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
        let old = certified(&mut mqtt, &device)?;
        let id = &named(&old.chain)?;
        thread::sleep(A_SECOND);
        let new = renewed(&mut mqtt, &device, &old)?;

        let (with_old, with_new) = (holding(&tpm, &old)?, holding(&tpm, &new)?);
        let connects = |device: &Device| -> Result<bool> {
            let mut publish = device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?;
            Ok(publish.output()?.status.success())
        };
        run(&mut with_old.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
        ensure!(lab.statuses(id)? == ["active", "unconfirmed"]);
        if is_adopted {
            ensure!(mqtt.ask(adopt(&device, &new)?)? == ReplyBody::Adopted);
            ensure!(lab.statuses(id)? == ["superseded", "active"]);
        }
        run(&mut with_new.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
        ensure!(lab.statuses(id)? == ["superseded", "active"]);
        ensure!(!connects(&with_old)?, "the old certificate is superseded");
        ensure!(mqtt.ask(adopt(&device, &new)?)? == ReplyBody::Adopted, "it is known already");
    }
    Ok(())
}

#[test]
fn a_disabled_device_neither_renews_nor_adopts() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let old = certified(&mut mqtt, &device)?;
    let id = &named(&old.chain)?;
    thread::sleep(A_SECOND);
    let new = renewed(&mut mqtt, &device, &old)?;
    lab.assay(&["enroll", "disable", id])?;
    let request = RequestBody::Renew(device.renewal(&old.chain[0])?);
    mqtt.refused(request.clone(), ProblemCode::DeviceDisabled)?;
    mqtt.refused(adopt(&device, &new)?, ProblemCode::DeviceDisabled)?;
    lab.assay(&["enroll", "enable", id])?;
    ensure!(certificate(mqtt.ask(request)?)? == new);
    ensure!(mqtt.ask(adopt(&device, &new)?)? == ReplyBody::Adopted);
    Ok(())
}

/// A stranger has another TPM of the same vendor, and knows all that the device ever sent.
#[test]
fn a_stranger_with_another_key_neither_renews_nor_adopts() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let vendor = trusted_vendor()?;
    let (tpm, other_tpm) = (vendor.device(EkKind::P256, 0)?, vendor.device(EkKind::P256, 1)?);
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let stranger = ToolsDevice::new(&other_tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let old = certified(&mut mqtt, &device)?;
    let id = &named(&old.chain)?;
    thread::sleep(A_SECOND);
    let mut forged = device.renewal(&old.chain[0])?;
    forged.signature = stranger.renewal(&old.chain[0])?.signature;
    mqtt.refused(RequestBody::Renew(forged), ProblemCode::StatementRefused)?;
    // With its own EK, the stranger has no such certificate.
    let own = RequestBody::Renew(stranger.renewal(&old.chain[0])?);
    mqtt.refused(own, ProblemCode::CertificateNotInForce)?;
    ensure!(lab.statuses(id)? == ["active"]);

    let new = renewed(&mut mqtt, &device, &old)?;
    let mut forged = device.adoption(&new.chain[0])?;
    forged.signature = stranger.adoption(&new.chain[0])?.signature;
    mqtt.refused(RequestBody::Adopt(forged), ProblemCode::StatementRefused)?;
    let own = RequestBody::Adopt(stranger.adoption(&new.chain[0])?);
    mqtt.refused(own, ProblemCode::CertificateNotInForce)?;
    ensure!(lab.statuses(id)? == ["active", "unconfirmed"]);
    Ok(())
}

#[test]
fn a_certificate_that_is_not_due_comes_back_whichever_flows_the_scope_offers() -> Result<()> {
    let lab = Lab::with_settings("flows = [\"sealed\"]")?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let ReplyBody::Sealed(reply) = mqtt.ask(RequestBody::Enroll(device.evidence()?))? else {
        bail!("no sealed certificate")
    };
    let sealed = device.open(&reply)?;
    let request = RequestBody::Renew(device.renewal(&sealed.chain[0])?);
    mqtt.refused(request.clone(), ProblemCode::CertificateNotInForce)?;
    let adoption = RequestBody::Adopt(device.adoption(&sealed.chain[0])?);
    mqtt.refused(adoption, ProblemCode::CertificateNotInForce)?;
    let proof = Proof { claim: reply.claim, ticket: sealed.ticket };
    ensure!(matches!(mqtt.ask(RequestBody::Confirm(proof))?, ReplyBody::Confirmed(_)));
    let same = certificate(mqtt.ask(request)?)?;
    ensure!(same.chain == sealed.chain);
    ensure!(same.renew_at == sealed.renew_at && same.renew_at.is_some(), "the same advice");
    ensure!(lab.statuses(&named(&sealed.chain)?)? == ["active"]);
    Ok(())
}

/// Where a device keeps the IK that tpm2-tools made.
const IK: &str = "0x81000100";

/// A device of ours that has this certificate in use.
fn holding(tpm: &Swtpm, granted: &CertificateReply) -> Result<Device> {
    let device = Device::new(tpm)?;
    let shown = json!({"scope": "default", "ek": "p-256", "ek_id": "00".repeat(32)});
    let record =
        json!({"shown": shown, "flow": "ticket", "ik": "p-256", "ik_handle": 0x8100_0100_u32});
    let grant = json!({"record": record, "certificate": pem(granted), "unconfirmed": null});
    fs::create_dir(device.state())?;
    let memory = json!({"in_use": {"certificate": grant}, "attempt": null});
    fs::write(device.state().join("device.json"), memory.to_string())?;
    Ok(device)
}

fn pem(granted: &CertificateReply) -> String {
    let block = |der: &[u8]| {
        let base64 = BASE64.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
    };
    granted.chain.iter().map(|der| block(der)).collect()
}

/// Gets a certificate by the ticket flow.
pub(crate) fn certified(
    mqtt: &mut RawClient,
    device: &ToolsDevice<'_>,
) -> Result<CertificateReply> {
    let challenge = match mqtt.ask(RequestBody::Challenge(device.evidence()?))? {
        ReplyBody::Challenge(challenge) => challenge,
        other => bail!("{other:?}"),
    };
    let ticket = device.activate(&challenge)?;
    certificate(mqtt.ask(RequestBody::Certify(Proof { claim: challenge.claim, ticket }))?)
}

pub(crate) fn renewed(
    mqtt: &mut RawClient,
    device: &ToolsDevice<'_>,
    old: &CertificateReply,
) -> Result<CertificateReply> {
    certificate(mqtt.ask(RequestBody::Renew(device.renewal(&old.chain[0])?))?)
}

pub(crate) fn adopt(device: &ToolsDevice<'_>, new: &CertificateReply) -> Result<RequestBody> {
    Ok(RequestBody::Adopt(device.adoption(&new.chain[0])?))
}

fn certificate(reply: ReplyBody) -> Result<CertificateReply> {
    match reply {
        ReplyBody::Certificate(granted) => Ok(granted),
        other => bail!("expected a certificate, got {other:?}"),
    }
}
