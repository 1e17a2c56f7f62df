//! The operator's own service, which is asked before a device gets anything: the example of the
//! documents.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, AssayServer, Device, EVERY_FLOW, EkKind, run, tool, trusted_vendor};
use serde_json::{Value, json as document};

use crate::lab::{Lab, ek_of};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A CA that asks a service at this port.
fn asking_lab(port: u16) -> Result<Lab> {
    let dir = AssayDir::init()?;
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    fs::write(dir.path().join("hook-ca.pem"), certified.cert.pem())?;
    fs::write(dir.path().join("hook.key"), certified.signing_key.serialize_pem())?;
    let secret = dir.path().join("hook.secret");
    fs::write(&secret, SECRET)?;
    fs::set_permissions(&secret, Permissions::from_mode(0o600))?;
    let hook = format!(
        "[hook]\nurl = \"https://127.0.0.1:{port}/assay\"\nca = \"hook-ca.pem\"\nsecret_file = \
         \"hook.secret\"\n"
    );
    // Certificates are due for renewal at once.
    let due = "[certificates]\nlifetime_days = 1\nrenew_before_days = 1\n";
    fs::write(dir.path().join("assay.toml"), format!("{EVERY_FLOW}\n{due}{hook}"))?;
    dir.trust(&trusted_vendor()?)?;
    Ok(Lab { server: AssayServer::start(&dir)?, dir })
}

/// The example, until it is dropped.
struct Service(Child);

impl Service {
    fn start(lab: &Lab, port: u16) -> Result<Self> {
        let file = |name: &str| lab.dir.path().join(name);
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/hook.py");
        let mut service = tool("python3")?;
        service.args([example, "--listen", &format!("127.0.0.1:{port}")]);
        service.arg("--certificate").arg(file("hook-ca.pem")).arg("--key").arg(file("hook.key"));
        service.arg("--client-ca").arg(file("root.pem"));
        service.arg("--secret-file").arg(file("service.secret"));
        service.arg("--inventory").arg(file("inventory.json"));
        if !file("service.secret").exists() {
            fs::write(file("service.secret"), SECRET)?;
        }
        let mut service = Self(service.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
        let mut line = String::new();
        BufReader::new(service.0.stdout.take().context("a pipe")?).read_line(&mut line)?;
        ensure!(line.starts_with("listening"), "{line:?}");
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A port that nobody has now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn know(lab: &Lab, inventory: &Value) -> Result<()> {
    Ok(fs::write(lab.dir.path().join("inventory.json"), inventory.to_string())?)
}

#[test]
fn hook_names_a_new_device_and_refuses_others_and_renewals() -> Result<()> {
    let port = free_port()?;
    let lab = asking_lab(port)?;
    let _service = Service::start(&lab, port)?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 3)?;
    know(&lab, &document!({}))?;
    let device = Device::new(&tpms[0])?;
    for flow in ["ticket", "sealed", "shared-key"] {
        lab.refused(&device, &["--flow", flow], "the inventory does not know this TPM")?;
    }
    let refused = lab.audited("not-admitted")?;
    ensure!(lab.dir.list("devices")?.is_empty(), "{refused}");

    let (mut inventory, eks) = (serde_json::Map::new(), [ek_of(&tpms[0])?, ek_of(&tpms[1])?]);
    for (n, ek) in eks.iter().enumerate() {
        let given = document!({
            "device_id": format!("pump-{n}"),
            "tags": {"site": "north"},
            "configuration": {"interval": n},
        });
        inventory.insert(ek.clone(), given);
    }
    know(&lab, &Value::Object(inventory.clone()))?;
    for (n, flow) in ["ticket", "sealed"].iter().enumerate() {
        let device = Device::new(&tpms[n])?;
        let name = format!("pump-{n}");
        ensure!(lab.provision(&device, &["--flow", flow])?["device_id"] == name);
        let shown = lab.assay(&["enroll", "show", &name])?.stdout;
        let shown: Value = serde_json::from_slice(&shown)?;
        ensure!(shown["tags"]["site"] == "north" && shown["enrolled_from"] == "hook", "{shown}");
        let sent = run(&mut device.configuration()?)?.stdout;
        ensure!(serde_json::from_slice::<Value>(&sent)? == document!({"interval": n}));
        // It comes again without its state, and keeps its name.
        ensure!(lab.provision(&Device::new(&tpms[n])?, &["--flow", flow])?["device_id"] == name);
    }
    // What the service says again is no act again: anybody who knows an EK can have it asked.
    let acts: Vec<_> =
        lab.dir.list("audit")?.into_iter().filter(|row| row["client"] == "hook").collect();
    for action in ["approve", "set-configuration"] {
        let count = acts.iter().filter(|row| row["action"] == action).count();
        ensure!(count == 2, "{action}: {acts:?}");
    }

    let [device, other] = [Device::new(&tpms[0])?, Device::new(&tpms[1])?];
    for device in [&device, &other] {
        lab.provision(device, &[])?;
    }
    // A certificate is renewed by a newer one, and times have seconds.
    thread::sleep(Duration::from_secs(1));
    inventory.insert(eks[0].clone(), document!({"refuse": "reported stolen"}));
    know(&lab, &Value::Object(inventory))?;
    let said = String::from_utf8(device.renew(&lab.dir, &lab.server)?.output()?.stderr)?;
    ensure!(said.contains("reported stolen"), "{said}");
    lab.refused(&Device::new(&tpms[0])?, &[], "reported stolen")?;
    run(&mut other.renew(&lab.dir, &lab.server)?).map(drop)
}

#[test]
fn no_answer_of_the_hook_is_no_yes_and_a_service_that_is_back_is_asked() -> Result<()> {
    let port = free_port()?;
    let lab = asking_lab(port)?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 1)?;
    know(&lab, &document!({ek_of(&tpms[0])?: {}}))?;
    let device = Device::new(&tpms[0])?;
    let stays_out = |said: &str| -> Result<()> {
        let output = device.provision(&lab.dir, &lab.server)?.args(["--deadline", "2"]).output()?;
        let heard = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && heard.contains(said), "{heard}");
        Ok(())
    };
    // There is none; then one that takes another's signature.
    stays_out("gives no answer")?;
    fs::write(lab.dir.path().join("service.secret"), "whsec_c2VjcmV0cyB0aGF0IGFyZSBvdGhlcnM=")?;
    let service = Service::start(&lab, port)?;
    stays_out("gives no answer")?;
    drop(service);
    ensure!(lab.dir.list("devices")?.is_empty());
    fs::remove_file(lab.dir.path().join("service.secret"))?;
    let _service = Service::start(&lab, port)?;
    lab.provision(&device, &["--deadline", "60"]).map(drop)
}

