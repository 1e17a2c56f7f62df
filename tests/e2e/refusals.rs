//! Which devices are refused, and with which problem. `ca-core` tests each check. These tests reach
//! checks with a real TPM, the real binaries and a real connection. They also check that a refusal
//! leaves healthy devices as they were.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkCertificate, EkKind, Swtpm, json, trusted_vendor, untrusted_vendor};
use assay_wire::{
    Bundle, ChallengeReply, MAX_MESSAGE, ProblemCode, Proof, ReplyBody, Request, RequestBody,
    RequestId, Ticket,
};

use crate::lab::Lab;
use crate::raw_client::{OperationalClient, RawClient};
use crate::tools_device::{ToolsDevice, csr_by};

#[test]
fn ek_without_certificate_is_refused_until_it_is_enrolled() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = Swtpm::without_ek_certificate()?;
    let device = Device::new(&tpm)?;
    lab.refused(&device, &["--ek", "p-256"], "ek-not-enrolled")?;
    let decision = lab.audited("ek-not-enrolled")?;

    let file = tpm.work_dir().join("ek.pem");
    fs::write(&file, tpm.ek_public_pem(EkKind::P256)?)?;
    let enrolled =
        lab.assay(&["enroll", "add", file.to_str().context("a path")?, "--device-id", "pump-17"])?;
    ensure!(decision["ek_id"] == String::from_utf8(enrolled.stdout)?.trim());
    ensure!(lab.provision(&device, &["--ek", "p-256"])?["device_id"] == "pump-17");
    Ok(())
}

#[test]
fn ek_of_an_untrusted_vendor_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = untrusted_vendor()?.device(EkKind::P256, 0)?;
    lab.refused(&Device::new(&tpm)?, &[], "ek-certificate-untrusted")
}

#[test]
fn ek_of_a_vendor_no_longer_trusted_is_refused_at_once() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let mut said = String::new();
    for anchor in String::from_utf8(lab.assay(&["trust", "list", "--json"])?.stdout)?.lines() {
        let anchor: serde_json::Value = serde_json::from_str(anchor)?;
        let fingerprint = anchor["fingerprint"].as_str().context("a fingerprint")?;
        said += &String::from_utf8(lab.assay(&["trust", "remove", fingerprint])?.stderr)?;
    }
    ensure!(said.contains("assay group remove vendor-"), "its group is left: {said}");
    lab.refused(&Device::new(&tpm)?, &[], "ek-certificate-untrusted")
}

#[test]
fn expired_ek_certificate_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let expired =
        EkCertificate { not_after: "2021-01-01 00:00:00 UTC", ..EkCertificate::default() };
    tpm.write_ek_certificate(
        EkKind::P256,
        &vendor.certify(&tpm.ek_public_pem(EkKind::P256)?, &expired)?,
    )?;
    lab.refused(&Device::new(&tpm)?, &[], "ek-certificate-expired")
}

#[test]
fn ek_certificate_without_its_key_usage_or_its_tpm_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let public = tpm.ek_public_pem(EkKind::P256)?;
    let for_servers =
        EkCertificate { usage: Some("1.3.6.1.5.5.7.3.1"), ..EkCertificate::default() };
    let without_usage = EkCertificate { usage: None, ..EkCertificate::default() };
    let of_no_tpm = EkCertificate { names_tpm: false, ..EkCertificate::default() };
    for certificate in [for_servers, without_usage, of_no_tpm] {
        tpm.write_ek_certificate(EkKind::P256, &vendor.certify(&public, &certificate)?)?;
        lab.refused(&Device::new(&tpm)?, &[], "ek-certificate-invalid")?;
    }
    Ok(())
}

#[test]
fn evidence_that_does_not_belong_together_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let genuine = ToolsDevice::new(&tpm, EkKind::P256)?.evidence()?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;

    let other_ek = trusted_vendor()?.device(EkKind::P256, 1)?.ek_certificate(EkKind::P256)?;
    let of_another_ek =
        Bundle { ek_certificates: vec![other_ek.try_into()?].try_into()?, ..genuine.clone() };
    mqtt.refused(RequestBody::Challenge(of_another_ek), ProblemCode::EkCertificateMismatch)?;

    let software_key = rcgen::KeyPair::generate()?;
    let for_another_key = Bundle { csr: csr_by(&software_key)?, ..genuine.clone() };
    mqtt.refused(RequestBody::Challenge(for_another_key), ProblemCode::CsrKeyMismatch)?;

    let mut csr = genuine.csr.to_vec();
    *csr.last_mut().context("not empty")? ^= 1;
    let badly_signed = Bundle { csr: csr.try_into()?, ..genuine.clone() };
    mqtt.refused(RequestBody::Challenge(badly_signed), ProblemCode::CsrSignatureInvalid)?;

    ensure!(matches!(mqtt.ask(RequestBody::Challenge(genuine))?, ReplyBody::Challenge(_)));
    Ok(())
}

