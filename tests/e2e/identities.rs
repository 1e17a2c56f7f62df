//! Identities: their certificates are made, renewed and revoked, and nobody is let in without one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{
    AssayDir, AssayServer, Device, EkKind, Mosquitto, Worker, run, tool, trusted_vendor,
};
use assay_wire::{ReplyBody, RequestBody};
use serde_json::Value;

use crate::lab::Lab;
use crate::raw_client::RawClient;
use crate::reload::{replace_server_certificate, serial, shown_certificate, wait_for};

#[test]
fn operator_is_let_in_until_its_certificate_is_revoked() -> Result<()> {
    let lab = Lab::open()?;
    let out = tempfile::tempdir()?;
    let place = out.path().to_str().context("a path")?;
    let add = ["identity", "add", "alice", "--role", "operator", "--out", place];
    lab.assay(&add)?;
    let alice = Holder::of(&lab, "operator@alice", out.path().join("alice"));
    let mut hears = alice.hears(&["device/v1/default/pump/#"], 1000)?.spawn()?;
    alice.is_subscribed()?;

    let revoked_at = Instant::now();
    lab.assay(&["identity", "revoke", "alice"])?;
    ends_by(&mut hears, revoked_at + Duration::from_secs(10))?;
    ensure!(alice.is_refused()?);
    let rows = listed(&lab)?;
    let names: Vec<_> = rows
        .iter()
        .map(|row| (row["name"].as_str().unwrap_or_default(), row["revoked_at"].is_null()))
        .collect();
    ensure!(
        names == [("server", true), ("worker", true), ("operator", true), ("alice", false)],
        "{names:?}"
    );
    let list = out.path().join("list.pem");
    lab.assay(&["crl", "--pem", "--out", list.to_str().context("a path")?])?;
    // The second of the two lists is by the service CA, which issued this certificate.
    let lists = fs::read_to_string(&list)?;
    let of_service = lists.rfind("-----BEGIN").context("a list")?;
    fs::write(&list, &lists[of_service..])?;
    let service = lab.dir.path().join("service.pem");
    let mut show = tool("openssl")?;
    show.args(["crl", "-noout", "-text", "-verify", "-CAfile"]).arg(service).arg("-in").arg(&list);
    let printed = run(&mut show)?;
    ensure!(
        String::from_utf8(printed.stderr)?.contains("verify OK"),
        "the issuer of a certificate says that it is revoked"
    );
    ensure!(
        String::from_utf8(printed.stdout)?.matches("Serial Number").count() == 1,
        "other brokers have only the list"
    );

    for (arguments, reason) in [
        (&add[..], "on record already"),
        (&["identity", "add", "bob", "--role", "worker", "--out", "/proc/nowhere"], "cannot write"),
        (&["identity", "revoke", "worker"], "worker.pem"),
        (&["identity", "revoke", "server"], "server.pem"),
        (&["identity", "revoke", "nobody"], "no identity"),
        (&["identity", "renew", "nobody"], "no identity"),
        (&["identity", "renew", "alice", "--out", place], "is revoked"),
        (&["identity", "add", "bob", "--role", "broker", "--out", place], "--server-name"),
        (&["identity", "add", "bob", "--out", place], "--role operator"),
        (&["identity", "add", "../bob", "--role", "operator"], "name of an identity"),
    ] {
        let output = lab.dir.assay(arguments)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(reason), "{arguments:?}: {said}");
    }
    let rows = lab.assay(&["identity", "list"])?.stdout;
    ensure!(!String::from_utf8(rows)?.contains("bob"), "nothing is on record that was not made");
    Ok(())
}

/// Somebody who has stolen the issuing key can make such certificates.
#[test]
fn certificate_that_is_on_no_record_lets_nobody_in() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let provisioned = lab.provision(&device, &[])?;
    let [id, serial] =
        ["device_id", "serial"].map(|name| provisioned[name].as_str().unwrap_or_default());
    let operator = run(tool("openssl")?
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(lab.dir.path().join("operator.pem")))?;
    let operators = String::from_utf8(operator.stdout)?.trim().replace("serial=", "");
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    for (client, uri, serial) in [
        (id.to_owned(), format!("urn:assay:device:default:{id}"), serial),
        (
            id.to_owned(),
            format!("urn:assay:device:default:{id}"),
            "7f00000000000000000000000000000a",
        ),
        ("operator@forged".to_owned(), "urn:assay:operator".to_owned(), &operators),
        ("worker@forged".to_owned(), "urn:assay:worker".to_owned(), &operators),
        ("backend@forged".to_owned(), "urn:assay:backend:forged".to_owned(), &operators),
    ] {
        let forged = Holder::of(&lab, &client, forge(&lab, &uri, serial)?);
        ensure!(forged.is_refused()?, "{uri} {serial}");
    }
    // The directory's own files let an operator in.
    let operator = Holder::of(&lab, "operator@desk", lab.dir.path().join("operator"));
    ensure!(!operator.is_refused()?);
    run(&mut device.publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    Ok(())
}

