//! The issuing CA is replaced: devices of the one before stay, and follow by renewal alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{AssayDir, Device, EkKind, json, run, tool, trusted_vendor};
use assay_wire::{Proof, ReplyBody, RequestBody};
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::external_brokers::mosquitto_as_deployed;
use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::reload::wait_for;
use crate::renewal::{adopt, certified, renewed};
use crate::tools_device::{ToolsDevice, named};

/// With this, the CA renews every certificate, as long as the new one ends a second later.
const ALWAYS_DUE: &str = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1";
const A_SECOND: Duration = Duration::from_millis(1100);

/// What openssl has to be told of an issuing CA.
pub(crate) const EXTENSIONS: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\n\
                          keyUsage=critical,keyCertSign,cRLSign\nextendedKeyUsage=clientAuth\n\
                          subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";

impl Lab {
    /// The issuing CAs, as `assay issuing list` tells of them.
    fn issuing(&self) -> Result<Vec<Value>> {
        issuing(&self.dir)
    }

    /// Makes the next issuing CA, which is used at once.
    fn rotate(&self) -> Result<()> {
        self.assay(&["issuing", "new", "--from", "now"])?;
        self.reload()
    }

    fn publishes(&self, device: &Device) -> Result<bool> {
        let mut publish = device.publish(&self.dir, &self.server, "telemetry", "21.5")?;
        Ok(publish.output()?.status.success())
    }

    /// What is retained on a topic.
    fn retained(&self, topic: &str) -> Result<Vec<u8>> {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let port = self.server.operational.rsplit(':').next().context("a port")?;
        let mut hears = tool("mosquitto_sub")?;
        hears.args(["-h", "127.0.0.1", "-p", port, "-V", "5", "-i", "operator@test", "-N"]);
        hears.args(["-C", "1", "-W", "10", "-t", topic, "--cafile", &file("root.pem")]);
        hears.args(["--cert", &file("operator.pem"), "--key", &file("operator.key")]);
        Ok(run(&mut hears)?.stdout)
    }
}

fn issuing(dir: &AssayDir) -> Result<Vec<Value>> {
    let listed = run(&mut dir.assay(&["issuing", "list", "--json"])?)?.stdout;
    let rows = serde_json::Deserializer::from_slice(&listed).into_iter();
    Ok(rows.collect::<Result<_, _>>()?)
}

fn states(dir: &AssayDir) -> Result<Vec<String>> {
    let rows = issuing(dir)?.into_iter();
    rows.map(|row| Ok(row["state"].as_str().context("a state")?.to_owned())).collect()
}

fn text<'a>(row: &'a Value, key: &str) -> Result<&'a str> {
    row[key].as_str().with_context(|| format!("{key} in {row}"))
}

/// The common name of the CA that issued a certificate.
fn issuer_of(device: &Device) -> Result<String> {
    let mut x509 = tool("openssl")?;
    x509.args(["x509", "-noout", "-issuer", "-in"]).arg(device.state().join("certificate.pem"));
    Ok(String::from_utf8(run(&mut x509)?.stdout)?)
}

/// An RFC 3339 time, this long from now.
fn in_seconds(seconds: i64) -> Result<String> {
    let time = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    Ok(time.replace_nanosecond(0)?.format(&Rfc3339)?)
}

