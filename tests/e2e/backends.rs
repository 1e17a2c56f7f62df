//! Backends: an operator's services, each with rights of its own, on the built-in broker.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use assay_tests::{Device, EkKind, json, run, tool, trusted_vendor};
use serde_json::{Value, json};

use crate::identities::{Holder, ends_by, listed};
use crate::lab::Lab;

#[test]
fn backend_reads_telemetry_and_its_command_reaches_the_device_alone() -> Result<()> {
    let lab = Lab::open()?;
    let tpms = trusted_vendor()?.devices(EkKind::P256, 3)?;
    let devices = tpms.iter().map(Device::new).collect::<Result<Vec<_>>>()?;
    lab.provision(&devices[0], &[])?;
    for device in &devices[1..] {
        lab.provision(device, &["--flow", "shared-key"])?;
    }
    let desk = Desk::new(&lab)?;
    let sink = desk.backend("sink", &["--subscribe", "device/+/telemetry"])?;
    let mut hears = sink.hears(&["device/v1/default/+/telemetry"], 1)?.spawn()?;
    while hears.try_wait()?.is_none() {
        run(&mut devices[0].publish(&lab.dir, &lab.server, "telemetry", "21.5")?)?;
    }
    let heard = output(hears)?;
    ensure!(heard.contains("/telemetry 21.5"), "{heard}");

    let control = desk.backend("control", &["--publish", "device/+/command/#"])?;
    let [(mut first, of_first), (mut second, of_second)] =
        [hears_commands(&lab, &devices[1])?, hears_commands(&lab, &devices[2])?];
    while first.try_wait()?.is_none() {
        control.says(&format!("{of_first}/reboot"), "for-the-first")?;
    }
    let heard = output(first)?;
    ensure!(heard.contains(&format!("{of_first}/reboot for-the-first")), "{heard}");
    while second.try_wait()?.is_none() {
        control.says(&format!("{of_second}/reboot"), "for-the-second")?;
    }
    // Its only message: nothing came before.
    let heard = output(second)?;
    ensure!(heard.contains(&format!("{of_second}/reboot for-the-second")), "{heard}");
    Ok(())
}

#[test]
fn backend_without_the_right_is_refused_with_a_reason() -> Result<()> {
    let lab = Lab::open()?;
    let desk = Desk::new(&lab)?;
    let sink = desk.backend("sink", &["--subscribe", "device/pump/#"])?;
    let control = desk.backend("control", &["--publish", "device/pump/command/#"])?;
    for (backend, topic, is_granted) in [
        (&control, "device/v1/default/pump/command/reboot", true),
        (&control, "device/v1/default/other/command/reboot", false),
        (&control, "device/v1/default/pump/telemetry", false),
        (&control, "provision/v1/default/pump/request", false),
        (&control, "provision/v1/default/pump/reply", false),
        (&control, "ca/v1/default/crl", false),
        (&sink, "device/v1/default/pump/command/reboot", false),
    ] {
        let said = backend.says(topic, "x")?;
        ensure!(
            said.contains("PUBACK") && said.contains("RC:135") != is_granted,
            "{topic}: {said}"
        );
    }
    for filter in ["device/v1/default/#", "fleet/v1/default/#", "$share/g/device/v1/default/pump/#"]
    {
        let refused = sink.hears(&[filter], 1)?.output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(said.contains("denied"), "{filter}: {said}");
    }
    for client in ["operator@sink", "worker@sink", "backend@control", "backend@sink2", "sink"] {
        let other = Holder { client: client.into(), ..desk.holder("sink") };
        ensure!(other.is_refused()?, "{client}");
    }
    Ok(())
}

#[test]
fn rights_that_no_backend_may_have_are_refused_with_the_reason() -> Result<()> {
    let lab = Lab::open()?;
    for (rights, reason) in [
        (["--subscribe", "provision/#"], "below device/, fleet/ and ca/"),
        (["--subscribe", "#"], "below device/, fleet/ and ca/"),
        (["--subscribe", "$share/g/device/#"], "only workers have shared subscriptions"),
        (["--subscribe", "device/v1/default/#"], "without version and scope"),
        (["--subscribe", "device/a+/#"], "not a topic filter"),
        (["--publish", "device/#"], "publishes commands"),
        (["--publish", "device/+/telemetry"], "publishes commands"),
        (["--publish", "ca/crl"], "publishes commands"),
        (["--publish", "fleet/+/event"], "publishes commands"),
        (["--publish", "provision/pump/reply"], "below device/, fleet/ and ca/"),
    ] {
        let refused = lab.dir.assay(&["identity", "add", "sink"])?.args(rights).output()?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success() && said.contains(reason), "{rights:?}: {said}");
    }
    let operator = ["identity", "add", "anna", "--role", "operator", "--subscribe", "device/#"];
    ensure!(!lab.dir.assay(&operator)?.output()?.status.success());
    ensure!(listed(&lab)?.len() == 3, "nothing is on record that was refused");
    Ok(())
}

