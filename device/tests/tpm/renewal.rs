//! Renewals by a real TPM, answered by a CA that does as a test says.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use assay_device::tpm::{EkKind, IkKind, PublicArea, Tpm};
use assay_device::{
    Credential, CredentialStatus, Device, ProvisionRequest, Provisioned, RenewalOutcome, Status,
};
use assay_tests::Swtpm;
use assay_wire::{
    Adoption, CertificateReply, EkPublic, Problem, ProblemCode, Renewal, ReplyBody, RequestBody,
};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::fake_ca::FakeCa;
use crate::{IK, a_tpm, assert_nothing_loaded, open, provisioning, tls, told};

#[test]
fn certificate_is_renewed_with_every_kind_of_identity_key_and_its_statements_verify() -> Result<()>
{
    for (kind, algorithm) in ALGORITHMS {
        let lab = Lab::new(kind)?;
        let renewed = lab.renewed()?;
        let ca = FakeCa::start({
            let renewed = renewed.clone();
            move |request| match request {
                RequestBody::Renew(_) => Some(certificate(&renewed)),
                RequestBody::Adopt(_) => Some(ReplyBody::Adopted),
                _ => None,
            }
        });
        let provisioned = lab.provision(&ca)?;
        assert_eq!(provisioned.renewal, Some(RenewalOutcome::Renewed), "{kind}");
        assert_eq!((provisioned.cost.requests, ca.heard().logins.len()), (2, 1), "{kind}");

        let heard = ca.heard().requests;
        let [RequestBody::Renew(renewal), RequestBody::Adopt(adoption)] = &heard[..] else {
            panic!("{heard:?}")
        };
        let Renewal { ek_public, ek_certificates, certificate, time, signature } = renewal;
        assert_eq!(*ek_public, EkPublic::OfCertificate(0x01C0_000A));
        assert_eq!(ek_certificates.len(), 1);
        assert_eq!(*certificate, sha256(&lab.old));
        let now = OffsetDateTime::now_utc().unix_timestamp() as u64;
        assert!((now - 60..=now).contains(time), "{time} at {now}");
        lab.verify(algorithm, &statement(b"\x6eassay renew v1", certificate, *time), signature);
        let Adoption { certificate, time, signature, ek_id } = adoption;
        assert_eq!((*certificate, ek_id.as_bytes()), (sha256(&renewed), &lab.ek_id));
        lab.verify(algorithm, &statement(b"\x6eassay adopt v1", certificate, *time), signature);

        assert_eq!(lab.device()?.certificate()?.chain[0][..], renewed);
        assert_nothing_loaded(&lab.swtpm)?;
    }
    Ok(())
}

#[test]
fn renewed_certificate_is_in_use_and_in_its_file_before_the_ca_hears_that_it_is_stored()
-> Result<()> {
    let lab = Lab::new(IkKind::P256)?;
    let renewed = lab.renewed()?;
    let answers = Arc::new(Mutex::new(false));
    let ca = FakeCa::start({
        let (renewed, answers) = (renewed.clone(), Arc::clone(&answers));
        move |request| match request {
            RequestBody::Renew(_) => Some(certificate(&renewed)),
            RequestBody::Adopt(_) => answers.lock().unwrap().then_some(ReplyBody::Adopted),
            _ => None,
        }
    });
    let provisioned = lab.provision(&ca)?;
    assert_eq!(provisioned.renewal, Some(RenewalOutcome::Postponed));
    let Credential::Certificate { certificate, path, .. } = provisioned.credential else {
        panic!()
    };
    assert_eq!(certificate.chain[0][..], renewed);
    assert_eq!(of_pem(&fs::read_to_string(&path)?), renewed);
    assert_eq!(lab.device()?.certificate()?.chain[0][..], renewed);
    lab.device()?.mqtt_tls_config()?;
    assert_eq!(lab.is_confirmed()?, Some(false));
    let status = Status::read(lab.state.path())?.unwrap();
    let Some(CredentialStatus::Certificate { summary, .. }) = &status.credential else { panic!() };
    assert_eq!((&summary.not_after, status.attempt), (&certificate.not_after, None));
    let requests = ca.take_requests();
    assert_eq!(requests[..2], ["renew", "adopt"]);
    assert!(requests[2..].iter().all(|request| *request == "adopt"), "{requests:?}");

    *answers.lock().unwrap() = true;
    assert_eq!(lab.provision(&ca)?.renewal, Some(RenewalOutcome::Renewed));
    assert_eq!(ca.take_requests(), ["adopt"]);
    assert_eq!(lab.is_confirmed()?, Some(true));
    assert_eq!(lab.provision(&ca)?.renewal, None);
    assert_eq!(ca.take_requests(), [""; 0]);
    Ok(())
}