#[test]
fn devices_of_the_issuing_ca_before_stay_and_follow_by_renewal_alone() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let [old, new] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    lab.provision(&old, &[])?;
    ensure!(issuer_of(&old)?.trim_end().ends_with("Issuing CA"), "{}", issuer_of(&old)?);
    lab.rotate()?;
    ensure!(states(&lab.dir)? == ["old", "in use"]);
    let rows = lab.issuing()?;
    ensure!(rows[0]["in_force"] == 1 && rows[1]["in_force"] == 0, "{rows:?}");
    ensure!(rows[0]["last_ends"].is_string() && rows[1]["last_ends"].is_null(), "{rows:?}");
    let refused = lab.dir.assay(&["issuing", "remove", "issuing"])?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("signed 1 certificates"), "{said}");
    let in_use = text(&rows[1], "files")?;
    let refused = lab.dir.assay(&["issuing", "remove", in_use])?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("is in use"), "{said}");

    ensure!(lab.publishes(&old)?, "it is as good as before");
    lab.provision(&new, &["--flow", "sealed"])?;
    lab.openssl_verifies(&new.state().join("certificate.pem"))?;
    let year = text(&rows[1], "from")?.split('-').next().context("a year")?.to_owned();
    ensure!(issuer_of(&new)?.contains(&format!("Issuing CA {year}-")), "{}", issuer_of(&new)?);
    ensure!(lab.publishes(&new)?);

    // What it has is sent again with its own chain, and renewed with the new one's.
    lab.provision(&old, &["--again"])?;
    lab.openssl_verifies(&old.state().join("certificate.pem"))?;
    ensure!(issuer_of(&old)? != issuer_of(&new)?);
    thread::sleep(A_SECOND);
    run(&mut old.renew(&lab.dir, &lab.server)?)?;
    lab.openssl_verifies(&old.state().join("certificate.pem"))?;
    ensure!(issuer_of(&old)? == issuer_of(&new)?, "{}", issuer_of(&old)?);
    ensure!(lab.publishes(&old)?);

    // Nobody needs the old one any more, except for its list.
    let rows = lab.issuing()?;
    ensure!(rows[0]["in_force"] == 0 && rows[1]["in_force"] == 2, "{rows:?}");
    ensure!(rows[0]["listed"] == 1 && rows[0]["last_ends"].is_string(), "{rows:?}");
    let refused = lab.dir.assay(&["issuing", "remove", "issuing"])?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("no list"), "{said}");
    lab.assay(&["issuing", "remove", "--force", text(&rows[0], "key_id")?])?;
    ensure!(!lab.dir.path().join("issuing.key").exists());
    lab.reload()?;
    ensure!(states(&lab.dir)? == ["in use"] && lab.publishes(&old)?);
    Ok(())
}

#[test]
fn the_next_issuing_ca_signs_from_its_date_on_without_a_signal() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let devices = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    let begun = Instant::now();
    lab.assay(&["issuing", "new", "--from", &in_seconds(15)?])?;
    lab.reload()?;
    ensure!(states(&lab.dir)? == ["in use", "next"]);
    let rows = lab.issuing()?;
    // It is published ahead, and has a list.
    let next = format!("{}.pem", text(&rows[1], "files")?);
    let files = ["root.pem", "issuing.pem", &next, "service.pem"];
    let files = files.map(|name| fs::read(lab.dir.path().join(name)));
    let expected = files.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    wait_for("the chain with the next one", || {
        lab.retained("ca/v1/default/chain").is_ok_and(|published| published == expected)
    })?;
    let list_of = |row: &Value| -> Result<Vec<u8>> {
        lab.retained(&format!("ca/v1/default/crl/{}", text(row, "key_id")?))
    };
    wait_for("a list of each", || {
        let lists = [lab.retained("ca/v1/default/crl"), list_of(&rows[0]), list_of(&rows[1])];
        matches!(lists, [Ok(in_use), Ok(first), Ok(next)] if in_use == first && next != first)
    })?;

    lab.provision(&devices[0], &[])?;
    ensure!(begun.elapsed() < Duration::from_secs(15), "the machine is too slow for this test");
    thread::sleep(Duration::from_secs(16).saturating_sub(begun.elapsed()));
    ensure!(states(&lab.dir)? == ["old", "in use"]);
    lab.provision(&devices[1], &[])?;
    ensure!(issuer_of(&devices[0])? != issuer_of(&devices[1])?);
    for device in &devices {
        lab.openssl_verifies(&device.state().join("certificate.pem"))?;
        ensure!(lab.publishes(device)?);
    }
    wait_for("the list of the one in use", || {
        let [in_use, second] = [lab.retained("ca/v1/default/crl"), list_of(&rows[1])];
        matches!((in_use, second), (Ok(in_use), Ok(second)) if in_use == second)
    })
}

#[test]
fn what_waits_since_before_the_switch_is_confirmed_and_adopted() -> Result<()> {
    let lab = Lab::with_settings(ALWAYS_DUE)?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let [sealed, renewing] =
        [ToolsDevice::new(&tpms[0], EkKind::P256)?, ToolsDevice::new(&tpms[1], EkKind::P256)?];
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let ReplyBody::Sealed(reply) = mqtt.ask(RequestBody::Enroll(sealed.evidence()?))? else {
        bail!("no sealed certificate")
    };
    let old = certified(&mut mqtt, &renewing)?;
    thread::sleep(A_SECOND);
    let new = renewed(&mut mqtt, &renewing, &old)?;
    lab.rotate()?;
    let rows = lab.issuing()?;
    ensure!(rows[0]["in_force"] == 1 && rows[0]["may_wait"] == 2, "{rows:?}");

    // It comes again, with the chain that it had.
    ensure!(renewed(&mut mqtt, &renewing, &old)? == new);
    let content = sealed.open(&reply)?;
    let proof = Proof { claim: reply.claim, ticket: content.ticket };
    let confirmed = mqtt.ask(RequestBody::Confirm(proof))?;
    ensure!(matches!(confirmed, ReplyBody::Confirmed(_)), "{confirmed:?}");
    ensure!(mqtt.ask(adopt(&renewing, &new)?)? == ReplyBody::Adopted);
    ensure!(lab.statuses(&named(&content.chain)?)? == ["active"]);
    ensure!(lab.statuses(&named(&new.chain)?)? == ["superseded", "active"]);
    let rows = lab.issuing()?;
    ensure!(rows[0]["in_force"] == 2 && rows[0]["may_wait"] == 0, "{rows:?}");
    Ok(())
}

