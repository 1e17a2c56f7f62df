//! The library, as far as it needs no CA. The end-to-end tests cover the rest.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use assay_device::tpm::{IkKind, Tpm};
use assay_device::{Device, DeviceOptions, OwnKey, ProvisionRequest, Status};
use assay_tests::Swtpm;

use crate::{IK, a_tpm, assert_nothing_loaded, open, tls, told};

#[test]
fn silent_broker_is_given_up_at_the_deadline() -> Result<()> {
    let swtpm = a_tpm();
    let state = tempfile::tempdir()?;
    let device = device(&swtpm, state.path())?;
    let mut steps = Vec::new();
    let error =
        device.provision(&request(), &mut |step, _| steps.push(step.to_owned())).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    assert!(steps[0].starts_with("EK p-256 with certificate from NV memory, id "), "{steps:?}");
    assert!(steps.iter().any(|step| step.starts_with("trying again in ")), "{steps:?}");
    Ok(())
}

#[test]
fn ik_is_kept_before_anything_is_sent_and_used_by_the_next_run() -> Result<()> {
    let swtpm = a_tpm();
    let state = tempfile::tempdir()?;
    let mut before = swtpm.persistent_handles()?;
    before.push(IK);
    let mut origins = Vec::new();
    for _ in 0..3 {
        let device = device(&swtpm, state.path())?;
        let mut hear = |step: &str, _| {
            if step.starts_with("identity key") {
                origins.push(step.to_owned());
            }
        };
        device.provision(&request(), &mut hear).unwrap_err();
        assert_eq!(swtpm.persistent_handles()?, before);
        assert_nothing_loaded(&swtpm)?;
    }
    assert_eq!(
        origins,
        [
            "identity key p-256 created at 0x81000200",
            "identity key p-256 found at 0x81000200",
            "identity key p-256 found at 0x81000200",
        ]
    );
    Ok(())
}

#[test]
fn ik_and_handle_of_the_first_run_are_the_next_runs_default() -> Result<()> {
    let swtpm = a_tpm();
    let state = tempfile::tempdir()?;
    let first = ProvisionRequest { ik: Some(IkKind::P384), ik_handle: Some(IK + 1), ..request() };
    device(&swtpm, state.path())?.provision(&first, &mut |_, _| ()).unwrap_err();
    let handles = swtpm.persistent_handles()?;
    device(&swtpm, state.path())?.provision(&request(), &mut |_, _| ()).unwrap_err();
    assert_eq!(swtpm.persistent_handles()?, handles);
    let status = Status::read(state.path())?.unwrap();
    assert_eq!(status.keys.key, OwnKey::Identity { ik: IkKind::P384, ik_handle: IK + 1 });
    assert!(status.credential.is_none());
    Ok(())
}

#[test]
fn failed_attempt_leaves_a_working_device_alone_and_its_key_is_found_again() -> Result<()> {
    let swtpm = a_tpm();
    let state = tempfile::tempdir()?;
    let ca = tls::Ca::new()?;
    let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    ca.provision(state.path(), IkKind::P256, &ik)?;
    let other = "other".parse().unwrap();
    let attempt = ProvisionRequest {
        scope: other,
        ik: Some(IkKind::P384),
        ik_handle: Some(IK + 1),
        ..request()
    };
    let mut handles = Vec::new();
    for _ in 0..2 {
        let device = tls::device(&swtpm, state.path(), &ca)?;
        device.provision(&attempt, &mut |_, _| ()).unwrap_err();
        assert_eq!(device.certificate()?.device_id.as_str(), "pump-17");
        assert!(device.provision(&request(), &mut |_, _| ())?.was_provisioned);
        handles.push(swtpm.persistent_handles()?);
    }
    assert_eq!(handles[0], handles[1]);
    let status = Status::read(state.path())?.unwrap();
    let (keys, pending) = (status.keys, status.attempt.unwrap());
    assert_eq!(keys.scope.as_str(), "default");
    assert_eq!(keys.key, OwnKey::Identity { ik: IkKind::P256, ik_handle: IK });
    assert_eq!(pending.scope.as_str(), "other");
    assert_eq!(pending.key, OwnKey::Identity { ik: IkKind::P384, ik_handle: IK + 1 });
    Ok(())
}

#[test]
fn key_of_an_attempt_that_another_replaces_is_named() -> Result<()> {
    let swtpm = a_tpm();
    let state = tempfile::tempdir()?;
    let mut steps = Vec::new();
    for ik_handle in [IK, IK + 1] {
        let attempt = ProvisionRequest { ik_handle: Some(ik_handle), ..request() };
        let mut hear = |step: &str, _| steps.push(step.to_owned());
        device(&swtpm, state.path())?.provision(&attempt, &mut hear).unwrap_err();
    }
    let named: Vec<_> = steps.iter().filter(|step| step.contains("no longer used")).collect();
    assert_eq!(named.len(), 1, "{steps:?}");
    assert!(named[0].contains("tpm2_evictcontrol -c 0x81000200"), "{named:?}");
    Ok(())
}

#[test]
fn device_that_is_not_provisioned_says_so() -> Result<()> {
    let swtpm = a_tpm();
    let state = tempfile::tempdir()?;
    let error = device(&swtpm, state.path())?.mqtt_tls_config().unwrap_err();
    assert!(told(error.clone()).contains("assay-device provision"), "{error}");
    assert!(Status::read(state.path())?.is_none());
    Ok(())
}

fn device(swtpm: &Swtpm, state: &Path) -> Result<Device> {
    Ok(Device::open(options(swtpm, state)?)?)
}

pub(crate) fn options(swtpm: &Swtpm, state: &Path) -> Result<DeviceOptions> {
    Ok(DeviceOptions {
        tcti: swtpm.tcti().parse()?,
        passwords: Default::default(),
        tpm_timeout: Duration::from_secs(30),
        state: state.into(),
        ca_roots: Vec::new(),
        no_clock: false,
    })
}

/// A request to a broker that is not there, with a short deadline.
pub(crate) fn request() -> ProvisionRequest {
    ProvisionRequest {
        broker: "mqtt://127.0.0.1:1".parse().unwrap(),
        scope: "default".parse().unwrap(),
        flow: None,
        ek: None,
        ek_certificates: Vec::new(),
        ik: None,
        ik_handle: None,
        parent: None,
        hmac_handle: None,
        device_id: None,
        again: false,
        deadline: Duration::from_secs(2),
    }
}
