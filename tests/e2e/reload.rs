//! SIGHUP: certificates, keys and settings are reread, all or none, and no connection ends.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use assay_tests::{
    AssayDir, Device, EkKind, Mosquitto, Worker, assay_bin, json, run, tool, trusted_vendor,
};
use assay_wire::{ProblemCode, Proof, ReplyBody, RequestBody};
use serde_json::Value;

use crate::lab::{Lab, refused_with};
use crate::raw_client::{OperationalClient, RawClient};
use crate::tools_device::ToolsDevice;

#[test]
fn the_brokers_new_certificate_is_shown_to_new_clients_and_old_connections_stay() -> Result<()> {
    let lab = Lab::open()?;
    let mut old = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let before = shown_certificate(&lab)?;
    replace_server_certificate(&lab.dir)?;
    lab.reload()?;
    let after = shown_certificate(&lab)?;
    ensure!(before != after && after == serial(&lab.dir.path().join("server.pem"))?);
    ensure!(matches!(old.ask(RequestBody::Ping)?, ReplyBody::Pong), "it is connected all the time");
    let mut new = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    ensure!(matches!(new.ask(RequestBody::Ping)?, ReplyBody::Pong));
    Ok(())
}

#[test]
fn flows_and_lifetimes_change_while_devices_are_served() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let (first, second) = (vendor.device(EkKind::P256, 0)?, vendor.device(EkKind::P256, 1)?);
    fs::write(
        lab.dir.path().join("assay.toml"),
        "flows = [\"ticket\"]\n[certificates]\nlifetime_days = 7\n",
    )?;
    lab.reload()?;
    lab.refused(&Device::new(&first)?, &["--flow", "sealed"], "flow-not-offered")?;
    let device = Device::new(&second)?;
    lab.provision(&device, &[])?;
    let lasts = |days: u32| -> Result<bool> {
        let mut check = tool("openssl")?;
        check.args(["x509", "-noout", "-checkend", &(days * 86400).to_string(), "-in"]);
        Ok(check.arg(device.state().join("certificate.pem")).output()?.status.success())
    };
    ensure!(lasts(6)? && !lasts(8)?);
    Ok(())
}