#[test]
fn the_list_of_each_issuing_ca_names_its_devices_and_mosquitto_needs_all_lists() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 3)?;
    let devices = tpms.iter().map(Device::new).collect::<Result<Vec<_>>>()?;
    let [good, gone, new] = &devices[..] else { bail!("three devices") };
    lab.provision(good, &[])?;
    let revoked = lab.provision(gone, &[])?;
    lab.rotate()?;
    lab.provision(new, &[])?;
    let serial = text(&revoked, "serial")?.to_uppercase();
    let file = lab.dir.path().join("crl.pem");
    let write_lists =
        || lab.assay(&["crl", "--pem", "--out", file.to_str().context("a path")?]).map(drop);
    write_lists()?;
    ensure!(fs::read_to_string(&file)?.matches("BEGIN X509 CRL").count() == 3);
    let mut mosquitto = mosquitto_as_deployed(&lab.dir)?;
    let broker = format!("mqtts://127.0.0.1:{}", mosquitto.port(1));
    let is_let_in = |device: &Device| -> Result<bool> {
        let mut publish = device.publish_at(&broker, &lab.dir.root_pem(), "telemetry", "21.5")?;
        Ok(publish.output()?.status.success())
    };
    for device in &devices {
        ensure!(is_let_in(device)?);
    }
    lab.assay(&["enroll", "disable", text(&revoked, "device_id")?])?;
    write_lists()?;
    mosquitto.restart()?;
    ensure!(is_let_in(good)? && !is_let_in(gone)? && is_let_in(new)?);

    let rows = lab.issuing()?;
    let key_id = text(&rows[0], "key_id")?;
    let list = run(&mut lab.dir.assay(&["crl", "--issuer", key_id])?)?.stdout;
    let der = lab.dir.path().join("old.crl");
    fs::write(&der, &list)?;
    let mut crl = tool("openssl")?;
    crl.args(["crl", "-inform", "DER", "-text", "-noout", "-in"]).arg(&der);
    let shown = String::from_utf8(run(&mut crl)?.stdout)?;
    ensure!(shown.contains(&serial), "{shown}");
    let retained = || lab.retained(&format!("ca/v1/default/crl/{key_id}"));
    let serial = serial.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).context("hexadecimal")?;
        Ok(u8::from_str_radix(pair, 16)?)
    });
    let serial = serial.collect::<Result<Vec<_>>>()?;
    wait_for("the list of the old issuing CA with it", || {
        retained().is_ok_and(|list| list.windows(serial.len()).any(|part| part == serial))
    })?;
    let none = lab.dir.assay(&["crl", "--issuer", "00ff"])?.output()?;
    ensure!(!none.status.success() && none.stdout.is_empty());
    Ok(())
}

/// A root that is on another machine, and openssl there.
pub(crate) struct Elsewhere {
    pub(crate) place: TempDir,
}

impl Elsewhere {
    /// Takes the root's key away from the CA.
    pub(crate) fn take_root(dir: &AssayDir) -> Result<Self> {
        let place = tempfile::tempdir()?;
        for name in ["root.pem", "root.key"] {
            fs::copy(dir.path().join(name), place.path().join(name))?;
        }
        fs::remove_file(dir.path().join("root.key"))?;
        Ok(Self { place })
    }

    /// Certifies a request.
    pub(crate) fn certify(
        &self,
        request: &Path,
        extensions: &str,
        more: &[&str],
    ) -> Result<PathBuf> {
        let [config, out] = ["ext", "issuing.pem"].map(|name| self.place.path().join(name));
        fs::write(&config, extensions)?;
        let mut sign = tool("openssl")?;
        sign.args(["x509", "-req", "-days", "1000", "-in"]).arg(request);
        sign.arg("-CA").arg(self.place.path().join("root.pem"));
        sign.arg("-CAkey").arg(self.place.path().join("root.key"));
        sign.arg("-extfile").arg(&config).args(more).arg("-out").arg(&out);
        run(&mut sign)?;
        Ok(out)
    }
}

