//! The shared key flow with real TPMs: who gets in with which token, until when, and what an
//! operator can do about it.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{Device, EkKind, Swtpm, assay_bin, json, run, trusted_vendor};
use assay_wire::{ParentBundle, ProblemCode, ReplyBody, RequestBody};
use data_encoding::BASE64;
use time::OffsetDateTime;

use crate::lab::Lab;
use crate::raw_client::{OperationalClient, RawClient};
use crate::shared_key_tools::{
    IMPORT_OR_LOAD, IMPORT_PARENT_ATTRIBUTES, Parent, SRK_ATTRIBUTES, make_parent,
};
use crate::tools_device::{make_ek, tpmt_public};

/// A provisioned device, and what it logs in with.
struct Registered {
    tpm: Swtpm,
    device: Device,
    id: String,
}

impl Registered {
    fn new(lab: &Lab, number: usize) -> Result<Self> {
        Self::with(lab, trusted_vendor()?.device(EkKind::P256, number)?)
    }

    fn with(lab: &Lab, tpm: Swtpm) -> Result<Self> {
        let device = Device::new(&tpm)?;
        let provisioned = lab.provision(&device, &["--flow", "shared-key"])?;
        let id = provisioned["device_id"].as_str().context("an id")?.to_owned();
        Ok(Self { tpm, device, id })
    }

    /// A fresh token for the next `seconds`.
    fn token(&self, seconds: u32) -> Result<String> {
        let token =
            json(self.device.token()?.args(["--json", "--lifetime", &seconds.to_string()]))?;
        ensure!(token["client_id"] == self.id && token["user_name"] == self.id);
        Ok(token["password"].as_str().context("a password")?.to_owned())
    }

    /// A token that tpm2-tools make with the device's key, for any time.
    fn token_until(&self, expires_at: i64) -> Result<String> {
        let resource = format!("default%2Fregistrations%2F{}", self.id);
        fs::write(self.tpm.work_dir().join("message"), format!("{resource}\n{expires_at}"))?;
        self.tpm.tpm2(&["hmac", "-c", "0x81000100", "-o", "mac", "message"])?;
        let signature = BASE64.encode(&fs::read(self.tpm.work_dir().join("mac"))?);
        let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        Ok(format!(
            "SharedAccessSignature sr={resource}&sig={signature}&se={expires_at}&skn=registration"
        ))
    }

    fn login(&self, lab: &Lab, token: &str) -> Result<OperationalClient> {
        OperationalClient::login(lab, &self.id, &self.id, token)
    }

    /// Gets a key for an import parent. This must be another key than that of the plain SRK, to
    /// which the token `old` belongs.
    fn takes_an_import_parent(&self, lab: &Lab, arguments: &[&str], old: &str) -> Result<()> {
        let provisioned = lab.provision(&self.device, arguments)?;
        ensure!(provisioned["parent"] == "p-256", "{provisioned}");
        drop(self.login(lab, &self.token(3600)?)?);
        ensure!(self.login(lab, old).is_err(), "the key of the plain SRK is retired");
        let listed = String::from_utf8(lab.assay(&["enroll", "list"])?.stdout)?;
        ensure!(listed.contains("2 (used)"), "{listed}");
        Ok(())
    }
}

#[test]
fn only_a_good_token_for_the_same_device_lets_in() -> Result<()> {
    let lab = Lab::open()?;
    let (device, other) = (Registered::new(&lab, 0)?, Registered::new(&lab, 1)?);
    let token = device.token(3600)?;
    let _in = device.login(&lab, &token)?;

    let others = other.token(3600)?;
    let scope = token.replace("default", "other-scope");
    let later = token.replace("&se=", "&se=1");
    let mut signature = token.clone().into_bytes();
    let at = token.find("&sig=").context("a signature")? + 6;
    signature[at] = if signature[at] == b'A' { b'B' } else { b'A' };
    for (name, password) in [
        ("another device's token", others.as_str()),
        ("another scope", &scope),
        ("another expiry", &later),
        ("another signature", std::str::from_utf8(&signature)?),
        ("nothing", ""),
        ("a password", "hunter2"),
    ] {
        ensure!(device.login(&lab, password).is_err(), "{name} lets in");
    }
    ensure!(
        OperationalClient::login(&lab, &other.id, &device.id, &token).is_err(),
        "another client id"
    );
    ensure!(
        OperationalClient::login(&lab, &other.id, &other.id, &token).is_err(),
        "another user name"
    );
    ensure!(OperationalClient::login(&lab, &device.id, "", &token).is_err(), "no user name");
    Ok(())
}