/// Whoever listens without a word must hold up nobody who is not asked about.
#[test]
fn hook_that_says_nothing_delays_what_it_is_not_asked_about_by_nothing() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let lab = asking_lab(silent.local_addr()?.port())?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 1)?;
    let device = Device::new(&tpms[0])?;
    let mut waiting = device.provision(&lab.dir, &lab.server)?;
    let mut waiting =
        waiting.args(["--deadline", "8"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let (_connection, _) = silent.accept()?;
    let started = Instant::now();
    lab.assay(&["health", "--broker", &lab.server.bootstrap])?;
    ensure!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // Nobody else is asked about this EK meanwhile.
    waiting.kill()?;
    waiting.wait()?;
    let again = device.provision(&lab.dir, &lab.server)?.args(["--deadline", "1"]).output()?;
    let said = String::from_utf8(again.stderr)?;
    ensure!(said.contains("being asked about this TPM"), "{said}");
    let no_answer = || -> Result<bool> {
        let audit = lab.dir.list("audit")?;
        let said = |row: &Value| row["detail"].as_str().is_some_and(|it| it.contains("no answer"));
        Ok(audit.iter().any(said))
    };
    while !no_answer()? {
        ensure!(started.elapsed() < Duration::from_secs(10), "it is given up after 5 s");
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn secret_of_the_hook_that_others_can_read_is_refused() -> Result<()> {
    let dir = AssayDir::init()?;
    fs::write(dir.path().join("hook.secret"), SECRET)?;
    fs::set_permissions(dir.path().join("hook.secret"), Permissions::from_mode(0o640))?;
    let settings = |url: &str| {
        let hook = format!("url = \"{url}\"\nca = \"root.pem\"\nsecret_file = \"hook.secret\"\n");
        fs::write(dir.path().join("assay.toml"), format!("[hook]\n{hook}"))
    };
    for (url, said) in
        [("https://127.0.0.1:9443/", "chmod 600"), ("http://127.0.0.1:9443/", "begins with https")]
    {
        settings(url)?;
        let output = dir.assay(&["serve"])?.output()?;
        let heard = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1) && heard.contains(said), "{heard}");
    }
    Ok(())
}