#[test]
fn a_root_on_another_machine_certifies_a_request() -> Result<()> {
    let lab = Lab::open()?;
    let elsewhere = Elsewhere::take_root(&lab.dir)?;
    let refused = lab.dir.assay(&["issuing", "new"])?.output()?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("assay issuing csr"), "{said}");

    let request = elsewhere.place.path().join("issuing.csr");
    lab.assay(&["issuing", "csr", "--out", request.to_str().context("a path")?])?;
    ensure!(states(&lab.dir)? == ["in use", "unfinished"]);
    let again = run(&mut lab.dir.assay(&["issuing", "csr"])?)?.stdout;
    ensure!(again == fs::read(&request)?, "it is the same request");
    lab.reload().context("a key that waits changes nothing")?;
    let certificate = elsewhere.certify(&request, EXTENSIONS, &[])?;
    let certificate = certificate.to_str().context("a path")?;
    lab.assay(&["issuing", "install", certificate, "--from", "now"])?;
    ensure!(states(&lab.dir)? == ["old", "in use"]);
    for left in ["issuing-next.key", "issuing-next.csr"] {
        ensure!(!lab.dir.path().join(left).exists(), "{left}");
    }
    lab.reload()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &[])?;
    lab.openssl_verifies(&device.state().join("certificate.pem"))?;
    ensure!(lab.publishes(&device)?);
    // Its list names the key as the certificate does, whoever chose the identifier.
    let file = lab.dir.path().join("crl.pem");
    lab.assay(&["crl", "--pem", "--out", file.to_str().context("a path")?])?;
    let mut verify = tool("openssl")?;
    verify.args(["verify", "-crl_check", "-CAfile"]).arg(lab.dir.root_pem()).arg("-CRLfile");
    let chain = device.state().join("certificate.pem");
    run(verify.arg(&file).arg("-untrusted").arg(&chain).arg(&chain))?;

    let again = run(&mut lab.dir.assay(&["issuing", "csr"])?)?.stdout;
    let other = run(&mut lab.dir.assay(&["issuing", "csr", "--again"])?)?.stdout;
    ensure!(again != other, "another key");
    Ok(())
}