/// Every user of a machine can read its command lines.
#[test]
fn the_example_in_help_publishes_with_a_token_that_is_on_no_command_line() -> Result<()> {
    let lab = Lab::open()?;
    let device = Registered::new(&lab, 0)?;
    let help = String::from_utf8(
        run(Command::new(assay_bin("assay-device")?).args(["token", "--help"]))?.stdout,
    )?;
    let example: Vec<_> =
        help.lines().map(str::trim_start).skip_while(|line| !line.starts_with("umask")).collect();
    let token = device.device.token()?;
    let words = std::iter::once(token.get_program())
        .chain(token.get_args())
        .map(|word| format!("'{}'", word.display()));
    let port = lab.server.operational.rsplit_once(':').context("the URL has a port")?.1;
    let script = example.join("\n").replace("mqtt.example.com", "127.0.0.1").replace("8884", port);
    let script = script
        .replace("root.pem", &lab.dir.root_pem().display().to_string())
        .replace("pump-17", &device.id);
    let script = script.replace(
        "assay-device token --state /var/lib/assay-device",
        &words.collect::<Vec<_>>().join(" "),
    );
    let shell = |script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-euc", script]).env("TMPDIR", device.tpm.work_dir());
        shell.envs(token.get_envs().filter_map(|(name, value)| Some((name, value?))));
        shell
    };
    ensure!(!script.contains("-P \"$("), "{script}");
    run(&mut shell(&script))?;
    ensure!(
        !shell(&script.replace("/^/-P /", "/^/-P x/")).output()?.status.success(),
        "the token is what lets in"
    );
    Ok(())
}

#[test]
fn a_token_is_good_for_a_day_at_most_and_for_the_skew_of_clocks_after_its_end() -> Result<()> {
    let lab = Lab::open()?;
    let device = Registered::new(&lab, 0)?;
    let refused = device.device.token()?.args(["--lifetime", "86401"]).output()?;
    ensure!(refused.status.code() == Some(2), "{refused:?}");
    let now = OffsetDateTime::now_utc().unix_timestamp();
    // The broker allows for clocks that differ by a minute. The other seconds are for this test.
    for (expires_in, is_good) in
        [(-120, false), (-62, false), (-40, true), (86_450, true), (86_520, false)]
    {
        let token = device.token_until(now + expires_in)?;
        ensure!(device.login(&lab, &token).is_ok() == is_good, "expires in {expires_in} s");
    }
    let mut connected = device
        .login(&lab, &device.token_until(OffsetDateTime::now_utc().unix_timestamp() - 56)?)?;
    ensure!(connected.ends_within(Duration::from_secs(20)), "the connection outlives its token");
    Ok(())
}

#[test]
fn a_disabled_device_is_cut_off_and_stays_out_until_it_is_enabled() -> Result<()> {
    let lab = Lab::open()?;
    let device = Registered::new(&lab, 0)?;
    let token = device.token(3600)?;
    let mut connected = device.login(&lab, &token)?;
    ensure!(!connected.ends_within(Duration::from_secs(2)));
    lab.assay(&["enroll", "disable", &device.id])?;
    ensure!(connected.ends_within(Duration::from_secs(5)), "still connected");
    ensure!(device.login(&lab, &token).is_err());
    lab.refused(&device.device, &["--again"], "device-disabled")?;
    let published = device.device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?.output()?;
    ensure!(published.status.code() == Some(3), "{published:?}");
    lab.assay(&["enroll", "enable", &device.id])?;
    device.login(&lab, &token).map(drop)
}