#[test]
fn ik_that_the_tpm_made_exportable_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let exportable = "sensitivedataorigin|userwithauth|noda|sign";
    let evidence = ToolsDevice::with_ik_attributes(&tpm, EkKind::P256, exportable)?.evidence()?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    mqtt.refused(RequestBody::Challenge(evidence), ProblemCode::IkOffTemplate)
}

#[test]
fn disabled_device_is_refused_and_its_certificate_opens_nothing() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &[])?;
    let id = provisioned["device_id"].as_str().context("an id")?;

    lab.assay(&["enroll", "disable", id])?;
    lab.refused(&Device::new(&tpm)?, &[], "device-disabled")?;
    let published = device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?;
    ensure!(!published.status.success(), "a disabled device still publishes");

    lab.assay(&["enroll", "enable", id])?;
    ensure!(lab.provision(&Device::new(&tpm)?, &[])?["serial"] == provisioned["serial"]);
    ensure!(device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?.status.success());
    Ok(())
}

#[test]
fn disabled_device_is_cut_off_while_it_is_connected() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &[])?;
    let id = provisioned["device_id"].as_str().context("an id")?;

    let mut connected = OperationalClient::connect(&lab, &tpm.tcti(), &device.state())?;
    ensure!(!connected.ends_within(Duration::from_secs(2)));
    lab.assay(&["enroll", "disable", id])?;
    ensure!(
        connected.ends_within(Duration::from_secs(5)),
        "the connection outlived the device's rights"
    );
    Ok(())
}

/// The device uses what it asked for, so no attempt is left.
#[test]
fn status_tells_of_no_attempt_that_asked_for_what_is_in_use() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &[])?;
    let id = provisioned["device_id"].as_str().context("an id")?;
    let tells_of_one =
        || -> Result<bool> { Ok(!json(&mut device.status()?)?["attempt"].is_null()) };
    lab.assay(&["enroll", "disable", id])?;
    lab.refused(&device, &["--again"], "device-disabled")?;
    ensure!(!tells_of_one()?);
    lab.refused(
        &device,
        &["--again", "--ik", "p-384", "--ik-handle", "0x81000300"],
        "device-disabled",
    )?;
    ensure!(tells_of_one()?, "another key was asked for");
    Ok(())
}

#[test]
fn a_device_id_of_another_ek_is_refused_and_its_record_is_intact() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let (first, second) = (vendor.device(EkKind::P256, 0)?, vendor.device(EkKind::P256, 1)?);
    lab.enroll(&first, EkKind::P256, "pump-17", &[])?;
    let provisioned = lab.provision(&Device::new(&first)?, &["--device-id", "pump-17"])?;
    let before = lab.dir.list("devices")?;

    // Both answers are the same, so that nobody learns which ids exist.
    lab.refused(&Device::new(&second)?, &["--device-id", "pump-17"], "device-id-not-enrolled")?;
    lab.refused(&Device::new(&second)?, &["--device-id", "pump-18"], "device-id-not-enrolled")?;
    lab.refused(&Device::new(&first)?, &["--device-id", "pump-18"], "ek-registered")?;
    ensure!(lab.dir.list("devices")? == before);
    ensure!(before[0]["serial"] == provisioned["serial"]);
    Ok(())
}

