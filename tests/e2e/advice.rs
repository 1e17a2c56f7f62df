//! The CA's advice on when to try again, and that devices follow it.

use std::collections::HashSet;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_mqtt::rumqttc::v5::mqttbytes::QoS;
use assay_tests::{AssayDir, Device, EkKind, Mosquitto, Swtpm, Worker, trusted_vendor};
use assay_wire::{Problem, ProblemCode, Proof, Reply, ReplyBody, RequestBody, RequestId, Ticket};

use crate::lab::refused_with;
use crate::raw_client::{FakeCa, PlainDevice};
use crate::tools_device::ToolsDevice;

#[test]
fn a_full_queue_is_answered_with_busy_and_nobody_goes_unanswered() -> Result<()> {
    let dir = AssayDir::init()?;
    let vendor = trusted_vendor()?;
    dir.trust(&vendor)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true\nmax_inflight_messages \
                                        0\nmax_queued_messages 0\nset_tcp_nodelay true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let _worker = Worker::start(&dir, &broker)?;
    let tpm = vendor.device(EkKind::Rsa2048, 0)?;
    let evidence = ToolsDevice::new(&tpm, EkKind::Rsa2048)?.evidence()?;

    let mut device = PlainDevice::connect(&broker, 900)?;
    let request = RequestBody::Challenge(evidence);
    let mut open = (0..900)
        .map(|_| device.send(&request, QoS::AtLeastOnce))
        .collect::<Result<HashSet<_>>>()?;
    let (mut challenges, mut busy) = (0, 0);
    while !open.is_empty() {
        let reply = device.reply().with_context(|| format!("{} are unanswered", open.len()))?;
        ensure!(open.remove(&reply.id), "a second reply to {}", reply.id);
        match reply.body {
            ReplyBody::Challenge(_) => challenges += 1,
            ReplyBody::Problem(Problem {
                code: ProblemCode::Busy, retry_after: Some(1..), ..
            }) => busy += 1,
            other => bail!("{other:?}"),
        }
    }
    ensure!(challenges > 0 && busy > 0, "{challenges} challenges, {busy} busy");
    Ok(())
}

#[test]
fn a_request_that_nothing_bounds_is_ignored() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let _worker = Worker::start(&dir, &broker)?;
    let mut device = PlainDevice::connect(&broker, 16)?;
    let request =
        RequestBody::Certify(Proof { claim: Default::default(), ticket: Ticket::from([0; 32]) });
    device.send(&request, QoS::AtMostOnce)?;
    let bounded = device.send(&request, QoS::AtLeastOnce)?;
    ensure!(device.reply()?.id == bounded);
    Ok(())
}

#[test]
fn messages_that_are_no_request_delay_nobody() -> Result<()> {
    let dir = AssayDir::init()?;
    let mosquitto = Mosquitto::start(&[
        "allow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0",
    ])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let _worker = Worker::start(&dir, &broker)?;
    let mut device = PlainDevice::connect(&broker, 1200)?;
    // More messages than a worker lets the broker send before it acknowledges the first.
    for _ in 0..1100 {
        // The worker's filter matches this topic, but no client can have this id.
        device.send_to("provision/v1/default/no client/request", b"anything".to_vec())?;
    }
    let id = device.send(&RequestBody::Ping, QoS::AtLeastOnce)?;
    ensure!(device.reply()?.id == id);
    Ok(())
}

#[test]
fn a_device_waits_as_long_as_the_ca_advises() -> Result<()> {
    let scene = Scene::set()?;
    let (mut ca, device) = scene.begin()?;
    let (client, request) = ca.request()?;
    let busy = Problem::new(ProblemCode::Busy, "later".into()).retry_after(2);
    ca.reply(&client, problem(request.id, busy))?;
    let told = Instant::now();
    let (client, request) = ca.request()?;
    ensure!(told.elapsed() >= Duration::from_secs(2), "it came back after {:?}", told.elapsed());
    ca.reply(&client, problem(request.id, final_problem()))?;
    refused_with(&device.wait_with_output()?, "ek-weak")
}

#[test]
fn a_device_passes_over_replies_that_are_not_for_it() -> Result<()> {
    let scene = Scene::set()?;
    let (mut ca, device) = scene.begin()?;
    let (client, request) = ca.request()?;
    ca.reply(&client, b"no message".to_vec())?;
    ca.reply(
        &client,
        problem(
            RequestId::from([9; 16]),
            Problem::new(ProblemCode::DeviceDisabled, "forged".into()),
        ),
    )?;
    ca.reply(&client, problem(request.id, final_problem()))?;
    refused_with(&device.wait_with_output()?, "ek-weak")
}

#[test]
fn a_device_whose_ticket_is_refused_begins_again_but_not_for_ever() -> Result<()> {
    let scene = Scene::set()?;
    let (mut ca, device) = scene.begin()?;
    let mut attempts = 0;
    let mut device = device;
    while device.try_wait()?.is_none() {
        let Ok((client, request)) = ca.request() else { break };
        attempts += 1;
        ca.reply(
            &client,
            problem(request.id, Problem::new(ProblemCode::TicketRefused, "again".into())),
        )?;
    }
    ensure!(attempts == 4, "{attempts} attempts");
    refused_with(&device.wait_with_output()?, "ticket-refused")
}

/// A broker, a device and its TPM, but no CA yet.
struct Scene {
    mosquitto: Mosquitto,
    dir: AssayDir,
    device: Device,
    /// Must outlive the device.
    _tpm: Swtpm,
}

impl Scene {
    fn set() -> Result<Self> {
        let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
        let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
        let device = Device::new(&tpm)?;
        Ok(Self { mosquitto, dir: AssayDir::init()?, device, _tpm: tpm })
    }

    /// The fake CA, and a device that is about to ask it.
    fn begin(&self) -> Result<(FakeCa, Child)> {
        let broker = format!("mqtt://127.0.0.1:{}", self.mosquitto.port(0));
        let ca = FakeCa::connect(&broker)?;
        let mut provision = self.device.provision_at(&broker, &self.dir.root_pem())?;
        Ok((ca, provision.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?))
    }
}

fn problem(id: RequestId, problem: Problem) -> Vec<u8> {
    Reply { id, body: ReplyBody::Problem(problem) }.encode()
}

/// A problem that waiting does not solve.
fn final_problem() -> Problem {
    Problem::new(ProblemCode::EkWeak, "for good".into())
}