#[test]
fn a_certificate_that_makes_no_good_issuing_ca_is_not_installed() -> Result<()> {
    let lab = Lab::open()?;
    let elsewhere = Elsewhere::take_root(&lab.dir)?;
    let request = elsewhere.place.path().join("issuing.csr");
    lab.assay(&["issuing", "csr", "--out", request.to_str().context("a path")?])?;
    let refused = |certificate: &Path, from: &str, reason: &str| -> Result<()> {
        let certificate = certificate.to_str().context("a path")?;
        let install = ["issuing", "install", certificate, "--from", from];
        let output = lab.dir.assay(&install)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(reason), "{reason}: {said}");
        ensure!(states(&lab.dir)? == ["in use", "unfinished"], "{reason}");
        Ok(())
    };
    let without = |line: &str| {
        EXTENSIONS.lines().filter(|it| !it.starts_with(line)).collect::<Vec<_>>().join("\n")
    };
    let with = |line: &str, other: &str| format!("{}\n{other}\n", without(line));
    let subject = |name: &'static str| ["-subj", name];
    for (extensions, more, reason) in [
        (without("basicConstraints"), &[][..], "is not a CA's"),
        (with("basicConstraints", "basicConstraints=critical,CA:TRUE"), &[], "pathlen:0"),
        (with("basicConstraints", "basicConstraints=critical,CA:TRUE,pathlen:1"), &[], "pathlen:0"),
        (without("keyUsage"), &[], "keyUsage=critical,keyCertSign,cRLSign"),
        (with("keyUsage", "keyUsage=critical,keyCertSign"), &[], "keyCertSign,cRLSign"),
        (without("extendedKeyUsage"), &[], "extendedKeyUsage=clientAuth"),
        (with("extendedKeyUsage", "extendedKeyUsage=clientAuth,serverAuth"), &[], "for clients"),
        (with("extendedKeyUsage", "extendedKeyUsage=clientAuth,anyExtendedKeyUsage"), &[], "alone"),
        (with("extendedKeyUsage", "extendedKeyUsage=serverAuth"), &[], "for clients alone"),
        (with("subjectKeyIdentifier", "subjectKeyIdentifier=none"), &[], "subjectKeyIdentifier"),
        (EXTENSIONS.to_owned() + "1.2.3.4=critical,ASN1:NULL\n", &[], "brokers would not accept"),
        (
            EXTENSIONS.to_owned() + "nameConstraints=critical,excluded;URI:urn\n",
            &[],
            "brokers would not accept",
        ),
        (EXTENSIONS.to_owned(), &["-days", "89"], "cut the first device certificates short"),
        (EXTENSIONS.to_owned(), &subject("/CN=Assay Issuing CA"), "have the same name"),
        (EXTENSIONS.to_owned(), &subject("/CN=Assay Service CA"), "the service CA has the name"),
    ] {
        refused(&elsewhere.certify(&request, &extensions, more)?, "now", reason)?;
    }
    let good = elsewhere.certify(&request, EXTENSIONS, &[])?;
    refused(&good, "2020-01-01", "is past")?;
    refused(&good, "2099-01-01", "is not valid at 2099-01-01T00:00:00Z: it is valid from")?;
    ensure!(
        !lab.dir.assay(&["issuing", "install", "x", "--from", "soon"])?.output()?.status.success()
    );
    // Of another root, which says that it is ours.
    let other = AssayDir::init()?;
    let stranger = Elsewhere::take_root(&other)?;
    refused(&stranger.certify(&request, EXTENSIONS, &[])?, "now", "the root did not sign")?;
    // For another key.
    let strange = stranger.place.path().join("strange.csr");
    run(&mut other.assay(&["issuing", "csr", "--out", strange.to_str().context("a path")?])?)?;
    let for_stranger = elsewhere.certify(&strange, EXTENSIONS, &[])?;
    refused(&for_stranger, "now", "for none of the keys that wait")?;
    refused(&lab.dir.path().join("assay.toml"), "now", "is not installed")?;

    // A taken date, and what is good after all.
    let good = elsewhere.certify(&request, EXTENSIONS, &[])?;
    let good = good.to_str().context("a path")?;
    let from = in_seconds(86_400)?;
    lab.assay(&["issuing", "install", good, "--from", &from])?;
    lab.assay(&["issuing", "csr", "--out", request.to_str().context("a path")?])?;
    let second = elsewhere.certify(&request, EXTENSIONS, &[])?;
    let second = second.to_str().context("a path")?;
    let taken = lab.dir.assay(&["issuing", "install", second, "--from", &from])?.output()?;
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    ensure!(!taken.status.success() && said.contains("choose another time"), "{said}");
    Ok(())
}

/// What a kill at each step of the installation leaves behind.
#[test]
fn a_ca_serves_whatever_an_installation_that_was_killed_left_and_it_can_be_finished() -> Result<()>
{
    let mut lab = Lab::open()?;
    let elsewhere = Elsewhere::take_root(&lab.dir)?;
    let request = elsewhere.place.path().join("issuing.csr");
    let path = lab.dir.path();
    let (pending, name) = (path.join("issuing-next.key"), "issuing-20310101T000000Z");
    for step in ["both keys", "the key in its place", "a half certificate"] {
        lab.assay(&["issuing", "csr", "--out", request.to_str().context("a path")?])?;
        let certificate = elsewhere.certify(&request, EXTENSIONS, &[])?;
        let certificate = certificate.to_str().context("a path")?;
        let key = path.join(format!("{name}.key"));
        fs::copy(&pending, &key)?;
        if step != "both keys" {
            fs::remove_file(&pending)?;
        }
        if step == "a half certificate" {
            fs::write(path.join(format!(".{name}.pem.new")), "-----BEGIN CERT")?;
        }
        lab.server.restart().with_context(|| step.to_owned())?;
        ensure!(states(&lab.dir)?.contains(&"unfinished".to_owned()), "{step}");
        lab.assay(&["issuing", "install", certificate, "--from", "now"])?;
        lab.reload()?;
        let left = states(&lab.dir)?;
        ensure!(left.iter().filter(|it| *it == "in use").count() == 1, "{step}: {left:?}");
        // The other copy of a key whose certificate is there by now.
        for row in lab.issuing()?.iter().filter(|row| row["state"] == "unfinished") {
            lab.assay(&["issuing", "remove", text(row, "files")?])?;
        }
        ensure!(!pending.exists() && !states(&lab.dir)?.contains(&"unfinished".to_owned()));
        thread::sleep(A_SECOND);
    }
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.provision(&Device::new(&tpm)?, &[])?;
    ensure!(states(&lab.dir)?.len() == 4);
    Ok(())
}

