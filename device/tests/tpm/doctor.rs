//! What the doctor finds on a device that is well, and on devices that are not.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use assay_device::tpm::{HierarchyPasswords, IkKind, SignatureScheme, Tpm};
use assay_device::{Advice, Check, DoctorOptions, Outcome, examine};
use assay_mqtt::rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use assay_tests::Swtpm;
use assay_wire::{ReplyBody, RequestBody};
use rustls::version::TLS13;

use crate::fake_ca::FakeCa;
use crate::{IK, a_tpm, advice, assert_nothing_loaded, open, passwords, tls};

#[test]
fn device_that_is_well_passes_every_check_and_is_left_as_it_was() -> Result<()> {
    let swtpm = a_tpm();
    let (ca, state) = (tls::Ca::new()?, tempfile::tempdir()?);
    let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    ca.provision(state.path(), IkKind::P256, &ik)?;
    let before = (swtpm.persistent_handles()?, std::fs::read(state.path().join("device.json"))?);
    let broker =
        FakeCa::start(|request| matches!(request, RequestBody::Ping).then_some(ReplyBody::Pong));
    let options = DoctorOptions {
        state: Some(state.path().into()),
        ca_roots: tls::options(&swtpm.tcti(), state.path(), &ca)?.ca_roots,
        broker: Some((broker.url("mqtt").parse()?, "default".parse()?)),
        ..options(&swtpm)?
    };
    let checks = examine(options, &mut |_| ());
    for name in [
        "TPM reached",
        "resource manager",
        "TPM",
        "self-test",
        "lockout",
        "hierarchies",
        "EK certificate",
        "SRK",
        "identity key",
        "clock",
        "state",
        "broker reached",
        "scope",
    ] {
        assert_eq!(find(&checks, name).outcome, Outcome::Pass, "{:?}", find(&checks, name));
    }
    assert_eq!(find(&checks, "TLS").outcome, Outcome::Warn, "without TLS");
    assert!(find(&checks, "TPM").found.starts_with("IBM SW"), "{}", find(&checks, "TPM").found);
    assert!(find(&checks, "identity key").found.contains("signs in"), "{checks:?}");
    assert_eq!(
        (swtpm.persistent_handles()?, std::fs::read(state.path().join("device.json"))?),
        before
    );
    assert_nothing_loaded(&swtpm)
}

#[test]
fn broker_of_another_root_fails_at_tls_and_is_not_asked_further() -> Result<()> {
    let swtpm = a_tpm();
    let (ca, other) = (tls::Ca::new()?, tls::Ca::new()?);
    let broker = FakeCa::operational(other.server(&[&TLS13], false)?, ConnectReturnCode::Success);
    let options = DoctorOptions {
        ca_roots: tls::options(&swtpm.tcti(), "".as_ref(), &ca)?.ca_roots,
        broker: Some((broker.url("mqtts").parse()?, "default".parse()?)),
        ..options(&swtpm)?
    };
    let checks = examine(options, &mut |_| ());
    let tls = find(&checks, "TLS");
    assert_eq!(tls.outcome, Outcome::Fail);
    assert!(
        tls.advice.as_ref().is_some_and(|advice| advised(advice).contains("--ca-root")),
        "{tls:?}"
    );
    assert!(!checks.iter().any(|check| check.name == "scope"), "{checks:?}");
    Ok(())
}

#[test]
fn tpm_that_is_not_there_is_one_failure_with_advice() -> Result<()> {
    let mut swtpm = a_tpm();
    swtpm.kill()?;
    let missing = DoctorOptions { tcti: "device:/dev/no-such-tpm".parse()?, ..options(&swtpm)? };
    for (options, advice) in [(options(&swtpm)?, "start the TPM"), (missing, "load its driver")] {
        let checks = examine(options, &mut |_| ());
        assert_eq!((checks[0].name, checks[0].outcome), ("TPM reached", Outcome::Fail));
        assert!(
            checks[0].advice.as_ref().is_some_and(|text| advised(text).contains(advice)),
            "{checks:?}"
        );
        assert_eq!(
            checks.iter().filter(|check| check.outcome == Outcome::Fail).count(),
            1,
            "{checks:?}"
        );
    }
    Ok(())
}

#[test]
fn tpm_without_certificate_or_with_passwords_or_wrong_attempts_is_told() -> Result<()> {
    let swtpm = Swtpm::without_ek_certificate()?;
    let checks = examine(options(&swtpm)?, &mut |_| ());
    let ek = find(&checks, "EK");
    assert!(ek.outcome == Outcome::Warn && ek.found.contains("no certificate"), "{ek:?}");

    let mut swtpm = a_tpm();
    swtpm.set_passwords("own-secret", "endorse-secret")?;
    let checks = examine(options(&swtpm)?, &mut |_| ());
    let ek = find(&checks, "EK");
    let advice = advised(ek.advice.as_ref().unwrap());
    assert!(ek.outcome == Outcome::Fail && advice.contains("--endorsement-auth-file"), "{ek:?}");
    assert!(find(&checks, "hierarchies").found.contains("owner has a password"));
    let known =
        DoctorOptions { passwords: passwords("own-secret", "endorse-secret"), ..options(&swtpm)? };
    let checks = examine(known, &mut |_| ());
    assert!(!checks.iter().any(|check| check.outcome == Outcome::Fail), "{checks:?}");
    let said = format!("{checks:?}");
    assert!(!said.contains("-secret"), "{said}");
    Ok(())
}

#[test]
fn identity_key_that_a_provisioned_device_lost_is_a_failure() -> Result<()> {
    let mut swtpm = a_tpm();
    let (ca, state) = (tls::Ca::new()?, tempfile::tempdir()?);
    let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    open(&swtpm).sign(IK, SignatureScheme::EcdsaSha256, &[7; 32])?;
    ca.provision(state.path(), IkKind::P256, &ik)?;
    swtpm.clear()?;
    let options = DoctorOptions { state: Some(state.path().into()), ..options(&swtpm)? };
    let checks = examine(options, &mut |_| ());
    let key = find(&checks, "identity key");
    assert!(key.outcome == Outcome::Fail && key.found.contains("cleared"), "{key:?}");
    Ok(())
}

#[test]
fn broken_state_is_a_failure_and_left_alone() -> Result<()> {
    let swtpm = a_tpm();
    let state = tempfile::tempdir()?;
    std::fs::write(state.path().join("device.json"), "{")?;
    let options = DoctorOptions { state: Some(PathBuf::from(state.path())), ..options(&swtpm)? };
    let checks = examine(options, &mut |_| ());
    assert_eq!(find(&checks, "state").outcome, Outcome::Fail);
    assert_eq!(std::fs::read(state.path().join("device.json"))?, b"{");
    Ok(())
}

fn advised(advice: &Advice) -> String {
    advice::of_check(advice).unwrap()
}

fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks
        .iter()
        .find(|check| check.name == name)
        .unwrap_or_else(|| panic!("no {name} among {checks:?}"))
}

fn options(swtpm: &Swtpm) -> Result<DoctorOptions> {
    Ok(DoctorOptions {
        tcti: swtpm.tcti().parse()?,
        passwords: HierarchyPasswords::default(),
        tpm_timeout: Duration::from_secs(30),
        state: None,
        ca_roots: Vec::new(),
        no_clock: false,
        broker: None,
    })
}