#[test]
fn a_rotated_key_is_retired_at_once() -> Result<()> {
    let lab = Lab::open()?;
    let device = Registered::new(&lab, 0)?;
    let token = device.token(3600)?;
    let mut connected = device.login(&lab, &token)?;
    lab.assay(&["enroll", "rotate", &device.id])?;
    ensure!(connected.ends_within(Duration::from_secs(5)), "still connected");
    ensure!(device.login(&lab, &token).is_err() && device.login(&lab, &device.token(60)?).is_err());

    ensure!(lab.provision(&device.device, &["--again"])?["device_id"] == device.id);
    ensure!(device.login(&lab, &token).is_err(), "a token of the old key");
    device.login(&lab, &device.token(60)?).map(drop)
}

#[test]
fn a_key_that_is_issued_anew_retires_the_old_one_when_it_is_first_used() -> Result<()> {
    let lab = Lab::open()?;
    let device = Registered::new(&lab, 0)?;
    let old = device.token(3600)?;
    drop(device.login(&lab, &old)?);
    lab.provision(&device.device, &["--again"])?;
    drop(device.login(&lab, &old)?);

    let new = device.token(3600)?;
    drop(device.login(&lab, &new)?);
    ensure!(device.login(&lab, &old).is_err(), "the old key is retired");
    device.login(&lab, &new).map(drop)
}

/// A stranger who knows the EK certificate of a healthy device, which is no secret.
#[test]
fn a_stranger_who_registers_for_another_changes_nothing() -> Result<()> {
    let lab = Lab::open()?;
    let device = Registered::new(&lab, 0)?;
    let token = device.token(3600)?;
    drop(device.login(&lab, &token)?);
    let strangers = trusted_vendor()?.device(EkKind::P256, 1)?;
    make_ek(&device.tpm, EkKind::P256)?;
    for _ in 0..3 {
        let mixed = ParentBundle {
            ek_public: tpmt_public(&device.tpm, "ek.pub")?,
            ek_certificates: vec![device.tpm.ek_certificate(EkKind::P256)?.try_into()?]
                .try_into()?,
            ..bundle(&strangers, Parent::Import)?
        };
        let reply = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?
            .ask(RequestBody::Register(mixed))?;
        ensure!(matches!(reply, ReplyBody::Activation(_)), "{reply:?}");
    }
    device.login(&lab, &token).map(drop)
}

#[test]
fn policies_of_re_provisioning_hold() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, policy) in ["reissue", "reuse", "never"].into_iter().enumerate() {
        let tpm = vendor.device(EkKind::P256, number)?;
        lab.enroll(&tpm, EkKind::P256, policy, &["--reprovision", policy])?;
        let mut device = Registered::with(&lab, tpm)?;
        let old = device.token(3600)?;
        drop(device.login(&lab, &old)?);
        device.tpm.clear()?;
        if policy == "never" {
            lab.refused(&device.device, &[], "reprovision-refused")?;
            drop(device.login(&lab, &old)?);
            lab.assay(&["enroll", "update", policy, "--reprovision", "reissue"])?;
        }
        lab.provision(&device.device, &[]).context(policy)?;
        drop(device.login(&lab, &device.token(3600)?)?);
        let old_is_good = device.login(&lab, &old).is_ok();
        ensure!(
            old_is_good == (policy == "reuse"),
            "{policy}: the old token is good: {old_is_good}"
        );
    }
    Ok(())
}

#[test]
fn a_certificate_is_issued_anew_unless_the_enrolment_forbids_it() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    for (number, policy, flow) in
        [(0, "reissue", "ticket"), (1, "never", "ticket"), (2, "never", "sealed")]
    {
        let mut tpm = vendor.device(EkKind::P256, number)?;
        let id = format!("{policy}-{flow}");
        lab.enroll(&tpm, EkKind::P256, &id, &["--reprovision", policy])?;
        let device = Device::new(&tpm)?;
        lab.provision(&device, &["--flow", flow])?;
        tpm.clear()?;
        if policy == "never" {
            lab.refused(&device, &[], "reprovision-refused")?;
            ensure!(lab.statuses(&id)? == ["active"]);
        } else {
            lab.provision(&device, &[])?;
            ensure!(lab.statuses(&id)? == ["superseded", "active"]);
        }
    }
    Ok(())
}