#[test]
fn a_new_issuing_ca_certifies_and_no_chain_mixes_the_two() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let tpms = vendor.devices(EkKind::P256, 3)?;
    let devices = tpms.iter().map(Device::new).collect::<Result<Vec<_>>>()?;
    for device in &devices[..2] {
        lab.provision(device, &[])?;
    }
    let mut connected = OperationalClient::connect(&lab, &tpms[0].tcti(), &devices[0].state())?;
    replace_issuing_ca(&lab.dir, "Second")?;
    lab.reload()?;
    ensure!(!connected.ends_within(Duration::from_millis(500)), "it is connected all the time");
    // The revocation list is published again, although no certificate was revoked since the last
    // one.
    wait_for("a list of the second CA", || {
        let list = lab.assay(&[
            "watch",
            "--broker",
            &lab.server.operational,
            "--count",
            "1",
            "ca/v1/default/crl",
        ]);
        list.is_ok_and(|list| String::from_utf8_lossy(&list.stdout).contains("Second"))
    })?;
    // Two devices have a certificate of the first CA in force. A chain with the second CA's
    // certificate would lead it nowhere.
    let asked_again = [&["--again"][..], &["--again", "--flow", "sealed"], &[]];
    for (device, arguments) in devices.iter().zip(asked_again) {
        lab.provision(device, arguments)?;
        let chain = device.state().join("certificate.pem");
        lab.openssl_verifies(&chain)?;
        let issuer =
            run(tool("openssl")?.args(["x509", "-noout", "-issuer", "-in"]).arg(&chain))?.stdout;
        ensure!(String::from_utf8(issuer)?.contains("Second"), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn a_new_ticket_key_refuses_old_tickets_and_devices_begin_again() -> Result<()> {
    let lab = Lab::open()?;
    let vendor = trusted_vendor()?;
    let tpm = vendor.device(EkKind::P256, 0)?;
    let device = ToolsDevice::new(&tpm, EkKind::P256)?;
    let mut mqtt = RawClient::connect(&lab.server.bootstrap, &lab.dir.root_pem())?;
    let ReplyBody::Challenge(challenge) = mqtt.ask(RequestBody::Challenge(device.evidence()?))?
    else {
        bail!("no challenge")
    };
    fs::write(lab.dir.path().join("ticket.key"), [7; 32])?;
    lab.reload()?;
    let ticket = device.activate(&challenge)?;
    let proof = Proof { claim: challenge.claim, ticket };
    mqtt.refused(RequestBody::Certify(proof), ProblemCode::TicketRefused)
}

#[test]
fn a_new_master_key_voids_all_tokens() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.provision(&device, &["--flow", "shared-key"])?;
    let login = || -> Result<OperationalClient> {
        let token: Value = json(device.token()?.arg("--json"))?;
        let text =
            |key: &str| Ok::<_, anyhow::Error>(token[key].as_str().context("a text")?.to_owned());
        OperationalClient::login(&lab, &text("client_id")?, &text("user_name")?, &text("password")?)
    };
    let mut connected = login()?;
    fs::write(lab.dir.path().join("master.key"), [7; 32])?;
    lab.reload()?;
    ensure!(connected.ends_within(Duration::from_secs(5)), "its key is void");
    ensure!(login().is_err());
    Ok(())
}

#[test]
fn what_needs_a_restart_is_named_and_the_rest_is_taken() -> Result<()> {
    let lab = Lab::open()?;
    let settings =
        "scope = \"other\"\nflows = [\"ticket\"]\n[broker]\nbootstrap = \"127.0.0.1:1\"\n";
    fs::write(lab.dir.path().join("assay.toml"), settings)?;
    lab.reload()?;
    let log = lab.server.log();
    for setting in ["\"scope\"", "\"broker.bootstrap\""] {
        ensure!(
            log.lines().any(|line| line.contains(setting) && line.contains("needs a restart")),
            "{setting}: {log}"
        );
    }
    ensure!(!log.contains("\"broker.operational\""));
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    lab.refused(&device, &["--flow", "sealed"], "flow-not-offered")?;
    lab.provision(&device, &["--flow", "ticket"])?;
    Ok(())
}

#[test]
fn if_anything_is_invalid_everything_stays_and_the_log_says_why() -> Result<()> {
    let lab = Lab::open()?;
    let other = AssayDir::init()?;
    let before = shown_certificate(&lab)?;
    let file = |name: &str| lab.dir.path().join(name);
    let foreign =
        |name: &str| Ok::<_, anyhow::Error>((name.to_owned(), fs::read(other.path().join(name))?));
    let own =
        |name: &str, from: &str| Ok::<_, anyhow::Error>((name.to_owned(), fs::read(file(from))?));
    let with = |name: &str, content: &[u8]| (name.to_owned(), content.to_owned());
    for (replaced, reason) in [
        (vec![foreign("server.key")?], "server.pem and server.key"),
        (
            vec![foreign("server.pem")?, foreign("server.key")?],
            "server.pem is not a certificate for 127.0.0.1",
        ),
        (
            vec![own("server.pem", "worker.pem")?, own("server.key", "worker.key")?],
            "server.pem is not a certificate",
        ),
        (vec![foreign("worker.key")?], "worker.pem and worker.key"),
        (
            vec![foreign("worker.pem")?, foreign("worker.key")?],
            "worker.pem is not a client certificate that leads to root.pem",
        ),
        (
            vec![own("worker.pem", "operator.pem")?, own("worker.key", "operator.key")?],
            "not a worker's certificate",
        ),
        (vec![foreign("issuing.key")?], "issuing.pem and issuing.key"),
        (
            vec![foreign("issuing.pem")?, foreign("issuing.key")?],
            "the root did not sign the issuing certificate",
        ),
        (vec![foreign("root.pem")?], "root.pem"),
        (vec![with("ticket.key", &[7; 31])], "ticket.key must have 32 bytes"),
        (vec![with("master.key", &[7; 33])], "master.key must have 32 bytes"),
        (vec![with("assay.toml", b"flows = []")], "assay.toml is not valid"),
    ] {
        let names =
            ["assay.toml"].into_iter().chain(replaced.iter().map(|(name, _)| name.as_str()));
        let good = names
            .map(|name| Ok((file(name), fs::read(file(name))?)))
            .collect::<Result<Vec<_>>>()?;
        // These settings are good, but are reread together with a file that is not.
        fs::write(file("assay.toml"), "flows = [\"ticket\"]")?;
        for (name, content) in &replaced {
            fs::write(file(name), content)?;
        }
        let log = lab.reload_refused()?;
        ensure!(log.contains(reason), "{reason}: {log}");
        for (file, content) in good {
            fs::write(file, content)?;
        }
    }
    ensure!(shown_certificate(&lab)? == before);
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.provision(&Device::new(&tpm)?, &["--flow", "sealed"])?;
    Ok(())
}

/// Otherwise the log would advise a restart, and the CA would not start again.
#[test]
fn scope_that_no_restart_would_take_is_refused_at_the_reload() -> Result<()> {
    let lab = Lab::open()?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    lab.provision(&Device::new(&tpm)?, &[])?;
    fs::write(lab.dir.path().join("assay.toml"), "scope = \"plant-7\"")?;
    let log = lab.reload_refused()?;
    ensure!(log.contains("put scope = \"default\" back"), "{log}");
    Ok(())
}

#[test]
fn a_worker_rereads_too() -> Result<()> {
    let dir = AssayDir::init()?;
    dir.trust(&trusted_vendor()?)?;
    let mosquitto = Mosquitto::start(&["allow_anonymous true"])?;
    let broker = format!("mqtt://127.0.0.1:{}", mosquitto.port(0));
    let worker = Worker::start(&dir, &broker)?;
    fs::write(dir.path().join("assay.toml"), "flows = [\"ticket\"]")?;
    worker.signal("HUP")?;
    wait_for("the settings are reread", || worker.log().contains("reread certificates"))?;
    let tpm = trusted_vendor()?.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    let refused =
        device.provision_at(&broker, &dir.root_pem())?.args(["--flow", "sealed"]).output()?;
    refused_with(&refused, "flow-not-offered")?;
    json(device.provision_at(&broker, &dir.root_pem())?.args(["--flow", "ticket"]))?;
    Ok(())
}

#[test]
fn issuing_cas_that_change_under_load_fail_no_device() -> Result<()> {
    let lab = Lab::open()?;
    let cache = tempfile::tempdir()?;
    let fleet = || -> Result<Command> {
        let mut fleet = Command::new(assay_bin("assay-fleet")?);
        fleet.arg("--cache").arg(cache.path());
        Ok(fleet)
    };
    let vendor = String::from_utf8(run(fleet()?.arg("--vendor"))?.stdout)?;
    run(lab.dir.assay(&["trust", "add", "--admit"])?.args(vendor.lines()))?;
    let mut fleet = fleet()?;
    fleet.args(["--json", "--broker", &lab.server.bootstrap, "--ca-root"]).arg(lab.dir.root_pem());
    let mut running =
        fleet.args(["--devices", "300", "--rate", "60"]).stdout(Stdio::piped()).spawn()?;
    let mut changes = 0;
    while running.try_wait()?.is_none() {
        replace_issuing_ca(&lab.dir, if changes % 2 == 0 { "Even" } else { "Odd" })?;
        lab.reload()?;
        changes += 1;
    }
    let report: Value = serde_json::from_slice(&running.wait_with_output()?.stdout)?;
    ensure!(
        report["devices"]["done"] == 300 && report["lost"] == serde_json::json!({}),
        "{report:#}"
    );
    ensure!(changes > 3, "{changes} changes");
    Ok(())
}

impl Lab {
    /// SIGHUP; returns when the server has reread what it can.
    pub(crate) fn reload(&self) -> Result<()> {
        self.hang_up("reread certificates")
    }

    /// SIGHUP, which must change nothing. Returns what the log says of it.
    pub(crate) fn reload_refused(&self) -> Result<String> {
        let before = self.server.log().len();
        self.hang_up("nothing was reread")?;
        Ok(self.server.log()[before..].to_owned())
    }

    fn hang_up(&self, outcome: &str) -> Result<()> {
        let count = || self.server.log().matches(outcome).count();
        let before = count();
        self.server.signal("HUP")?;
        wait_for(outcome, || count() > before)
    }
}

pub(crate) fn wait_for(what: &str, is_so: impl Fn() -> bool) -> Result<()> {
    wait_long(what, Duration::from_secs(10), is_so)
}

pub(crate) fn wait_long(
    what: &str,
    within: Duration,
    mut is_so: impl FnMut() -> bool,
) -> Result<()> {
    let deadline = Instant::now() + within;
    while !is_so() {
        ensure!(Instant::now() < deadline, "not: {what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The serial number of the certificate that the bootstrap listener shows.
pub(crate) fn shown_certificate(lab: &Lab) -> Result<String> {
    let file = lab.dir.path().join("shown.pem");
    let mut client = tool("openssl")?;
    client.args(["s_client", "-connect", lab.server.bootstrap.trim_start_matches("mqtts://")]);
    fs::write(&file, run(client.stdin(Stdio::null()))?.stdout)?;
    serial(&file)
}

pub(crate) fn serial(file: &Path) -> Result<String> {
    Ok(String::from_utf8(
        run(tool("openssl")?.args(["x509", "-noout", "-serial", "-in"]).arg(file))?.stdout,
    )?)
}

/// Makes a new certificate and key for the broker, by the service CA.
pub(crate) fn replace_server_certificate(dir: &AssayDir) -> Result<()> {
    let extensions = "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n\
                      keyUsage=critical,digitalSignature\n";
    let certificate = certify(dir, "server", "/CN=broker", "service", extensions)?;
    fs::write(
        dir.path().join("server.pem"),
        certificate + &fs::read_to_string(dir.path().join("service.pem"))?,
    )?;
    Ok(())
}

/// Makes a new issuing CA of this name, by the root.
fn replace_issuing_ca(dir: &AssayDir, name: &str) -> Result<()> {
    let extensions = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,\
                      cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";
    let certificate = certify(dir, "issuing", &format!("/CN={name}"), "root", extensions)?;
    fs::write(dir.path().join("issuing.pem"), certificate)?;
    Ok(())
}

/// Replaces the key of `holder`, and returns a certificate for it.
fn certify(
    dir: &AssayDir,
    holder: &str,
    subject: &str,
    issuer: &str,
    extensions: &str,
) -> Result<String> {
    let work = tempfile::tempdir()?;
    let (request, config) = (work.path().join("request.pem"), work.path().join("extensions"));
    fs::write(&config, extensions)?;
    let mut ask = tool("openssl")?;
    ask.args([
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        subject,
    ]);
    run(ask
        .arg("-keyout")
        .arg(dir.path().join(format!("{holder}.key")))
        .arg("-out")
        .arg(&request))?;
    let mut sign = tool("openssl")?;
    sign.args(["x509", "-req", "-days", "30", "-in"]).arg(&request).arg("-extfile").arg(&config);
    sign.arg("-CA").arg(dir.path().join(format!("{issuer}.pem")));
    sign.arg("-CAkey").arg(dir.path().join(format!("{issuer}.key")));
    Ok(String::from_utf8(run(&mut sign)?.stdout)?)
}