#[test]
fn wrong_tickets_and_strange_claims_are_refused_and_harm_nobody() -> Result<()> {
    let (lab, other) = (Lab::open()?, Lab::open()?);
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let mut other_mqtt = RawClient::connect(&other.server.bootstrap, &other.dir.root_pem())?;
    let challenge = challenged(&mut mqtt, &device)?;
    let ticket = device.activate(&challenge)?;
    let genuine = Proof { claim: challenge.claim, ticket };
    let refused = RequestBody::Certify;

    let wrong_ticket = Proof { ticket: Ticket::from([0; 32]), ..genuine.clone() };
    mqtt.refused(refused(wrong_ticket.clone()), ProblemCode::TicketRefused)?;
    let granted = certified(&mut mqtt, &genuine)?;
    let before = lab.dir.list("devices")?;

    mqtt.refused(refused(wrong_ticket), ProblemCode::TicketRefused)?;
    for at in (0..genuine.claim.len()).step_by(7) {
        let mut claim = genuine.claim.to_vec();
        claim[at] ^= 1;
        let altered = Proof { claim: claim.try_into()?, ..genuine.clone() };
        // One connection may ask only a few times.
        let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
        mqtt.refused(refused(altered), ProblemCode::TicketRefused)
            .with_context(|| format!("byte {at}"))?;
    }
    let challenge = challenged(&mut other_mqtt, &device)?;
    let ticket = device.activate(&challenge)?;
    mqtt.refused(refused(Proof { claim: challenge.claim, ticket }), ProblemCode::TicketRefused)?;

    ensure!(
        certified(&mut mqtt, &genuine)? == granted,
        "a repeated certify gets the same certificate"
    );
    ensure!(lab.dir.list("devices")? == before && lab.dir.list("certs")?.len() == 1);
    Ok(())
}

#[test]
fn bytes_that_are_no_request_are_answered_with_why() -> Result<()> {
    let lab = Lab::open()?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let id = RequestId::from([7; 16]);
    let certify = Proof { claim: Default::default(), ticket: Ticket::from([0; 32]) };
    let good = Request { id, body: RequestBody::Certify(certify) }.encode();

    let truncated = good[..good.len() - 1].to_vec();
    let trailing = [&good[..], &[0]].concat();
    // The body map is the last of three: 83, kind, 50 and 16 bytes, then the map's head.
    let (head, body) = good.split_at(19);
    let duplicate_key = [head, &[0xa3, 0x00, 0x40], &body[1..]].concat();
    let indefinite = [head, &[0xbf], &body[1..], &[0xff]].concat();
    let nested = [head, &[0x81; 8000][..], &[0]].concat();
    for (name, message) in [
        ("truncated", truncated),
        ("trailing", trailing),
        ("duplicate key", duplicate_key),
        ("indefinite", indefinite),
        ("nested", nested),
    ] {
        let reply = mqtt.ask_bytes(message).context(name)?;
        ensure!(
            reply.id == id && has_code(&reply.body, ProblemCode::Malformed),
            "{name}: {reply:?}"
        );
    }

    let unknown_kind = [&[0x83, 0x18, 0x63], &head[2..], &[0xa0]].concat();
    let reply = mqtt.ask_bytes(unknown_kind)?;
    ensure!(reply.id == id && has_code(&reply.body, ProblemCode::Unsupported), "{reply:?}");
    let reply = mqtt.ask_bytes(vec![0xff; MAX_MESSAGE + 1])?;
    ensure!(
        reply.id == RequestId::NIL && has_code(&reply.body, ProblemCode::Oversize),
        "{reply:?}"
    );
    let reply = mqtt.ask_bytes(good)?;
    ensure!(reply.id == id && has_code(&reply.body, ProblemCode::TicketRefused), "{reply:?}");
    Ok(())
}

#[test]
fn a_response_topic_of_somebody_else_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let certify = Proof { claim: Default::default(), ticket: Ticket::from([0; 32]) };
    let request =
        Request { id: RequestId::from([7; 16]), body: RequestBody::Certify(certify) }.encode();
    let own = format!("provision/v1/default/{}/reply", mqtt.id());
    let reply =
        mqtt.ask_with_response_topic(request.clone(), "provision/v1/default/pump-17/reply")?;
    ensure!(has_code(&reply.body, ProblemCode::Malformed), "{reply:?}");
    let reply = mqtt.ask_with_response_topic(request, &own)?;
    ensure!(has_code(&reply.body, ProblemCode::TicketRefused), "{reply:?}");
    Ok(())
}

fn challenged(mqtt: &mut RawClient, device: &ToolsDevice<'_>) -> Result<ChallengeReply> {
    match mqtt.ask(RequestBody::Challenge(device.evidence()?))? {
        ReplyBody::Challenge(challenge) => Ok(challenge),
        other => anyhow::bail!("expected a challenge, got {other:?}"),
    }
}

fn certified(mqtt: &mut RawClient, request: &Proof) -> Result<Vec<u8>> {
    match mqtt.ask(RequestBody::Certify(request.clone()))? {
        ReplyBody::Certificate(granted) => Ok(granted.chain[0].to_vec()),
        other => anyhow::bail!("expected a certificate, got {other:?}"),
    }
}

fn has_code(body: &ReplyBody, code: ProblemCode) -> bool {
    matches!(body, ReplyBody::Problem(problem) if problem.code == code)
}
