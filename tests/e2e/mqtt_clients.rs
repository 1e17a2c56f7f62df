//! MQTT clients that are not ours, in both versions, on the built-in broker.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use assay_tests::{AssayDir, AssayServer, run, tool};

/// A server, and the certificates and keys of operators.
struct Lab {
    dir: AssayDir,
    server: AssayServer,
}

impl Lab {
    fn start() -> Result<Self> {
        let dir = AssayDir::init()?;
        Ok(Self { server: AssayServer::start(&dir)?, dir })
    }

    fn port(&self) -> Result<&str> {
        Ok(self.server.operational.rsplit_once(':').context("the URL has a port")?.1)
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// `mosquitto_pub` or `mosquitto_sub` as an operator.
    fn mosquitto(&self, program: &str, version: &str, name: &str) -> Result<Command> {
        let mut command = tool(program)?;
        command.args([
            "-V",
            version,
            "-h",
            "127.0.0.1",
            "-p",
            self.port()?,
            "-i",
            &format!("operator@{name}"),
            "-q",
            "1",
        ]);
        command.args(["--cafile", &self.file("root.pem")]);
        command.args(["--cert", &self.file("operator.pem"), "--key", &self.file("operator.key")]);
        Ok(command)
    }
}

#[test]
fn paho_gets_and_acknowledges_everything_in_both_versions() -> Result<()> {
    let lab = Lab::start()?;
    for version in ["4", "5"] {
        // Debian's Python has the library.
        let mut python = Command::new("/usr/bin/python3");
        python.args(["-c", PAHO, version, lab.port()?]);
        python.args(["root.pem", "operator.pem", "operator.key"].map(|name| lab.file(name)));
        let said = String::from_utf8(run(&mut python)?.stdout)?;
        ensure!(said.trim() == "40 heard, 40 acknowledged", "version {version}: {said}");
    }
    Ok(())
}

/// What a `mosquitto_pub` says is heard by a `mosquitto_sub`.
pub(crate) fn is_heard(hears: &mut Command, says: &mut Command) -> Result<()> {
    let mut hears = hears.args(["-C", "1", "-W", "20"]).stdout(Stdio::piped()).spawn()?;
    says.args(["-m", "now"]);
    // mosquitto_sub writes only when it ends, so nobody knows when it has subscribed.
    while hears.try_wait()?.is_none() {
        run(says)?;
    }
    let output = hears.wait_with_output()?;
    ensure!(output.status.success() && output.stdout == b"now\n", "{output:?}");
    Ok(())
}

#[test]
fn mosquitto_clients_of_both_versions_hear_each_other() -> Result<()> {
    let lab = Lab::start()?;
    for (publisher, subscriber) in [("311", "311"), ("311", "5"), ("5", "311"), ("5", "5")] {
        let mut hears = lab.mosquitto("mosquitto_sub", subscriber, "hears")?;
        hears.args(["-t", "device/v1/+/pump-17/#"]);
        let mut says = lab.mosquitto("mosquitto_pub", publisher, "says")?;
        says.args(["-t", "device/v1/default/pump-17/command/stop"]);
        is_heard(&mut hears, &mut says).with_context(|| format!("{publisher} to {subscriber}"))?;
    }
    Ok(())
}

#[test]
fn watch_goes_on_after_the_broker_was_away() -> Result<()> {
    let mut lab = Lab::start()?;
    let mut watch =
        lab.dir.assay(&["watch", "--count", "2", "--broker", &lab.server.operational])?;
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut heard = BufReader::new(watch.stdout.take().context("its output")?).lines();
    let mut told = BufReader::new(watch.stderr.take().context("its output")?).lines();
    for round in 0..2 {
        while !told.next().context("watch ended")??.starts_with("watching") {}
        let mut says = lab.mosquitto("mosquitto_pub", "5", "says")?;
        run(says.args(["-t", "device/v1/default/pump-17/command", "-m", &round.to_string()]))?;
        ensure!(heard.next().context("watch ended")??.ends_with(&round.to_string()));
        lab.server.kill9()?;
        lab.server.restart()?;
    }
    ensure!(watch.wait()?.success());
    Ok(())
}

/// A client that publishes to itself. Its arguments are the version, the port, and three files.
const PAHO: &str = r#"
import sys, threading
import paho.mqtt.client as mqtt
version, port, root, certificate, key = sys.argv[1:]
count, topic = 40, "device/v1/default/pump-17/command/"
heard, acknowledged, subscribed, done = [], set(), threading.Event(), threading.Event()
def look():
    if len(heard) == count and len(acknowledged) == count:
        done.set()
def on_connect(client, *rest): client.subscribe("device/#", qos=1)
def on_subscribe(client, *rest): subscribed.set()
def on_message(client, userdata, message): heard.append(message.payload); look()
def on_publish(client, userdata, mid): acknowledged.add(mid); look()
client = mqtt.Client(client_id="operator@paho", protocol=int(version))
client.on_connect, client.on_subscribe, client.on_message, client.on_publish = on_connect, on_subscribe, on_message, on_publish
client.tls_set(root, certificate, key)
client.connect("127.0.0.1", int(port), keepalive=30)
client.loop_start()
assert subscribed.wait(20), "no SUBACK"
for number in range(count):
    client.publish(topic + str(number), b"%d" % number, qos=number % 2)
done.wait(20)
client.disconnect()
print(f"{len(heard)} heard, {len(acknowledged)} acknowledged")
"#;