#[test]
fn a_parent_off_template_is_refused() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    make_ek(&tpm, EkKind::P256)?;
    // A TPM makes all of these parents: without noDA; without fixedTPM; usable by password as well;
    // without a policy.
    for (attributes, policy) in [
        ("fixedtpm|fixedparent|sensitivedataorigin|restricted|decrypt", Some(IMPORT_OR_LOAD)),
        ("sensitivedataorigin|noda|restricted|decrypt", Some(IMPORT_OR_LOAD)),
        (SRK_ATTRIBUTES, Some(IMPORT_OR_LOAD)),
        (IMPORT_PARENT_ATTRIBUTES, None),
        ("fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|decrypt", None),
    ] {
        make_parent(&tpm, "ecc256", attributes, policy)?;
        mqtt.refused(
            RequestBody::Register(shown(&tpm, EkKind::P256)?),
            ProblemCode::ParentOffTemplate,
        )?;
    }
    let reply = mqtt.ask(RequestBody::Register(bundle(&tpm, Parent::Import)?))?;
    ensure!(matches!(reply, ReplyBody::Activation(_)), "{reply:?}");
    Ok(())
}

#[test]
fn a_plain_srk_is_refused_until_its_enrolment_allows_it() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let plain = ["--flow", "shared-key", "--parent", "srk-p-256"];
    lab.refused(&device, &plain, "plain-srk")?;
    lab.enroll(&tpm, EkKind::P256, "pump-17", &[])?;
    lab.refused(&device, &plain, "assay enroll update")?;
    lab.assay(&["enroll", "update", "pump-17", "--plain-srk"])?;
    ensure!(lab.provision(&device, &plain)?["parent"] == "srk-p-256");
    let device = Registered { tpm, device, id: "pump-17".into() };
    let old = device.token(3600)?;
    drop(device.login(&lab, &old)?);
    ensure!(
        device.device.provision(&lab.dir, &lab.server)?.output()?.status.success(),
        "it has its key"
    );
    let listed = String::from_utf8(lab.assay(&["enroll", "list"])?.stdout)?;
    ensure!(listed.contains("1 (used, plain SRK)"), "{listed}");

    // The permission ends. The key that was granted by it stays until the operator retires it.
    let said = lab.assay(&["enroll", "update", "pump-17", "--plain-srk=false"])?;
    ensure!(String::from_utf8(said.stderr)?.contains("assay enroll rotate"));
    lab.refused(&device.device, &[&plain[..], &["--again"]].concat(), "plain-srk")?;
    drop(device.login(&lab, &old)?);

    // A device that is not told otherwise asks for a key for an import parent. It gets another key
    // than the plain SRK had.
    device.takes_an_import_parent(&lab, &["--again"], &old)
}

/// The policy is to give the same key again. But a plain SRK's key may be known outside of the TPM.
#[test]
fn a_key_of_a_plain_srk_is_not_reused_for_an_import_parent() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.enroll(&tpm, EkKind::P256, "pump-17", &["--plain-srk", "--reprovision", "reuse"])?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &["--flow", "shared-key", "--parent", "srk-p-256"])?;
    let device = Registered { tpm, device, id: "pump-17".into() };
    let old = device.token(3600)?;
    drop(device.login(&lab, &old)?);
    // The first time, the device asks the CA because the parent is another than before.
    for again in [None, Some("--again")] {
        let arguments: Vec<_> = ["--parent", "p-256"].into_iter().chain(again).collect();
        device.takes_an_import_parent(&lab, &arguments, &old)?;
    }
    Ok(())
}

