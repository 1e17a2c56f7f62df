//! `cargo xtask demo`: all flows on software TPMs, with the real binaries over real sockets.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use assay_tests::{
    AssayDir, AssayServer, Device, EkKind, Swtpm, VendorCa, assay_bin, build, json,
    run as run_tool, tool, use_binaries_in,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::screen::Screen;
use crate::{bin_dir, show};

/// Builds the binaries and plays the demo; an error unless every expectation held.
pub(crate) fn run() -> Result<()> {
    let mut screen = Screen::new();
    screen.chapter("Building assay and assay-device");
    show(&mut build())?;
    use_binaries_in(bin_dir()?);

    let begin = Instant::now();
    let lab = Lab::new(&screen)?;
    let fleet = provision(&screen, &lab)?;
    compare_times(&screen, &lab, &fleet)?;
    verify_chains(&mut screen, &lab, &fleet)?;
    publish(&mut screen, &lab, &fleet[1])?;
    other_flows(&mut screen, &lab)?;
    refuse_impostors(&mut screen, &lab)?;
    lab.server.stop()?;

    screen.chapter(&format!("Done in {:.1} s", begin.elapsed().as_secs_f64()));
    match screen.failures() {
        0 => Ok(()),
        failures => bail!("{failures} of the expectations above did not hold"),
    }
}

/// The parties of the demo, except the devices.
struct Lab {
    vendor: VendorCa,
    ca: AssayDir,
    server: AssayServer,
    work: TempDir,
}

impl Lab {
    fn new(screen: &Screen) -> Result<Self> {
        let work = tempfile::tempdir()?;
        screen.chapter("1. A TPM manufacturer");
        let vendor = VendorCa::open(&work.path().join("vendor"), "Example TPM Vendor")?;
        screen.say(
            "Its root signs an intermediate, which signs the endorsement key (EK) of every TPM it \
             makes.",
        );

        screen.chapter("2. A certification authority that trusts the manufacturer, and a broker");
        let ca = AssayDir::init()?;
        let dir = ca.path();
        screen.command(Command::new("assay").arg("init").arg(&dir));
        ca.trust(&vendor)?;
        screen.command(&ca.trust_command(&vendor)?);
        let server = AssayServer::start(&ca)?;
        screen.command(&ca.assay(&["serve"])?);
        screen.say(&format!(
            "bootstrap   {}   for devices that have nothing but a TPM",
            server.bootstrap
        ));
        screen.say(&format!(
            "operational {}   for devices with a certificate of this CA",
            server.operational
        ));
        Ok(Self { vendor, ca, server, work })
    }