#[test]
fn identity_is_renewed_with_overlap_and_the_old_certificate_is_revoked_apart() -> Result<()> {
    let lab = Lab::open()?;
    let [old, new] = [tempfile::tempdir()?, tempfile::tempdir()?];
    let [of_old, of_new] = [&old, &new].map(|place| place.path().display().to_string());
    lab.assay(&["identity", "add", "alice", "--role", "operator", "--out", &of_old])?;
    lab.assay(&["identity", "renew", "alice", "--out", &of_new])?;
    let holder = |place: &Path| Holder::of(&lab, "operator@alice", place.join("alice"));
    ensure!(!holder(old.path()).is_refused()? && !holder(new.path()).is_refused()?);
    lab.assay(&["identity", "revoke", "alice", "--old"])?;
    ensure!(holder(old.path()).is_refused()? && !holder(new.path()).is_refused()?);
    // In place, and at once.
    fs::copy(new.path().join("alice.pem"), old.path().join("alice.pem"))?;
    fs::copy(new.path().join("alice.key"), old.path().join("alice.key"))?;
    lab.assay(&["identity", "renew", "alice", "--revoke-old", "--out", &of_new])?;
    ensure!(holder(old.path()).is_refused()? && !holder(new.path()).is_refused()?);
    let rows = listed(&lab)?;
    let of_alice: Vec<_> = rows.iter().filter(|row| row["name"] == "alice").collect();
    let revoked: Vec<_> = of_alice.iter().map(|row| !row["revoked_at"].is_null()).collect();
    ensure!(revoked == [true, true, false], "{rows:?}");
    Ok(())
}

#[test]
fn workers_certificate_is_renewed_and_the_old_one_revoked_while_devices_are_served() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let early = lab.dir.assay(&["identity", "renew", "worker", "--revoke-old"])?.output()?;
    let said = String::from_utf8_lossy(&early.stderr).into_owned();
    ensure!(!early.status.success() && said.contains("send SIGHUP first"), "{said}");
    lab.reload()?;
    lab.assay(&["identity", "revoke", "worker", "--old"])?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    lab.provision(&Device::new(&tpm)?, &[])?;
    Ok(())
}

#[test]
fn brokers_certificate_is_renewed_with_its_names_while_connections_stay() -> Result<()> {
    let lab = Lab::open()?;
    let mut old = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let before = shown_certificate(&lab)?;
    lab.assay(&["identity", "renew", "server", "--server-name", "broker.example"])?;
    ensure!(shown_certificate(&lab)? == before, "nothing changes before it is reread");
    lab.reload()?;
    let after = shown_certificate(&lab)?;
    ensure!(after != before && after == serial(&lab.dir.path().join("server.pem"))?);
    ensure!(matches!(old.ask(RequestBody::Ping)?, ReplyBody::Pong), "it is connected all the time");
    let mut new = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    ensure!(matches!(new.ask(RequestBody::Ping)?, ReplyBody::Pong));
    let mut show = tool("openssl")?;
    show.args(["x509", "-noout", "-ext", "subjectAltName", "-in"]);
    let names = run(show.arg(lab.dir.path().join("server.pem")))?.stdout;
    let names = String::from_utf8(names)?;
    for name in ["DNS:localhost", "DNS:broker.example", "IP Address:127.0.0.1"] {
        ensure!(names.contains(name), "{name}: {names}");
    }
    Ok(())
}