/// Azure's C SDK leaves `unique` empty. So the TPM derives another EK than the one that its vendor
/// certified.
#[test]
fn an_ek_of_azures_sdk_is_explained_and_let_in_if_its_enrolment_says_so() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::Rsa2048, 0)?;
    let policy = "policy.digest";
    fs::write(tpm.work_dir().join(policy), hex::decode(POLICY_A)?)?;
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|adminwithpolicy|restricted|decrypt";
    let create =
        ["createprimary", "-C", "e", "-g", "sha256", "-G", "rsa2048:aes128cfb", "-a", attributes];
    tpm.tpm2(&[&create[..], &["-L", policy, "-c", "legacy.ctx"]].concat())?;
    tpm.tpm2(&["readpublic", "-c", "legacy.ctx", "-o", "legacy.pub"])?;
    tpm.tpm2(&["flushcontext", "-t"])?;

    let bundle = ParentBundle {
        ek_public: tpmt_public(&tpm, "legacy.pub")?,
        ek_certificates: vec![tpm.ek_certificate(EkKind::Rsa2048)?.try_into()?].try_into()?,
        ..bundle_of(&tpm, EkKind::Rsa2048, Parent::Import)?
    };
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    match mqtt.ask(RequestBody::Register(bundle.clone()))? {
        ReplyBody::Problem(problem) => {
            ensure!(problem.code == ProblemCode::EkCertificateMismatch, "{problem}");
            ensure!(
                problem.detail.contains("Azure") && problem.detail.contains("--legacy-dps-ek"),
                "{problem}"
            );
        }
        other => bail!("{other:?}"),
    }
    let file = tpm.work_dir().join("legacy.pub");
    let add = [
        "enroll",
        "add",
        file.to_str().context("a path")?,
        "--device-id",
        "pump-17",
        "--legacy-dps-ek",
    ];
    lab.assay(&add)?;
    let reply = mqtt.ask(RequestBody::Register(bundle))?;
    ensure!(
        matches!(&reply, ReplyBody::Activation(activation) if activation.device_id.as_str() == "pump-17")
    );

    // Our device makes the same EK, and gets in with it.
    let device = Device::new(&tpm)?;
    let arguments = ["--flow", "shared-key", "--ek", "legacy-dps", "--parent", "rsa-2048"];
    ensure!(lab.provision(&device, &arguments)?["device_id"] == "pump-17");
    ensure!(
        lab.provision(&device, &["--again"])?["ek"] == "legacy-dps",
        "the kind of EK is remembered"
    );
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?).map(drop)
}

#[test]
fn without_the_flow_nobody_connects_without_a_certificate() -> Result<()> {
    let lab = Lab::open()?;
    let device = Registered::new(&lab, 0)?;
    let token = device.token(3600)?;
    drop(device.login(&lab, &token)?);
    fs::write(lab.dir.path().join("assay.toml"), "flows = [\"ticket\"]")?;
    let mut lab = lab;
    lab.server.restart()?;
    ensure!(device.login(&lab, &token).is_err());
    Ok(())
}

fn bundle(tpm: &Swtpm, parent: Parent) -> Result<ParentBundle> {
    bundle_of(tpm, EkKind::P256, parent)
}

/// What a TPM shows in the shared key flow, with a parent of tpm2-tools.
fn bundle_of(tpm: &Swtpm, kind: EkKind, parent: Parent) -> Result<ParentBundle> {
    make_ek(tpm, kind)?;
    parent.make(tpm, "ecc256")?;
    shown(tpm, kind)
}

/// The same, with the EK and the parent that exist already.
fn shown(tpm: &Swtpm, kind: EkKind) -> Result<ParentBundle> {
    Ok(ParentBundle {
        device_id: None,
        ek_public: tpmt_public(tpm, "ek.pub")?,
        ek_certificates: vec![tpm.ek_certificate(kind)?.try_into()?].try_into()?,
        parent_public: tpmt_public(tpm, "parent.pub")?,
        other_eks: None,
    })
}

/// TPM2_PolicySecret(TPM_RH_ENDORSEMENT), SHA-256 (TCG EK Credential Profile 2.5, B.6.2).
const POLICY_A: &str = "837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa";
