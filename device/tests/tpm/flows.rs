//! The flows against a CA that answers as a test says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use assay_device::tpm::{EkKind, IkKind, ParentKind, PublicArea, Tpm, WrappedKey};
use assay_device::{
    AnswerError, Credential, CredentialStatus, Device, EkChoice, Error, Flow, OwnKey,
    ProvisionRequest, Provisioned, Status,
};
use assay_mqtt::rumqttc::v5::mqttbytes::v5::ConnectReturnCode;
use assay_tests::Swtpm;
use assay_wire::{
    ActivationReply, ConfirmedReply, Problem, ProblemCode, Receipt, ReplyBody, RequestBody,
    SealedCertificate, SealedReply, Ticket,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::version::{TLS12, TLS13};
use sha2::{Digest, Sha256};

use crate::fake_ca::FakeCa;
use crate::proxy::Proxy;
use crate::shared_key::import;
use crate::wrap::{credential, hmac, wrap};
use crate::{HMAC_KEY, IK, a_tpm, assert_nothing_loaded, open, provisioning, tls, told, vendor};

const TICKET: [u8; 32] = [0x71; 32];
const RECEIPT: [u8; 32] = [0x2E; 32];
const KEY: [u8; 32] = *b"thirty-two bytes of key material";
const OTHER_KEY: [u8; 32] = [0xA5; 32];

#[test]
fn sealed_certificate_is_confirmed_with_the_ticket_in_it() -> Result<()> {
    let lab = Lab::new()?;
    let reply = lab.sealed("pump-17")?;
    let ca = FakeCa::start(move |request| match request {
        RequestBody::Enroll(_) => Some(ReplyBody::Sealed(reply.clone())),
        RequestBody::Confirm(proof) => {
            assert_eq!((&proof.claim, &proof.ticket), (&reply.claim, &Ticket::from(TICKET)));
            Some(confirmed())
        }
        _ => None,
    });
    let provisioned = lab.provision(&ca, Some(Flow::Sealed))?;
    assert_eq!((provisioned.flow, provisioned.device_id.as_str()), (Flow::Sealed, "pump-17"));
    assert_eq!(provisioned.cost.requests, 2);
    assert!(provisioned.cost.bytes_sent > 0 && provisioned.cost.bytes_received > 0);
    assert_eq!(ca.take_requests(), ["enroll", "confirm"]);
    assert_eq!(ca.heard().logins.len(), 1, "one connection for both");
    assert_eq!(lab.is_confirmed()?, Some(true));
    assert!(lab.provision(&ca, None)?.was_provisioned);
    assert_eq!(ca.take_requests(), [""; 0]);
    assert_nothing_loaded(&lab.swtpm)
}

#[test]
fn sealed_certificate_is_stored_before_it_is_confirmed_and_only_confirmed_by_the_next_run()
-> Result<()> {
    let lab = Lab::new()?;
    let reply = lab.sealed("pump-17")?;
    let answers = Arc::new(Mutex::new(false));
    let ca = FakeCa::start({
        let answers = Arc::clone(&answers);
        move |request| match request {
            RequestBody::Enroll(_) => Some(ReplyBody::Sealed(reply.clone())),
            RequestBody::Confirm(_) => answers.lock().unwrap().then_some(confirmed()),
            _ => None,
        }
    });
    let request = ProvisionRequest {
        flow: Some(Flow::Sealed),
        deadline: Duration::from_secs(5),
        ..lab.request(&ca)
    };
    let error = lab.device()?.provision(&request, &mut |_, _| ()).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    let requests = ca.take_requests();
    assert_eq!(requests[..2], ["enroll", "confirm"]);
    assert!(requests[2..].iter().all(|&request| request == "confirm"), "{requests:?}");
    assert_eq!(lab.is_confirmed()?, Some(false));
    let device = lab.device()?;
    assert_eq!(device.certificate()?.device_id.as_str(), "pump-17");
    device.mqtt_tls_config()?;
    drop(device);

    *answers.lock().unwrap() = true;
    let provisioned = lab.provision(&ca, None)?;
    assert!(!provisioned.was_provisioned);
    assert_eq!(ca.take_requests(), ["confirm"]);
    assert_eq!(lab.is_confirmed()?, Some(true));
    Ok(())
}

#[test]
fn sealed_certificate_confirmed_too_late_has_another_asked_for() -> Result<()> {
    for code in [ProblemCode::ClaimExpired, ProblemCode::TicketRefused] {
        let lab = Lab::new()?;
        let reply = lab.sealed("pump-17")?;
        let refusals = Arc::new(Mutex::new(0));
        let ca = FakeCa::start({
            let refusals = Arc::clone(&refusals);
            move |request| match request {
                RequestBody::Enroll(_) => Some(ReplyBody::Sealed(reply.clone())),
                RequestBody::Confirm(_) => {
                    let mut left = refusals.lock().unwrap();
                    if *left == 0 {
                        return Some(confirmed());
                    }
                    *left -= 1;
                    Some(ReplyBody::Problem(Problem::new(code, "test".into())))
                }
                _ => None,
            }
        });
        *refusals.lock().unwrap() = 1;
        lab.provision(&ca, Some(Flow::Sealed))?;
        assert_eq!(ca.take_requests(), ["enroll", "confirm", "enroll", "confirm"]);
        assert_eq!(lab.is_confirmed()?, Some(true));

        *refusals.lock().unwrap() = usize::MAX;
        let request = ProvisionRequest { again: true, ..lab.request(&ca) };
        let error = lab.device()?.provision(&request, &mut |_, _| ()).unwrap_err();
        assert!(matches!(&error, Error::Refused { problem } if problem.code == code), "{error}");
        assert_eq!(ca.take_requests().len(), 8, "three restarts");
    }
    Ok(())
}

/// Anybody who carries the messages can forge everything except the receipt.
#[test]
fn confirmation_answered_by_another_than_the_ca_leaves_the_certificate_unconfirmed() -> Result<()> {
    let lab = Lab::new()?;
    let reply = lab.sealed("pump-17")?;
    let is_hostile = Arc::new(Mutex::new(true));
    let ca = FakeCa::start({
        let is_hostile = Arc::clone(&is_hostile);
        move |request| match request {
            RequestBody::Enroll(_) => Some(ReplyBody::Sealed(reply.clone())),
            _ if *is_hostile.lock().unwrap() => {
                Some(ReplyBody::Confirmed(ConfirmedReply { receipt: Receipt::from(TICKET) }))
            }
            _ => Some(confirmed()),
        }
    });
    let error = lab.provision(&ca, Some(Flow::Sealed)).unwrap_err();
    assert!(matches!(&error, Error::Answer(AnswerError::Receipt)), "{error}");
    assert_eq!(lab.is_confirmed()?, Some(false));

    *is_hostile.lock().unwrap() = false;
    ca.take_requests();
    lab.provision(&ca, None)?;
    assert_eq!((ca.take_requests(), lab.is_confirmed()?), (vec!["confirm"], Some(true)));
    Ok(())
}

/// Anybody who carries the messages can forge any problem.
#[test]
fn problem_in_answer_to_a_confirmation_ends_nothing_that_works() -> Result<()> {
    for code in [ProblemCode::ClaimExpired, ProblemCode::DeviceDisabled] {
        let lab = Lab::new()?;
        let reply = lab.sealed("pump-17")?;
        let is_hostile = Arc::new(Mutex::new(false));
        let ca = FakeCa::start({
            let is_hostile = Arc::clone(&is_hostile);
            move |request| match request {
                RequestBody::Enroll(_) => Some(ReplyBody::Sealed(reply.clone())),
                RequestBody::Confirm(_) if *is_hostile.lock().unwrap() => {
                    Some(ReplyBody::Problem(Problem::new(code, "test".into())))
                }
                _ => Some(confirmed()),
            }
        });
        lab.ca.provision(lab.state.path(), IkKind::P256, &lab.ik)?;
        lab.device()?;
        let copy = lab.state.path().join("certificate.pem");
        let before = (lab.device()?.certificate()?.chain, std::fs::read(&copy)?);
        *is_hostile.lock().unwrap() = true;
        for again in [true, false] {
            let request = ProvisionRequest { flow: Some(Flow::Sealed), again, ..lab.request(&ca) };
            let error = lab.device()?.provision(&request, &mut |_, _| ()).unwrap_err();
            assert_eq!(error.exit_code(), 3, "{code:?}: {error}");
            assert_eq!(
                (lab.device()?.certificate()?.chain, std::fs::read(&copy)?),
                before,
                "{code:?}"
            );
            lab.device()?.mqtt_tls_config()?;
            assert_eq!(lab.is_confirmed()?, Some(true));
            assert_eq!(
                Status::read(lab.state.path())?.unwrap().attempt.unwrap().flow,
                Flow::Sealed
            );
        }
        *is_hostile.lock().unwrap() = false;
        ca.take_requests();
        assert!(!lab.provision(&ca, None)?.was_provisioned);
        assert_eq!(
            ca.take_requests(),
            ["confirm"],
            "{code:?}: the certificate that waits is confirmed"
        );
        assert_ne!(lab.device()?.certificate()?.chain, before.0);
        assert!(Status::read(lab.state.path())?.unwrap().attempt.is_none());
    }
    Ok(())
}

/// The device may have signed in with the certificate, which confirms it as well.
#[test]
fn problem_in_answer_to_the_first_confirmation_leaves_the_certificate_that_has_come() -> Result<()>
{
    let lab = Lab::new()?;
    let reply = lab.sealed("pump-17")?;
    let ca = FakeCa::start(move |request| match request {
        RequestBody::Enroll(_) => Some(ReplyBody::Sealed(reply.clone())),
        _ => Some(ReplyBody::Problem(Problem::new(ProblemCode::ClaimExpired, "test".into()))),
    });
    for _ in 0..2 {
        let error = lab.provision(&ca, Some(Flow::Sealed)).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert_eq!(lab.device()?.certificate()?.device_id.as_str(), "pump-17");
        assert_eq!(lab.is_confirmed()?, Some(false));
    }
    Ok(())
}

#[test]
fn sealed_reply_that_was_altered_or_is_for_another_device_is_refused_and_not_stored() -> Result<()>
{
    let lab = Lab::new()?;
    let good = lab.sealed("pump-17")?;
    let other_ik = open(&lab.swtpm).create_identity_key(IkKind::P256, IK + 1)?;
    let flipped = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let mut cases = vec![
        ("claim", SealedReply { claim: flipped(&good.claim, 0).try_into()?, ..good.clone() }),
        ("for another identity key", lab.sealed_by(&lab.ca, &other_ik, "pump-17")?),
        ("by another root", lab.sealed_by(&tls::Ca::new()?, &lab.ik, "pump-17")?),
        ("for another name", lab.sealed("pump-18")?),
        ("short", SealedReply { sealed: vec![1].try_into()?, ..good.clone() }),
    ];
    for at in 0..good.credential_blob.len() {
        let credential_blob = flipped(&good.credential_blob, at).try_into()?;
        cases.push(("credential", SealedReply { credential_blob, ..good.clone() }));
    }
    for at in [0, 2, 33, good.encrypted_seed.len() - 1] {
        let encrypted_seed = flipped(&good.encrypted_seed, at).try_into()?;
        cases.push(("seed", SealedReply { encrypted_seed, ..good.clone() }));
    }
    for at in [0, 11, 12, good.sealed.len() - 1] {
        cases.push((
            "sealed",
            SealedReply { sealed: flipped(&good.sealed, at).try_into()?, ..good.clone() },
        ));
    }
    let device = lab.device()?;
    for (case, reply) in cases {
        let ca = FakeCa::start(move |_| Some(ReplyBody::Sealed(reply.clone())));
        let device_id = Some("pump-17".parse()?);
        let request = ProvisionRequest { flow: Some(Flow::Sealed), device_id, ..lab.request(&ca) };
        let error = device.provision(&request, &mut |_, _| ()).unwrap_err();
        assert_eq!(error.exit_code(), 7, "{case}: {error}");
        assert_eq!(ca.take_requests(), ["enroll"], "{case}");
        assert_eq!(lab.is_confirmed()?, None, "{case}");
        assert!(!lab.state.path().join("certificate.pem").exists(), "{case}");
    }
    assert_nothing_loaded(&lab.swtpm)
}

#[test]
fn shared_key_is_asked_for_once_and_signs_tokens() -> Result<()> {
    let lab = Lab::new()?;
    let ca = lab.key_server(&KEY)?;
    let provisioned = lab.provision(&ca, Some(Flow::SharedKey))?;
    assert_eq!(provisioned.device_id.as_str(), "pump-17");
    let expected = Credential::SharedKey { parent: ParentKind::P256, hmac_handle: HMAC_KEY };
    assert_eq!(format!("{:?}", provisioned.credential), format!("{expected:?}"));
    assert_eq!(ca.take_requests(), ["register"]);

    let again = lab.provision(&ca, None)?;
    assert!(again.was_provisioned);
    assert_eq!((again.flow, ca.take_requests()), (Flow::SharedKey, vec![]));
    lab.device()?
        .provision(&ProvisionRequest { again: true, ..lab.request(&ca) }, &mut |_, _| ())?;
    assert_eq!(ca.take_requests(), ["register"]);

    let device = lab.device()?;
    let token = device.token(Duration::from_secs(600))?;
    let signed = format!("default%2Fregistrations%2Fpump-17\n{}", token.expires_at);
    let base64 = data_encoding::BASE64.encode(&hmac(&KEY, signed.as_bytes()));
    let signature = base64.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    assert!(
        token.password.contains(&format!("&sig={signature}&se={}&", token.expires_at)),
        "{}",
        token.password
    );
    assert_eq!(device.token(Duration::from_secs(86_401)).unwrap_err().exit_code(), 2);
    let error = device.mqtt_tls_config().unwrap_err();
    assert!(error.to_string().contains("shared key"), "{error}");

    let status = Status::read(lab.state.path())?.unwrap();
    assert_eq!(status.keys.flow, Flow::SharedKey);
    assert_eq!(status.keys.key, OwnKey::Hmac { parent: ParentKind::P256, hmac_handle: HMAC_KEY });
    assert!(
        matches!(status.credential, Some(CredentialStatus::SharedKey { device_id, .. }) if device_id == "pump-17")
    );
    assert_nothing_loaded(&lab.swtpm)
}

#[test]
fn cleared_tpm_registers_again_by_itself() -> Result<()> {
    let mut lab = Lab::new()?;
    lab.provision(&lab.key_server(&KEY)?, Some(Flow::SharedKey))?;
    lab.swtpm.clear()?;
    let error = lab.device()?.token(Duration::from_secs(60)).unwrap_err();
    assert!(told(error.clone()).contains("run `assay-device provision`"), "{error}");
    // The parent is another key now.
    let ca = lab.key_server(&KEY)?;
    assert!(!lab.provision(&ca, None)?.was_provisioned);
    assert_eq!(ca.take_requests(), ["register"]);
    lab.device()?.token(Duration::from_secs(60))?;
    Ok(())
}

#[test]
fn rotated_key_takes_the_old_ones_place() -> Result<()> {
    let lab = Lab::new()?;
    lab.provision(&lab.key_server(&OTHER_KEY)?, Some(Flow::SharedKey))?;
    let ca = lab.key_server(&KEY)?;
    assert!(lab.provision(&ca, None)?.was_provisioned);
    lab.device()?
        .provision(&ProvisionRequest { again: true, ..lab.request(&ca) }, &mut |_, _| ())?;
    assert_eq!(open(&lab.swtpm).hmac(HMAC_KEY, b"data")?, hmac(&KEY, b"data"));
    Ok(())
}

#[test]
fn device_cut_off_at_any_tpm_command_registers_the_next_time_though_every_key_is_another()
-> Result<()> {
    let lab = Lab::new()?;
    let mut tpm = open(&lab.swtpm);
    let ek = tpm.endorsement_key(EkKind::P256)?.unwrap();
    let parent = tpm.parent(ParentKind::P256)?.unwrap();
    drop(tpm);
    let mut generation = 0;
    let ca = FakeCa::start(move |_| {
        generation += 1;
        Some(ReplyBody::Activation(activation(wrap(&[generation; 32], &ek, &parent)).unwrap()))
    });
    let request = ProvisionRequest { flow: Some(Flow::SharedKey), again: true, ..lab.request(&ca) };
    let silent = ProvisionRequest { deadline: Duration::from_secs(1), ..provisioning::request() };
    let silent = ProvisionRequest { flow: Some(Flow::SharedKey), again: true, ..silent };
    let cut_off_after = |limit| {
        let proxy = Proxy::with_limit(&lab.swtpm, limit)?;
        tls::device_at(&proxy.tcti(), lab.state.path(), &lab.ca)
            .map(|device| device.provision(&request, &mut |_, _| ()))
    };
    let mut was_orphaned = false;
    for limit in 0.. {
        let before = open(&lab.swtpm).hmac_key(HMAC_KEY)?;
        let outcome = cut_off_after(limit)?;
        let after = open(&lab.swtpm).hmac_key(HMAC_KEY)?;
        if outcome.is_err() && after.is_some() && after != before {
            was_orphaned = true;
            // The new key stays known after further attempts, whether they end before or after the
            // CA answers.
            lab.device()?.provision(&silent, &mut |_, _| ()).unwrap_err();
            for commands_less in [4, 6, 8] {
                cut_off_after(limit - commands_less)?.unwrap_err();
            }
        }
        lab.device()?.provision(&request, &mut |_, _| ())?;
        lab.device()?.token(Duration::from_secs(60))?;
        assert_nothing_loaded(&lab.swtpm)?;
        if outcome.is_ok() {
            assert!(
                was_orphaned,
                "no cut fell between the new key's persistence and the memory of it"
            );
            return Ok(());
        }
    }
    unreachable!()
}

#[test]
fn lost_state_is_written_anew_for_the_key_that_is_there() -> Result<()> {
    let lab = Lab::new()?;
    let ca = lab.key_server(&KEY)?;
    lab.provision(&ca, Some(Flow::SharedKey))?;
    std::fs::remove_file(lab.state.path().join("device.json"))?;
    lab.provision(&ca, Some(Flow::SharedKey))?;
    lab.device()?.token(Duration::from_secs(60))?;
    Ok(())
}

#[test]
fn hmac_key_of_somebody_else_stays_however_often_one_tries() -> Result<()> {
    let lab = Lab::new()?;
    let theirs = lab.wrapped(&OTHER_KEY)?;
    import(&mut open(&lab.swtpm), &theirs, None)?;
    let ca = lab.key_server(&KEY)?;
    for _ in 0..2 {
        let error = lab.provision(&ca, Some(Flow::SharedKey)).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(told(error.clone()).contains("--hmac-handle"), "{error}");
    }
    assert_eq!(open(&lab.swtpm).hmac(HMAC_KEY, b"data")?, hmac(&OTHER_KEY, b"data"));
    let elsewhere = ProvisionRequest {
        flow: Some(Flow::SharedKey),
        hmac_handle: Some(HMAC_KEY + 1),
        ..lab.request(&ca)
    };
    lab.device()?.provision(&elsewhere, &mut |_, _| ())?;
    assert!(lab.provision(&ca, None)?.was_provisioned, "the handle is remembered");
    Ok(())
}

#[test]
fn key_of_somebody_else_that_a_reply_only_names_is_not_taken_for_ones_own() -> Result<()> {
    let lab = Lab::new()?;
    let theirs = lab.wrapped(&OTHER_KEY)?;
    import(&mut open(&lab.swtpm), &theirs, None)?;
    let named = ActivationReply { key_public: theirs.public.try_into()?, ..lab.activation(&KEY)? };
    let hostile = FakeCa::start(move |_| Some(ReplyBody::Activation(named.clone())));
    let error = lab.provision(&hostile, Some(Flow::SharedKey)).unwrap_err();
    assert_eq!(error.exit_code(), 7, "{error}");
    assert!(lab.device()?.token(Duration::from_secs(60)).is_err());

    // Later it does not count as the device's own key either, so the next key does not replace it.
    let error = lab.provision(&lab.key_server(&KEY)?, Some(Flow::SharedKey)).unwrap_err();
    assert_eq!(error.exit_code(), 5, "{error}");
    assert_eq!(open(&lab.swtpm).hmac(HMAC_KEY, b"data")?, hmac(&OTHER_KEY, b"data"));
    Ok(())
}

#[test]
fn key_for_another_tpm_or_another_name_is_refused_and_not_stored() -> Result<()> {
    let lab = Lab::new()?;
    let good = lab.activation(&KEY)?;
    let mut duplicate = good.duplicate.to_vec();
    duplicate[40] ^= 1;
    let mut key_public = good.key_public.to_vec();
    key_public[5] = 0;
    for (case, reply) in [
        ("altered", ActivationReply { duplicate: duplicate.try_into()?, ..good.clone() }),
        ("another shape", ActivationReply { key_public: key_public.try_into()?, ..good.clone() }),
        ("another name", ActivationReply { device_id: "pump-18".parse()?, ..good }),
    ] {
        let ca = FakeCa::start(move |_| Some(ReplyBody::Activation(reply.clone())));
        let device_id = Some("pump-17".parse()?);
        let request =
            ProvisionRequest { flow: Some(Flow::SharedKey), device_id, ..lab.request(&ca) };
        let error = lab.device()?.provision(&request, &mut |_, _| ()).unwrap_err();
        assert_eq!(error.exit_code(), 7, "{case}: {error}");
        assert!(Status::read(lab.state.path())?.unwrap().credential.is_none(), "{case}");
        assert_eq!(open(&lab.swtpm).hmac_key(HMAC_KEY)?, None, "{case}");
    }
    assert_nothing_loaded(&lab.swtpm)
}

#[test]
fn ek_of_the_first_run_is_the_next_runs_until_another_is_named() -> Result<()> {
    let swtpm = vendor().device(assay_tests::EkKind::Rsa2048, 0)?;
    let (state, ca) = (tempfile::tempdir()?, tls::Ca::new()?);
    let shown = Arc::new(Mutex::new(Vec::new()));
    let server = FakeCa::start({
        let shown = Arc::clone(&shown);
        move |request| {
            let RequestBody::Register(bundle) = request else { return None };
            shown.lock().unwrap().push((bundle.ek_public.clone(), bundle.ek_certificates.len()));
            Some(ReplyBody::Problem(Problem::new(ProblemCode::EkNotEnrolled, "test".into())))
        }
    });
    let broker: assay_mqtt::BrokerUrl = server.url("mqtt").parse()?;
    let mut said = Vec::new();
    let mut run = |ek| -> Result<String> {
        let request =
            ProvisionRequest { broker: broker.clone(), ek, again: true, ..provisioning::request() };
        let request = ProvisionRequest { flow: Some(Flow::SharedKey), ..request };
        said.clear();
        let mut hear = |step: &str, _| said.push(step.to_owned());
        tls::device(&swtpm, state.path(), &ca)?.provision(&request, &mut hear).unwrap_err();
        Ok(said.join("\n"))
    };
    let (first, second) = (run(Some(EkChoice::Kind(EkKind::LegacyDps)))?, run(None)?);
    let other = "this EK is not the one of kind legacy-dps";
    assert!(first.contains("EK legacy-dps") && second.contains("EK legacy-dps"), "{second}");
    assert!(!second.contains(other), "{second}");
    let third = run(Some(EkChoice::Auto))?;
    assert!(third.contains("EK rsa-2048") && third.contains(other), "{third}");
    let shown = shown.lock().unwrap();
    assert_eq!(shown[0], shown[1]);
    assert_ne!(shown[0].0, shown[2].0);
    assert_eq!((shown[0].1, shown[2].1), (0, 1), "certificates");
    Ok(())
}

/// For the CA, another EK is another device.
#[test]
fn certificate_that_waits_is_confirmed_for_the_ek_that_it_was_sealed_to_alone() -> Result<()> {
    let swtpm = vendor().device(assay_tests::EkKind::Rsa2048, 0)?;
    let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
    let lab = Lab { swtpm, state: tempfile::tempdir()?, ca: tls::Ca::new()?, ik };
    let reply = lab.sealed("pump-17")?;
    let ca = FakeCa::start(move |request| match request {
        RequestBody::Enroll(bundle) if bundle.ek_certificates.is_empty() => {
            Some(ReplyBody::Sealed(reply.clone()))
        }
        RequestBody::Confirm(_) => None,
        _ => Some(ReplyBody::Problem(Problem::new(ProblemCode::EkNotEnrolled, "test".into()))),
    });
    let run = |ek, deadline| -> Result<Error> {
        let (ek, deadline) = (Some(ek), Duration::from_secs(deadline));
        let request =
            ProvisionRequest { flow: Some(Flow::Sealed), ek, deadline, ..lab.request(&ca) };
        Ok(lab.device()?.provision(&request, &mut |_, _| ()).unwrap_err())
    };
    assert_eq!(run(EkChoice::Kind(EkKind::P256), 5)?.exit_code(), 4);
    assert_eq!((ca.take_requests()[0], lab.is_confirmed()?), ("enroll", Some(false)));
    assert_eq!(run(EkChoice::Auto, 60)?.exit_code(), 3);
    assert_eq!(ca.take_requests(), ["enroll"], "the RSA EK has no certificate to confirm");
    Ok(())
}

#[test]
fn ek_that_is_named_is_asked_for_though_there_is_a_credential_for_another() -> Result<()> {
    let lab = Lab::new()?;
    let ca = lab.key_server(&KEY)?;
    lab.provision(&ca, Some(Flow::SharedKey))?;
    ca.take_requests();
    for (ek, asks) in [
        (EkChoice::Auto, false),
        (EkChoice::Kind(EkKind::P256), false),
        (EkChoice::Kind(EkKind::P384), true),
    ] {
        let request = ProvisionRequest { ek: Some(ek), ..lab.request(&ca) };
        _ = lab.device()?.provision(&request, &mut |_, _| ());
        assert_eq!(!ca.take_requests().is_empty(), asks, "{ek}");
    }
    Ok(())
}

#[test]
fn other_flow_takes_the_place_of_what_was_in_use() -> Result<()> {
    let lab = Lab::new()?;
    lab.ca.provision(lab.state.path(), IkKind::P256, &lab.ik)?;
    let ca = lab.key_server(&KEY)?;
    let mut steps = Vec::new();
    let request = ProvisionRequest { flow: Some(Flow::SharedKey), ..lab.request(&ca) };
    lab.device()?.provision(&request, &mut |step, _| steps.push(step.to_owned()))?;
    let named = "the identity key at 0x81000200 is no longer used";
    assert!(steps.iter().any(|step| step.starts_with(named)), "{steps:?}");
    assert!(!lab.state.path().join("certificate.pem").exists());

    let reply = lab.sealed("pump-17")?;
    let ca = FakeCa::start(move |request| match request {
        RequestBody::Enroll(_) => Some(ReplyBody::Sealed(reply.clone())),
        _ => Some(confirmed()),
    });
    assert_eq!(lab.provision(&ca, Some(Flow::Sealed))?.flow, Flow::Sealed);
    assert_eq!(lab.device()?.certificate()?.device_id.as_str(), "pump-17");
    Ok(())
}

#[test]
fn shared_key_publishes_with_a_token_and_without_a_certificate() -> Result<()> {
    let lab = Lab::new()?;
    lab.provision(&lab.key_server(&KEY)?, Some(Flow::SharedKey))?;
    let broker =
        FakeCa::operational(lab.ca.server(&[&TLS13, &TLS12], false)?, ConnectReturnCode::Success);
    let topic =
        lab.device()?.publish(&broker.url("mqtts").parse()?, "telemetry", b"21.5".to_vec())?;
    let heard = broker.heard();
    assert_eq!(heard.published, [(topic, b"21.5".to_vec())]);
    let [(client_id, Some((user_name, password)))] = &heard.logins[..] else {
        panic!("{:?}", heard.logins)
    };
    assert_eq!((client_id.as_str(), user_name.as_str()), ("pump-17/publish", "pump-17"));
    assert!(
        password.starts_with("SharedAccessSignature sr=default%2Fregistrations%2Fpump-17&sig="),
        "{password}"
    );
    Ok(())
}

#[test]
fn token_is_never_sent_without_tls() -> Result<()> {
    let lab = Lab::new()?;
    lab.provision(&lab.key_server(&KEY)?, Some(Flow::SharedKey))?;
    let broker = FakeCa::start(|_| None);
    let url = broker.url("mqtt").parse()?;
    let error = lab.device()?.publish(&url, "telemetry", b"21.5".to_vec()).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
    assert!(error.to_string().contains("mqtts://"), "{error}");
    assert!(broker.heard().logins.is_empty() && broker.heard().published.is_empty());
    Ok(())
}

#[test]
fn refused_login_says_what_to_do_and_is_not_repeated() -> Result<()> {
    let lab = Lab::new()?;
    lab.provision(&lab.key_server(&KEY)?, Some(Flow::SharedKey))?;
    for code in [ConnectReturnCode::NotAuthorized, ConnectReturnCode::BadUserNamePassword] {
        let broker = FakeCa::operational(lab.ca.server(&[&TLS13], false)?, code);
        let error = lab
            .device()?
            .publish(&broker.url("mqtts").parse()?, "telemetry", Vec::new())
            .unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(told(error.clone()).contains("assay-device provision --again"), "{error}");
        assert_eq!(broker.heard().logins.len(), 1);
    }
    Ok(())
}

fn activation(key: WrappedKey) -> Result<ActivationReply> {
    Ok(ActivationReply {
        credential_blob: key.credential_blob.try_into()?,
        encrypted_seed: key.encrypted_seed.try_into()?,
        duplicate: key.duplicate.try_into()?,
        symmetric_seed: key.symmetric_seed.try_into()?,
        key_public: key.public.try_into()?,
        device_id: "pump-17".parse()?,
        rotate_after: None,
    })
}

/// A device and what its CA needs to know of it.
struct Lab {
    swtpm: Swtpm,
    state: tempfile::TempDir,
    ca: tls::Ca,
    ik: PublicArea,
}

impl Lab {
    fn new() -> Result<Self> {
        let swtpm = a_tpm();
        let ik = open(&swtpm).create_identity_key(IkKind::P256, IK)?;
        Ok(Self { swtpm, state: tempfile::tempdir()?, ca: tls::Ca::new()?, ik })
    }

    fn device(&self) -> Result<Device> {
        tls::device(&self.swtpm, self.state.path(), &self.ca)
    }

    fn provision(&self, ca: &FakeCa, flow: Option<Flow>) -> Result<Provisioned, Error> {
        let device = self.device().unwrap();
        device.provision(&ProvisionRequest { flow, ..self.request(ca) }, &mut |_, _| ())
    }

    fn request(&self, ca: &FakeCa) -> ProvisionRequest {
        let broker = ca.url("mqtt").parse().unwrap();
        ProvisionRequest { broker, deadline: Duration::from_secs(60), ..provisioning::request() }
    }

    /// Whether the certificate in use is confirmed; `None` without one.
    fn is_confirmed(&self) -> Result<Option<bool>> {
        Ok(match Status::read(self.state.path())?.and_then(|status| status.credential) {
            Some(CredentialStatus::Certificate { is_confirmed, .. }) => Some(is_confirmed),
            _ => None,
        })
    }

    fn sealed(&self, device_id: &str) -> Result<SealedReply> {
        self.sealed_by(&self.ca, &self.ik, device_id)
    }

    fn sealed_by(&self, ca: &tls::Ca, ik: &PublicArea, device_id: &str) -> Result<SealedReply> {
        let ek = open(&self.swtpm).endorsement_key(EkKind::P256)?.unwrap();
        let (key, nonce, claim) = ([0x42; 32], [9; 12], vec![0xC1; 20]);
        let mut sealed = SealedCertificate {
            chain: vec![ca.certify(IkKind::P256, ik, device_id)?.try_into()?].try_into()?,
            ticket: TICKET.into(),
            receipt_sha256: sha256(&RECEIPT),
            renew_at: None,
            configuration: None,
        }
        .encode();
        let beside =
            Aad::from(SealedReply::associated_data(&claim, &ek.key.id().into(), &ik.key.id()));
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
        cipher
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), beside, &mut sealed)
            .unwrap();
        let (credential_blob, encrypted_seed) = credential(&ek, ik, &key);
        Ok(SealedReply {
            claim: claim.try_into()?,
            credential_blob: credential_blob.try_into()?,
            encrypted_seed: encrypted_seed.try_into()?,
            sealed: [&nonce[..], &sealed].concat().try_into()?,
        })
    }

    fn wrapped(&self, key: &[u8; 32]) -> Result<WrappedKey> {
        let mut tpm = open(&self.swtpm);
        let ek = tpm.endorsement_key(EkKind::P256)?.unwrap();
        Ok(wrap(key, &ek, &tpm.parent(ParentKind::P256)?.unwrap()))
    }

    fn activation(&self, key: &[u8; 32]) -> Result<ActivationReply> {
        activation(self.wrapped(key)?)
    }

    fn key_server(&self, key: &[u8; 32]) -> Result<FakeCa> {
        let reply = self.activation(key)?;
        Ok(FakeCa::start(move |request| {
            matches!(request, RequestBody::Register(_))
                .then(|| ReplyBody::Activation(reply.clone()))
        }))
    }
}

fn confirmed() -> ReplyBody {
    ReplyBody::Confirmed(ConfirmedReply { receipt: Receipt::from(RECEIPT) })
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
