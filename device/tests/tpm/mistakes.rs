//! A wrong setting is reported at once. What may pass by itself is tried again.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use assay_device::tpm::{IkKind, Tpm};
use assay_device::{
    CredentialStatus, Device, DeviceOptions, Error, Flow, ProvisionRequest, Status, Validity,
};
use assay_mqtt::rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use assay_tests::Swtpm;
use rustls::version::{TLS12, TLS13};

use crate::fake_ca::FakeCa;
use crate::{IK, a_tpm, open, provisioning, tls, told};

#[test]
fn broker_of_another_root_is_told_at_once_with_what_to_change() -> Result<()> {
    let scene = Scene::new()?;
    let broker =
        FakeCa::operational(tls::Ca::new()?.server(&[&TLS13], false)?, ConnectReturnCode::Success);
    let error = scene.told_at_once(&broker.url("mqtts"))?;
    assert!(
        error.contains("does not lead to the pinned root") && error.contains("--ca-root"),
        "{error}"
    );
    assert!(broker.heard().logins.is_empty());
    Ok(())
}

#[test]
fn broker_of_another_name_is_told_at_once_with_the_names_it_has() -> Result<()> {
    let scene = Scene::new()?;
    let broker =
        FakeCa::operational(scene.ca.server(&[&TLS13], false)?, ConnectReturnCode::Success);
    let error = scene.told_at_once(&broker.url("mqtts").replace("localhost", "127.0.0.1"))?;
    assert!(
        error.contains("is for localhost, not for 127.0.0.1") && error.contains("--broker"),
        "{error}"
    );
    Ok(())
}

#[test]
fn wrong_protocol_is_told_at_once_but_nobody_is_talked_into_doing_without_tls() -> Result<()> {
    let scene = Scene::new()?;
    let plain = FakeCa::start(|_| None);
    let error = scene.told_at_once(&plain.url("mqtts"))?;
    assert!(
        error.contains("speaks MQTT without TLS") && !error.contains(&plain.url("mqtt")),
        "{error}"
    );
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let tls =
            FakeCa::operational(scene.ca.server(versions, false)?, ConnectReturnCode::Success);
        let error = scene.told_at_once(&tls.url("mqtt"))?;
        assert!(error.contains("speaks TLS") && error.contains(&tls.url("mqtts")), "{error}");
    }
    Ok(())
}

#[test]
fn port_of_something_else_is_told_at_once() -> Result<()> {
    let scene = Scene::new()?;
    let port = listen(b"HTTP/1.1 400 Bad Request\r\n\r\n")?;
    for (scheme, protocol) in [("mqtt", "MQTT"), ("mqtts", "TLS")] {
        let error = scene.told_at_once(&format!("{scheme}://localhost:{port}"))?;
        assert!(error.contains(&format!("does not speak {protocol}")), "{error}");
    }
    Ok(())
}

#[test]
fn operational_listener_in_place_of_the_bootstrap_listener_is_told_at_once() -> Result<()> {
    let scene = Scene::new()?;
    for (versions, asks_for_certificate, code) in [
        (&[&TLS13][..], true, ConnectReturnCode::Success),
        (&[&TLS12], true, ConnectReturnCode::Success),
        (&[&TLS13], false, ConnectReturnCode::BadUserNamePassword),
        (&[&TLS13], false, ConnectReturnCode::NotAuthorized),
        (&[&TLS13], false, ConnectReturnCode::ClientIdentifierNotValid),
    ] {
        let broker = FakeCa::operational(scene.ca.server(versions, asks_for_certificate)?, code);
        let error = scene.told_at_once(&broker.url("mqtts"))?;
        assert!(error.contains("bootstrap listener (port 8883 by default)"), "{code:?}: {error}");
    }
    Ok(())
}

#[test]
fn broker_that_is_not_there_yet_or_busy_is_tried_again() -> Result<()> {
    let scene = Scene::new()?;
    let closing = format!("mqtts://localhost:{}", listen(b"")?);
    let busy =
        FakeCa::operational(scene.ca.server(&[&TLS13], false)?, ConnectReturnCode::ServerBusy);
    for broker in
        ["mqtts://localhost:1", "mqtts://broker.invalid:8883", &closing, &busy.url("mqtts")]
    {
        let (outcome, steps) = scene.provision(broker, SHORT)?;
        assert_eq!(outcome.unwrap_err().exit_code(), 4, "{broker}");
        assert!(
            steps.iter().any(|step| step.starts_with("trying again in ")),
            "{broker}: {steps:?}"
        );
    }
    Ok(())
}

#[test]
fn reason_is_not_printed_twice() -> Result<()> {
    let (outcome, _) = Scene::new()?.provision("mqtts://localhost:1", SHORT)?;
    let error = outcome.unwrap_err().to_string();
    assert_eq!(error.matches("refused").count(), 1, "{error}");
    Ok(())
}