#[test]
fn certificate_of_a_broker_of_ones_own_is_made_for_its_names() -> Result<()> {
    let lab = Lab::open()?;
    let out = tempfile::tempdir()?;
    let place = out.path().to_str().context("a path")?;
    let add = ["identity", "add", "mosquitto", "--role", "broker", "--out", place];
    lab.assay(&[&add[..], &["--server-name", "mqtt.example"]].concat())?;
    lab.assay(&["identity", "renew", "mosquitto", "--out", place])?;
    let file = out.path().join("mosquitto.pem");
    let mut verify = tool("openssl")?;
    verify.args(["verify", "-purpose", "sslserver", "-verify_hostname", "mqtt.example"]);
    verify.arg("-CAfile").arg(lab.dir.root_pem()).arg("-untrusted").arg(&file).arg(&file);
    run(&mut verify)?;

    // Whoever owns that directory must not choose the names that the service CA signs.
    fs::copy(lab.dir.path().join("server.pem"), &file)?;
    let again = lab.dir.assay(&["identity", "renew", "mosquitto", "--out", place])?.output()?;
    let said = String::from_utf8(again.stderr)?;
    ensure!(!again.status.success() && said.contains("--server-name"), "{said}");
    Ok(())
}

#[test]
fn renewal_replaces_none_of_the_cas_own_keys() -> Result<()> {
    let lab = Lab::open()?;
    let elsewhere = tempfile::tempdir()?;
    let place = elsewhere.path().to_str().context("a path")?;
    lab.assay(&["identity", "add", "master", "--role", "worker", "--out", place])?;
    let master = lab.dir.path().join("master.key");
    let before = fs::read(&master)?;
    let own = lab.dir.path();
    let own = own.to_str().context("a path")?;
    let renew = lab.dir.assay(&["identity", "renew", "master", "--out", own])?.output()?;
    let said = String::from_utf8(renew.stderr)?;
    ensure!(!renew.status.success() && said.contains("the CA's own"), "{said}");
    ensure!(fs::read(&master)? == before);
    lab.assay(&["identity", "renew", "master", "--out", place])?;
    Ok(())
}

#[test]
fn certificates_that_end_within_thirty_days_are_warned_of_and_marked() -> Result<()> {
    let dir = AssayDir::init()?;
    let out = tempfile::tempdir()?;
    for (name, days) in [("soon", "30"), ("late", "32"), ("renewed", "10"), ("gone", "10")] {
        let place = out.path().to_str().context("a path")?;
        let add = ["identity", "add", name, "--role", "operator", "--days", days, "--out", place];
        run(&mut dir.assay(&add)?)?;
    }
    run(dir.assay(&["identity", "renew", "renewed", "--out"])?.arg(out.path()))?;
    run(&mut dir.assay(&["identity", "revoke", "gone"])?)?;
    // It is on no record, as that of a CA of an earlier version.
    replace_server_certificate(&dir)?;

    let server = AssayServer::start(&dir)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let worker = Worker::start(&dir, &format!("mqtt://127.0.0.1:{}", mosquitto.port(0)))?;
    for log in [&|| server.log() as String, &|| worker.log()] as [&dyn Fn() -> String; 2] {
        let warned = |name: &str| {
            let name = format!("name={name} ");
            log().lines().any(|line| line.contains(&name) && line.contains("identity renew"))
        };
        wait_for("a warning", || warned("soon") && warned("server"))?;
        for name in ["late", "renewed", "gone", "operator", "worker"] {
            ensure!(!warned(name), "{name}: {}", log());
        }
    }
    let listed = String::from_utf8(run(&mut dir.assay(&["identity", "list"])?)?.stdout)?;
    let marked: Vec<_> = listed.lines().filter(|line| line.contains("to be renewed")).collect();
    ensure!(marked.len() == 1 && marked[0].starts_with("soon"), "{listed}");
    Ok(())
}

/// A client that shows a certificate.
pub(crate) struct Holder {
    pub(crate) client: String,
    /// The path without `.pem` and `.key`.
    pub(crate) files: PathBuf,
    pub(crate) root: PathBuf,
    /// Where it connects.
    pub(crate) url: String,
}

impl Holder {
    /// A client of the built-in broker.
    pub(crate) fn of(lab: &Lab, client: &str, files: PathBuf) -> Self {
        let (root, url) = (lab.dir.root_pem(), lab.server.operational.clone());
        Self { client: client.into(), files, root, url }
    }

    /// An operator on this operational listener, with the files that the CA made for this name.
    pub(crate) fn operator(dir: &AssayDir, name: &str, url: &str) -> Self {
        let (client, url) = (format!("operator@{name}"), url.into());
        Self { client, files: dir.path().join(name), root: dir.root_pem(), url }
    }