#[test]
fn other_rights_and_a_revocation_act_on_a_live_connection() -> Result<()> {
    let lab = Lab::open()?;
    let desk = Desk::new(&lab)?;
    let sink =
        desk.backend("sink", &["--subscribe", "device/#", "--publish", "device/+/command/#"])?;
    let hears = || -> Result<Child> {
        let hears = sink.hears(&["device/v1/default/pump/command/#"], 1000)?.spawn()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !sink.says("device/v1/default/pump/command", "x")?.contains("RC:0)") {
            ensure!(Instant::now() < deadline, "it is not subscribed");
        }
        Ok(hears)
    };
    let mut live = hears()?;
    let update = |rights: &[&str]| {
        lab.assay(&[&["identity", "update", "sink"], rights].concat())?;
        Ok::<_, anyhow::Error>(Instant::now())
    };
    let changed = update(&["--subscribe", "device/+/telemetry"])?;
    ends_by(&mut live, changed + Duration::from_secs(5))?;
    let said = output(live)?;
    ensure!(said.contains("DISCONNECT (152)"), "administrative action: {said}");
    ensure!(sink.says("device/v1/default/pump/command", "x")?.contains("RC:135"));
    let row = listed(&lab)?.pop().context("a row")?;
    ensure!(row["subscribe"] == json!(["device/v1/default/+/telemetry"]), "{row}");
    ensure!(row["publish"] == json!([]) && row["role"] == "backend", "{row}");

    update(&["--subscribe", "device/#", "--publish", "device/+/command/#"])?;
    let mut live = hears()?;
    lab.assay(&["identity", "revoke", "sink"])?;
    let revoked = Instant::now();
    ends_by(&mut live, revoked + Duration::from_secs(5))?;
    eprintln!("cut {:?} after the revocation", revoked.elapsed());
    ensure!(sink.is_refused()?);
    Ok(())
}

/// A place for the files of backends.
struct Desk<'l> {
    lab: &'l Lab,
    files: tempfile::TempDir,
}

impl<'l> Desk<'l> {
    fn new(lab: &'l Lab) -> Result<Self> {
        Ok(Self { lab, files: tempfile::tempdir()? })
    }

    /// Makes a backend with these rights.
    fn backend(&self, name: &str, rights: &[&str]) -> Result<Holder> {
        let out = self.files.path().to_str().context("a path")?;
        self.lab.assay(&[&["identity", "add", name, "--out", out], rights].concat())?;
        Ok(self.holder(name))
    }

    fn holder(&self, name: &str) -> Holder {
        Holder::of(self.lab, &format!("backend@{name}"), self.files.path().join(name))
    }
}

/// A device that logs in with a token and listens to its commands until one comes, and the topic of
/// its commands.
fn hears_commands(lab: &Lab, device: &Device) -> Result<(Child, String)> {
    let token: Value = json(device.token()?.arg("--json"))?;
    let text = |key: &str| token[key].as_str().context("a text");
    let commands = format!("device/v1/default/{}/command", text("client_id")?);
    let port = lab.server.operational.rsplit_once(':').context("the URL has a port")?.1;
    let mut command: Command = tool("mosquitto_sub")?;
    command.args([
        "-V",
        "5",
        "-h",
        "127.0.0.1",
        "-p",
        port,
        "-q",
        "1",
        "-v",
        "-C",
        "1",
        "-W",
        "60",
    ]);
    command.args(["-i", text("client_id")?, "-u", text("user_name")?, "-P", text("password")?]);
    command.arg("--cafile").arg(lab.dir.root_pem()).args(["-t", &format!("{commands}/#")]);
    let hears = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    Ok((hears, commands))
}

fn output(process: Child) -> Result<String> {
    Ok(String::from_utf8(process.wait_with_output()?.stdout)?)
}