    /// Waits until the CA's audit is as `expected`, at most for `PATIENCE`, and returns it. The CA
    /// writes decisions without a certificate a moment after the reply.
    fn audit_with(&self, expected: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let audit = self.ca.decisions()?;
            if expected(&audit) || Instant::now() > deadline {
                return Ok(audit);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A device after its provisioning.
struct Provisioned {
    /// Keeps the TPM running.
    _tpm: Swtpm,
    device: Device,
    report: Value,
}

impl Provisioned {
    /// A text in the output of `assay-device provision --json`.
    fn text(&self, name: &str) -> Result<&str> {
        self.report[name]
            .as_str()
            .with_context(|| format!("`assay-device provision --json` has no {name}"))
    }

    fn ms(&self, name: &str) -> Result<f64> {
        self.report[name]
            .as_f64()
            .with_context(|| format!("`assay-device provision --json` has no {name}"))
    }
}

fn provision(screen: &Screen, lab: &Lab) -> Result<Vec<Provisioned>> {
    screen.chapter(
        "3. Six devices, each with a TPM and nothing else, ask for certificates side by side",
    );
    let mut typical = Command::new("assay-device");
    typical.args([
        "provision",
        "--broker",
        &lab.server.bootstrap,
        "--ca-root",
        "root.pem",
        "--tcti",
        "…",
        "--state",
        "…",
    ]);
    screen.command(&typical);
    let label = |(number, (ek, ik)): (usize, &(EkKind, &str))| {
        format!("device {}  EK {:<8}  IK {ik:<8}  ", number + 1, ek.name())
    };
    let live = screen.live(FLEET.iter().enumerate().map(label).collect());
    let live = &live;
    thread::scope(|scope| {
        let started: Vec<_> = FLEET
            .iter()
            .enumerate()
            .map(|(index, (ek, ik))| {
                scope.spawn(move || {
                    live.now(index, "being manufactured");
                    let done = provision_one(lab, index, *ek, ik, |step| live.now(index, step));
                    match &done {
                        Ok(done) => live.end(
                            index,
                            &format!("certificate after {} ms", done.report["total_ms"]),
                        ),
                        Err(_) => live.end(index, "FAILED"),
                    }
                    done
                })
            })
            .collect();
        started
            .into_iter()
            .map(|thread| thread.join().expect("no panic while provisioning"))
            .collect()
    })
}

fn provision_one(
    lab: &Lab,
    number: usize,
    ek: EkKind,
    ik: &str,
    progress: impl Fn(&str),
) -> Result<Provisioned> {
    let tpm = lab.vendor.device(ek, number)?;
    let device = Device::new(&tpm)?;
    let mut command = device.provision(&lab.ca, &lab.server)?;
    let mut child =
        command.args(["--ik", ik]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().context("standard error is a pipe")?).lines() {
        let line = line?;
        progress(line.trim());
        said = line;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("device {} was not provisioned ({}): {said}", number + 1, output.status);
    }
    let report = serde_json::from_slice(&output.stdout)
        .context("`assay-device provision --json` writes JSON")?;
    Ok(Provisioned { _tpm: tpm, device, report })
}

fn compare_times(screen: &Screen, lab: &Lab, fleet: &[Provisioned]) -> Result<()> {
    screen.chapter("4. Where the time went, in ms");
    let audit = lab.audit_with(|audit| {
        let complete = |done: &Provisioned| decisions_on(audit, done).count() == 2;
        fleet.iter().all(complete)
    })?;
    let mut rows = Vec::new();
    for done in fleet {
        let ca = decisions_on(&audit, done)
            .filter_map(|entry| entry["duration_us"].as_f64())
            .sum::<f64>()
            / 1000.0;
        rows.push([
            shortened(done.text("device_id")?),
            done.text("ek")?.to_owned(),
            done.text("ik")?.to_owned(),
            done.text("serial")?.to_owned(),
            format!("{:.1}", done.ms("tpm_ms")?),
            // The device measures the wire and the CA behind it together.
            format!("{:.1}", done.ms("wire_ms")? - ca),
            format!("{ca:.1}"),
        ]);
    }
    screen.table(["DEVICE", "EK", "IK", "CERTIFICATE", "TPM", "WIRE", "CA"], &rows);
    Ok(())
}

/// What the CA decided on a device: to challenge it, and to certify it.
fn decisions_on<'a>(audit: &'a [Value], done: &Provisioned) -> impl Iterator<Item = &'a Value> {
    let device_id = &done.report["device_id"];
    audit
        .iter()
        .filter(move |entry| [&entry["device_id"], &entry["due_device_id"]].contains(&device_id))
}

fn verify_chains(screen: &mut Screen, lab: &Lab, fleet: &[Provisioned]) -> Result<()> {
    screen.chapter("5. OpenSSL judges the certificates");
    for done in fleet {
        let chain = done.text("certificate")?;
        let mut verify = tool("openssl")?;
        verify.args(["verify", "-CAfile"]).arg(lab.ca.root_pem()).args([
            "-untrusted",
            chain,
            chain,
        ]);
        let verified = verify.output()?.status.success();
        screen.expect(
            verified,
            &format!("{} leads to the CA's root", shortened(done.text("device_id")?)),
        );
    }
    let certificates = lab.ca.list("certs")?;
    screen.expect(certificates.len() == fleet.len(), "each device has exactly one certificate");
    Ok(())
}

fn publish(screen: &mut Screen, lab: &Lab, done: &Provisioned) -> Result<()> {
    screen.chapter(
        "6. A device publishes over mutual TLS with the key in its TPM; an operator listens",
    );
    let device_id = done.text("device_id")?;
    let mut watch =
        lab.ca.assay(&["watch", "--broker", &lab.server.operational, "--count", "3"])?;
    screen.command(&watch);
    let mut watching = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let errors = lines(watching.stderr.take().context("standard error is a pipe")?);
    let messages = lines(watching.stdout.take().context("standard output is a pipe")?);
    let subscribed = errors.recv_timeout(PATIENCE).unwrap_or_default();
    screen.expect(subscribed.starts_with("watching"), &subscribed);

    let mut typical = Command::new("assay-device");
    typical.args([
        "publish",
        "--broker",
        &lab.server.operational,
        "--topic",
        "telemetry",
        "--message",
        "…",
        "…",
    ]);
    screen.command(&typical);
    for message in ["power on", "21.4 °C", "21.6 °C"] {
        run_tool(&mut done.device.publish(&lab.ca, &lab.server, "telemetry", message)?)?;
        let heard = messages.recv_timeout(PATIENCE).unwrap_or_default();
        screen
            .expect(heard == format!("device/v1/default/{device_id}/telemetry {message}"), &heard);
    }
    watching.kill()?;
    watching.wait()?;
    Ok(())
}

fn other_flows(screen: &mut Screen, lab: &Lab) -> Result<()> {
    screen
        .chapter("7. Two more devices: one gets its certificate sealed, one a shared key instead");
    for (number, flow) in ["sealed", "shared-key"].into_iter().enumerate() {
        let tpm = lab.vendor.device(EkKind::P256, FLEET.len() + number)?;
        let device = Device::new(&tpm)?;
        let mut provision = device.provision(&lab.ca, &lab.server)?;
        let provisioned = json(provision.args(["--flow", flow]))?;
        let published = device.publish(&lab.ca, &lab.server, "telemetry", "power on")?.output()?;
        let id = shortened(provisioned["device_id"].as_str().context("a device id")?);
        let how =
            if flow == "sealed" { "over mutual TLS" } else { "with a token that its TPM signed" };
        screen.expect(published.status.success(), &format!("{flow:10}  {id} publishes {how}"));
    }
    Ok(())
}

fn refuse_impostors(screen: &mut Screen, lab: &Lab) -> Result<()> {
    screen.chapter("8. Three impostors are refused");
    let registered = lab.ca.list("devices")?;

    screen.say("A TPM that no manufacturer certified:");
    let tpm = Swtpm::without_ek_certificate()?;
    let device = Device::new(&tpm)?;
    let mut provision = device.provision(&lab.ca, &lab.server)?;
    expect_refusal(screen, lab, provision.args(["--ek", "p-256"]), "ek-not-enrolled")?;

    screen.say("A TPM certified by a manufacturer of the same name that this CA does not trust:");
    let stranger = VendorCa::open(&lab.work.path().join("stranger"), "Example TPM Vendor")?;
    let tpm = stranger.device(EkKind::P256, 0)?;
    let device = Device::new(&tpm)?;
    expect_refusal(
        screen,
        lab,
        &mut device.provision(&lab.ca, &lab.server)?,
        "ek-certificate-untrusted",
    )?;

    screen.say("A genuine TPM, with an identity key (IK) that lies in a file instead:");
    let tpm = lab.vendor.device(EkKind::Rsa2048, FLEET.len())?;
    let mut impostor = impostor(lab, &tpm, EkKind::Rsa2048)?;
    expect_refusal(screen, lab, &mut impostor, "ik-off-template")?;

    screen.expect(lab.ca.list("devices")? == registered, "the CA knows the same devices as before");
    Ok(())
}

/// `examples/impostor` with the EK and the EK certificate of `tpm`.
fn impostor(lab: &Lab, tpm: &Swtpm, kind: EkKind) -> Result<Command> {
    let (public, certificate) = (lab.work.path().join("ek.pub"), lab.work.path().join("ek.der"));
    fs::write(&public, tpm.ek_public(kind)?)?;
    fs::write(&certificate, tpm.ek_certificate(kind)?)?;
    let mut command = Command::new(assay_bin("examples/impostor")?);
    command.args(["--broker", &lab.server.bootstrap, "--ca-root"]).arg(lab.ca.root_pem());
    command.arg("--ek-public").arg(public).arg("--ek-certificate").arg(certificate);
    Ok(command)
}

/// The CA must refuse for the reason `problem`, tell the device so, and record it.
fn expect_refusal(
    screen: &mut Screen,
    lab: &Lab,
    command: &mut Command,
    problem: &str,
) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let reason: Vec<_> =
        said.lines().filter(|line| !line.contains(" ms  ")).map(str::trim).collect();
    let is_recorded = |audit: &[Value]| audit.iter().any(|entry| entry["problem"] == problem);
    let recorded = is_recorded(&lab.audit_with(is_recorded)?);
    let refused = output.status.code() == Some(REFUSED) && said.contains(problem) && recorded;
    screen.expect(refused, &reason.join("\n    "));
    Ok(())
}

/// The lines of `pipe`, as they come.
fn lines(pipe: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    lines
}

/// A device id that follows from the EK is 52 characters long.
fn shortened(device_id: &str) -> String {
    match device_id.char_indices().nth(12) {
        Some((end, _)) => format!("{}…", &device_id[..end]),
        None => device_id.to_owned(),
    }
}

const FLEET: [(EkKind, &str); 6] = [
    (EkKind::Rsa2048, "p-256"),
    (EkKind::P256, "p-256"),
    (EkKind::P384, "p-256"),
    (EkKind::Rsa2048, "rsa-2048"),
    (EkKind::P256, "rsa-2048"),
    (EkKind::P384, "rsa-2048"),
];
/// Exit status of assay-device: refused by the CA.
const REFUSED: i32 = 3;
/// For waits of milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