/// The state may be damaged, or the clock set back.
#[test]
fn certificate_before_the_renewal_is_used_if_the_renewed_one_cannot_be() -> Result<()> {
    let lab = Lab::new(IkKind::P256)?;
    let renewed = lab.renewed()?;
    let ca = FakeCa::start(move |request| match request {
        RequestBody::Renew(_) => Some(certificate(&renewed)),
        _ => None,
    });
    lab.provision(&ca)?;
    let file = lab.state.path().join("device.json");
    let mut memory: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    let grant = memory["in_use"]["certificate"].clone();
    let other = tls::Ca::new()?.certify(IkKind::P256, &lab.ik, "pump-17")?;
    memory["attempt"]["renewed"]["certificate"] = pem(&other).into();
    assert_ne!(memory["attempt"]["renewed"], grant);
    fs::write(&file, memory.to_string())?;
    assert_eq!(lab.device()?.certificate()?.chain[0][..], lab.old);
    Ok(())
}

#[test]
fn renewal_that_is_refused_is_told_and_the_flow_begins_at_once() -> Result<()> {
    let lab = Lab::new(IkKind::P256)?;
    let refusal = Problem::new(ProblemCode::CertificateNotInForce, "superseded".into());
    let ca = FakeCa::start(move |request| match request {
        RequestBody::Renew(_) => Some(ReplyBody::Problem(refusal.clone())),
        RequestBody::Challenge(_) => {
            Some(ReplyBody::Problem(Problem::new(ProblemCode::DeviceDisabled, "test".into())))
        }
        _ => None,
    });
    let mut steps = Vec::new();
    let request = lab.request(&ca);
    let kept = lab.device()?.provision(&request, &mut |step, _| steps.push(step.to_owned()))?;
    assert_eq!((kept.was_provisioned, kept.renewal), (true, Some(RenewalOutcome::Postponed)));
    assert_eq!(ca.take_requests(), ["renew", "challenge"]);
    for refusal in ["certificate-not-in-force (43): superseded", "device-disabled (30): test"] {
        assert!(steps.iter().any(|step| step.contains(refusal)), "{refusal}: {steps:?}");
    }
    let error = lab.device()?.renew(&request, &mut |_, _| ()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert_eq!(lab.device()?.certificate()?.chain[0][..], lab.old);
    Ok(())
}

#[test]
fn wrong_setting_that_keeps_a_certificate_from_being_renewed_is_told() -> Result<()> {
    let lab = Lab::new(IkKind::P256)?;
    let ca = FakeCa::start(|_| None);
    let broker = ca.url("mqtts").parse()?;
    let request = ProvisionRequest { broker, ..lab.request(&ca) };
    let mut steps = Vec::new();
    let kept = lab.device()?.provision(&request, &mut |step, _| steps.push(step.to_owned()))?;
    assert_eq!((kept.was_provisioned, kept.renewal), (true, Some(RenewalOutcome::Postponed)));
    let error = lab.device()?.renew(&request, &mut |_, _| ()).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    assert!(steps.last().unwrap().ends_with(&error.to_string()), "{steps:?}, {error}");
    Ok(())
}

#[test]
fn device_that_is_told_to_renew_without_a_certificate_says_what_is_missing() -> Result<()> {
    let lab = Lab::new(IkKind::P256)?;
    fs::remove_file(lab.state.path().join("device.json"))?;
    let ca = FakeCa::start(|_| None);
    let error = lab.device()?.renew(&lab.request(&ca), &mut |_, _| ()).unwrap_err();
    assert_eq!(error.exit_code(), 8, "{error}");
    assert!(told(error.clone()).contains("assay-device provision"), "{error}");
    assert!(ca.heard().logins.is_empty());
    Ok(())
}

#[test]
fn certificate_that_is_not_due_is_renewed_only_if_the_ca_agrees() -> Result<()> {
    let lab = Lab::new(IkKind::P256)?;
    let old = lab.old.clone();
    let later = OffsetDateTime::now_utc().unix_timestamp() as u64 + 86_400;
    let ca = FakeCa::start(move |request| match request {
        RequestBody::Renew(_) => Some(certificate_with(&old, Some(later))),
        _ => None,
    });
    let kept = lab.device()?.renew(&lab.request(&ca), &mut |_, _| ())?;
    assert_eq!((kept.was_provisioned, kept.renewal), (true, Some(RenewalOutcome::NotDue)));
    assert_eq!(ca.take_requests(), ["renew"]);
    assert_eq!(lab.provision(&ca)?.renewal, None);
    assert_eq!(ca.take_requests(), [""; 0], "the CA said when");
    let status = Status::read(lab.state.path())?.unwrap();
    let Some(CredentialStatus::Certificate { summary, .. }) = &status.credential else { panic!() };
    assert_eq!((&summary.renew_at, summary.is_due), (&assay_device::rfc3339(later), false));
    Ok(())
}

#[test]
fn a_configuration_that_is_not_taken_costs_no_certificate() -> Result<()> {
    let lab = Lab::new(IkKind::P256)?;
    let renewed = lab.renewed()?;
    let ca = FakeCa::start({
        let renewed = renewed.clone();
        move |request| match request {
            RequestBody::Renew(_) => {
                let ReplyBody::Certificate(reply) = certificate(&renewed) else { panic!() };
                let configuration = Some(b"no COSE".to_vec().try_into().unwrap());
                Some(ReplyBody::Certificate(CertificateReply { configuration, ..reply }))
            }
            RequestBody::Adopt(_) => Some(ReplyBody::Adopted),
            _ => None,
        }
    });
    let mut steps = Vec::new();
    let provisioned =
        lab.device()?.provision(&lab.request(&ca), &mut |step, _| steps.push(step.to_owned()))?;
    assert_eq!(provisioned.renewal, Some(RenewalOutcome::Renewed));
    let told = |step: &String| step.starts_with("the configuration is not taken: unreadable");
    assert_eq!(steps.iter().filter(|step| told(step)).count(), 1, "{steps:?}");
    assert_eq!(assay_device::configuration(lab.state.path())?, None);
    Ok(())
}

const ALGORITHMS: [(IkKind, &dyn VerificationAlgorithm); 3] = [
    (IkKind::P256, &ECDSA_P256_SHA256_ASN1),
    (IkKind::P384, &ECDSA_P384_SHA384_ASN1),
    (IkKind::Rsa2048, &RSA_PKCS1_2048_8192_SHA256),
];

/// A device whose certificate is due for renewal.
struct Lab {
    swtpm: Swtpm,
    state: tempfile::TempDir,
    ca: tls::Ca,
    kind: IkKind,
    ik: PublicArea,
    ek_id: [u8; 32],
    old: Vec<u8>,
}

impl Lab {
    fn new(kind: IkKind) -> Result<Self> {
        let swtpm = a_tpm();
        let mut tpm = open(&swtpm);
        let ik = tpm.create_identity_key(kind, IK)?;
        let ek_id = tpm.endorsement_key(EkKind::P256)?.unwrap().key.id();
        let (state, ca) = (tempfile::tempdir()?, tls::Ca::new()?);
        ca.provision_beside(state.path(), ek_id, kind, &ik, days(-61, 29))?;
        let mut lab = Self { swtpm, state, ca, kind, ik, ek_id, old: Vec::new() };
        lab.old = lab.device()?.certificate()?.chain[0].to_vec();
        Ok(lab)
    }

    fn device(&self) -> Result<Device> {
        tls::device(&self.swtpm, self.state.path(), &self.ca)
    }

    fn provision(&self, ca: &FakeCa) -> Result<Provisioned> {
        Ok(self.device()?.provision(&self.request(ca), &mut |_, _| ())?)
    }

    fn request(&self, ca: &FakeCa) -> ProvisionRequest {
        let broker = ca.url("mqtt").parse().unwrap();
        ProvisionRequest { broker, deadline: Duration::from_secs(5), ..provisioning::request() }
    }

    fn renewed(&self) -> Result<Vec<u8>> {
        self.ca.certify_for(self.kind, &self.ik, "pump-17", days(0, 90))
    }

    fn is_confirmed(&self) -> Result<Option<bool>> {
        Ok(match Status::read(self.state.path())?.and_then(|status| status.credential) {
            Some(CredentialStatus::Certificate { is_confirmed, .. }) => Some(is_confirmed),
            _ => None,
        })
    }

    fn verify(&self, algorithm: &'static dyn VerificationAlgorithm, message: &[u8], by: &[u8]) {
        let key = UnparsedPublicKey::new(algorithm, self.ik.key.subject_public_key());
        key.verify(message, by).unwrap();
    }
}

fn days(from: i64, to: i64) -> tls::Validity {
    let in_days = |days| OffsetDateTime::now_utc() + time::Duration::days(days);
    tls::Validity { not_before: in_days(from), not_after: in_days(to) }
}

/// The statement as docs/protocol.md has it (RFC 8949): an array of four, a text with its head, the
/// scope, 32 bytes, and a number of 32 bits.
fn statement(text: &[u8], certificate: &[u8; 32], time: u64) -> Vec<u8> {
    let time = u32::try_from(time).unwrap().to_be_bytes();
    [b"\x84", text, b"\x67default", b"\x58\x20", certificate, b"\x1a", &time].concat()
}

fn certificate(der: &[u8]) -> ReplyBody {
    certificate_with(der, None)
}

fn certificate_with(der: &[u8], renew_at: Option<u64>) -> ReplyBody {
    let chain = vec![der.to_vec().try_into().unwrap()].try_into().unwrap();
    let reply = CertificateReply { chain, renew_at, configuration: None, new_root: None };
    ReplyBody::Certificate(reply)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn pem(der: &[u8]) -> String {
    let base64 = data_encoding::BASE64.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
}

fn of_pem(pem: &str) -> Vec<u8> {
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    data_encoding::BASE64.decode(base64.as_bytes()).unwrap()
}