#[test]
fn clock_behind_the_brokers_certificate_is_called_wrong() -> Result<()> {
    let scene = Scene::new()?;
    let from =
        tls::Validity { not_before: rcgen::date_time_ymd(2190, 1, 1), ..tls::Validity::default() };
    let broker = FakeCa::operational(
        scene.ca.server_valid(&[&TLS13], false, from)?,
        ConnectReturnCode::Success,
    );
    let (outcome, _) = scene.provision(&broker.url("mqtts"), LONG)?;
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Clock { .. }), "{error}");
    assert_eq!(error.exit_code(), 3);
    let error = told(error);
    assert!(error.contains("clock is wrong") && error.contains("2190-01-01T00:00:00Z"), "{error}");
    assert!(error.contains("--no-clock"), "{error}");
    Ok(())
}

#[test]
fn clock_that_is_less_than_a_day_behind_is_waited_for() -> Result<()> {
    let scene = Scene::new()?;
    let soon = std::time::SystemTime::now() + Duration::from_hours(3);
    let from = tls::Validity { not_before: soon.into(), ..tls::Validity::default() };
    let broker = FakeCa::operational(
        scene.ca.server_valid(&[&TLS13], false, from)?,
        ConnectReturnCode::Success,
    );
    let (outcome, _) = scene.provision(&broker.url("mqtts"), SHORT)?;
    let error = outcome.unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(error.to_string().contains("this device's clock says"), "{error}");
    Ok(())
}

#[test]
fn brokers_certificate_that_has_ended_is_told_at_once_with_both_dates() -> Result<()> {
    let scene = Scene::new()?;
    let until =
        tls::Validity { not_after: rcgen::date_time_ymd(2020, 1, 1), ..tls::Validity::default() };
    let broker = FakeCa::operational(
        scene.ca.server_valid(&[&TLS13], false, until)?,
        ConnectReturnCode::Success,
    );
    let error = scene.told_at_once(&broker.url("mqtts"))?;
    assert!(error.contains("ended on 2020-01-01T00:00:00Z; this device's clock says"), "{error}");
    Ok(())
}

#[test]
fn clock_before_the_pinned_root_is_called_wrong_by_all_who_connect() -> Result<()> {
    let scene = Scene { ca: tls::Ca::made_in(2190)?, ..Scene::new()? };
    let (outcome, _) = scene.provision("mqtts://localhost:1", LONG)?;
    let published =
        scene.device(false)?.publish(&"mqtts://localhost:1".parse()?, "telemetry", Vec::new());
    for error in [outcome.unwrap_err(), published.unwrap_err()] {
        assert!(matches!(error, Error::Clock { .. }), "{error}");
        assert!(error.to_string().contains("the pinned root was made on 2190-01-01"), "{error}");
    }
    Ok(())
}

#[test]
fn device_without_a_clock_starts_from_its_root_and_uses_what_the_ca_certifies() -> Result<()> {
    let scene = Scene { ca: tls::Ca::made_in(2190)?, ..Scene::new()? };
    let ik = open(&scene.swtpm).create_identity_key(IkKind::P256, IK)?;
    let from =
        tls::Validity { not_before: rcgen::date_time_ymd(2191, 1, 1), ..tls::Validity::default() };
    scene.ca.provision_valid(scene.state.path(), IkKind::P256, &ik, from)?;
    let broker = FakeCa::operational(
        scene.ca.server_valid(&[&TLS13], false, from)?,
        ConnectReturnCode::Success,
    );

    let device = scene.device(true)?;
    let mut steps = Vec::new();
    let request = scene.request("mqtts://localhost:1", LONG)?;
    assert!(
        device.provision(&request, &mut |step, _| steps.push(step.to_owned()))?.was_provisioned
    );
    assert!(
        steps[0].contains("without a clock") && steps[0].contains("2190-01-01T00:00:00Z"),
        "{steps:?}"
    );
    device.publish(&broker.url("mqtts").parse()?, "telemetry", b"21.5".to_vec())?;
    assert_eq!(broker.heard().published.len(), 1);
    Ok(())
}

#[test]
fn certificate_that_has_ended_is_called_so() -> Result<()> {
    let scene = Scene::new()?;
    let ik = open(&scene.swtpm).create_identity_key(IkKind::P256, IK)?;
    let until =
        tls::Validity { not_after: rcgen::date_time_ymd(2020, 1, 1), ..tls::Validity::default() };
    scene.ca.provision_valid(scene.state.path(), IkKind::P256, &ik, until)?;
    let status = Status::read(scene.state.path())?.unwrap();
    let Some(CredentialStatus::Certificate { summary, .. }) = &status.credential else {
        panic!("{status:?}")
    };
    assert_eq!(summary.validity, Validity::Expired);
    let published =
        scene.device(false)?.publish(&"mqtts://localhost:1".parse()?, "telemetry", Vec::new());
    for error in [status.usable().unwrap_err(), published.unwrap_err()] {
        assert_eq!(error.exit_code(), 9, "{error}");
        assert!(error.to_string().contains("ended on 2020-01-01T00:00:00Z"), "{error}");
    }
    Ok(())
}