#[test]
fn a_next_issuing_ca_that_cannot_be_used_changes_nothing_and_the_log_says_why() -> Result<()> {
    let lab = Lab::open()?;
    let other = AssayDir::init()?;
    run(&mut other.assay(&["issuing", "new", "--from", "2030-01-01"])?)?;
    let next = "issuing-20300101T000000Z";
    for kind in ["pem", "key"] {
        let file = format!("{next}.{kind}");
        fs::copy(other.path().join(&file), lab.dir.path().join(&file))?;
    }
    let log = lab.reload_refused()?;
    ensure!(log.contains(next) && log.contains("the root did not sign"), "{log}");
    let listed = lab.dir.assay(&["issuing", "list"])?.output()?;
    ensure!(!listed.status.success(), "{listed:?}");
    fs::remove_file(lab.dir.path().join(format!("{next}.key")))?;
    let log = lab.reload_refused()?;
    ensure!(log.contains(&format!("{next}.key")), "{log}");
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.provision(&Device::new(&tpm)?, &[])?;
    lab.assay(&["issuing", "remove", next])?;
    lab.reload()
}

#[test]
fn a_backup_has_all_issuing_cas_and_a_restored_ca_takes_the_list_of_each() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 2)?;
    let [old, new] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    let of_old = lab.provision(&old, &[])?;
    lab.rotate()?;
    let of_new = lab.provision(&new, &[])?;
    lab.assay(&["issuing", "csr"])?;
    let place = tempfile::tempdir()?;
    let backup = place.path().join("ca.assay");
    let made: Value = json(lab.dir.assay(&["backup", "--json"])?.arg(&backup))?;
    let files: Vec<_> = made["files"].as_array().context("files")?.iter().collect();
    let names = lab.issuing()?;
    for row in &names {
        let key = format!("{}.key", text(row, "files")?);
        ensure!(files.iter().any(|file| **file == key), "{key}: {files:?}");
    }
    thread::sleep(A_SECOND);
    for device in [&of_old, &of_new] {
        lab.assay(&["enroll", "disable", text(device, "device_id")?])?;
    }
    // A list of each issuing CA, one file by one; each has what its issuer may have signed.
    let mut lists = Vec::new();
    for row in names.iter().filter(|row| row["state"] != "unfinished") {
        let file = place.path().join(format!("{}.crl", text(row, "files")?));
        let out = file.to_str().context("a path")?;
        lab.assay(&["crl", "--issuer", text(row, "key_id")?, "--out", out])?;
        lists.push(file);
    }
    ensure!(lists.len() == 2);
    let restored = AssayDir::restore(&backup, &[])?;
    ensure!(states(&restored)? == ["old", "in use", "unfinished"]);
    let mut resume = restored.assay(&["resume", "--json"])?;
    for list in &lists {
        resume.arg("--list").arg(list);
    }
    let resumed: Value = json(&mut resume)?;
    ensure!(resumed["serves"] == true, "{resumed}");
    let taken = resumed["lists"].as_array().context("lists")?;
    ensure!(taken.len() == 2 && taken.iter().all(|it| it["about"] == "devices"), "{resumed}");
    ensure!(restored.list("devices")?.iter().all(|row| row["disabled"] == true));
    Ok(())
}

#[test]
fn no_identity_takes_the_name_of_an_issuing_ca_in_the_cas_directory() -> Result<()> {
    let dir = AssayDir::init()?;
    for name in ["issuing-20300101T000000Z", "issuing-next"] {
        let mut add = dir.assay(&["identity", "add", name, "--role", "operator", "--out"])?;
        let refused: std::process::Output = Command::output(add.arg(dir.path()))?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains("choose another name"), "{said}");
        ensure!(!dir.path().join(format!("{name}.key")).exists());
    }
    Ok(())
}

#[test]
fn a_service_warns_of_an_issuing_ca_that_cuts_certificates_short() -> Result<()> {
    // The issuing CA lasts ten years, and certificates as long.
    let lab = Lab::with_settings("[certificates]\nlifetime_days = 3650")?;
    let is_warned = || lab.server.log().contains("the issuing CA ends soon");
    wait_for("a warning", is_warned)?;
    ensure!(!lab.server.log().contains("the root ends soon"));
    Ok(())
}