    fn mosquitto(&self, program: &str, client: &str) -> Result<Command> {
        let port = self.url.rsplit_once(':').context("the URL has a port")?.1;
        let mut command = tool(program)?;
        command.args(["-d", "-V", "5", "-h", "127.0.0.1", "-p", port, "-i", client, "-q", "1"]);
        command.arg("--cafile").arg(&self.root).arg("--cert").arg(self.files.with_extension("pem"));
        command.arg("--key").arg(self.files.with_extension("key"));
        Ok(command)
    }

    /// Subscribes, and prints `count` messages with their topics.
    pub(crate) fn hears(&self, filters: &[&str], count: u32) -> Result<Command> {
        let mut command = self.mosquitto("mosquitto_sub", &self.client)?;
        command.args(["-v", "-W", "60", "-C", &count.to_string()]);
        filters.iter().for_each(|filter| _ = command.args(["-t", filter]));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }

    /// Publishes, with more options of mosquitto_pub, and fails if that does.
    pub(crate) fn publishes(&self, topic: &str, message: &str, options: &[&str]) -> Result<()> {
        let mut command = self.mosquitto("mosquitto_pub", &self.client)?;
        run(command.args(["-t", topic, "-m", message]).args(options)).map(drop)
    }

    /// Publishes over another connection. Returns what mosquitto_pub says of the outcome.
    pub(crate) fn says(&self, topic: &str, message: &str) -> Result<String> {
        self.says_as(&format!("{}@says", self.client), topic, message)
    }

    pub(crate) fn says_as(&self, client: &str, topic: &str, message: &str) -> Result<String> {
        let mut command = self.mosquitto("mosquitto_pub", client)?;
        let output = command.args(["-t", topic, "-m", message]).output()?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    }

    /// Waits until somebody is subscribed to commands of the device `pump`. mosquitto_sub writes
    /// nothing before it ends.
    fn is_subscribed(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !self.says("device/v1/default/pump/command", "x")?.contains("RC:0)") {
            ensure!(Instant::now() < deadline, "nobody is subscribed");
        }
        Ok(())
    }

    pub(crate) fn is_refused(&self) -> Result<bool> {
        let said = self.says_as(&self.client, "device/v1/default/pump/command", "x")?;
        let is_refused = said.contains("CONNACK (135)") || said.contains("CONNACK (133)");
        ensure!(is_refused || said.contains("CONNACK (0)"), "{said}");
        Ok(is_refused)
    }
}

/// Waits until a process ends by itself.
pub(crate) fn ends_by(process: &mut Child, deadline: Instant) -> Result<()> {
    while process.try_wait()?.is_none() {
        if Instant::now() > deadline {
            process.kill()?;
            bail!("its live connection stays");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What `identity list` prints as JSON.
pub(crate) fn listed(lab: &Lab) -> Result<Vec<Value>> {
    let rows = lab.assay(&["identity", "list", "--json"])?.stdout;
    Ok(serde_json::Deserializer::from_slice(&rows).into_iter().collect::<Result<_, _>>()?)
}

/// Makes a certificate that leads to the root.
fn forge(lab: &Lab, uri: &str, serial: &str) -> Result<PathBuf> {
    let files = lab.dir.path().join("forged");
    let [key, request, extensions, leaf] =
        ["key", "csr", "ext", "crt"].map(|name| files.with_extension(name));
    let name = "/CN=forged";
    run(tool("openssl")?
        .args(["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", name, "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&request))?;
    let usages = format!(
        "subjectAltName=URI:{uri}\nextendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n\
         basicConstraints=CA:false\n"
    );
    fs::write(&extensions, usages)?;
    let issuing = lab.dir.path().join("issuing");
    let mut sign = tool("openssl")?;
    sign.args(["x509", "-req", "-days", "1", "-set_serial", &format!("0x{serial}"), "-extfile"])
        .arg(&extensions);
    sign.arg("-in").arg(&request).arg("-CA").arg(issuing.with_extension("pem"));
    run(sign.arg("-CAkey").arg(issuing.with_extension("key")).arg("-out").arg(&leaf))?;
    let chain = [read(&leaf)?, read(&issuing.with_extension("pem"))?].concat();
    fs::write(files.with_extension("pem"), chain)?;
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}