#[test]
fn clock_behind_the_devices_own_certificate_is_called_wrong() -> Result<()> {
    let scene = Scene::new()?;
    let ik = open(&scene.swtpm).create_identity_key(IkKind::P256, IK)?;
    let from =
        tls::Validity { not_before: rcgen::date_time_ymd(2190, 1, 1), ..tls::Validity::default() };
    scene.ca.provision_valid(scene.state.path(), IkKind::P256, &ik, from)?;
    let status = Status::read(scene.state.path())?.unwrap();
    let published =
        scene.device(false)?.publish(&"mqtts://localhost:1".parse()?, "telemetry", Vec::new());
    for error in [status.usable().unwrap_err(), published.unwrap_err()] {
        assert!(matches!(error, Error::Clock { .. }), "{error}");
    }
    Ok(())
}

#[test]
fn bootstrap_listener_in_place_of_the_operational_one_is_told_to_who_publishes() -> Result<()> {
    let scene = Scene::new()?;
    let ik = open(&scene.swtpm).create_identity_key(IkKind::P256, IK)?;
    scene.ca.provision(scene.state.path(), IkKind::P256, &ik)?;
    let broker = FakeCa::operational(
        scene.ca.server(&[&TLS13], false)?,
        ConnectReturnCode::ClientIdentifierNotValid,
    );
    let error = scene
        .device(false)?
        .publish(&broker.url("mqtts").parse()?, "telemetry", Vec::new())
        .unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(told(error.clone()).contains("operational listener (port 8884 by default)"), "{error}");
    Ok(())
}

#[test]
fn broken_state_is_set_aside_by_who_provisions_and_reported_by_others() -> Result<()> {
    let scene = Scene::new()?;
    let broken = scene.state.path().join("device.json");
    std::fs::write(&broken, "{ and then the power fai")?;
    let advice = "run `assay-device provision`";
    let error = scene
        .device(false)?
        .publish(&"mqtts://localhost:1".parse()?, "telemetry", Vec::new())
        .unwrap_err();
    assert!(error.exit_code() == 6 && told(error.clone()).contains(advice), "{error}");
    let error = Status::read(scene.state.path()).unwrap_err();
    assert!(error.exit_code() == 6 && told(error.clone()).contains(advice), "{error}");

    let (outcome, steps) = scene.provision("mqtts://localhost:1", SHORT)?;
    assert_eq!(outcome.unwrap_err().exit_code(), 4);
    assert!(steps[0].contains("device.json.broken"), "{steps:?}");
    let copy = std::fs::read_to_string(scene.state.path().join("device.json.broken"))?;
    assert_eq!(copy, "{ and then the power fai");
    assert!(Status::read(scene.state.path())?.is_some());
    Ok(())
}

struct Scene {
    swtpm: Swtpm,
    state: tempfile::TempDir,
    ca: tls::Ca,
}

impl Scene {
    fn new() -> Result<Self> {
        Ok(Self { swtpm: a_tpm(), state: tempfile::tempdir()?, ca: tls::Ca::new()? })
    }

    fn device(&self, no_clock: bool) -> Result<Device> {
        tls::open_device(DeviceOptions {
            no_clock,
            ..tls::options(&self.swtpm.tcti(), self.state.path(), &self.ca)?
        })
    }

    fn request(&self, broker: &str, deadline: Duration) -> Result<ProvisionRequest> {
        Ok(ProvisionRequest {
            broker: broker.parse()?,
            deadline,
            flow: Some(Flow::Ticket),
            ..provisioning::request()
        })
    }

    /// The outcome, and the steps until then.
    fn provision(
        &self,
        broker: &str,
        deadline: Duration,
    ) -> Result<(Result<(), Error>, Vec<String>)> {
        let mut steps = Vec::new();
        let request = self.request(broker, deadline)?;
        let outcome =
            self.device(false)?.provision(&request, &mut |step, _| steps.push(step.to_owned()));
        Ok((outcome.map(drop), steps))
    }

    /// What the device says after one attempt, with exit code 3, though it has minutes.
    fn told_at_once(&self, broker: &str) -> Result<String> {
        let started = Instant::now();
        let (outcome, steps) = self.provision(broker, LONG)?;
        let error = outcome.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{broker}: {error}");
        assert!(!steps.iter().any(|step| step.starts_with("trying again")), "{broker}: {steps:?}");
        assert!(started.elapsed() < Duration::from_secs(20), "{broker}");
        let error = told(error);
        assert!(error.contains("What to do: "), "{error}");
        Ok(error)
    }
}

/// Answers whatever comes with `answer`, and closes.
fn listen(answer: &'static [u8]) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            if !answer.is_empty() {
                _ = client.read(&mut [0; 1024]);
                _ = client.write_all(answer);
            }
        }
    });
    Ok(port)
}

/// Enough for a first attempt on a crowded machine.
const SHORT: Duration = Duration::from_secs(10);
/// The default of the command line. A run that fails long before this limit has failed at once.
const LONG: Duration = Duration::from_secs(300);
